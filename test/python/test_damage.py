#!/usr/bin/env python3
"""Folders that are damaged or made to do harm, read with tdgen. Of the committed folders of every capture
mode: bits flipped, files cut, bytes put in and taken out, JSON edited, shards exchanged. Each is refused with a
RecordError, or reads to exactly what the folder held; never another exception, a hang, or memory out of bounds.

The same with the hashes made right again, as an attacker would, and with verify=False: there the content may
differ, everything else holds.

    test_damage.py [--rounds N] [--seed S]    N of each folder (250)
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

import numpy as np
import xxhash
import zstandard

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "python", "src"))
from tdgen import logits as tdgen_logits  # noqa: E402
from tdgen import export as tdgen_export  # noqa: E402
import tdgen as rd  # noqa: E402

FOLDERS = os.path.join(ROOT, "test", "fixtures", "record", "revision-1")
ODD = [None, True, False, -1, 0, 1, 2**31, 2**63, 2**70, 10**400, -5.5, 1e308, "", "../../etc/passwd", "/dev/zero", "x" * 9,
       "\ud800", [], {}, [[]], [-1], [2**70], ["a"], {"a": {}}]


def read(path, verify=True):
    """All that a run says, as bytes."""
    run, out = rd.Run(path, verify), []
    for i in range(len(run)):
        record = run.sample(i)
        for key in sorted(record):
            value = record[key]
            out.append(key)
            out.append((value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else repr(value))
        if run.mode in ("topk", "topp", "full"):
            rd.to_targets(record)
    return run.manifest["identity"], [e["data_hash"] for e in run.shards], out


def hashed(data):
    return f"{xxhash.xxh3_64_intdigest(data):016x}"


def compact(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def places(value, at=()):
    """Paths of all values within."""
    if at:
        yield at
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, at + (key,))


def edited(value, rng):
    """A copy with one value changed, removed or added."""
    value = json.loads(json.dumps(value))
    place = rng.choice(list(places(value)))
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    how = rng.randrange(4)
    if how == 0 and isinstance(inner, dict):
        del inner[place[-1]]
    elif how == 1 and isinstance(inner, dict):
        inner[rng.choice(["", "__metadata__", "hidden", "topk_ids_packed", "a" * 99])] = rng.choice(ODD)
    else:
        inner[place[-1]] = rng.choice(ODD)
    return value


def take_apart(data, name):
    if name.endswith(".zst"):
        data = zstandard.decompress(data)
    (n,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def put_together(header, body, name, seal):
    meta = header.get("__metadata__")
    if seal and isinstance(meta, dict):
        meta.update(header_hash="0" * 16, data_hash=hashed(body))
    text = json.dumps(header, separators=(",", ":")).encode("utf-8", "surrogatepass")
    text += b" " * (-(len(text) + 8) % 64)
    if seal:
        text = text.replace(b'"header_hash":"' + b"0" * 16, b'"header_hash":"' + hashed(text).encode(), 1)
    data = struct.pack("<Q", len(text)) + text + body
    return zstandard.ZstdCompressor(write_checksum=True).compress(data) if name.endswith(".zst") else data


def spoil(data, rng):
    """Bytes with one damage of the kinds that disks, networks and editors make."""
    how, at = rng.randrange(7), rng.randrange(len(data))
    n = min(rng.choice([1, 1, 2, 7, 64, 512]), len(data) - at)
    if how <= 1:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if how == 2:
        return data[:at]
    if how == 3:
        return data[:at] + bytes(n) + data[at + n :]
    if how == 4:
        return data[:at] + data[at + n :]
    if how == 5:
        return data[:at] + rng.randbytes(n) + data[at:]
    return data[:at] + rng.randbytes(n) + data[at + n :]


def damage(files, others, rng):
    """(files with a damage, whether the hashes were made right again)"""
    files, how = dict(files), rng.randrange(10)
    shards = sorted(n for n in files if n.startswith("shard-"))
    name = rng.choice(shards)
    if how <= 3:
        name = rng.choice(sorted(files))
        files[name] = spoil(files[name], rng)
    elif how == 4:  # exchanged, doubled, or another run's
        files[name] = rng.choice([files[n] for n in shards if n != name] + others)
        if rng.random() < 0.5:
            files[shards[1]] = files[shards[0]] if name == shards[1] else files[name]
    elif how == 5:
        manifest, seal = edited(json.loads(files["manifest.json"]), rng), rng.random() < 0.7
        if seal and isinstance(manifest.get("identity"), dict):
            manifest["fingerprint"] = hashed(compact(manifest["identity"]))
            for n in shards if rng.random() < 0.7 else []:
                header, body = take_apart(files[n], n)
                header["__metadata__"]["fingerprint"] = manifest["fingerprint"]
                files[n] = put_together(header, body, n, True)
            manifest["hash"] = hashed(compact({k: v for k, v in manifest.items() if k != "hash"}))
        files["manifest.json"] = json.dumps(manifest).encode()
        if seal:
            del files["shards.jsonl"]  # its hashes were of the old files
        return files, seal
    elif how == 6:
        lines = [json.loads(x) for x in files["shards.jsonl"].splitlines()]
        k = rng.randrange(len(lines))
        lines[k] = edited(lines[k], rng)
        files["shards.jsonl"] = "".join(json.dumps(x) + "\n" for x in lines).encode()
    else:  # within a shard: its header, or numbers of one of its tensors
        header, body = take_apart(files[name], name)
        seal = rng.random() < 0.8
        if how == 7:
            header = edited(header, rng)
        else:
            tensor = rng.choice(sorted(set(header) - {"__metadata__"}))
            begin, end = header[tensor]["data_offsets"]
            kind = {"I64": "<i8", "I32": "<i4", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1"}[header[tensor]["dtype"]]
            x = np.frombuffer(body[begin:end], kind).copy()
            if len(x):
                with np.errstate(all="ignore"):
                    at = rng.randrange(len(x))
                    odd = [-1, 1, 0, 255, 2**31 - 1, 2**62, -(2**62), float("nan"), float("inf")]
                    value = rng.choice(odd if "f" in kind else odd[:-2])
                    x[at] = np.array(value).astype(x.dtype) if rng.random() < 0.6 else x[rng.randrange(len(x))]
            body = body[:begin] + x.tobytes() + body[end:]
        files[name] = put_together(header, body, name, seal)
        if seal and rng.random() < 0.8:
            del files["shards.jsonl"]
        return files, seal
    return files, False


class TooLong(BaseException):
    pass


def too_long(*_):
    raise TooLong


def write(folder, files, before):
    for name in before.keys() | files.keys():
        if files.get(name) != before.get(name):
            path = os.path.join(folder, name)
            if name in files:
                with open(path, "wb") as f:
                    f.write(files[name])
            elif os.path.exists(path):
                os.remove(path)


def rounds(n, seed):
    loaded = {}
    for name in sorted(os.listdir(FOLDERS)):
        folder = os.path.join(FOLDERS, name)
        if os.path.isdir(folder):
            loaded[name] = {f: open(os.path.join(folder, f), "rb").read() for f in sorted(os.listdir(folder))}
    assert len(loaded) == 7, list(loaded)
    counts = {"refused": 0, "as it was": 0, "other content, hashes right": 0, "read unchecked": 0, "refused unchecked": 0}
    slowest, reasons = 0.0, set()
    for name, files in loaded.items():
        rng = random.Random(f"{seed} {name}")
        others = [loaded[x][s] for x in loaded if x != name for s in loaded[x] if s.startswith("shard-000000")]
        with tempfile.TemporaryDirectory() as folder:
            now = {}
            write(folder, files, now)
            now, good = files, read(folder)
            for i in range(n):
                bad, sealed = damage(files, others, rng)
                write(folder, bad, now)
                now = bad
                for verify in (True, False) if i % 2 else (True,):
                    begin = time.monotonic()
                    signal.alarm(20)
                    try:
                        got = read(folder, verify)
                    except rd.RecordError as e:
                        counts["refused" if verify else "refused unchecked"] += 1
                        assert folder in str(e) or "capture" in str(e), (name, i, str(e))
                        reasons.add(str(e).replace(folder, "")[:40])
                    except BaseException as e:
                        raise AssertionError(f"{name}, damage {i} of seed {seed}, verify={verify}: {e!r}") from e
                    else:
                        if verify and not sealed:
                            assert got == good, f"{name}, damage {i} of seed {seed}: read without complaint, and otherwise"
                        counts["read unchecked" if not verify else "as it was" if got == good else
                               "other content, hashes right"] += 1
                    finally:
                        signal.alarm(0)
                    slowest = max(slowest, time.monotonic() - begin)
    print(f"   {n * len(loaded)} damages: {counts}; {len(reasons)} beginnings of messages, slowest read {slowest:.2f} s")
    assert counts["refused"] > n and counts["as it was"] > 0 and counts["other content, hashes right"] > 0


def refused(folder, *words):
    signal.alarm(20)
    try:
        rd.Run(folder).sample(0)
    except rd.RecordError as e:
        assert all(w in str(e) for w in words), (words, str(e))
    else:
        raise AssertionError(f"read without complaint: {words}")
    finally:
        signal.alarm(0)


def hostile(tmp):
    """Files of other kinds, paths that lead away, and compressed files that grow."""
    source = os.path.join(FOLDERS, "topk")

    def fresh(base=source):
        shutil.rmtree(tmp + "/run", ignore_errors=True)
        shutil.copytree(base, tmp + "/run")
        return tmp + "/run"

    for name in ("manifest.json", "shards.jsonl", "shard-000000.safetensors"):
        for make in (os.mkfifo, os.mkdir, lambda p: os.symlink("/dev/zero", p), lambda p: os.symlink(source + "/" + name, p)):
            path = os.path.join(fresh(), name)
            os.remove(path)
            make(path)
            refused(tmp + "/run", name)
    os.rename(fresh() + "/shard-000000.safetensors", tmp + "/run/kept")  # a link that stays inside is none of these
    os.symlink("kept", tmp + "/run/shard-000000.safetensors")
    assert read(tmp + "/run") == read(source)
    for file in ("../shard-000000.safetensors", source + "/shard-000000.safetensors", "shard-000001.safetensors",
                 "shard-0000000.safetensors", "x", ""):
        index = os.path.join(fresh(), "shards.jsonl")
        text = open(index).read().replace("shard-000000.safetensors", file)
        open(index, "w").write(text)
        refused(tmp + "/run", "shards.jsonl")
    for text in ("[" * 100_000, "{" * 5, '{"a": 1, "a": 1}', "null", "9" * 5000, '{"schema": NaN}', "\xff"):
        open(os.path.join(fresh(), "manifest.json"), "wb").write(text.encode("latin-1"))
        refused(tmp + "/run", "manifest.json")
    for name in ("manifest.json", "status.json"):  # of any size
        with open(os.path.join(fresh(), name), "wb") as f:
            f.truncate(1 << 40)
        if name == "manifest.json":
            refused(tmp + "/run", name, "larger")
        else:
            try:
                tdgen_export.check_whole(rd.Run(tmp + "/run"), False)
            except rd.RecordError as e:
                assert name in str(e)
            else:
                raise AssertionError(name)
    # A lost or torn line: the shard proves itself.
    for cut in (0, 10, 300):
        path = os.path.join(fresh(), "shards.jsonl")
        os.truncate(path, cut)
        assert read(tmp + "/run") == read(source)
    os.remove(path)
    assert read(tmp + "/run") == read(source)

    # zstd: content that its frame does not state, or states and is not, or that is out of proportion.
    packed = os.path.join(FOLDERS, "topk_packed_zstd")
    name = "shard-000000.safetensors.zst"
    data = zstandard.decompress(open(os.path.join(packed, name), "rb").read())
    header, body = take_apart(open(os.path.join(packed, name), "rb").read(), name)
    bomb = zstandard.ZstdCompressor(level=1, write_content_size=True).compress(bytes(1 << 30))
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(data)
    good = zstandard.ZstdCompressor(write_content_size=True).compress(data)
    lying = bytearray(good)
    assert good[4] >> 6 == 1  # two bytes of size
    lying[5 if good[4] >> 5 & 1 else 6] ^= 8
    huge = bytearray(good[:4]) + bytes([good[4] | 0xC0]) + struct.pack("<Q", 1 << 62) + good[7:]
    # A header that asks for as much as the frame, and a GB of zeros behind it.
    inner = {"input_ids": {"dtype": "I32", "shape": [1 << 28], "data_offsets": [0, 1 << 30]},
             "__metadata__": header["__metadata__"]}
    text = json.dumps(inner).encode()
    wide = zstandard.ZstdCompressor(level=1).compress(struct.pack("<Q", len(text)) + text + bytes(1 << 30))
    long_header = zstandard.ZstdCompressor(level=1).compress(struct.pack("<Q", 1 << 29) + bytes(1 << 29))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for what, word in ((bomb, "times as much"), (silent, "does not state"), (bytes(lying), name), (bytes(huge), "times as much"),
                       (wide, "times as much"), (long_header, "times as much"), (good[:-9], "decompressed"),
                       (good + good, "cannot be decompressed"), (b"\x50\x2a\x4d\x18" + bytes(20), "no zstd file")):
        with open(os.path.join(fresh(packed), name), "wb") as f:
            f.write(what)
        refused(tmp + "/run", name, word)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 100, f"{grown} MB for files that want to grow"

    # The teacher's folder of a hidden run.
    model = tmp + "/model"
    for make in (lambda p: os.mkfifo(p + "/config.json"), lambda p: open(p + "/config.json", "w").write("[]"),
                 lambda p: open(p + "/config.json", "w").write('{"architectures": 3}'),
                 lambda p: (open(p + "/config.json", "w").write("{}"),
                            open(p + "/model.safetensors.index.json", "w").write(
                                '{"weight_map": {"lm_head.weight": "../x.safetensors"}}')),
                 lambda p: (open(p + "/config.json", "w").write("{}"), os.mkfifo(p + "/model.safetensors")),
                 lambda p: (open(p + "/config.json", "w").write("{}"), open(p + "/model.safetensors", "wb").write(b"\x10"))):
        shutil.rmtree(model, ignore_errors=True)
        os.mkdir(model)
        make(model)
        signal.alarm(20)
        try:
            tdgen_logits.LmHead(model)
        except rd.RecordError as e:
            assert model in str(e)
        else:
            raise AssertionError("a teacher's folder that is none was read")
        signal.alarm(0)


def rate(tmp):
    """What checking the hashes costs: bytes a second of a shard in the page cache."""
    with open(tmp + "/x", "wb") as f:
        f.write(np.random.default_rng(1).bytes(200 << 20))
    begin = time.perf_counter()
    data = np.memmap(tmp + "/x", np.uint8, "r")
    hashed(memoryview(data))
    seconds = time.perf_counter() - begin
    print(f"   xxh3-64 of a mapped file: {len(data) / seconds / 1e9:.1f} GB/s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=250)
    parser.add_argument("--seed", default="1")
    args = parser.parse_args()
    signal.signal(signal.SIGALRM, too_long)
    np.seterr(all="ignore")  # a damaged logarithm may well overflow
    with tempfile.TemporaryDirectory() as tmp:
        rate(tmp)
        hostile(tmp)
    rounds(args.rounds, args.seed)
    # The tool names the file and leaves nothing, without a traceback.
    with tempfile.TemporaryDirectory() as tmp:
        shutil.copytree(os.path.join(FOLDERS, "topk"), tmp + "/run")
        path = tmp + "/run/shard-000001.safetensors"
        data = bytearray(open(path, "rb").read())
        data[-3] ^= 4
        open(path, "wb").write(data)
        done = subprocess.run([sys.executable, ROOT + "/tools/tdgen_export", "nemo", tmp + "/run", tmp + "/out", "--quiet"],
                              capture_output=True, text=True)
        assert done.returncode == 4 and path in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert not os.path.exists(tmp + "/out")
    print("OK")


if __name__ == "__main__":
    main()
