"""A shard that nobody vouches for: opened, bounded, proven, decoded.

What it says is believed only after it was checked. Sizes are bounded before memory is taken; tensors have the
types and shapes that the run's capture settings and the counts give; and the hashes agree: `header_hash` and
`data_hash` of its own header. Whatever is wrong is a RecordError that names the file (tdgen.trust). The safetensors
package would give neither the header's bytes, which the hashes are of, nor a compressed file's tensors.
"""

import math
import mmap
import os
import re
import struct

import ml_dtypes
import numpy as np

from .trust import RecordError, hash_hex, open_regular, parse_json, whole

_MAX_HEADER = 16 << 20  # of a shard, which has at most some forty tensors
_MAX_RATIO = 1024  # of a compressed shard whose content is more than
_FREE_BYTES = 64 << 20
_MAX_WINDOW = 1 << 27  # what a zstd decoder may keep: the format's recommended limit
_MAX_DIM = 1 << 48
_DTYPES = {
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"),
    "U8": np.dtype("u1"), "BF16": np.dtype(ml_dtypes.bfloat16),
}
SHARD_NAME = re.compile(r"shard-([0-9]{6,18})\.safetensors(\.zst)?")


# ---- numbers ----


def unpack_bits(data, first, count, bits):
    """count numbers of `bits` bits each from little-endian bit streams (the lowest bit first).

    data uint8 [..., n]: one stream, or one a row; `first` is the number of the first one wanted.
    All ones are -1: a free place. Returns int32 [..., count].
    """
    if not 1 <= bits <= 31:
        raise RecordError(f"ids of {bits} bits")
    at = (first + np.arange(count, dtype=np.int64)) * bits
    begin, end = first * bits // 8, ((first + count) * bits + 7) // 8
    if end > data.shape[-1]:
        raise RecordError(f"{data.shape[-1]} bytes of packed ids, {end} are needed")
    # Five bytes hold any number of up to 31 bits that starts within the first; zeros behind the end.
    window = np.zeros(data.shape[:-1] + (end - begin + 5,), np.uint64)
    window[..., : end - begin] = data[..., begin:end]
    byte = (at >> 3) - begin
    value = np.zeros(data.shape[:-1] + (count,), np.uint64)
    for i in range(5):
        value |= window[..., byte + i] << np.uint64(8 * i)
    value = (value >> (at & 7).astype(np.uint64)) & np.uint64((1 << bits) - 1)
    return np.where(value == (1 << bits) - 1, -1, value.astype(np.int64)).astype(np.int32)


def dequantise(q, limits):
    """8-bit log-probabilities as float32: max - q / 254 * (max - min), 255 is -inf.

    q uint8 [..., K] or [E]; limits float32 [..., 2], (max, min) of each row or entry.
    """
    high, low = limits[..., 0:1].astype(np.float64), limits[..., 1:2].astype(np.float64)
    if q.ndim < limits.ndim:
        high, low = high[..., 0], low[..., 0]
    with np.errstate(invalid="ignore"):
        value = high - q.astype(np.float64) / 254 * (high - low)
        return np.where(q == 255, -np.inf, value).astype(np.float32)


# ---- a shard ----


