"""A run as batches for a PyTorch training loop (the extra [torch])."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import pad
from torch.utils.data import Dataset

from .reader import Run
from .targets import check_tokens, to_targets

__all__ = ["DistillationDataset", "Collator", "collate", "torch_dataset"]

if TYPE_CHECKING:
    _Base = Dataset[dict[str, Any]]
else:
    _Base = Dataset


class DistillationDataset(_Base):
    """The samples of a run that have recorded positions; see torch_dataset."""

    def __init__(self, run: Run, temperature: float = 1.0, tail: str = "bucket", **options: Any) -> None:
        self.run, self.temperature, self.tail, self.options = run, float(temperature), tail, options
        self.samples: list[int] = []
        for k in range(len(run.shards)):
            rows = np.diff(run.shard(k)["row_offsets"])
            self.samples += [run.first_sample(k) + int(j) for j in np.flatnonzero(rows)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> dict[str, Any]:
        record = self.run.sample(self.samples[i])
        ids, probs = to_targets(record, self.temperature, self.tail, **self.options)
        check_tokens(record, self.options.get("student_vocab"))
        tokens = torch.from_numpy(record["input_ids"].astype(np.int64))
        position = torch.from_numpy(record["row_position"].astype(np.int64))
        if ids.shape[1] and ids.strides[0] == 0:  # all ids in order: one row of them in memory
            ids_of = torch.arange(ids.shape[1]).expand(len(ids), -1)
        else:
            ids_of = torch.from_numpy(ids.astype(np.int64))
        return {
            "input_ids": tokens,
            "labels": torch.where(torch.from_numpy(record["loss_mask"] == 1), tokens, -100),
            "position": position,
            "ids": ids_of,
            "probs": torch.from_numpy(probs),
            "target": tokens[position + 1],
            "temperature": self.temperature,
        }

    def to_hf(self) -> Any:
        """The same as a datasets.Dataset, for trainers that take no other (TRL's): one column, `sample`, whose rows become
        the items when they are read. Nothing is copied."""
        import datasets

        return datasets.Dataset.from_dict({"sample": list(range(len(self)))}).with_transform(_Items(self))


class _Items:
    """The transform of to_hf: it goes to the processes that load data, so it is no closure."""

    def __init__(self, data: DistillationDataset) -> None:
        self.data = data

    def __call__(self, rows: dict[str, list[int]]) -> dict[str, list[Any]]:
        items = [self.data[i] for i in rows["sample"]]
        return {key: [item[key] for item in items] for key in items[0]}


def torch_dataset(run: Run | str | os.PathLike[str], temperature: float = 1.0, tail: str = "bucket", verify: bool = True,
                  partial: bool = False, **options: Any) -> DistillationDataset:
    """A torch.utils.data.Dataset of the samples with recorded positions.

    An item is a dict: input_ids int64 [L]; labels int64 [L], the tokens that are training targets, -100 elsewhere (not
    shifted, as transformers has them); position int64 [R] (the student's logits at these positions are to be
    compared); ids int64 [R, K], probs float32 as to_targets gives them (`options` go there); target int64 [R], the
    token that follows in the data; temperature. Batches: DataLoader(..., collate_fn=Collator()).

    run: a Run, or a folder, for which verify and partial are those of tdgen.open.
    """
    return DistillationDataset(run if isinstance(run, Run) else Run(run, verify, partial), temperature, tail, **options)


def collate(items: Sequence[dict[str, Any]], pad_id: int = 0) -> dict[str, Any]:
    """Items of torch_dataset as one batch of B samples: input_ids, labels and attention_mask [B, L], padded on the
    right, and the rows of all samples one after the other: position, target, ids, probs, and row_sample saying
    whose they are, so that logits[row_sample, position] lines up with ids and probs. Where samples have sets of different
    width, the narrower get free places (ids -1, probability 0) before the bucket."""
    longest = max(len(x["input_ids"]) for x in items)
    widest = max(x["ids"].shape[1] for x in items)
    input_ids = torch.full((len(items), longest), pad_id, dtype=torch.int64)
    labels = torch.full((len(items), longest), -100, dtype=torch.int64)
    attention_mask = torch.zeros((len(items), longest), dtype=torch.int64)
    ids, probs = [], []
    for b, x in enumerate(items):
        n, k = len(x["input_ids"]), x["ids"].shape[1]
        input_ids[b, :n], labels[b, :n], attention_mask[b, :n] = x["input_ids"], x["labels"], 1
        ids.append(x["ids"] if k == widest else pad(x["ids"], (0, widest - k), value=-1))
        parts = [pad(x["probs"][:, :k], (0, widest - k)), x["probs"][:, k:]]
        probs.append(x["probs"] if k == widest else torch.cat(parts, dim=1))
    dense = all(i.stride(0) == 0 for i in ids) and widest > 0
    batch = {key: torch.cat([x[key] for x in items]) for key in ("position", "target")}
    batch.update(
        input_ids=input_ids, labels=labels, attention_mask=attention_mask, probs=torch.cat(probs),
        ids=ids[0][:1].expand(sum(map(len, ids)), -1) if dense else torch.cat(ids),
        row_sample=torch.cat([torch.full((len(x["position"]),), b, dtype=torch.int64) for b, x in enumerate(items)]),
        temperature=items[0]["temperature"])
    return batch


class Collator:
    """collate() for DataLoader(collate_fn=...) and Trainer(data_collator=...). pad_id: what padding holds, which
    attention_mask and labels leave out."""

    def __init__(self, pad_id: int = 0) -> None:
        self.pad_id = pad_id

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return collate(items, self.pad_id)
