/* format.c - numbers and names for and from a person. */
#include "base/format.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/memory.h"

char *td_human_bytes(uint64_t size_bytes, char *buf, size_t buf_size) {
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double v = (double)size_bytes;
    size_t i = 0;
    while (v >= 1024 && i + 1 < TD_ARRAY_LEN(unit)) {
        v /= 1024;
        i++;
    }
    snprintf(buf, buf_size, i == 0 ? "%.0f %s" : v < 10 ? "%.2f %s" : "%.1f %s", v, unit[i]);
    return buf;
}

char *td_human_count(double n, char *buf, size_t buf_size) {
    static const char *const unit[] = {"", "k", "M", "B", "T"};
    size_t i = 0;
    while (n >= 1000 && i + 1 < TD_ARRAY_LEN(unit)) {
        n /= 1000;
        i++;
    }
    snprintf(buf, buf_size, i == 0 ? "%.0f%s" : n < 10 ? "%.2f%s" : "%.1f%s", n, unit[i]);
    return buf;
}

char *td_human_seconds(double s, char *buf, size_t buf_size) {
    if (s < 60)
        snprintf(buf, buf_size, "%.1fs", s);
    else if (s < 3600)
        snprintf(buf, buf_size, "%dm%02ds", (int)s / 60, (int)s % 60);
    else if (s < 48 * 3600.0)
        snprintf(buf, buf_size, "%dh%02dm", (int)(s / 3600), (int)(s / 60) % 60);
    else
        snprintf(buf, buf_size, "%.1f days", s / 86400);
    return buf;
}

/* Damerau-Levenshtein (adjacent transpositions count as one edit), bounded by short names. */
static size_t edit_distance(const char *a, const char *b) {
    enum { MAX_NAME = 64 };
    size_t na = strlen(a), nb = strlen(b);
    size_t row[3][MAX_NAME + 1];
    if (na > MAX_NAME || nb > MAX_NAME)
        return MAX_NAME;
    size_t *prev2 = row[0], *prev = row[1], *cur = row[2];
    for (size_t j = 0; j <= nb; j++)
        prev[j] = j;
    for (size_t i = 1; i <= na; i++) {
        cur[0] = i;
        for (size_t j = 1; j <= nb; j++) {
            size_t d = prev[j - 1] + (a[i - 1] != b[j - 1]);
            d = TD_MIN(d, TD_MIN(prev[j], cur[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                d = TD_MIN(d, prev2[j - 2] + 1);
            cur[j] = d;
        }
        size_t *t = prev2;
        prev2 = prev;
        prev = cur;
        cur = t;
    }
    return prev[nb];
}

const char *td_nearest_name(const char *name, const char *const *candidates, size_t n) {
    const char *best = NULL;
    size_t best_d = (size_t)-1;
    for (size_t i = 0; i < n; i++) {
        size_t d = edit_distance(name, candidates[i]);
        if (d < best_d) {
            best_d = d;
            best = candidates[i];
        }
    }
    return best && best_d <= TD_MAX(strlen(best), strlen(name)) / 2 ? best : NULL;
}

char *td_grouped_digits(int64_t n, char buf[32]) {
    char digits[24];
    int len = snprintf(digits, sizeof digits, "%lld", (long long)n), at = 0;
    for (int i = 0; i < len; i++) {
        buf[at++] = digits[i];
        const int behind = len - 1 - i;
        if (behind && behind % 3 == 0 && digits[i] != '-')
            buf[at++] = ',';
    }
    buf[at] = '\0';
    return buf;
}

bool td_parse_int(const char *s, long long min, long long max, long long *out) {
    char *end;
    errno = 0;
    long long v = strtoll(s, &end, 10);
    if (errno || end == s || *end || v < min || v > max)
        return false;
    *out = v;
    return true;
}
