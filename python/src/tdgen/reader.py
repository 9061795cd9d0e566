"""Reads what tdgen writes: every capture mode, with NumPy and xxhash alone.

    from .reader import Run, to_targets

    run = Run("out/demo")
    print(len(run), run.capture["mode"])
    for record in run:
        ids, probs = to_targets(record, temperature=2.0)

A record is a dict of NumPy arrays for one sample of L tokens and R recorded positions:

    input_ids       int32 [L]     all tokens of the sample
    loss_mask       uint8 [L]     1 where the token is a training target
    row_position    int32 [R]     position t: the row predicts token t + 1
    index, start    dataset row of the sample, and its first token within that row
    id              the dataset's own id of the row, where data.id_field was set
    skipped         True when the sample could not be computed (R is then 0)
    mode, temperatures, vocab_size, capture    how the run was recorded (capture: the whole spec)

in every mode but hidden:

    logsumexp       float32 [R]   logit = log-probability + logsumexp
    logsumexp_t     float32 [R, nT]  log sum exp of logits / T, for each of `temperatures`
    tail_mass       float32 [R]   probability that is not recorded
    target_logprob, target_rank, entropy   [R]
    always_logprobs float32 [R, nA]  with capture.always_ids: of the ids in always_ids

and by mode (E entries of all rows end to end, row r is [offsets[r] : offsets[r + 1]]):

    topk            topk_ids int32 [R, K], most probable first, -1 in free places; topk_logprobs float32 [R, K]
    topp            topp_offsets int64 [R + 1], topp_ids int32 [E], topp_logprobs float32 [E]
    sample          draw_offsets int64 [R + 1], draw_ids int32 [E] ascending, draw_counts int32 [E],
                    draw_logprobs float32 [E] (the teacher's), proposal_logsumexp float32 [R]
                    where draws come from another distribution than the teacher's
    topk+sample     both
    full            logits float32 [R, V]
    hidden          hidden float32 [R, C]: what lm_head reads (tdgen.logits.LmHead makes logits of it)

Log-probabilities are natural and over the whole vocabulary at T = 1. Whatever the storage (packed ids,
8-bit log-probabilities, bfloat16, zstd), a record holds the types above. Shards are mapped into memory
when first needed, their hashes are checked then, once (the xxhash package; verify=False leaves it out), and
only the sample's own bytes are decoded, so a Run over many gigabytes starts at once; compressed shards are
unpacked into memory, a few at a time (needs the zstandard package).
"""

import bisect
import math
import os
from collections import OrderedDict

import numpy as np
from .shard import SHARD_NAME, Shard, bf16_to_f32, check_shard, dequantise, unpack_bits
from .trust import RecordError, canonical, hash_hex, number, parse_json, read_bounded, whole

__all__ = ["Run", "Shard", "RecordError", "bf16_to_f32", "dequantise", "unpack_bits", "to_targets", "to_logprobs",
           "to_dense", "cut_vocab", "torch_dataset", "collate"]

_OPEN_SHARDS = 4  # shards kept open by one Run; of compressed ones the whole text is in memory
_MAX_MANIFEST = 1 << 20  # as tdgen itself has it
_MAX_INDEX = 1 << 30
MODES = ("topk", "topp", "sample", "topk+sample", "full", "hidden")


# ---- a folder ----


