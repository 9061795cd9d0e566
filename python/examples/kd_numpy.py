#!/usr/bin/env python3
"""A worked distillation loss over a run's record, with NumPy alone and every gradient written out.

    kd_numpy.py RUN [--temperature T] [--tail bucket|ignore|renormalise] [--steps N]

The student is as small as a language model gets: a table W [V, V], whose row x holds the logits of what
follows token x. It learns from any capture mode that to_targets() gives probabilities for; loss() is what
a trainer computes per position, and holds for any student, since it ends at the student's logits.
"""

import argparse

import numpy as np

from tdgen import Run, check_tokens, to_targets


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def loss(record, logits, temperature=1.0, tail="bucket", **options):
    """(loss float64 [R], its gradient by the student's logits float64 [R, V]) of one record.

    logits [R, V]: the student's, at the record's row_position. The loss is T^2 times KL(teacher || student),
    both at temperature T; T^2 keeps the gradient's size comparable between temperatures (Hinton et al. 2015).

    With p the teacher, q the student, S the recorded set, r = sum of p outside of it and s = sum of q outside:
      ignore, renormalise   sum over S of p (log p - log q)            gradient (sum of p over S) q - p
      bucket                the same + r (log r - log s)               ... and for tokens outside of S the bucket
                                                                       asks for r in all, shared as q shares it:
                                                                       gradient q - r q / s
    With all of V recorded these are one: KL, whose gradient is q - p. By truncation the gradient by a row's
    logits differs from that by at most 2 T r in sum of absolute values (for r at the same T).
    """
    ids, p = to_targets(record, temperature, tail, **options)
    logq = log_softmax(logits.astype(np.float64) / temperature)
    q = np.exp(logq)
    rest = p[:, ids.shape[1] :].astype(np.float64)  # [R, 1] with a bucket, else [R, 0]
    p = p[:, : ids.shape[1]].astype(np.float64)
    row, place = np.nonzero((ids >= 0) & (p > 0))
    at, known = (row, ids[row, place]), p[row, place]

    value = np.zeros(len(ids))
    np.add.at(value, row, known * (np.log(known) - logq[at]))
    gradient = q * p.sum(axis=1, keepdims=True)
    np.subtract.at(gradient, at, known)
    if tail == "bucket":
        outside = np.ones(q.shape, bool)
        outside[at] = False
        s = np.where(outside, q, 0).sum(axis=1, keepdims=True)
        has = (rest > 0) & (s > 0)
        value += np.where(has, rest * np.log(np.where(has, rest / np.where(s > 0, s, 1), 1)), 0)[:, 0]
        gradient += np.where(has, rest * (q - np.where(outside, q / np.where(s > 0, s, 1), 0)), 0)
    return temperature**2 * value, temperature * gradient


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--tail", choices=("bucket", "ignore", "renormalise"), default="bucket")
    parser.add_argument("--steps", type=int, default=5, help="passes over the run (5)")
    parser.add_argument("--student-vocab", type=int, metavar="N", help="ids of the student (the teacher's)")
    parser.add_argument("--cut-vocab", action="store_true", help="leave out the teacher's ids that the student has not")
    parser.add_argument("--rate", type=float, default=2.0)
    args = parser.parse_args()
    run = Run(args.run)
    size = min(run.vocab_size, args.student_vocab or run.vocab_size)
    table = np.zeros((size, size), np.float32)
    for step in range(args.steps + 1):
        total, rows = 0.0, 0
        for record in run:
            if len(record["row_position"]) == 0:
                continue
            tokens = record["input_ids"][record["row_position"]]
            check_tokens(record, size)
            value, gradient = loss(record, table[tokens], args.temperature, args.tail, student_vocab=size,
                                   cut=args.cut_vocab)
            total, rows = total + value.sum(), rows + len(value)
            if step < args.steps:
                np.add.at(table, tokens, (-args.rate * gradient).astype(np.float32))
        print(f"pass {step}: loss {total / max(rows, 1):.4f} over {rows} positions")


if __name__ == "__main__":
    main()
