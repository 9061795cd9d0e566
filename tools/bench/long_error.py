#!/usr/bin/env python3
"""Error of f32 log-probs on long samples and in wide models: tdgen and transformers beside float64.

usage: long_error.py TDGEN [--model DIR] [--lengths 500,2000,12000,40000]
                     [--wide gemma:3072,gemma2:3072,gemma3:5376] [--init 0.02,0.06] [--seeds 1] [--json]

Long: one sample of that many random ids through a small Llama (one layer, one head: made here with
seeded random weights, or the one in DIR). Wide: 192 random ids through two layers of a Gemma of that
hidden size, its weights drawn with the deviations of --init (the larger, the sharper attention is). Both programs compute in f32; the reference is transformers in float64. What is compared
are the log-probs that tdgen records (its best 61) in the last quarter of the positions: the largest
difference and the root of the mean square, and the ratio tdgen / transformers of both.

transformers runs in this process, with sdpa attention on long samples and eager attention in wide
models (Gemma 2 has no other); a wide model takes up to 6 GiB for a moment.
Needs torch, transformers, safetensors and numpy (tools/fixtures/requirements.txt).
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, GemmaConfig, LlamaConfig
from transformers.utils import logging

TOP_K, WIDE_TOKENS, ROWS_AT_ONCE = 61, 192, 1024


def long_config() -> LlamaConfig:
    return LlamaConfig(hidden_size=30, head_dim=16, intermediate_size=37, num_attention_heads=1,
                       num_key_value_heads=1, num_hidden_layers=1, vocab_size=61,
                       max_position_embeddings=16384, rms_norm_eps=1e-5, initializer_range=0.2,
                       tie_word_embeddings=False)


def wide_config(family: str, hidden: int, init: float):
    common = dict(hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2, vocab_size=4096,
                  max_position_embeddings=4096, initializer_range=init)
    if family == "gemma":  # as Gemma 7B: 16 heads of 256
        return GemmaConfig(head_dim=256, num_attention_heads=16, num_key_value_heads=16, **common)
    if family == "gemma2":  # soft caps of scores and of logits
        return Gemma2Config(head_dim=256, num_attention_heads=16, num_key_value_heads=8,
                            query_pre_attn_scalar=256, **common)
    if family == "gemma3":  # as Gemma 3 27B: 32 heads of 128
        return Gemma3TextConfig(head_dim=128, num_attention_heads=32, num_key_value_heads=16,
                                sliding_window=1024, **common)
    sys.exit(f"long_error.py: --wide {family}: only gemma, gemma2 and gemma3 are known")


def make_model(config, folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    return folder


def tdgen_logprobs(tdgen: str, model: Path, ids: np.ndarray, top_k: int, tmp: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probs [N - 1, top_k] of one sample."""
    data = tmp / "data.safetensors"
    save_file({"input_ids": ids.astype(np.int32),
               "sample_offsets": np.array([0, len(ids)], dtype=np.int64)}, str(data))
    (tmp / "run.ini").write_text("# all settings are on the command line\n")
    with tempfile.TemporaryDirectory(dir=tmp) as out:
        done = subprocess.run(
            [tdgen, "-c", str(tmp / "run.ini"), "--quiet", f"model.path={model}", "model.compute=f32",
             f"data.path={data}", "data.format=tokens", f"data.max_length={len(ids)}",
             f"capture.top_k={top_k}", "capture.logprob_dtype=f32", "devices.gpus=cpu",
             f"run.batch_tokens={len(ids)}", f"output.dir={out}/out"], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(done.args)} gave exit code {done.returncode}:\n{done.stderr}")
        record = load_file(f"{out}/out/shard-000000.safetensors")
    return record["topk_ids"].astype(np.int64), record["topk_logprobs"].astype(np.float64)