def _capture_spec(manifest):
    """The capture spec of a manifest as one dict, by the names of the INI keys; ValueError where it is none."""
    identity = manifest["identity"]
    spec = {key[8:]: value for key, value in identity.items() if key.startswith("capture.")}
    found = manifest.get("capture")
    if isinstance(found, str):
        found = parse_json(found, "capture")
    if not isinstance(found, (dict, type(None))):
        raise ValueError("capture is no object")
    spec.update(found or {})
    spec.setdefault("mode", "topk")
    if spec["mode"] not in MODES:
        raise ValueError(f"capture mode {str(spec['mode'])[:40]}, this reader knows {', '.join(MODES)}")
    n_vocab = whole(identity.get("model.n_vocab"), 1, 2**31 - 2)
    for key, least, most, needed in (("top_k", 1, 2**31 - 1, spec["mode"] in ("topk", "topk+sample", "topp")),
                                     ("n_draws", 1, 2**31 - 1, "sample" in spec["mode"]),
                                     ("n_hidden", 1, 2**31 - 1, False)):
        if key in spec or needed:
            spec[key] = whole(spec.get(key), least, most)
    # All ones stand for a free place, so that V + 1 values must fit.
    spec["id_bits"] = whole(spec.get("id_bits") or n_vocab.bit_length(), n_vocab.bit_length(), 31)
    spec["temperatures"] = [number(t) for t in spec.get("temperatures") or []]
    spec["always_ids"] = [whole(x, 0, n_vocab - 1) for x in spec.get("always_ids") or []]
    if not all(t > 0 for t in spec["temperatures"]):
        raise ValueError("a temperature of 0 or less")
    if "proposal_power" in spec:
        spec["proposal_power"] = number(spec["proposal_power"])
    for key, known in (("logprob_dtype", ("f32", "f16", "q8")), ("dense_dtype", ("f32", "f16", "bf16")),
                       ("pack_ids", (True, False))):
        if key in spec and (spec[key] not in known or type(spec[key]) is not type(known[0])):
            raise ValueError(f"capture.{key} is {str(spec[key])[:40]!r}, none of {known}")
    return spec


def _index_line(e):
    """The line of shards.jsonl with these values, as tdgen writes it."""
    numbers = "".join(f'"{key}": {e[key]}, ' for key in ("row_begin", "row_end", "samples", "tokens", "rows", "skipped",
                                                         "bad_rows", "overflow_rows", "size_bytes"))
    return (f'{{"file": "{e["file"]}", "shard": {e["shard"]}, {numbers}"source_hash": "{e["source_hash"]}", '
            f'"data_hash": "{e["data_hash"]}", "file_hash": "{e["file_hash"]}"}}\n')


