/* paths.c - what a path in a setting means.
 *
 *   "..."            in double quotes: taken as it stands (\" and \\ are decoded)
 *   ~  ~/x  ~user/x  the home directory
 *   $VAR ${VAR}      of the environment; one that is not set is refused by name
 *   relative         to the working directory when it comes from the command line or from a
 *                    configuration that has no folder (-c -, a pipe). From a file: an input is looked
 *                    for beside the file, then in the working directory; an output goes beside the
 *                    file, unless the working directory holds a run of that name already
 *
 * What is under the working directory is written relative to it, as a person there would.
 */
#include "config/keys.h"

#include <errno.h>
#include <glob.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/path_list.h"
#include "base/strbuf.h"

static bool is_name_char(char c, bool first) {
    return c == '_' || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
           (!first && c >= '0' && c <= '9');
}

static td_status append_home(const char *user, size_t n, td_strbuf *out, td_error *err) {
    const char *home = n ? NULL : getenv("HOME");
    char *name = td_strndup(user, n);
    if (!name)
        return td_error_nomem(err, "a name", n);
    if (!home || !*home) {
        const struct passwd *p = n ? getpwnam(name) : getpwuid(getuid());
        home = p ? p->pw_dir : NULL;
    }
    td_status rc = TD_OK;
    if (home)
        td_strbuf_puts(out, home);
    else
        rc = td_error_set(err, TD_E_CONFIG,
                          "~%s: there is no such user, or no home directory is known; write the "
                          "whole path, or put it into double quotes",
                          name);
    free(name);
    return rc;
}

/* ~ and $ of `s`, appended. */
static td_status expand(const char *s, td_strbuf *out, td_error *err) {
    td_status rc = TD_OK;
    if (*s == '~') {
        const size_t n = strcspn(s + 1, "/");
        rc = append_home(s + 1, n, out, err);
        s += 1 + n;
    }
    while (rc == TD_OK && *s) {
        const bool braces = s[0] == '$' && s[1] == '{';
        const char *name = s + 1 + braces;
        size_t n = 0;
        while (*s == '$' && is_name_char(name[n], n == 0))
            n++;
        if (n == 0 && !braces) {
            td_strbuf_append(out, s++, 1);
            continue;
        }
        if (n == 0 || (braces && name[n] != '}'))
            return td_error_set(
                err, TD_E_CONFIG,
                "'%.40s' is no ${NAME}; a path with a $ of its own goes into double "
                "quotes",
                s);
        char *copy = td_strndup(name, n);
        if (!copy)
            return td_error_nomem(err, "a name", n);
        const char *value = getenv(copy);
        if (value)
            td_strbuf_puts(out, value);
        else
            rc = td_error_set(err, TD_E_CONFIG,
                              "$%s is not set in the environment; set it, or put the path into "
                              "double quotes if the $ is part of it",
                              copy);
        free(copy);
        s = name + n + braces;
    }
    if (rc == TD_OK && (out->oom || out->len == 0))
        rc = out->oom ? td_error_nomem(err, "a path", 0)
                      : td_error_set(err, TD_E_CONFIG,
                                     "the path is empty once its variables are "
                                     "in place");
    return rc;
}

/* "a/./b//c/../d" -> "a/b/d" of an absolute path whose folder is a real one. */
static char *collapse(const char *s) {
    td_strbuf out = {0};
    while (*s) {
        s += strspn(s, "/");
        const size_t n = strcspn(s, "/");
        if (n == 2 && s[0] == '.' && s[1] == '.') {
            while (out.len && out.data[--out.len] != '/')
                ;
            if (out.data)
                out.data[out.len] = '\0';
        } else if (n && !(n == 1 && s[0] == '.')) {
            td_strbuf_append(&out, "/", 1);
            td_strbuf_append(&out, s, n);
        }
        s += n;
    }
    char *path = out.oom ? NULL : td_strdup(out.len ? out.data : "/");
    td_strbuf_free(&out);
    return path;
}

/* `path` as it is called from the working directory, where it is under it. Takes it over. */
static char *from_here(char *path) {
    char *cwd = getcwd(NULL, 0);
    const size_t n = cwd ? strlen(cwd) : 0;
    if (path && n > 1 && strncmp(path, cwd, n) == 0 && path[n] == '/' && path[n + 1]) {
        char *shorter = td_strdup(path + n + 1);
        free(path);
        path = shorter;
    }
    free(cwd);
    return path;
}

