/* Token texts in a terminal's columns. See text.h. */
#include "base/text.h"

#include "base/memory.h"
#include "base/strbuf.h"

#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* One scalar value; returns its length in bytes, 0 where there is no valid UTF-8. */
static size_t decode(const char *s, size_t n, uint32_t *cp) {
    const unsigned char *p = (const unsigned char *)s;
    if (n == 0)
        return 0;
    if (p[0] < 0x80) {
        *cp = p[0];
        return 1;
    }
    size_t len = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : p[0] >= 0xc2 ? 2 : 0;
    if (len == 0 || p[0] > 0xf4 || n < len)
        return 0;
    uint32_t c = p[0] & (0xffu >> (len + 1));
    for (size_t i = 1; i < len; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (p[i] & 0x3f);
    }
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    if (c < least[len] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
        return 0;
    *cp = c;
    return len;
}

typedef struct range {
    uint32_t first, last;
} range;

static bool within(uint32_t c, const range *r, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (c >= r[i].first && c <= r[i].last)
            return true;
    return false;
}

/* What moves the cursor, ends a line or turns the direction of writing. */
static bool needs_escape(uint32_t c) {
    static const range r[] = {{0, 0x1f},        {0x7f, 0x9f},     {0x61c, 0x61c},  {0x200e, 0x200f},
                              {0x2028, 0x202e}, {0x2066, 0x2069}, {0xfeff, 0xfeff}};
    return within(c, r, TD_ARRAY_LEN(r));
}

static int width_of(uint32_t c) {
    static const range zero[] = {
        {0x300, 0x36f},   {0x483, 0x489},     {0x591, 0x5bd},    {0x610, 0x61a},   {0x64b, 0x65f},
        {0x900, 0x902},   {0x93c, 0x93c},     {0x941, 0x948},    {0x94d, 0x94d},   {0xe31, 0xe31},
        {0xe34, 0xe3a},   {0xe47, 0xe4e},     {0x1ab0, 0x1aff},  {0x200b, 0x200d}, {0x20d0, 0x20ff},
        {0xfe00, 0xfe0f}, {0x1f3fb, 0x1f3ff}, {0xe0100, 0xe01ef}};
    static const range two[] = {
        {0x1100, 0x115f},   {0x231a, 0x231b},   {0x23e9, 0x23ec},   {0x2e80, 0x303e},
        {0x3041, 0x4dbf},   {0x4e00, 0xa4cf},   {0xa960, 0xa97c},   {0xac00, 0xd7a3},
        {0xf900, 0xfaff},   {0xfe30, 0xfe6f},   {0xff00, 0xff60},   {0xffe0, 0xffe6},
        {0x1f300, 0x1f64f}, {0x1f680, 0x1f6ff}, {0x1f900, 0x1f9ff}, {0x20000, 0x3fffd}};
    if (c < 0x300)
        return 1;
    return within(c, zero, TD_ARRAY_LEN(zero)) ? 0 : within(c, two, TD_ARRAY_LEN(two)) ? 2 : 1;
}

void td_text_printable(const char *s, size_t n, td_strbuf *out) {
    while (n) {
        uint32_t c = 0;
        size_t len = decode(s, n, &c);
        if (len == 0) {
            td_strbuf_printf(out, "\\x%02X", (unsigned char)*s);
            len = 1;
        } else if (c == '\n') {
            td_strbuf_puts(out, "\\n");
        } else if (c == '\r') {
            td_strbuf_puts(out, "\\r");
        } else if (c == '\t') {
            td_strbuf_puts(out, "\\t");
        } else if (needs_escape(c)) {
            td_strbuf_printf(out, c < 0x100 ? "\\x%02X" : "\\u%04X", c);
        } else {
            td_strbuf_append(out, s, len);
        }
        s += len;
        n -= len;
    }
}

int td_text_width(const char *s) {
    size_t n = strlen(s);
    int width = 0;
    while (n) {
        uint32_t c = '?';
        size_t len = decode(s, n, &c);
        width += width_of(c);
        len = len ? len : 1;
        s += len;
        n -= len;
    }
    return width;
}

void td_text_cell(const char *s, int width, td_strbuf *out) {
    bool cut = td_text_width(s) > width;
    int room = cut ? width - 1 : width, at = 0;
    size_t n = strlen(s);
    while (n) {
        uint32_t c = '?';
        size_t len = decode(s, n, &c);
        len = len ? len : 1;
        if (at + width_of(c) > room)
            break;
        td_strbuf_append(out, s, len);
        at += width_of(c);
        s += len;
        n -= len;
    }
    if (cut && width > 0) {
        td_strbuf_puts(out, "…");
        at++;
    }
    for (; at < width; at++)
        td_strbuf_append(out, " ", 1);
}

void td_text_wrap(const char *text, int columns, int indent, FILE *out) {
    int at = 0;
    td_strbuf one = {0};
    while (*text) {
        const size_t blanks = strspn(text, " "), word = strcspn(text + blanks, " ");
        td_strbuf_clear(&one);
        td_strbuf_append(&one, text + blanks, word);
        const int width = one.oom || !one.data ? (int)word : td_text_width(one.data);
        if (at > 0 && at + (int)blanks + width > columns && at > indent) {
            fprintf(out, "\n%*s", indent, "");
            at = indent + width;
        } else {
            fprintf(out, "%.*s", (int)blanks, text);
            at += (int)blanks + width;
        }
        fwrite(text + blanks, 1, word, out);
        text += blanks + word;
    }
    fputc('\n', out);
    td_strbuf_free(&one);
}

bool td_text_shell_quote(const char *s, td_strbuf *out) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                "_./:=@%+,-";
    if (*s && s[strspn(s, plain)] == '\0') {
        td_strbuf_puts(out, s);
        return !out->oom;
    }
    td_strbuf_puts(out, "'");
    for (; *s; s++)
        if (*s == '\'')
            td_strbuf_puts(out, "'\\''");
        else
            td_strbuf_append(out, s, 1);
    td_strbuf_puts(out, "'");
    return !out->oom;
}

/* Where the entry behind a line's name begins, or two columns behind the line's first character. */
static int hanging_indent(const char *line) {
    enum { MOST = 32 };
    const int lead = (int)strspn(line, " ");
    for (int i = lead; line[i] && i < MOST; i++) {
        const int blanks = (int)strspn(line + i, " ");
        if (blanks >= 2 && i + blanks <= MOST && line[i + blanks])
            return i + blanks;
    }
    return lead < MOST ? lead + 2 : MOST;
}

int td_text_columns(FILE *out) {
    enum { LEAST = 40 };
    struct winsize ws;
    const int fd = fileno(out); /* -1: memory */
    if (fd < 0 || !isatty(fd) || ioctl(fd, TIOCGWINSZ, &ws) != 0 || ws.ws_col >= TD_TEXT_COLUMNS)
        return TD_TEXT_COLUMNS;
    return ws.ws_col == 0 ? 80 : ws.ws_col < LEAST ? LEAST : ws.ws_col;
}

void td_text_flow(const char *lines, int columns, FILE *out) {
    td_strbuf line = {0};
    while (*lines) {
        const size_t n = strcspn(lines, "\n");
        td_strbuf_clear(&line);
        td_strbuf_append(&line, lines, n);
        if (line.oom || !line.data)
            fprintf(out, "%.*s\n", (int)n, lines);
        else
            td_text_wrap(line.data, columns, hanging_indent(line.data), out);
        lines += n + (lines[n] == '\n');
    }
    td_strbuf_free(&line);
}
