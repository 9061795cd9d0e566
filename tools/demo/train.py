"""Trains the demo teacher: a tokenizer and a one-million-parameter Llama, on the CPU.

    apt-get install bible-kjv bible-kjv-text
    python3 -m venv VENV && VENV/bin/pip install -r tools/demo/requirements.txt
    VENV/bin/python tools/demo/train.py --out demo/teacher

The text is the King James Bible (see kjv.py), less the held-out chapters. The model is
Llama as Hugging Face transformers computes it: RMSNorm, rotary embeddings in the
half-rotation layout, grouped-query attention, SwiGLU, tied embeddings. It trains in
float32, the projection matrices with Muon (in 400 steps it reached a held-out loss of 3.95
where AdamW alone reached 4.50) and the embedding and norms with AdamW, and is written as
bfloat16. The folder is rewritten at every checkpoint, so an unfinished run leaves a usable
model.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, muon
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import kjv

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 352,
    "max_position_embeddings": 512,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 2048,
}
HIDDEN = CONFIG["hidden_size"]
HEADS = CONFIG["num_attention_heads"]
KV_HEADS = CONFIG["num_key_value_heads"]
HEAD_DIM = CONFIG["head_dim"]
FFN = CONFIG["intermediate_size"]
LAYERS = CONFIG["num_hidden_layers"]
VOCAB = CONFIG["vocab_size"]
CONTEXT = CONFIG["max_position_embeddings"]

FAMILIAR_DRAWS = 8  # how much likelier a row starts in a familiar chapter than elsewhere

Params = dict[str, jax.Array]


# Tokenizer


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE; every text it encodes begins with the bos token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[kjv.BOS, kjv.EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{kjv.BOS} $A",
        pair=f"{kjv.BOS} $A {kjv.BOS}:1 $B:1",
        special_tokens=[(kjv.BOS, CONFIG["bos_token_id"])],
    )
    assert tokenizer.get_vocab_size() == VOCAB
    assert tokenizer.token_to_id(kjv.BOS) == CONFIG["bos_token_id"]
    assert tokenizer.token_to_id(kjv.EOS) == CONFIG["eos_token_id"]
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(
        out / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": kjv.BOS,
            "clean_up_tokenization_spaces": False,
            "eos_token": kjv.EOS,
            "model_max_length": CONTEXT,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


# Data


def token_stream(
    tokenizer: Tokenizer, book: dict[str, list[kjv.Verse]]
) -> tuple[np.ndarray, np.ndarray]:
    """All chapters, each between bos and eos, and the verse starts that rows are drawn from."""
    newline = tokenizer.encode("\n", add_special_tokens=False).ids
    stream: list[int] = []
    starts: list[int] = []
    for chapter, verses in book.items():
        draws = FAMILIAR_DRAWS if chapter in kjv.FAMILIAR else 1
        stream.append(CONFIG["bos_token_id"])
        for index, verse in enumerate(verses):
            if index:
                stream += newline
            starts += [len(stream)] * draws
            stream += tokenizer.encode(verse.text, add_special_tokens=False).ids
        stream.append(CONFIG["eos_token_id"])
    return np.array(stream, np.int32), np.array(starts)


def windows(stream: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """One row for each start: bos, then length tokens of the stream (which wraps around)."""
    index = (starts[:, None] + np.arange(length)[None, :]) % len(stream)
    bos = np.full((len(starts), 1), CONFIG["bos_token_id"], np.int32)
    return np.concatenate([bos, stream[index]], axis=1)


def held_out_rows(
    tokenizer: Tokenizer, book: dict[str, list[kjv.Verse]], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Each held-out chapter as bos, text, eos, cut into rows; a mask marks real targets."""
    rows, masks = [], []
    for verses in book.values():
        ids = [*tokenizer.encode(kjv.join(verses)).ids, CONFIG["eos_token_id"]]
        for begin in range(0, len(ids) - 1, length):
            piece = ids[begin : begin + length + 1]
            padding = length + 1 - len(piece)
            rows.append(piece + [CONFIG["eos_token_id"]] * padding)
            masks.append([1.0] * (len(piece) - 1) + [0.0] * padding)
    return np.array(rows, np.int32), np.array(masks, np.float32)


