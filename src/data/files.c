/* files.c - see files.h. */
#include "data/files.h"

#include <errno.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/path_list.h"
#include "data/foreign.h"

enum { NAMES_LISTED = 3 };

typedef struct found {
    td_dataset_file *file;
    size_t n, cap;
    td_strbuf *notes;
} found;

/* Some names for a message, and how many there are. */
typedef struct names {
    td_strbuf list;
    int64_t n;
} names;

static void list_name(names *l, const char *name) {
    if (l->n < NAMES_LISTED)
        td_strbuf_printf(&l->list, "%s%.80s", l->n ? ", " : "", name);
    else if (l->n == NAMES_LISTED)
        td_strbuf_puts(&l->list, ", ...");
    l->n++;
}

static const char *listed(const names *l) {
    return l->list.len && !l->list.oom ? l->list.data : "";
}

static td_status push(found *f, const char *path, uint64_t size_bytes, td_error *err) {
    if (!td_grow((void **)&f->file, &f->cap, f->n + 1, sizeof *f->file))
        return td_error_nomem(err, "the list of dataset files", f->n * sizeof *f->file);
    f->file[f->n] = (td_dataset_file){.path = td_strdup(path), .size_bytes = size_bytes};
    if (!f->file[f->n].path)
        return td_error_nomem(err, "a path", strlen(path));
    f->n++;
    return TD_OK;
}

/* --- a folder --------------------------------------------------------------------------------- */

typedef struct folder {
    names data, shards, tables, subfolders, others;
    bool saved;    /* by Dataset.save_to_disk */
    bool manifest; /* as tdgen writes it */
    bool model;    /* config.json of a checkpoint */
} folder;

static void folder_free(folder *d) {
    names *const all[] = {&d->data, &d->shards, &d->tables, &d->subfolders, &d->others};
    for (size_t i = 0; i < TD_ARRAY_LEN(all); i++)
        td_strbuf_free(&all[i]->list);
}

static bool is_shard(const char *name) {
    return strncmp(name, "shard-", 6) == 0 && (td_path_has_suffix(name, ".safetensors") ||
                                               td_path_has_suffix(name, ".safetensors.zst"));
}

/* May it be a file of the dataset, by its name? A compressed one whose name says nothing more may. */
static bool is_data_name(const td_config *cfg, const char *name) {
    const td_row_format *f = td_format_of_name(name);
    const char *dot = strchr(name, '.');
    if (f)
        return cfg->data.format == TD_FORMAT_AUTO || cfg->data.format == f->format;
    return dot && dot != name && (strcasecmp(dot, ".gz") == 0 || strcasecmp(dot, ".zst") == 0) &&
           cfg->data.format != TD_FORMAT_TOKENS;
}

static bool is_description(const char *name) {
    static const char *const known[] = {"dataset_info.json", "dataset_infos.json", "state.json",
                                        "dataset_dict.json"};
    for (size_t i = 0; i < TD_ARRAY_LEN(known); i++)
        if (strcmp(name, known[i]) == 0)
            return true;
    return false;
}

typedef td_status (*each_file)(void *ctx, const char *name, const char *path, const struct stat *st,
                               td_error *err);

static td_status walk(const char *dir, each_file visit, void *ctx, td_error *err) {
    td_dir *d = NULL;
    const char *name;
    td_status rc = td_dir_open(dir, TD_E_DATA, &d, err);
    size_t n = strlen(dir);
    while (rc == TD_OK && (rc = td_dir_next(d, &name, err)) == TD_OK && name) {
        struct stat st;
        if (name[0] == '.' || name[0] == '_')
            continue;
        char *path = td_asprintf("%s%s%s", dir, n && dir[n - 1] == '/' ? "" : "/", name);
        if (!path)
            rc = td_error_nomem(err, "a path", n);
        else if (stat(path, &st) != 0)
            rc = td_error_errno(err, TD_E_DATA, errno, "data.path: cannot look at %s", path);
        else
            rc = visit(ctx, name, path, &st, err);
        free(path);
    }
    td_dir_close(d);
    return rc;
}

typedef struct folder_walk {
    const td_config *cfg;
    folder *d;
    found *f; /* second walk: takes the files */
    bool shards_only;
} folder_walk;

