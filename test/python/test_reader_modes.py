#!/usr/bin/env python3
"""the package tdgen on every capture mode and storage, against runs of a known teacher (_synth.py)."""

import os
import pickle
import shutil
import sys
import tempfile

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "python", "src"))
import tdgen as rd  # noqa: E402
from tdgen import targets, shard  # noqa: E402
import _synth  # noqa: E402

MODES = rd.MODES


def raises(kind, call, *words):
    try:
        call()
    except kind as e:
        for word in words:
            assert word in str(e), (word, str(e))
        return
    raise AssertionError(f"no {kind.__name__}")


def tolerance(dtype, logp):
    """What the storage may add to a log-probability: half a step of f16, the stated bound of q8."""
    if dtype == "f16":
        return np.abs(logp) * 2.0**-11 + 1e-6
    if dtype == "q8":
        finite = np.where(np.isfinite(logp), logp, np.nan)
        width = np.nanmax(finite, axis=1, initial=-99, keepdims=True) - np.nanmin(finite, axis=1, initial=0,
                                                                                 keepdims=True)
        return width / 508 * (1 + 1e-5) + 1e-5
    return np.abs(logp) * 2.0**-23 + 1e-6


def check_common(record, s, mode):
    assert np.array_equal(record["input_ids"], s["ids"]) and np.array_equal(record["loss_mask"], s["mask"])
    assert np.array_equal(record["row_position"], s["rows"])
    assert record["index"] == s["index"] and record["start"] == s["start"] and record["id"] == s["id"]
    assert not record["skipped"] and record["mode"] == mode


def check_set(ids, have, logp, dtype):
    """ids and log-probabilities of a set against the teacher's own [R, V]."""
    used = ids >= 0
    want = np.where(used, np.take_along_axis(logp, np.maximum(ids, 0).astype(np.int64), axis=1), -np.inf)
    assert np.array_equal(np.isneginf(have), ~used)
    with np.errstate(invalid="ignore"):
        assert (~used | (np.abs(have - want) <= tolerance(dtype, want))).all()


def check_sample(run, teacher, i, dtype, drawn):
    s, record, mode = teacher.samples[i], run.sample(i), run.mode
    check_common(record, s, mode)
    n, v = len(s["rows"]), teacher.vocab
    assert run.n_rows(i) == n
    if mode == "hidden":
        assert np.array_equal(record["hidden"], s["state"]) and record["hidden"].dtype == np.float32
        raises(ValueError, lambda: rd.to_targets(record), "lm_head")
        head = lambda x: (x.astype(np.float64) @ teacher.head.T.astype(np.float64)).astype(np.float32)  # noqa: E731
        for T in (1.0, 3.7):
            p = rd.to_targets(record, T, "ignore", dense=True, lm_head=head)
            assert p.shape == (n, v) and np.allclose(p, np.exp(teacher.logp(i, T)), atol=1e-5)
        return
    logp = teacher.logp(i)
    if mode in ("topk", "topk+sample"):
        check_set(record["topk_ids"], record["topk_logprobs"], logp, dtype)
        kept = record["topk_logprobs"]
        assert (kept[:, 1:] <= kept[:, :-1]).all()
    if mode == "topp":
        ids = targets._pad(record["topp_offsets"], record["topp_ids"], -1)
        check_set(ids, targets._pad(record["topp_offsets"], record["topp_logprobs"], -np.inf), logp, dtype)
    if mode in ("sample", "topk+sample"):
        sets, counts = drawn[i]
        for r in range(n):
            part = slice(*record["draw_offsets"][r : r + 2])
            assert np.array_equal(record["draw_ids"][part], sets[r])
            assert np.array_equal(record["draw_counts"][part], counts[r])
        ids = targets._pad(record["draw_offsets"], record["draw_ids"], -1)
        check_set(ids, targets._pad(record["draw_offsets"], record["draw_logprobs"], -np.inf), logp, dtype)
    if mode == "full":
        want = s["logits"] if run.capture["dense_dtype"] == "f32" else \
            s["logits"].astype(np.float16).astype(np.float32) if run.capture["dense_dtype"] == "f16" else \
            _synth.from_bf16(_synth.to_bf16(s["logits"]))
        assert np.array_equal(record["logits"], want)
        assert "logits" not in run.sample(i, dense=False)
        if n > 1:
            assert np.array_equal(run.dense_rows(i, 1, n), want[1:])
        raises(IndexError, lambda: run.dense_rows(i, 0, n + 1))
    if len(run.always_ids):
        assert np.allclose(record["always_logprobs"], logp[:, record["always_ids"]], atol=1e-5)
    check_targets(record, teacher, i, dtype)


