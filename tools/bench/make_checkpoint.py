#!/usr/bin/env python3
"""A Hugging Face folder with random weights of a real model's shape, and token datasets: for benchmarks.

usage: make_checkpoint.py SHAPE DIR              weights (bf16) and config.json into DIR
       make_checkpoint.py --tokens SPEC N VOCAB FILE    a tokens dataset of about N ids
       make_checkpoint.py --shapes                      the shapes, with their bytes

Weights are normal, never zero (a GPU multiplies zeros with less power and so faster): cuts of one
random pool, from another place for each tensor, so that 16 GB take a few seconds. The output layer
is scaled so that the logits have a standard deviation of about 3. SPEC is a length (2048) or
"ragged": log-normal lengths, median 400, from 16 to 8192. Needs numpy only.
"""

import json
import math
import os
import sys
import threading
from pathlib import Path

import numpy as np

LLAMA3 = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
          "original_max_position_embeddings": 8192, "rope_type": "llama3"}
SHAPES = {  # hidden, ffn, layers, heads, kv heads, head_dim, vocabulary
    "tiny": dict(family="llama", dims=(256, 688, 4, 8, 4, 32, 4096), tied=False, like="nothing"),
    "deep": dict(family="llama", dims=(512, 1408, 24, 8, 4, 64, 4096), tied=False, like="nothing"),
    "1b": dict(family="llama", dims=(2048, 8192, 16, 32, 8, 64, 128256), tied=True,
               like="Llama-3.2-1B", rope=dict(LLAMA3, factor=32.0)),
    "8b": dict(family="llama", dims=(4096, 14336, 32, 32, 8, 128, 128256), tied=False,
               like="Llama-3.1-8B", rope=LLAMA3),
    "14b": dict(family="qwen3", dims=(5120, 17408, 40, 40, 8, 128, 151936), tied=False,
                like="Qwen3-14B"),
    "32b": dict(family="qwen3", dims=(5120, 25600, 64, 64, 8, 128, 151936), tied=False,
                like="Qwen3-32B"),
    "a3b": dict(family="qwen3_moe", dims=(2048, 6144, 48, 32, 4, 128, 151936), tied=False,
                like="Qwen3-30B-A3B", experts=(128, 8, 768)),
    "tiny-moe": dict(family="qwen3_moe", dims=(128, 256, 3, 4, 2, 32, 2048), tied=False,
                     like="nothing", experts=(16, 4, 96)),
}
FILE_BYTES = 2 << 30
POOL = 1 << 25


def config(shape: dict) -> dict:
    C, F, L, H, Hkv, D, V = shape["dims"]
    c = {"hidden_size": C, "intermediate_size": F, "num_hidden_layers": L, "num_attention_heads": H,
         "num_key_value_heads": Hkv, "head_dim": D, "vocab_size": V, "hidden_act": "silu",
         "rms_norm_eps": 1e-6, "max_position_embeddings": 40960, "attention_bias": False,
         "attention_dropout": 0.0, "initializer_range": 0.02, "bos_token_id": 0, "eos_token_id": 1,
         "tie_word_embeddings": shape["tied"], "torch_dtype": "bfloat16", "use_cache": True}
    if shape["family"] == "llama":
        c |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "mlp_bias": False,
              "rope_theta": 500000.0, "rope_scaling": shape.get("rope")}
    else:
        c |= {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "rope_theta": 1000000.0,
              "rope_scaling": None, "sliding_window": None, "use_sliding_window": False,
              "max_window_layers": L}
    if shape["family"] == "qwen3_moe":
        E, K, Fe = shape["experts"]
        c |= {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
              "num_experts": E, "num_experts_per_tok": K, "moe_intermediate_size": Fe,
              "decoder_sparse_step": 1, "norm_topk_prob": True, "mlp_only_layers": [],
              "router_aux_loss_coef": 0.001, "output_router_logits": False}
    return c


def tensors(shape: dict) -> list[tuple[str, tuple[int, ...], float]]:
    """(name, shape, standard deviation; 0: a norm's weight, about 1)"""
    C, F, L, H, Hkv, D, V = shape["dims"]
    head_std = 3.0 / math.sqrt(C)
    out = [("model.embed_tokens.weight", (V, C), head_std if shape["tied"] else 0.02)]
    small = 0.02 / math.sqrt(2 * L)  # what adds to the residual stream
    for i in range(L):
        p = f"model.layers.{i}."
        out += [(p + "input_layernorm.weight", (C,), 0.0),
                (p + "self_attn.q_proj.weight", (H * D, C), 0.02),
                (p + "self_attn.k_proj.weight", (Hkv * D, C), 0.02),
                (p + "self_attn.v_proj.weight", (Hkv * D, C), 0.02),
                (p + "self_attn.o_proj.weight", (C, H * D), small)]
        if shape["family"] != "llama":
            out += [(p + "self_attn.q_norm.weight", (D,), 0.0), (p + "self_attn.k_norm.weight", (D,), 0.0)]
        out += [(p + "post_attention_layernorm.weight", (C,), 0.0)]
        if "experts" in shape:
            E, _, Fe = shape["experts"]
            out += [(p + "mlp.gate.weight", (E, C), 0.05)]
            for e in range(E):
                q = f"{p}mlp.experts.{e}."
                out += [(q + "gate_proj.weight", (Fe, C), 0.02), (q + "up_proj.weight", (Fe, C), 0.02),
                        (q + "down_proj.weight", (C, Fe), small)]
        else:
            out += [(p + "mlp.gate_proj.weight", (F, C), 0.02), (p + "mlp.up_proj.weight", (F, C), 0.02),
                    (p + "mlp.down_proj.weight", (C, F), small)]
    out.append(("model.norm.weight", (C,), 0.0))
    if not shape["tied"]:
        out.append(("lm_head.weight", (V, C), head_std))
    return out


