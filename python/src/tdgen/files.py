"""How exports reach the disk: progress, files and folders that appear whole, tables.

Tables become Arrow streams in the layout of datasets' save_to_disk, or Parquet; rows are added one by one
and written in batches of bounded size.
"""

import hashlib
import json
import os
import shutil
import tempfile

import numpy as np

BATCH_BYTES = 32 << 20  # rows of a table are written in batches of about this size
FILE_BYTES = 500 << 20  # and a new file begins behind about so many bytes, as the hub has them


class ExportError(Exception):
    """Something the user can act on."""


def progress(total, quiet=False):
    """A bar of samples on stderr, where that is a terminal."""
    from tqdm import tqdm

    return tqdm(total=total, unit=" samples", smoothing=0.05, leave=False, disable=True if quiet else None)


class Target:
    """A file or folder that appears whole under its name or not at all.

    `path` is where to write meanwhile, and `beside` where the companion OUT + suffix of a file goes, if it has
    one. commit() gives them their names; leaving the with block otherwise removes them.
    """

    def __init__(self, out, folder, suffix=None):
        self.out, self.folder, self.path = os.path.normpath(out), folder, None
        self.suffix, self.beside = suffix, None

    def __enter__(self):
        parent, name = os.path.split(os.path.abspath(self.out))
        self._refuse()
        os.makedirs(parent, exist_ok=True)
        self.path = tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=parent)
        os.chmod(self.path, 0o777 & ~_umask())
        self._whole = self.path
        if not self.folder:
            self.path = os.path.join(self.path, name)
        if self.suffix:
            self.beside = self.path + self.suffix
        return self

    def _refuse(self):
        for path in (self.out, self.out + self.suffix) if self.suffix else (self.out,):
            if os.path.lexists(path):
                raise ExportError(f"{path} exists; an export never writes over anything: remove it or choose "
                                  "another name")

    def commit(self):
        self._refuse()
        for folder, _, names in os.walk(self._whole):
            for name in names:
                _sync(os.path.join(folder, name))
            _sync(folder)
        if self.beside:  # first, so that the file never stands without it
            os.rename(self.beside, self.out + self.suffix)
        os.rename(self.path, self.out)
        _sync(os.path.dirname(os.path.abspath(self.out)))

    def __exit__(self, *_):
        shutil.rmtree(self._whole, ignore_errors=True)


def _umask():
    old = os.umask(0)
    os.umask(old)
    return old


