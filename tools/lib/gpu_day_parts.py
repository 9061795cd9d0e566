"""The parts of tools/gpu_day: what a day on a GPU runs, in which order, for how long, and how the output of
each becomes figures. PARTS, at the end, is the table: a later kind of measurement is a line there, with a
function that makes its steps and one that reads what they print.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

# Runs a program of libexec/ as the bundle's launchers do; $bundle is in the environment of every step.
IN_BUNDLE = ["sh", "-c", '. "$bundle/env.sh" && exec "$0" "$@"']


class Skipped(Exception):
    """A part has nothing to run here."""


@dataclass(frozen=True)
class Site:
    """What parts may know of the day."""

    bundle: Path
    out: Path
    has_gpu: bool

    def ask(self, command: list[str]) -> list[str]:
        """The words that a program of the bundle prints, such as its list of cases."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False,
                              env=os.environ | {"bundle": str(self.bundle)}, stdin=subprocess.DEVNULL)
        if done.returncode or not done.stdout.strip():
            raise RuntimeError(f"{' '.join(command[-2:])} gives no list (exit {done.returncode}): {done.stderr[-500:]}")
        return done.stdout.split()


@dataclass(frozen=True)
class Step:
    """A command of a part; {seconds} in an argument becomes the time that it has, less a reserve."""

    name: str
    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    result: Path | None = None  # a JSON file that the command writes


@dataclass(frozen=True)
class Part:
    """A line of the table: what is run, for how long, and how its output becomes figures."""

    name: str
    value: int  # larger ones run first
    budget_s: float
    step_s: float  # the longest that one step may take
    about: str
    steps: Callable[[Site], list[Step]]
    read: Callable[[str, Step], dict]

    def within(self, budget_s: float) -> "Part":
        """The part with another budget, and its steps' limit in proportion."""
        return replace(self, budget_s=budget_s, step_s=self.step_s * budget_s / self.budget_s)


def suite_steps(site: Site) -> list[Step]:
    """A step per suite; the suite of rows is a part of its own."""
    run = str(site.bundle / "bin/run-suites")
    names = [n for n in site.ask([run, "--list"]) if n != "test_gpu_rows"]
    small = ["--small"] if os.environ.get("TDGEN_TEST_LARGE") == "0" else []
    return [Step(n, [run, *small, "--only", f"={n}"]) for n in names]


def row_steps(site: Site) -> list[Step]:
    """A step per case: a kind of operation."""
    program = str(site.bundle / "libexec/test_gpu_rows")
    env = {k: os.environ.get(k, v) for k, v in (("TDGEN_TEST_ROWS", "32768"), ("TDGEN_TEST_LARGE", "1"))}
    return [Step(n, [*IN_BUNDLE, program, n], env) for n in site.ask([*IN_BUNDLE, program, "--list"])]


def sanitizer_steps(site: Site) -> list[Step]:
    """A step per tool; run-suites cuts the slice by the time that it gets."""
    run = [str(site.bundle / "bin/run-suites"), "--sanitizer-only", "{seconds}", "--only"]
    return [Step(tool, [*run, tool]) for tool in ("memcheck", "racecheck", "initcheck")]


def card_steps(site: Site) -> list[Step]:
    """The program bench_gpu alone."""
    return [Step("bench_gpu", [*IN_BUNDLE, str(site.bundle / "libexec/bench_gpu"), "cuda"])]


def bench_steps(site: Site) -> list[Step]:
    """A step per checkpoint: tdgen, then transformers on the same data."""
    if not site.has_gpu:
        raise Skipped("nvidia-smi names no GPU")
    steps = []
    for shape, tokens in (("8b", "2048,512,8192"), ("1b", "2048")):
        result = site.out / f"bench-{shape}.json"
        steps.append(Step(shape, [str(site.bundle / "bin/bench_gpu"), "--shapes", shape, "--tokens", tokens,
                                  "--budget", "{seconds}", "--json", str(result)], result=result))
    return steps


def read_suites(text: str, _step: Step) -> dict:
    """Counts of run-suites, or of what a suite had printed when it was ended."""
    figures: dict = {}
    if m := re.search(r"^(\d+) cases passed, (\d+) failed$", text, re.M):
        figures |= {"cases_passed": int(m[1]), "cases_failed": int(m[2])}
    else:
        figures |= {"cases_passed": len(re.findall(r"^  passed |^\[PASS\]", text, re.M)),
                    "cases_failed": len(re.findall(r"^  FAILED |^\[FAIL\]", text, re.M))}
    if m := re.search(r"^(\d+) passed, (\d+) failed, (\d+) skipped$", text, re.M):
        figures["skipped"] = int(m[3])
    if failed := re.findall(r"^(\S+) +FAILED", text, re.M):
        figures["failed_names"] = failed
    return figures


