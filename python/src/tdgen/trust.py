"""Reading files that nobody vouches for, with Python's own library and xxhash.

A file is a regular one, where asked for inside of its folder, and of bounded size; JSON is what JSON is, with
the types that the format says; hashes are xxh3-64. Whatever is wrong is a RecordError that names the file.
"""

import json
import math
import os
import re
import stat


class RecordError(ValueError):
    """A folder or file that is not what it should be; the message names it."""


# ---- files ----


def open_regular(path, within=None):
    """A descriptor of a regular file; a FIFO or device never blocks. With `within`, a folder, the file must lie
    in it: a symbolic link that leads out of it is refused."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        if within is not None and os.path.islink(path):
            real, root = os.path.realpath(path), os.path.realpath(within)
            if os.path.commonpath([real, root]) != root:
                raise RecordError(f"{path} is a symbolic link that leads out of its folder, to {real}: put the file "
                                  "itself there")
            path = real
        fd = os.open(path, flags | (os.O_NOFOLLOW if within is not None else 0))
    except (FileNotFoundError, NotADirectoryError):
        raise RecordError(f"{path} is not there") from None
    except OSError as e:
        if stat.S_ISREG(os.stat(path, follow_symlinks=False).st_mode):
            raise  # a file as it should be, that cannot be opened here and now
        raise RecordError(f"{path} is no regular file: {e.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise RecordError(f"{path} is no regular file")
    return fd


def read_bounded(path, limit, within=None):
    """The bytes of a regular file of at most `limit`."""
    with os.fdopen(open_regular(path, within), "rb") as f:
        data = f.read(limit + 1)
    if len(data) > limit:
        raise RecordError(f"{path} is larger than {limit:,} bytes, which none of its kind is")
    return data


def _once(pairs):
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key stands there twice")
    return out


def _no_constant(text):
    raise ValueError(f"{text} is no JSON number")


def parse_json(data, path, kind=dict):
    """JSON of an untrusted file: an object (or `kind`), every key once."""
    try:
        value = json.loads(data.decode("utf-8") if isinstance(data, bytes) else data, object_pairs_hook=_once,
                           parse_constant=_no_constant)
    except (ValueError, RecursionError, MemoryError) as e:
        raise RecordError(f"{path}: this is no JSON that can be read: {str(e) or type(e).__name__}") from None
    if not isinstance(value, kind):
        raise RecordError(f"{path}: expected a JSON {'object' if kind is dict else kind.__name__}, it is "
                          f"{type(value).__name__}")
    return value


def whole(value, least=0, most=2**63 - 1):
    """value, where it is a whole number within the limits; else a ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{str(value)[:60]!r} is no whole number from {least} to {most}")
    return value


def number(value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:60]!r} is no number")
    return float(value)


def hasher():
    """The xxhash package, or a RecordError that says what to do without it."""
    try:
        import xxhash
    except ImportError:
        raise RecordError("hashes are checked with the xxhash package: pip install xxhash, or leave them unchecked "
                          "(Run(path, verify=False), --no-verify)") from None
    return xxhash


def hash_hex(data):
    return f"{hasher().xxh3_64_intdigest(data):016x}"


# ---- canonical JSON, as jansson writes it (the manifest's hash is of that) ----


def _text(s):
    plain = json.dumps(s, ensure_ascii=False)
    return re.sub(r"\\u[0-9a-f]{4}", lambda m: m[0][:2] + m[0][2:].upper(), plain) if "\\u" in plain else plain


def _real(x):
    """%.15g, with a point or an exponent, and that without a plus sign or zeros in front."""
    mantissa, e, exponent = f"{x:.15g}".partition("e")
    if not e:
        return mantissa if "." in mantissa else mantissa + ".0"
    return f"{mantissa}e{int(exponent)}"


def canonical(value):
    """Keys sorted, no blanks: the text that hash and fingerprint are of."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_text(k)}:{canonical(value[k])}" for k in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    if isinstance(value, float):
        return _real(value)
    return _text(value) if isinstance(value, str) else json.dumps(value)
