"""What tdgen-export is made of: a run's record as the files that trainers read.

Every export streams sample by sample (memory is bounded by one sample and some 64 MiB of rows on their
way to a file), writes beside its target under a temporary name and renames at the end, and refuses a
target that exists. What a format cannot say is refused by name, never approximated in silence.

The layouts were read from the readers' own source; LAYOUTS names file and commit of each.
"""

import json
import os

import numpy as np

from .extent import ranges
from .files import (BATCH_BYTES, ArrowFolder, Batches, Column, ExportError, ParquetFolder, Table, Target, digest,
                    progress)
from .llamacpp import Clipped, quantise_llamacpp
from .student import check_tokenizer, cut_record, student_of, tokens_of
from .targets import log_softmax, renormalised, to_logprobs
from .trust import RecordError, parse_json, read_bounded

LAYOUTS = {
    "axolotl": "axolotl-ai-cloud/axolotl 067b021c8b87 (0.18.0): src/axolotl/integrations/kd/collator.py, "
               "kernels/liger.py, trainer.py, collator_online_teacher.py; utils/data/wrappers.py "
               "(_is_dataset_already_tokenized). Before 0.10.0: v0.9.2 integrations/kd/trainer.py",
    "distillkit": "arcee-ai/DistillKit a61c2e7d25c2 (1.0.0): distillkit/signals.py, trainer.py, main.py "
                  "(collate_packed_batch), pack_logits.py, compression/compressor.py, compression/bitpack.py, "
                  "compression/monotonic_logprobs.py",
    "nemo": "NVIDIA/NeMo-Aligner af2b3bd96ad7: examples/nlp/synthetic_data_gen/compute_topk_logits.py, "
            "nemo_aligner/data/nlp/datasets.py (KnowledgeDistillationDataset), nemo_aligner/utils/distributed.py",
    "llamacpp": "ggml-org/llama.cpp 050fc7f32de1: tools/perplexity/perplexity.cpp (perplexity, log_softmax, "
                "process_logits, kl_divergence)",
    "hdf5": "the Python generator that tdgen replaces: TeacherLogitsGenerator and CachedLogitsDataset "
            "(teacher_logits.h5, metadata.json)",
}

NO_LOGPROB = -1e9  # in places that a mask leaves out: Axolotl's own filling, finite so that 0 * x stays 0
NO_HEAD = "states become probabilities through the teacher's lm_head: --model TEACHER_DIR"


def provenance(run, layout, options):
    """What the files carry along: whose probabilities these are, and how they were written."""
    identity = run.manifest["identity"]
    return {
        "made_by": f"tdgen-export {layout}",
        "tdgen": run.manifest.get("tdgen"),
        "run_fingerprint": run.fingerprint,
        "shards": len(run.shards),
        "data_hash": digest([e.get("data_hash") for e in run.shards]),
        "capture": run.capture,
        "vocab_size": run.vocab_size,
        "teacher": {k[6:]: v for k, v in identity.items() if k.startswith("model.")},
        "tokenizer": {k[10:]: v for k, v in identity.items() if k.startswith("tokenizer.")},
        "data": {k[5:]: v for k, v in identity.items() if k.startswith("data.")},
        "options": {k: v for k, v in options.items() if k != "student"},
        "student_vocab": options["student"].n if options.get("student") else None,
        "layout": LAYOUTS.get(layout),
    }


# ---- what is exported ----


