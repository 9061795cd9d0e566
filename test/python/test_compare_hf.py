#!/usr/bin/env python3
"""Checks tools/compare_hf: what it refuses, and, where torch and transformers are installed, what it
finds on a checkpoint of test/fixtures/families.

    test_compare_hf.py [NAME ...]    folders of test/fixtures/families (default: llama)

The program is $TDGEN, else build/release/src/tdgen.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ROOT / "test" / "fixtures" / "families"
TDGEN = os.environ.get("TDGEN", str(ROOT / "build" / "release" / "src" / "tdgen"))
LLAMA = FAMILIES / "llama"
DATA = LLAMA / "expected.safetensors"


def run(*args):
    return subprocess.run([sys.executable, ROOT / "tools" / "compare_hf", *map(str, args)],
                          capture_output=True, text=True, env={**os.environ, "TDGEN": TDGEN})


def expect(done, code, *words):
    text = done.stdout + done.stderr
    assert done.returncode == code, f"exit code {done.returncode}, not {code}:\n{text}"
    assert "Traceback" not in text, text
    for word in words:
        assert word in text, f'"{word}" is not in:\n{text}'


def check_refusals(installed):
    expect(run("--help"), 0, "MODEL_DIR", "top-1", "exit codes")
    expect(run(), 2, "MODEL_DIR")
    expect(run(ROOT / "nowhere", DATA), 2, "nowhere", "config.json")
    expect(run(LLAMA, ROOT / "nowhere.jsonl"), 2, "nowhere.jsonl is not a file")
    expect(run(LLAMA, DATA, "--dtypes", "f32,f8"), 2, "f32,f8")
    expect(run(LLAMA, DATA, "--top-k", "5000"), 2, "5000")
    expect(run(LLAMA, DATA, "devices"), 2, "section.key=value")
    if not installed:
        expect(run(LLAMA, DATA), 2, "No module named", "tools/fixtures/requirements.txt")
        return
    expect(run(LLAMA, DATA, "--tdgen", ROOT / "nowhere"), 2, "nowhere is not a program")
    expect(run(LLAMA, DATA, "devices.gpus=none-such"), 3, "tdgen ended with code 2", "none-such")
    with tempfile.TemporaryDirectory() as tmp:
        (Path(tmp) / "config.json").write_text('{"architectures": ["NoneSuch"]}')
        expect(run(tmp, DATA), 2, "vocab_size")


def check_fixture(name):
    folder = FAMILIES / name
    done = run(folder, folder / "expected.safetensors", "devices.gpus=cpu", "--dtypes", "f32",
               "--json", "--tolerance", "1e-4")
    expect(done, 0)
    (row,) = json.loads(done.stdout)["rows"]
    assert row["positions"] > 50 and 0 < row["max"] <= 1e-4 and 0 < row["mean"] <= row["max"]
    assert row["top1_agreement"] == 1 or row["top1_margin"] < 1e-4
    assert 0 <= row["kl_mean"] <= row["kl_max"] < 1e-8
    print(f"   {name}: {row['positions']} positions, max {row['max']:.2e}")


def main():
    installed = all(importlib.util.find_spec(m) for m in ("torch", "transformers"))
    check_refusals(installed)
    if not installed:
        print("SKIPPED: torch and transformers are not installed, tdgen was NOT compared with "
              "transformers (tools/fixtures/requirements.txt)")
        return 0
    for name in sys.argv[1:] or ["llama"]:
        check_fixture(name)
    # What is recorded with few candidates has a tail; the same input must not pass any tolerance.
    small = run(LLAMA, DATA, "devices.gpus=cpu", "--dtypes", "f32", "--top-k", "5", "--json")
    expect(small, 0)
    (row,) = json.loads(small.stdout)["rows"]
    assert row["max"] <= 1e-4 and row["kl_max"] < 1e-8, row
    expect(run(LLAMA, DATA, "devices.gpus=cpu", "--dtypes", "f32", "--tolerance", "1e-12"), 1,
           "tolerance")
    print("tools/compare_hf: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
