/* path_list.c - see path_list.h. */
#include "base/path_list.h"

#include <stdlib.h>
#include <string.h>
#include "base/memory.h"

static bool is_blank(char c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* The item that begins at *s, which is left behind it. */
static td_status take_quoted(const char **s, td_strbuf *item, td_error *err) {
    const char *begin = *s, *p = begin + 1;
    for (; *p && *p != '"'; p++) {
        if (*p == '\\' && (p[1] == '"' || p[1] == '\\'))
            p++;
        td_strbuf_append(item, p, 1);
    }
    if (!*p)
        return td_error_set(err, TD_E_CONFIG, "the quote before '%.200s' is not closed", begin + 1);
    for (p++; is_blank(*p);)
        p++;
    if (*p && *p != ',')
        return td_error_set(err, TD_E_CONFIG,
                            "expected a comma behind the quoted path, but found '%.200s'", p);
    *s = p;
    return TD_OK;
}

static void take_plain(const char **s, td_strbuf *item) {
    size_t all = strcspn(*s, ","), n = all;
    while (n && is_blank((*s)[n - 1]))
        n--;
    td_strbuf_append(item, *s, n);
    *s += all;
}

td_status td_path_list_split(const char *setting, td_path_item **items, size_t *n, td_error *err) {
    td_path_item *list = NULL;
    size_t cap = 0, count = 0;
    td_strbuf item = {0};
    td_status rc = TD_OK;
    for (const char *s = setting;; s++) {
        while (is_blank(*s))
            s++;
        bool quoted = *s == '"';
        td_strbuf_clear(&item);
        if (quoted)
            rc = take_quoted(&s, &item, err);
        else
            take_plain(&s, &item);
        if (rc == TD_OK && item.len == 0)
            rc = td_error_set(err, TD_E_CONFIG,
                              "a path of the list '%.300s' is empty; a path that holds commas "
                              "stands in double quotes",
                              setting);
        if (rc != TD_OK)
            break;
        if (item.oom || !td_grow((void **)&list, &cap, count + 1, sizeof *list) ||
            !(list[count].text = td_strdup(item.data))) {
            rc = td_error_nomem(err, "a list of paths", item.len);
            break;
        }
        list[count++].quoted = quoted;
        if (!*s)
            break;
    }
    td_strbuf_free(&item);
    if (rc != TD_OK) {
        td_path_list_free(list, count);
        return rc;
    }
    *items = list;
    *n = count;
    return TD_OK;
}

void td_path_list_free(td_path_item *items, size_t n) {
    for (size_t i = 0; i < n; i++)
        free(items[i].text);
    free(items);
}

bool td_path_list_join(const td_path_item *item, td_strbuf *out) {
    if (out->len)
        td_strbuf_puts(out, ", ");
    size_t n = strlen(item->text);
    bool quote = item->quoted || n == 0 || item->text[0] == '"' || strchr(item->text, ',') ||
                 is_blank(item->text[0]) || is_blank(item->text[n - 1]);
    if (quote)
        td_strbuf_puts(out, "\"");
    for (const char *p = item->text; *p; p++) {
        if (quote && (*p == '"' || *p == '\\'))
            td_strbuf_puts(out, "\\");
        td_strbuf_append(out, p, 1);
    }
    if (quote)
        td_strbuf_puts(out, "\"");
    return !out->oom;
}