class Source:
    """The samples of a run that an export takes, with progress and counts of what it leaves out."""

    def __init__(self, run, options, quiet=False):
        self.run, self.options, self.quiet = run, options, quiet
        self.n_samples = self.n_rows = self.n_skipped = self.n_empty = 0
        total = len(run)
        if options.get("samples"):
            total = min(total, options["samples"])
        self.total = total

    def records(self, empty=False, dense=True):
        """(number, record) of every usable sample; those without a row only with empty=True."""
        bar = progress(self.total, self.quiet)
        try:
            for i in range(self.total):
                record = self.run.sample(i, dense=dense)
                if record["skipped"]:
                    self.n_skipped += 1
                elif len(record["row_position"]) == 0 and not empty:
                    self.n_empty += 1
                else:
                    self.n_samples += 1
                    self.n_rows += len(record["row_position"])
                    yield i, record
                bar.update()
        finally:
            bar.close()

    def summary(self, how=""):
        left_out = []
        if self.n_skipped:
            left_out.append(f"{self.n_skipped} that the run could not compute")
        if self.n_empty:
            left_out.append(f"{self.n_empty} without a position to predict")
        text = f"{self.n_samples:,} samples, {self.n_rows:,} positions"
        text += f"; left out: {', '.join(left_out)}" if left_out else ""
        student = self.options.get("student")
        return text + how + (student.summary(self.run.vocab_size) if student else "")


def check_whole(run, partial):
    """A folder that does not hold all of its run is not exported by accident."""
    numbers = [e["shard"] for e in run.shards]
    if not numbers:
        raise ExportError(f"{run.path} has no finished shard")
    if partial:
        return
    if run.extent is not None:  # its reader has refused what is not finished
        if run.extent.total_workers > 1:
            raise ExportError(f"{run.path} holds what one of {run.extent.total_workers} workers did (tdgen merge puts them "
                              "together); --partial exports it alone")
        return
    if numbers != list(range(len(numbers))):
        raise ExportError(f"{run.path} holds shards {ranges(numbers)}: the others are in other workers' folders "
                          "(tdgen merge) or not done; --partial exports what is here")
    name = os.path.join(run.path, "status.json")
    if not os.path.lexists(name):
        return  # a folder that was copied or merged, without it
    status = parse_json(read_bounded(name, 1 << 24, run.path), name)
    state, workers = status.get("state"), status.get("total_workers", 1)
    if not isinstance(workers, int) or not isinstance(state, (str, type(None))):
        raise RecordError(f"{name}: state or total_workers is of another type")
    if workers > 1:
        raise ExportError(f"{run.path} holds what one of {workers} workers did (tdgen merge puts them together); "
                          "--partial exports it alone")
    if len(numbers) != status.get("shards_in_data", len(numbers)):
        raise ExportError(f"{run.path} holds {len(numbers)} shards, the data has {status['shards_in_data']}; --partial "
                          "exports what is there")
    if state is not None and state != "done":
        raise ExportError(f"{run.path}: the run's state is {state!r}, not done; --partial exports what is there")


def n_ids(run, options):
    """How many ids an export may name: the teacher's, or a student's that has fewer."""
    student = options.get("student")
    return min(run.vocab_size, student.n) if student else run.vocab_size


def needs_mode(run, layout, modes, why):
    if run.mode == "hidden" and "full" in modes:
        why = NO_HEAD
    if run.mode not in modes:
        raise ExportError(f"{layout} takes capture modes {', '.join(modes)}, this run is {run.mode}: {why}")


def top(ids, logp, k):
    """The k most probable of each row, most probable first, ties by the lower id."""
    if ids.shape[1] <= k and ids.strides[0] != 0:
        return ids, logp
    if ids.strides[0] != 0:  # already in order
        return ids[:, :k], logp[:, :k]
    out = np.empty((len(logp), min(k, logp.shape[1])), np.int32)
    for r, row in enumerate(logp):
        # argpartition breaks ties at the border as it likes: take all that reach it, then sort.
        least = np.partition(row, len(row) - out.shape[1])[len(row) - out.shape[1]]
        near = np.flatnonzero(row >= least)
        out[r] = near[np.lexsort((near, -row[near]))][: out.shape[1]]
    values = np.take_along_axis(logp, out, axis=1)
    return np.where(np.isneginf(values), -1, out).astype(np.int32), values


