#!/usr/bin/env python3
"""tools/tdgen_export: every export is read back with the library that its users have, and compared value by
value with the canonical shards.

Trainers that do not install without a GPU stack are stood in for by what their readers do, written down
here from their source (tdgen_export.LAYOUTS names file and commit): the columns and types, what their
collators need, and their loss in float64. A student that equals the teacher has loss 0 there, and only
there when every row stands where the loss looks for it.

    test_export.py [--tdgen PATH]    PATH else $TDGEN else build/release/src/tdgen makes the real runs
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "python", "src"))
import _synth  # noqa: E402
from tdgen.cli import export as tool  # noqa: E402

TOOL = os.path.join(ROOT, "tools", "tdgen_export")


def export(*args, fails=0, words=()):
    """Runs the tool in this process, which spares the start of Python each time; returns what it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = tool.main([str(x) for x in args])
        except SystemExit as e:  # argparse
            status = e.code
    assert status == fails, (status, said.getvalue(), args)
    for word in words:
        assert str(word) in said.getvalue(), (word, said.getvalue())
    return said.getvalue()


class Canon:
    """The canonical shards, by the stock safetensors package where it knows the types."""

    def __init__(self, path, teacher=None):
        from safetensors.numpy import load_file

        self.path, self.teacher = path, teacher
        self.manifest = json.load(open(os.path.join(path, "manifest.json"), encoding="utf-8"))
        self.vocab = self.manifest["identity"]["model.n_vocab"]
        self.samples = []
        for name in sorted(n for n in os.listdir(path) if n.endswith(".safetensors")):
            t = load_file(os.path.join(path, name))
            for j in range(len(t["sample_index"])):
                a, b = t["sample_offsets"][j : j + 2]
                c, d = t["row_offsets"][j : j + 2]
                s = {"ids": t["input_ids"][a:b], "mask": t["loss_mask"][a:b], "index": int(t["sample_index"][j]),
                     "start": int(t["sample_start"][j])}
                if "sample_id_bytes" in t:
                    e, f = t["sample_id_offsets"][j : j + 2]
                    s["id"] = t["sample_id_bytes"][e:f].tobytes().decode()
                rows = len(t["row_position"])
                for key, x in t.items():
                    if len(x) == rows and key not in ("input_ids", "loss_mask"):
                        s[key] = x[c:d]
                    elif key.endswith("_offsets") and not key.startswith(("sample", "row")):
                        s[key] = x[c : d + 1] - x[c]
                        s[key + "_base"] = int(x[c])
                for kind in ("topp", "draw"):
                    if f"{kind}_offsets" in s:
                        part = slice(s[f"{kind}_offsets_base"], s[f"{kind}_offsets_base"] + int(s[f"{kind}_offsets"][-1]))
                        for key in ("ids", "logprobs", "counts"):
                            if f"{kind}_{key}" in t:
                                s[f"{kind}_{key}"] = t[f"{kind}_{key}"][part]
                self.samples.append(s)
        self.used = [s for s in self.samples if len(s["row_position"])]


def same_files_left(folder, before):
    assert sorted(os.listdir(folder)) == before, sorted(os.listdir(folder))


# ---- Hugging Face datasets ----


def check_hf(run, tmp):
    import datasets
    import pyarrow.parquet as pq

    canon = Canon(run)
    export("hf", run, tmp + "/arrow", "--quiet")
    export("hf", run, tmp + "/parquet", "--quiet", "--format", "parquet")
    export("hf", run, tmp + "/bits", "--quiet", "--format", "parquet", "--f16-bits")
    arrow = datasets.load_from_disk(tmp + "/arrow")
    parquet = datasets.load_dataset(tmp + "/parquet", split="train", cache_dir=tmp + "/cache")
    plain = pq.read_table(tmp + "/parquet")  # with nothing of Hugging Face's
    bits = pq.read_table(tmp + "/bits")
    assert len(arrow) == len(parquet) == len(plain) == len(canon.samples)
    for field in plain.schema:
        assert "halffloat" not in str(field.type), field  # the trap
    origin = json.loads(plain.schema.metadata[b"tdgen"])
    assert origin["run_fingerprint"] == canon.manifest["fingerprint"]
    assert origin["tokenizer"]["hash"] == canon.manifest["identity"]["tokenizer.hash"]
    assert json.loads(arrow.info.description)["run_fingerprint"] == canon.manifest["fingerprint"]
    names = set(arrow.column_names)
    for i, s in enumerate(canon.samples):
        for row in (arrow[i], parquet[i], plain.slice(i, 1).to_pylist()[0]):
            assert set(row) == names
            assert row["input_ids"] == s["ids"].tolist() and row["loss_mask"] == s["mask"].tolist()
            assert row["index"] == s["index"] and row["start"] == s["start"] and row.get("id") == s.get("id")
            for name in names - {"input_ids", "loss_mask", "index", "start", "id"}:
                want = s[name]
                if name.startswith(("topp_", "draw_")):
                    want = [want[a:b].tolist() for a, b in zip(s[name[:4] + "_offsets"], s[name[:4] + "_offsets"][1:])]
                    want = [[float(np.float32(x)) for x in w] if "logprobs" in name else w for w in want]
                elif want.dtype.kind == "f":
                    want = want.astype(np.float32).tolist()
                else:
                    want = want.tolist()
                assert row[name] == want, (name, row[name], want)
        row = bits.slice(i, 1).to_pylist()[0]
        for name in names:
            if name.endswith("_logprobs") and name != "always_logprobs":
                got = [np.array(x, np.uint16).view(np.float16) for x in row[name]]
                want = s[name].astype(np.float16).reshape(-1)
                assert np.array_equal(np.concatenate(got) if got else want, want)
    expected = {"row_position", "topk_ids", "topp_ids", "draw_ids", "draw_counts", "tail_mass", "entropy", "logsumexp_t"}
    assert expected & set(canon.samples[0]) <= names


