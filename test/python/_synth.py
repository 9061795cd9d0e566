"""Runs of every capture mode, written in plain NumPy after README's description of the record: what the
reader and the exports are compared with. The teacher is a table of logits, so every number is known.
"""

import argparse
import json
import os
import struct
import subprocess
import sys

import numpy as np

TYPES = {np.dtype("i8"): "I64", np.dtype("i4"): "I32", np.dtype("f4"): "F32", np.dtype("f2"): "F16",
         np.dtype("u1"): "U8", np.dtype("u2"): "BF16"}


ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def program(doc):
    """Path of the tdgen to test: --tdgen, TDGEN, or the release build."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--tdgen", default=os.environ.get("TDGEN"))
    args = parser.parse_args()
    tdgen = os.path.abspath(args.tdgen or os.path.join(ROOT, "build", "release", "src", "tdgen"))
    if not os.access(tdgen, os.X_OK):
        sys.exit(f"{tdgen} is not there: build tdgen, or give --tdgen PATH")
    return tdgen


def offers(tdgen, compute):
    """Has this machine's CPU device the compute mode? A test that needs it says SKIPPED where not."""
    listing = subprocess.run([tdgen, "devices"], capture_output=True, text=True, check=True).stdout
    return any(line.startswith("cpu:0") and f" {compute} " in line for line in listing.splitlines())


def to_bf16(x):
    """uint16 bits, rounded to nearest, ties to even."""
    u = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    out = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)
    return out


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def lse(x):
    m = x.max(axis=-1, keepdims=True)
    return (m + np.log(np.exp(x - m).sum(axis=-1, keepdims=True)))[..., 0]


