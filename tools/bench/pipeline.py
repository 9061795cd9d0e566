#!/usr/bin/env python3
"""What does a pipeline of two CPU devices lose against two devices with a copy of the model each?

usage: pipeline.py TDGEN [--rounds 5] [--tokens 40000] [section.key=value ...]

The same job in turn as two groups of one device and as one group of two stages, on one thread per
device; medians of the wall times, and how busy the stages are while the pipeline is full. Filling it
costs one micro-batch, so a short job shows less than a long one. On a machine that others use, too,
devices.cpu_speeds=0.3,0.3 gives devices whose speed depends less on that. The first round also compares
the bytes of the output. Needs numpy only.
"""

import argparse
import re
import statistics

from cpu_runs import Bench


def main() -> None:
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("tdgen")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--tokens", type=int, default=40000)
    p.add_argument("options", nargs="*")
    a = p.parse_intermixed_args()
    bench = Bench(a.tdgen, "deep", a.tokens, [
        "devices.gpus=cpu*2", "devices.cpu_threads=1,1", "run.batch_tokens=1024",
        "data.max_length=2048", "data.overflow=split", *a.options])
    kinds = {"two groups": "devices.groups=0|1", "one group of two stages": "devices.groups=0,1"}
    wall: dict[str, list[float]] = {k: [] for k in kinds}
    for i in range(a.rounds):
        for kind, groups in kinds.items():
            status, text = bench.run(kind.replace(" ", "-"), groups)
            wall[kind].append(status["elapsed_s"])
            busy = ", ".join(re.findall(r"busy ((?: ?\d+%)+)", text))
            print(f"  {kind:24s} {status['elapsed_s']:7.2f} s, {status['tokens'] / status['elapsed_s']:6.0f} "
                  f"tokens/s, busy {busy}", flush=True)
        if i == 0:
            one, two = (bench.shards(k.replace(" ", "-")) for k in kinds)
            print("  the output is " + ("the same" if one and one == two else "NOT THE SAME"), flush=True)
    one, two = (statistics.median(w) for w in wall.values())
    print(f"medians {one:.2f} s and {two:.2f} s: the pipeline has {100 * one / two:.1f}% of the throughput")


if __name__ == "__main__":
    main()