def check_targets(record, teacher, i, dtype):
    """Exactness at T = 1 and each stored temperature: the set's probabilities, and the tail behind it."""
    mode = record["mode"]
    dense_error = 0.0
    if mode == "full":  # the logits' own rounding
        dense_error = {"f32": 1e-5, "f16": 0.02, "bf16": 0.1}[record["capture"]["dense_dtype"]]
    for T in (1.0, *record["temperatures"]):
        p = np.exp(teacher.logp(i, T))
        if mode in ("sample", "topk+sample"):
            continue  # an estimate: test_kd.py
        ids, q = rd.to_targets(record, T, "bucket")
        assert q.shape == (len(p), ids.shape[1] + 1) and q.dtype == np.float32
        _, ignored = rd.to_targets(record, T, "ignore")
        assert np.array_equal(ignored, q[:, :-1])
        used = ids >= 0
        want = np.where(used, np.take_along_axis(p, np.maximum(ids, 0).astype(np.int64), axis=1), 0)
        lp = np.where(used, np.take_along_axis(teacher.logp(i), np.maximum(ids, 0).astype(np.int64), axis=1), 0)
        # The log-probability's own rounding, over T; and of logsumexp / T - logsumexp_t in float32.
        loose = (tolerance(dtype, teacher.logp(i)).max(initial=0) if dtype == "q8" else tolerance(dtype, lp)) / T + 4e-6
        assert (np.abs(q[:, :-1] - want) <= want * np.expm1(loose + dense_error) + 1e-6).all(), (mode, T)
        rest = 1 - want.sum(axis=1)
        slack = (want * np.expm1(loose + dense_error)).sum(axis=1) + 1e-5
        assert (np.abs(q[:, -1] - rest) <= slack).all(), (mode, T)
        _, scaled = rd.to_targets(record, T, "renormalise")
        assert np.allclose(scaled.sum(axis=1), 1, atol=1e-5)
        with np.errstate(invalid="ignore"):
            assert np.allclose(scaled, ignored / ignored.sum(axis=1, keepdims=True), atol=1e-5)
        dense = rd.to_targets(record, T, "bucket", dense=True)
        assert dense.shape == (len(p), teacher.vocab + 1)
        assert np.allclose(dense[:, :-1].sum(axis=1), ignored.sum(axis=1), atol=1e-5)
        spread = rd.to_dense(record, T)
        assert np.allclose(spread.sum(axis=1), 1, atol=0.02 if dtype != "f32" or dense_error else 1e-4)
    # A temperature that is not recorded is refused where its normaliser is not known.
    if mode == "full":
        got = rd.to_targets(record, 3.7, "ignore", dense=True)
        assert np.allclose(got, np.exp(teacher.logp(i, 3.7)), atol=dense_error)
    else:
        for tail in ("bucket", "ignore") + (("renormalise",) if "sample" in mode else ()):
            raises(ValueError, lambda: rd.to_targets(record, 3.7, tail), "3.7")
    raises(ValueError, lambda: rd.to_targets(record, tail="drop"), "drop")
    raises(ValueError, lambda: rd.to_targets(record, temperature=0))


def check_run(mode, teacher, **options):
    dtype = options.get("dtype", "f16")
    with tempfile.TemporaryDirectory() as tmp:
        drawn = _synth.write_run(os.path.join(tmp, "run"), teacher, mode, **options)
        run = rd.Run(os.path.join(tmp, "run"))
        assert len(run) == len(teacher.samples) and run.mode == mode
        for i in (*range(len(run)), 0):  # and back to the first shard
            check_sample(run, teacher, i, dtype, drawn)
        assert np.array_equal(run.sample(-1)["input_ids"], teacher.samples[-1]["ids"])
        other = pickle.loads(pickle.dumps(run))
        assert np.array_equal(other.sample(2)["input_ids"], teacher.samples[2]["ids"])


