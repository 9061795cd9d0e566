/* common.h - what the tests of every room share: calls that have to succeed, folders and files,
 * random numbers. For Criterion suites and for plain programs. */
#ifndef TDGEN_TEST_COMMON_H
#define TDGEN_TEST_COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* In a Criterion suite: a call that has to succeed and leaves its reason in `err`. */
#define OK(call) cr_assert_eq((call), TD_OK, "%s: %s", #call, err.text)

/* Anywhere: what a fixture or a plain program cannot go on without. Aborts when it is false. */
#define MUST(x) ((x) ? (void)0 : test_abort(__FILE__, __LINE__, #x))
void test_abort(const char *file, int line, const char *what) __attribute__((noreturn));

/* --- folders and files: all of these abort when they fail ------------------------------------- */

/* A fresh folder, removed with all it holds when this process exits (not its children), or before
 * by test_remove_tree. The name stays valid until then. For one thread. */
char *test_temp_dir(void);
/* Nothing to do when it is not there. */
void test_remove_tree(const char *dir);
void test_write_file(const char *dir, const char *name, const void *data, size_t n);
/* The whole file and a NUL behind it, freed by the caller; NULL when there is none. */
char *test_read_file(const char *dir, const char *name, size_t *n);
/* Is the file in both folders, with the same bytes? */
bool test_same_file(const char *a, const char *b, const char *name);

/* --- random numbers: the whole stream follows from the state ---------------------------------- */

/* splitmix64, from any state. */
uint64_t test_random(uint64_t *state);
/* xorshift, from any state but 0. */
uint64_t test_xorshift(uint64_t *state);

#endif