def check_hf_dense(tmp):
    """full and hidden: what bf16 holds arrives exactly as float32."""
    import datasets

    teacher = _synth.Teacher()
    for mode, name, key in (("full", "logits", "logits"), ("hidden", "hidden", "state")):
        run = f"{tmp}/{mode}-run"
        _synth.write_run(run, teacher, mode)
        export("hf", run, f"{tmp}/{mode}", "--quiet")
        for s, row in zip(teacher.samples, datasets.load_from_disk(f"{tmp}/{mode}")):
            want = _synth.from_bf16(_synth.to_bf16(s[key]))
            got = np.array(row[name], np.float32).reshape(want.shape)
            assert np.array_equal(got, want)
    # What half floats cannot hold is refused, not made an infinity.
    teacher.samples[1]["state"][0, 0] = 1e5
    _synth.write_run(tmp + "/large-run", teacher, "hidden")
    export("hf", tmp + "/large-run", tmp + "/never", "--f16-bits", "--quiet", fails=4, words=["beyond float16"])
    assert not os.path.exists(tmp + "/never")
    export("hf", tmp + "/large-run", tmp + "/large", "--quiet")


# ---- the trainers' columns ----

# Written down from the source that tdgen_export.LAYOUTS names.
AXOLOTL = {"input_ids": "list<int>", "labels": "list<int>", "attention_mask": "list<int>", "position_ids": "list<int>",
           "target_token_ids": "list<list<int>>", "target_logprobs": "list<list<float>>",
           "target_mask": "list<list<int>>"}
DISTILLKIT = {"input_ids": "list<int>", "labels": "list<int>", "token_ids": "list<list<int>>",
              "top_values": "list<list<float>>"}
DISTILLKIT_COMPRESSED = {"input_ids": "list<int>", "labels": "list<int>", "compressed_logprobs": "list<list<int>>",
                         "bytepacked_indices": "list<list<int>>"}
NEMO = {"tokens", "labels", "loss_mask", "topk_logits", "topk_token_ids", "log_sum_exp_logits", "index"}


def kind_of(feature):
    if hasattr(feature, "feature"):
        return f"list<{kind_of(feature.feature)}>"
    return {"i": "int", "u": "int", "f": "float"}[np.dtype(feature.dtype).kind]


def open_columns(path, schema):
    import datasets

    data = datasets.load_from_disk(path)
    assert {name: kind_of(f) for name, f in data.features.items()} == schema, data.features
    return data


def student_logp(canon, s):
    """float64 [L, V]: a student that is the teacher where the shard knows it, and uniform elsewhere."""
    out = np.full((len(s["ids"]), canon.vocab), -np.log(canon.vocab))
    for r, t in enumerate(s["row_position"]):
        out[t] = canon.teacher.logp(s["i"])[r]
    return out


