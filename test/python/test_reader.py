#!/usr/bin/env python3
"""Reads a run with the stock safetensors package and with the package tdgen, and checks
that both see what the manifest promises.

    test_reader.py --run DIR      an output folder of tdgen
    test_reader.py --tdgen PATH   runs PATH on the embedded demo first

Without arguments: the folder in $TDGEN_RUN, else the program in $TDGEN, else
build/release/src/tdgen.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "python", "src"))
import tdgen  # noqa: E402

DTYPES = {"I64": np.int64, "I32": np.int32, "F32": np.float32, "F16": np.float16, "U8": np.uint8}


def check_file(path, manifest):
    """One shard, by the stock package and by its raw header."""
    with open(path, "rb") as f:
        (n,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(n))
    assert (n + 8) % 64 == 0, "the data part is not aligned"
    meta = header.pop("__metadata__")
    assert meta["fingerprint"] == manifest["fingerprint"]
    docs = manifest["tensors"]
    assert [d["name"] for d in docs] == list(header), "the manifest lists other tensors"
    at = 0
    for doc in docs:
        entry = header[doc["name"]]
        begin, end = entry["data_offsets"]
        size = np.dtype(DTYPES[entry["dtype"]]).itemsize
        assert entry["dtype"] == doc["dtype"], doc
        assert begin == at and begin % size == 0, f'{doc["name"]} is not aligned'
        at = end

    t = load_file(path)
    sizes = {"n": int(meta["n_samples"]), "N": int(meta["n_tokens"]), "R": int(meta["n_rows"]),
             "K": manifest["identity"]["capture.top_k"],
             "nT": len(manifest["identity"]["capture.temperatures"])}
    sizes["n+1"] = sizes["n"] + 1
    for doc in docs:
        x = t[doc["name"]]
        want = doc["shape"].split(", ")
        assert x.dtype == DTYPES[doc["dtype"]], doc["name"]
        assert x.ndim == len(want), doc["name"]
        for have, letter in zip(x.shape, want):
            assert letter not in sizes or have == sizes[letter], (doc["name"], x.shape)
    with safe_open(path, framework="numpy") as f:
        assert f.metadata() == meta
        assert set(f.keys()) == set(t)
    return t, meta


def check_values(t, vocab_size):
    """What must hold between the tensors of a shard; returns the number of rows."""
    rows = t["row_offsets"]
    k = t["topk_ids"].shape[1]
    lp = t["topk_logprobs"].astype(np.float64)
    f16 = t["topk_logprobs"].dtype == np.float16
    assert t["loss_mask"].sum() == rows[-1] == len(t["row_position"])
    assert (t["input_ids"] >= 0).all() and (t["input_ids"] < vocab_size).all()
    if rows[-1] == 0:
        return 0
    assert (np.diff(lp, axis=1)[:, : k - 1] <= 0).all(), "candidates are not in order"
    total = np.exp(lp).sum(axis=1) + t["tail_mass"]
    assert np.abs(total - 1).max() < (1e-2 if f16 else 1e-4), np.abs(total - 1).max()
    sample = np.repeat(np.arange(len(rows) - 1), np.diff(rows))
    target = t["input_ids"][t["sample_offsets"][sample] + t["row_position"] + 1]
    assert (t["loss_mask"][t["sample_offsets"][sample] + t["row_position"] + 1] == 1).all()
    rank, inside = t["target_rank"], t["target_rank"] < k
    r = np.flatnonzero(inside)
    assert (t["topk_ids"][r, rank[r]] == target[r]).all()
    stored = lp[r, rank[r]]
    assert np.allclose(stored, t["target_logprob"][r], rtol=1e-3 if f16 else 0, atol=1e-6)
    outside = np.flatnonzero(~inside)
    assert not (t["topk_ids"][outside] == target[outside, None]).any()
    assert (t["entropy"] >= -1e-4).all() and (t["entropy"] <= np.log(vocab_size) + 1e-3).all()
    # The entropy of the parts is a lower bound: the tail as one class.
    p = np.exp(lp)
    parts = -(p * lp).sum(axis=1)
    tail = t["tail_mass"].astype(np.float64)
    parts += np.where(tail > 0, -tail * np.log(np.maximum(tail, 1e-300)), 0)
    assert (parts <= t["entropy"] + (2e-2 if f16 else 1e-3)).all()
    return int(rows[-1])


def raises(kind, call):
    try:
        call()
    except kind:
        return True
    return False


def check_record(record):
    """The reader's own promises for one record."""
    ids, p = tdgen.to_targets(record)
    assert np.allclose(p.sum(axis=1), 1, atol=1e-2)
    _, ignored = tdgen.to_targets(record, tail="ignore")
    assert np.array_equal(ignored, p[:, :-1])
    _, scaled = tdgen.to_targets(record, temperature=3.7, tail="renormalise")
    assert np.allclose(scaled.sum(axis=1), 1, atol=1e-5)
    assert (np.diff(scaled, axis=1) <= 1e-7).all()
    dense = tdgen.to_dense(record)
    assert dense.shape == (len(ids), record["vocab_size"])
    assert np.allclose(dense.sum(axis=1), 1, atol=1e-2)
    assert (dense.argmax(axis=1) == ids[:, 0]).mean() > 0.9  # ties after rounding aside
    assert raises(ValueError, lambda: tdgen.to_targets(record, tail="drop"))
    assert raises(ValueError, lambda: tdgen.to_targets(record, temperature=0))
    if 3.7 not in record["temperatures"]:
        assert raises(ValueError, lambda: tdgen.to_targets(record, temperature=3.7))
    for t in record["temperatures"]:
        _, p = tdgen.to_targets(record, temperature=t, tail="bucket")
        kept = p[:, :-1].sum(axis=1, dtype=np.float64)
        assert (kept <= 1 + 1e-2).all() and (p >= 0).all()
        # against the candidates' own ratios, which need no normaliser
        _, q = tdgen.to_targets(record, temperature=t, tail="renormalise")
        assert np.allclose(p[:, :-1] / kept[:, None], q, atol=1e-4)


