/* Leaf helpers: number formats, checked arithmetic, names, errors, atomic files. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/dtype.h"
#include "base/json.h"
#include "base/file.h"
#include "base/format.h"
#include "base/memory.h"

Test(dtype, f16_round_trips_every_value) {
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = td_f16_to_f32((uint16_t)h);
        if (isnan(f))
            continue;
        cr_assert_eq(td_f32_to_f16(f), h, "half %04x gave %04x", h, td_f32_to_f16(f));
    }
}

Test(dtype, f16_rounding_is_nearest_even) {
    /* Between two neighbours the midpoint goes to the even one, everything else to the nearer. */
    for (uint32_t h = 0; h < 0x7bff; h++) {
        float a = td_f16_to_f32((uint16_t)h), b = td_f16_to_f32((uint16_t)(h + 1));
        float mid = (float)(((double)a + b) / 2);
        cr_assert_eq(td_f32_to_f16(mid), h & 1 ? h + 1 : h);
        cr_assert_eq(td_f32_to_f16(nextafterf(mid, a)), h);
        cr_assert_eq(td_f32_to_f16(nextafterf(mid, b)), h + 1);
    }
    cr_assert_eq(td_f32_to_f16(65519.996f), 0x7bff);
    cr_assert_eq(td_f32_to_f16(65520.0f), 0x7c00);
    cr_assert_eq(td_f32_to_f16(-INFINITY), 0xfc00);
}

Test(dtype, bf16_rounding_is_nearest_even) {
    cr_assert_eq(td_f32_to_bf16(1.0f), 0x3f80);
    cr_assert_eq(td_f32_to_bf16(1.00390625f), 0x3f80); /* midpoint, even below */
    cr_assert_eq(td_f32_to_bf16(1.01171875f), 0x3f82); /* midpoint, even above */
    cr_assert_eq(td_f32_to_bf16(nextafterf(1.00390625f, 2)), 0x3f81);
    cr_assert(isnan(td_bf16_to_f32(td_f32_to_bf16(NAN))));
    cr_assert_eq(td_f32_to_bf16(INFINITY), 0x7f80);
}

Test(util, checked_arithmetic) {
    size_t r = 7;
    cr_assert_not(td_mul_size(SIZE_MAX / 2, 3, &r));
    cr_assert_eq(r, 7);
    cr_assert(td_mul_size(6, 7, &r));
    cr_assert_eq(r, 42);
    cr_assert_not(td_add_size(SIZE_MAX, 1, &r));
    cr_assert_null(td_realloc_array(NULL, SIZE_MAX, 2));
}

Test(util, nearest_name) {
    const char *const names[] = {"batch_tokens", "seed", "worker_id"};
    cr_assert_str_eq(td_nearest_name("batch_token", names, 3), "batch_tokens");
    cr_assert_str_eq(td_nearest_name("sede", names, 3), "seed");
    cr_assert_null(td_nearest_name("zzzzzzzz", names, 3));
}

Test(util, error_prefix_keeps_code_and_adds_context) {
    td_error e;
    cr_assert_eq(td_error_set(&e, TD_E_DATA, "row %d", 3), TD_E_DATA);
    cr_assert_eq(td_error_prefix(&e, "file %s", "x"), TD_E_DATA);
    cr_assert_str_eq(e.text, "file x: row 3");
    cr_assert_eq(td_error_set(NULL, TD_E_MODEL, "dropped"), TD_E_MODEL);
}

Test(util, atomic_write_leaves_the_old_file_when_it_fails) {
    char dir[] = "/tmp/tdgen-test-XXXXXX";
    cr_assert(mkdtemp(dir));
    char *path = td_asprintf("%s/f", dir), *blocked = td_asprintf("%s/f.tmp", dir);
    td_error e;
    cr_assert_eq(td_file_write_atomic(path, "one", 3, true, &e), TD_OK);
    td_mkdir_p(blocked, &e); /* the temp name is taken by a folder */
    cr_assert_eq(td_file_write_atomic(path, "two", 3, true, &e), TD_E_OUTPUT);
    cr_assert(strstr(e.text, "f.tmp"));
    char *data;
    size_t n;
    cr_assert_eq(td_file_read(path, 100, TD_E_DATA, &data, &n, &e), TD_OK);
    cr_assert_eq(n, 3);
    cr_assert_str_eq(data, "one");
    cr_assert_eq(td_file_read(path, 2, TD_E_DATA, &data, &n, &e), TD_E_DATA);
    cr_assert(strstr(e.text, "too large"));
    cr_assert_eq(rmdir(blocked) | unlink(path) | rmdir(dir), 0);
    free(data);
    free(path);
    free(blocked);
}

Test(json, errors_name_file_key_and_expectation) {
    json_t *j;
    td_error e;
    const char text[] = "{\"a\": 3, \"s\": \"x\\u0000y\", \"b\": true, \"n\": null}";
    cr_assert_eq(td_json_parse(text, strlen(text), "f.json", TD_E_MODEL, &j, &e), TD_OK);
    int64_t i = -1;
    cr_assert_eq(td_json_get_int(j, "a", 0, 2, "f.json", TD_E_MODEL, &i, &e), TD_E_MODEL);
    cr_assert_str_eq(e.text, "f.json: \"a\" is 3, expected 0 to 2");
    cr_assert_eq(td_json_get_int(j, "s", 0, 2, "f.json", TD_E_MODEL, &i, &e), TD_E_MODEL);
    cr_assert_str_eq(e.text, "f.json: \"s\" must be an integer, but is a string");
    cr_assert_eq(td_json_get_int(j, "zz", 0, 2, "f.json", TD_E_MODEL, &i, &e), TD_E_MODEL);
    cr_assert(strstr(e.text, "\"zz\" is missing"));
    cr_assert_eq(td_json_opt_int(j, "n", 0, 2, "f.json", TD_E_MODEL, &i, &e), TD_OK);
    cr_assert_eq(i, -1);
    cr_assert_eq(json_string_length(json_object_get(j, "s")), 3);
    json_decref(j);
    cr_assert_eq(td_json_parse("{,}", 3, "f.json", TD_E_MODEL, &j, &e), TD_E_MODEL);
    cr_assert(strstr(e.text, "f.json: not valid JSON at line 1"));
}

Test(util, integers_of_the_command_line) {
    long long v = -7;
    cr_expect(td_parse_int("16", 1, 16, &v) && v == 16);
    static const char *const bad[] = {"", "x", "3x", "17", "0", "99999999999999999999", "1.5"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cr_expect(!td_parse_int(bad[i], 1, 16, &v) && v == 16, "%s", bad[i]);
}