def candidates(run, record, options):
    """ids int32 [R, K] and natural log-probabilities float64 [R, K] at the wished temperature, without ids that the
    student does not have."""
    k, tail, student = options.get("top_k"), options.get("tail", "ignore"), options.get("student")
    if run.mode == "full" and not k:
        raise ExportError("the run holds all logits: say how many to take with --top-k K")
    if k and (run.mode == "sample" or (run.mode == "topk+sample" and options.get("source") != "topk")):
        raise ExportError("--top-k would cut draws off and bias the estimate")
    ids, logp, _ = to_logprobs(record, options.get("temperature", 1.0), tail, options.get("source"))
    if k and not (student and student.cut):
        ids, logp = top(ids, logp, k)
    if student:
        ids, logp = student.rows(record, ids, logp, run.vocab_size)
    if k:
        ids, logp = top(ids, logp, k)
    return ids, renormalised(logp) if tail == "renormalise" and (k or student) else logp


def set_size(run, options):
    """The most entries that candidates() gives a row."""
    draws = int(run.capture.get("n_draws", 0))
    source = options.get("source") or ("combined" if run.mode == "topk+sample" else run.mode)
    size = {"topk": run.top_k, "topp": run.top_k, "sample": draws, "combined": run.top_k + draws,
            "full": run.vocab_size}[source]
    return min(size, options.get("top_k") or size, n_ids(run, options))


def fill_free(ids, logp, vocab_size, width, value):
    """Rows of exactly `width` entries: free places get the lowest ids that the row does not use, and `value`."""
    n, k = ids.shape
    out_ids = np.full((n, width), -1, np.int32)
    out = np.full((n, width), value, np.float64)
    k = min(k, width)  # places beyond are free ones: no more ids are left than there are
    ids, logp = ids[:, :k], logp[:, :k]
    out_ids[:, :k], out[:, :k] = ids, np.where(ids >= 0, logp, value)
    for r in np.flatnonzero((out_ids < 0).any(axis=1)):
        free = np.flatnonzero(out_ids[r] < 0)
        unused = np.setdiff1d(np.arange(min(vocab_size, 2 * width), dtype=np.int32), out_ids[r])
        out_ids[r, free] = unused[: len(free)]
    return out_ids, out


def next_token_is_target(record):
    """bool [L]: at position t, whether a row says what follows it."""
    has = np.zeros(len(record["input_ids"]), bool)
    has[record["row_position"]] = True
    return has


# ---- Hugging Face ----


def export_hf(run, out, options, quiet):
    """The record as it is, a row a sample: Arrow (save_to_disk) or Parquet."""
    kind = ParquetFolder if options.get("format", "arrow") == "parquet" else ArrowFolder
    with Target(out, folder=True) as target:
        source = _write_hf(run, lambda origin: kind(target.path, origin), options, quiet)
        target.commit()
    how = "datasets.load_dataset" if kind is ParquetFolder else "datasets.load_from_disk"
    return source.summary(f"; {how}({out!r})")


def to_hf(run, folder=None):
    """See Run.to_hf."""
    import datasets

    if folder is not None:
        export_hf(run, os.fspath(folder), {}, quiet=True)
        return datasets.load_from_disk(os.fspath(folder))
    sinks = []

    def sink(origin):
        sinks.append(Batches(origin))
        return sinks[0]

    _write_hf(run, sink, {}, quiet=True)
    return datasets.Dataset(sinks[0].table(), fingerprint=digest(sinks[0].origin))