class Run:
    """The output folder of a run: a sequence of records in dataset order.

    Only finished shards are seen. Processes (DataLoader workers) may share a Run: each opens the
    shards for itself. A folder that is damaged, or was made to do harm, ends in a RecordError: see
    tdgen.trust. verify=False leaves hashes unchecked, nothing else; with it, a shard's bytes are read
    once when it is first opened.
    """

    def __init__(self, path, verify=True):
        self.path, self.verify = os.fspath(path), verify
        name = os.path.join(self.path, "manifest.json")
        if not os.path.lexists(name):
            raise RecordError(f"{self.path} holds no manifest.json: it is no output folder of tdgen")
        self.manifest = parse_json(read_bounded(name, _MAX_MANIFEST, self.path), name)
        try:
            self._read_manifest(name)
        except RecordError:
            raise
        except (ValueError, TypeError, KeyError, OverflowError) as e:
            raise RecordError(f"{name}: {e}") from None
        self._open = OrderedDict()
        self._proven = {}  # what was read whole and agreed: it need not be read again
        self.shards = self._read_index()
        self._first = [0]  # index of each shard's first sample
        for k, entry in enumerate(self.shards):
            self._first.append(self._first[-1] + entry["samples"])
            if entry["samples"] == 0:  # nobody would ever open it and see that its line is wrong
                self.shard(k)

    def _read_manifest(self, name):
        m = self.manifest
        if m.get("schema") not in (1, 2) or isinstance(m["schema"], bool):
            raise RecordError(f"{self.path}: schema {str(m.get('schema'))[:40]}, this reader knows 1 and 2")
        identity = m.get("identity")
        if not isinstance(identity, dict) or not isinstance(m.get("fingerprint"), str):
            raise ValueError("it has no identity and fingerprint")
        if self.verify and (m["schema"] == 2 or "hash" in m):
            rest = {k: v for k, v in m.items() if k != "hash"}
            if m.get("hash") != hash_hex(canonical(rest).encode("utf-8", "surrogatepass")):
                raise ValueError("it is damaged or was edited: its hash is not that of its content. Restore it from a "
                                 "copy (verify=False, --no-verify read it unchecked)")
            if m["fingerprint"] != hash_hex(canonical(identity).encode("utf-8", "surrogatepass")):
                raise ValueError("its fingerprint is not that of its identity")
        self.capture = _capture_spec(m)
        self.mode = self.capture["mode"]
        self._dense = {"full": "logits", "hidden": "hidden"}.get(self.mode)
        self.temperatures = tuple(self.capture["temperatures"])
        self.vocab_size = identity["model.n_vocab"]
        self.top_k = self.capture.get("top_k", 0)
        self.fingerprint = m["fingerprint"]
        self.id_bits = self.capture["id_bits"]
        self.always_ids = np.array(self.capture["always_ids"], np.int32)
        # Where the manifest does not say (schema 1), the shards do.
        self._has_ids = None if m["schema"] == 1 else identity.get("data.id_field") is not None

    def _read_index(self):
        """Entries of shards.jsonl, and of shards that stand there without a line: a crash, or a run that goes on,
        may leave one, and a shard proves itself."""
        name, found = os.path.join(self.path, "shards.jsonl"), {}
        text = read_bounded(name, _MAX_INDEX, self.path) if os.path.lexists(name) else b""
        # What follows the last newline is being written, or was torn by a crash.
        for i, line in enumerate(text.split(b"\n")[:-1], 1):
            e = parse_json(line, f"{name}, line {i}")
            try:
                for key in ("shard", "row_begin", "row_end", "samples", "tokens", "rows", "skipped", "bad_rows",
                            "overflow_rows", "size_bytes"):
                    whole(e[key], 0, 2**62)
                file = SHARD_NAME.fullmatch(e["file"])
                if not file or int(file[1]) != e["shard"] or len(file[1]) != max(6, len(str(e["shard"]))):
                    raise ValueError(f"file {e['file'][:80]!r} is no name of shard {e['shard']}")
                if _index_line(e).encode() != line + b"\n":
                    raise ValueError("it is not as tdgen writes it")
            except (ValueError, KeyError, TypeError) as error:
                raise RecordError(f"{name}, line {i}, is damaged: {error} (a resumed run repairs it)") from None
            found[e["shard"]] = e  # should a shard be listed twice (its line was written again), the last line counts
        try:
            names = sorted(n for n in os.listdir(self.path) if SHARD_NAME.fullmatch(n))
        except NotADirectoryError:
            raise RecordError(f"{self.path} is no folder") from None
        for file in names:  # .zst comes after the plain one, which is then taken
            k = int(SHARD_NAME.fullmatch(file)[1])
            if k not in found:
                found[k] = self._entry_of(file, k)
        return [found[k] for k in sorted(found)]

    def _entry_of(self, file, k):
        t = self._load(file, k)
        meta = t.metadata
        return {"file": file, "shard": k, "samples": len(t["sample_index"]), "tokens": len(t["input_ids"]),
                "rows": len(t["row_position"]), "data_hash": meta.get("data_hash"), "source_hash": meta.get("source_hash")}

    def _load(self, file, k, proven=None):
        path = os.path.join(self.path, file)
        t = Shard(path, verify=self.verify, within=self.path, proven=proven)
        if t.metadata.get("fingerprint") != self.fingerprint:
            raise RecordError(f"{t.path} has fingerprint {str(t.metadata.get('fingerprint'))[:40]}, manifest.json "
                              f"{self.fingerprint}: they are not of one run")
        if t.metadata.get("shard", str(k)) != str(k):
            raise RecordError(f"{t.path} says that it is shard {t.metadata['shard'][:40]}: files were exchanged or renamed")
        has_ids = "sample_id_bytes" in t if self._has_ids is None else self._has_ids
        check_shard(t, self.capture, has_ids, self.vocab_size)
        return t

    def __len__(self):
        return self._first[-1]

    def __getstate__(self):
        state = self.__dict__.copy()
        state["_open"] = OrderedDict()
        return state

    def __iter__(self):
        for i in range(len(self)):
            yield self.sample(i)

    def __getitem__(self, i):
        return self.sample(i)

    def shard(self, k):
        """The k-th finished shard (in folder order)."""
        if k in self._open:
            self._open.move_to_end(k)
            return self._open[k]
        entry = self.shards[k]
        shard = self._load(entry["file"], entry["shard"], self._proven.get(k))
        for key, name in (("samples", "sample_index"), ("tokens", "input_ids"), ("rows", "row_position")):
            if len(shard[name]) != entry[key]:
                raise RecordError(f"{shard.path} holds {len(shard[name])} {key}, shards.jsonl says {entry[key]}")
        for key in ("data_hash", "source_hash"):
            if shard.metadata.get(key, entry[key]) != entry[key]:
                raise RecordError(f"{shard.path} has {key} {shard.metadata[key][:40]}, shards.jsonl says {entry[key]}")
        if shard.size_bytes != entry.get("size_bytes", shard.size_bytes):
            raise RecordError(f"{shard.path} has {shard.size_bytes} bytes, shards.jsonl says {entry['size_bytes']}")
        self._open[k], self._proven[k] = shard, shard.identity
        while len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        return shard

    def first_sample(self, k):
        """Number of the k-th shard's first sample."""
        return self._first[k]

    def _find(self, i):
        """Shard number in this folder, and the sample's number in it."""
        if i < 0:
            i += len(self)
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        k = bisect.bisect_right(self._first, i) - 1
        return k, i - self._first[k]

    def n_rows(self, i):
        """Recorded positions of sample i, without decoding it."""
        k, j = self._find(i)
        begin, end = self.shard(k)["row_offsets"][j : j + 2]
        return int(end - begin)

    def dense_rows(self, i, begin, end):
        """Rows [begin, end) of sample i's logits or hidden states as float32: modes full and hidden."""
        k, j = self._find(i)
        t = self.shard(k)
        first, last = (int(x) for x in t["row_offsets"][j : j + 2])
        if not 0 <= begin <= end <= last - first:
            raise IndexError(f"rows {begin} to {end} of {last - first}")
        return t.floats(self._dense, slice(first + begin, first + end))

    def sample(self, i, dense=True):
        """Record i, 0 <= i < len(run); negative counts from the end.

        dense=False leaves out logits and hidden states, which are large: dense_rows() has them by rows.
        """
        k, j = self._find(i)
        t = self.shard(k)
        tokens = slice(*(int(x) for x in t["sample_offsets"][j : j + 2]))
        rows = slice(*(int(x) for x in t["row_offsets"][j : j + 2]))
        record = {
            "index": int(t["sample_index"][j]),
            "start": int(t["sample_start"][j]),
            "skipped": bool(t["sample_status"][j]),
            "mode": self.mode,
            "capture": self.capture,
            "temperatures": self.temperatures,
            "vocab_size": self.vocab_size,
            "input_ids": t["input_ids"][tokens],
            "loss_mask": t["loss_mask"][tokens],
            "row_position": t["row_position"][rows],
        }
        for name in ("logsumexp", "logsumexp_t", "tail_mass", "target_logprob", "target_rank", "entropy",
                     "always_logprobs", "proposal_logsumexp"):
            if name in t:
                record[name] = t[name][rows]
        if len(self.always_ids):
            record["always_ids"] = self.always_ids
        if "sample_id_bytes" in t:
            ids = slice(*(int(x) for x in t["sample_id_offsets"][j : j + 2]))
            record["id"] = t["sample_id_bytes"][ids].tobytes().decode("utf-8", "replace")
        if self.mode in ("topk", "topk+sample"):
            record["topk_ids"] = self._ids(t, "topk_ids", rows, self.top_k)
            record["topk_logprobs"] = t.logprobs("topk_logprobs", rows, rows)
        if self.mode == "topp":
            self._ragged(t, rows, record, "topp_offsets", "topp_ids", "topp_logprobs")
        if self.mode in ("sample", "topk+sample"):
            part = self._ragged(t, rows, record, "draw_offsets", "draw_ids", "draw_logprobs")
            record["draw_counts"] = t["draw_counts"][part]
        if dense and self._dense:
            record[self._dense] = t.floats(self._dense, rows)
        return record

    def _ids(self, t, name, part, width):
        ids = t.ids(name, part, width, self.id_bits)
        if ids.size and not (-1 <= ids.min() and ids.max() < self.vocab_size):
            raise RecordError(f"{t.path}: {name} has an id outside of 0 to {self.vocab_size - 1}")
        return ids

    def _ragged(self, t, rows, record, offsets, ids, logprobs):
        ends = t[offsets][rows.start : rows.stop + 1]
        part = slice(int(ends[0]), int(ends[-1]))
        record[offsets] = ends - ends[0]
        row_of = np.repeat(np.arange(rows.stop - rows.start), np.diff(ends))
        record[ids] = self._ids(t, ids, part, None)
        record[logprobs] = t.logprobs(logprobs, part, rows, row_of)
        return part