# Model


def initial_params(key: jax.Array) -> Params:
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        shapes |= {
            at + "input_layernorm.weight": (HIDDEN,),
            at + "self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
            at + "self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            at + "self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            at + "self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            at + "post_attention_layernorm.weight": (HIDDEN,),
            at + "mlp.gate_proj.weight": (FFN, HIDDEN),
            at + "mlp.up_proj.weight": (FFN, HIDDEN),
            at + "mlp.down_proj.weight": (HIDDEN, FFN),
        }
    params = {}
    for name, shape in shapes.items():
        key, draw = jax.random.split(key)
        if "norm" in name:
            params[name] = jnp.ones(shape)
            continue
        scale = CONFIG["initializer_range"]
        if "embed" not in name:
            scale = shape[1] ** -0.5
        if "o_proj" in name or "down_proj" in name:
            scale /= (2 * LAYERS) ** 0.5
        params[name] = scale * jax.random.normal(draw, shape)
    return params


def rms_norm(x: jax.Array, weight: jax.Array) -> jax.Array:
    variance = jnp.mean(x * x, axis=-1, keepdims=True)
    return weight * (x * jax.lax.rsqrt(variance + CONFIG["rms_norm_eps"]))


def rotary_tables(length: int) -> tuple[jax.Array, jax.Array]:
    exponents = np.arange(0, HEAD_DIM, 2) / HEAD_DIM
    angles = np.outer(np.arange(length), CONFIG["rope_theta"] ** -exponents)
    angles = np.concatenate([angles, angles], axis=-1)[None, :, None, :]
    return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    cos, sin = tables
    low, high = jnp.split(x, 2, axis=-1)
    return x * cos + jnp.concatenate([-high, low], axis=-1) * sin