def check_torch(path, n_rows):
    try:
        import torch
        from torch.utils.data import DataLoader
    except ImportError:
        print("   torch is not installed: its Dataset was not tried")
        return
    data = tdgen.torch_dataset(path)
    seen = 0
    for batch in DataLoader(data, batch_size=7, collate_fn=tdgen.collate):
        seen += len(batch["target"])
        gathered = batch["input_ids"][batch["row_sample"], batch["position"] + 1]
        assert torch.equal(gathered, batch["target"])
        assert batch["ids"].shape[0] == batch["probs"].shape[0] == len(batch["target"])
    assert seen == n_rows, (seen, n_rows)
    print(f"   torch {torch.__version__}: {len(data)} samples, {seen} positions")


def check_run(path):
    run = tdgen.Run(path)
    n_rows = n_samples = 0
    for k, entry in enumerate(run.shards):
        t, meta = check_file(os.path.join(path, entry["file"]), run.manifest)
        ours = run.shard(k)  # our own mapping against the stock package
        assert set(ours) == set(t) and ours.metadata == meta
        assert all(ours[name].dtype == x.dtype and np.array_equal(ours[name], x) for name, x in t.items())
        assert int(meta["shard"]) == entry["shard"] and int(meta["n_rows"]) == entry["rows"]
        n_rows += check_values(t, run.vocab_size)
        n_samples += len(t["sample_index"])
    assert len(run) == n_samples and n_rows > 0
    rows = 0
    for i, record in enumerate(run):
        rows += len(record["row_position"])
        if len(record["row_position"]) and i < 50:
            check_record(record)
    assert rows == n_rows
    assert run.sample(-1)["index"] == run.sample(len(run) - 1)["index"]
    assert raises(IndexError, lambda: run.sample(len(run)))
    print(f"   {len(run.shards)} shards, {n_samples} samples, {n_rows} positions")
    check_torch(path, n_rows)


def run_demo(tdgen, folder, *overrides):
    out = os.path.join(folder, "out")
    command = [tdgen, "-c", "conf/demo.ini", f"output.dir={out}", "--quiet", *overrides]
    subprocess.run(command, cwd=ROOT, check=True)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default=os.environ.get("TDGEN_RUN"))
    parser.add_argument("--tdgen", default=os.environ.get("TDGEN"))
    args = parser.parse_args()
    if args.run:
        check_run(args.run)
        print("OK")
        return
    tdgen = os.path.abspath(args.tdgen or os.path.join(ROOT, "build", "release", "src", "tdgen"))
    if not os.access(tdgen, os.X_OK):
        sys.exit(f"{tdgen} is not there: build tdgen, or give --run DIR or --tdgen PATH")
    variants = [("capture.logprob_dtype=f16",),
                ("capture.logprob_dtype=f32", "capture.temperatures=2,0.5", "capture.top_k=8",
                 "model.compute=f32")]
    for overrides in variants:
        with tempfile.TemporaryDirectory() as folder:
            print("  ", " ".join(overrides))
            check_run(run_demo(tdgen, folder, *overrides, "data.max_samples=60"))
    print("OK")


if __name__ == "__main__":
    main()
