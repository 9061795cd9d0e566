"""Draws one or several runs: what the recorded set covers, its KL to the teacher, the teacher's entropy, tokens per second.

RUN is an output folder of tdgen; several are drawn into the same panels, to be compared. OUT's ending decides the
format: .png, .svg or .pdf. At most 100,000 positions of each run are looked at, spread over its shards.
"""

import argparse
import os
import sys

PANELS = ("mass", "kl", "entropy", "speed")


def panels(text):
    names = text.split(",")
    if not all(n in PANELS for n in names):
        raise argparse.ArgumentTypeError(f"{text}: expected some of {','.join(PANELS)}")
    return names


def arguments(argv):
    p = argparse.ArgumentParser(prog="tdgen-plot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", metavar="RUN", nargs="+")
    p.add_argument("--out", metavar="OUT", action="append", required=True, help="picture to write; may be given more than once")
    p.add_argument("--panels", type=panels, default=PANELS, metavar="A,B", help=f"some of {','.join(PANELS)} (all)")
    p.add_argument("--names", metavar="A,B", help="what the runs are called (their folders' names)")
    p.add_argument("--title", help="above the picture")
    p.add_argument("--dpi", type=int, default=150, help="of a PNG (150)")
    p.add_argument("--json", action="store_true", help="print the numbers as well")
    p.add_argument("--partial", action="store_true", help="runs that are not finished, too")
    p.add_argument("--no-verify", action="store_true", help="leave hashes of the runs' files unchecked")
    a = p.parse_args(argv)
    a.names = a.names.split(",") if a.names else [None] * len(a.runs)
    if len(a.names) != len(a.runs):
        p.error(f"{len(a.names)} names for {len(a.runs)} runs")
    for out in a.out:
        if os.path.splitext(out)[1].lower() not in (".png", ".svg", ".pdf"):
            p.error(f"--out {out}: it ends in none of .png, .svg, .pdf")
    return a


def main(argv=None):
    a = arguments(argv)
    try:
        import matplotlib  # noqa: F401

        from .. import plot, trust
    except ImportError as e:
        print(f"tdgen-plot: {e}; it needs: pip install numpy ml_dtypes xxhash matplotlib", file=sys.stderr)
        return 2
    try:
        summaries = [plot.Summary(run, name, verify=not a.no_verify, partial=a.partial) for run, name in zip(a.runs, a.names)]
        picture = plot.figure(summaries, a.panels, a.title)
        for out in a.out:
            picture.savefig(out, dpi=a.dpi)
    except (trust.RecordError, ValueError) as e:
        print(f"tdgen-plot: {e}", file=sys.stderr)
        return 4
    except OSError as e:
        print(f"tdgen-plot: {e}", file=sys.stderr)
        return 6
    if a.json:
        print(plot.describe(summaries))
    else:
        print(", ".join(a.out))
    return 0