def test_modes():
    plain, masked = _synth.Teacher(), _synth.Teacher(vocab=64, masked=59, seed=2)
    n = 0
    for mode in MODES:
        if mode in ("full", "hidden"):
            variants = [{"dense_dtype": d} for d in (("bf16", "f16", "f32") if mode == "full" else ("bf16", "f32"))]
        else:
            variants = [{"dtype": "f32"}, {"dtype": "f16", "packed": True}, {"dtype": "q8", "packed": True},
                        {"dtype": "q8", "always_ids": (2, 11)}]
        for options in variants:
            check_run(mode, plain, **options)
            n += 1
        check_run(mode, plain, zstd=True, always_ids=() if mode == "hidden" else (0, 5), **variants[-1] if mode in (
            "full", "hidden") else {"packed": True})
        n += 1
    for mode in ("topk", "topp", "topk+sample", "sample"):  # fewer tokens with a probability than top_k: free places
        check_run(mode, masked, packed=True, dtype="q8")
        check_run(mode, masked, dtype="f32", proposal_power=0.5)
        n += 2
    print(f"   {n} runs of {len(MODES)} modes")


def test_bits():
    """Packed ids against Python's own integers, any width, any place in the stream."""
    rng = np.random.default_rng(3)
    for bits in (1, 3, 7, 8, 11, 16, 17, 18, 25, 31):
        ids = rng.integers(0, max(1, 2**bits - 1), 57).tolist()
        ids[5] = ids[56] = -1
        stream = _synth.pack(ids, bits)
        whole = int.from_bytes(stream.tobytes(), "little")
        assert [whole >> (i * bits) & (2**bits - 1) for i in range(57)] == [x % 2**bits for x in ids]
        for first, count in ((0, 57), (0, 0), (1, 56), (13, 20), (56, 1)):
            assert shard.unpack_bits(stream, first, count, bits).tolist() == ids[first : first + count], bits
        raises(rd.RecordError, lambda: shard.unpack_bits(stream, 0, 66 if bits == 1 else 58 + 8, bits))


def test_refusals(tmp):
    """Files that are cut, or whose header lies, and folders of two runs are named, not read."""
    teacher = _synth.Teacher()
    _synth.write_run(tmp + "/a", teacher, "topk")
    path = tmp + "/a/shard-000000.safetensors"
    good = open(path, "rb").read()
    whole = rd.Shard(path)
    assert np.array_equal(whole["topk_ids"], rd.Run(tmp + "/a").shard(0)["topk_ids"])
    for bad in (b"", good[:7], good[:100], good[:-1], b"\xff" * 8 + good[8:], good.replace(b'"I32"', b'"I33"', 1),
                good.replace(b'"shape":[', b'"shape":[-', 1), good.replace(b'"data_offsets":[0', b'"data_offsets":[9', 1)):
        with open(tmp + "/bad", "wb") as f:
            f.write(bad)
        assert bad != good
        raises(rd.RecordError, lambda: rd.Shard(tmp + "/bad"))
    _synth.write_run(tmp + "/b", teacher, "topk", identity={"data.hash": "b" * 16})
    ours, theirs = (rd.Run(tmp + x).fingerprint for x in ("/a", "/b"))
    shutil.copy(tmp + "/b/shard-000000.safetensors", path)
    raises(rd.RecordError, lambda: rd.Run(tmp + "/a").sample(0), ours, theirs)
    raises(rd.RecordError, lambda: rd.Run(tmp), "manifest.json")
    _synth.write_run(tmp + "/z", teacher, "topk", zstd=True)
    path = tmp + "/z/shard-000000.safetensors.zst"
    good = bytearray(open(path, "rb").read())
    good[len(good) // 2] ^= 1
    open(path, "wb").write(good)
    raises(rd.RecordError, lambda: rd.Run(tmp + "/z").sample(0), "decompressed")


def main():
    test_bits()
    test_modes()
    with tempfile.TemporaryDirectory() as tmp:
        test_refusals(tmp)
    print("OK")


if __name__ == "__main__":
    main()
