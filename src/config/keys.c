/* keys.c - the table of settings, its help text, and the names in messages. */
#include "config/keys.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/format.h"
#include "base/memory.h"

#define FIELD(f) offsetof(td_config, f)

static const td_key_choice compute_choices[] = {{"auto", TD_COMPUTE_AUTO},
                                                {"f32", TD_COMPUTE_F32},
                                                {"bf16", TD_COMPUTE_BF16},
                                                {"f16", TD_COMPUTE_F16},
                                                {NULL, 0}};
/* clang-format off */
#define FORMAT_CHOICE(name, NAME, keys) {#name, TD_FORMAT_##NAME},
static const td_key_choice format_choices[] = {
    {"auto", TD_FORMAT_AUTO},
    TD_DATA_FORMATS(FORMAT_CHOICE)
    {NULL, 0}};
#undef FORMAT_CHOICE
/* clang-format on */
static const td_key_choice text_unit_choices[] = {
    {"line", TD_TEXT_LINE}, {"file", TD_TEXT_FILE}, {NULL, 0}};
static const td_key_choice token_dtype_choices[] = {
    {"auto", TD_TOKEN_AUTO}, {"u16", TD_TOKEN_U16}, {"u32", TD_TOKEN_U32}, {NULL, 0}};
static const td_key_choice overflow_choices[] = {{"truncate", TD_OVERFLOW_TRUNCATE},
                                                 {"split", TD_OVERFLOW_SPLIT},
                                                 {"skip", TD_OVERFLOW_SKIP},
                                                 {NULL, 0}};
static const td_key_choice mode_choices[] = {
#define X(id, name) {name, TD_CAPTURE_##id},
    TD_CAPTURE_MODES(X)
#undef X
        {NULL, 0}};
static const td_key_choice logprob_choices[] = {
    {"f16", TD_F16}, {"f32", TD_F32}, {"q8", TD_LOGPROBS_Q8}, {NULL, 0}};
static const td_key_choice dense_choices[] = {
    {"bf16", TD_BF16}, {"f16", TD_F16}, {"f32", TD_F32}, {NULL, 0}};
static const td_key_choice bad_sample_choices[] = {
    {"fail", TD_BAD_FAIL}, {"skip", TD_BAD_SKIP}, {NULL, 0}};

const char *const td_config_sections[7] = {"model",  "data", "devices", "capture",
                                           "output", "run",  "simulate"};

