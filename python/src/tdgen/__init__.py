"""Reads what tdgen writes, and hands it to whatever trains a student.

    import tdgen

    run = tdgen.open("out")                                  # a sequence of records
    ids, probs = tdgen.to_targets(run[0])                    # the teacher's distribution, NumPy
    loss = tdgen.kd_loss(logits, run[0], temperature=2.0)    # PyTorch
    data = run.torch_dataset(temperature=2.0)                # ... in batches: DataLoader(collate_fn=tdgen.Collator())

docs/training.md of tdgen has the whole of it. Nothing heavy is loaded before it is used.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .batches import Collator, DistillationDataset, collate, torch_dataset
    from .losses import kd_loss
    from .reader import MODES, Record, Run, Samples
    from .shard import Shard
    from .targets import TAILS, check_tokens, cut_vocab, to_dense, to_logprobs, to_targets
    from .trainers import KDMixin
    from .trust import RecordError

_MODULES = {
    "batches": ("Collator", "DistillationDataset", "collate", "torch_dataset"),
    "losses": ("kd_loss",),
    "reader": ("MODES", "Record", "Run", "Samples"),
    "shard": ("Shard",),
    "targets": ("TAILS", "check_tokens", "cut_vocab", "to_dense", "to_logprobs", "to_targets"),
    "trainers": ("KDMixin",),
    "trust": ("RecordError",),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [  # noqa: F822
    "open", "Collator", "DistillationDataset", "KDMixin", "MODES", "Record", "RecordError", "Run", "Samples", "Shard", "TAILS",
    "check_tokens", "collate", "cut_vocab", "kd_loss", "to_dense", "to_logprobs", "to_targets", "torch_dataset",
]


def open(path: str | os.PathLike[str], verify: bool = True, partial: bool = False,  # noqa: A001
         tokenizer: str | os.PathLike[str] | None = None) -> Run:
    """The run in an output folder of tdgen; RecordError where it is damaged or, without partial=True, not finished.

    verify=False leaves hashes unchecked. tokenizer: the teacher's folder or tokenizer.json, for run.decode().
    """
    from .reader import Run

    return Run(path, verify, partial, tokenizer)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'tdgen' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
