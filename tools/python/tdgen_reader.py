"""Reads what tdgen writes, with NumPy and the stock safetensors package.

    from tdgen_reader import Run, to_target

    run = Run("out/demo")
    print(len(run), run.manifest["identity"]["capture.top_k"])
    for record in run:
        ids, probs = to_target(record, temperature=2.0)

A record is a dict of NumPy arrays for one sample of L tokens and R recorded positions:

    input_ids       int32 [L]     all tokens of the sample
    loss_mask       uint8 [L]     1 where the token is a training target
    row_position    int32 [R]     position t: the row predicts token t + 1
    topk_ids        int32 [R, K]  most probable tokens, most probable first; -1 in free places
    topk_logprobs   float32 [R, K]  natural log-probabilities over the full vocabulary at T = 1
    tail_mass       float32 [R]   probability of all tokens outside topk_ids
    logsumexp       float32 [R]   logit = log-probability + logsumexp
    logsumexp_t     float32 [R, nT]  log sum exp of logits / T, for each of `temperatures`
    target_logprob, target_rank, entropy   [R]
    index, start    dataset row of the sample, and its first token within that row
    temperatures, vocab_size    from the manifest
    skipped         True when the sample could not be computed (R is then 0)
    id              the dataset's own id of the row, where data.id_field was set

Shards are opened when first needed and their arrays are views of the mapped file where the
safetensors package allows it, so a Run over many gigabytes starts at once.
"""

import bisect
import json
import os
from collections import OrderedDict

import numpy as np
from safetensors import safe_open

__all__ = ["Run", "to_target", "to_dense", "torch_dataset", "collate"]

_OPEN_SHARDS = 4  # shards kept in memory by one Run


class Run:
    """The output folder of a run: a sequence of records in dataset order.

    Only finished shards are seen. Processes (DataLoader workers) may share a Run: each opens the
    shards for itself.
    """

    def __init__(self, path):
        self.path = os.fspath(path)
        with open(os.path.join(self.path, "manifest.json"), encoding="utf-8") as f:
            self.manifest = json.load(f)
        if self.manifest["schema"] != 1:
            raise ValueError(f"{self.path}: schema {self.manifest['schema']}, this reader knows 1")
        identity = self.manifest["identity"]
        self.temperatures = tuple(float(t) for t in identity["capture.temperatures"])
        self.vocab_size = int(identity["model.n_vocab"])
        self.top_k = int(identity["capture.top_k"])
        with open(os.path.join(self.path, "shards.jsonl"), encoding="utf-8") as f:
            # A last line without its newline is being written, or was torn by a crash.
            lines = [json.loads(line) for line in f if line.endswith("\n")]
        self.shards = sorted(lines, key=lambda e: e["shard"])
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
        """All tensors of the k-th finished shard (in folder order), as a dict of arrays."""
        if k in self._open:
            self._open.move_to_end(k)
            return self._open[k]
        path = os.path.join(self.path, self.shards[k]["file"])
        with safe_open(path, framework="numpy") as f:
            if f.metadata()["fingerprint"] != self.manifest["fingerprint"]:
                raise ValueError(f"{path} belongs to another run than manifest.json")
            tensors = {name: f.get_tensor(name) for name in f.keys()}
        self._open[k] = tensors
        while len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        return tensors

    def sample(self, i):
        """Record i, 0 <= i < len(run); negative counts from the end."""
        if i < 0:
            i += len(self)
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        k = bisect.bisect_right(self._first, i) - 1
        t, j = self.shard(k), i - self._first[k]
        tokens = slice(*t["sample_offsets"][j : j + 2])
        rows = slice(*t["row_offsets"][j : j + 2])
        record = {
            "index": int(t["sample_index"][j]),
            "start": int(t["sample_start"][j]),
            "skipped": bool(t["sample_status"][j]),
            "temperatures": self.temperatures,
            "vocab_size": self.vocab_size,
            "input_ids": t["input_ids"][tokens],
            "loss_mask": t["loss_mask"][tokens],
            "topk_logprobs": t["topk_logprobs"][rows].astype(np.float32),
        }
        for name in ("row_position", "topk_ids", "logsumexp", "tail_mass", "target_logprob",
                     "target_rank", "entropy"):
            record[name] = t[name][rows]
        if "logsumexp_t" in t:
            record["logsumexp_t"] = t["logsumexp_t"][rows]
        if "sample_id_bytes" in t:
            ids = slice(*t["sample_id_offsets"][j : j + 2])
            record["id"] = t["sample_id_bytes"][ids].tobytes().decode("utf-8", "replace")
        return record


