/* The safetensors reader: what it returns, and the message of everything it refuses. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "test/model/fixture.h"
#include "base/safetensors.h"
#include "base/memory.h"

Test(safetensors, reads_tensors_by_order_and_name) {
    char *dir = test_temp_dir(), *path = td_asprintf("%s/a.safetensors", dir);
    const unsigned char data[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    fx_write_st(dir, "a.safetensors",
                "{\"z\":{\"dtype\":\"BF16\",\"shape\":[2,2],\"data_offsets\":[0,8]},"
                "\"__metadata__\":{\"k\":\"v\"},"
                "\"empty\":{\"dtype\":\"F32\",\"shape\":[0,3],\"data_offsets\":[8,8]},"
                "\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[4],\"data_offsets\":[8,12]}}   ",
                data, sizeof data);
    td_safetensors *st;
    td_error e;
    cr_assert_eq(td_safetensors_open(path, TD_E_MODEL, &st, &e), TD_OK, "%s", e.text);
    cr_assert_eq(td_safetensors_count(st), 3);
    cr_assert_str_eq(td_safetensors_at(st, 0)->name, "z");
    cr_assert_str_eq(td_safetensors_at(st, 1)->name, "empty");
    cr_assert_null(td_safetensors_at(st, 3));
    const td_st_tensor *z = td_safetensors_find(st, "z"), *a = td_safetensors_find(st, "a");
    cr_assert_eq(z->dtype, TD_BF16);
    cr_assert_eq(z->n_elems, 4);
    cr_assert_eq(memcmp(z->data, data, 8), 0);
    cr_assert_eq(a->dtype, -1);
    cr_assert_str_eq(a->dtype_name, "F8_E4M3");
    cr_assert_eq(*(const unsigned char *)a->data, 9);
    cr_assert_null(td_safetensors_find(st, "b"));
    cr_assert_str_eq(td_safetensors_meta(st, "k"), "v");
    cr_assert_null(td_safetensors_meta(st, "missing"));
    size_t n;
    cr_assert_eq(memcmp(td_safetensors_data(st, &n), data, 12), 0);
    cr_assert_eq(n, 12);
    td_safetensors_close(st);
    free(path);
}

Test(safetensors, refuses_bad_headers_by_name) {
    static const struct {
        const char *header, *message;
    } cases[] = {
        {"", "does not begin with '{'"},
        {"  {}", "does not begin with '{'"},
        {"{\"a\"", "bad header at byte"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]},"
         "\"a\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]}}",
         "duplicate"},
        {"{\"a\":3}", "tensor a: expected an object in the header, found an integer"},
        {"{\"__metadata__\":{\"x\":1}}", "__metadata__ \"x\" must be a string"},
        {"{\"a\":{\"shape\":[8],\"data_offsets\":[0,8]}}", "\"dtype\" is missing"},
        {"{\"a\":{\"dtype\":\"Q4\",\"shape\":[8],\"data_offsets\":[0,8]}}",
         "tensor a has the unknown dtype \"Q4\""},
        {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,8]}}", "tensor a has no \"shape\" array"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[-8],\"data_offsets\":[0,8]}}",
         "dimension 0 is no integer >= 0"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,8],\"data_offsets\":[0,8]}}",
         "has 9 dimensions"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,8]}}",
         "its shape overflows"},
        {"{\"a\":{\"dtype\":\"F64\",\"shape\":[4611686018427387904],\"data_offsets\":[0,8]}}",
         "its shape overflows"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0]}}",
         "\"data_offsets\" must be two integers"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[9],\"data_offsets\":[0,9]}}",
         "lies at bytes 0 to 9, but the data part has 8 bytes; is the file complete?"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[8,0]}}", "lies at bytes 8 to 0"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,8]}}",
         "tensor a has 8 bytes, its shape and dtype need 4"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[0,5]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}",
         "tensors a and b overlap"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}",
         "4 bytes before tensor a belong to none"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
         "4 bytes after the last tensor belong to none"},
    };
    char *dir = test_temp_dir(), *path = td_asprintf("%s/bad.safetensors", dir);
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        td_safetensors *st = NULL;
        td_error e = {0};
        fx_write_st(dir, "bad.safetensors", cases[i].header, "01234567", 8);
        cr_expect_eq(td_safetensors_open(path, TD_E_VERIFY, &st, &e), TD_E_VERIFY, "case %zu", i);
        cr_expect(strstr(e.text, cases[i].message), "case %zu: \"%s\" lacks \"%s\"", i, e.text,
                  cases[i].message);
        cr_expect(strstr(e.text, path), "case %zu does not name the file: %s", i, e.text);
        cr_expect_null(st);
    }
    free(path);
}

Test(safetensors, refuses_bad_files) {
    static const struct {
        const char *bytes;
        size_t n;
        const char *message;
    } cases[] = {
        {"", 0, "0 bytes are too few"},
        {"1234567", 7, "7 bytes are too few"},
        {"\x10\0\0\0\0\0\0\0{}", 10, "the header has 16 bytes, but the file ends after 10"},
        {"\xff\xff\xff\xff\xff\xff\xff\xff{}", 10, "over the format's limit of 100 MB"},
    };
    char *dir = test_temp_dir(), *path = td_asprintf("%s/f", dir);
    td_safetensors *st;
    td_error e;
    for (size_t i = 0; i < TD_ARRAY_LEN(cases); i++) {
        test_write_file(dir, "f", cases[i].bytes, cases[i].n);
        cr_expect_eq(td_safetensors_open(path, TD_E_MODEL, &st, &e), TD_E_MODEL);
        cr_expect(strstr(e.text, cases[i].message), "case %zu: %s", i, e.text);
    }
    cr_expect_eq(td_safetensors_open(dir, TD_E_MODEL, &st, &e), TD_E_MODEL);
    cr_expect(strstr(e.text, "not a regular file"), "%s", e.text);
    cr_expect_eq(td_safetensors_open("/nonexistent/x", TD_E_MODEL, &st, &e), TD_E_MODEL);
    cr_expect(strstr(e.text, "cannot open /nonexistent/x"), "%s", e.text);
    free(path);
}