static bool matches(const char *path, bool pattern) {
    struct stat st;
    glob_t g;
    if (stat(path, &st) == 0)
        return true;
    if (!pattern || glob(path, GLOB_NOSORT, NULL, &g) != 0)
        return false;
    globfree(&g);
    return true;
}

/* Where the configuration file is, absolute; NULL: it has no folder, or there is no memory. */
static char *folder_of(const char *file) {
    struct stat st;
    if (!file || strncmp(file, "/dev/", 5) == 0 || strncmp(file, "/proc/", 6) == 0 ||
        stat(file, &st) != 0 || !S_ISREG(st.st_mode))
        return NULL;
    const char *slash = strrchr(file, '/');
    char *dir = slash ? td_strndup(file, (size_t)TD_MAX(slash - file, 1)) : td_strdup(".");
    char *real = dir ? realpath(dir, NULL) : NULL;
    free(dir);
    return real;
}

typedef enum path_use { USE_INPUT, USE_OUTPUT } path_use;

/* One path, which it takes over. `folder`: of the file that it stands in, NULL: none. */
static td_status place_path(char **path, const char *folder, path_use use, bool pattern,
                            td_error *err) {
    if ((*path)[0] == '/' || !folder)
        return TD_OK;
    char *joined = td_asprintf("%s/%s", folder, *path);
    char *beside = joined ? collapse(joined) : NULL;
    char *here = use == USE_OUTPUT ? td_asprintf("%s/manifest.json", *path) : td_strdup(*path);
    free(joined);
    if (!beside || !here) {
        free(beside);
        free(here);
        return td_error_nomem(err, "a path", strlen(folder));
    }
    const bool take_beside = use == USE_OUTPUT ? !td_path_exists(here) : matches(beside, pattern);
    free(here);
    if (take_beside) {
        free(*path);
        *path = from_here(beside);
        return *path ? TD_OK : td_error_nomem(err, "a path", 0);
    }
    free(beside);
    return TD_OK;
}

static td_status place_list(char **setting, const char *folder, td_error *err) {
    td_path_item *items = NULL;
    size_t n = 0;
    td_strbuf all = {0};
    td_status rc = td_path_list_split(*setting, &items, &n, err);
    for (size_t i = 0; rc == TD_OK && i < n; i++) {
        td_strbuf one = {0};
        if (!items[i].quoted) {
            rc = expand(items[i].text, &one, err);
            if (rc == TD_OK) {
                free(items[i].text);
                items[i].text = one.data;
                one = (td_strbuf){0};
            }
            td_strbuf_free(&one);
        }
        if (rc == TD_OK)
            rc = place_path(&items[i].text, folder, USE_INPUT, !items[i].quoted, err);
        if (rc == TD_OK && !td_path_list_join(&items[i], &all))
            rc = td_error_nomem(err, "a path", 0);
    }
    td_path_list_free(items, n);
    if (rc == TD_OK) {
        free(*setting);
        *setting = all.data;
    } else {
        td_strbuf_free(&all);
    }
    return rc;
}

static td_status place_one(char **setting, const char *folder, path_use use, td_error *err) {
    td_strbuf out = {0};
    const char *s = *setting;
    const size_t n = strlen(s);
    td_status rc = TD_OK;
    const bool quoted = n >= 2 && s[0] == '"' && s[n - 1] == '"';
    if (!quoted) {
        rc = expand(s, &out, err);
    } else {
        for (size_t i = 1; i + 1 < n; i++) {
            i += s[i] == '\\' && i + 2 < n && (s[i + 1] == '"' || s[i + 1] == '\\');
            td_strbuf_append(&out, s + i, 1);
        }
        if (out.oom || out.len == 0)
            rc = td_error_set(err, TD_E_CONFIG, "the path in quotes is empty");
    }
    if (rc != TD_OK) {
        td_strbuf_free(&out);
        return rc;
    }
    free(*setting);
    *setting = out.data;
    return place_path(setting, folder, use, false, err);
}

