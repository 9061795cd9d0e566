#!/usr/bin/env python3
"""Folders of earlier versions (test/fixtures/record): our reader reads them, and the exports take them."""

import os
import sys
import tempfile

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "python", "src"))
import tdgen as rd  # noqa: E402
from test_export import export  # noqa: E402

RECORD = os.path.join(ROOT, "test", "fixtures", "record")


def check(revision):
    folders = os.path.join(RECORD, f"revision-{revision}")
    names = sorted(n for n in os.listdir(folders) if os.path.isdir(os.path.join(folders, n)))
    assert len(names) == 7, (revision, names)
    n_rows = 0
    for name in names:
        run = rd.Run(os.path.join(folders, name))
        assert len(run) == 6, (revision, name, len(run))
        rows = sum(len(np.atleast_1d(run[i]["row_position"])) for i in range(len(run)))
        assert rows > 0, (revision, name)
        n_rows += rows
    with tempfile.TemporaryDirectory() as tmp:
        for name in ("topk", "topk_packed_zstd", "topp"):
            out = os.path.join(tmp, name)
            export("hf", os.path.join(folders, name), out, "--quiet")
            assert os.listdir(out), (revision, name)
    print(f"{len(names)} folders of revision {revision}, {n_rows} rows read")


def main():
    revisions = sorted(int(n.split("-")[1]) for n in os.listdir(RECORD) if n.startswith("revision-"))
    assert revisions == list(range(1, len(revisions) + 1)), revisions
    for revision in revisions:
        check(revision)


if __name__ == "__main__":
    main()