class Shard:
    """One shard-NNNNNN.safetensors[.zst]: a mapping of names to arrays.

    Arrays are views of the mapped file (read-only); BF16 is ml_dtypes.bfloat16. `metadata` is the header's __metadata__, `dtypes` names each tensor's stored type.
    """

    def __init__(self, path, verify=True, within=None, proven=None):
        """verify=False leaves a shard's hashes unchecked, and so does `proven`, the `identity` of a Shard
        whose file was found good and has not changed since. within: see open_regular."""
        self.path = path
        with os.fdopen(open_regular(path, within), "rb") as f:
            at = os.fstat(f.fileno())
            self.identity, self.size_bytes = (at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns), at.st_size
            if path.endswith(".zst"):
                buffer = _unpack(f, path, at.st_size, _MAX_HEADER)
            elif at.st_size < 8:
                raise RecordError(f"{path}: {at.st_size} bytes are no safetensors file")
            else:
                buffer = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        n = _header_size(bytes(buffer[:8]), path, min(_MAX_HEADER, len(buffer) - 8))
        header = bytes(buffer[8 : 8 + n])
        self.metadata, tensors, used = _read_header(header, path)
        if used != len(buffer) - 8 - n:
            raise RecordError(f"{path}: its header speaks of {used} bytes of data, the file has {len(buffer) - 8 - n}")
        self.dtypes, self._arrays = {}, {}
        for name, (dtype, shape, begin, end) in tensors.items():
            self.dtypes[name] = dtype
            try:
                self._arrays[name] = np.frombuffer(buffer, _DTYPES[dtype], math.prod(shape), 8 + n + begin).reshape(shape)
            except (ValueError, OverflowError) as e:
                raise RecordError(f"{path}: tensor {name} of shape {list(shape)}: {e}") from None
        if verify and self.identity != proven:
            self._prove(header, memoryview(buffer)[8 + n :], tensors)

    def _prove(self, header, data, tensors):
        stated = {k: self.metadata.get(k) for k in ("header_hash", "data_hash")}
        if None in stated.values():
            raise RecordError(f"{self.path} has no {' and no '.join(k for k, v in stated.items() if v is None)}: it was "
                              "damaged, or not made by tdgen (Run(path, verify=False), --no-verify read it unchecked)")
        key = b'"header_hash":"'
        at = header.find(key) + len(key)
        if at < len(key) or hash_hex(header[:at] + b"0" * 16 + header[at + 16 :]) != stated["header_hash"]:
            raise RecordError(f"{self.path}: its header is damaged (header_hash)")
        if hash_hex(data) == stated["data_hash"]:
            return
        parts = sorted(tensors.items(), key=lambda item: item[1][2:])
        hashes = str(self.metadata.get("tensor_hashes")).split(",")
        bad = [name for (name, (_, _, a, b)), want in zip(parts, hashes) if hash_hex(data[a:b]) != want]
        raise RecordError(f"{self.path} is damaged: {', '.join(bad) or 'its data'} (data_hash)")

    def __getitem__(self, name):
        try:
            return self._arrays[name]
        except KeyError:
            raise RecordError(f"{self.path} has no tensor {name}") from None

    def __contains__(self, name):
        return name in self._arrays

    def __iter__(self):
        return iter(self._arrays)

    def keys(self):
        return self._arrays.keys()

    # What is in a sample's rows, decoded.

    def floats(self, name, rows):
        """float32 of rows [a, b) of a tensor of floats, whatever its type."""
        return self[name][rows].astype(np.float32)

    def ids(self, name, part, width, bits):
        """int32 ids: of rows `part` [R, width], or with width = None of entries `part`."""
        if name in self:
            return self[name][part]
        packed = self[name + "_packed"]
        if width is None:
            return unpack_bits(packed, part.start, part.stop - part.start, bits)
        return unpack_bits(packed[part], 0, width, bits)  # every row starts at a byte

    def logprobs(self, name, part, rows, row_of=None):
        """float32 log-probabilities of rows, or of entries `part` that belong to rows row_of."""
        if name in self:
            return self.floats(name, part)
        limits = self[name + "_q8_range"][rows]
        return dequantise(self[name + "_q8"][part], limits if row_of is None else limits[row_of])


def _header_size(word, path, most):
    if len(word) < 8:
        raise RecordError(f"{path}: {len(word)} bytes are no safetensors file")
    (n,) = struct.unpack("<Q", word)
    if n > most:
        raise RecordError(f"{path}: a header of {n} bytes, at most {most} can be there")
    return n


def _read_header(header, path):
    """(metadata, {name: (dtype, shape, begin, end)}, bytes of data that they take)"""
    found = parse_json(header, f"{path}, its header")
    metadata = found.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise RecordError(f"{path}: its header's __metadata__ is no object of texts")
    tensors, used = {}, 0
    for name, entry in found.items():
        try:
            dtype, shape = entry["dtype"], tuple(whole(x, 0, _MAX_DIM) for x in entry["shape"])
            begin, end = (whole(x) for x in entry["data_offsets"])
            if not isinstance(dtype, str) or len(shape) > 8 or begin > end:
                raise ValueError("type, shape or place")
            if dtype not in _DTYPES:
                raise ValueError("a type that no record has")
            if end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
                raise ValueError("its place has another size than its shape")
        except (ValueError, KeyError, TypeError) as e:
            raise RecordError(f"{path}: its header cannot be read: {name[:80]!r} is {str(entry)[:200]}: {e}") from None
        tensors[name] = (dtype, shape, begin, end)
        used = max(used, end)
    return metadata, tensors, used