class Teacher:
    """n samples of random tokens, with logits [R, V] of every target position."""

    def __init__(self, vocab=53, n=9, longest=17, hidden=12, seed=1, masked=0, all_targets=False, length=None,
                 sharp=3.0):
        rng = np.random.default_rng(seed)
        self.vocab, self.samples = vocab, []
        self.head = (rng.normal(size=(vocab, hidden)) / np.sqrt(hidden) * sharp).astype(np.float32)
        for i in range(n):
            size = length or int(rng.integers(3, longest + 1))
            if not length and i == 3:
                size = 1  # nothing to predict
            ids = rng.integers(0, vocab - masked, size).astype(np.int32)
            mask = np.ones(size, np.uint8) if all_targets else (rng.random(size) < 0.7).astype(np.uint8)
            if not all_targets and i % 2 and size > 4:
                mask[: size // 2] = 0  # a prompt
                mask[size // 2 :] = 1
            mask[0] = 0
            rows = np.flatnonzero(mask[1:]).astype(np.int32)
            # States that bf16 holds, so that lm_head of what is stored gives these very logits.
            state = from_bf16(to_bf16(rng.normal(size=(len(rows), hidden))))
            logits = (state.astype(np.float64) @ self.head.astype(np.float64).T).astype(np.float32)
            logits[:, vocab - masked :] = -np.inf
            self.samples.append({"ids": ids, "mask": mask, "rows": rows, "logits": logits, "state": state,
                                 "index": i // 2, "start": 5 * (i % 2), "id": f"row-\u00e4{i}"})

    def logp(self, i, temperature=1.0):
        """float64 [R, V] log-probabilities of sample i, all of them."""
        z = self.samples[i]["logits"].astype(np.float64) / temperature
        return z - lse(z)[:, None] if len(z) else z


def order(row):
    """ids by log-probability descending, ties by the lower id."""
    return np.lexsort((np.arange(len(row)), -row.astype(np.float32)))


def pack(ids, bits):
    """Bit by bit, the lowest first: bytes of one stream."""
    value, out = 0, bytearray((len(ids) * bits + 7) // 8)
    for at, x in enumerate(ids):
        value = x if x >= 0 else (1 << bits) - 1
        for b in range(bits):
            if value >> b & 1:
                out[(at * bits + b) // 8] |= 1 << ((at * bits + b) % 8)
    return np.frombuffer(bytes(out), np.uint8)


def quantise(logprobs):
    """(uint8 [K], float32 [2]) of one row: (max - value) / (max - min) * 254, 255 for -inf."""
    finite = logprobs[np.isfinite(logprobs)].astype(np.float32)
    high, low = (finite.max(), finite.min()) if len(finite) else (np.float32(0), np.float32(0))
    q = np.full(len(logprobs), 255, np.uint8)
    for i, x in enumerate(logprobs):
        if np.isfinite(x):
            q[i] = 0 if high == low else round(float(high - x) / float(high - low) * 254)
    return q, np.array([high, low], np.float32)


def xxh3(data):
    import xxhash

    return xxhash.xxh3_64_hexdigest(data)


def compact(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def write_safetensors(path, tensors, metadata):
    """With a fingerprint in its metadata a shard, whose header has the hashes of README's description."""
    header, at, parts = {"__metadata__": metadata}, 0, []
    for name in sorted(tensors, key=lambda n: -tensors[n].dtype.itemsize):
        x = np.ascontiguousarray(tensors[name])
        header[name] = {"dtype": TYPES[x.dtype], "shape": list(x.shape), "data_offsets": [at, at + x.nbytes]}
        at += x.nbytes
        parts.append(x.tobytes())
    if "fingerprint" in metadata:
        metadata.update(header_hash="0" * 16, data_hash=xxh3(b"".join(parts)), tensor_hashes=",".join(map(xxh3, parts)))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    if "fingerprint" in metadata:
        key = b'"header_hash":"'
        text = text.replace(key + b"0" * 16, key + xxh3(text).encode(), 1)
    data = struct.pack("<Q", len(text)) + text + b"".join(parts)
    if path.endswith(".zst"):
        import zstandard

        data = zstandard.ZstdCompressor(write_checksum=True, write_content_size=True).compress(data)
    with open(path, "wb") as f:
        f.write(data)


def write_manifest(folder, manifest):
    """With the hash of its content."""
    manifest.pop("hash", None)
    manifest["hash"] = xxh3(compact(manifest))
    with open(os.path.join(folder, "manifest.json"), "w", encoding="utf-8") as f:
        json.dump(manifest, f)


def write_run(folder, teacher, mode, top_k=8, top_p=0.9, min_k=1, n_draws=20, proposal_power=1.0, dtype="f16",
              packed=False, zstd=False, temperatures=(2.0, 0.5), always_ids=(), dense_dtype="bf16", with_ids=True,
              per_shard=4, seed=7, identity=(), times=1, empty=False, extent=None):
    """Writes a run of `mode` into folder, `per_shard` samples a shard. Returns what was drawn, per sample.

    identity: more of the manifest's, or other values; times: the same shards so often, with new numbers;
    empty: shards without a sample; extent: that of the manifest, whose shards are of one dataset row here.
    """
    os.makedirs(folder)
    v, rng, bits = teacher.vocab, np.random.default_rng(seed), teacher.vocab.bit_length()
    spec = {"mode": mode, "top_k": top_k, "top_p": top_p, "min_k": min_k, "n_draws": n_draws,
            "proposal_power": proposal_power, "logprob_dtype": dtype, "dense_dtype": dense_dtype, "pack_ids": packed,
            "always_ids": list(always_ids), "id_bits": bits, "temperatures": list(temperatures)}
    known = {"schema": 2, "model.n_vocab": v, "tokenizer.hash": "aaaaaaaaaaaaaaaa",
             "data.max_length": max(len(s["ids"]) for s in teacher.samples),
             **{f"capture.{k}": x for k, x in spec.items() if k != "id_bits"}, **dict(identity)}
    if with_ids:
        known["data.id_field"] = "id"
    fingerprint = xxh3(compact(known))
    manifest = {"schema": 2, "fingerprint": fingerprint, "tdgen": "0.1.0", "model_path": "teacher", "capture": spec,
                "identity": known}
    if extent is not None:
        manifest["extent"] = extent
    write_manifest(folder, manifest)
    drawn, tensors = [], []
    for first in range(0, len(teacher.samples), per_shard):
        chosen = range(first, min(first + per_shard, len(teacher.samples)))
        t = _shard_tensors(teacher, chosen, spec, rng, drawn, with_ids)
        if empty:
            t = {name: x[:1] if name.endswith("_offsets") else x[:0] for name, x in t.items()}
        tensors.append(t)
    for shard, t in enumerate(tensors * times):
        name = f"shard-{shard:06d}.safetensors" + (".zst" if zstd else "")
        meta = {"fingerprint": fingerprint, "schema": "tdgen-record-2", "shard": str(shard), "capture": json.dumps(spec),
                "source_hash": "5" * 16}
        path = os.path.join(folder, name)
        write_safetensors(path, t, meta)
        with open(path, "rb") as f:
            whole = f.read()
        line = {"file": name, "shard": shard, "row_begin": shard, "row_end": shard + 1, "samples": len(t["sample_index"]),
                "tokens": len(t["input_ids"]), "rows": len(t["row_position"]), "skipped": 0, "bad_rows": 0,
                "overflow_rows": 0, "size_bytes": len(whole), "source_hash": meta["source_hash"],
                "data_hash": meta["data_hash"], "file_hash": xxh3(whole)}
        with open(os.path.join(folder, "shards.jsonl"), "a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")
    with open(os.path.join(folder, "status.json"), "w", encoding="utf-8") as f:
        json.dump({"state": "done"}, f)
    return drawn


def _ends(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _shard_tensors(teacher, chosen, spec, rng, drawn, with_ids):
    samples = [teacher.samples[i] for i in chosen]
    mode, v = spec["mode"], teacher.vocab
    t = {
        "input_ids": np.concatenate([s["ids"] for s in samples]),
        "loss_mask": np.concatenate([s["mask"] for s in samples]),
        "sample_offsets": _ends([len(s["ids"]) for s in samples]),
        "sample_index": np.array([s["index"] for s in samples], np.int64),
        "sample_start": np.array([s["start"] for s in samples], np.int64),
        "sample_device": np.zeros(len(samples), np.uint8),
        "sample_status": np.zeros(len(samples), np.uint8),
        "row_offsets": _ends([len(s["rows"]) for s in samples]),
        "row_position": np.concatenate([s["rows"] for s in samples]).astype(np.int32),
    }
    if with_ids:
        names = [s["id"].encode() for s in samples]
        t["sample_id_bytes"] = np.frombuffer(b"".join(names), np.uint8)
        t["sample_id_offsets"] = _ends([len(n) for n in names])
    if mode == "hidden":
        t["hidden"] = _dense(np.concatenate([s["state"] for s in samples]), spec["dense_dtype"])
        return t
    logits = np.concatenate([s["logits"] for s in samples])
    z = logits.astype(np.float64)
    logp = z - lse(z)[:, None]
    p = np.exp(logp)
    targets = np.concatenate([s["ids"][s["rows"] + 1] for s in samples])
    rows = np.arange(len(z))
    t["logsumexp"] = lse(z).astype(np.float32)
    if spec["temperatures"]:
        t["logsumexp_t"] = np.stack([lse(z / T) for T in spec["temperatures"]], axis=1).astype(np.float32)
    t["target_logprob"] = logp[rows, targets].astype(np.float32)
    ranks = [order(row) for row in logp]
    t["target_rank"] = np.array([int(np.flatnonzero(o == x)[0]) for o, x in zip(ranks, targets)], np.int32)
    t["entropy"] = -np.where(p > 0, p * np.where(p > 0, logp, 0), 0).sum(axis=1).astype(np.float32)
    if spec["always_ids"]:
        t["always_logprobs"] = logp[:, spec["always_ids"]].astype(np.float32)
    covered = np.zeros(logp.shape, bool)
    if mode == "full":
        covered[:] = True
        t["logits"] = _dense(logits, spec["dense_dtype"])
    if mode in ("topk", "topk+sample"):
        k = spec["top_k"]
        ids = np.full((len(z), k), -1, np.int32)
        values = np.full((len(z), k), -np.inf)
        for r, o in enumerate(ranks):
            kept = [x for x in o if np.isfinite(logp[r, x])][:k]
            ids[r, : len(kept)], values[r, : len(kept)] = kept, logp[r, kept]
            covered[r, kept] = True
        _store_ids(t, "topk_ids", ids, spec)
        _store_logprobs(t, "topk_logprobs", [list(x) for x in values], spec, rectangular=True)
    if mode == "topp":
        sets = []
        for r, o in enumerate(ranks):
            mass, kept = 0.0, []
            for x in o[: spec["top_k"]]:
                if not np.isfinite(logp[r, x]) or (mass >= spec["top_p"] and len(kept) >= spec["min_k"]):
                    break
                mass += float(np.exp(np.float64(np.float32(logp[r, x]))))
                kept.append(x)
            sets.append(np.array(kept, np.int32))
            covered[r, kept] = True
        t["topp_offsets"] = _ends([len(x) for x in sets])
        _store_ids(t, "topp_ids", sets, spec)
        _store_logprobs(t, "topp_logprobs", [logp[r, x] for r, x in enumerate(sets)], spec)
    if mode in ("sample", "topk+sample"):
        power = spec["proposal_power"]
        with np.errstate(invalid="ignore"):
            tilted = power * logp
        norm = lse(tilted)
        sets, counts = [], []
        for r in rows:
            q = np.exp(tilted[r] - norm[r])
            ids, n = np.unique(rng.choice(v, size=spec["n_draws"], p=q / q.sum()), return_counts=True)
            sets.append(ids.astype(np.int32))
            counts.append(n.astype(np.int32))
            if mode == "sample":
                covered[r, ids] = True
        t["draw_offsets"] = _ends([len(x) for x in sets])
        t["draw_counts"] = np.concatenate(counts)
        _store_ids(t, "draw_ids", sets, spec)
        _store_logprobs(t, "draw_logprobs", [logp[r, x] for r, x in enumerate(sets)], spec)
        if power != 1:
            t["proposal_logsumexp"] = norm.astype(np.float32)
        ends = t["row_offsets"]
        drawn += [(sets[a:b], counts[a:b]) for a, b in zip(ends[:-1], ends[1:])]
    t["tail_mass"] = np.where(covered, 0, p).sum(axis=1).astype(np.float32)
    return t


def _dense(x, dtype):
    return {"bf16": to_bf16, "f16": np.float16, "f32": np.float32}[dtype](x)


def _store_ids(t, name, ids, spec):
    """ids int32 [R, K], or a list of the rows' arrays."""
    ragged = isinstance(ids, list)
    if not spec["pack_ids"]:
        t[name] = np.concatenate(ids) if ragged else ids
    elif ragged:
        t[name + "_packed"] = pack(np.concatenate(ids).tolist(), spec["id_bits"])
    else:
        t[name + "_packed"] = np.stack([pack(row.tolist(), spec["id_bits"]) for row in ids])


def _store_logprobs(t, name, rows, spec, rectangular=False):
    if spec["logprob_dtype"] == "q8":
        done = [quantise(np.asarray(row, np.float32)) for row in rows]
        q = [a for a, _ in done]
        t[name + "_q8"] = np.stack(q) if rectangular else np.concatenate(q)
        t[name + "_q8_range"] = np.stack([b for _, b in done])
        return
    x = np.array(rows).reshape(len(rows), -1 if rows else spec["top_k"]) if rectangular else np.concatenate(rows)
    t[name] = x.astype(np.float16 if spec["logprob_dtype"] == "f16" else np.float32)
