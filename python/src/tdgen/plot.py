"""Pictures of one or several runs (the extra [plot]): what the recorded set covers, how sure the teacher is, how fast it went.

    import tdgen.plot

    tdgen.plot.figure(["out/a", "out/b"]).savefig("runs.svg")

`tdgen-plot` is the same from a shell. Panels:

    mass      probability that the k most probable tokens hold, against k: mean over positions; of a single run with a band
              from the 5th to the 95th percentile
    kl        KL divergence of the k most probable tokens, scaled up to sum to 1, from the whole teacher: -log of that
              probability, mean over positions
    entropy   of the teacher at each position, in nats: how its positions spread
    speed     tokens per second over the run's time, of all its devices (timeline.jsonl)
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .display import printable
from .reader import Run
from .targets import _pad, log_softmax
from .trust import RecordError, number, parse_json, read_bounded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PANELS", "Summary", "figure"]

PANELS = ("mass", "kl", "entropy", "speed")
_ROWS = 100_000  # positions of a run that are looked at, spread over its shards
_FULL_BYTES = 1 << 28  # of logits that are looked at
_MOST_K = 4096
_MAX_TIMELINE = 1 << 28
_SPEED_BINS = 120
_LEAST_KL = 1e-5  # below, float32 sums say nothing
# Okabe and Ito's colours: told apart by colour-blind readers, too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", "-.", ":")
_STYLE = {"font.size": 10, "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
          "grid.alpha": 0.25, "grid.linewidth": 0.6, "figure.facecolor": "white", "svg.fonttype": "none"}


class Summary:
    """What the panels need of a run, from at most `rows` of its positions.

    ks, mass [n, len(ks)] (float32; None where a run records no most probable set), entropy [n] (None for mode hidden),
    speed (seconds, tokens per second), None without a timeline.
    """

    def __init__(self, run: Run | str | os.PathLike[str], name: str | None = None, rows: int = _ROWS,
                 verify: bool = True, partial: bool = False) -> None:
        self.run = run if isinstance(run, Run) else Run(run, verify, partial)
        self.name = printable(name or os.path.basename(os.path.normpath(self.run.path)))
        self.ks: np.ndarray | None = None
        self.mass: np.ndarray | None = None
        self.entropy: np.ndarray | None = None
        if self.run.mode == "full":
            rows = min(rows, max(64, _FULL_BYTES // (4 * self.run.vocab_size)))
        masses, entropies = [], []
        total = self.run.n_positions
        for k, entry in enumerate(self.run.shards):
            n = entry["rows"]
            take = min(n, -(-n * rows // max(total, 1)))
            if take == 0 or self.run.mode == "hidden":
                continue
            chosen = np.linspace(0, n - 1, take).astype(np.int64)
            shard = self.run.shard(k)
            entropies.append(shard["entropy"][chosen])
            found = self._probabilities(shard, chosen)
            if found is not None:
                masses.append(np.cumsum(found, axis=1, dtype=np.float64))
        if entropies:
            self.entropy = np.concatenate(entropies)
        if masses:
            longest = max(m.shape[1] for m in masses)
            ks = np.unique(np.geomspace(1, longest, 200).round().astype(np.int64)) if longest > 200 else np.arange(1, longest + 1)
            # A row with fewer holds no more than it has.
            self.ks = ks
            self.mass = np.concatenate([m[:, np.minimum(ks, m.shape[1]) - 1] for m in masses]).clip(0, 1).astype(np.float32)
        self.speed = _speed(self.run.path)

    def _probabilities(self, shard: Any, rows: np.ndarray) -> np.ndarray | None:
        """float32 [n, K] of the most probable tokens, the largest first; 0 in free places."""
        mode = self.run.mode
        if mode in ("topk", "topk+sample"):
            return np.exp(shard.logprobs("topk_logprobs", rows, rows))
        if mode == "topp":
            begin, end = shard["topp_offsets"][rows], shard["topp_offsets"][rows + 1]
            counts = end - begin
            ends = np.concatenate([[0], np.cumsum(counts)])
            row_of = np.repeat(np.arange(len(rows)), counts)
            entries = np.repeat(begin - ends[:-1], counts) + np.arange(ends[-1])
            return np.exp(_pad(ends, shard.logprobs("topp_logprobs", entries, rows, row_of), -np.inf))
        if mode == "full":
            logp = log_softmax(shard.floats("logits", rows))
            k = min(_MOST_K, logp.shape[1])
            return np.exp(-np.sort(-np.partition(logp, logp.shape[1] - k, axis=1)[:, -k:], axis=1))
        return None


def _speed(path: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(seconds since the start, tokens per second) of timeline.jsonl; it is no part of the record: what cannot be read is
    left out."""
    name = os.path.join(path, "timeline.jsonl")
    parts: list[tuple[float, float, float]] = []
    try:
        for line in read_bounded(name, _MAX_TIMELINE, path).splitlines():
            found = parse_json(line, name)
            for group in found["groups"]:
                for begin, end, _, _, _, tokens in group["segments"]:
                    at = number(found["started"])
                    parts.append((at + number(begin), at + number(end), number(tokens)))
    except (RecordError, KeyError, TypeError, ValueError):
        pass
    parts = [p for p in parts if p[1] > p[0]]
    if not parts:
        return None
    begin, end, tokens = np.array(parts).T
    begin, end = begin - begin.min(), end - begin.min()
    edges = np.linspace(0, end.max(), min(_SPEED_BINS, max(12, len(parts))) + 1)
    done = np.zeros(len(edges))  # tokens up to each edge, a segment's spread evenly over its time
    for b, e, n in zip(begin, end, tokens):
        done += n * np.clip((edges - b) / (e - b), 0, 1)
    return edges, np.diff(done) / np.diff(edges)