# ---- targets ----

TAILS = ("bucket", "ignore", "renormalise")
_BLOCK_BYTES = 1 << 26  # float64 working memory for dense rows


def _pad(offsets, values, fill):
    """Ragged [E] as [R, longest], with `fill` behind each row's own."""
    counts = np.diff(offsets)
    out = np.full((len(counts), int(counts.max(initial=0))), fill, values.dtype)
    out[np.arange(out.shape[1]) < counts[:, None]] = values
    return out


def _log_shift(record, temperature):
    """[R, 1]: log p_T(v) = log p(v) / T + this, by the recorded normaliser; exact for any set of ids."""
    if temperature == 1:
        return 0.0
    match = [i for i, t in enumerate(record["temperatures"]) if np.isclose(t, temperature, rtol=1e-6, atol=0)]
    if not match:
        raise ValueError(
            f"temperature {temperature} was not recorded (capture.temperatures = {list(record['temperatures'])}): "
            "the normaliser over the whole vocabulary is not known")
    # logit / T - lse_T, with logit = log p + lse
    lse = record["logsumexp"].astype(np.float64) / temperature
    return (lse - record["logsumexp_t"][:, match[0]])[:, None]


def _draws(record, temperature):
    """ids [R, D] and the log of an unbiased estimate of p_T at each: count / n times p_T / q.

    q is the distribution that was drawn from: the teacher at T = 1, or p^power / sum of p^power.
    """
    ids = _pad(record["draw_offsets"], record["draw_ids"], -1)
    logp = _pad(record["draw_offsets"], record["draw_logprobs"], -np.inf).astype(np.float64)
    counts = _pad(record["draw_offsets"], record["draw_counts"], 0)
    n = counts.sum(axis=1, keepdims=True)  # n_draws: draws are never lost
    used = ids >= 0
    logp = np.where(used, logp, 0.0)
    log_q = logp
    if "proposal_logsumexp" in record:
        power = float(record["capture"]["proposal_power"])
        log_q = power * logp - record["proposal_logsumexp"].astype(np.float64)[:, None]
    estimate = np.log(np.maximum(counts, 1) / np.maximum(n, 1))
    estimate += logp / temperature + _log_shift(record, temperature) - log_q
    return ids, np.where(used, estimate, -np.inf)


