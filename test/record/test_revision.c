/* The numerics revision: part of the identity, absent at revision 1, never mixed in a folder. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "fixture.h"
#include "test/common.h"

static int32_t revision_of(const td_fixture *f) {
    td_manifest m = {0};
    td_error err;
    cr_assert_eq(td_manifest_load(f->cfg.output.dir, TD_E_VERIFY, &m, &err), TD_OK, "%s", err.text);
    int32_t revision = m.numerics_revision;
    td_manifest_free(&m);
    return revision;
}

/* A run of one shard into f's folder by a version of that revision. */
static td_status run_at(td_fixture *f, int32_t revision, td_error *err) {
    f->id.numerics_revision = revision;
    return td_fixture_run(f, 1, NULL, err);
}

/* The key would change the fingerprint, and with it every shard that c4d9fb0 wrote. */
Test(revision, one_is_the_absence_of_the_key) {
    td_fixture f;
    td_error err;
    size_t n;
    td_fixture_init(&f);
    cr_assert_eq(run_at(&f, 1, &err), TD_OK, "%s", err.text);
    char *text = test_read_file(f.cfg.output.dir, "manifest.json", &n);
    cr_assert_not(strstr(text, "numerics_revision"), "%s", text);
    cr_expect_eq(revision_of(&f), 1);
    free(text);
    td_fixture_free(&f);
}

Test(revision, others_stand_in_the_identity) {
    td_fixture f;
    td_error err;
    size_t n;
    td_fixture_init(&f);
    cr_assert_eq(run_at(&f, 2, &err), TD_OK, "%s", err.text);
    char *text = test_read_file(f.cfg.output.dir, "manifest.json", &n);
    cr_assert(strstr(text, "\"numerics_revision\": 2"), "%s", text);
    cr_expect_eq(revision_of(&f), 2);
    free(text);
    /* Any version reads and verifies it. */
    FILE *out = tmpfile();
    cr_expect_eq(td_verify(f.cfg.output.dir, &(td_verify_options){.partial = true}, out, &err),
                 TD_OK, "%s", err.text);
    fclose(out);
    td_fixture_free(&f);
}

Test(revision, a_folder_is_resumed_at_its_own_only) {
    static const int32_t made[] = {1, 2, 2}, resumed[] = {2, 1, 3};
    for (size_t i = 0; i < sizeof made / sizeof made[0]; i++) {
        td_fixture f;
        td_error err;
        char both[80];
        td_fixture_init(&f);
        cr_assert_eq(run_at(&f, made[i], &err), TD_OK, "%s", err.text);
        cr_assert_eq(run_at(&f, resumed[i], &err), TD_E_OUTPUT);
        snprintf(both, sizeof both, "is %d in the folder and %d in this run", made[i], resumed[i]);
        cr_expect(strstr(err.text, both), "%s", err.text);
        cr_expect(strstr(err.text, "Finish it with the version that began it"), "%s", err.text);
        cr_expect_eq(revision_of(&f), made[i]);
        cr_expect_eq(run_at(&f, made[i], &err), TD_OK, "%s", err.text);
        td_fixture_free(&f);
    }
}