# ---- panels ----


def _nothing(ax: Axes, why: str) -> None:
    ax.text(0.5, 0.5, why, ha="center", va="center", transform=ax.transAxes, color="#666666", wrap=True)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)


def _style(i: int) -> dict[str, Any]:
    """Thinner from run to run, so that curves which coincide are all seen."""
    return {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _DASHES[i // len(_COLOURS) % len(_DASHES)],
            "linewidth": max(1.2, 2.2 - 0.4 * i)}


def _k_axis(ax: Axes, longest: int) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    ax.set_xscale("log", base=2)
    ticks = [2**i for i in range(0, 32, 1 + (longest > 1024)) if 2**i <= longest]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    ax.set_xlim(1, max(longest, 2))
    ax.set_xlabel("k, most probable tokens")


def _panel_mass(ax: Axes, runs: Sequence[Summary]) -> None:
    ax.set_title("Probability covered by the top k")
    shown = [(i, s) for i, s in enumerate(runs) if s.mass is not None and s.ks is not None]
    if not shown:
        return _nothing(ax, "no run records its most probable tokens")
    for i, s in shown:
        if len(shown) == 1:
            low, high = np.percentile(s.mass, (5, 95), axis=0)
            ax.fill_between(s.ks, low, high, color=_style(i)["color"], alpha=0.15, linewidth=0)
        mean = s.mass.mean(axis=0, dtype=np.float64)
        ax.plot(s.ks, mean, label=s.name, **_style(i))
        ax.plot(s.ks[-1], mean[-1], "o", color=_style(i)["color"], markersize=4, clip_on=False)
        ax.annotate(f"{mean[-1]:.1%}", (s.ks[-1], mean[-1]), textcoords="offset points", xytext=(-4, -14 if i % 2 or mean[-1] > 0.93 else 6),
                    ha="right", fontsize=9, color=_style(i)["color"])
    _k_axis(ax, max(int(s.ks[-1]) for _, s in shown))
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    ax.set_ylabel("probability (mean, 5th to 95th percentile)" if len(shown) == 1 else "probability (mean)")


def _kl(mass: np.ndarray | None) -> np.ndarray:
    """Mean over positions of KL(top k, renormalised || teacher), by k."""
    assert mass is not None
    return -np.log(np.maximum(mass, 1e-12)).mean(axis=0, dtype=np.float64)


def _panel_kl(ax: Axes, runs: Sequence[Summary]) -> None:
    ax.set_title("What leaving out the tail costs")
    shown = [(i, s) for i, s in enumerate(runs) if s.mass is not None and s.ks is not None]
    if not shown:
        return _nothing(ax, "no run records its most probable tokens")
    low, high = np.inf, 0.0
    for i, s in shown:
        kl = _kl(s.mass)
        ax.plot(s.ks, np.where(kl < _LEAST_KL, np.nan, kl), label=s.name, **_style(i))
        low, high = min(low, float(kl.min())), max(high, float(kl.max()))
    _k_axis(ax, max(int(s.ks[-1]) for _, s in shown))
    low, high = max(low, _LEAST_KL), max(high, _LEAST_KL)
    ax.set_yscale("log")
    ax.set_ylim(low / 1.3, high * 1.3)
    digits = "25" if high / low < 100 else ""
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    ax.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if f"{y:e}"[0] in digits else "")
    ax.tick_params(axis="y", which="minor", labelsize=10)
    ax.set_ylabel("KL(top k, renormalised || teacher), nats")