# ---- zstd ----


def _frame_size(head, path):
    """The size of its content that a zstd frame states in its header (RFC 8878, 3.1.1.1)."""
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd":
        raise RecordError(f"{path} cannot be decompressed: it is no zstd file")
    flags = head[4]
    single = flags >> 5 & 1
    size = (single, 2, 4, 8)[flags >> 6]
    at = 5 + (0 if single else 1) + (0, 1, 2, 4)[flags & 3]
    if flags & 8 or size == 0 or len(head) < at + size:
        raise RecordError(f"{path} cannot be decompressed: it does not state the size of its content, as tdgen's do")
    return int.from_bytes(head[at : at + size], "little") + (256 if size == 2 else 0)


def _open_zstd(f, path):
    try:
        from compression import zstd  # Python 3.14 on

        return zstd.ZstdFile(f, options={zstd.DecompressionParameter.window_log_max: _MAX_WINDOW.bit_length() - 1})
    except ImportError:
        pass
    try:
        import zstandard
    except ImportError:
        raise RecordError(f"{path} is compressed: pip install zstandard, or unpack it with zstd -d") from None
    return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(f, read_size=1 << 20)


def _unpack(f, path, packed_bytes, max_header):
    """The content of a compressed shard. Nothing larger is made than its frame and its header agree on, and
    nothing out of proportion to the file."""
    size = _frame_size(f.read(18), path)
    f.seek(0)
    if size > max(_FREE_BYTES, _MAX_RATIO * packed_bytes):
        raise RecordError(f"{path}: {packed_bytes:,} bytes that want to become {size:,}, more than {_MAX_RATIO} times "
                          "as much; if you trust it, unpack it with zstd -d")
    try:
        reader = _open_zstd(f, path)
        word = _exactly(reader, min(8, size))
        n = _header_size(bytes(word), path, min(max_header, size - 8))
        header = _exactly(reader, n)
        used = _read_header(bytes(header), path)[2]
        if 8 + n + used != size:
            raise RecordError(f"{path}: its header speaks of {8 + n + used:,} bytes, the frame of {size:,}")
        out = bytearray(size)
        out[:8], out[8 : 8 + n] = word, header
        _fill(reader, memoryview(out)[8 + n :])
        if reader.read(1):  # reads on to the frame's own checksum, too
            raise ValueError("there is more than the size that it states")
    except (RecordError, OSError):
        raise
    except Exception as e:  # the two packages have errors of their own
        raise RecordError(f"{path} cannot be decompressed: {str(e) or type(e).__name__}") from None
    return out


def _exactly(reader, n):
    out = bytearray(n)
    _fill(reader, memoryview(out))
    return out


def _fill(reader, view):
    at = 0
    while at < len(view):
        n = reader.readinto(view[at : at + (1 << 24)])
        if not n:
            raise ValueError("it ends too early")
        at += n


# ---- what a shard of a run must hold ----