@torch.inference_mode()
def hf_logprobs(model: Path, attention: str, ids: np.ndarray, at: np.ndarray, first: int,
                dtype: torch.dtype) -> np.ndarray:
    """log-probs of the ids `at` [rows, k] in the rows from `first` on; log-softmax in `dtype` too."""
    hf = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation=attention).eval()
    hidden = hf.model(input_ids=torch.from_numpy(ids)[None], use_cache=False).last_hidden_state[0]
    softcap = getattr(hf.config, "final_logit_softcapping", None)
    out = []
    for begin in range(first, len(ids) - 1, ROWS_AT_ONCE):
        rows = slice(begin, min(begin + ROWS_AT_ONCE, len(ids) - 1))
        logits = hf.lm_head(hidden[rows])
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        logprobs = torch.log_softmax(logits, -1)
        out.append(logprobs.gather(1, torch.from_numpy(at[rows])).double().numpy())
    del hf, hidden
    gc.collect()
    return np.concatenate(out)


def measure(tdgen: str, model: Path, attention: str, n_tokens: int, seed: int, tmp: Path) -> dict:
    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    ids = np.random.default_rng(seed).integers(0, vocab, n_tokens, dtype=np.int64)
    top_k = min(TOP_K, vocab)
    at, ours = tdgen_logprobs(tdgen, model, ids, top_k, tmp)
    first = (n_tokens - 1) * 3 // 4
    want = hf_logprobs(model, attention, ids, at, first, torch.float64)
    theirs = hf_logprobs(model, attention, ids, at, first, torch.float32) - want
    ours = ours[first:] - want
    row = {"tokens": n_tokens, "seed": seed}
    for name, e in (("tdgen", ours), ("transformers", theirs)):
        row[name] = {"largest": float(np.abs(e).max()), "rms": float(np.sqrt((e * e).mean()))}
    for what in ("largest", "rms"):
        row["ratio_" + what] = row["tdgen"][what] / row["transformers"][what]
    return row


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("tdgen")
    p.add_argument("--model", type=Path, help="folder of the teacher for the long samples")
    p.add_argument("--lengths", default="500,2000,12000,40000")
    p.add_argument("--wide", default="gemma:3072,gemma2:3072,gemma3:5376")
    p.add_argument("--init", default="0.02,0.06", help="deviations of the weights of wide models")
    p.add_argument("--seeds", type=int, default=1, help="samples per length and per wide model")
    p.add_argument("--json", action="store_true")
    args = p.parse_args()
    logging.disable_progress_bar()
    rows = []

    def show(label: str, row: dict) -> None:
        rows.append({"model": label} | row)
        if args.json:
            return
        cell = "  ".join(f"{row[n]['largest']:.1e} {row[n]['rms']:.1e}" for n in ("tdgen", "transformers"))
        print(f"{label:19s} {row['tokens']:6d} seed {row['seed']}:  {cell}  "
              f"ratio {row['ratio_largest']:.2f} {row['ratio_rms']:.2f}", flush=True)

    if not args.json:
        print("model               tokens           tdgen            transformers     tdgen / transformers\n"
              "                                     largest rms      largest rms            largest rms")
    with tempfile.TemporaryDirectory(prefix="tdgen-long-error-") as t:
        tmp = Path(t)
        lengths = [int(n) for n in args.lengths.split(",") if n]
        if lengths:
            model = args.model or make_model(long_config(), tmp / "long", 1)
            for n in lengths:
                for seed in range(args.seeds):
                    show("llama C 30", measure(args.tdgen, model, "sdpa", n, seed, tmp))
        for spec in (s for s in args.wide.split(",") if s):
            family, _, hidden = spec.partition(":")
            for init in args.init.split(","):
                with tempfile.TemporaryDirectory(dir=tmp) as folder:
                    model = make_model(wide_config(family, int(hidden), float(init)), Path(folder), 1)
                    for seed in range(args.seeds):
                        show(f"{family} C {hidden} {init}",
                             measure(args.tdgen, model, "eager", WIDE_TOKENS, seed, tmp))
    if args.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
