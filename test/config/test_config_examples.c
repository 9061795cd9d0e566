/* conf/: every example loads, and run.ini documents every key with its true default. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/keys.h"
#include "base/file.h"

#define CONF TD_SOURCE_DIR "/conf"

/* Examples name inventory files, mostly in comments: each must be there. */
static void check_inventories(const char *path) {
    char *text, file[1024];
    size_t size_bytes;
    td_error err;
    cr_assert_eq(td_file_read(path, 1 << 20, TD_E_CONFIG, &text, &size_bytes, &err), TD_OK);
    for (char *at = text; (at = strstr(at, "conf/inventory/")); at++) {
        snprintf(file, sizeof file, "%s/%.*s", TD_SOURCE_DIR, (int)strcspn(at, " \n"), at);
        cr_expect(td_path_exists(file), "%s names %s, which is not there", path, file);
    }
    free(text);
}

Test(config_examples, all_load) {
    int n = 0;
    DIR *dir = opendir(CONF);
    cr_assert_not_null(dir);
    for (struct dirent *e; (e = readdir(dir));) {
        const char *dot = strrchr(e->d_name, '.');
        if (!dot || strcmp(dot, ".ini"))
            continue;
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", CONF, e->d_name);
        td_config cfg;
        td_error err;
        cr_expect_eq(td_config_load(path, NULL, 0, &cfg, &err), TD_OK, "%s", err.text);
        td_config_free(&cfg);
        check_inventories(path);
        n++;
    }
    closedir(dir);
    cr_expect_geq(n, 7, "only %d examples", n);
}

/* The value behind "name = " at the start of a line of [section], after `lead`; NULL if none. */
static const char *find_line(char *text, const char *section, const char *lead, const char *name,
                             char *value, size_t value_size) {
    char heading[40], line[200];
    snprintf(heading, sizeof heading, "\n[%s]\n", section);
    const char *begin = strstr(text, heading);
    cr_assert(begin, "no %s", heading);
    const char *end = strstr(begin + strlen(heading), "\n[");
    snprintf(line, sizeof line, "\n%s%s = ", lead, name);
    const char *at = strstr(begin, line);
    if (!at || (end && at > end))
        return NULL;
    at += strlen(line);
    snprintf(value, value_size, "%.*s", (int)strcspn(at, "\n"), at);
    return value;
}

Test(config_examples, run_ini_documents_every_key) {
    char *text;
    size_t size_bytes;
    td_error err;
    cr_assert_eq(td_file_read(CONF "/run.ini", 1 << 20, TD_E_CONFIG, &text, &size_bytes, &err),
                 TD_OK);
    for (int k = 0; k < td_config_n_keys; k++) {
        const td_config_key *key = &td_config_keys[k];
        char value[200];
        bool required = !key->def && !strcmp(key->def_text, "required");
        cr_expect(
            find_line(text, key->section, required ? "" : ";", key->name, value, sizeof value),
            "conf/run.ini does not show [%s] %s", key->section, key->name);
        if (key->def)
            cr_expect_str_eq(value, key->def, "[%s] %s", key->section, key->name);
        /* What is shown as an example must itself be valid. */
        td_config cfg = {0};
        cr_expect_eq(td_config_set_value(&cfg, key, value, &err), TD_OK, "[%s] %s: %s",
                     key->section, key->name, err.text);
        td_config_free(&cfg);
        /* The range is part of the text: its upper end appears in the file. */
        if (key->type == TD_KEY_INT32 || key->type == TD_KEY_INT32_AUTO ||
            (key->type == TD_KEY_INT64 && key->max != INT64_MAX)) {
            char top[32];
            snprintf(top, sizeof top, "%lld", (long long)key->max);
            /* worker_id's range follows from total_workers. */
            cr_expect(strstr(text, top) || !strcmp(key->name, "worker_id"),
                      "conf/run.ini does not say that [%s] %s ends at %s", key->section, key->name,
                      top);
        }
    }
    free(text);
}