def read_sanitizer(text: str, _step: Step) -> dict:
    """Programs under a tool; the slice ends where the tool's time does."""
    m = re.search(r"^(\d+) passed, (\d+) failed, (\d+) skipped$", text, re.M)
    passed, failed, skipped = m.groups() if m else (len(re.findall(r"^\w+ +passed, ", text, re.M)), 0, 0)
    return {"programs_clean": int(passed), "programs_failed": int(failed), "skipped": int(skipped),
            "not_finished": len(re.findall(r"not finished in|no time left for", text))}


def read_rows(text: str, _step: Step) -> dict:
    """How many rows test_gpu_rows compared, and up to which M in every operation."""
    found = re.findall(r": up to (\d+) rows(?:, (\d+) compared)?$", text, re.M)
    short = [int(n) for n in re.findall(r"SKIPPED: .*: memory for (\d+) of", text)]
    figures = {"cases_passed": len(re.findall(r"^  passed ", text, re.M)),
               "cases_failed": len(re.findall(r"^  FAILED ", text, re.M)),
               "operations": len(found), "rows_compared": sum(int(n or 0) for _, n in found)}
    if found:
        figures["every_operation_up_to"] = min([int(n) for n, _ in found] + short)
    return figures


def read_card(text: str, _step: Step) -> dict:
    """Rates, and the products' and attention's share of the ceiling."""
    rates = {m[1]: (float(m[2]), m[3]) for m in
             re.finditer(r"^([a-z][\w.]+) +([\d.]+) +(\S+) +[\d.]+$", text, re.M)}
    figures: dict = {f"{name} {unit}": value for name, (value, unit) in rates.items()}
    ceiling = rates.get("ceiling.bf16_to_bf16", (0.0, ""))[0]
    for name, (value, unit) in rates.items():
        if ceiling and unit == "TFLOP/s" and not name.startswith("ceiling."):
            figures[f"{name} of ceiling"] = round(value / ceiling, 3)
    return figures


def read_bench(_text: str, step: Step) -> dict:
    """Tokens/s by sample length, their share of the ceiling, the ratio to transformers' best variant."""
    figures: dict = {}
    try:
        runs = json.loads(step.result.read_text())["runs"] if step.result else []
    except (OSError, ValueError, KeyError):
        return figures
    for run in runs:
        if run["profiled"] or run["dataset"] == "first":
            continue
        name = f"{run['model']} {run['dataset']}"
        figures[f"{name} tokens/s"] = round(run["tokens_per_s"])
        figures[f"{name} TFLOP/s"] = round(run["tflops"], 1)
        if "of_ceiling" in run:
            figures[f"{name} of ceiling"] = round(run["of_ceiling"], 3)
        if others := [t["tokens_per_s"] for t in run.get("transformers", []) if "tokens_per_s" in t]:
            figures[f"{name} times transformers"] = round(run["tokens_per_s"] / max(others), 2)
    return figures


def merge(figures: list[dict]) -> dict:
    """A part's figures from those of its steps: counts are added."""
    merged: dict = {}
    for key, value in ((k, v) for one in figures for k, v in one.items()):
        if key == "every_operation_up_to":
            merged[key] = min(merged.get(key, value), value)
        elif isinstance(value, int | list) and key in merged:
            merged[key] = merged[key] + value
        else:
            merged[key] = value
    return merged


PARTS = (
    Part("suites", 100, 420, 200, "device, model and end-to-end suites on the card", suite_steps, read_suites),
    Part("rows", 90, 240, 100, "bits of rows do not depend on M, up to 32768, nor on place and neighbours",
         row_steps, read_rows),
    Part("sanitizer", 80, 300, 100, "a slice under compute-sanitizer", sanitizer_steps, read_sanitizer),
    Part("card", 70, 90, 90, "the card's ceiling, copies, and each operation beside it", card_steps, read_card),
    Part("bench", 60, 300, 200, "tdgen on random checkpoints, transformers beside it", bench_steps, read_bench),
)
