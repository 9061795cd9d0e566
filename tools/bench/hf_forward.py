#!/usr/bin/env python3
"""Hugging Face transformers doing tdgen's job on token datasets: the other half of tools/bench_gpu.

usage: hf_forward.py MODEL_DIR DEVICE SECONDS TOP_K MAX_TOKENS DATASET[:RECORD]...

For each DATASET (safetensors with input_ids and sample_offsets): batches of padded samples of at
most MAX_TOKENS positions, forward (sdpa, bf16, no cache), log-softmax in f32, top TOP_K, both to the
host as a user would keep them. After a warm-up batch, batches are taken in random order for SECONDS,
so that what was done is a fair sample of the dataset. Variants:

    equal     all samples are of one length: no padding, no mask
    in order  batches as the dataset comes, padded on the right, with a mask
    sorted    batches of samples of like length, with a mask
    no mask   the same without the mask: causal attention never looks at what is padded on the right,
              and the kernels without masks are faster

Prints a JSON line per dataset and variant. With RECORD, a folder that tdgen wrote for the dataset:
also how often both find the same token likeliest in the first samples.
"""

import gc
import importlib.util
import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

DTYPES = {"I32": np.int32, "I64": np.int64, "F16": np.float16, "F32": np.float32, "U8": np.uint8}
ROW_CHUNK = 2048  # rows of logits that are held in f32 at a time


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    out = {}
    for name, t in json.loads(data[8 : 8 + n]).items():
        if name != "__metadata__":
            a, b = t["data_offsets"]
            out[name] = np.frombuffer(data[8 + n + a : 8 + n + b], DTYPES[t["dtype"]]).reshape(t["shape"])
    return out


def batches_of(lengths: np.ndarray, order: np.ndarray, max_tokens: int) -> list[list[int]]:
    out, current, longest = [], [], 0
    for i in order:
        longest_now = max(longest, int(lengths[i]))
        if current and longest_now * (len(current) + 1) > max_tokens:
            out.append(current)
            current, longest_now = [], int(lengths[i])
        current.append(int(i))
        longest = longest_now
    return out + [current]


class Bench:
    def __init__(self, folder: str, device: str, seconds: float, top_k: int) -> None:
        self.device, self.seconds, self.top_k = device, seconds, top_k
        # With accelerate straight to the device; else through a copy in host memory.
        place = {"device_map": device} if importlib.util.find_spec("accelerate") else {}
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, attn_implementation="sdpa", **place).to(device).eval()

    def sync(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    @torch.inference_mode()
    def forward(self, samples: list[np.ndarray], mask: bool) -> tuple[list, list]:
        n = max(len(s) for s in samples)
        ids = np.zeros((len(samples), n), dtype=np.int64)
        keep = np.zeros((len(samples), n), dtype=np.int64)
        for i, s in enumerate(samples):
            ids[i, : len(s)] = s
            keep[i, : len(s)] = 1
        ids_d = torch.from_numpy(ids).to(self.device)
        keep_d = torch.from_numpy(keep).to(self.device)
        logits = self.model(input_ids=ids_d, attention_mask=keep_d if mask else None,
                            use_cache=False).logits
        rows = logits.view(-1, logits.shape[-1])
        values, tokens = [], []
        for chunk in rows.split(ROW_CHUNK):
            top = torch.topk(torch.log_softmax(chunk.float(), -1), self.top_k)
            values.append(top.values.half())
            tokens.append(top.indices.int())
        real = keep_d.view(-1).bool()
        return torch.cat(values)[real].cpu(), torch.cat(tokens)[real].cpu()

    def measure(self, samples: list[np.ndarray], batches: list[list[int]], mask: bool) -> dict:
        self.forward([samples[i] for i in max(batches, key=lambda b: sum(len(samples[i]) for i in b))], mask)
        self.sync()
        order = batches[:]
        random.Random(3).shuffle(order)
        n_tokens = n_batches = n_padded = 0
        begin = time.monotonic()
        for b in order:
            chosen = [samples[i] for i in b]
            self.forward(chosen, mask)
            n_tokens += sum(len(s) for s in chosen)
            n_padded += len(chosen) * max(len(s) for s in chosen)
            n_batches += 1
            if time.monotonic() - begin > self.seconds:
                break
        self.sync()
        elapsed = time.monotonic() - begin
        return {"tokens_per_s": n_tokens / elapsed, "seconds": elapsed, "tokens": n_tokens,
                "batches": n_batches, "padding": 1 - n_tokens / n_padded}


def agreement(bench: Bench, samples: list[np.ndarray], record: Path) -> float | None:
    """Share of positions where both find the same token likeliest, over the first 2048 tokens."""
    shard = record / "shard-000000.safetensors"
    if not shard.exists():
        return None
    r = read_safetensors(shard)
    same = n = 0
    for i, sample in enumerate(samples):
        if n >= 2048 or i + 1 >= len(r["row_offsets"]):
            break
        a, b = r["row_offsets"][i : i + 2]
        _, tokens = bench.forward([sample], False)
        theirs = tokens[: b - a, 0].numpy()
        same += int((theirs == r["topk_ids"][a:b, 0]).sum())
        n += int(b - a)
    return same / n if n else None


def main() -> None:
    if len(sys.argv) < 7:
        sys.exit(__doc__)
    folder, device, seconds, top_k, max_tokens = sys.argv[1:6]
    begin = time.monotonic()
    bench = Bench(folder, device, float(seconds), int(top_k))
    print(json.dumps({"loaded_s": time.monotonic() - begin}), flush=True)
    for argument in sys.argv[6:]:
        path, _, record = argument.partition(":")
        data = read_safetensors(Path(path))
        offsets = data["sample_offsets"]
        lengths = np.diff(offsets)
        samples = [data["input_ids"][a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
        plain = np.arange(len(samples))
        by_length = np.argsort(-lengths, kind="stable")
        if lengths.min() == lengths.max():
            variants = [("equal", plain, False)]
        else:
            variants = [("in order", plain, True), ("sorted", by_length, True), ("no mask", by_length, False)]
        for name, order, mask in variants:
            limit = int(max_tokens)
            while True:
                try:
                    out = bench.measure(samples, batches_of(lengths, order, limit), mask)
                    break
                except torch.OutOfMemoryError:
                    if limit <= int(lengths.max()):
                        out = {"error": "out of memory with a single sample"}
                        break
                    limit //= 2
                gc.collect()
                torch.cuda.empty_cache()
            out |= {"dataset": path, "variant": name, "max_tokens": limit}
            if record and name == variants[-1][0]:
                out["top1_agreement"] = agreement(bench, samples, Path(record))
            print(json.dumps(out), flush=True)


if __name__ == "__main__":
    main()
