"""Reads what tdgen writes: every capture mode, with NumPy, ml_dtypes and xxhash alone.

    import tdgen

    run = tdgen.open("out/demo")
    print(len(run), run.capture["mode"])
    for record in run:
        ids, probs = tdgen.to_targets(record, temperature=2.0)

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

from __future__ import annotations

import bisect
import operator
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np

from .extent import Extent, ranges
from .shard import SHARD_NAME, Shard, check_shard
from .trust import RecordError, canonical, hash_hex, number, parse_json, read_bounded, whole

__all__ = ["Run", "Samples", "Record", "MODES"]

Record = dict[str, Any]
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


class Run(Sequence[Record]):
    """The output folder of a run: a sequence of records in dataset order.

    A folder that is damaged, or was made to do harm, ends in a RecordError: see tdgen.trust. verify=False leaves
    hashes unchecked, nothing else; with it, a shard's bytes are read once when it is first opened.

    A run that is not finished is a RecordError, too, as a student would learn from a part of the data without
    anybody's knowing: partial=True reads what is there. What `complete` says is True, False, or None for a folder
    of an older version, which does not say how much there is to be.

    tokenizer: the teacher's folder or tokenizer.json, for decode() and tokens(); the path in the manifest otherwise.

    Processes (DataLoader workers) may share a Run: each opens the shards for itself. Threads may not.

    Attributes: path, manifest (the dict), capture (its spec by the names of the INI keys), mode, temperatures,
    vocab_size, top_k, always_ids, fingerprint, complete, shards (lines of shards.jsonl).
    """

    path: str
    manifest: dict[str, Any]
    capture: dict[str, Any]
    mode: str
    temperatures: tuple[float, ...]
    vocab_size: int
    top_k: int
    always_ids: np.ndarray
    fingerprint: str
    extent: Extent | None
    complete: bool | None
    shards: list[dict[str, Any]]

    def __init__(self, path: str | os.PathLike[str], verify: bool = True, partial: bool = False,
                 tokenizer: str | os.PathLike[str] | None = None) -> None:
        self.path, self.verify = os.fspath(path), verify
        self._tokenizer_path = None if tokenizer is None else os.fspath(tokenizer)
        self._tokenizer: Any = None
        name = os.path.join(self.path, "manifest.json")
        if not os.path.lexists(name):
            raise RecordError(_no_run(self.path))
        self.manifest = parse_json(read_bounded(name, _MAX_MANIFEST, self.path), name)
        try:
            self._read_manifest(name)
        except RecordError:
            raise
        except (ValueError, TypeError, KeyError, OverflowError) as e:
            raise RecordError(f"{name}: {e}") from None
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._proven: dict[int, Any] = {}  # what was read whole and agreed: it need not be read again
        self.shards = self._read_index(partial)
        self.complete = self._check_extent(partial)
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
        self.extent = Extent.of(m)
        # Where the manifest does not say (schema 1), the shards do.
        self._has_ids = None if m["schema"] == 1 else identity.get("data.id_field") is not None

    def _check_extent(self, partial: bool) -> bool | None:
        if self.extent is None:
            return None
        missing = self.extent.missing(self.shards)
        if missing and not partial:
            raise RecordError(f"{self.path} is not finished: {missing}. Run the same command again to finish it; partial=True "
                              "(--partial) reads what is there")
        return missing is None

    def _read_index(self, partial):
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
        there = set(names)
        lost = [k for k, e in found.items() if e["file"] not in there]
        if lost and not partial and self.extent is None:
            raise RecordError(f"{self.path}: shards {ranges(sorted(lost))} of shards.jsonl are not there. Run the same command "
                              "again to make them; partial=True (--partial) reads what is there")
        for k in lost:
            del found[k]
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

    def __len__(self) -> int:
        return self._first[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_tokenizer": None}

    def __iter__(self) -> Iterator[Record]:
        for i in range(len(self)):
            yield self.sample(i)

    @overload
    def __getitem__(self, i: int) -> Record: ...
    @overload
    def __getitem__(self, i: slice) -> Samples: ...
    def __getitem__(self, i):
        """Record i, or for a slice a Samples, which reads its records when they are asked for."""
        return Samples(self, range(len(self))[i]) if isinstance(i, slice) else self.sample(operator.index(i))

    @property
    def n_positions(self) -> int:
        """Recorded positions of all samples."""
        return sum(entry["rows"] for entry in self.shards)

    def __repr__(self) -> str:
        from .display import one_line

        return one_line(self)

    def _repr_html_(self) -> str:
        from .display import html

        return html(self)

    # ---- text ----

    @property
    def tokenizer(self) -> Any:
        """The teacher's tokenizer (tokenizers.Tokenizer); a RecordError where it is not here or another one."""
        if self._tokenizer is None:
            from .display import load_tokenizer

            self._tokenizer = load_tokenizer(self, self._tokenizer_path)
        return self._tokenizer

    def decode(self, ids: Any) -> str:
        """The text of token ids, special tokens included."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def tokens(self, ids: Any) -> list[str]:
        """The text of each of these tokens by itself; "" for a free place (-1). A token that is a part of a character
        is the replacement character."""
        from .display import token_text

        return [token_text(self.tokenizer, int(i)) for i in ids]

    # ---- into other libraries ----

    def torch_dataset(self, temperature: float = 1.0, tail: str = "bucket", **options: Any) -> Any:
        """See batches.torch_dataset."""
        from .batches import torch_dataset

        return torch_dataset(self, temperature, tail, **options)

    def to_hf(self, folder: str | os.PathLike[str] | None = None) -> Any:
        """The record as a datasets.Dataset, a row a sample, with the columns of `tdgen-export hf`.

        In memory; with `folder`, which must not exist, written there first and mapped from it, for runs of any size.
        """
        from .export import to_hf

        return to_hf(self, folder)

    # ---- samples ----

    def shard(self, k: int) -> Shard:
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

    def first_sample(self, k: int) -> int:
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

    def n_rows(self, i: int) -> int:
        """Recorded positions of sample i, without decoding it."""
        k, j = self._find(i)
        begin, end = self.shard(k)["row_offsets"][j : j + 2]
        return int(end - begin)

    def dense_rows(self, i: int, begin: int, end: int) -> np.ndarray:
        """Rows [begin, end) of sample i's logits or hidden states as float32: modes full and hidden."""
        k, j = self._find(i)
        t = self.shard(k)
        first, last = (int(x) for x in t["row_offsets"][j : j + 2])
        if not 0 <= begin <= end <= last - first:
            raise IndexError(f"rows {begin} to {end} of {last - first}")
        return t.floats(self._dense, slice(first + begin, first + end))

    def sample(self, i: int, dense: bool = True) -> Record:
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


class Samples(Sequence[Record]):
    """Some samples of a Run, as run[10:20] gives them; records are read when they are asked for."""

    def __init__(self, run: Run, places: range) -> None:
        self.run, self.places = run, places

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Record]:
        return map(self.run.sample, self.places)

    @overload
    def __getitem__(self, i: int) -> Record: ...
    @overload
    def __getitem__(self, i: slice) -> Samples: ...
    def __getitem__(self, i):
        return Samples(self.run, self.places[i]) if isinstance(i, slice) else self.run.sample(self.places[i])

    def __repr__(self) -> str:
        return f"<{len(self)} samples of {self.run!r}>"


def _no_run(path: str) -> str:
    """What a folder without a manifest is, as far as that can be seen."""
    for name, how in (("tdgen_export.json", "datasets.load_from_disk"), ("_tdgen_export.json", "datasets.load_dataset")):
        if os.path.exists(os.path.join(path, name)):
            return f"{path} is what tdgen-export made of a run: load it with {how}, or give the run's own folder"
    return f"{path} holds no manifest.json: it is no output folder of tdgen"