static td_status classify(void *ctx, const char *name, const char *path, const struct stat *st,
                          td_error *err) {
    folder_walk *w = ctx;
    folder *d = w->d;
    (void)path;
    (void)err;
    if (S_ISDIR(st->st_mode)) {
        list_name(&d->subfolders, name);
        return TD_OK;
    }
    d->saved |= strcmp(name, "state.json") == 0 || strcmp(name, "dataset_dict.json") == 0;
    d->manifest |= strcmp(name, "manifest.json") == 0;
    d->model |= strcmp(name, "tokenizer.json") == 0 || strcmp(name, "tokenizer_config.json") == 0 ||
                strcmp(name, "model.safetensors.index.json") == 0;
    if (is_shard(name))
        list_name(&d->shards, name);
    if (td_foreign_is_table(name))
        list_name(&d->tables, name);
    else if (is_description(name) || td_path_has_suffix(name, ".idx"))
        return TD_OK;
    else if (is_data_name(w->cfg, name))
        list_name(&d->data, name);
    else
        list_name(&d->others, name);
    return TD_OK;
}

static td_status take_file(void *ctx, const char *name, const char *path, const struct stat *st,
                           td_error *err) {
    folder_walk *w = ctx;
    if (S_ISDIR(st->st_mode) || is_description(name) ||
        !(w->shards_only ? is_shard(name) : is_data_name(w->cfg, name)))
        return TD_OK;
    return push(w->f, path, (uint64_t)st->st_size, err);
}

/* What its names say that it is, if not a dataset of files that are read. */
static td_status refuse_folder(const td_config *cfg, const char *dir, const folder *d,
                               td_error *err) {
    td_config of = td_dataset_one(cfg, dir);
    if (d->saved && (d->tables.n || d->subfolders.n))
        return td_foreign_to_prepare(&of, "a folder that save_to_disk wrote", err);
    if (d->tables.n && !d->data.n) {
        char what[400];
        snprintf(what, sizeof what, "a folder of %lld such file%s as %s", (long long)d->tables.n,
                 d->tables.n == 1 ? "" : "s", listed(&d->tables));
        return td_foreign_to_prepare(&of, what, err);
    }
    if (d->model && !d->manifest)
        return td_error_set(err, TD_E_DATA,
                            "data.path: %s looks like the folder of a model, not of a dataset "
                            "(model.path?); to take its files nevertheless, name them: %s/*.json",
                            dir, dir);
    if (d->tables.n)
        return td_error_set(err, TD_E_DATA,
                            "data.path: %s holds %s, and also %s, which is not read directly; name "
                            "the files that are meant, such as %s/*.jsonl",
                            dir, listed(&d->data), listed(&d->tables), dir);
    if (d->data.n)
        return TD_OK;
    td_strbuf b = {0};
    if (d->subfolders.n)
        td_strbuf_printf(&b, "; subfolders are not looked into (%s), name one, or %s/*/*.jsonl",
                         listed(&d->subfolders), dir);
    else if (d->others.n)
        td_strbuf_printf(&b,
                         "; it has %s: name the files that are meant, such as %s/*, and set "
                         "data.format",
                         listed(&d->others), dir);
    else
        td_strbuf_puts(&b, "; it is empty");
    const char *rest = b.oom ? "" : b.data;
    td_status rc =
        cfg->data.format == TD_FORMAT_AUTO
            ? td_error_set(
                  err, TD_E_DATA,
                  "data.path: the folder %s has no file of a known kind (.jsonl, .ndjson, "
                  ".json, .txt, .text, .safetensors, .bin; the first five also with .gz or "
                  ".zst)%s",
                  dir, rest)
            : td_error_set(
                  err, TD_E_DATA,
                  "data.path: the folder %s has no file with an extension of data.format = "
                  "%s%s",
                  dir, td_data_format_name(cfg->data.format), rest);
    td_strbuf_free(&b);
    return rc;
}

static td_status add_folder(const td_config *cfg, const char *dir, found *f, td_error *err) {
    folder d = {0};
    folder_walk w = {.cfg = cfg, .d = &d, .f = f};
    td_status rc = walk(dir, classify, &w, err);
    w.shards_only = d.manifest && d.shards.n > 0;
    if (rc == TD_OK && !w.shards_only)
        rc = refuse_folder(cfg, dir, &d, err);
    if (rc == TD_OK)
        rc = walk(dir, take_file, &w, err);
    if (rc == TD_OK && !w.shards_only && d.others.n)
        td_strbuf_printf(f->notes, "data.path: of %s these are not taken for data: %s\n", dir,
                         listed(&d.others));
    folder_free(&d);
    return rc;
}

/* --- paths and patterns ----------------------------------------------------------------------- */

/* Is there something of this very name, or something that cannot be looked at? */
static bool is_there(const char *path, struct stat *st) {
    return stat(path, st) == 0 || (errno != ENOENT && errno != ENOTDIR && errno != ENAMETOOLONG);
}

static bool is_pattern(const char *s) {
    return strpbrk(s, "*?[") != NULL;
}

