#!/usr/bin/env python3
"""Runs of tdgen in every capture mode over the same demo rows, read with the package tdgen: the full logits of
one run say what all others must hold. And states through lm_head against those logits.

    test_capture_modes.py [--tdgen PATH]    else $TDGEN else build/release/src/tdgen
"""

import os
import subprocess
import sys
import tempfile

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "python", "src"))
from tdgen import logits as tdgen_logits  # noqa: E402
import _synth  # noqa: E402
import tdgen as rd  # noqa: E402
from tdgen import targets  # noqa: E402

TEMPERATURES = (2.0, 0.5)
ROWS = ["data.max_samples=6", "output.shard_samples=4"]


class Runs:
    def __init__(self, tdgen, tmp):
        self.tdgen, self.tmp, self.made = tdgen, tmp, 0

    def __call__(self, *overrides, compute="f32"):
        self.path = f"{self.tmp}/run{self.made}"
        self.made += 1
        tool(self.tdgen, "-c", "conf/demo.ini", f"output.dir={self.path}", "--quiet", f"model.compute={compute}", *ROWS,
             *overrides)
        return rd.Run(self.path)


def tool(*command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def log_softmax(z):
    z = z.astype(np.float64)
    m = z.max(axis=1, keepdims=True)
    return z - m - np.log(np.exp(z - m).sum(axis=1, keepdims=True))


def warm(overrides):
    return [f"capture.temperatures={','.join(map(str, TEMPERATURES))}", *overrides]


def same_rows(run, full):
    assert len(run) == len(full)
    for i in range(len(full)):
        a, b = run.sample(i), full.sample(i)
        for key in ("input_ids", "loss_mask", "row_position"):
            assert np.array_equal(a[key], b[key]), key
        assert (a["index"], a["start"], a["id"]) == (b["index"], b["start"], b["id"])
        if "logsumexp" in a:  # the same arithmetic whatever is captured
            for key in ("logsumexp", "logsumexp_t", "target_logprob", "target_rank", "entropy"):
                assert np.array_equal(a[key], b[key]), (run.mode, key)
        yield a, log_softmax(b["logits"]) if len(b["logits"]) else b["logits"]


def bound(dtype, values):
    """Of what storing in dtype may change, on top of 2e-6 for float32 arithmetic."""
    values = np.abs(values)
    if dtype == "q8":
        return (values.max(axis=1, keepdims=True) - values.min(axis=1, keepdims=True)) / 508 * 1.0001 + 4e-6
    return values * 2.0**-11 + 1e-5 if dtype == "f16" else 1e-5


def check_set(record, ids, have, logp, dtype):
    """A row's set: the teacher's own values, most probable first, and the tail behind it."""
    used = ids >= 0
    lowest = np.where(used, np.take_along_axis(logp, np.maximum(ids, 0).astype(np.int64), axis=1), np.nan)
    fill = np.where(used, lowest, np.nanmax(lowest, axis=1, keepdims=True))
    assert (~used | (np.abs(np.where(used, have, 0) - np.where(used, lowest, 0)) <= bound(dtype, fill))).all()
    assert (np.diff(fill, axis=1) <= 1e-5)[used[:, 1:]].all()
    tail = 1 - np.where(used, np.exp(lowest), 0).sum(axis=1)
    assert np.allclose(record["tail_mass"], tail, atol=2e-6)
    return used, tail


def modes(runs):
    full = runs("capture.mode=full", "capture.dense_dtype=f32", *warm([]))
    assert full.mode == "full" and full.sample(0)["logits"].dtype == np.float32
    for T in (1.0, *TEMPERATURES):
        for record in full:
            z = record["logits"].astype(np.float64) / T
            m = z.max(axis=1)
            lse = np.log(np.exp(z - m[:, None]).sum(axis=1)) + m
            have = record["logsumexp"] if T == 1 else record["logsumexp_t"][:, TEMPERATURES.index(T)]
            assert np.allclose(have, lse, atol=1e-5) and not record["tail_mass"].any()
    for dtype, more in (("f16", ["capture.pack_ids=true"]), ("f32", []), ("q8", ["capture.pack_ids=true", "output.zstd=true"])):
        run = runs("capture.mode=topk", "capture.top_k=24", f"capture.logprob_dtype={dtype}", "capture.always_ids=2,0,77",
                   *warm(more))
        assert all(e["file"].endswith(".zst") == (dtype == "q8") for e in run.shards)
        for record, logp in same_rows(run, full):
            if len(logp):
                used, tail = check_set(record, record["topk_ids"], record["topk_logprobs"], logp, dtype)
                assert used.all() and list(run.always_ids) == [2, 0, 77]
                assert np.allclose(record["always_logprobs"], logp[:, run.always_ids], atol=1e-5)
                check_warm(record, logp, dtype)
        run = runs("capture.mode=topp", "capture.top_p=0.9", "capture.top_k=200", "capture.min_k=3",
                   f"capture.logprob_dtype={dtype}", *warm(more))
        widths = []
        for record, logp in same_rows(run, full):
            if not len(logp):
                continue
            ids = targets._pad(record["topp_offsets"], record["topp_ids"], -1)
            have = targets._pad(record["topp_offsets"], record["topp_logprobs"], -np.inf)
            used, tail = check_set(record, ids, have, logp, dtype)
            n = used.sum(axis=1)
            widths += n.tolist()
            ordered = -np.sort(-np.exp(logp), axis=1)
            mass = np.cumsum(ordered, axis=1)
            enough = mass[np.arange(len(n)), n - 1] >= 0.9 - 1e-6
            assert (enough | (n == 200)).all() and (n >= 3).all() and (n <= 200).all()
            before = np.where(n > 1, mass[np.arange(len(n)), np.maximum(n - 2, 0)], 0)
            assert ((before < 0.9 + 1e-6) | (n == 3)).all()  # the smallest such set
            check_warm(record, logp, dtype)
        assert len(set(widths)) > 5
    for dense in ("bf16", "f16"):
        run = runs("capture.mode=full", f"capture.dense_dtype={dense}", *warm([]))
        for record, logp in same_rows(run, full):
            if len(logp):
                step = 2.0**-8 if dense == "bf16" else 2.0**-11
                assert np.allclose(log_softmax(record["logits"]), logp, atol=2 * step * np.abs(record["logits"]).max())
    draws(runs, full)


def check_warm(record, logp, dtype):
    """to_targets at the recorded temperatures, from the whole vocabulary's own normaliser."""
    for T in TEMPERATURES:
        want = np.exp(log_softmax(logp / T))
        ids, p = rd.to_targets(record, T, "bucket")
        used = ids >= 0
        at = np.where(used, np.take_along_axis(want, np.maximum(ids, 0).astype(np.int64), axis=1), 0)
        loose = {"f32": 1e-5, "f16": 1e-2, "q8": 5e-2}[dtype] / T
        assert (np.abs(p[:, :-1] - at) <= at * loose + 2e-6).all()
        assert (np.abs(p[:, -1] - (1 - at.sum(axis=1))) <= loose).all()


def draws(runs, full):
    """Counts of 200 draws: their sum, their ids' log-probabilities, and their mean over all rows."""
    for mode, power in (("sample", 1.0), ("sample", 0.5), ("topk+sample", 1.0)):
        run = runs(f"capture.mode={mode}", "capture.n_draws=200", f"capture.proposal_power={power}", "capture.top_k=8",
                   "capture.logprob_dtype=f32", *warm(["capture.pack_ids=true"] if power == 1 else []))
        z, rows = np.zeros(full.vocab_size), 0
        variance = np.zeros(full.vocab_size)
        for record, logp in same_rows(run, full):
            if not len(logp):
                continue
            assert (np.add.reduceat(record["draw_counts"], record["draw_offsets"][:-1]) == 200).all()
            ids = targets._pad(record["draw_offsets"], record["draw_ids"], -1)
            have = targets._pad(record["draw_offsets"], record["draw_logprobs"], -np.inf)
            used = ids >= 0
            want = np.take_along_axis(logp, np.maximum(ids, 0).astype(np.int64), axis=1)
            assert np.abs(np.where(used, have - want, 0)).max() < 1e-5
            assert (np.diff(ids, axis=1) > 0)[used[:, 1:]].all()
            q = np.exp(log_softmax(power * logp))
            if power != 1:
                tilted = power * logp
                m = tilted.max(axis=1)
                lse = np.log(np.exp(tilted - m[:, None]).sum(axis=1)) + m
                assert np.allclose(record["proposal_logsumexp"], lse, atol=1e-5)
            p = np.exp(logp)
            source = {"source": "sample"} if mode != "sample" else {}
            z += (rd.to_targets(record, 1.0, "ignore", dense=True, **source) - p).sum(axis=0)
            variance += ((p / q) ** 2 * q * (1 - q) / 200).sum(axis=0)
            rows += len(p)
        sigma = np.abs(z) / np.sqrt(np.maximum(variance, 1e-12))
        # 2,048 tokens: the largest of so many normal numbers is about 3.5; a rare token's count is Poisson.
        common = variance * 200 > 1
        assert common.sum() > 10 and sigma[common].max() < 5, (mode, power, sigma[common].max())
        print(f"   {mode}, q = p^{power}: mean of {rows} rows within {sigma[common].max():.1f} standard errors "
              f"({common.sum()} tokens)")


def states(runs):
    """capture.mode = hidden through lm_head, against full of the same compute mode."""
    teacher = os.path.join(ROOT, "demo", "teacher")
    for compute, stored, allowed in (("f32", "f32", 2e-5), ("bf16", "bf16", 2e-5), ("f32", "bf16", 0.2)):
        if not _synth.offers(runs.tdgen, compute):
            print(f"SKIPPED: this CPU has no {compute}: hidden states in it were NOT held against full logits")
            continue
        full = runs("capture.mode=full", "capture.dense_dtype=f32", *warm([]), compute=compute)
        runs("capture.mode=hidden", f"capture.dense_dtype={stored}", compute=compute)
        made = tdgen_logits.FullRun(runs.path, teacher)
        worst = same = n = 0
        for i in range(len(full)):
            a, b = full.sample(i), made.sample(i)
            if not len(a["logits"]):
                continue
            assert np.array_equal(a["row_position"], b["row_position"])
            worst = max(worst, np.abs(a["logits"] - b["logits"]).max())
            same += (targets.log_softmax(a["logits"]).argmax(axis=1) == targets.log_softmax(b["logits"]).argmax(axis=1)).sum()
            n += len(a["logits"])
            bits = [np.ascontiguousarray(x["logits"]).view(np.uint32) >> 16 for x in (a, b)]
            if stored == compute:
                assert np.allclose(a["logsumexp"], b["logsumexp"], atol=2e-5)
                assert np.allclose(a["entropy"], b["entropy"], atol=2e-4)
                assert (np.abs(bits[0].astype(np.int64) - bits[1]) <= 1).mean() > 0.999
        print(f"   states of {compute} stored as {stored}: logits within {worst:.1e} of mode full's, {same} of {n} likeliest "
              "tokens the same")
        assert worst <= allowed, worst


def llamacpp(runs):
    """--kl-divergence-base from chunks of one text, from full logits and from states: perplexity.cpp's own
    figure, the mean negative log-likelihood of the second halves, is the record's."""
    from test_export import read_llamacpp

    teacher = os.path.join(ROOT, "demo", "teacher")
    chunks = ["data.max_length=24", "data.overflow=split"]
    full = runs("capture.mode=full", "capture.dense_dtype=f32", *chunks)
    export = [sys.executable, os.path.join(ROOT, "tools", "tdgen_export"), "llamacpp"]
    rest = ["--bos", "none", "--n-ctx", "24", "--skip-others", "--quiet"]
    tool(*export, runs.path, runs.tmp + "/full.kld", *rest)
    runs("capture.mode=hidden", "capture.dense_dtype=f32", *chunks)
    tool(*export, runs.path, runs.tmp + "/hidden.kld", *rest, "--model", teacher)
    want = [-r["target_logprob"][12:23].astype(np.float64) for r in full if len(r["input_ids"]) == 24]
    assert len(want) > 6
    for name in ("full", "hidden"):
        n_ctx, n_vocab, tokens, rows = read_llamacpp(f"{runs.tmp}/{name}.kld")
        assert (n_ctx, n_vocab, len(tokens)) == (24, full.vocab_size, len(want))
        nll = np.array([[-logp[tokens[c][13 + j]] for j, (_, _, logp) in enumerate(chunk)] for c, chunk in enumerate(rows)])
        # 16 bits over at most 16 nats
        assert np.abs(nll - np.minimum(want, 16)).max() < 2e-4
        print(f"   llama.cpp base file from {name}: mean nll {nll.mean():.6f}, the record's {np.mean(want):.6f}")


def main():
    tdgen = _synth.program(__doc__)
    with tempfile.TemporaryDirectory() as tmp:
        runs = Runs(tdgen, tmp)
        modes(runs)
        states(runs)
        llamacpp(runs)
    print("OK")


if __name__ == "__main__":
    main()
