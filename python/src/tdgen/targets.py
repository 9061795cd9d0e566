"""A record's log-probabilities as what a student is to learn: the teacher's distribution at a temperature.

to_targets() is what a loss reads; to_logprobs() the same in logarithms, to_dense() over the whole vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["TAILS", "check_tokens", "cut_vocab", "log_softmax", "renormalised", "to_dense", "to_logprobs", "to_targets"]

_Record = Mapping[str, Any]
_Head = Callable[[Any], Any]

TAILS = ("bucket", "ignore", "renormalise")
_BLOCK_BYTES = 1 << 26  # float64 working memory for dense rows


def _pad(offsets, values, fill):
    """Ragged [E] as [R, longest], with `fill` behind each row's own."""
    counts = np.diff(offsets)
    out = np.full((len(counts), int(counts.max(initial=0))), fill, values.dtype)
    out[np.arange(out.shape[1]) < counts[:, None]] = values
    return out


def _log_shift(record, temperature):
    """[R, 1]: log p_T(v) = log p(v) / T + this, by the recorded normaliser; exact for any set of ids."""
    if temperature == 1:
        return 0.0
    match = [i for i, t in enumerate(record["temperatures"]) if np.isclose(t, temperature, rtol=1e-6, atol=0)]
    if not match:
        raise ValueError(
            f"temperature {temperature} was not recorded (capture.temperatures = {list(record['temperatures'])}): "
            "the normaliser over the whole vocabulary is not known")
    # logit / T - lse_T, with logit = log p + lse
    lse = record["logsumexp"].astype(np.float64) / temperature
    return (lse - record["logsumexp_t"][:, match[0]])[:, None]


def _draws(record, temperature):
    """ids [R, D] and the log of an unbiased estimate of p_T at each: count / n times p_T / q.

    q is the distribution that was drawn from: the teacher at T = 1, or p^power / sum of p^power.
    """
    ids = _pad(record["draw_offsets"], record["draw_ids"], -1)
    logp = _pad(record["draw_offsets"], record["draw_logprobs"], -np.inf).astype(np.float64)
    counts = _pad(record["draw_offsets"], record["draw_counts"], 0)
    n = counts.sum(axis=1, keepdims=True)  # n_draws: draws are never lost
    used = ids >= 0
    logp = np.where(used, logp, 0.0)
    log_q = logp
    if "proposal_logsumexp" in record:
        power = float(record["capture"]["proposal_power"])
        log_q = power * logp - record["proposal_logsumexp"].astype(np.float64)[:, None]
    estimate = np.log(np.maximum(counts, 1) / np.maximum(n, 1))
    estimate += logp / temperature + _log_shift(record, temperature) - log_q
    return ids, np.where(used, estimate, -np.inf)


def _sets(record, temperature, need_norm):
    """ids [R, K] and log-probabilities at T (float64, only up to a constant per row without need_norm)."""
    if record["mode"] == "topp":
        ids = _pad(record["topp_offsets"], record["topp_ids"], -1)
        logp = _pad(record["topp_offsets"], record["topp_logprobs"], -np.inf)
    else:
        ids, logp = record["topk_ids"], record["topk_logprobs"]
    logp = np.where(ids >= 0, logp, -np.inf).astype(np.float64) / temperature
    return ids, logp + _log_shift(record, temperature) if need_norm else logp


def _combined(record, temperature):
    """The top k as recorded, and outside of it the draws' estimate."""
    ids, logp = _sets(record, temperature, need_norm=True)
    drawn, estimate = _draws(record, temperature)
    # A draw inside the top k says nothing new: its id is known exactly.
    rows = np.arange(len(ids), dtype=np.int64)[:, None] * (record["vocab_size"] + 1)
    inside = np.isin(drawn + rows, (ids + rows)[ids >= 0])
    drawn, estimate = np.where(inside, -1, drawn), np.where(inside, -np.inf, estimate)
    return np.concatenate([ids, drawn], axis=1), np.concatenate([logp, estimate], axis=1)


