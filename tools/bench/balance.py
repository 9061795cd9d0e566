#!/usr/bin/env python3
"""Do unlike devices finish together? CPU devices at shares of their speed, one group each, for real.

usage: balance.py TDGEN [--speeds 0.25,0.5,0.75] [--seconds 75] [--runs 1] [section.key=value ...]

One thread per device; speeds that sum to more than the machine's cores measure the machine instead.
A short run finds the rate, then the job is sized to last the seconds asked for. Prints for each run
when each group did its last work, the spread of those times over the wall time, and the wall time of
the same job cut statically into equal parts, from the groups' own rates. Needs numpy only.
"""

import argparse

from cpu_runs import Bench


def report(status: dict, shares: list[float]) -> float:
    wall, groups = status["elapsed_s"], status["groups"]
    last = [g["last_done_s"] for g in groups]
    total = sum(g["tokens"] for g in groups)
    rates = [g["tokens"] / g["last_done_s"] for g in groups]
    for g, share, at, rate in zip(groups, shares, last, rates, strict=True):
        print(f"  group {g['group']} at {share:g}: {g['tokens']:8d} tokens, {g['micro_batches']:4d} micro-batches, "
              f"{rate:7.0f} tokens/s, last done at {at:6.2f} s")
    spread = (max(last) - min(last)) / wall
    static = total / len(groups) / min(rates)
    print(f"  wall {wall:.2f} s, finish times within {100 * spread:.2f}% of it, {wall / (total / sum(rates)):.3f} "
          f"of the ideal; in equal parts {static:.1f} s, {static / wall:.2f} times as long", flush=True)
    return spread


def main() -> None:
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("tdgen")
    p.add_argument("--speeds", default="0.25,0.5,0.75")
    p.add_argument("--seconds", type=float, default=75)
    p.add_argument("--runs", type=int, default=1)
    p.add_argument("options", nargs="*")
    a = p.parse_intermixed_args()
    shares = [float(s) for s in a.speeds.split(",")]
    n = len(shares)
    bench = Bench(a.tdgen, "tiny", 120000, [
        f"devices.gpus=cpu*{n}", "devices.gpus_per_model=1", f"devices.cpu_speeds={a.speeds}",
        "devices.cpu_threads=" + ",".join(["1"] * n), "run.batch_tokens=1024", *a.options])
    trial, _ = bench.run("trial")
    n_tokens = int(trial["tokens"] / trial["elapsed_s"] * a.seconds)
    bench.data(n_tokens)
    print(f"{n} CPU devices at {a.speeds} of a core, about {n_tokens} tokens:", flush=True)
    spreads = [report(bench.run(f"run{i}")[0], shares) for i in range(a.runs)]
    if a.runs > 1:
        print(f"spread: median {100 * sorted(spreads)[a.runs // 2]:.2f}%, worst {100 * max(spreads):.2f}%")


if __name__ == "__main__":
    main()