def check_axolotl(run, tmp, width=None, name="axolotl", **how):
    """Its collator's padding, and its loss: sum over the mask of p (log p - log q), labels shifted by the trainer.
    Since 0.10 target row i goes with the student at i; up to 0.9.2 the rows are shifted as the labels are."""
    canon = Canon(run, how.get("teacher"))
    late = how.get("late", 0)
    export("axolotl", run, f"{tmp}/{name}", "--quiet", *how.get("args", ()))
    data = open_columns(f"{tmp}/{name}", AXOLOTL)
    assert len(data) == len(canon.used)
    total = 0.0
    for s, row in zip(canon.used, data):
        n = len(s["ids"])
        assert row["input_ids"] == s["ids"].tolist() and row["attention_mask"] == [1] * n
        assert row["position_ids"] == list(range(n))
        assert row["labels"] == [int(x) if m else -100 for x, m in zip(s["ids"], s["mask"])]
        ids, logp, mask = (np.array(row[k]) for k in ("target_token_ids", "target_logprobs", "target_mask"))
        assert ids.shape == logp.shape == mask.shape and ids.shape[0] == n and ids.ndim == 2
        if width:
            assert ids.shape[1] == width
        assert ids.min() >= 0 and ids.max() < canon.vocab and np.isfinite(logp).all()
        assert set(np.unique(mask)) <= {0, 1}
        has = mask.any(axis=1)
        assert np.flatnonzero(has).tolist() == (s["row_position"] + late).tolist()
        labels = np.array(row["labels"])
        shifted = np.append(labels[1:], -100)  # what the trainer's cross entropy has at position i
        assert ((shifted if not late else labels) != -100).tolist() == has.tolist()
        if "topk_ids" in s and not how.get("combined"):
            k = ids.shape[1]
            for r, t in enumerate(s["row_position"]):
                used = s["topk_ids"][r][:k] >= 0
                assert ids[t + late][used].tolist() == s["topk_ids"][r][:k][used].tolist()
                assert mask[t + late].tolist() == used.astype(int).tolist()
                if not how.get("scaled"):
                    want = s["topk_logprobs"][r][:k][used].astype(np.float32)
                    assert np.array_equal(logp[t + late][used].astype(np.float32), want)
        if how.get("scaled"):
            sums = np.where(mask == 1, np.exp(logp), 0).sum(axis=1)
            assert np.allclose(sums[has], 1, atol=1e-5)
        if canon.teacher:
            q = student_logp(canon, s)
            # row i of the loss: the student at i, and target row i (after the old trainer's shift i + 1)
            where = np.arange(n - late)
            target = where + late
            q_at = np.take_along_axis(q[where], ids[target], axis=1)
            p = np.exp(logp[target])
            total += np.abs(np.where(mask[target] == 1, p * (logp[target] - q_at), 0).sum(axis=1)).max()
    return total


def get_target_logprobs(values):
    """DistillKit's get_target_logprobs at T = 1 with MissingProbabilityHandling.ZERO."""
    high = values.max(axis=-1, keepdims=True)
    return values - (np.log(np.exp(values - high).sum(axis=-1, keepdims=True)) + high)


def distillkit_kl(q, ids, values, labels):
    """sparse_kl_div_inner with ZERO; q float64 [L, V], the mask labels >= 0, unshifted."""
    target = get_target_logprobs(values)
    per_row = (np.exp(target) * (target - np.take_along_axis(q, ids, axis=1))).sum(axis=1)
    assert np.isfinite(per_row).all()
    return per_row * (labels >= 0)


def unpack_msb(data, bits, count):
    """distillkit's unpack_from_bytes: the highest bit first."""
    out = []
    for row in data:
        whole = int.from_bytes(bytes(row), "big")
        total = 8 * len(row)
        out.append([whole >> (total - (i + 1) * bits) & (2**bits - 1) for i in range(count)])
    return np.array(out)


def check_distillkit(run, tmp, teacher=None):
    canon = Canon(run, teacher)
    export("distillkit", run, tmp + "/dk", "--quiet")
    data = open_columns(tmp + "/dk", DISTILLKIT)
    assert len(data) == len(canon.used)
    k = canon.manifest["identity"]["capture.top_k"]
    worst = 0.0
    for s, row in zip(canon.used, data):
        n = len(s["ids"]) - 1
        # collate_packed_batch makes a tensor of every column; get_logprobs wants a row a token.
        ids, values, labels = np.array(row["token_ids"]), np.array(row["top_values"]), np.array(row["labels"])
        assert row["input_ids"] == s["ids"][:n].tolist() and ids.shape == values.shape == (n, k) and len(labels) == n
        assert ids.min() >= 0 and ids.max() < canon.vocab and np.isfinite(values).all()
        assert np.flatnonzero(labels >= 0).tolist() == s["row_position"].tolist()  # row i predicts token i + 1
        assert (labels[labels >= 0] == s["ids"][:n][labels >= 0]).all()
        for r, t in enumerate(s["row_position"]):
            used = s["topk_ids"][r] >= 0
            assert ids[t][used].tolist() == s["topk_ids"][r][used].tolist() and len(set(ids[t])) == k
            assert np.array_equal(values[t][used].astype(np.float32), s["topk_logprobs"][r][used].astype(np.float32))
            assert (np.exp(values[t][~used]) == 0).all()
        rest = np.setdiff1d(np.arange(n), s["row_position"])
        assert np.allclose(np.exp(values[rest]).sum(axis=1), 0.5)  # masked, but log1p(-sum) must be finite
        if teacher:
            kl = distillkit_kl(student_logp(canon, s)[:n], ids, values, labels)
            # Teacher renormalised over the set, student not: KL is -log of the covered mass, and nothing else.
            want = np.zeros(n)
            want[s["row_position"]] = -np.log1p(-s["tail_mass"].astype(np.float64))
            worst = max(worst, np.abs(kl - want).max())
    for kind, view in (("float32", "<f4"), ("float16", "<f2")):
        export("distillkit", run, f"{tmp}/dk-{kind}", "--quiet", "--compressed", kind)
        packed = open_columns(f"{tmp}/dk-{kind}", DISTILLKIT_COMPRESSED)
        config = dict(line.split(": ") for line in open(f"{tmp}/dk-{kind}/compression_config.yaml").read().splitlines())
        assert config == {"d": str(canon.vocab), "k": str(k), "exact_k": str(k), "exact_dtype": kind,
                          "polynomial_terms": "null", "residual_bins": "[]", "delta_encoding": "false"}
        bits = int(np.ceil(np.log2(canon.vocab)))
        for row, flat in zip(packed, data):
            raw = np.array(row["compressed_logprobs"], np.uint8)
            values = np.ascontiguousarray(raw).view(view)
            assert values.shape == (len(row["input_ids"]), k)
            assert np.array_equal(values, np.array(flat["top_values"]).astype(view))
            assert np.array_equal(unpack_msb(row["bytepacked_indices"], bits, k), np.array(flat["token_ids"]))
            assert row["labels"] == flat["labels"]
    return worst