def to_target(record, temperature=1.0, tail="bucket"):
    """The teacher's distribution over its recorded candidates at a temperature: (ids, probs).

    ids [R, K] as recorded, probs float32 [R, K]; with tail="bucket" probs is [R, K + 1] and its
    last column is the probability of everything that is not recorded.

    tail says what becomes of the probability outside the candidates:
      "bucket"       kept as one more class: rows sum to 1. Compare with the student's probability
                     of the same set, 1 - sum of its probabilities of ids. No bias, and nothing is
                     claimed about what lies in the tail.
      "ignore"       left out: rows sum to less than 1. The loss is then the sum over the candidates
                     of the true cross entropy.
      "renormalise"  candidates scaled up to sum to 1: simple, but makes the student more certain
                     than the teacher; with a small top_k or a high temperature this is a real bias.

    temperature = 1 is exact, and so is each of capture.temperatures: the recorded logsumexp_t is
    the normaliser over the full vocabulary. At another temperature the normaliser cannot be known
    from the candidates, so "bucket" and "ignore" refuse it; "renormalise" needs none and takes any.
    """
    if tail not in ("bucket", "ignore", "renormalise"):
        raise ValueError(f'tail={tail!r}, expected "bucket", "ignore" or "renormalise"')
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}, expected a number above 0")
    ids = record["topk_ids"]
    logprobs = record["topk_logprobs"].astype(np.float64)
    scaled = logprobs / temperature
    if tail == "renormalise":
        p = np.exp(scaled - scaled.max(axis=1, keepdims=True, initial=-np.inf))
        return ids, (p / p.sum(axis=1, keepdims=True)).astype(np.float32)
    if temperature != 1:
        match = [i for i, t in enumerate(record["temperatures"]) if np.isclose(t, temperature)]
        if not match:
            raise ValueError(
                f"temperature {temperature} was not recorded (capture.temperatures = "
                f'{list(record["temperatures"])}): only tail="renormalise" can do without')
        # logit / T - lse_T, with logit = logprob + logsumexp
        lse = record["logsumexp"].astype(np.float64) / temperature
        scaled += (lse - record["logsumexp_t"][:, match[0]])[:, None]
    p = np.exp(scaled)
    if tail == "ignore":
        return ids, p.astype(np.float32)
    if temperature == 1:  # summed from its own terms: exact even where it is tiny
        rest = record["tail_mass"].astype(np.float64)
    else:
        rest = np.clip(1 - p.sum(axis=1), 0, 1)
    return ids, np.concatenate([p, rest[:, None]], axis=1).astype(np.float32)


def to_dense(record, temperature=1.0, tail="spread"):
    """The distribution as float32 [R, V], for small vocabularies and for tests.

    tail="spread" divides what is not recorded evenly over the tokens that are not recorded, so that
    rows sum to 1; "zero" leaves these at 0.
    """
    if tail not in ("spread", "zero"):
        raise ValueError(f'tail={tail!r}, expected "spread" or "zero"')
    ids, p = to_target(record, temperature, "bucket")
    n, v = ids.shape[0], record["vocab_size"]
    used = ids >= 0
    n_rest = v - used.sum(axis=1)
    fill = np.where(n_rest > 0, p[:, -1] / np.maximum(n_rest, 1), 0) if tail == "spread" else 0
    dense = np.zeros((n, v), np.float32) + np.reshape(np.broadcast_to(fill, n), (n, 1))
    rows = np.broadcast_to(np.arange(n)[:, None], ids.shape)
    dense[rows[used], ids[used]] = p[:, :-1][used]
    return dense.astype(np.float32)


def torch_dataset(path, temperature=1.0, tail="bucket"):
    """A torch.utils.data.Dataset of the samples with recorded positions.

    An item is a dict of tensors: input_ids int64 [L], position int64 [R] (the student's logits at
    these positions are to be compared), ids int64 [R, K], probs float32 as to_target gives them,
    and target int64 [R], the token that follows in the data. Batches: DataLoader(...,
    collate_fn=collate).
    """
    import torch
    from torch.utils.data import Dataset

    class DistillationDataset(Dataset):
        def __init__(self):
            self.run = Run(path)
            self.samples = []
            for k in range(len(self.run.shards)):
                first = self.run._first[k]
                rows = np.diff(self.run.shard(k)["row_offsets"])
                self.samples += [first + int(j) for j in np.flatnonzero(rows)]

        def __len__(self):
            return len(self.samples)

        def __getitem__(self, i):
            record = self.run.sample(self.samples[i])
            ids, probs = to_target(record, temperature, tail)
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
    logits[row_sample, position] lines up with ids and probs."""
    import torch

    longest = max(len(x["input_ids"]) for x in items)
    input_ids = torch.full((len(items), longest), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(items), longest), dtype=torch.int64)
    for b, x in enumerate(items):
        input_ids[b, : len(x["input_ids"])] = x["input_ids"]
        attention_mask[b, : len(x["input_ids"])] = 1
    batch = {key: torch.cat([x[key] for x in items]) for key in
             ("position", "ids", "probs", "target")}
    row_sample = [torch.full((len(x["position"]),), b, dtype=torch.int64)
                  for b, x in enumerate(items)]
    batch.update(input_ids=input_ids, attention_mask=attention_mask,
                 row_sample=torch.cat(row_sample))
    return batch