def _write_hf(run, sink, options, quiet):
    """All rows into sink(origin), a place for a Table's batches; returns the Source."""
    if len(run) == 0:
        raise ExportError(f"{run.path} holds no sample: every row of its dataset was left out")
    raw = options.get("f16_bits", False)
    lp = np.uint16 if raw else np.float32
    columns = [Column("index", "value", np.int64), Column("start", "value", np.int64)]
    first = run.sample(0)
    if "id" in first:
        columns.append(Column("id", "value", str))
    columns += [Column("input_ids", "list", np.int32), Column("loss_mask", "list", np.uint8),
                Column("row_position", "list", np.int32)]
    for name, dtype in (("logsumexp", np.float32), ("tail_mass", np.float32), ("target_logprob", np.float32),
                        ("target_rank", np.int32), ("entropy", np.float32), ("proposal_logsumexp", np.float32)):
        if name in first:
            columns.append(Column(name, "list", dtype))
    for name in ("logsumexp_t", "always_logprobs"):
        if name in first:
            columns.append(Column(name, "lists", np.float32))
    lists = []  # (ids, log-probabilities, counts, offsets)
    if run.mode in ("topk", "topk+sample"):
        lists.append(("topk_ids", "topk_logprobs", None, None))
    if run.mode == "topp":
        lists.append(("topp_ids", "topp_logprobs", None, "topp_offsets"))
    if run.mode in ("sample", "topk+sample"):
        lists.append(("draw_ids", "draw_logprobs", "draw_counts", "draw_offsets"))
    for ids, logprobs, counts, _ in lists:
        columns += [Column(ids, "lists", np.int32), Column(logprobs, "lists", lp)]
        if counts:
            columns.append(Column(counts, "lists", np.int32))
    dense = {"full": "logits", "hidden": "hidden"}.get(run.mode)
    if dense:
        columns.append(Column(dense, "lists", lp))

    def floats(x, record):
        if not raw:
            return x
        with np.errstate(over="ignore"):
            half = x.astype(np.float16)
        if np.isinf(half[np.isfinite(x)]).any():
            raise ExportError(f"dataset row {record['index']}: a value is beyond float16: leave out --f16-bits")
        return half.view(np.uint16)

    source, student = Source(run, options, quiet), options.get("student")
    if student and len(run.always_ids) and int(run.always_ids.max()) >= student.n:
        raise ExportError(f"capture.always_ids has {int(run.always_ids.max())}, the student has {student.n} ids "
                          f"({student.where}; the teacher {run.vocab_size})")
    origin = provenance(run, "hf", options)
    if raw:
        origin["f16_bits"] = "uint16 columns are the bits of IEEE half floats: numpy view(float16)"
    table = Table(columns, sink(origin))
    for _, record in source.records(empty=True):
        if student:
            record = cut_record(run, record, student)
        row = {c.name: record[c.name] for c in columns if c.name in record}
        for ids, logprobs, counts, offsets in lists:
            for name in (ids, logprobs, counts):
                if name:
                    value = floats(record[name], record) if name == logprobs else record[name]
                    row[name] = (record[offsets], value) if offsets else value
        if dense:
            row[dense] = floats(record[dense], record)
        table.add(**row)
    table.close()
    return source


# ---- Axolotl ----