def _panel_entropy(ax: Axes, runs: Sequence[Summary]) -> None:
    ax.set_title("Entropy of the teacher")
    shown = [(i, s) for i, s in enumerate(runs) if s.entropy is not None and len(s.entropy)]
    if not shown:
        return _nothing(ax, "no run records entropies (mode hidden)")
    top = max(float(np.percentile(s.entropy, 99.9)) for _, s in shown) or 1.0
    bins = int(np.clip(min(len(s.entropy) for _, s in shown if s.entropy is not None) ** 0.5, 10, 40))
    edges = np.linspace(0, top, bins + 1)
    highest = 0.0
    for i, s in shown:
        share = np.histogram(s.entropy, edges)[0] / len(s.entropy)
        highest = max(highest, float(share.max()))
        if len(shown) == 1:
            ax.stairs(share, edges, fill=True, color=_style(i)["color"], alpha=0.15)
        ax.stairs(share, edges, label=s.name, **_style(i))
        mean = float(np.mean(s.entropy))
        ax.axvline(mean, color=_style(i)["color"], linewidth=1, linestyle=":")
        ax.annotate(f"mean {mean:.2f}", (mean, 1), xycoords=("data", "axes fraction"), textcoords="offset points",
                    xytext=(4, -10 - 12 * i), fontsize=9, color=_style(i)["color"])
    ax.set_xlim(0, top)
    ax.set_ylim(0, highest * (1.15 + 0.06 * len(shown)) or 1)
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    ax.set_xlabel("entropy, nats")
    ax.set_ylabel("share of positions")


def _panel_speed(ax: Axes, runs: Sequence[Summary]) -> None:
    ax.set_title("Tokens per second")
    shown = [(i, s) for i, s in enumerate(runs) if s.speed is not None]
    if not shown:
        return _nothing(ax, "no timeline.jsonl in these folders")
    longest = max(float(s.speed[0][-1]) for _, s in shown if s.speed)
    unit, name = next((u, n) for u, n in ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds")) if longest >= 2 * u or u == 1)
    for i, s in shown:
        assert s.speed is not None
        ax.stairs(s.speed[1], s.speed[0] / unit, label=s.name, baseline=None, **_style(i))
    ax.set_xlim(0, longest / unit)
    ax.set_ylim(0, 1.1 * max(float(s.speed[1].max()) for _, s in shown if s.speed))
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}")
    ax.set_xlabel(f"{name} since the run began")
    ax.set_ylabel("tokens per second")


_DRAW = {"mass": _panel_mass, "kl": _panel_kl, "entropy": _panel_entropy, "speed": _panel_speed}


def figure(runs: Any, panels: Sequence[str] = PANELS, title: str | None = None, **options: Any) -> Figure:
    """A matplotlib Figure of these panels for one run or several: each a Summary, a Run or a folder (options are
    those of Summary). It belongs to no window: show it in a notebook, or savefig(path) it as PNG, SVG or PDF."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if isinstance(runs, (Run, Summary, str, os.PathLike)):
        runs = [runs]
    unknown = [p for p in panels if p not in _DRAW]
    if unknown or not panels:
        raise ValueError(f"panels {', '.join(unknown) or 'none'}: expected some of {', '.join(PANELS)}")
    summaries = [r if isinstance(r, Summary) else Summary(r, **options) for r in runs]
    if not summaries:
        raise ValueError("there is no run to plot")
    names = [s.name for s in summaries]
    for s in summaries:  # out/a/logits and out/b/logits
        if names.count(s.name) > 1:
            s.name = printable(os.path.join(*os.path.normpath(os.path.abspath(s.run.path)).split(os.sep)[-2:]))
    with rc_context(_STYLE):
        columns = 1 if len(panels) == 1 else 2
        lines = -(-len(panels) // columns)
        fig = Figure(figsize=(5.6 * columns, 4.0 * lines + 0.5), layout="constrained")
        axes = list(fig.subplots(lines, columns, squeeze=False).flat)
        for ax, panel in zip(axes, panels):
            _DRAW[panel](ax, summaries)
        for ax in axes[len(panels):]:
            ax.remove()
        handles: dict[str, Any] = {}
        for ax in fig.axes:
            for h, label in zip(*ax.get_legend_handles_labels()):
                handles.setdefault(label, h)
        if len(summaries) > 1 and handles:
            fig.legend([handles[n] for n in handles], list(handles), loc="outside upper center",
                       ncols=min(4, len(handles)), frameon=False)
        if title is None and len(summaries) == 1:
            s = summaries[0]
            title = f"{s.name}: {len(s.run):,} samples, {s.run.n_positions:,} positions, mode {s.run.mode}"
        if title:
            fig.suptitle(printable(title), fontsize=12)
        return fig


def describe(summaries: Sequence[Summary]) -> str:
    """The numbers of the picture as JSON, for scripts."""
    out = []
    for s in summaries:
        entry: dict[str, Any] = {"run": s.run.path, "positions": s.run.n_positions}
        if s.mass is not None and s.ks is not None:
            mean = s.mass.mean(axis=0, dtype=np.float64)
            kl = _kl(s.mass)
            entry["top_k"] = [{"k": int(k), "mass": round(float(m), 6), "kl": round(float(d), 6)} for k, m, d in zip(s.ks, mean, kl)]
        if s.entropy is not None:
            entry["mean_entropy"] = round(float(np.mean(s.entropy)), 6)
        out.append(entry)
    return json.dumps(out, indent=2)