/* clang-format off */
const td_config_key td_config_keys[] = {
    {"model", "path", TD_KEY_INPUT, FIELD(model.path), 0, 0, NULL, NULL, "required",
     "Folder of the teacher as Hugging Face lays it out: config.json, the safetensors file(s), tokenizer.json."},
    {"model", "compute", TD_KEY_CHOICE, FIELD(model.compute), 0, 0, compute_choices, "auto", NULL,
     "Arithmetic of the forward pass. auto: what the checkpoint was saved in where the devices compute it fast, else f32."},

    {"data", "path", TD_KEY_INPUTS, FIELD(data.path), 0, 0, NULL, NULL, "required",
     "The dataset: a file, a folder, a glob such as data/*.jsonl, or several of these with commas between them (in double quotes a path is taken as it stands). One dataset of all files, sorted by their paths' bytes, all of one format. A folder stands for its own files with an extension of a format."},
    {"data", "format", TD_KEY_CHOICE, FIELD(data.format), 0, 0, format_choices, "auto", NULL,
     "jsonl: one JSON object per line. text: plain text. Both also as .gz and .zst. tokens: a safetensors file with input_ids and sample_offsets, such as a shard of tdgen or what tdgen prepare makes; or raw ids (.bin). auto: by extension and first bytes."},
    {"data", "text_unit", TD_KEY_CHOICE, FIELD(data.text_unit), 0, 0, text_unit_choices, "line", NULL,
     "For format = text: a row is a line, or the whole file is one row."},
    {"data", "text_field", TD_KEY_STRING, FIELD(data.text_field), 0, 0, NULL, "text", NULL,
     "JSONL field that holds the text."},
    {"data", "prompt_field", TD_KEY_STRING, FIELD(data.prompt_field), 0, 0, NULL, NULL, "not set",
     "JSONL field of the prompt, together with completion_field, instead of text_field: only the completion's tokens are recorded."},
    {"data", "completion_field", TD_KEY_STRING, FIELD(data.completion_field), 0, 0, NULL, NULL, "not set",
     "JSONL field of the completion, together with prompt_field."},
    {"data", "separator", TD_KEY_ESCAPED, FIELD(data.separator), 0, 0, NULL, "\"\"", NULL,
     "Put behind the prompt, whose tokens are not recorded. \\n \\t \\r \\\\ \\\" are decoded; double quotes around keep blanks at the ends."},
    {"data", "append_eos", TD_KEY_BOOL, FIELD(data.append_eos), 0, 0, NULL, NULL, "true with prompt_field, else false",
     "Append the end-of-sequence token to every row that does not end with it, as a training target: without it a student never learns to stop."},
    {"data", "ids_field", TD_KEY_STRING, FIELD(data.ids_field), 0, 0, NULL, NULL, "not set",
     "JSONL field that holds token ids, for rows already tokenised; needs no tokenizer. Instead of text_field."},
    {"data", "mask_field", TD_KEY_STRING, FIELD(data.mask_field), 0, 0, NULL, NULL, "not set",
     "With ids_field: JSONL field with one 0 or 1 per id, 1 where the token is a training target."},
    {"data", "token_dtype", TD_KEY_CHOICE, FIELD(data.token_dtype), 0, 0, token_dtype_choices, "auto", NULL,
     "Integers of a raw token file (.bin, as nanoGPT writes it). auto: what the .idx file beside it says (Megatron), else u16, or u32 when the model has more than 65536 ids."},
    {"data", "document_eos", TD_KEY_INT32, FIELD(data.document_eos), -1, INT32_MAX, NULL, "-1", NULL,
     "Raw token file without .idx: a row ends behind each token of this id. -1: there is none, and each row is max_length tokens."},
    {"data", "id_field", TD_KEY_STRING, FIELD(data.id_field), 0, 0, NULL, NULL, "not set",
     "JSONL field carried through to the record, to find rows again."},
    {"data", "max_samples", TD_KEY_INT64, FIELD(data.max_samples), 0, INT64_MAX, NULL, "0", NULL,
     "Take the first N rows of the dataset; 0 takes all. May grow when a run is resumed."},
    {"data", "max_length", TD_KEY_INT32, FIELD(data.max_length), 1, 1 << 20, NULL, "2048", NULL,
     "Most tokens of a sample."},
    {"data", "overflow", TD_KEY_CHOICE, FIELD(data.overflow), 0, 0, overflow_choices, "truncate", NULL,
     "What becomes of a row longer than max_length: cut, made into several samples, or left out."},
    {"data", "add_special_tokens", TD_KEY_BOOL, FIELD(data.add_special_tokens), 0, 0, NULL, "true", NULL,
     "Add what the tokenizer adds by itself, such as a beginning-of-sequence token."},

    {"devices", "gpus", TD_KEY_GPUS, 0, 0, 0, NULL, "auto", NULL,
     "auto: every GPU, or the CPU on a machine without one. A list of GPUs, each by its number in nvidia-smi (PCI order), its UUID or the beginning of it (GPU-8f2e), or its PCI id (65:00.0); MIG-... for a slice of a GPU. cpu, or cpu*N for N devices that split the cores. Any name that tdgen devices prints: cuda:0, cpu:0."},
    {"devices", "gpus_per_model", TD_KEY_INT32_AUTO, FIELD(devices.gpus_per_model), 1, 1024, NULL, "auto", NULL,
     "Devices that hold one copy of the model. auto: the groups with the highest predicted rate together; where speeds are unknown the fewest devices of each type on which it fits."},
    {"devices", "groups", TD_KEY_GROUPS, 0, 0, 0, NULL, NULL, "not set",
     "Explicit groups, one copy of the model each, of any width; wins over gpus_per_model. Devices are named as in gpus; with cpu*N the numbers are 0 to N-1. A device may be in several groups."},
    {"devices", "cpu_speeds", TD_KEY_CPU_SPEEDS, 0, 0, 0, NULL, NULL, "not set",
     "With cpu*N, for experiments with unlike devices: the share of its own speed at which each of the N works, 1 being all of it. It rests after each operation, which changes no result."},
    {"devices", "cpu_threads", TD_KEY_CPU_THREADS, 0, 0, 0, NULL, NULL, "not set",
     "With cpu*N: the threads of each of the N devices, instead of an even share of the cores. Changes no result."},
    {"devices", "inventory", TD_KEY_INPUT, FIELD(devices.inventory), 0, 0, NULL, NULL, "not set",
     "With --dry-run and --simulate: plan for the machine that this file describes (conf/inventory), not this one."},

    {"capture", "mode", TD_KEY_CHOICE, FIELD(capture.mode), 0, 0, mode_choices, "topk", NULL,
     "What is recorded at each position. topk: the top_k most probable tokens. topp: as many of them as it takes to cover top_p. sample: n_draws tokens drawn from the teacher, which is unbiased where a cut is not. topk+sample: both. All these with the statistics of the whole distribution. full: every logit. hidden: the state before lm_head, from which tdgen-logits makes the logits."},
    {"capture", "top_k", TD_KEY_INT32, FIELD(capture.top_k), 1, TD_MAX_TOP_K, NULL, "64", NULL,
     "topk, topk+sample: tokens stored per position. topp: the most that are stored."},
    {"capture", "top_p", TD_KEY_DOUBLE, FIELD(capture.top_p), 1, 1000, NULL, "0.98", NULL,
     "topp: the fewest most probable tokens are stored that together have this probability, at most top_k of them."},
    {"capture", "min_k", TD_KEY_INT32, FIELD(capture.min_k), 1, TD_MAX_TOP_K, NULL, "1", NULL,
     "topp: tokens stored even where fewer cover top_p."},
    {"capture", "n_draws", TD_KEY_INT32, FIELD(capture.n_draws), 1, TD_MAX_DRAWS, NULL, "50", NULL,
     "sample, topk+sample: draws per position, with replacement; stored as the different tokens and how often each came."},
    {"capture", "proposal_power", TD_KEY_DOUBLE, FIELD(capture.proposal_power), 10, 100000, NULL, "1", NULL,
     "sample, topk+sample: t of the distribution that is drawn from, q ~ p^t. 1 is the teacher itself; below 1 brings more of the tail, and the weights p/q that make up for it are recorded."},
    {"capture", "logprob_dtype", TD_KEY_LOGPROBS, 0, 0, 0, logprob_choices, "f16", NULL,
     "How log-probabilities are stored. q8: in 8 bits between the largest and the smallest of the position, with a stated bound of the error."},
    {"capture", "dense_dtype", TD_KEY_CHOICE, FIELD(capture.dense_dtype), 0, 0, dense_choices, "bf16", NULL,
     "full, hidden: how logits and states are stored."},
    {"capture", "always_ids", TD_KEY_ALWAYS_IDS, 0, 0, 0, NULL, "none", NULL,
     "Token ids whose log-probability is recorded at every position, such as the end-of-sequence token; in the order given."},
    {"capture", "pack_ids", TD_KEY_BOOL, FIELD(capture.pack_ids), 0, 0, NULL, "false", NULL,
     "Store token ids in as few bits as the vocabulary needs, instead of 32."},
    {"capture", "temperatures", TD_KEY_TEMPERATURES, 0, 0, 0, NULL, NULL, "none",
     "Temperatures for which logsumexp(logits/T) is recorded too, which makes re-tempering exact."},
    {"capture", "mask_padded_vocab", TD_KEY_BOOL, FIELD(capture.mask_padded_vocab), 0, 0, NULL, "false", NULL,
     "Where the model's vocabulary is padded beyond the tokenizer's: true gives the padding no probability; false is Hugging Face's own softmax."},

    {"output", "dir", TD_KEY_OUTPUT, FIELD(output.dir), 0, 0, NULL, NULL, "required",
     "Folder of the record, created when absent. The same command again resumes what is there."},
    {"output", "shard_samples", TD_KEY_INT64, FIELD(output.shard_samples), 1, 1 << 24, NULL, "1024", NULL,
     "Dataset rows per shard file, the unit of commit and resume."},
    {"output", "zstd", TD_KEY_BOOL, FIELD(output.zstd), 0, 0, NULL, "false", NULL,
     "Compress each shard file with zstd. Such shards cannot be memory-mapped; readers unpack them."},

    {"run", "batch_tokens", TD_KEY_INT32, FIELD(run.batch_tokens), 1, 1 << 20, NULL, "8192", NULL,
     "Most tokens of a micro-batch (a longer sample is one of its own). Changes memory and speed, never a result."},
    {"run", "seed", TD_KEY_UINT64, FIELD(run.seed), 0, 0, NULL, "0", NULL,
     "Seed of the draws of [capture] mode = sample and topk+sample; the other modes draw nothing."},
    {"run", "on_bad_sample", TD_KEY_CHOICE, FIELD(run.on_bad_sample), 0, 0, bad_sample_choices, "fail", NULL,
     "A row that cannot be read or computed stops the run, or is reported and left out (exit code 7)."},
    {"run", "worker_id", TD_KEY_INT32, FIELD(run.worker_id), 0, 65535, NULL, "0", NULL,
     "Which of total_workers processes this is; each takes whole shards of its own."},
    {"run", "total_workers", TD_KEY_INT32, FIELD(run.total_workers), 1, 65536, NULL, "1", NULL,
     "Processes, on any machines, that share the dataset. One process uses all its GPUs by itself."},
    {"run", "progress_s", TD_KEY_INT32, FIELD(run.progress_s), 0, 86400, NULL, "30", NULL,
     "Seconds between lines of progress in tdgen.log, and on a stderr that is no terminal (a batch job's log). 0: none."},
    {"run", "metrics", TD_KEY_OUTPUT, FIELD(run.metrics), 0, 0, NULL, NULL, "not set",
     "File for Prometheus (node_exporter's textfile collector takes *.prom): progress, speed and failures, written anew every 10 seconds."},

    {"simulate", "lengths", TD_KEY_LENGTHS, 0, 0, 0, NULL, NULL, "those of the dataset",
     "With --simulate: the lengths in tokens of a job that is only stated, so that neither dataset nor tokenizer is needed. lognormal:MEDIAN:SIGMA:MAX, or fixed:N."},
    {"simulate", "n_samples", TD_KEY_INT64, FIELD(simulate.n_samples), 1, 1000000000, NULL, NULL, "not set",
     "With lengths: the samples of that job."},
    {"simulate", "noise", TD_KEY_DOUBLE, FIELD(simulate.noise), 0, 900, NULL, "0.05", NULL,
     "With --simulate: a stage's time for a micro-batch is the predicted one times 1 + noise * u, u uniform in [-1, 1)."},
    {"simulate", "failures", TD_KEY_INT32, FIELD(simulate.failures), 0, 4095, NULL, "0", NULL,
     "With --simulate: so many groups fail at random times; the others take over their work."},
    {"simulate", "seed", TD_KEY_UINT64, FIELD(simulate.seed), 0, 0, NULL, "0", NULL,
     "With --simulate: seed of lengths, noise and failures. The same seed gives the same output."},
};
const int td_config_n_keys = (int)TD_ARRAY_LEN(td_config_keys);
_Static_assert(TD_ARRAY_LEN(td_config_keys) <= TD_CONFIG_MAX_KEYS, "raise TD_CONFIG_MAX_KEYS");
/* clang-format on */