def _sync(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


# ---- tables ----


class Column:
    """One column: kind "value", "list" (a 1-D array a row) or "lists" (a list of lists a row)."""

    def __init__(self, name, kind, dtype):
        self.name, self.kind, self.dtype = name, kind, dtype


class Table:
    """Rows on their way into files of a folder, in batches."""

    def __init__(self, columns, sink):
        import pyarrow as pa

        self.pa, self.columns, self.sink = pa, columns, sink
        fields = []
        for c in columns:
            kind = pa.string() if c.dtype is str else pa.from_numpy_dtype(c.dtype)
            for _ in range({"value": 0, "list": 1, "lists": 2}[c.kind]):
                kind = pa.list_(kind)
            fields.append(pa.field(c.name, kind))
        self.schema = pa.schema(fields, metadata=sink.metadata)
        self._clear()

    def _clear(self):
        self.rows, self.size = [], 0

    def add(self, **row):
        """Values, 1-D arrays, and for "lists" (offsets from 0, flat values) or a 2-D array."""
        self.rows.append(row)
        for c in self.columns:
            value = row[c.name]
            if c.kind == "lists":
                flat = value[1] if isinstance(value, tuple) else value
                self.size += flat.size * np.dtype(c.dtype).itemsize
            elif c.kind == "list":
                self.size += value.size * np.dtype(c.dtype).itemsize
            else:
                self.size += 16
        if self.size >= BATCH_BYTES:
            self.flush()

    def flush(self):
        if not self.rows:
            return
        arrays = [self._array(c) for c in self.columns]
        self.sink.write(self.pa.RecordBatch.from_arrays(arrays, schema=self.schema), self.size)
        self._clear()

    def _array(self, c):
        pa, values = self.pa, [row[c.name] for row in self.rows]
        if c.kind == "value":
            return pa.array(values, self.schema.field(c.name).type)
        if c.kind == "list":
            return pa.ListArray.from_arrays(_ends([len(v) for v in values]), self._flat(values, c.dtype))
        inner, flat = [], []
        for v in values:
            if isinstance(v, tuple):
                inner.append(np.diff(v[0]))
                flat.append(v[1])
            else:
                inner.append(np.full(v.shape[0], v.shape[1], np.int64))
                flat.append(v.reshape(-1))
        lists = pa.ListArray.from_arrays(_ends(np.concatenate(inner)), self._flat(flat, c.dtype))
        return pa.ListArray.from_arrays(_ends([len(n) for n in inner]), lists)

    def _flat(self, values, dtype):
        return self.pa.array(np.ascontiguousarray(np.concatenate(values), dtype))

    def close(self):
        self.flush()
        self.sink.close(self.schema)


def _ends(lengths):
    ends = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    if ends[-1] >= 2**31:
        raise ExportError(f"one batch of rows has {ends[-1]} values: the sample is too long for this format")
    return ends.astype(np.int32)


class Files:
    """Numbered files in a folder that get their -of-NNNNN at the end."""

    pattern = ""

    def __init__(self, folder, origin):
        self.folder, self.origin = folder, origin
        self.metadata = {"tdgen": json.dumps(origin)}
        self.names, self.writer, self.bytes = [], None, 0

    def write(self, batch, size):
        if self.writer is None:
            path = os.path.join(self.folder, f"{len(self.names)}.part")
            self.writer, self.bytes = self._open(path, batch.schema), 0
            self.names.append(path)
        self._write(batch)
        self.bytes += size
        if self.bytes >= FILE_BYTES:
            self._end()

    def _end(self):
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def close(self, schema):
        if not self.names:  # no rows at all: a file that says so
            path = os.path.join(self.folder, "0.part")
            self.writer = self._open(path, schema)
            self.names.append(path)
        self._end()
        final = []
        for i, path in enumerate(self.names):
            final.append(self.pattern.format(i, len(self.names)))
            os.rename(path, os.path.join(self.folder, final[-1]))
        self._finish(final)


class Batches:
    """A table in memory."""

    def __init__(self, origin):
        self.origin, self.metadata, self.batches, self.schema = origin, {"tdgen": json.dumps(origin)}, [], None

    def write(self, batch, size):
        self.batches.append(batch)

    def close(self, schema):
        self.schema = schema

    def table(self):
        import pyarrow as pa

        return pa.Table.from_batches(self.batches, self.schema)


class ArrowFolder(Files):
    """What datasets' save_to_disk writes, for datasets.load_from_disk: Arrow streams, state.json and
    dataset_info.json."""

    pattern = "data-{:05d}-of-{:05d}.arrow"

    def _open(self, path, schema):
        import pyarrow as pa

        return pa.ipc.new_stream(path, schema)

    def _write(self, batch):
        self.writer.write_batch(batch)

    def _finish(self, names):
        # datasets names its caches by _fingerprint: other contents, another one.
        state = {"_data_files": [{"filename": n} for n in names], "_fingerprint": digest(self.origin),
                 "_format_columns": None, "_format_kwargs": {}, "_format_type": None,
                 "_output_all_columns": False, "_split": "train"}
        info = {"citation": "", "description": json.dumps(self.origin), "features": None, "homepage": "",
                "license": ""}
        for name, value in (("state.json", state), ("dataset_info.json", info), ("tdgen_export.json", self.origin)):
            with open(os.path.join(self.folder, name), "w", encoding="utf-8") as f:
                json.dump(value, f, indent=2)


class ParquetFolder(Files):
    """Parquet files, as datasets.load_dataset(FOLDER) and every Parquet reader take them.
    Floats are float32 always: half floats in Parquet are read wrongly or not at all by many readers."""

    pattern = "train-{:05d}-of-{:05d}.parquet"

    def _open(self, path, schema):
        import pyarrow.parquet as pq

        return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False, write_statistics=False)

    def _write(self, batch):
        self.writer.write_batch(batch)

    def _finish(self, names):
        # The underscore: readers of whole folders pass such files by.
        with open(os.path.join(self.folder, "_tdgen_export.json"), "w", encoding="utf-8") as f:
            json.dump(self.origin, f, indent=2)
