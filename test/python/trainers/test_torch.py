#!/usr/bin/env python3
"""The loop that docs/training.md shows, word for word, with PyTorch: its loss and its gradient are
those of kd_numpy.py, which test_kd.py compares with full-distribution KD."""

import os
import re
import sys
import tempfile
import types

import numpy as np
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
sys.path[:0] = [os.path.join(ROOT, "python", "src"), os.path.join(ROOT, "python", "examples"),
                os.path.join(ROOT, "test", "python")]
import _synth  # noqa: E402
import kd_numpy  # noqa: E402
from tdgen import Run  # noqa: E402


def main():
    text = open(os.path.join(ROOT, "docs", "training.md"), encoding="utf-8").read()
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", text, re.S) if "DataLoader" in c]
    teacher = _synth.Teacher(n=8)
    for mode in ("topk", "topp"):
        with tempfile.TemporaryDirectory() as tmp:
            _synth.write_run(tmp + "/run", teacher, mode, dtype="f32")
            table = torch.randn(teacher.vocab, teacher.vocab, dtype=torch.float64, requires_grad=True)

            def student(ids, attention_mask):
                assert attention_mask.shape == ids.shape
                return types.SimpleNamespace(logits=table[ids])  # noqa: B023

            names = {"student": student}
            exec(code.replace("out/demo", tmp + "/run"), names)  # all samples are one batch
            value, rows, gradient = 0.0, 0, np.zeros(table.shape)
            for record in Run(tmp + "/run"):
                tokens = record["input_ids"][record["row_position"]]
                v, g = kd_numpy.loss(record, table.detach().numpy()[tokens])
                value, rows = value + v.sum(), rows + len(v)
                np.add.at(gradient, tokens, g)
            off = abs(float(names["loss"].detach()) - value / rows)
            off_gradient = np.abs(table.grad.numpy() - gradient / rows).max()
            print(f"   {mode}: loss {value / rows:.4f}, off by {off:.1e}; gradient off by {off_gradient:.1e}")
            assert off < 1e-5 and off_gradient < 1e-6
    print("OK")


if __name__ == "__main__":
    main()
