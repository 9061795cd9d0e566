#!/usr/bin/env python3
"""tdgen beside transformers on the same job, in turn (A B A B): tokens per second on this CPU.

usage: vs_transformers.py TDGEN [ROUNDS]

The job: forward passes of demo/teacher over 1000 rows of text, log-softmax, top 16 to the host. The
transformers side is what a user writes: batches of 16 rows, padded, sdpa. tdgen also writes the
record. Needs torch and transformers.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
TEACHER = ROOT / "demo" / "teacher"
N_ROWS, BATCH, TOP_K = 1000, 16, 16


def load(dtype: torch.dtype):
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=dtype).eval()
    return tokenizer, model


@torch.no_grad()
def run_transformers(tokenizer, model, texts: list[str]) -> float:
    n_tokens, start = 0, time.monotonic()
    for i in range(0, len(texts), BATCH):
        batch = tokenizer(texts[i : i + BATCH], return_tensors="pt", padding=True, truncation=True,
                          max_length=512)
        logprobs = torch.log_softmax(model(**batch).logits.float(), -1)
        values, ids = torch.topk(logprobs, TOP_K)
        values.half().numpy(), ids.numpy()
        n_tokens += int(batch["attention_mask"].sum())
    return n_tokens / (time.monotonic() - start)


def run_tdgen(tdgen: str, data: Path, compute: str) -> float:
    with tempfile.TemporaryDirectory() as tmp:
        subprocess.run([tdgen, "-c", str(ROOT / "conf" / "demo.ini"), "--quiet",
                        f"model.path={TEACHER}", f"data.path={data}", f"output.dir={tmp}/out",
                        f"capture.top_k={TOP_K}", f"model.compute={compute}"], check=True)
        status = json.loads(Path(tmp, "out", "status.json").read_text())
        return status["tokens"] / status["elapsed_s"]


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    tdgen, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3
    lines = (ROOT / "demo" / "demo.jsonl").read_text().splitlines()
    lines = (lines * (N_ROWS // len(lines) + 1))[:N_ROWS]
    texts = [json.loads(line)["text"] for line in lines]
    with tempfile.TemporaryDirectory() as tmp:
        data = Path(tmp, "data.jsonl")
        data.write_text("\n".join(lines) + "\n")
        for compute, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
            tokenizer, model = load(dtype)
            ratios = []
            for _ in range(rounds):
                ours = run_tdgen(tdgen, data, compute)
                theirs = run_transformers(tokenizer, model, texts)
                ratios.append(ours / theirs)
                print(f"{compute}: tdgen {ours:8.0f} tokens/s, transformers {theirs:8.0f}, "
                      f"ratio {ratios[-1]:.1f}")
            print(f"{compute}: median ratio {statistics.median(ratios):.1f}")


if __name__ == "__main__":
    main()