def log_softmax(logits: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float32]:
    """float32 log-probabilities at T of float32 logits [R, V], summed in float64; -inf stays -inf."""
    out = np.empty(logits.shape, np.float32)
    block = max(1, _BLOCK_BYTES // max(1, 8 * logits.shape[1]))
    for r in range(0, len(logits), block):
        z = logits[r : r + block].astype(np.float64) / temperature
        z -= z.max(axis=1, keepdims=True)
        out[r : r + block] = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return out


def cut_vocab(ids: NDArray[Any], logp: NDArray[Any], n: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]:
    """A student of n ids knows no others: (ids, log p, probability of what was left out [R]); free places are last."""
    if ids.shape[1] and ids.strides[0] == 0:  # all ids in order
        return ids[:, :n], logp[:, :n], np.exp(logp[:, n:], dtype=np.float64).sum(axis=1)
    beyond = ids >= n
    if not beyond.any():
        return ids, logp, np.zeros(len(ids))
    lost = np.where(beyond, np.exp(logp), 0).sum(axis=1, dtype=np.float64)
    order = np.argsort(beyond, axis=1, kind="stable")
    ids, logp = np.where(beyond, np.int32(-1), ids), np.where(beyond, -np.inf, logp)
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(logp, order, axis=1), lost


def check_tokens(record: _Record, student_vocab: int | None) -> None:
    """Refuses a sample whose own tokens the student does not have: no cut can mend that."""
    tokens = record["input_ids"]
    if student_vocab is not None and len(tokens) and int(tokens.max()) >= student_vocab:
        raise ValueError(f"dataset row {record['index']}: the text has token {int(tokens.max())}, the student has "
                         f"{student_vocab} ids (the teacher {record['vocab_size']})")


def renormalised(logp: NDArray[Any]) -> NDArray[Any]:
    """log-probabilities scaled so that every row's set sums to 1."""
    high = logp.max(axis=1, keepdims=True, initial=-1e38)
    total = np.exp(logp - high).sum(axis=1, keepdims=True)
    return logp - high - np.log(np.where(total > 0, total, 1))


def to_logprobs(record: _Record, temperature: float = 1.0, tail: str = "ignore", source: str | None = None,
                lm_head: _Head | None = None, student_vocab: int | None = None,
                cut: bool = False) -> tuple[NDArray[np.int32], NDArray[Any], NDArray[np.float64]]:
    """As to_targets, but log-probabilities: (ids int32 [R, K], log p float64 [R, K], rest float64 [R]).

    Free places (id -1) have -inf. rest is the probability outside ids, whatever tail says ("bucket" and
    "ignore" are the same here). At T = 1 and with tail="ignore" these are the recorded numbers themselves.
    Modes full and hidden give float32 over all V ids.
    """
    ids, logp, rest = _logprobs(record, temperature, tail, source, lm_head)
    if student_vocab is not None:
        ids, logp, lost = cut_vocab(ids, logp, student_vocab)
        if lost.any() and not cut:
            raise ValueError(f"dataset row {record['index']}: the teacher has {record['vocab_size']} ids, the student "
                             f"{student_vocab}: those from {student_vocab} on hold up to {lost.max():.3g} of a position's "
                             "probability. cut=True leaves them out; the probability joins what is not recorded")
        rest = rest + lost
    if tail == "renormalise":
        logp, rest = renormalised(logp), np.zeros(len(ids))
    return ids, logp, rest


def _logprobs(record, temperature, tail, source, lm_head):
    """to_logprobs before anything is cut or scaled."""
    if tail not in TAILS:
        raise ValueError(f'tail={tail!r}, expected "bucket", "ignore" or "renormalise"')
    if not temperature > 0 or math.isinf(temperature):
        raise ValueError(f"temperature={temperature}, expected a number above 0")
    mode = record["mode"]
    allowed = {"topk+sample": ("combined", "topk", "sample")}.get(mode, (None,))
    source = source or allowed[0]
    if source not in allowed:
        raise ValueError(f"source={source!r} in mode {mode}, expected one of {allowed}")
    if mode in ("full", "hidden"):
        if mode == "hidden" and lm_head is None:
            raise ValueError("mode hidden: give lm_head (tdgen.logits.LmHead of the teacher's folder)")
        logp = log_softmax(record["logits"] if mode == "full" else lm_head(record["hidden"]), temperature)
        return np.broadcast_to(np.arange(logp.shape[1], dtype=np.int32), logp.shape), logp, np.zeros(len(logp))
    if mode == "sample" or source == "sample":
        ids, logp = _draws(record, temperature)
    elif source == "combined":
        ids, logp = _combined(record, temperature)
    else:
        ids, logp = _sets(record, temperature, need_norm=tail != "renormalise")
    rest = np.zeros(len(ids))  # what was drawn stands for the whole vocabulary
    if tail != "renormalise" and (mode in ("topp", "topk") or source == "topk"):
        if temperature == 1:  # summed from its own terms: exact even where it is tiny
            rest = record["tail_mass"].astype(np.float64)
        else:
            rest = np.clip(1 - np.exp(logp).sum(axis=1), 0, 1)
    return ids, logp, rest


@overload
def to_targets(record: _Record, temperature: float = 1.0, tail: str = "bucket", dense: Literal[False] = False,
               source: str | None = None, lm_head: _Head | None = None, student_vocab: int | None = None,
               cut: bool = False) -> tuple[NDArray[np.int32], NDArray[np.float32]]: ...
@overload
def to_targets(record: _Record, temperature: float = 1.0, tail: str = "bucket", *, dense: Literal[True],
               source: str | None = None, lm_head: _Head | None = None, student_vocab: int | None = None,
               cut: bool = False) -> NDArray[np.float32]: ...
def to_targets(record, temperature=1.0, tail="bucket", dense=False, source=None, lm_head=None, student_vocab=None,
               cut=False):
    """The teacher's distribution of a record at a temperature: (ids, probs), or with dense=True one array.

    ids int32 [R, K] (-1 in free places, whose probability is 0), probs float32 [R, K]. With tail="bucket"
    probs has one more column, the probability of every token outside ids. dense=True gives float32
    [R, V], or [R, V + 1] with the bucket last.

    tail says what becomes of the probability outside the recorded set:
      "bucket"       kept as one more class: rows sum to 1. Compare with the student's probability
                     of the same set, 1 - sum of its probabilities of ids. No bias, and nothing is
                     claimed about what lies in the tail.
      "ignore"       left out: rows sum to less than 1. The loss is then the sum over the candidates
                     of the true cross entropy.
      "renormalise"  candidates scaled up to sum to 1: simple, but makes the student more certain
                     than the teacher; with a small set or a high temperature this is a real bias.

    temperature = 1 is exact, and so is each of capture.temperatures: the recorded logsumexp_t is the
    normaliser over the whole vocabulary, and the tail at T is 1 minus the set's probability at T. Other
    temperatures are refused, but for modes full and hidden, which know every logit, and for
    tail="renormalise" over a recorded set (topk, topp), which needs no normaliser.

    Modes sample and topk+sample: probs is an estimate that is right in expectation, count / n_draws times
    p_T / q; it stands for the whole vocabulary, so that the bucket is 0. source chooses for topk+sample:
    "combined" (default: the recorded log-probabilities inside the top k, draws outside of it), "topk" or
    "sample".

    Mode hidden needs lm_head: a function of float32 [n, C] that gives logits float32 [n, V]
    (tdgen.logits.LmHead).

    student_vocab: how many ids the student has (its config.json's vocab_size), where that is fewer than the
    teacher's. A record with probability on others is refused, or with cut=True these are left out: their
    probability joins what is not recorded, for tail to say what becomes of it. dense=True then has student_vocab
    columns.
    """
    ids, logp, rest = to_logprobs(record, temperature, tail, source, lm_head, student_vocab, cut)
    probs = np.exp(logp).astype(np.float32, copy=False)
    if dense:
        probs = _scatter(ids, probs, student_vocab or record["vocab_size"])
    if tail == "bucket":
        probs = np.concatenate([probs, rest.astype(np.float32)[:, None]], axis=1)
    return probs if dense else (ids, probs)


def _scatter(ids, probs, vocab_size):
    if ids.shape[1] and ids.strides[0] == 0:  # full: already dense
        return probs if ids.shape[1] == vocab_size else np.pad(probs, ((0, 0), (0, vocab_size - ids.shape[1])))
    out = np.zeros((len(ids), vocab_size), np.float32)
    used = ids >= 0
    rows = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)
    out[rows[used], ids[used]] = probs[used]
    return out


def to_dense(record: _Record, temperature: float = 1.0, tail: str = "spread", lm_head: _Head | None = None,
             student_vocab: int | None = None, cut: bool = False) -> NDArray[np.float32]:
    """The distribution as float32 [R, V], for small vocabularies and for tests.

    tail="spread" divides what is not recorded evenly over the tokens that are not recorded, so that
    rows sum to 1 (but for what a cut takes from rows that hold all tokens); "zero" leaves these at 0.
    """
    if tail not in ("spread", "zero"):
        raise ValueError(f'tail={tail!r}, expected "spread" or "zero"')
    ids, p = to_targets(record, temperature, "bucket", lm_head=lm_head, student_vocab=student_vocab, cut=cut)
    dense = _scatter(ids, p[:, :-1], student_vocab or record["vocab_size"])
    if tail == "spread":
        out = np.ones(dense.shape, bool)
        used = ids >= 0
        out[np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)[used], ids[used]] = False
        n_rest = out.sum(axis=1)
        dense = dense + out * (p[:, -1] / np.maximum(n_rest, 1))[:, None]
    return dense.astype(np.float32, copy=False)