int td_config_key_index(const char *section, const char *name) {
    for (int i = 0; i < td_config_n_keys; i++)
        if ((!section || !strcmp(td_config_keys[i].section, section)) &&
            !strcmp(td_config_keys[i].name, name))
            return i;
    return -1;
}

const char *td_config_key_expected(const td_config_key *key, char *buf, size_t buf_size) {
    switch (key->type) {
    case TD_KEY_INPUT:
    case TD_KEY_INPUTS:
    case TD_KEY_OUTPUT:
        snprintf(buf, buf_size, "a path that is not empty");
        break;
    case TD_KEY_STRING:
        snprintf(buf, buf_size, "a text that is not empty");
        break;
    case TD_KEY_ESCAPED:
        snprintf(buf, buf_size, "a text, optionally in double quotes, with \\n \\t \\r \\\\ \\\"");
        break;
    case TD_KEY_INT32:
    case TD_KEY_INT64:
        if (key->max == INT64_MAX)
            snprintf(buf, buf_size, "an integer of at least %" PRId64, key->min);
        else
            snprintf(buf, buf_size, "an integer from %" PRId64 " to %" PRId64, key->min, key->max);
        break;
    case TD_KEY_INT32_AUTO:
        snprintf(buf, buf_size, "auto, or an integer from %" PRId64 " to %" PRId64, key->min,
                 key->max);
        break;
    case TD_KEY_UINT64:
        snprintf(buf, buf_size, "an integer from 0 to %" PRIu64, UINT64_MAX);
        break;
    case TD_KEY_BOOL:
        snprintf(buf, buf_size, "true or false (also yes, no, 1, 0)");
        break;
    case TD_KEY_DOUBLE:
        snprintf(buf, buf_size, "a number from %g to %g", (double)key->min / 1000,
                 (double)key->max / 1000);
        break;
    case TD_KEY_ALWAYS_IDS:
        snprintf(buf, buf_size, "none, or up to %d different token ids, separated by commas",
                 TD_MAX_ALWAYS_IDS);
        break;
    case TD_KEY_LOGPROBS:
    case TD_KEY_CHOICE: {
        size_t at = 0;
        buf[0] = '\0';
        for (const td_key_choice *c = key->choices; c->name && at < buf_size; c++) {
            const char *sep = c == key->choices ? "" : c[1].name ? ", " : " or ";
            at += (size_t)snprintf(buf + at, buf_size - at, "%s%s", sep, c->name);
        }
        break;
    }
    case TD_KEY_GPUS:
        snprintf(
            buf, buf_size,
            "auto, cpu, cpu*N (N from 1 to %d), or GPUs by number, UUID or PCI id such as 0,1,2",
            TD_MAX_CPU_DEVICES);
        break;
    case TD_KEY_GROUPS:
        snprintf(buf, buf_size,
                 "groups of devices such as 0 | 1 | 2,3 (commas inside a group, | between)");
        break;
    case TD_KEY_LENGTHS:
        snprintf(buf, buf_size,
                 "lognormal:MEDIAN:SIGMA:MAX such as lognormal:512:1:8192, or fixed:N (tokens)");
        break;
    case TD_KEY_CPU_SPEEDS:
        snprintf(buf, buf_size, "a number from 0.001 to 1 for each CPU device, such as 1,0.5,0.25");
        break;
    case TD_KEY_CPU_THREADS:
        snprintf(buf, buf_size, "a number of threads from 1 to %d for each CPU device, such as 2,1",
                 TD_MAX_CPU_THREADS);
        break;
    case TD_KEY_TEMPERATURES:
        snprintf(buf, buf_size, "up to %d different numbers from 1e-6 to 1e6, separated by commas",
                 TD_MAX_TEMPERATURES);
        break;
    }
    return buf;
}

