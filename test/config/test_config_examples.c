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

/* The paragraph of [section] around "name = ", in `text`, which is left as it was. */
static char *paragraph_of(char *text, const char *section, const char *lead, const char *name) {
    char heading[40], line[200];
    snprintf(heading, sizeof heading, "\n[%s]\n", section);
    snprintf(line, sizeof line, "\n%s%s = ", lead, name);
    char *at = strstr(strstr(text, heading), line), *begin = at;
    while (begin > text && strncmp(begin, "\n\n", 2) != 0 && strncmp(begin, "]\n", 2) != 0)
        begin--;
    char *end = strstr(at + 1, "\n\n");
    return strndup(begin, end ? (size_t)(end - begin) : strlen(begin));
}

/* Is `word` there, and not as a part of a longer one? */
static bool says(const char *text, const char *word) {
    const char *at = text;
    size_t n = strlen(word);
    if (n == 0)
        return true;
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789_";
    for (; (at = strstr(at, word)); at++)
        if (!strchr(letters, at[-1]) && (!at[n] || !strchr(letters, at[n])))
            return true;
    return false;
}

/* The words beside a key in run.ini and the table's: choices, range, and whether a value is there by
 * default. */
static void check_words(const td_config_key *key, const char *paragraph) {
    for (const td_key_choice *c = key->choices; c && c->name; c++)
        cr_expect(says(paragraph, c->name), "conf/run.ini: [%s] %s does not tell of %s",
                  key->section, key->name, c->name);
    char low[32] = "", high[32] = "";
    if (key->type == TD_KEY_INT32 || key->type == TD_KEY_INT32_AUTO ||
        (key->type == TD_KEY_INT64 && key->max != INT64_MAX)) {
        snprintf(low, sizeof low, "%lld", (long long)key->min);
        snprintf(high, sizeof high, "%lld", (long long)key->max);
    } else if (key->type == TD_KEY_DOUBLE) {
        snprintf(low, sizeof low, "%g", (double)key->min / 1000);
        snprintf(high, sizeof high, "%g", (double)key->max / 1000);
    } else if (key->type == TD_KEY_BOOL) {
        strcpy(low, "true");
        strcpy(high, "false");
    }
    /* worker_id's range follows from total_workers, min_k's upper end is top_k. */
    bool follows = !strcmp(key->name, "worker_id") || !strcmp(key->name, "min_k");
    cr_expect(says(paragraph, low) && (follows || says(paragraph, high)),
              "conf/run.ini: [%s] %s does not say %s to %s", key->section, key->name, low, high);
    if (key->def_text && !strcmp(key->def_text, "required"))
        cr_expect(strstr(paragraph, "Required."), "conf/run.ini: [%s] %s is required", key->section,
                  key->name);
    else
        cr_expect_not(strstr(paragraph, "Required."), "conf/run.ini: [%s] %s is not required",
                      key->section, key->name);
    if (key->type == TD_KEY_GPUS)
        for (const char *const *word =
                 (const char *const[]){"auto", "cpu", "UUID", "PCI", "256", NULL};
             *word; word++)
            cr_expect(strstr(paragraph, *word), "conf/run.ini: gpus does not tell of %s", *word);
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
        char *paragraph = paragraph_of(text, key->section, required ? "" : ";", key->name);
        check_words(key, paragraph);
        free(paragraph);
    }
    free(text);
}