def n_params(shape: dict) -> int:
    return sum(math.prod(s) for _, s, _ in tensors(shape))


def flops_per_token(shape: dict, n_context: float) -> float:
    """Multiplications and additions of the forward pass for a token that attends to n_context others
    on average (causal: half of the length), lm_head included; what is not a product is not counted."""
    C, F, L, H, Hkv, D, V = shape["dims"]
    mlp = 3 * C * F
    if "experts" in shape:
        E, K, Fe = shape["experts"]
        mlp = K * 3 * C * Fe + E * C
    weights = L * (C * (H + 2 * Hkv) * D + H * D * C + mlp) + V * C
    return 2.0 * weights + L * 4.0 * H * D * n_context


def to_bf16(x: np.ndarray) -> np.ndarray:
    u = x.view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


class Pool:
    """Normal numbers as bf16, one array per standard deviation."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.normal = rng.standard_normal(POOL, dtype=np.float32)
        self.scaled: dict[float, memoryview] = {}

    def of(self, std: float) -> memoryview:
        if std not in self.scaled:
            x = self.normal * np.float32(std) if std else 1 + np.float32(0.1) * self.normal
            self.scaled[std] = memoryview(to_bf16(x)).cast("B")
        return self.scaled[std]


def write_file(path: Path, items: list, pool: Pool, offsets: list[int]) -> None:
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _ in items:
        n_bytes = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb", buffering=0) as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for (_, shape, std), offset in zip(items, offsets, strict=True):
            left, view = 2 * math.prod(shape), pool.of(std)
            while left > 0:
                cut = view[offset : offset + left]
                n = f.write(cut)
                left, offset = left - n, (offset + n) % len(view)


def make_checkpoint(name: str, folder: Path) -> None:
    shape = SHAPES[name]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(shape), indent=2) + "\n")
    rng = np.random.default_rng(1)
    pool = Pool(rng)
    files, current, size = [], [], 0
    for item in tensors(shape):
        pool.of(item[2])
        n_bytes = 2 * math.prod(item[1])
        if current and size + n_bytes > FILE_BYTES:
            files.append(current)
            current, size = [], 0
        current.append(item)
        size += n_bytes
    files.append(current)
    names = ["model.safetensors"] if len(files) == 1 else [
        f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    if len(files) > 1:
        index = {"metadata": {"total_size": 2 * n_params(shape)},
                 "weight_map": {t[0]: n for n, f in zip(names, files, strict=True) for t in f}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    # Even offsets, so that a cut begins at a number.
    work = [(folder / n, f, pool, [2 * int(o) for o in rng.integers(0, POOL, len(f))])
            for n, f in zip(names, files, strict=True)]
    errors: list[BaseException] = []

    def run(mine: list) -> None:
        try:
            for job in mine:
                write_file(*job)
        except BaseException as e:  # for the main thread
            errors.append(e)

    n_threads = min(len(work), os.cpu_count() or 1, 8)
    threads = [threading.Thread(target=run, args=(work[i::n_threads],)) for i in range(n_threads)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]


def lengths(spec: str, n_tokens: int) -> np.ndarray:
    if spec != "ragged":
        return np.full(max(1, round(n_tokens / int(spec))), int(spec), dtype=np.int64)
    rng = np.random.default_rng(7)
    drawn = np.exp(rng.normal(math.log(400), 1.0, size=max(64, n_tokens // 16)))
    drawn = np.clip(np.round(drawn), 16, 8192).astype(np.int64)
    n = int(np.searchsorted(np.cumsum(drawn), n_tokens)) + 1
    return drawn[:n]


def make_tokens(spec: str, n_tokens: int, vocab: int, path: Path) -> np.ndarray:
    """Writes the dataset and gives the lengths of its samples."""
    n = lengths(spec, n_tokens)
    ids = np.random.default_rng(11).integers(2, vocab, size=int(n.sum()), dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(n)]).astype(np.int64)
    header = {
        "sample_offsets": {"dtype": "I64", "shape": [len(offsets)], "data_offsets": [0, offsets.nbytes]},
        "input_ids": {"dtype": "I32", "shape": [len(ids)],
                      "data_offsets": [offsets.nbytes, offsets.nbytes + ids.nbytes]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + offsets.tobytes() + ids.tobytes())
    return n


def main() -> None:
    if sys.argv[1:] == ["--shapes"]:
        for name, shape in SHAPES.items():
            print(f"{name:10s} {shape['like']:16s} {2e-9 * n_params(shape):8.3f} GB in bf16")
    elif len(sys.argv) == 6 and sys.argv[1] == "--tokens":
        make_tokens(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
    elif len(sys.argv) == 3 and sys.argv[1] in SHAPES:
        make_checkpoint(sys.argv[1], Path(sys.argv[2]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