def _sets(record, temperature, need_norm):
    """ids [R, K] and log-probabilities at T (float64, only up to a constant per row without need_norm)."""
    if record["mode"] == "topp":
        ids = _pad(record["topp_offsets"], record["topp_ids"], -1)
        logp = _pad(record["topp_offsets"], record["topp_logprobs"], -np.inf)
    else:
        ids, logp = record["topk_ids"], record["topk_logprobs"]
    logp = np.where(ids >= 0, logp, -np.inf).astype(np.float64) / temperature
    return ids, logp + _log_shift(record, temperature) if need_norm else logp


def _combined(record, temperature):
    """The top k as recorded, and outside of it the draws' estimate."""
    ids, logp = _sets(record, temperature, need_norm=True)
    drawn, estimate = _draws(record, temperature)
    # A draw inside the top k says nothing new: its id is known exactly.
    rows = np.arange(len(ids), dtype=np.int64)[:, None] * (record["vocab_size"] + 1)
    inside = np.isin(drawn + rows, (ids + rows)[ids >= 0])
    drawn, estimate = np.where(inside, -1, drawn), np.where(inside, -np.inf, estimate)
    return np.concatenate([ids, drawn], axis=1), np.concatenate([logp, estimate], axis=1)


def log_softmax(logits, temperature=1.0):
    """float32 log-probabilities at T of float32 logits [R, V], summed in float64; -inf stays -inf."""
    out = np.empty(logits.shape, np.float32)
    block = max(1, _BLOCK_BYTES // max(1, 8 * logits.shape[1]))
    for r in range(0, len(logits), block):
        z = logits[r : r + block].astype(np.float64) / temperature
        z -= z.max(axis=1, keepdims=True)
        out[r : r + block] = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return out


def cut_vocab(ids, logp, n):
    """A student of n ids knows no others: (ids, log p, probability of what was left out [R]); free places are last."""
    if ids.shape[1] and ids.strides[0] == 0:  # all ids in order
        return ids[:, :n], logp[:, :n], np.exp(logp[:, n:], dtype=np.float64).sum(axis=1)
    beyond = ids >= n
    if not beyond.any():
        return ids, logp, np.zeros(len(ids))
    lost = np.where(beyond, np.exp(logp), 0).sum(axis=1, dtype=np.float64)
    order = np.argsort(beyond, axis=1, kind="stable")
    ids, logp = np.where(beyond, np.int32(-1), ids), np.where(beyond, -np.inf, logp)
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(logp, order, axis=1), lost


def check_tokens(record, student_vocab):
    """Refuses a sample whose own tokens the student does not have: no cut can mend that."""
    tokens = record["input_ids"]
    if student_vocab is not None and len(tokens) and int(tokens.max()) >= student_vocab:
        raise ValueError(f"dataset row {record['index']}: the text has token {int(tokens.max())}, the student has "
                         f"{student_vocab} ids (the teacher {record['vocab_size']})")


def renormalised(logp):
    """log-probabilities scaled so that every row's set sums to 1."""
    high = logp.max(axis=1, keepdims=True, initial=-1e38)
    total = np.exp(logp - high).sum(axis=1, keepdims=True)
    return logp - high - np.log(np.where(total > 0, total, 1))


def to_logprobs(record, temperature=1.0, tail="ignore", source=None, lm_head=None, student_vocab=None, cut=False):
    """As to_targets, but log-probabilities: (ids int32 [R, K], log p float64 [R, K], rest float64 [R]).

    Free places (id -1) have -inf. rest is the probability outside ids, whatever tail says ("bucket" and
    "ignore" are the same here). At T = 1 and with tail="ignore" these are the recorded numbers themselves.
    Modes full and hidden give float32 over all V ids.
    """
    ids, logp, rest = _logprobs(record, temperature, tail, source, lm_head)
    if student_vocab is not None:
        ids, logp, lost = cut_vocab(ids, logp, student_vocab)
        if lost.any() and not cut:
            raise ValueError(f"dataset row {record['index']}: the teacher has {record['vocab_size']} ids, the student "
                             f"{student_vocab}: those from {student_vocab} on hold up to {lost.max():.3g} of a position's "
                             "probability. cut=True leaves them out; the probability joins what is not recorded")
        rest = rest + lost
    if tail == "renormalise":
        logp, rest = renormalised(logp), np.zeros(len(ids))
    return ids, logp, rest


def _logprobs(record, temperature, tail, source, lm_head):
    """to_logprobs before anything is cut or scaled."""
    if tail not in TAILS:
        raise ValueError(f'tail={tail!r}, expected "bucket", "ignore" or "renormalise"')
    if not temperature > 0 or math.isinf(temperature):
        raise ValueError(f"temperature={temperature}, expected a number above 0")
    mode = record["mode"]
    allowed = {"topk+sample": ("combined", "topk", "sample")}.get(mode, (None,))
    source = source or allowed[0]
    if source not in allowed:
        raise ValueError(f"source={source!r} in mode {mode}, expected one of {allowed}")
    if mode in ("full", "hidden"):
        if mode == "hidden" and lm_head is None:
            raise ValueError("mode hidden: give lm_head (tdgen.logits.LmHead of the teacher's folder)")
        logp = log_softmax(record["logits"] if mode == "full" else lm_head(record["hidden"]), temperature)
        return np.broadcast_to(np.arange(logp.shape[1], dtype=np.int32), logp.shape), logp, np.zeros(len(logp))
    if mode == "sample" or source == "sample":
        ids, logp = _draws(record, temperature)
    elif source == "combined":
        ids, logp = _combined(record, temperature)
    else:
        ids, logp = _sets(record, temperature, need_norm=tail != "renormalise")
    rest = np.zeros(len(ids))  # what was drawn stands for the whole vocabulary
    if tail != "renormalise" and (mode in ("topp", "topk") or source == "topk"):
        if temperature == 1:  # summed from its own terms: exact even where it is tiny
            rest = record["tail_mass"].astype(np.float64)
        else:
            rest = np.clip(1 - np.exp(logp).sum(axis=1), 0, 1)
    return ids, logp, rest


def to_targets(record, temperature=1.0, tail="bucket", dense=False, source=None, lm_head=None, student_vocab=None,
               cut=False):
    """The teacher's distribution of a record at a temperature: (ids, probs), or with dense=True one array.

    ids int32 [R, K] (-1 in free places, whose probability is 0), probs float32 [R, K]. With tail="bucket"
    probs has one more column, the probability of every token outside ids. dense=True gives float32
    [R, V], or [R, V + 1] with the bucket last.

    tail says what becomes of the probability outside the recorded set:
      "bucket"       kept as one more class: rows sum to 1. Compare with the student's probability
                     of the same set, 1 - sum of its probabilities of ids. No bias, and nothing is
                     claimed about what lies in the tail.
      "ignore"       left out: rows sum to less than 1. The loss is then the sum over the candidates
                     of the true cross entropy.
      "renormalise"  candidates scaled up to sum to 1: simple, but makes the student more certain
                     than the teacher; with a small set or a high temperature this is a real bias.

    temperature = 1 is exact, and so is each of capture.temperatures: the recorded logsumexp_t is the
    normaliser over the whole vocabulary, and the tail at T is 1 minus the set's probability at T. Other
    temperatures are refused, but for modes full and hidden, which know every logit, and for
    tail="renormalise" over a recorded set (topk, topp), which needs no normaliser.

    Modes sample and topk+sample: probs is an estimate that is right in expectation, count / n_draws times
    p_T / q; it stands for the whole vocabulary, so that the bucket is 0. source chooses for topk+sample:
    "combined" (default: the recorded log-probabilities inside the top k, draws outside of it), "topk" or
    "sample".

    Mode hidden needs lm_head: a function of float32 [n, C] that gives logits float32 [n, V]
    (tdgen.logits.LmHead).

    student_vocab: how many ids the student has (its config.json's vocab_size), where that is fewer than the
    teacher's. A record with probability on others is refused, or with cut=True these are left out: their
    probability joins what is not recorded, for tail to say what becomes of it. dense=True then has student_vocab
    columns.
    """
    ids, logp, rest = to_logprobs(record, temperature, tail, source, lm_head, student_vocab, cut)
    probs = np.exp(logp).astype(np.float32, copy=False)
    if dense:
        probs = _scatter(ids, probs, student_vocab or record["vocab_size"])
    if tail == "bucket":
        probs = np.concatenate([probs, rest.astype(np.float32)[:, None]], axis=1)
    return probs if dense else (ids, probs)


def _scatter(ids, probs, vocab_size):
    if ids.shape[1] and ids.strides[0] == 0:  # full: already dense
        return probs if ids.shape[1] == vocab_size else np.pad(probs, ((0, 0), (0, vocab_size - ids.shape[1])))
    out = np.zeros((len(ids), vocab_size), np.float32)
    used = ids >= 0
    rows = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)
    out[rows[used], ids[used]] = probs[used]
    return out


