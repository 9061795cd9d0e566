#!/usr/bin/env python3
"""Folders of earlier versions (test/fixtures/record): our reader reads them, and the exports take them."""

import os
import sys
import tempfile

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tools", "python"))
import tdgen_reader as rd  # noqa: E402
from test_export import export  # noqa: E402

FOLDERS = os.path.join(ROOT, "test", "fixtures", "record", "revision-1")


def main():
    names = sorted(n for n in os.listdir(FOLDERS) if os.path.isdir(os.path.join(FOLDERS, n)))
    assert len(names) == 7, names
    n_rows = 0
    for name in names:
        folder = os.path.join(FOLDERS, name)
        run = rd.Run(folder)
        assert len(run) == 6, (name, len(run))
        rows = sum(len(np.atleast_1d(run[i]["row_position"])) for i in range(len(run)))
        assert rows > 0, name
        n_rows += rows
    with tempfile.TemporaryDirectory() as tmp:
        for name in ("topk", "topk_packed_zstd", "topp"):
            out = os.path.join(tmp, name)
            export("hf", os.path.join(FOLDERS, name), out, "--quiet")
            assert os.listdir(out), name
    print(f"{len(names)} folders of revision 1, {n_rows} rows read")


if __name__ == "__main__":
    main()
