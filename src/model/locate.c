/* locate.c - td_model_locate: a folder, or a name in the local Hugging Face cache.
 *
 * The cache is that of huggingface_hub: ROOT/models--ORG--NAME/{blobs, refs/REVISION, snapshots/COMMIT}, a
 * snapshot's files being links into blobs. ROOT is $HF_HUB_CACHE, $HUGGINGFACE_HUB_CACHE, $HF_HOME/hub,
 * $XDG_CACHE_HOME/huggingface/hub or ~/.cache/huggingface/hub, the first that is set. Nothing is
 * downloaded here: what is not there is answered with the command that fetches it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/strbuf.h"
#include "base/text.h"
#include "model/model.h"

#define REF_MAX_BYTES 256

static bool ends_with(const char *s, const char *suffix) {
    const size_t n = strlen(s), m = strlen(suffix);
    return n >= m && strcmp(s + n - m, suffix) == 0;
}

static bool has(const char *dir, const char *name) {
    char *path = td_asprintf("%s/%s", dir, name);
    const bool there = path && td_path_exists(path);
    free(path);
    return there;
}

/* The first name in the folder that ends so, or NULL; the caller's. */
static char *first_with(const char *dir, const char *suffix) {
    td_dir *d = NULL;
    const char *name = NULL;
    char *found = NULL;
    td_status rc = td_dir_open(dir, TD_E_MODEL, &d, NULL);
    while (rc == TD_OK && !found && (rc = td_dir_next(d, &name, NULL)) == TD_OK && name)
        if (ends_with(name, suffix))
            found = td_strdup(name);
    td_dir_close(d);
    return found;
}

/* "ORG/NAME" or "ORG/NAME@REVISION", as the hub spells it; lengths of its parts. */
static bool is_hub_name(const char *s, size_t *org, size_t *name) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    *org = strspn(s, plain);
    if (*org == 0 || s[0] == '.' || s[*org] != '/')
        return false;
    const char *rest = s + *org + 1;
    *name = strspn(rest, plain);
    return *name > 0 && rest[0] != '.' &&
           (rest[*name] == '\0' || (rest[*name] == '@' && rest[*name + 1]));
}

static char *cache_root(void) {
    static const struct {
        const char *variable, *below;
    } roots[] = {{"HF_HUB_CACHE", ""},
                 {"HUGGINGFACE_HUB_CACHE", ""},
                 {"HF_HOME", "/hub"},
                 {"XDG_CACHE_HOME", "/huggingface/hub"},
                 {"HOME", "/.cache/huggingface/hub"}};
    for (size_t i = 0; i < TD_ARRAY_LEN(roots); i++) {
        const char *value = getenv(roots[i].variable);
        if (value && *value)
            return td_asprintf("%s%s", value, roots[i].below);
    }
    return td_strdup(".cache/huggingface/hub");
}

/* The commit that refs/REVISION names, or the revision itself where it is one. */
static char *commit_of(const char *repo, const char *revision) {
    char *path = td_asprintf("%s/refs/%s", repo, revision), *text = NULL;
    size_t n = 0;
    if (path && td_path_exists(path) &&
        td_file_read(path, REF_MAX_BYTES, TD_E_MODEL, &text, &n, NULL) == TD_OK)
        text[strcspn(text, " \r\n")] = '\0';
    else
        text = td_strdup(revision);
    free(path);
    /* A ref is untrusted: it names a folder here and nothing else. */
    if (text && (!*text || text[0] == '.' || strchr(text, '/'))) {
        free(text);
        text = NULL;
    }
    return text;
}

/* The snapshot of a cached model; *dir NULL where there is none. */
static td_status find_snapshot(const char *asked, size_t org, size_t name, char **dir,
                               td_error *err) {
    const char *revision = asked[org + 1 + name] == '@' ? asked + org + 1 + name + 1 : "main";
    char *root = cache_root();
    char *repo = root ? td_asprintf("%s/models--%.*s--%.*s", root, (int)org, asked, (int)name,
                                    asked + org + 1)
                      : NULL;
    char *commit = repo ? commit_of(repo, revision) : NULL;
    char *path = commit ? td_asprintf("%s/snapshots/%s", repo, commit) : NULL;
    td_status rc = TD_OK;
    *dir = NULL;
    if (!repo)
        rc = td_error_nomem(err, "a path", strlen(asked));
    else if (path && td_path_exists(path)) {
        *dir = path;
        path = NULL;
    }
    if (rc == TD_OK && !*dir)
        rc = td_error_set(err, TD_E_MODEL,
                          "%s is no folder here, and not in the Hugging Face cache (%s). Fetch it "
                          "with: hf download %.*s%s%s",
                          asked, root, (int)(org + 1 + name), asked,
                          strcmp(revision, "main") ? " --revision " : "",
                          strcmp(revision, "main") ? revision : "");
    free(path);
    free(commit);
    free(repo);
    free(root);
    return rc;
}

