"""tools/bench_gpu on the CPU device: random checkpoints that tdgen computes, and figures that fit together."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "bench"))
import _synth
import make_checkpoint as mc
import numpy as np

TDGEN = os.environ.get("TDGEN", str(ROOT / "build/release/src/tdgen"))


def test_checkpoint(tmp: Path) -> None:
    from safetensors.numpy import load_file

    mc.make_checkpoint("tiny-moe", tmp / "model")
    # bf16 is no type of NumPy: names and shapes only, and that no number is zero or not finite.
    from safetensors import safe_open

    with safe_open(tmp / "model" / "model.safetensors", "np") as f:
        names = set(f.keys())
    assert names == {name for name, _, _ in mc.tensors(mc.SHAPES["tiny-moe"])}
    raw = (tmp / "model" / "model.safetensors").read_bytes()
    n = int.from_bytes(raw[:8], "little")
    bits = np.frombuffer(raw[8 + n :], np.uint16)
    assert len(bits) == mc.n_params(mc.SHAPES["tiny-moe"])
    assert ((bits & 0x7F80) != 0x7F80).all() and (bits != 0).mean() > 0.999
    # A dataset that the stock package reads.
    lengths = mc.make_tokens("ragged", 5000, 2048, tmp / "ragged.safetensors")
    data = load_file(tmp / "ragged.safetensors")
    assert (np.diff(data["sample_offsets"]) == lengths).all() and lengths.min() >= 16 and lengths.max() <= 8192
    assert len(data["input_ids"]) == lengths.sum() >= 5000 and data["input_ids"].max() < 2048
    assert (mc.lengths("ragged", 5000) == lengths).all()


def test_shapes() -> None:
    """Parameters of the real models, from their own pages, within a percent."""
    for name, billions in (("1b", 1.236), ("8b", 8.030), ("14b", 14.768), ("32b", 32.762), ("a3b", 30.532)):
        assert abs(mc.n_params(mc.SHAPES[name]) / 1e9 - billions) < 0.01 * billions, name
    # Twice the weights that multiply, and attention: 8B at no context is 2 x (parameters - embedding).
    plain = mc.flops_per_token(mc.SHAPES["8b"], 0)
    assert abs(plain / (2 * (8.030e9 - 128256 * 4096)) - 1) < 0.01


def test_run(tmp: Path) -> None:
    bench = Path(TDGEN).parents[1] / "tools" / "bench" / "bench_gpu"
    done = subprocess.run(
        [sys.executable, ROOT / "tools/bench_gpu", "--tdgen", TDGEN, "--bench", bench, "--device", "cpu", "--shapes",
         "tiny", "--tokens", "64", "--seconds", "0.3", "--no-ops", "--no-transformers", "--batch-tokens", "512",
         "--dir", tmp, "--json", tmp / "out.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    out = json.loads((tmp / "out.json").read_text())
    assert not out["skipped"], out["skipped"]
    runs = {(r["dataset"], r["profiled"]): r for r in out["runs"]}
    assert set(runs) == {("first", False), ("64", False), ("ragged", False), ("64", True)}
    for r in runs.values():
        assert r["rows"] == r["tokens"] - r["samples"] and r["tokens_per_s"] > 0
    assert 99 < sum(runs["64", True]["profile"].values()) < 101
    assert not list(tmp.glob("tdgen-bench-*")), "it left its checkpoints there"


def test_budget(tmp: Path) -> None:
    bench = Path(TDGEN).parents[1] / "tools" / "bench" / "bench_gpu"
    done = subprocess.run(
        [sys.executable, ROOT / "tools/bench_gpu", "--tdgen", TDGEN, "--bench", bench, "--device", "cpu", "--shapes",
         "tiny", "--tokens", "64", "--no-ops", "--no-transformers", "--budget", "0.1", "--dir", tmp],
        capture_output=True, text=True)
    assert "SKIPPED: tiny 64: the budget is over" in done.stdout, done.stdout + done.stderr
    assert not list(tmp.glob("tdgen-bench-*"))


if __name__ == "__main__":
    test_shapes()
    tests = [test_checkpoint, test_run, test_budget]
    if not _synth.offers(TDGEN, "bf16"):  # which the benchmark computes in
        print("SKIPPED: this CPU has no bf16: bench_gpu was NOT run")
        tests = [test_checkpoint]
    for test in tests:
        with tempfile.TemporaryDirectory() as folder:
            test(Path(folder))
    print("test_bench: 4 passed, 0 failed")