def check_nemo(run, tmp, teacher=None):
    """KnowledgeDistillationDataset's keys; the forward KL of _TopKLogitsCrossEntropy, in float64."""
    canon = Canon(run, teacher)
    export("nemo", run, tmp + "/nemo.jsonl", "--quiet")
    k = canon.manifest["identity"]["capture.top_k"]
    lines = open(tmp + "/nemo.jsonl", encoding="utf-8").read().splitlines()
    assert len(lines) == len(canon.used)
    indices, worst = set(), 0.0
    for s, line in zip(canon.used, lines):
        row = json.loads(line)
        assert set(row) == NEMO
        indices.add(row["index"])
        n = len(s["ids"]) - 1
        assert row["tokens"] == s["ids"][:-1].tolist() and row["labels"] == s["ids"][1:].tolist()
        mask = np.array(row["loss_mask"])
        assert np.flatnonzero(mask).tolist() == s["row_position"].tolist()
        logits, ids = np.array(row["topk_logits"]), np.array(row["topk_token_ids"])
        lse = np.array(row["log_sum_exp_logits"])
        assert logits.shape == ids.shape == (n, k) and lse.shape == (n,)
        assert (np.diff(logits, axis=1) <= 0).all() and ids.min() >= 0  # descending, as its guide demands
        at = s["row_position"]
        assert np.array_equal(ids[at], s["topk_ids"]) and (logits[at, 0] == 0).all()  # its own: minus the maximum
        lp = s["topk_logprobs"].astype(np.float64)
        assert np.abs(logits[at] - lse[at][:, None] - lp).max(initial=0) < 1e-5
        if teacher:
            q = np.take_along_axis(student_logp(canon, s)[:n], ids, axis=1)
            p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            kl = (p * (np.log(p) - (q - np.log(np.exp(q).sum(axis=1, keepdims=True))))).sum(axis=1)
            worst = max(worst, np.abs(kl * mask).max())
    assert len(indices) == len(lines)
    origin = json.load(open(tmp + "/nemo.jsonl.tdgen.json"))
    assert origin["run_fingerprint"] == canon.manifest["fingerprint"]
    return worst


# ---- llama.cpp ----