static td_status add_path(const td_config *cfg, const char *path, found *f, td_error *err) {
    struct stat st;
    if (stat(path, &st) != 0)
        return td_error_errno(err, TD_E_DATA, errno, "data.path: cannot open %s", path);
    if (S_ISDIR(st.st_mode))
        return add_folder(cfg, path, f, err);
    if (!S_ISREG(st.st_mode))
        return td_error_set(err, TD_E_DATA,
                            "data.path: %s is no regular file; a resumable run reads its dataset "
                            "more than once, so write it to a file first",
                            path);
    return push(f, path, (uint64_t)st.st_size, err);
}

static td_status nothing_matches(const char *pattern, td_error *err) {
    char *dir = td_strdup(pattern), *slash;
    if (!dir)
        return td_error_nomem(err, "a path", strlen(pattern));
    dir[strcspn(dir, "*?[")] = '\0';
    slash = strrchr(dir, '/');
    if (slash)
        slash[slash == dir] = '\0';
    const char *where = slash ? dir : ".";
    td_status rc;
    if (!td_path_exists(where))
        rc = td_error_set(err, TD_E_DATA, "data.path: nothing matches %s: there is no folder %s",
                          pattern, where);
    else
        rc =
            td_error_set(err, TD_E_DATA,
                         "data.path: nothing matches %s: %s is there, but no file in it has such a "
                         "name (* ? and [ ] match within one name%s)",
                         pattern, where,
                         strstr(pattern, "**") ? ", and ** is no more than *; write */* for the "
                                                 "files of subfolders"
                                               : "");
    free(dir);
    return rc;
}

static td_status add_pattern(const char *pattern, found *f, td_error *err) {
    glob_t g = {0};
    size_t n_folders = 0;
    int e = glob(pattern, GLOB_ERR | GLOB_NOSORT, NULL, &g);
    td_status rc = TD_OK;
    if (e == GLOB_NOMATCH || (e == GLOB_ABORTED && (errno == ENOENT || errno == ENOTDIR)))
        rc = nothing_matches(pattern, err);
    else if (e == GLOB_NOSPACE)
        rc = td_error_nomem(err, "the list of dataset files", 0);
    else if (e)
        rc = td_error_errno(err, TD_E_DATA, errno, "data.path: cannot look for %s", pattern);
    for (size_t i = 0; rc == TD_OK && i < g.gl_pathc; i++) {
        struct stat st;
        if (stat(g.gl_pathv[i], &st) != 0)
            rc = td_error_errno(err, TD_E_DATA, errno, "data.path: cannot look at %s",
                                g.gl_pathv[i]);
        else if (S_ISDIR(st.st_mode))
            n_folders++; /* a pattern names files */
        else if (!S_ISREG(st.st_mode))
            rc = td_error_set(err, TD_E_DATA, "data.path: %s, which %s matches, is no regular file",
                              g.gl_pathv[i], pattern);
        else if (!td_path_has_suffix(g.gl_pathv[i], ".idx")) /* stands beside its .bin */
            rc = push(f, g.gl_pathv[i], (uint64_t)st.st_size, err);
    }
    if (rc == TD_OK && n_folders && n_folders == g.gl_pathc)
        rc = td_error_set(err, TD_E_DATA,
                          "data.path: %s matches folders only, such as %s; name the files in them: "
                          "%s/*.jsonl",
                          pattern, g.gl_pathv[0], pattern);
    globfree(&g);
    return rc;
}

static td_status expand(const td_config *cfg, found *f, td_error *err) {
    struct stat st;
    td_path_item *items = NULL;
    size_t n = 0;
    if (is_there(cfg->data.path, &st))
        return add_path(cfg, cfg->data.path, f, err);
    td_status rc = td_path_list_split(cfg->data.path, &items, &n, err);
    if (rc != TD_OK)
        return td_error_prefix(err, "data.path");
    for (size_t i = 0; rc == TD_OK && i < n; i++)
        rc = !items[i].quoted && is_pattern(items[i].text) && !is_there(items[i].text, &st)
                 ? add_pattern(items[i].text, f, err)
                 : add_path(cfg, items[i].text, f, err);
    td_path_list_free(items, n);
    return rc;
}

bool td_dataset_is_there(const td_config *cfg) {
    struct stat st;
    td_path_item *items = NULL;
    size_t n = 0;
    if (is_there(cfg->data.path, &st) || td_path_list_split(cfg->data.path, &items, &n, NULL))
        return true; /* what is wrong with it will be told */
    bool any = false;
    for (size_t i = 0; !any && i < n; i++) {
        glob_t g = {0};
        any = is_there(items[i].text, &st) ||
              (!items[i].quoted && is_pattern(items[i].text) &&
               glob(items[i].text, GLOB_NOSORT, NULL, &g) != GLOB_NOMATCH);
        globfree(&g);
    }
    td_path_list_free(items, n);
    return any;
}