/* Names what a folder without config.json is. */
static td_status explain_folder(const char *dir, td_error *err) {
    td_status rc = TD_OK;
    char *gguf = first_with(dir, ".gguf"), *incomplete = first_with(dir, ".incomplete");
    char *tensors = first_with(dir, ".safetensors");
    if (has(dir, "snapshots") && has(dir, "blobs"))
        rc = td_error_set(
            err, TD_E_MODEL,
            "%s is the root of a model in the Hugging Face cache; the model itself is "
            "in a folder of %s/snapshots. Say its name instead (model.path = ORG/NAME), "
            "or that folder",
            dir, dir);
    else if (has(dir, "adapter_config.json"))
        rc = td_error_set(err, TD_E_MODEL,
                          "%s holds an adapter (LoRA or the like) and no model. Merge it into its "
                          "base model (in Python: AutoPeftModelForCausalLM.from_pretrained(DIR)"
                          ".merge_and_unload().save_pretrained(NEW))",
                          dir);
    else if (gguf)
        rc = td_error_set(err, TD_E_MODEL,
                          "%s holds a GGUF file (%s), which llama.cpp reads; tdgen takes the "
                          "original Hugging Face folder with config.json and *.safetensors",
                          dir, gguf);
    else if (incomplete)
        rc = td_error_set(err, TD_E_MODEL,
                          "%s is a download that did not end (%s): run the download again", dir,
                          incomplete);
    else if (has(dir, "params.json") && has(dir, "consolidated.00.pth"))
        rc = td_error_set(err, TD_E_MODEL,
                          "%s holds the original format of Llama or Mistral; tdgen takes the "
                          "Hugging Face one (config.json and *.safetensors)",
                          dir);
    else if (has(dir, "manifest.json") && has(dir, "shards.jsonl"))
        rc = td_error_set(err, TD_E_MODEL, "%s is an output folder of tdgen, no model", dir);
    else if (tensors)
        rc = td_error_set(err, TD_E_MODEL,
                          "%s has safetensors files, but no config.json: copy it from the model's "
                          "repository",
                          dir);
    else
        rc = td_error_set(err, TD_E_MODEL,
                          "%s is no model: it has no config.json (a folder as Hugging Face lays it "
                          "out is needed: config.json, *.safetensors, tokenizer.json)",
                          dir);
    free(gguf);
    free(incomplete);
    free(tensors);
    return rc;
}

static td_status explain_file(const char *path, td_error *err) {
    char magic[5] = "";
    int fd = -1;
    if (td_file_open(path, TD_E_MODEL, &fd, NULL, NULL) == TD_OK) {
        if (pread(fd, magic, 4, 0) != 4)
            magic[0] = '\0';
        close(fd);
    }
    if (strcmp(magic, "GGUF") == 0 || ends_with(path, ".gguf"))
        return td_error_set(err, TD_E_MODEL,
                            "%s is a GGUF file, which llama.cpp reads; tdgen takes the original "
                            "Hugging Face folder with config.json and *.safetensors",
                            path);
    if (ends_with(path, ".safetensors") || ends_with(path, ".json"))
        return td_error_set(err, TD_E_MODEL,
                            "%s is a file of a model; give the folder that it is in", path);
    return td_error_set(err, TD_E_MODEL,
                        "%s is a file; a model is a folder with config.json, *.safetensors and "
                        "tokenizer.json",
                        path);
}

td_status td_model_locate(const char *asked, char **dir, td_error *err) {
    struct stat st;
    size_t org, name;
    td_status rc = TD_OK;
    char *found = NULL;
    if (stat(asked, &st) != 0) {
        const int e = errno;
        if (is_hub_name(asked, &org, &name))
            rc = find_snapshot(asked, org, name, &found, err);
        else
            rc =
                td_error_errno(err, TD_E_MODEL, e, "the model's folder %s cannot be opened", asked);
    } else if (!S_ISDIR(st.st_mode)) {
        rc = explain_file(asked, err);
    } else if (!(found = td_strdup(asked))) {
        rc = td_error_nomem(err, "a path", strlen(asked));
    }
    if (rc == TD_OK && !has(found, "config.json"))
        rc = explain_folder(found, err);
    if (rc == TD_OK)
        *dir = found;
    else
        free(found);
    return rc;
}