def export_axolotl(run, out, options, quiet):
    """Prepared columns for axolotl.integrations.kd.

    Since 0.10.0 its loss takes target row i with the student's state at position i, and the labels, which
    it shifts itself, with the token there: row i predicts token i + 1, label i is token i. Up to 0.9.2 the
    trainer shifts the target rows too, so that row i has to predict token i (before_0_10).
    """
    needs_mode(run, "axolotl", ("topk", "topp", "sample", "topk+sample", "full"),
               NO_HEAD)
    late = 1 if options.get("before_0_10") else 0
    columns = [Column("input_ids", "list", np.int32), Column("labels", "list", np.int32),
               Column("attention_mask", "list", np.int8), Column("position_ids", "list", np.int32),
               Column("target_token_ids", "lists", np.int32), Column("target_logprobs", "lists", np.float32),
               Column("target_mask", "lists", np.int8)]
    source = Source(run, options, quiet)
    width = None if run.mode in ("topp", "sample", "topk+sample") else set_size(run, options)
    with Target(out, folder=True) as target:
        table = Table(columns, ArrowFolder(target.path, provenance(run, "axolotl", options)))
        for _, record in source.records():
            tokens = record["input_ids"]
            n = len(tokens)
            ids, logp = candidates(run, record, options)
            ids, logp = fill_free(ids, logp, n_ids(run, options), min(width or ids.shape[1], n_ids(run, options)), NO_LOGPROB)
            used = logp > NO_LOGPROB / 2
            k = ids.shape[1]
            # Positions without a row hold ids that exist, and a mask of zeros.
            all_ids = np.tile(np.arange(k, dtype=np.int32), (n, 1))
            all_logp = np.full((n, k), NO_LOGPROB, np.float32)
            mask = np.zeros((n, k), np.int8)
            at = record["row_position"] + late
            all_ids[at], all_logp[at], mask[at] = ids, logp, used
            table.add(input_ids=tokens, labels=np.where(record["loss_mask"] == 1, tokens, -100),
                      attention_mask=np.ones(n, np.int8), position_ids=np.arange(n),
                      target_token_ids=all_ids, target_logprobs=all_logp, target_mask=mask)
        table.close()
        target.commit()
    return source.summary()


# ---- DistillKit ----


def export_distillkit(run, out, options, quiet):
    """input_ids, token_ids, top_values, labels for DistillKit's OfflineSignalSource; compressed or not.

    Its loss compares row i with the student's logits at i, so row i predicts token i + 1, and needs as many
    rows as tokens: the last token, which predicts nothing, is left out of input_ids (its own pack_logits
    does the same). A row counts where labels[i] >= 0, unshifted; labels is token i where row i is
    recorded and -100 elsewhere.
    """
    needs_mode(run, "distillkit", ("topk", "topp", "sample", "topk+sample", "full"),
               NO_HEAD)
    k = set_size(run, options)
    packed = options.get("compressed")
    columns = [Column("input_ids", "list", np.int64), Column("labels", "list", np.int64)]
    if packed:
        # DistributionQuantizationConfig with every value exact: no loss beyond the type's rounding.
        value_type = {"float32": np.float32, "float16": np.float16}[packed]
        columns += [Column("compressed_logprobs", "lists", np.uint8), Column("bytepacked_indices", "lists", np.uint8)]
        # ceil(log2(d)), as its compressor computes it
        bits = max(1, int(np.ceil(np.log2(np.float32(run.vocab_size)))))
    else:
        columns += [Column("token_ids", "lists", np.int32), Column("top_values", "lists", np.float32)]
    source = Source(run, options, quiet)
    partly = 0
    with Target(out, folder=True) as target:
        table = Table(columns, ArrowFolder(target.path, provenance(run, "distillkit", options)))
        for _, record in source.records():
            n = len(record["input_ids"]) - 1
            tokens = record["input_ids"][:n].astype(np.int64)
            # -1e4 has probability 0 in every type it casts to, and 0 * -1e4 is 0 where 0 * -inf is not.
            ids, logp = fill_free(*candidates(run, record, options), n_ids(run, options), k, -1e4)
            all_ids = np.tile(np.arange(k, dtype=np.int32), (n, 1))
            # Masked rows: half of the mass, since its symmetric_uniform takes the log of what is left
            # before it looks at the mask.
            all_logp = np.full((n, k), -np.log(2 * k), np.float32)
            at = record["row_position"]
            all_ids[at], all_logp[at] = ids, logp
            has = next_token_is_target(record)[:n]
            has[at] &= (logp > -1e4).any(axis=1)  # where a student has none of the candidates, nothing is compared
            partly += not has.all()
            row = {"input_ids": tokens, "labels": np.where(has, tokens, -100)}
            if packed:
                order = np.argsort(-all_logp, axis=1, kind="stable")  # the format wants them descending
                values = np.take_along_axis(all_logp, order, axis=1).astype(value_type)
                row["compressed_logprobs"] = np.ascontiguousarray(values).view(np.uint8)
                row["bytepacked_indices"] = pack_msb(np.take_along_axis(all_ids, order, axis=1), bits)
            else:
                row["token_ids"], row["top_values"] = all_ids, all_logp
            table.add(**row)
        table.close()
        if packed:
            with open(os.path.join(target.path, "compression_config.yaml"), "w", encoding="utf-8") as f:
                f.write(f"d: {run.vocab_size}\nk: {k}\nexact_k: {k}\nexact_dtype: {packed}\n"
                        "polynomial_terms: null\nresidual_bins: []\ndelta_encoding: false\n")
        target.commit()
    note = ("" if not partly else f"\nnote: in {partly} samples only some positions are targets. DistillKit's masks "
            "of KL and of cross entropy differ by one position; labels are set for KL, which is then exact")
    return source.summary() + note