/* --- one dataset ------------------------------------------------------------------------------ */

static int by_path(const void *a, const void *b) {
    return strcmp(((const td_dataset_file *)a)->path, ((const td_dataset_file *)b)->path);
}

/* Without those of 0 bytes. */
static td_status drop_empty(found *f, td_error *err) {
    size_t kept = 0;
    names empty = {0};
    for (size_t i = 0; i < f->n; i++)
        if (f->file[i].size_bytes == 0)
            list_name(&empty, f->file[i].path);
    if ((size_t)empty.n == f->n) {
        td_status rc =
            f->n == 1 ? td_error_set(err, TD_E_DATA, "data.path: %s is empty, there are no rows",
                                     f->file[0].path)
                      : td_error_set(err, TD_E_DATA,
                                     "data.path: all %zu files are empty, there are no rows: %s",
                                     f->n, listed(&empty));
        td_strbuf_free(&empty.list);
        return rc;
    }
    for (size_t i = 0; i < f->n; i++)
        if (f->file[i].size_bytes == 0)
            free(f->file[i].path);
        else
            f->file[kept++] = f->file[i];
    if (empty.n)
        td_strbuf_printf(f->notes, "data.path: %lld of %zu files are empty: %s\n",
                         (long long)empty.n, f->n, listed(&empty));
    f->n = kept;
    td_strbuf_free(&empty.list);
    return TD_OK;
}

static td_status resolve_all(const td_config *cfg, const found *f, const td_row_format **format,
                             td_error *err) {
    const td_row_format *first = NULL, *other;
    for (size_t i = 0; i < f->n; i++) {
        td_config one = td_dataset_one(cfg, f->file[i].path);
        td_status rc = td_format_resolve(&one, &other, i ? NULL : f->notes, err);
        if (rc != TD_OK)
            return rc;
        first = first ? first : other;
        if (first != other)
            return td_error_set(
                err, TD_E_DATA,
                "data.path: %s is %s%s, but %s is %s%s; the files of a dataset have one format: name "
                "those that are meant, such as *.jsonl",
                f->file[0].path, td_data_format_name(first->format),
                first == &td_format_raw_tokens ? " (raw ids)" : "", f->file[i].path,
                td_data_format_name(other->format),
                other == &td_format_raw_tokens ? " (raw ids)" : "");
    }
    *format = first;
    return TD_OK;
}

td_status td_dataset_files_find(const td_config *cfg, td_dataset_files *out, td_error *err) {
    td_dataset_files r = {0};
    found f = {.notes = &r.notes};
    td_status rc = expand(cfg, &f, err);
    if (rc == TD_OK && f.n == 0)
        rc = td_error_set(err, TD_E_DATA, "data.path: %s names no file", cfg->data.path);
    if (rc == TD_OK)
        qsort(f.file, f.n, sizeof *f.file, by_path);
    for (size_t i = 1; rc == TD_OK && i < f.n; i++)
        if (strcmp(f.file[i - 1].path, f.file[i].path) == 0)
            rc = td_error_set(err, TD_E_DATA,
                              "data.path: %s is named twice; a file belongs to a dataset once",
                              f.file[i].path);
    if (rc == TD_OK)
        rc = drop_empty(&f, err);
    if (rc == TD_OK)
        rc = resolve_all(cfg, &f, &r.format, err);
    r.file = f.file;
    r.n = f.n;
    for (size_t i = 0; i < f.n; i++)
        r.size_bytes += f.file[i].size_bytes;
    if (rc == TD_OK)
        *out = r;
    else
        td_dataset_files_free(&r);
    return rc;
}

void td_dataset_files_free(td_dataset_files *f) {
    for (size_t i = 0; i < f->n; i++)
        free(f->file[i].path);
    free(f->file);
    td_strbuf_free(&f->notes);
    *f = (td_dataset_files){0};
}

td_config td_dataset_one(const td_config *cfg, const char *path) {
    td_config one = *cfg;
    one.data.whole = cfg->data.whole ? cfg->data.whole : cfg->data.path;
    one.data.path = (char *)path; /* const, as all of a loaded configuration */
    return one;
}

void td_dataset_files_tell(const td_dataset_files *f) {
    const char *s = f->notes.len && !f->notes.oom ? f->notes.data : "";
    for (size_t n; *s; s += n + (s[n] == '\n')) {
        n = strcspn(s, "\n");
        if (n)
            td_log_warn("%.*s", (int)n, s);
    }
}
