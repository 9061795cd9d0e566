"""Logits of a run that recorded final-norm states (capture.mode = hidden), through the teacher's lm_head.

    from tdgen.logits import FullRun, LmHead
    from tdgen import to_targets

    run = FullRun("out/hidden", "/models/Qwen3-0.6B")    # a Run whose records are those of mode full
    probs = to_targets(run.sample(0), temperature=3.0, dense=True)

or, with a record of the hidden run itself: to_targets(record, lm_head=LmHead(MODEL_DIR, "bf16")).

logits = finish(states . lm_head^T), in float32: lm_head in the type that the run computed in, products of
those and sums in float32, then divided (logits_scaling) and capped (final_logit_softcapping) as the config
says. Against capture.mode = full of the same run the same logits but for the order of summation; where
states were stored in fewer bits than they were computed in, also for that rounding.
"""

from __future__ import annotations

import json
import os
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open

from .reader import Run
from .targets import log_softmax
from .trust import RecordError, hash_hex, number, open_regular, parse_json, read_bounded

__all__ = ["FullRun", "LmHead"]

_KEEP_BYTES = 2 << 30  # an lm_head of up to this size is kept as float32
_BLOCK_BYTES = 64 << 20
_MAX_JSON = 64 << 20
# Architectures whose transformers config class ties embeddings where config.json does not say.
_TIED = ("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "GPT2LMHeadModel", "SmolLM3ForCausalLM")
_HEADS = ("lm_head.weight", "embed_out.weight")
_TABLES = ("embed_tokens.weight", "wte.weight", "embed_in.weight")


_TYPES = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def _opened(path):
    """A safetensors file of a checkpoint, mapped."""
    os.close(open_regular(path))
    try:
        return safe_open(path, "np")
    except Exception as e:  # SafetensorError, and others by the package's version
        raise RecordError(f"{path}: this is no safetensors file that can be read: {e}") from None


class LmHead:
    """Callable: float32 states [n, C] to float32 logits [n, V].

    path: the teacher's folder; compute: the run's manifest["identity"]["model.compute"]. The weight stays
    mapped, is converted in blocks, and kept as float32 where it is small. n_valid: ids from here on are
    padding without a token, and get -inf (capture.mask_padded_vocab).
    """

    def __init__(self, path: str | os.PathLike[str], compute: str = "bf16", n_valid: int | None = None) -> None:
        self.path, self.compute, self.n_valid = os.fspath(path), compute, n_valid
        self._slice = None
        where = os.path.join(self.path, "config.json")
        self.config_bytes = read_bounded(where, _MAX_JSON)
        config = parse_json(self.config_bytes, where)
        try:
            architecture = (config.get("architectures") or [""])[0]
            self.divisor = np.float32(number(config.get("logits_scaling") or 1))  # Granite
            cap = config.get("final_logit_softcapping", 30.0 if architecture == "Gemma2ForCausalLM" else None)
            self.softcap = np.float32(number(cap or 0))
            tied = config.get("tie_word_embeddings", architecture in _TIED)
        except (ValueError, TypeError, KeyError) as e:
            raise RecordError(f"{where}: {e}") from None
        where, name = self._find(_TABLES if tied else _HEADS)
        self._where = where, name
        kind, shape = self._weight().get_dtype(), self._weight().get_shape()
        if kind not in ("F32", "F16", "BF16"):
            raise RecordError(f"{where}: {name} is {kind}, which is not read here")
        if len(shape) != 2 or 0 in shape:
            raise RecordError(f"{where}: {name} has shape {shape}, expected [V, C]")
        self.n_vocab, self.n_hidden = shape
        self._kept = None

    def _find(self, names):
        index = os.path.join(self.path, "model.safetensors.index.json")
        files = {"model.safetensors"}
        if not os.path.exists(os.path.join(self.path, "model.safetensors")):
            placed = parse_json(read_bounded(index, _MAX_JSON), index).get("weight_map")
            if not isinstance(placed, dict) or not all(isinstance(file, str) for file in placed.values()):
                raise RecordError(f"{index}: weight_map is no object of file names")
            files = {file for name, file in placed.items() if name.endswith(names)}
        for file in sorted(files):
            if os.path.basename(file) != file or file in ("", ".", "..") or "\0" in file:
                raise RecordError(f"{index} names a file outside of its folder: {file}")
            where = os.path.join(self.path, file)
            for name in _opened(where).keys():
                if name.endswith(names):
                    return where, name
        raise RecordError(f"{self.path}: there is no tensor {' or '.join(names)}")

    def _weight(self):
        where, name = self._where
        if self._slice is None:
            self._slice = _opened(where).get_slice(name)
        return self._slice

    def __getstate__(self):
        return {**self.__dict__, "_slice": None}  # a process that loads data maps the file for itself

    def _block(self, begin, end):
        return self._weight()[begin:end].astype(np.float32).astype(_TYPES.get(self.compute, np.float32)).astype(np.float32)

    def __call__(self, states: Any) -> np.ndarray:
        states = np.ascontiguousarray(states, np.float32)
        if states.ndim != 2 or states.shape[1] != self.n_hidden:
            raise ValueError(f"states {states.shape}, lm_head reads [n, {self.n_hidden}]")
        if self._kept is None and self.n_vocab * self.n_hidden * 4 <= _KEEP_BYTES:
            self._kept = self._block(0, self.n_vocab)
        out = np.empty((len(states), self.n_vocab), np.float32)
        if self._kept is not None:
            np.matmul(states, self._kept.T, out=out)
        else:
            step = max(1, _BLOCK_BYTES // (4 * self.n_hidden))
            for v in range(0, self.n_vocab, step):
                out[:, v : v + step] = states @ self._block(v, min(v + step, self.n_vocab)).T
        if self.divisor != 1:
            out /= self.divisor
        if self.softcap > 0:
            np.tanh(np.divide(out, self.softcap, out=out), out=out)
            out *= self.softcap
        if self.n_valid:
            out[:, self.n_valid :] = -np.inf
        return out


class FullRun(Run):
    """A hidden run seen as one of mode full: logits, and what follows from them, are made when asked for."""

    def __init__(self, path: str | os.PathLike[str], model: str | os.PathLike[str], n_valid: int | None = None,
                 verify: bool = True, partial: bool = False) -> None:
        super().__init__(path, verify, partial)
        if self.mode != "hidden":
            raise RecordError(f"{self.path} was recorded in mode {self.mode}: lm_head is for mode hidden")
        identity = self.manifest["identity"]
        self.head = LmHead(model, identity.get("model.compute", "f32"), n_valid)
        want = identity.get("model.config_hash") if verify else None
        have = want and hash_hex(self.head.config_bytes)
        if have != want:
            raise RecordError(f"the states are not of this model:\n  {self.head.path}/config.json: {have}\n"
                              f"  {self.path}: {want}")
        if self.head.n_hidden != self.capture.get("n_hidden", self.head.n_hidden):
            raise RecordError(f"{self.head.path}: lm_head reads states of {self.head.n_hidden} numbers, those of {self.path} "
                              f"have {self.capture['n_hidden']}")
        if self.head.n_vocab < self.vocab_size:
            raise RecordError(f"{self.head.path}: an lm_head of {self.head.n_vocab} tokens, the run has {self.vocab_size}")
        self.mode = "full"

    def dense_rows(self, i: int, begin: int, end: int) -> np.ndarray:
        return self.head(super().dense_rows(i, begin, end))[:, : self.vocab_size]

    def sample(self, i: int, dense: bool = True) -> dict[str, Any]:
        record = super().sample(i, dense=False)
        record["temperatures"] = ()
        if dense:
            logits = self.dense_rows(i, 0, len(record["row_position"]))
            record.update(logits=logits, **derived(record, logits))
        return record


def derived(record, logits):
    """What mode full records beside the logits."""
    logp = log_softmax(logits)
    rows = np.arange(len(logp))
    targets = record["input_ids"][record["row_position"] + 1]
    at = logp[rows, targets] if len(rows) else np.zeros(0, np.float32)
    ids = np.arange(logp.shape[1])
    before = (logp > at[:, None]) | ((logp == at[:, None]) & (ids < targets[:, None]))
    finite = np.where(np.isfinite(logp), logp, 0).astype(np.float64)
    with np.errstate(invalid="ignore"):
        lse = np.nanmax(np.where(np.isfinite(logp), logits - logp, np.nan), axis=1, initial=-np.inf)
    return {
        "logsumexp": lse.astype(np.float32),
        "tail_mass": np.zeros(len(logp), np.float32),
        "target_logprob": at.astype(np.float32),
        "target_rank": before.sum(axis=1).astype(np.int32),
        "entropy": -(np.exp(logp.astype(np.float64)) * finite).sum(axis=1).astype(np.float32),
    }


def write_logits(run, out, dtype="f32", quiet=False, student=None):
    """Writes the logits of a FullRun, a shard for a shard, into the new folder `out`; the number of rows.

    student, a tdgen.student.Student with fewer ids: only its columns, and `logsumexp` F32 [R] over all of the
    teacher's, so that exp(logits - logsumexp) are the teacher's probabilities and what is missing to 1 was cut.
    """
    from .export import provenance
    from .student import tokens_of
    from .files import Target, progress

    names = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
    keep = ("sample_offsets", "sample_index", "sample_start", "row_offsets", "input_ids", "row_position", "loss_mask",
            "sample_status")
    bar, n_rows = progress(len(run), quiet), 0
    v = min(run.vocab_size, student.n) if student else run.vocab_size
    with Target(out, folder=True) as target:
        for k in range(len(run.shards)):
            shard = run.shard(k)
            rows = shard["row_offsets"]
            tensors, at = {}, 0
            for name in keep:
                x = shard[name]
                tensors[name] = (shard.dtypes[name], x.shape, x)
            header = {"__metadata__": {"tdgen": json.dumps(provenance(run, "logits", {"dtype": dtype, "student": student})),
                                       "shard": str(run.shards[k]["shard"])}}
            tensors["logits"] = (names[dtype], (int(rows[-1]), v), None)
            if v < run.vocab_size:
                tensors["logsumexp"] = ("F32", (int(rows[-1]),), np.zeros(int(rows[-1]), np.float32))
            # The wider types first, so that every tensor is aligned.
            order = sorted(tensors, key=lambda n: -_SIZES[tensors[n][0]])
            for name in order:
                kind, shape, _ = tensors[name]
                end = at + _SIZES[kind] * int(np.prod(shape, dtype=np.int64))
                header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, end]}
                at = end
            text = json.dumps(header).encode()
            text += b" " * (-(len(text) + 8) % 64)
            with open(os.path.join(target.path, f"shard-{run.shards[k]['shard']:06d}.safetensors"), "wb") as f:
                f.write(len(text).to_bytes(8, "little") + text)
                for name in order:
                    if name != "logits":
                        if name == "logsumexp":
                            place = f.tell()  # known when the logits are
                        f.write(np.ascontiguousarray(tensors[name][2]).tobytes())
                        continue
                    step = max(1, _BLOCK_BYTES // (4 * run.vocab_size))
                    for j in range(len(rows) - 1):
                        n, i = int(rows[j + 1] - rows[j]), run.first_sample(k) + j
                        record = Run.sample(run, i, dense=False) if student else None
                        if student:
                            tokens_of(student, record)
                        for r in range(0, n, step):
                            logits = run.dense_rows(i, r, min(r + step, n))
                            if v < run.vocab_size:
                                lse = _cut(logits, student, record, r, v)
                                tensors["logsumexp"][2][int(rows[j]) + r :][: len(lse)] = lse
                            f.write(logits[:, :v].astype(_TYPES[dtype]).tobytes())
                        n_rows += n
                        bar.update()
                if "logsumexp" in tensors:
                    f.seek(place)
                    f.write(tensors["logsumexp"][2].tobytes())
        bar.close()
        target.commit()
    return n_rows


def _cut(logits, student, record, first, v):
    """Counts what a student of v ids loses in these rows of a record; their log sum exp over all ids."""
    logp = log_softmax(logits)
    beyond = np.exp(logp[:, v:], dtype=np.float64)
    rows = dict(record, row_position=record["row_position"][first : first + len(logits)])
    student.lose(rows, beyond.sum(axis=1), logits.shape[1], np.count_nonzero(beyond))
    with np.errstate(invalid="ignore"):
        return np.nanmax(np.where(np.isfinite(logp), logits - logp, np.nan), axis=1)


_SIZES = {"I64": 8, "I32": 4, "F32": 4, "F16": 2, "BF16": 2, "U8": 1}
