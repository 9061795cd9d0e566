/* fixture.c - the folder, the files and the byte tokenizer: see fixture.h. */
#include "fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "test/common.h"
#include "base/strbuf.h"

static void put_code_point(td_strbuf *b, unsigned cp) {
    char u[2] = {(char)(0xc0 | cp >> 6), (char)(0x80 | (cp & 63))};
    char c = (char)cp;
    if (cp == '"' || cp == '\\')
        td_strbuf_printf(b, "\\%c", (int)cp);
    else if (cp < 0x80)
        td_strbuf_append(b, &c, 1);
    else
        td_strbuf_append(b, u, 2);
}

/* GPT-2's byte alphabet with the byte's own value as id and no merges. */
static void write_tokenizer(const char *dir) {
    td_strbuf b = {0};
    td_strbuf_puts(&b,
                   "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[");
    static const char *const special[] = {"<s>", "</s>"};
    for (int i = 0; i < 2; i++)
        td_strbuf_printf(&b,
                         "%s{\"id\":%d,\"content\":\"%s\",\"single_word\":false,\"lstrip\":false,"
                         "\"rstrip\":false,\"normalized\":false,\"special\":true}",
                         i ? "," : "", BYTE_BOS + i, special[i]);
    td_strbuf_puts(
        &b,
        "],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":"
        "false,"
        "\"trim_offsets\":true,\"use_regex\":true},\"post_processor\":{\"type\":"
        "\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},"
        "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[{\"Sequence\":{\"id\":\"A\","
        "\"type_id\":0}},{\"Sequence\":{\"id\":\"B\",\"type_id\":1}}],\"special_tokens\":{\"<s>\":"
        "{\"id\":\"<s>\",\"ids\":[256],\"tokens\":[\"<s>\"]}}},\"decoder\":{\"type\":\"ByteLevel\","
        "\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},\"model\":{\"type\":"
        "\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,"
        "\"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"vocab\":{");
    unsigned extra = 256;
    for (unsigned c = 0; c < 256; c++) {
        bool printable = (c >= '!' && c <= '~') || (c >= 0xa1 && c <= 0xac) || c >= 0xae;
        td_strbuf_puts(&b, c ? ",\"" : "\"");
        put_code_point(&b, printable ? c : extra++);
        td_strbuf_printf(&b, "\":%u", c);
    }
    td_strbuf_puts(&b, "},\"merges\":[]}}");
    MUST(!b.oom);
    test_write_file(dir, "tokenizer.json", b.data, b.len);
    td_strbuf_free(&b);
    static const char config[] = "{\"bos_token\":\"<s>\",\"eos_token\":\"</s>\"}";
    test_write_file(dir, "tokenizer_config.json", config, sizeof config - 1);
}

void fixture_open(data_fixture *f) {
    memset(f, 0, sizeof *f);
    f->dir = test_temp_dir();
    write_tokenizer(f->dir);
    td_error err;
    if (td_tokenizer_load(f->dir, &f->tok, &err) != TD_OK) {
        fprintf(stderr, "fixture: %s\n", err.text);
        abort();
    }
    f->lim = (td_source_limits){.n_vocab = BYTE_VOCAB, .eos_id = BYTE_EOS, .batch_tokens = 8192};
    f->cfg.data.path = f->path;
    f->cfg.data.text_field = "text";
    f->cfg.data.document_eos = -1;
    f->cfg.data.max_length = 2048;
    f->cfg.output.shard_samples = 1024;
    f->cfg.run.total_workers = 1;
}

void fixture_close(data_fixture *f) {
    td_tokenizer_free(f->tok);
    test_remove_tree(f->dir);
}

void fixture_file(data_fixture *f, const char *name, const void *data, size_t n) {
    snprintf(f->path, sizeof f->path, "%s/%s", f->dir, name);
    test_write_file(f->dir, name, data, n);
}

void fixture_text(data_fixture *f, const char *name, const char *text) {
    fixture_file(f, name, text, strlen(text));
}

void fixture_tensors(data_fixture *f, const char *name, const fixture_tensor *t, size_t n) {
    td_strbuf head = {0}, all = {0};
    size_t pos = 0;
    td_strbuf_puts(&head, "{");
    for (size_t i = 0; i < n; i++) {
        size_t size = t[i].n * t[i].elem_bytes;
        td_strbuf_printf(&head,
                         "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%zu],\"data_offsets\":[%zu,%zu]}",
                         i ? "," : "", t[i].name, t[i].dtype, t[i].n, pos, pos + size);
        pos += size;
    }
    td_strbuf_puts(&head, "}");
    while (head.len % 8)
        td_strbuf_puts(&head, " ");
    uint64_t head_bytes = head.len;
    td_strbuf_append(&all, &head_bytes, 8);
    td_strbuf_append(&all, head.data, head.len);
    for (size_t i = 0; i < n; i++)
        td_strbuf_append(&all, t[i].data, t[i].n * t[i].elem_bytes);
    MUST(!head.oom && !all.oom);
    fixture_file(f, name, all.data, all.len);
    td_strbuf_free(&head);
    td_strbuf_free(&all);
}
