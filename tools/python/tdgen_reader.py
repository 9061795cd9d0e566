"""Reads what tdgen writes: every capture mode, with NumPy alone.

    from tdgen_reader import Run, to_targets

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
    hidden          hidden float32 [R, C]: what lm_head reads (tdgen_logits.LmHead makes logits of it)

Log-probabilities are natural and over the whole vocabulary at T = 1. Whatever the storage (packed ids,
8-bit log-probabilities, bfloat16, zstd), a record holds the types above. Shards are mapped into memory
when first needed and only the sample's own bytes are decoded, so a Run over many gigabytes starts at
once; compressed shards are unpacked into memory, a few at a time (needs the zstandard package).
"""

import bisect
import json
import math
import mmap
import os
import struct
from collections import OrderedDict

import numpy as np

__all__ = ["Run", "Shard", "RecordError", "to_targets", "to_logprobs", "to_dense", "torch_dataset", "collate"]

_OPEN_SHARDS = 4  # shards kept open by one Run; of compressed ones the whole text is in memory
_MAX_HEADER = 100_000_000  # the safetensors format's own limit
_DTYPES = {
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"),
    "U8": np.dtype("u1"), "BF16": np.dtype("<u2"),
}
MODES = ("topk", "topp", "sample", "topk+sample", "full", "hidden")


class RecordError(ValueError):
    """A folder or file that is not what it should be; the message names it."""


# ---- storage ----