def check_shard(t, spec, has_ids, vocab_size):
    """A shard's tensors against its run's settings: types, shapes, and offsets that stay inside. Vectorised; what
    each row holds is checked where it is decoded."""

    def fail(what):
        raise RecordError(f"{t.path}: {what}")

    n, n_tokens, n_rows = (len(t[name]) if t[name].ndim == 1 else fail(f"{name} is no list")
                           for name in ("sample_index", "input_ids", "row_position"))
    mode = spec["mode"]
    topk, draws = mode in ("topk", "topk+sample"), mode in ("sample", "topk+sample")
    want = {"sample_offsets": ("I64", (n + 1,)), "sample_index": ("I64", (n,)), "sample_start": ("I64", (n,)),
            "row_offsets": ("I64", (n + 1,)), "input_ids": ("I32", (n_tokens,)), "row_position": ("I32", (n_rows,)),
            "loss_mask": ("U8", (n_tokens,)), "sample_status": ("U8", (n,))}
    if has_ids:
        want["sample_id_offsets"] = ("I64", (n + 1,))
        want["sample_id_bytes"] = ("U8", t["sample_id_bytes"].shape[:1])
    if mode != "hidden":
        for name in ("logsumexp", "tail_mass", "target_logprob", "entropy"):
            want[name] = ("F32", (n_rows,))
        want["target_rank"] = ("I32", (n_rows,))
        for name, key in (("logsumexp_t", "temperatures"), ("always_logprobs", "always_ids")):
            if spec.get(key):
                want[name] = ("F32", (n_rows, len(spec[key])))
    if draws and spec.get("proposal_power", 1.0) != 1:
        want["proposal_logsumexp"] = ("F32", (n_rows,))
    bits, dtype = spec["id_bits"], {"f32": "F32", "f16": "F16", "q8": None}[spec.get("logprob_dtype", "f16")]
    sets = [("topk", (n_rows, spec["top_k"]), (n_rows,))] if topk else []
    for kind in (["topp"] if mode == "topp" else []) + (["draw"] if draws else []):
        offsets = t[kind + "_offsets"]
        if offsets.shape != (n_rows + 1,) or t.dtypes[kind + "_offsets"] != "I64":
            fail(f"{kind}_offsets is {t.dtypes[kind + '_offsets']} {list(offsets.shape)}, expected I64 [{n_rows + 1}]")
        want[kind + "_offsets"] = ("I64", (n_rows + 1,))
        sets.append((kind, (int(offsets[-1]),), ()))
    for kind, shape, rows in sets:
        if shape[-1] < 0:
            fail(f"{kind}_offsets ends at {shape[-1]}")
        if spec.get("pack_ids"):
            want[kind + "_ids_packed"] = ("U8", rows + ((shape[-1] * bits + 7) // 8,))
        else:
            want[kind + "_ids"] = ("I32", shape)
        if dtype:
            want[kind + "_logprobs"] = (dtype, shape)
        else:
            want[kind + "_logprobs_q8"], want[kind + "_logprobs_q8_range"] = ("U8", shape), ("F32", (n_rows, 2))
        if kind == "draw":
            want["draw_counts"] = ("I32", shape)
    if mode in ("full", "hidden"):
        name, width = ("logits", vocab_size) if mode == "full" else ("hidden", spec.get("n_hidden"))
        kinds = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
        want[name] = (kinds[spec.get("dense_dtype", "bf16")], (n_rows, width or t[name].shape[-1]))
    for name, (kind, shape) in want.items():
        have = t[name]
        if t.dtypes[name] != kind or have.shape != shape:
            fail(f"{name} is {t.dtypes[name]} {list(have.shape)}, by the run's settings and counts {kind} {list(shape)}")
    foreign = set(t) - set(want) - {"sample_device"}
    if foreign:  # a tensor of another kind of storage would be taken instead of the one that was checked
        fail(f"{', '.join(sorted(foreign))}: no run with these settings stores it")
    ends = [("sample_offsets", n_tokens), ("row_offsets", n_rows)]
    ends += [("sample_id_offsets", len(t["sample_id_bytes"]))] if has_ids else []
    ends += [(kind + "_offsets", shape[0]) for kind, shape, _ in sets if kind != "topk"]
    for name, end in ends:
        x = t[name]
        if x[0] != 0 or x[-1] != end or (np.diff(x) < 0).any():
            fail(f"{name} does not rise from 0 to {end}")
    _check_places(t, fail, vocab_size)
    for key, have in (("n_samples", n), ("n_tokens", n_tokens), ("n_rows", n_rows)):
        if t.metadata.get(key, str(have)) != str(have):
            fail(f"its header says {key} = {t.metadata[key][:40]}, it holds {have}")


def _check_places(t, fail, vocab_size):
    """Every row stands at a token of its own sample that another follows; rows ascend; ids are ids."""
    lengths, rows = np.diff(t["sample_offsets"]), np.diff(t["row_offsets"])
    position, tokens = t["row_position"], t["input_ids"]
    owner = np.repeat(np.arange(len(rows)), rows)
    if ((position < 0) | (position >= lengths[owner] - 1)).any():
        fail("row_position has a place that no token of its sample follows")
    if ((np.diff(position) <= 0) & (np.diff(owner) == 0)).any():
        fail("row_position does not ascend within a sample")
    if len(tokens) and not (0 <= tokens.min() and tokens.max() < vocab_size):
        fail(f"input_ids has an id outside of 0 to {vocab_size - 1}")
    if (t["sample_status"] > 1).any() or (t["loss_mask"] > 1).any():
        fail("sample_status or loss_mask has a value other than 0 and 1")
