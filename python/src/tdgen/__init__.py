"""Reads what tdgen writes, and hands it to whatever trains a student.

    import tdgen

    run = tdgen.open("out")
    for record in run:
        ids, probs = tdgen.to_targets(record)

See docs/training.md of tdgen. Nothing heavy is loaded before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .reader import Run, bf16_to_f32, check_tokens, collate, to_dense, to_logprobs, to_targets, torch_dataset
    from .trust import RecordError

_WHERE = {
    "Run": "reader", "bf16_to_f32": "reader", "check_tokens": "reader", "collate": "reader", "to_dense": "reader",
    "to_logprobs": "reader", "to_targets": "reader", "torch_dataset": "reader", "RecordError": "trust",
}

__all__ = ["open", *sorted(_WHERE)]


def open(path: Any, verify: bool = True) -> "Run":  # noqa: A001
    """The run in an output folder of tdgen; see reader.Run."""
    from .reader import Run

    return Run(path, verify)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module tdgen has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> "list[str]":
    return sorted([*globals(), *_WHERE])