def forward(params: Params, tokens: jax.Array) -> jax.Array:
    """Logits [batch, time, vocab] of tokens [batch, time]."""
    batch, time_steps = tokens.shape
    tables = rotary_tables(time_steps)
    causal = jnp.tril(jnp.ones((time_steps, time_steps), bool))
    embedding = params["model.embed_tokens.weight"]
    x = embedding[tokens]
    for layer in range(LAYERS):
        weight = partial(lambda at, name: params[at + name + ".weight"], f"model.layers.{layer}.")

        h = rms_norm(x, weight("input_layernorm"))
        q = (h @ weight("self_attn.q_proj").T).reshape(batch, time_steps, HEADS, HEAD_DIM)
        k = (h @ weight("self_attn.k_proj").T).reshape(batch, time_steps, KV_HEADS, HEAD_DIM)
        v = (h @ weight("self_attn.v_proj").T).reshape(batch, time_steps, KV_HEADS, HEAD_DIM)
        q, k = rotate(q, tables), rotate(k, tables)
        k, v = (jnp.repeat(part, HEADS // KV_HEADS, axis=2) for part in (k, v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * HEAD_DIM**-0.5
        attention = jax.nn.softmax(jnp.where(causal, scores, -1e30), axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", attention, v).reshape(batch, time_steps, -1)
        x = x + mixed @ weight("self_attn.o_proj").T

        h = rms_norm(x, weight("post_attention_layernorm"))
        gated = jax.nn.silu(h @ weight("mlp.gate_proj").T) * (h @ weight("mlp.up_proj").T)
        x = x + gated @ weight("mlp.down_proj").T
    return rms_norm(x, params["model.norm.weight"]) @ embedding.T


def token_losses(params: Params, rows: jax.Array) -> jax.Array:
    logits = forward(params, rows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:])


@jax.jit
def masked_loss_sum(params: Params, rows: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(token_losses(params, rows) * mask)


def mean_loss(params: Params, rows: np.ndarray, mask: np.ndarray, batch: int = 8) -> float:
    total = 0.0
    for begin in range(0, len(rows), batch):
        part = slice(begin, begin + batch)
        total += float(masked_loss_sum(params, rows[part], mask[part]))
    return total / float(mask.sum())


# Optimizer


def make_optimizer(lr: float, adamw_lr: float, steps: int) -> optax.GradientTransformation:
    """Muon for the projections, AdamW for the rest; warm-up, then cosine to nothing."""

    def schedule(peak: float) -> optax.Schedule:
        return optax.warmup_cosine_decay_schedule(0.0, peak, max(1, steps // 40), steps)

    def projections(params: Params) -> dict[str, MuonDimensionNumbers | None]:
        return {
            name: MuonDimensionNumbers(reduction_axis=1, output_axis=0) if "proj" in name else None
            for name in params
        }

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        muon(
            schedule(lr),
            adam_learning_rate=schedule(adamw_lr),
            adam_b2=0.98,
            weight_decay=0.05,
            muon_weight_dimension_numbers=projections,
        ),
    )


# Output


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def as_bfloat16(params: Params) -> dict[str, np.ndarray]:
    return {name: np.asarray(value).astype(ml_dtypes.bfloat16) for name, value in params.items()}


def write_model(params: Params, out: Path) -> None:
    write_json(out / "config.json", CONFIG)
    save_file(as_bfloat16(params), str(out / "model.safetensors"), metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo teacher.")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--length", type=int, default=256, help="tokens in a training row")
    parser.add_argument(
        "--long-share",
        type=float,
        default=0.15,
        help="last share of the steps, trained with rows as long as the context",
    )
    parser.add_argument("--lr", type=float, default=2e-2, help="peak for the projections")
    parser.add_argument("--adamw-lr", type=float, default=3e-3, help="peak for the rest")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--checkpoint-every", type=int, default=500)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    train, held_out = kjv.split(kjv.chapters())
    tokenizer = train_tokenizer([kjv.join(verses) for verses in train.values()])
    write_tokenizer(tokenizer, args.out)
    stream, starts = token_stream(tokenizer, train)
    rows, mask = held_out_rows(tokenizer, held_out, CONTEXT)
    train_sample = dict(list(train.items())[:: len(train) // len(held_out)])
    sample_rows, sample_mask = held_out_rows(tokenizer, train_sample, CONTEXT)

    params = initial_params(jax.random.key(args.seed))
    optimizer = make_optimizer(args.lr, args.adamw_lr, args.steps)
    state = optimizer.init(params)
    count = sum(value.size for value in params.values())
    print(f"{count} parameters, {len(stream)} training tokens, {int(mask.sum())} held-out tokens")

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(
        params: Params, state: optax.OptState, batch: jax.Array
    ) -> tuple[Params, optax.OptState, jax.Array]:
        loss, gradients = jax.value_and_grad(lambda p: jnp.mean(token_losses(p, batch)))(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    draw = np.random.default_rng(args.seed)
    long_from = round(args.steps * (1 - args.long_share))
    seen, losses, began = 0, [], time.monotonic()
    for index in range(1, args.steps + 1):
        length = CONTEXT if index > long_from else args.length
        chosen = draw.choice(starts, args.batch_tokens // length)
        params, state, loss = step(params, state, windows(stream, chosen, length))
        losses.append(float(loss))
        seen += args.batch_tokens
        if index % 50 == 0:
            rate, mean = seen / (time.monotonic() - began), np.mean(losses[-50:])
            print(f"step {index}  loss {mean:.4f}  {rate:.0f} tokens/s", flush=True)
        if index % args.checkpoint_every == 0 or index == args.steps:
            write_model(params, args.out)
            print(f"step {index}  held-out loss {mean_loss(params, rows, mask):.4f}", flush=True)

    exported = {name: jnp.asarray(v, jnp.float32) for name, v in as_bfloat16(params).items()}
    print(f"minutes {(time.monotonic() - began) / 60:.1f}")
    print(f"exported model, train loss {mean_loss(exported, sample_rows, sample_mask):.4f}")
    print(f"exported model, held-out loss {mean_loss(exported, rows, mask):.4f}")


if __name__ == "__main__":
    main()
