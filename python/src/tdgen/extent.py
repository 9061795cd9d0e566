"""Is a folder's run finished? The manifest's `extent` says which rows the run has to cover, the shards which it has.

A folder whose manifest has no extent was made by an older version: nothing is known of it, and it is read.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, NamedTuple

from .trust import whole

_LOOKED_AT = 10_000  # shards that are named as missing, at most: the number comes from a file


class Extent(NamedTuple):
    """n_rows: of the whole run, None until the dataset's end was reached; n_rows_at_least: known to exist."""

    n_rows: int | None
    n_rows_at_least: int
    shard_samples: int
    worker_id: int
    total_workers: int

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> Extent | None:
        """The extent of a manifest, None where it has none; ValueError where it is no extent."""
        found = manifest.get("extent")
        if found is None:
            return None
        if not isinstance(found, dict):
            raise ValueError("extent is no object")
        n = found.get("n_rows")
        total = whole(found.get("total_workers"), 1, 2**31)
        return cls(None if n is None else whole(n, 0, 2**62), whole(found.get("n_rows_at_least"), 0, 2**62),
                   whole(found.get("shard_samples"), 1, 2**62), whole(found.get("worker_id"), 0, total - 1), total)

    def share(self) -> range:
        """Numbers of the shards that this worker is to write, once n_rows is known."""
        return range(self.worker_id, -(-(self.n_rows or 0) // self.shard_samples), self.total_workers)

    def rows_of(self, shard: int) -> tuple[int, int]:
        """Dataset rows [begin, end) of a shard."""
        begin = shard * self.shard_samples
        return begin, begin + self.shard_samples if self.n_rows is None else min(begin + self.shard_samples, self.n_rows)

    def missing(self, entries: list[dict[str, Any]]) -> str | None:
        """What is not there, in words; None where all is. entries: lines of shards.jsonl whose files are there."""
        rows = {e["shard"]: (e["row_begin"], e["row_end"]) for e in entries if "row_end" in e}
        n_done = sum(end - begin for begin, end in rows.values())
        if self.n_rows is None:
            return f"{n_done:,} rows are there, of at least {self.n_rows_at_least:,}: the dataset's end was not reached"
        wanted = self.share()
        good = {k for k, at in rows.items() if k in wanted and at == self.rows_of(k)}
        if len(good) == len(wanted):
            return None
        n_rows = len(wanted) * self.shard_samples
        if wanted[-1] == (self.n_rows - 1) // self.shard_samples:  # the last shard may be a short one
            n_rows -= -self.n_rows % self.shard_samples
        n_good = sum(end - begin for begin, end in map(self.rows_of, good))
        lacking = list(islice((k for k in wanted if k not in good), _LOOKED_AT))
        return (f"{100 * n_good // n_rows}% of {n_rows:,} rows" + (" (this worker's)" if self.total_workers > 1 else "")
                + f" are there; missing: shard{'s' if len(lacking) > 1 else ''} {ranges(lacking)}"
                + (", ..." if len(lacking) == _LOOKED_AT else ""))


def ranges(numbers: list[int]) -> str:
    """0 to 3, 7, 9 to 10"""
    out: list[list[int]] = []
    for n in numbers:
        if out and out[-1][1] == n - 1:
            out[-1][1] = n
        else:
            out.append([n, n])
    return ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in out[:8]) + (", ..." if len(out) > 8 else "")
