/* test_timeline.c - the timeline of a run: bounded however long it gets, nothing lost but the
 * resolution. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "test/common.h"
#include "run/state.h"
#include "base/memory.h"

enum { BATCHES = 100000 };

static void run_once(const char *dir, int n_batches) {
    td_config cfg = {.output.dir = (char *)dir};
    td_run_input in = {.cfg = &cfg};
    td_plan_group plan = {0};
    td_group groups[2] = {{.plan = &plan}, {.plan = &plan}};
    const char *kinds[] = {"kind"};
    int32_t group_kind[2] = {0, 0};
    td_run_state run = {.in = &in,
                        .groups = groups,
                        .n_groups = 2,
                        .kinds = kinds,
                        .group_kind = group_kind,
                        .n_kinds = 1,
                        .start_s = 100};
    td_timeline *t = td_timeline_create(&run);
    cr_assert(t);
    for (int i = 0; i < n_batches; i++) {
        double a = 100 + 0.5 * i + (i >= n_batches / 2 ? 50000 : 0); /* with a long pause */
        td_timeline_note(t, 0, i / 10, 2, 30, a, a + 0.5);
    }
    td_timeline_note(t, 1, 7, 1, 5, 101, 103);
    td_timeline_write(t);
    td_timeline_free(t);
}

Test(timeline, stays_small_and_loses_no_work) {
    const char *dir = test_temp_dir();
    size_t n = 0;
    for (int k = 0; k < TD_TIMELINE_EXECUTIONS + 4; k++)
        run_once(dir, k == 0 ? 10 : k == TD_TIMELINE_EXECUTIONS + 3 ? BATCHES : 1000);
    char *data = test_read_file(dir, "timeline.jsonl", &n);
    cr_assert(data);
    int lines = 0;
    char *last = NULL;
    for (char *s = data, *nl; (nl = strchr(s, '\n')); s = nl + 1, lines++) {
        *nl = '\0';
        last = s;
    }
    cr_assert_leq(lines, TD_TIMELINE_EXECUTIONS + 1);
    json_t *o = json_loads(last, 0, NULL);
    const json_t *groups = json_object_get(o, "groups"),
                 *segments = json_object_get(json_array_get(groups, 0), "segments");
    size_t m = json_array_size(segments);
    cr_assert(m > 100 && m <= TD_TIMELINE_SEGMENTS, "%zu segments", m);
    double samples = 0, tokens = 0, before = 0;
    for (size_t i = 0; i < m; i++) {
        const json_t *s = json_array_get(segments, i);
        double a = json_number_value(json_array_get(s, 0)),
               b = json_number_value(json_array_get(s, 1));
        cr_assert(a >= before - 1e-2 && b > a, "segment %zu: %g to %g after %g", i, a, b, before);
        before = b;
        samples += json_number_value(json_array_get(s, 4));
        tokens += json_number_value(json_array_get(s, 5));
    }
    cr_assert_eq(samples, 2.0 * BATCHES);
    cr_assert_eq(tokens, 30.0 * BATCHES);
    cr_assert_eq(json_array_size(json_object_get(json_array_get(groups, 1), "segments")), 1);
    json_decref(o);
    free(data);
}