def pack_msb(ids, bits):
    """uint8 [R, ceil(K * bits / 8)]: numbers end to end, the highest bit first, as distillkit's pack_to_bytes."""
    shifts = np.arange(bits - 1, -1, -1)
    stream = ((ids[:, :, None] >> shifts) & 1).astype(np.uint8).reshape(len(ids), -1)
    return np.packbits(stream, axis=1)


# ---- NeMo-Aligner ----


def export_nemo(run, out, options, quiet):
    """A JSON line a sample: tokens and labels shifted against each other, logits with their maximum at 0."""
    needs_mode(run, "nemo", ("topk", "topk+sample", "full"),
               "its loss renormalises teacher and student over rows of one width")
    options = dict(options, source="topk" if run.mode == "topk+sample" else None)
    k = set_size(run, options)
    source = Source(run, options, quiet)
    with Target(out, folder=False, suffix=".tdgen.json") as target:
        with open(target.path, "w", encoding="ascii") as f:
            for i, record in source.records():
                tokens = record["input_ids"].astype(np.int64)
                n = len(tokens) - 1
                ids, logp = candidates(run, record, options)
                full_rows(record, ids, logp, k, options.get("student"))
                logits = np.zeros((n, k), np.float32)
                all_ids = np.tile(np.arange(k, dtype=np.int64), (n, 1))
                lse = np.zeros(n, np.float32)
                at = record["row_position"]
                logits[at], all_ids[at] = logp - logp[:, :1], ids
                lse[at] = -logp[:, 0]
                line = {"tokens": tokens[:-1].tolist(), "labels": tokens[1:].tolist(),
                        "loss_mask": record["loss_mask"][1:].tolist(),
                        "topk_logits": _floats(logits), "topk_token_ids": all_ids.tolist(),
                        "log_sum_exp_logits": _floats(lse), "index": i}
                f.write(json.dumps(line, separators=(",", ":")) + "\n")
        with open(target.beside, "w", encoding="utf-8") as f:
            json.dump(provenance(run, "nemo", options), f, indent=2)
        target.commit()
    return source.summary()


def _floats(x):
    """Nested lists whose decimals are the shortest that give back the float32."""
    if x.ndim > 1:
        return [_floats(row) for row in x]
    return [float(str(v)) for v in x]


def full_rows(record, ids, logp, k, cut):
    """Refuses a row with fewer than k candidates: there is no number for a logit of minus infinity."""
    short = ((ids < 0) | ~np.isfinite(logp)).any(axis=1)
    if short.any() or ids.shape[1] != k:
        r = int(np.flatnonzero(short)[0]) if short.any() else 0
        n = int(((ids[r] >= 0) & np.isfinite(logp[r])).sum())
        known = " that the student has" if cut else ""
        raise ExportError(f"dataset row {record['index']}, position {int(record['row_position'][r])}: only {n} tokens{known} "
                          f"have a probability, and this format has {k} in every row: --top-k {max(n, 1)}")


# ---- llama.cpp ----


