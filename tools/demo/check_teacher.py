"""Checks the demo teacher with a forward pass of its own, in plain NumPy.

    VENV/bin/python tools/demo/check_teacher.py demo/teacher

Prints the five likeliest next tokens after a few prefixes, a greedy continuation of each,
and the loss on the held-out chapters. Exits with 1 when a prediction or the loss is off.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from safetensors import deserialize
from tokenizers import Tokenizer

import kjv

EXPECTED = {
    "In the beginning God created the": " earth",
    "And it came to": " pass",
    "The LORD is my": " strength",
    "Blessed are the poor in": " spirit",
    "thus saith the LORD of": " hosts",
    "And he said unto": " him",
}
WORST_LOSS = 3.0


def load(folder: Path) -> tuple[dict, dict[str, np.ndarray], Tokenizer]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = {}
    for name, tensor in deserialize((folder / "model.safetensors").read_bytes()):
        if tensor["dtype"] != "BF16":
            raise ValueError(f"{name} is {tensor['dtype']}, not BF16")
        halves = np.frombuffer(tensor["data"], "<u2").astype("<u4")
        weights[name] = (halves << 16).view("<f4").reshape(tensor["shape"])
    return config, weights, Tokenizer.from_file(str(folder / "tokenizer.json"))


def forward(config: dict, weights: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """Logits [time, vocab] of one sequence."""
    heads, size = config["num_attention_heads"], config["head_dim"]
    group = heads // config["num_key_value_heads"]
    time = len(ids)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"])
        return weights[name] * x / scale

    frequencies = config["rope_theta"] ** -(np.arange(0, size, 2) / size)
    angles = np.arange(time)[:, None, None] * frequencies

    def rotate(x: np.ndarray) -> np.ndarray:
        low, high = x[..., : size // 2], x[..., size // 2 :]
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], -1)

    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        h = norm(x, at + "input_layernorm.weight")
        q, k, v = (
            (h @ weights[f"{at}self_attn.{part}_proj.weight"].T).reshape(time, -1, size)
            for part in "qkv"
        )
        q, k = rotate(q), rotate(k)
        mixed = np.empty_like(q)
        for head in range(heads):
            scores = q[:, head] @ k[:, head // group].T / np.sqrt(size)
            scores[np.triu_indices(time, 1)] = -np.inf
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[:, head] = shares / shares.sum(-1, keepdims=True) @ v[:, head // group]
        x = x + mixed.reshape(time, -1) @ weights[at + "self_attn.o_proj.weight"].T

        h = norm(x, at + "post_attention_layernorm.weight")
        gate = h @ weights[at + "mlp.gate_proj.weight"].T
        gated = gate / (1 + np.exp(-gate)) * (h @ weights[at + "mlp.up_proj.weight"].T)
        x = x + gated @ weights[at + "mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ weights["model.embed_tokens.weight"].T


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def held_out_loss(config: dict, weights: dict[str, np.ndarray], tokenizer: Tokenizer) -> float:
    """Mean loss of every token after the first of each row of at most the context's length."""
    _, held_out = kjv.split(kjv.chapters())
    length, total, count = config["max_position_embeddings"], 0.0, 0
    for verses in held_out.values():
        ids = [*tokenizer.encode(kjv.join(verses)).ids, config["eos_token_id"]]
        for begin in range(0, len(ids) - 1, length):
            piece = ids[begin : begin + length + 1]
            logprobs = log_softmax(forward(config, weights, piece[:-1]))
            total -= logprobs[np.arange(len(piece) - 1), piece[1:]].sum()
            count += len(piece) - 1
    return total / count


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the demo teacher.")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    config, weights, tokenizer = load(args.folder)
    wrong = 0

    for prefix, expected in EXPECTED.items():
        ids = tokenizer.encode(prefix).ids
        logprobs = log_softmax(forward(config, weights, ids)[-1])
        top = logprobs.argsort()[:-6:-1]
        best = [(tokenizer.decode([int(token)]), np.exp(logprobs[token])) for token in top]
        print(f"{prefix!r}: " + ", ".join(f"{token!r} {share:.3f}" for token, share in best))
        if expected not in [token for token, _ in best]:
            print(f"  {expected!r} is missing", file=sys.stderr)
            wrong += 1
        start = len(ids)
        while len(ids) < start + 24 and ids[-1] != config["eos_token_id"]:
            ids.append(int(forward(config, weights, ids)[-1].argmax()))
        print(f"  greedy: {tokenizer.decode(ids[start:])!r}")

    loss = held_out_loss(config, weights, tokenizer)
    print(f"held-out loss {loss:.4f} nats a token (limit {WORST_LOSS})")
    return 1 if wrong or not loss < WORST_LOSS else 0


if __name__ == "__main__":
    sys.exit(main())