def to_dense(record, temperature=1.0, tail="spread", lm_head=None, student_vocab=None, cut=False):
    """The distribution as float32 [R, V], for small vocabularies and for tests.

    tail="spread" divides what is not recorded evenly over the tokens that are not recorded, so that
    rows sum to 1 (but for what a cut takes from rows that hold all tokens); "zero" leaves these at 0.
    """
    if tail not in ("spread", "zero"):
        raise ValueError(f'tail={tail!r}, expected "spread" or "zero"')
    ids, p = to_targets(record, temperature, "bucket", lm_head=lm_head, student_vocab=student_vocab, cut=cut)
    dense = _scatter(ids, p[:, :-1], student_vocab or record["vocab_size"])
    if tail == "spread":
        out = np.ones(dense.shape, bool)
        used = ids >= 0
        out[np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)[used], ids[used]] = False
        n_rest = out.sum(axis=1)
        dense = dense + out * (p[:, -1] / np.maximum(n_rest, 1))[:, None]
    return dense.astype(np.float32, copy=False)


# ---- torch ----


def torch_dataset(path, temperature=1.0, tail="bucket", verify=True, **options):
    """A torch.utils.data.Dataset of the samples with recorded positions.

    An item is a dict of tensors: input_ids int64 [L], position int64 [R] (the student's logits at
    these positions are to be compared), ids int64 [R, K], probs float32 as to_targets gives them
    (`options` go there), and target int64 [R], the token that follows in the data. Batches:
    DataLoader(..., collate_fn=collate).
    """
    import torch
    from torch.utils.data import Dataset

    class DistillationDataset(Dataset):
        def __init__(self):
            self.run = Run(path, verify)
            self.samples = []
            for k in range(len(self.run.shards)):
                first = self.run.first_sample(k)
                rows = np.diff(self.run.shard(k)["row_offsets"])
                self.samples += [first + int(j) for j in np.flatnonzero(rows)]

        def __len__(self):
            return len(self.samples)

        def __getitem__(self, i):
            record = self.run.sample(self.samples[i])
            ids, probs = to_targets(record, temperature, tail, **options)
            check_tokens(record, options.get("student_vocab"))
            tokens = torch.from_numpy(record["input_ids"].astype(np.int64))
            position = torch.from_numpy(record["row_position"].astype(np.int64))
            return {
                "input_ids": tokens,
                "position": position,
                "ids": torch.from_numpy(ids.astype(np.int64)),
                "probs": torch.from_numpy(probs),
                "target": tokens[position + 1],
            }

    return DistillationDataset()