/* Breaks `text` at blanks into lines of at most `width` characters behind `indent` spaces. */
static void print_wrapped(FILE *out, const char *text, int indent, int width) {
    int column = 0;
    while (*text) {
        int word = (int)strcspn(text, " ");
        if (column > 0 && column + 1 + word > width) {
            fputc('\n', out);
            column = 0;
        }
        if (column == 0)
            column = fprintf(out, "%*s%.*s", indent, "", word, text) - indent;
        else
            column += fprintf(out, " %.*s", word, text);
        text += word + strspn(text + word, " ");
    }
    fputc('\n', out);
}

void td_config_print_keys(FILE *out) {
    const char *section = NULL;
    for (int i = 0; i < td_config_n_keys; i++) {
        const td_config_key *key = &td_config_keys[i];
        if (!section || strcmp(section, key->section)) {
            section = key->section;
            fprintf(out, "%s[%s]\n", i ? "\n" : "", section);
        }
        char expected[200];
        td_config_key_expected(key, expected, sizeof expected);
        fprintf(out, "  %s.%s (default: %s)\n", section, key->name,
                key->def ? key->def : key->def_text);
        print_wrapped(out, key->doc, 6, 88);
        if (key->type > TD_KEY_OUTPUT)
            fprintf(out, "      Value: %s.\n", expected);
    }
}