def bf16_to_f32(bits):
    """uint16 bits of bfloat16 numbers as float32, exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def unpack_bits(data, first, count, bits):
    """count numbers of `bits` bits each from little-endian bit streams (the lowest bit first).

    data uint8 [..., n]: one stream, or one a row; `first` is the number of the first one wanted.
    All ones are -1: a free place. Returns int32 [..., count].
    """
    if not 1 <= bits <= 31:
        raise RecordError(f"ids of {bits} bits")
    at = (first + np.arange(count, dtype=np.int64)) * bits
    begin, end = first * bits // 8, ((first + count) * bits + 7) // 8
    if end > data.shape[-1]:
        raise RecordError(f"{data.shape[-1]} bytes of packed ids, {end} are needed")
    # Five bytes hold any number of up to 31 bits that starts within the first; zeros behind the end.
    window = np.zeros(data.shape[:-1] + (end - begin + 5,), np.uint64)
    window[..., : end - begin] = data[..., begin:end]
    byte = (at >> 3) - begin
    value = np.zeros(data.shape[:-1] + (count,), np.uint64)
    for i in range(5):
        value |= window[..., byte + i] << np.uint64(8 * i)
    value = (value >> (at & 7).astype(np.uint64)) & np.uint64((1 << bits) - 1)
    return np.where(value == (1 << bits) - 1, -1, value.astype(np.int64)).astype(np.int32)


def dequantise(q, limits):
    """8-bit log-probabilities as float32: max - q / 254 * (max - min), 255 is -inf.

    q uint8 [..., K] or [E]; limits float32 [..., 2], (max, min) of each row or entry.
    """
    high, low = limits[..., 0:1].astype(np.float64), limits[..., 1:2].astype(np.float64)
    if q.ndim < limits.ndim:
        high, low = high[..., 0], low[..., 0]
    with np.errstate(invalid="ignore"):
        value = high - q.astype(np.float64) / 254 * (high - low)
    return np.where(q == 255, -np.inf, value).astype(np.float32)


class Shard:
    """One shard-NNNNNN.safetensors[.zst]: a mapping of names to arrays.

    Arrays are views of the mapped file (read-only); BF16, which NumPy does not know, is a view of its
    bits as uint16. `metadata` is the header's __metadata__, `dtypes` names each tensor's stored type.
    """

    def __init__(self, path, partly=False):
        """partly=True passes by tensors of types that a record never has (another's checkpoint)."""
        self.path = path
        if path.endswith(".zst"):
            buffer = _read_zstd(path)
        else:
            with open(path, "rb") as f:
                buffer = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        size = len(buffer)
        if size < 8:
            raise RecordError(f"{path}: {size} bytes are no safetensors file")
        (n,) = struct.unpack_from("<Q", buffer, 0)
        if n > min(_MAX_HEADER, size - 8):
            raise RecordError(f"{path}: a header of {n} bytes in a file of {size}")
        try:
            header = json.loads(bytes(buffer[8 : 8 + n]))
            self.metadata = header.pop("__metadata__", {})
            self.dtypes, self._arrays = {}, {}
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                self.dtypes[name] = entry["dtype"]
                if partly and entry["dtype"] not in _DTYPES:
                    continue
                shape, dtype = tuple(entry["shape"]), _DTYPES[entry["dtype"]]
                count = math.prod(shape)
                if not (0 <= begin <= end <= size - 8 - n and min(shape, default=1) >= 0
                        and end - begin == count * dtype.itemsize):
                    raise ValueError(f"{name} is {entry}")
                array = np.frombuffer(buffer, dtype, count, 8 + n + begin).reshape(shape)
                self._arrays[name] = array
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise RecordError(f"{path}: its header cannot be read: {e}") from e

    def __getitem__(self, name):
        try:
            return self._arrays[name]
        except KeyError:
            raise RecordError(f"{self.path} has no tensor {name}") from None

    def __contains__(self, name):
        return name in self._arrays

    def __iter__(self):
        return iter(self._arrays)

    def keys(self):
        return self._arrays.keys()

    # What is in a sample's rows, decoded.

    def floats(self, name, rows):
        """float32 of rows [a, b) of a tensor of floats, whatever its type."""
        x = self[name][rows]
        return bf16_to_f32(x) if self.dtypes[name] == "BF16" else x.astype(np.float32)

    def ids(self, name, part, width, bits):
        """int32 ids: of rows `part` [R, width], or with width = None of entries `part`."""
        if name in self:
            return self[name][part]
        packed = self[name + "_packed"]
        if width is None:
            return unpack_bits(packed, part.start, part.stop - part.start, bits)
        rows = packed[part]
        if rows.shape[1] != (width * bits + 7) // 8:
            raise RecordError(f"{self.path}: {name}_packed has {rows.shape[1]} bytes a row, {width} ids of "
                              f"{bits} bits take {(width * bits + 7) // 8}")
        return unpack_bits(rows, 0, width, bits)  # every row starts at a byte

    def logprobs(self, name, part, rows, row_of=None):
        """float32 log-probabilities of rows, or of entries `part` that belong to rows row_of."""
        if name in self:
            return self.floats(name, part)
        limits = self[name + "_q8_range"][rows]
        return dequantise(self[name + "_q8"][part], limits if row_of is None else limits[row_of])


def _read_zstd(path):
    with open(path, "rb") as f:
        packed = f.read()
    try:
        from compression import zstd  # Python 3.14 on
    except ImportError:
        try:
            import zstandard as zstd
        except ImportError:
            raise RecordError(f"{path} is compressed: pip install zstandard, or unpack it with "
                              "zstd -d") from None
    try:
        return zstd.decompress(packed)
    except Exception as e:  # the two packages have errors of their own
        raise RecordError(f"{path} cannot be decompressed: {e}") from e


# ---- a folder ----


def _capture_spec(manifest):
    """The capture spec of a manifest as one dict, by the names of the INI keys."""
    spec = {key[8:]: value for key, value in manifest["identity"].items() if key.startswith("capture.")}
    found = manifest.get("capture")
    if isinstance(found, str):
        found = json.loads(found)
    spec.update(found or {})
    spec.setdefault("mode", "topk")
    if spec["mode"] not in MODES:
        raise RecordError(f"capture mode {spec['mode']}, this reader knows {', '.join(MODES)}")
    return spec


class Run:
    """The output folder of a run: a sequence of records in dataset order.

    Only finished shards are seen. Processes (DataLoader workers) may share a Run: each opens the
    shards for itself.
    """

    def __init__(self, path):
        self.path = os.fspath(path)
        try:
            with open(os.path.join(self.path, "manifest.json"), encoding="utf-8") as f:
                self.manifest = json.load(f)
        except FileNotFoundError:
            raise RecordError(f"{self.path} holds no manifest.json: it is no output folder of tdgen") from None
        if self.manifest["schema"] not in (1, 2):
            raise RecordError(f"{self.path}: schema {self.manifest['schema']}, this reader knows 1 and 2")
        identity = self.manifest["identity"]
        self.capture = _capture_spec(self.manifest)
        self.mode = self.capture["mode"]
        self._dense = {"full": "logits", "hidden": "hidden"}.get(self.mode)
        self.temperatures = tuple(float(t) for t in self.capture.get("temperatures", ()))
        self.vocab_size = int(identity["model.n_vocab"])
        self.top_k = int(self.capture.get("top_k", 0))
        self.fingerprint = self.manifest["fingerprint"]
        # All ones stand for a free place, so that V + 1 values must fit.
        self.id_bits = int(self.capture.get("id_bits") or self.vocab_size.bit_length())
        self.always_ids = np.array(self.capture.get("always_ids") or [], np.int32)
        with open(os.path.join(self.path, "shards.jsonl"), encoding="utf-8") as f:
            # A last line without its newline is being written, or was torn by a crash.
            lines = [json.loads(line) for line in f if line.endswith("\n")]
        # Should a shard be listed twice (its line was written again), the last line counts.
        self.shards = sorted({e["shard"]: e for e in lines}.values(), key=lambda e: e["shard"])
        self._first = [0]  # index of each shard's first sample
        for entry in self.shards:
            self._first.append(self._first[-1] + entry["samples"])
        self._open = OrderedDict()

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
        shard = Shard(os.path.join(self.path, entry["file"]))
        if shard.metadata.get("fingerprint") != self.fingerprint:
            raise RecordError(f"{shard.path} has fingerprint {shard.metadata.get('fingerprint')}, manifest.json "
                              f"{self.fingerprint}: they are not of one run")
        if len(shard["sample_index"]) != entry["samples"]:
            raise RecordError(f"{shard.path} holds {len(shard['sample_index'])} samples, shards.jsonl says "
                              f"{entry['samples']}")
        self._open[k] = shard
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
            record["topk_ids"] = t.ids("topk_ids", rows, self.top_k, self.id_bits)
            record["topk_logprobs"] = t.logprobs("topk_logprobs", rows, rows)
        if self.mode == "topp":
            self._ragged(t, rows, record, "topp_offsets", "topp_ids", "topp_logprobs")
        if self.mode in ("sample", "topk+sample"):
            part = self._ragged(t, rows, record, "draw_offsets", "draw_ids", "draw_logprobs")
            record["draw_counts"] = t["draw_counts"][part]
        if dense and self._dense:
            record[self._dense] = t.floats(self._dense, rows)
        return record

    def _ragged(self, t, rows, record, offsets, ids, logprobs):
        ends = t[offsets][rows.start : rows.stop + 1]
        part = slice(int(ends[0]), int(ends[-1]))
        record[offsets] = ends - ends[0]
        row_of = np.repeat(np.arange(rows.stop - rows.start), np.diff(ends))
        record[ids] = t.ids(ids, part, None, self.id_bits)
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


def to_logprobs(record, temperature=1.0, tail="ignore", source=None, lm_head=None):
    """As to_targets, but log-probabilities: (ids int32 [R, K], log p float64 [R, K], rest float64 [R]).

    Free places (id -1) have -inf. rest is the probability outside ids, whatever tail says ("bucket" and
    "ignore" are the same here). At T = 1 and with tail="ignore" these are the recorded numbers themselves.
    Modes full and hidden give float32 over all V ids.
    """
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
            raise ValueError("mode hidden: give lm_head (tdgen_logits.LmHead of the teacher's folder)")
        logp = log_softmax(record["logits"] if mode == "full" else lm_head(record["hidden"]), temperature)
        return np.broadcast_to(np.arange(logp.shape[1], dtype=np.int32), logp.shape), logp, np.zeros(len(logp))
    if mode == "sample" or source == "sample":
        ids, logp = _draws(record, temperature)
    elif source == "combined":
        ids, logp = _combined(record, temperature)
    else:
        ids, logp = _sets(record, temperature, need_norm=tail != "renormalise")
    rest = np.zeros(len(ids))  # what was drawn stands for the whole vocabulary
    if tail == "renormalise":
        high = logp.max(axis=1, keepdims=True, initial=-1e300)
        total = np.exp(logp - high).sum(axis=1, keepdims=True)
        logp = logp - high - np.log(np.where(total > 0, total, 1))
    elif mode == "topp" or source == "topk" or mode == "topk":
        if temperature == 1:  # summed from its own terms: exact even where it is tiny
            rest = record["tail_mass"].astype(np.float64)
        else:
            rest = np.clip(1 - np.exp(logp).sum(axis=1), 0, 1)
    return ids, logp, rest


def to_targets(record, temperature=1.0, tail="bucket", dense=False, source=None, lm_head=None):
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
    (tdgen_logits.LmHead).
    """
    ids, logp, rest = to_logprobs(record, temperature, tail, source, lm_head)
    probs = np.exp(logp).astype(np.float32, copy=False)
    if dense:
        probs = _scatter(ids, probs, record["vocab_size"])
    if tail == "bucket":
        probs = np.concatenate([probs, rest.astype(np.float32)[:, None]], axis=1)
    return probs if dense else (ids, probs)


def _scatter(ids, probs, vocab_size):
    if ids.shape[1] == vocab_size and ids.strides[0] == 0:  # full: already dense
        return probs
    out = np.zeros((len(ids), vocab_size), np.float32)
    used = ids >= 0
    rows = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)
    out[rows[used], ids[used]] = probs[used]
    return out


def to_dense(record, temperature=1.0, tail="spread", lm_head=None):
    """The distribution as float32 [R, V], for small vocabularies and for tests.

    tail="spread" divides what is not recorded evenly over the tokens that are not recorded, so that
    rows sum to 1; "zero" leaves these at 0.
    """
    if tail not in ("spread", "zero"):
        raise ValueError(f'tail={tail!r}, expected "spread" or "zero"')
    ids, p = to_targets(record, temperature, "bucket", lm_head=lm_head)
    dense = _scatter(ids, p[:, :-1], record["vocab_size"])
    if tail == "spread":
        out = np.ones(dense.shape, bool)
        used = ids >= 0
        out[np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)[used], ids[used]] = False
        n_rest = out.sum(axis=1)
        dense = dense + out * (p[:, -1] / np.maximum(n_rest, 1))[:, None]
    return dense.astype(np.float32, copy=False)


# ---- torch ----


def torch_dataset(path, temperature=1.0, tail="bucket", **options):
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
            self.run = Run(path)
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