td_status td_config_place_paths(td_config_load_state *st, td_error *err) {
    td_status rc = TD_OK;
    char *folder = folder_of(st->cfg.file);
    for (int k = 0; rc == TD_OK && k < td_config_n_keys; k++) {
        const td_config_key *key = &td_config_keys[k];
        const char *from = st->origin[k].override ? NULL : folder;
        void *field = (char *)&st->cfg + key->offset; /* a char * where the type is a path */
        if (!st->origin[k].line && !st->origin[k].override)
            continue;
        if (key->type == TD_KEY_INPUT)
            rc = place_one(field, from, USE_INPUT, err);
        else if (key->type == TD_KEY_OUTPUT)
            rc = place_one(field, from, USE_OUTPUT, err);
        else if (key->type == TD_KEY_INPUTS)
            rc = place_list(field, from, err);
        if (rc != TD_OK)
            td_config_say_where(st, k, err);
    }
    free(folder);
    return rc;
}

/* --- the effective configuration -------------------------------------------------------------- */

td_status td_config_keep(td_config_load_state *st, int k, const char *value, td_error *err) {
    char *copy = td_strdup(value);
    if (!copy)
        return td_error_nomem(err, "a value", strlen(value));
    free(st->given[k]);
    st->given[k] = copy;
    return TD_OK;
}

/* Absolute where there is something or will be; a name of the Hugging Face cache stays a name. */
static char *absolute(const char *path, bool written) {
    struct stat st;
    char *cwd = path[0] == '/' || (!written && stat(path, &st) != 0) ? NULL : getcwd(NULL, 0);
    char *out = cwd ? td_asprintf("%s/%s", cwd, path) : td_strdup(path);
    free(cwd);
    return out;
}

/* In quotes where a character would mean something. */
static void put_path(const char *path, td_strbuf *out) {
    const size_t n = strlen(path);
    if (path[0] != '~' && path[0] != ' ' && path[n - 1] != ' ' && !strpbrk(path, "$\";#\\")) {
        td_strbuf_puts(out, path);
        return;
    }
    td_strbuf_puts(out, "\"");
    for (const char *s = path; *s; s++)
        td_strbuf_printf(out, *s == '"' || *s == '\\' ? "\\%c" : "%c", *s);
    td_strbuf_puts(out, "\"");
}

static td_status put_list(const char *setting, td_strbuf *out, td_error *err) {
    td_path_item *items = NULL;
    size_t n = 0;
    td_strbuf all = {0};
    td_status rc = td_path_list_split(setting, &items, &n, err);
    for (size_t i = 0; rc == TD_OK && i < n; i++) {
        char *whole =
            items[i].text[0] == '/' ? td_strdup(items[i].text) : absolute(items[i].text, true);
        free(items[i].text);
        items[i].text = whole;
        /* What was expanded is not to be expanded again. */
        items[i].quoted |= whole && strpbrk(whole, "$~") != NULL;
        if (!whole || !td_path_list_join(&items[i], &all))
            rc = td_error_nomem(err, "a path", 0);
    }
    if (rc == TD_OK)
        td_strbuf_puts(out, all.data);
    td_path_list_free(items, n);
    td_strbuf_free(&all);
    return rc;
}

td_status td_config_write_effective(td_config_load_state *st, td_error *err) {
    const char *section = "";
    td_strbuf out = {0};
    td_status rc = TD_OK;
    for (int k = 0; rc == TD_OK && k < td_config_n_keys; k++) {
        const td_config_key *key = &td_config_keys[k];
        const void *field =
            (const char *)&st->cfg + key->offset; /* a char * where the type is a path */
        if (!st->given[k])
            continue;
        if (strcmp(section, key->section) != 0)
            td_strbuf_printf(&out, "%s[%s]\n", *section ? "\n" : "", key->section);
        section = key->section;
        td_strbuf_printf(&out, "%s = ", key->name);
        if (key->type == TD_KEY_INPUTS) {
            rc = put_list(*(char *const *)field, &out, err);
        } else if (key->type == TD_KEY_INPUT || key->type == TD_KEY_OUTPUT) {
            const char *value = *(char *const *)field;
            char *whole = absolute(value, key->type == TD_KEY_OUTPUT);
            if (whole)
                put_path(whole, &out);
            else
                rc = td_error_nomem(err, "a path", strlen(value));
            free(whole);
        } else {
            td_strbuf_puts(&out, st->given[k]);
        }
        td_strbuf_puts(&out, "\n");
    }
    if (rc == TD_OK && out.oom)
        rc = td_error_nomem(err, "the configuration", out.len);
    if (rc == TD_OK && !out.data)
        td_strbuf_puts(&out, "\n");
    if (rc == TD_OK)
        st->cfg.effective = out.data;
    else
        td_strbuf_free(&out);
    return rc;
}
