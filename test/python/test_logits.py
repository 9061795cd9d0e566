#!/usr/bin/env python3
"""tools/tdgen_logits: states of a hidden run through lm_head, against logits that are known, and against
capture.mode = full of the same program (--tdgen PATH, else $TDGEN, else build/release/src/tdgen)."""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "python", "src"))
import _synth  # noqa: E402
from tdgen import logits as tdgen_logits  # noqa: E402
import tdgen as rd  # noqa: E402


def make_model(folder, teacher, dtype=np.float32, name="lm_head.weight", index=False, **config):
    """A folder that holds config.json and lm_head, and nothing else that matters here."""
    os.makedirs(folder)
    with open(folder + "/config.json", "w") as f:
        json.dump(config, f)
    head = _synth.to_bf16(teacher.head) if dtype == "bf16" else teacher.head.astype(dtype)
    file = "model-00002-of-00002.safetensors" if index else "model.safetensors"
    _synth.write_safetensors(f"{folder}/{file}", {name: head, "model.norm.weight": head[0]}, {})
    if index:
        with open(folder + "/model.safetensors.index.json", "w") as f:
            json.dump({"weight_map": {name: file, "model.norm.weight": file}}, f)


def raises(call, *words):
    try:
        call()
    except rd.RecordError as e:
        assert all(w in str(e) for w in words), str(e)
        return
    raise AssertionError("no RecordError")


def known(tmp):
    """Against the teacher's own logits, computed in float64 from the same states and weights."""
    teacher = _synth.Teacher(vocab=61, hidden=24)
    _synth.write_run(tmp + "/run", teacher, "hidden", dense_dtype="bf16")
    cases = [("plain", {}, dict(tie_word_embeddings=False)),
             ("bf16", {"dtype": "bf16", "index": True}, {}),
             ("tied", {"name": "model.embed_tokens.weight"}, dict(architectures=["GemmaForCausalLM"])),
             ("neox", {"name": "embed_out.weight"}, {}),
             ("capped", {"name": "model.embed_tokens.weight"}, dict(architectures=["Gemma2ForCausalLM"])),
             ("capped7", {}, dict(final_logit_softcapping=7.0, tie_word_embeddings=False)),
             ("scaled", {}, dict(logits_scaling=4.0))]
    for name, how, config in cases:
        make_model(f"{tmp}/{name}", teacher, **how, **config)
        for compute in ("f32", "bf16"):
            head = tdgen_logits.LmHead(f"{tmp}/{name}", compute)
            weight = teacher.head
            if compute == "bf16" or how.get("dtype") == "bf16":
                weight = _synth.from_bf16(_synth.to_bf16(weight))
            for s in teacher.samples:
                want = s["state"].astype(np.float64) @ weight.astype(np.float64).T / config.get("logits_scaling", 1)
                cap = config.get("final_logit_softcapping", 30 if name == "capped" else None)
                want = cap * np.tanh(want / cap) if cap else want
                # sums of 24 float32 products, and the cap's own rounding
                assert np.abs(head(s["state"]) - want).max(initial=0) < 4e-6 * max(1, np.abs(want).max(initial=0)), name
            kept = head(teacher.samples[0]["state"])
            tdgen_logits._KEEP_BYTES, old = 0, tdgen_logits._KEEP_BYTES
            step, tdgen_logits._BLOCK_BYTES = tdgen_logits._BLOCK_BYTES, 24 * 4 * 10  # ten rows at a time
            blocks = tdgen_logits.LmHead(f"{tmp}/{name}", compute)(teacher.samples[0]["state"])
            tdgen_logits._KEEP_BYTES, tdgen_logits._BLOCK_BYTES = old, step
            assert np.allclose(kept, blocks, atol=1e-5)
    # As a run of mode full: everything that follows from logits.
    run = tdgen_logits.FullRun(tmp + "/run", tmp + "/plain", n_valid=58)
    assert run.mode == "full"
    for i, s in enumerate(teacher.samples):
        record, z = run.sample(i), s["logits"].astype(np.float64)
        z[:, 58:] = -np.inf
        assert np.isneginf(record["logits"][:, 58:]).all()
        if not len(z):
            continue
        logp = z - _synth.lse(z)[:, None]
        targets = s["ids"][s["rows"] + 1]
        assert np.allclose(record["logsumexp"], _synth.lse(z), atol=1e-5)
        assert np.allclose(record["target_logprob"], logp[np.arange(len(z)), targets], atol=1e-5)
        inside = targets < 58  # else -inf, and the rank among equals
        ranks = [int(np.flatnonzero(_synth.order(row) == t)[0]) for row, t in zip(record["logits"], targets)]
        assert (record["target_rank"][inside] == np.array(ranks)[inside]).all()
        p = np.exp(logp)
        assert np.allclose(record["entropy"], -np.where(p > 0, p * np.maximum(logp, -1e9), 0).sum(axis=1), atol=1e-5)
        for T in (1.0, 3.3):
            got = rd.to_targets(record, T, "ignore", dense=True)
            assert np.allclose(got, np.exp(z / T - _synth.lse(z / T)[:, None]), atol=1e-5)
    # What is not this model's is refused.
    assert "positions" in run._repr_html_() and "mode" in run._repr_html_() and repr(run).startswith("<tdgen run ")
    raises(lambda: tdgen_logits.LmHead(tmp), "config.json")
    _synth.write_run(tmp + "/topk", teacher, "topk")
    raises(lambda: tdgen_logits.FullRun(tmp + "/topk", tmp + "/plain"), "mode topk")
    _synth.write_run(tmp + "/foreign", teacher, "hidden", identity={"model.config_hash": "0" * 16})
    raises(lambda: tdgen_logits.FullRun(tmp + "/foreign", tmp + "/plain"), "0" * 16, "config.json")
    # The tool, read back with the stock package; and an export straight from states.
    from safetensors.numpy import load_file

    subprocess.run([sys.executable, ROOT + "/tools/tdgen_logits", tmp + "/run", tmp + "/out", "--model", tmp + "/plain"],
                   check=True, capture_output=True)
    files = sorted(n for n in os.listdir(tmp + "/out"))
    assert files == sorted(n for n in os.listdir(tmp + "/run") if n.startswith("shard-"))
    at = 0
    for name in files:
        t = load_file(f"{tmp}/out/{name}")
        for a, b in zip(t["row_offsets"], t["row_offsets"][1:]):
            assert np.abs(t["logits"][a:b] - teacher.samples[at]["logits"]).max(initial=0) < 1e-5
            at += 1
    assert at == len(teacher.samples)
    done = subprocess.run([sys.executable, ROOT + "/tools/tdgen_export", "axolotl", tmp + "/run", tmp + "/ax", "--top-k",
                           "5"], capture_output=True, text=True)
    assert done.returncode == 4 and "--model" in done.stderr, done.stderr
    subprocess.run([sys.executable, ROOT + "/tools/tdgen_export", "axolotl", tmp + "/run", tmp + "/ax", "--top-k", "5",
                    "--model", tmp + "/plain"], check=True, capture_output=True)
    import datasets

    used = [s for s in teacher.samples if len(s["rows"])]
    for s, row in zip(used, datasets.load_from_disk(tmp + "/ax")):
        logp = s["logits"].astype(np.float64) - _synth.lse(s["logits"].astype(np.float64))[:, None]
        for r, t in enumerate(s["rows"]):
            assert row["target_token_ids"][t] == _synth.order(logp[r])[:5].tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tdgen", default=os.environ.get("TDGEN"))
    parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        known(tmp)
    print("OK")


if __name__ == "__main__":
    main()