def collate(items, pad_id=0):
    """Items of torch_dataset as one batch: input_ids padded to [B, L], attention_mask [B, L], and
    the rows of all samples one after the other with row_sample saying whose they are, so that
    logits[row_sample, position] lines up with ids and probs. Where samples have sets of different
    width, the narrower get free places (ids -1, probability 0) before the bucket."""
    import torch
    from torch.nn.functional import pad

    longest = max(len(x["input_ids"]) for x in items)
    widest = max(x["ids"].shape[1] for x in items)
    input_ids = torch.full((len(items), longest), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(items), longest), dtype=torch.int64)
    ids, probs = [], []
    for b, x in enumerate(items):
        input_ids[b, : len(x["input_ids"])] = x["input_ids"]
        attention_mask[b, : len(x["input_ids"])] = 1
        k = x["ids"].shape[1]
        ids.append(pad(x["ids"], (0, widest - k), value=-1))
        parts = [pad(x["probs"][:, :k], (0, widest - k)), x["probs"][:, k:]]
        probs.append(torch.cat(parts, dim=1))
    batch = {key: torch.cat([x[key] for x in items]) for key in ("position", "target")}
    row_sample = [torch.full((len(x["position"]),), b, dtype=torch.int64)
                  for b, x in enumerate(items)]
    batch.update(input_ids=input_ids, attention_mask=attention_mask, ids=torch.cat(ids), probs=torch.cat(probs),
                 row_sample=torch.cat(row_sample))
    return batch