def export_llamacpp(run, out, options, quiet):
    """The file of llama-perplexity --kl-divergence-base, for --kl-divergence.

    "_logits_", int32 n_ctx, int32 n_vocab, int32 n_chunk, int32 tokens[n_chunk][n_ctx], then for each chunk
    and each position from n_ctx / 2 to n_ctx - 2: float scale, float lowest log-probability, uint16
    [n_vocab, rounded up to even]: log p = scale * x + lowest. Log-probabilities more than 16 below the
    highest are raised to that floor: the format's own loss.
    """
    needs_mode(run, "llamacpp", ("full",), "the format holds every token's log-probability")
    n_ctx, bos = options.get("n_ctx"), options.get("bos")
    if bos is None:
        raise ExportError("--bos ID or --bos none: llama.cpp puts its BOS in place of each chunk's first token where "
                          "the model asks for one (tokenizer.ggml.add_bos_token), and the teacher must have seen the same")
    if not n_ctx:
        n_ctx = max((int(np.diff(run.shard(k)["sample_offsets"]).max(initial=0)) for k in range(len(run.shards))),
                    default=0)
    if n_ctx < 4:
        raise ExportError(f"a context of {n_ctx} tokens: llama.cpp needs more")
    first = n_ctx // 2
    chosen, others = [], 0
    source = Source(run, options, quiet)
    for i, record in source.records(empty=True, dense=False):
        tokens, rows = record["input_ids"], record["row_position"]
        why = None
        if len(tokens) != n_ctx:
            why = f"has {len(tokens)} tokens, a chunk {n_ctx}"
        elif not np.isin(np.arange(first, n_ctx - 1), rows).all():
            why = f"has no record of every position from {first} to {n_ctx - 2}"
        elif bos != "none" and int(tokens[0]) != int(bos):
            why = f"begins with token {int(tokens[0])}, where llama.cpp would put its BOS {bos}"
        if why is None:
            chosen.append(i)
        elif options.get("skip_others"):
            others += 1
        else:
            raise ExportError(f"dataset row {record['index']}, token {record['start']}: the sample {why}; make the run "
                              f"with data.max_length = {n_ctx} and overflow = split over one long text, or leave such "
                              "samples out with --skip-others")
    if not chosen:
        raise ExportError(f"no sample has {n_ctx} tokens with every position recorded")
    v, student, clip = n_ids(run, options), options.get("student"), Clipped()
    with Target(out, folder=False, suffix=".tdgen.json") as target:
        with open(target.path, "wb") as f:
            f.write(b"_logits_" + np.array([n_ctx, v, len(chosen)], "<i4").tobytes())
            for i in chosen:
                record = run.sample(i, dense=False)
                if student:
                    tokens_of(student, record)
                f.write(record["input_ids"].astype("<i4").tobytes())
            bar = progress(len(chosen), quiet)
            block = max(1, BATCH_BYTES // (4 * run.vocab_size))
            for i in chosen:
                record = run.sample(i, dense=False)
                rows = record["row_position"]
                begin, end = np.searchsorted(rows, [first, n_ctx - 1])
                for r in range(begin, end, block):
                    logits = run.dense_rows(i, r, min(r + block, end))
                    if student and run.vocab_size > v:
                        logp = log_softmax(logits)[:, v:]
                        here = dict(record, row_position=rows[r : r + block])
                        student.lose(here, np.exp(logp, dtype=np.float64).sum(axis=1), run.vocab_size,
                                     np.count_nonzero(logp > -np.inf))
                    f.write(clip.look(logits, quantise_llamacpp(logits, v)).tobytes())
                bar.update()
            bar.close()
        with open(target.beside, "w", encoding="utf-8") as f:
            json.dump(dict(provenance(run, "llamacpp", dict(options, n_ctx=n_ctx)), clipped=clip.summary()), f, indent=2)
        target.commit()
    left = f"; left out: {others} samples that are no chunk" if others else ""
    return (f"{len(chosen):,} chunks of {n_ctx} tokens, {len(chosen) * (n_ctx - 1 - first):,} positions{left}; "
            f"llama-perplexity --kl-divergence --kl-divergence-base {out} -c {n_ctx}{clip.note()}"
            + (student.summary(run.vocab_size) if student else ""))


# ---- HDF5 ----


def export_hdf5(run, out, options, quiet):
    """teacher_logits.h5 and metadata.json, as the Python generator wrote them: raw logits as float16."""
    import h5py

    needs_mode(run, "hdf5", ("topk", "topk+sample", "full"), "its rows are the top k")
    options = dict(options, source="topk" if run.mode == "topk+sample" else None)
    k = set_size(run, options)
    source = Source(run, options, quiet)
    longest = options.get("max_length") or int(run.manifest["identity"].get("data.max_length", 0))
    gaps = 0
    with Target(out, folder=True) as target:
        with h5py.File(os.path.join(target.path, "teacher_logits.h5"), "w") as f:
            shape, grow, chunks = (0, longest, k), (None, longest, k), (1, longest, k)
            zipped = {"compression": "gzip", "compression_opts": 4}
            values = f.create_dataset("logits_values", shape, "float16", maxshape=grow, chunks=chunks, **zipped)
            indices = f.create_dataset("logits_indices", shape, "int32", maxshape=grow, chunks=chunks, **zipped)
            lengths = f.create_dataset("seq_lengths", (0,), "int32", maxshape=(None,))
            f.attrs["tdgen"] = json.dumps(provenance(run, "hdf5", options))
            for _, record in source.records():
                n = len(record["input_ids"])
                if n > longest:
                    raise ExportError(f"dataset row {record['index']} has {n} tokens: --max-length {n} or more")
                if len(record["row_position"]) != n - 1:
                    gaps += 1
                    if not options.get("allow_gaps"):
                        raise ExportError(
                            f"dataset row {record['index']}: {len(record['row_position'])} of {n - 1} positions are "
                            "recorded. The format has no mask, and its trainers would take the zeros of the others for "
                            "a teacher that is sure of token 0; --allow-gaps writes them for a trainer that masks")
                ids, logp = candidates(run, record, options)
                full_rows(record, ids, logp, k, options.get("student"))
                raw = logp + record["logsumexp"].astype(np.float64)[:, None]
                if np.abs(raw).max(initial=0) > 65504:
                    raise ExportError(f"dataset row {record['index']}: a logit is beyond float16, the format's type")
                row = np.zeros((longest, k), np.float16)
                row_ids = np.zeros((longest, k), np.int32)
                row[record["row_position"]], row_ids[record["row_position"]] = raw, ids
                at = len(lengths)
                for data, value in ((values, row), (indices, row_ids), (lengths, n)):
                    data.resize(at + 1, axis=0)
                    data[at] = value
        with open(os.path.join(target.path, "metadata.json"), "w", encoding="utf-8") as f:
            # Its reader gives these to a dataclass and takes no other names.
            json.dump({"num_samples": source.n_samples, "max_seq_length": longest, "top_k": k,
                       "vocab_size": run.vocab_size, "teacher_model": run.manifest.get("model_path", ""),
                       "dataset_name": run.manifest.get("data_path"), "dataset_config": None, "dataset_split": None},
                      f, indent=2)
        target.commit()
    note = f"; {gaps} samples with unrecorded positions (zeros)" if gaps else ""
    return (f"{source.summary()}{note}\nnote: a sample's last position predicts nothing in the data and holds zeros; "
            "the old generator had the teacher's guess there. Trainers that shift never read it")


EXPORTS = {"hf": export_hf, "axolotl": export_axolotl, "distillkit": export_distillkit, "nemo": export_nemo,
           "llamacpp": export_llamacpp, "hdf5": export_hdf5}

__all__ = ["EXPORTS", "ExportError", "RecordError", "check_tokenizer", "check_whole", "student_of"]