def read_llamacpp(path):
    """As kl_divergence() of perplexity.cpp reads it, byte by byte."""
    data = open(path, "rb").read()
    assert data[:8] == b"_logits_"
    n_ctx, n_vocab, n_chunk = struct.unpack_from("<Iii", data, 8)
    at = 20
    tokens = np.frombuffer(data, "<i4", n_ctx * n_chunk, at).reshape(n_chunk, n_ctx)
    at += 4 * n_ctx * n_chunk
    nv = 2 * ((n_vocab + 1) // 2) + 4
    chunks = []
    for _ in range(n_chunk):
        rows = []
        for _ in range(n_ctx - 1 - n_ctx // 2):
            scale, low = struct.unpack_from("<ff", data, at)
            x = np.frombuffer(data, "<u2", n_vocab, at + 8)
            rows.append((scale, low, np.float64(scale) * x + low))
            at += 2 * nv
        chunks.append(rows)
    assert at == len(data), (at, len(data))
    return n_ctx, n_vocab, tokens, chunks


def check_llamacpp(tmp):
    for vocab, n_ctx, masked, dtype in ((53, 16, 0, "f32"), (64, 11, 5, "f16"), (54, 12, 0, "bf16")):
        teacher = _synth.Teacher(vocab=vocab, n=7, length=n_ctx, masked=masked, all_targets=True, sharp=9.0)
        run = f"{tmp}/run-{vocab}"
        _synth.write_run(run, teacher, "full", dense_dtype=dtype)
        out = f"{tmp}/base-{vocab}"
        export("llamacpp", run, out, fails=4, words=["--bos"])
        said = export("llamacpp", run, out, "--bos", "none", "--quiet")
        got_ctx, got_vocab, tokens, chunks = read_llamacpp(out)
        assert (got_ctx, got_vocab, len(chunks)) == (n_ctx, vocab, 7)
        first, raised, nats, kl, mass = n_ctx // 2, 0, 0.0, 0.0, 0.0
        for s, ids, rows in zip(teacher.samples, tokens, chunks):
            assert np.array_equal(ids, s["ids"]) and len(rows) == n_ctx - 1 - first
            for j, (scale, low, logp) in enumerate(rows):
                z = s["logits"][first + j]
                if dtype != "f32":
                    z = z.astype(np.float16) if dtype == "f16" else _synth.from_bf16(_synth.to_bf16(z))
                z = z.astype(np.float64)
                want = z - _synth.lse(z[None])[0]
                # Its own floor: 16 below the highest; below it everything is that floor.
                floor = max(want.min(), want.max() - 16)
                raised += int((want < floor - 1e-6).sum())
                assert abs(low - floor) < 1e-5
                # 16 bits over that range: half a step, and float32
                assert np.abs(logp - np.maximum(want, floor)).max() <= scale / 2 * (1 + 1e-3) + 4e-6
                target = int(ids[first + j + 1])
                assert abs(logp[target] - max(want[target], floor)) <= scale / 2 * (1 + 1e-3) + 4e-6
                low_ones = want < floor - 1e-3
                nats = max(nats, np.where(low_ones & np.isfinite(want), logp - want, 0).max())
                mass = max(mass, np.exp(logp[low_ones]).sum())
                real = np.isfinite(want)
                kl = max(kl, abs((np.exp(want[real]) * (want - logp)[real]).sum()))
                p = np.where(logp > -16, np.exp(logp), 0)  # as the tool sums it
                assert abs((p * (logp - want)).sum()) < 1e-3 if masked == 0 else True
        assert raised or not masked
        # What the format loses is said, with the worst of it.
        clipped = json.load(open(out + ".tdgen.json"))["clipped"]
        assert abs(clipped["worst_nats"] - nats) < 1e-4 and abs(clipped["worst_kl"] - kl) < 1e-6 + 0.01 * kl, (clipped, nats, kl)
        assert abs(clipped["worst_mass"] - mass) <= 1e-3 * mass and f"{clipped['worst_kl']:.1e}" in said
        assert (f"by up to {nats:.1f} nats" in said) == bool(raised) == bool(clipped["values"]), (said, raised)
        assert json.load(open(out + ".tdgen.json"))["run_fingerprint"] == json.load(
            open(run + "/manifest.json"))["fingerprint"]
        export("llamacpp", run, tmp + "/never", "--bos", vocab - 1, fails=4, words=["begins with token", "BOS"])
        export("llamacpp", run, tmp + "/never", "--bos", "none", "--n-ctx", n_ctx + 2, fails=4, words=["max_length"])
    ragged = _synth.Teacher(n=7)
    _synth.write_run(tmp + "/ragged", ragged, "full")
    export("llamacpp", tmp + "/ragged", tmp + "/never", "--bos", "none", fails=4, words=["a chunk"])
    _synth.write_run(tmp + "/topk", ragged, "topk")
    export("llamacpp", tmp + "/topk", tmp + "/never", "--bos", "none", fails=4, words=["full", "topk"])
    assert not os.path.exists(tmp + "/never")


# ---- HDF5 ----


def check_hdf5(run, tmp, args=(), gaps=False):
    """As CachedLogitsDataset opens it."""
    import h5py

    canon = Canon(run)
    if gaps:
        export("hdf5", run, tmp + "/h5", *args, fails=4, words=["--allow-gaps"])
        args = (*args, "--allow-gaps")
    export("hdf5", run, tmp + "/h5", "--quiet", *args)
    meta = json.load(open(tmp + "/h5/metadata.json"))
    assert set(meta) == {"num_samples", "max_seq_length", "top_k", "vocab_size", "teacher_model", "dataset_name",
                         "dataset_config", "dataset_split"}  # LogitsCacheMetadata(**meta) takes no other
    with h5py.File(tmp + "/h5/teacher_logits.h5", "r") as f:
        assert set(f) == {"logits_values", "logits_indices", "seq_lengths"}
        values, indices, lengths = f["logits_values"], f["logits_indices"], f["seq_lengths"]
        longest, k = meta["max_seq_length"], meta["top_k"]
        assert values.shape == indices.shape == (len(canon.used), longest, k) and lengths.shape == (len(canon.used),)
        assert (values.dtype, indices.dtype, lengths.dtype) == (np.float16, np.int32, np.int32)
        for x in (values, indices):
            assert x.compression == "gzip" and x.compression_opts == 4 and x.chunks == (1, longest, k)
        assert meta["num_samples"] == len(canon.used) and meta["vocab_size"] == canon.vocab
        assert json.loads(f.attrs["tdgen"])["run_fingerprint"] == canon.manifest["fingerprint"]
        for i, s in enumerate(canon.used):
            assert lengths[i] == len(s["ids"])
            at = s["row_position"]
            raw = s["topk_logprobs"].astype(np.float64) + s["logsumexp"].astype(np.float64)[:, None]
            assert np.array_equal(indices[i][at], s["topk_ids"]) and np.array_equal(values[i][at], raw.astype(np.float16))
            others = np.setdiff1d(np.arange(longest), at)
            assert not values[i][others].any() and not indices[i][others].any()


# ---- what all share ----


def check_refusals(run, tmp):
    """Nothing is written over, nothing half appears, nothing unfinished or foreign is exported by accident."""
    os.makedirs(tmp + "/out")
    open(tmp + "/out/hf", "w").close()
    open(tmp + "/out/n.tdgen.json", "w").close()  # the companion of a file
    export("nemo", run, tmp + "/out/n", fails=4, words=["n.tdgen.json exists"])
    os.remove(tmp + "/out/n.tdgen.json")
    for layout in ("hf", "axolotl", "distillkit", "nemo", "hdf5"):
        target = f"{tmp}/out/hf"
        export(layout, run, target, fails=4, words=["exists"])
        assert os.path.getsize(target) == 0
    same_files_left(tmp + "/out", ["hf"])
    export("hf", tmp, tmp + "/out/x", fails=4, words=["manifest.json"])
    # A folder of an older version, which does not say how much it is to hold: what status.json says of it counts.
    status, manifest = (os.path.join(run, name) for name in ("status.json", "manifest.json"))
    good, said = open(status).read(), open(manifest).read()
    _synth.write_manifest(run, {k: v for k, v in json.loads(said).items() if k != "extent"})
    open(status, "w").write('{"state": "running"}')
    export("hf", run, tmp + "/out/x", fails=4, words=["running", "--partial"])
    open(status, "w").write('{"state": "done", "total_workers": 2}')
    export("hf", run, tmp + "/out/x", fails=4, words=["2 workers", "tdgen merge"])
    open(status, "w").write('{"state": "done", "shards_in_data": 99}')
    export("hf", run, tmp + "/out/x", fails=4, words=["3 shards", "99"])
    open(status, "w").write(good)
    # A worker's folder: shard 0 is somewhere else.
    index = os.path.join(run, "shards.jsonl")
    lines = open(index).readlines()
    open(index, "w").writelines(lines[1:])
    first = os.path.join(run, json.loads(lines[0])["file"])
    os.rename(first, tmp + "/away")
    export("hf", run, tmp + "/out/x", fails=4, words=["tdgen merge"])
    open(manifest, "w").write(said)
    export("hf", run, tmp + "/out/x", fails=4, words=["not finished", "missing: shard 0", "--partial"])
    export("hf", run, tmp + "/out/part", "--partial", "--quiet")
    os.rename(tmp + "/away", first)
    # A line that is lost, its shard is there: it proves itself, but a run that ended would have written the line.
    export("hf", run, tmp + "/out/x", fails=4, words=["not finished", "missing: shard 0"])
    export("hf", run, tmp + "/out/whole", "--partial", "--quiet")
    assert digest(tmp + "/out/whole") == digest(os.path.dirname(tmp) + "/demo-out/arrow")
    shutil.rmtree(tmp + "/out/whole")
    open(index, "w").writelines(lines)
    # A damaged shard, found when half is written.
    shard = os.path.join(run, json.loads(lines[-1])["file"])
    data = open(shard, "rb").read()
    open(shard, "wb").write(data[:-1] + bytes([data[-1] ^ 1]))
    for layout in ("hf", "nemo", "hdf5"):
        words = [shard, "is damaged"]
        export(layout, run, tmp + "/out/x", *(["--allow-gaps"] if layout == "hdf5" else []), fails=4, words=words)
    export("hf", run, tmp + "/out/unchecked", "--no-verify", "--quiet")
    shutil.rmtree(tmp + "/out/unchecked")
    open(shard, "wb").write(data)
    same_files_left(tmp + "/out", ["hf", "part"])
    # Another tokenizer: both sides are shown.
    open(tmp + "/tokenizer.json", "w").write("{}")
    import xxhash

    words = [json.load(open(os.path.join(run, "manifest.json")))["identity"]["tokenizer.hash"],
             xxhash.xxh3_64_hexdigest(b"{}")]
    export("hf", run, tmp + "/out/x", "--tokenizer", tmp, fails=4, words=words)
    export("axolotl", run, tmp + "/out/x", "--temperature", "3.3", fails=4, words=["3.3", "capture.temperatures"])
    export("hf", run, "--samples", "0", tmp + "/out/x", fails=2)


def synthetic(tmp):
    """Modes and shapes that the demo run has not: partly masked samples, ragged sets, draws, all logits."""
    teacher = _synth.Teacher()
    for i, s in enumerate(teacher.samples):
        s["i"] = i
    modes = {"topk": {}, "topp": {}, "sample": {}, "topk+sample": {}}
    for mode, options in modes.items():
        run = f"{tmp}/{mode}"
        _synth.write_run(run, teacher, mode, dtype="f32", always_ids=(1, 7), **options)
        os.makedirs(run + "-out")
        check_hf(run, run + "-out")
    number = {(s["index"], s["start"]): s["i"] for s in teacher.samples}

    class Known(Canon):
        def __init__(self, path, teacher=None):
            super().__init__(path, teacher)
            for s in self.samples:
                s["i"] = number[s["index"], s["start"]]

    global Canon_
    Canon_, globals()["Canon"] = Canon, Known
    try:
        out = tmp + "/topk-out"
        aligned = check_axolotl(tmp + "/topk", out, 8, teacher=teacher)
        old = check_axolotl(tmp + "/topk", out, 8, "axolotl-old", teacher=teacher, late=1, args=["--before-0.10"])
        assert max(aligned, old) < 1e-5, (aligned, old)
        check_axolotl(tmp + "/topk", out, 3, "axolotl-3", args=["--top-k", "3", "--tail", "renormalise"], scaled=True)
        assert check_axolotl(tmp + "/topp", tmp + "/topp-out", teacher=teacher) < 1e-5
        check_axolotl(tmp + "/sample", tmp + "/sample-out", scaled=True)
        check_axolotl(tmp + "/topk+sample", tmp + "/topk+sample-out", combined=True)
        assert check_axolotl(tmp + "/topk+sample", tmp + "/topk+sample-out", 8, "topk-part", teacher=teacher,
                             args=["--source", "topk"]) < 1e-5
        worst = check_distillkit(tmp + "/topk", out, teacher)
        assert worst < 1e-5, worst
        assert check_nemo(tmp + "/topk", out, teacher) < 1e-6
    finally:
        globals()["Canon"] = Canon_
    check_hdf5(tmp + "/topk", tmp + "/topk-out", gaps=True)
    # DistillKit has one width: ragged sets are filled with ids of probability 0.
    export("distillkit", tmp + "/topp", tmp + "/topp-out/dk", "--quiet")
    data = open_columns(tmp + "/topp-out/dk", DISTILLKIT)
    for s, row in zip(Canon(tmp + "/topp").used, data):
        p = np.exp(np.array(row["top_values"]))[s["row_position"]]
        assert np.allclose(p.sum(axis=1), 1 - s["tail_mass"], atol=1e-5)
        assert all(len(set(ids)) == 8 for ids in row["token_ids"])
    # full: the top k of every row, ties by the lower id, as topk mode would have recorded them.
    tied = _synth.Teacher(seed=5)
    for s in tied.samples:
        s["logits"] = np.round(s["logits"])
    _synth.write_run(tmp + "/tied-full", tied, "full", dense_dtype="f32")
    _synth.write_run(tmp + "/tied-topk", tied, "topk", dtype="f32")
    export("axolotl", tmp + "/tied-full", tmp + "/never", fails=4, words=["--top-k"])
    export("axolotl", tmp + "/tied-full", tmp + "/tied-a", "--top-k", 8, "--quiet")
    export("axolotl", tmp + "/tied-topk", tmp + "/tied-b", "--quiet")
    a, b = open_columns(tmp + "/tied-a", AXOLOTL), open_columns(tmp + "/tied-b", AXOLOTL)
    for x, y in zip(a, b):
        assert x["target_token_ids"] == y["target_token_ids"]
        assert np.allclose(x["target_logprobs"], y["target_logprobs"], atol=1e-5)
    # Fewer tokens with a probability than K: no number says so in NeMo's and HDF5's rows.
    few = _synth.Teacher(vocab=64, masked=59, seed=2, all_targets=True)
    _synth.write_run(tmp + "/few", few, "topk", dtype="f32")
    for layout in ("nemo", "hdf5"):
        export(layout, tmp + "/few", tmp + "/never", fails=4, words=["--top-k 5"])
    # A companion that is there is told at once, before anything is read.
    open(tmp + "/never.tdgen.json", "w").close()
    export("nemo", tmp + "/few", tmp + "/never", fails=4, words=["never.tdgen.json exists"])
    export("nemo", tmp + "/few", tmp + "/few.jsonl", "--top-k", 5, "--quiet")
    assert os.path.getsize(tmp + "/few.jsonl.tdgen.json") > 0
    export("nemo", tmp + "/topp", tmp + "/never", fails=4, words=["topp"])
    export("axolotl", tmp + "/sample", tmp + "/never", "--top-k", 3, fails=4, words=["bias"])
    # Axolotl at a recorded temperature
    export("axolotl", tmp + "/topk", tmp + "/warm", "--temperature", 2, "--quiet")
    used = [s for s in teacher.samples if len(s["rows"])]
    for s, row in zip(used, open_columns(tmp + "/warm", AXOLOTL)):
        want = teacher.logp(s["i"], 2.0)
        ids = np.array(row["target_token_ids"])[s["rows"]]
        assert np.allclose(np.array(row["target_logprobs"])[s["rows"]], np.take_along_axis(want, ids, axis=1), atol=1e-5)


def nothing(tmp):
    """A run in which no position is a target: files with no row, or a message, never half a folder."""
    import datasets

    teacher = _synth.Teacher(n=3, length=1)
    _synth.write_run(tmp + "/run", teacher, "topk")
    for layout in ("axolotl", "distillkit"):
        export(layout, tmp + "/run", f"{tmp}/{layout}", "--quiet", words=["3 without a position"])
        assert len(datasets.load_from_disk(f"{tmp}/{layout}")) == 0
    export("hf", tmp + "/run", tmp + "/hf", "--quiet")
    assert [row["input_ids"] for row in datasets.load_from_disk(tmp + "/hf")] == [s["ids"].tolist() for s in teacher.samples]
    export("nemo", tmp + "/run", tmp + "/nemo", "--quiet")
    assert os.path.getsize(tmp + "/nemo") == 0
    # No sample at all, as of a dataset whose every row was too long: nothing that hf could tell columns by.
    empty = _synth.Teacher(n=1, length=1)
    shutil.rmtree(tmp + "/run")
    _synth.write_run(tmp + "/run", empty, "topk", empty=True)
    export("hf", tmp + "/run", tmp + "/none", fails=4, words=["holds no sample"])


def memory(tmp):
    """The peak of an export, in a process of its own, does not grow with the run."""
    peak = []
    for times in (6, 36):
        run = f"{tmp}/run-{times}"
        _synth.write_run(run, _Wide(50), "topk", top_k=64, per_shard=50, times=times)
        code = ("import resource, runpy, sys; sys.argv = sys.argv[1:]\ntry:\n runpy.run_path(sys.argv[0], run_name="
                "'__main__')\nexcept SystemExit as e:\n assert not e.code\n"
                "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)")
        out = f"{tmp}/out-{times}"
        done = subprocess.run([sys.executable, "-c", code, TOOL, "axolotl", run, out, "--quiet"],
                              capture_output=True, text=True, check=True)
        peak.append(int(done.stdout.split()[-1]) / 1024)
    size = sum(os.path.getsize(os.path.join(out, f)) for f in os.listdir(out)) / 1e6
    assert peak[1] < peak[0] + 60 and size > 100, (peak, size)
    print(f"   peak memory of an export: {peak[0]:.0f} MB, of six times as much {peak[1]:.0f} MB ({size:.0f} MB written)")


class _Wide(_synth.Teacher):
    """Many samples that share their numbers: quick to make."""

    def __init__(self, n):
        super().__init__(vocab=80, n=1, length=120, all_targets=True)
        self.samples = self.samples * n


def run_demo(tdgen, out, *overrides):
    command = [tdgen, "-c", "conf/demo.ini", f"output.dir={out}", "--quiet", *overrides]
    subprocess.run(command, cwd=ROOT, check=True)


def digest(path):
    h = hashlib.sha256()
    for folder, _, names in sorted(os.walk(path)):
        for name in sorted(names):
            h.update(open(os.path.join(folder, name), "rb").read())
    return h.hexdigest()


def main():
    tdgen = _synth.program(__doc__)
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as tmp:
        run = tmp + "/demo"
        run_demo(tdgen, run, "data.max_samples=40", "capture.temperatures=2,0.5", "output.shard_samples=16")
        os.makedirs(tmp + "/demo-out")
        for check in (check_hf, check_axolotl, check_distillkit, check_nemo, check_hdf5):
            check(run, tmp + "/demo-out")
        export("hf", run, tmp + "/again", "--quiet")
        assert digest(tmp + "/again") == digest(tmp + "/demo-out/arrow")  # the same bytes every time
        os.makedirs(tmp + "/refusals")
        check_refusals(run, tmp + "/refusals")
        print("   the demo run in six layouts")
        for part in (synthetic, check_hf_dense, check_llamacpp, nothing, memory):
            with tempfile.TemporaryDirectory() as inner:
                part(inner)
    print("OK")


if __name__ == "__main__":
    main()