td_status td_config_unknown_section(const char *section, td_error *err) {
    const char *near =
        td_nearest_name(section, td_config_sections, TD_ARRAY_LEN(td_config_sections));
    char hint[64] = "";
    if (near)
        snprintf(hint, sizeof hint, "; did you mean [%s]?", near);
    return td_error_set(err, TD_E_CONFIG,
                        "there is no section [%.80s]%s (sections: model, data, devices, capture, "
                        "output, run, simulate)",
                        section, hint);
}

td_status td_config_unknown_key(const char *section, const char *name, td_error *err) {
    int other = td_config_key_index(NULL, name);
    if (other >= 0)
        return td_error_set(err, TD_E_CONFIG,
                            "there is no key '%.80s' in [%s]; it belongs to [%s]: %s.%s", name,
                            section, td_config_keys[other].section, td_config_keys[other].section,
                            td_config_keys[other].name);
    const char *names[TD_CONFIG_MAX_KEYS];
    size_t n = 0;
    for (int i = 0; i < td_config_n_keys; i++)
        if (!strcmp(td_config_keys[i].section, section))
            names[n++] = td_config_keys[i].name;
    const char *near = td_nearest_name(name, names, n);
    if (near)
        return td_error_set(err, TD_E_CONFIG, "there is no key '%.80s' in [%s]; did you mean '%s'?",
                            name, section, near);
    char list[400];
    size_t at = 0;
    list[0] = '\0';
    for (size_t i = 0; i < n && at < sizeof list; i++)
        at += (size_t)snprintf(list + at, sizeof list - at, "%s%s", i ? ", " : "", names[i]);
    return td_error_set(err, TD_E_CONFIG, "there is no key '%.80s' in [%s] (keys: %s)", name,
                        section, list);
}
