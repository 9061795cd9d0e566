/* fixture.h - a temporary INI file, and td_config_load over it. */
#ifndef TDGEN_TEST_CONFIG_FIXTURE_H
#define TDGEN_TEST_CONFIG_FIXTURE_H

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "test/common.h"
#include "config/config.h"

/* The least that loads. */
#define BASE_INI "[model]\npath = m\n[data]\npath = d.jsonl\n[output]\ndir = o\n"

/* Writes `size` bytes to a fresh file and changes into its folder, so that messages name "run.ini".
 */
static inline void write_run_ini(const char *text, size_t size_bytes) {
    static const char *dir;
    if (!dir) {
        dir = test_temp_dir();
        cr_assert_eq(chdir(dir), 0);
    }
    test_write_file(dir, "run.ini", text, size_bytes);
}

/* Up to four overrides, NULL ends them early. */
static inline td_status load_text(const char *text, const char *const overrides[4], td_config *cfg,
                                  td_error *err) {
    size_t n = 0;
    while (overrides && n < 4 && overrides[n])
        n++;
    write_run_ini(text, strlen(text));
    memset(err, 0, sizeof *err);
    return td_config_load("run.ini", overrides, n, cfg, err);
}

#endif
