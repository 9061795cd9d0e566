"""The distillation loss of a record or a batch, for PyTorch (the extra [torch])."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .targets import to_targets

__all__ = ["kd_loss"]

_PARTS = {"topk+sample": "combined", "topk": "topk", "sample": "sample"}  # of a topk+sample record


def kd_loss(student_logits: Tensor, record: Mapping[str, Any], mode: str | None = None, temperature: float | None = None,
            tail: str | None = None, reduction: str = "mean", lm_head: Callable[[Any], Any] | None = None,
            cut: bool = False) -> Tensor:
    """T^2 KL(teacher || student), both at temperature T, per recorded position; the factor T^2 keeps the size of the
    gradient comparable between temperatures (Hinton et al. 2015).

    record: a sample of a Run, or a batch of Collator.
    student_logits: of a sample [L, V] or [1, L, V], of a batch [B, L, V]; or [R, V], those of the recorded positions.
        Computed in float32 at least. On any device.
    mode: what of the record is used, by the names of the capture modes; its own. Of a topk+sample record "topk" and
        "sample" use that part alone.
    temperature: 1, or one of capture.temperatures; any number for modes full and hidden, and with tail="renormalise"
        over a recorded set. A batch has it from torch_dataset.
    tail: what becomes of the probability that is not recorded (see to_targets; a batch has it from torch_dataset):
        "bucket" (default)  one class for all other tokens, compared with the student's probability of them
        "ignore"            left out: the candidates' terms of the KL alone
        "renormalise"       the candidates scaled up to sum to 1
    reduction: "mean" over positions, "sum", or "none" for [R].
    lm_head: for mode hidden, tdgen.logits.LmHead of the teacher's folder.
    cut: leaves out ids that the student, with fewer than the teacher, has not; else a ValueError says what they hold.

    With p the teacher, q the student, S the recorded set, r = sum of p outside of it, s = sum of q outside of it, the
    value is sum over S of p (log p - log q), for "bucket" + r (log r - log s). By truncation its gradient by a row's
    logits differs from that of the whole distribution's KL by at most 2 T r in sum of absolute values. Estimates
    from draws are right in expectation.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction={reduction!r}, expected "mean", "sum" or "none"')
    n_student = student_logits.shape[-1]
    if "probs" in record:
        if mode is not None or tail is not None or temperature not in (None, record["temperature"]):
            raise ValueError("a batch has its temperature, tail and source from torch_dataset(run, temperature=, tail=, source=)")
        temperature, ids, p = record["temperature"], record["ids"], record["probs"]
        z = student_logits
        if z.dim() == 3:
            z = z[record["row_sample"].to(z.device), record["position"].to(z.device)]
    else:
        temperature = 1.0 if temperature is None else temperature
        small = n_student < record["vocab_size"]
        ids_np, p_np = to_targets(record, temperature, tail or "bucket", source=_source(record["mode"], mode), lm_head=lm_head,
                                  student_vocab=n_student if small else None, cut=cut)
        dense = ids_np.shape[1] > 0 and ids_np.strides[0] == 0
        ids = torch.arange(ids_np.shape[1]).expand(len(ids_np), -1) if dense else torch.from_numpy(ids_np.astype("int64"))
        p = torch.from_numpy(p_np)
        z = student_logits[0] if student_logits.dim() == 3 and len(student_logits) == 1 else student_logits
        if z.dim() == 2 and len(z) == len(record["input_ids"]):  # R < L always: the last token predicts nothing
            z = z[torch.from_numpy(record["row_position"].astype("int64")).to(z.device)]
    if z.dim() != 2 or len(z) != len(p):
        raise ValueError(f"student_logits {list(student_logits.shape)} do not fit the record's {len(p)} positions: give those of "
                         "all tokens, or [R, V] of the recorded positions")
    if ids.numel() and ids.stride(0) != 0 and int(ids.max()) >= n_student or ids.stride(0) == 0 and ids.shape[1] > n_student:
        raise ValueError(f"the record has token {int(ids.max())}, the student {n_student} ids: "
                         "torch_dataset(run, student_vocab=N, cut=True) leaves out those that it has not")
    z = (z.float() if z.dtype in (torch.float16, torch.bfloat16) else z) / temperature
    value = temperature**2 * _divergence(z, ids.to(z.device), p.to(z.device, z.dtype))
    return value if reduction == "none" else value.sum() if reduction == "sum" else value.mean() if len(value) else value.sum()


def _source(recorded: str, mode: str | None) -> str | None:
    if recorded == "topk+sample":
        source = _PARTS.get(mode or recorded)
        if source is None:
            raise ValueError(f"mode={mode!r} of a topk+sample record, expected one of {', '.join(_PARTS)}")
        return source
    if mode not in (None, recorded):
        raise ValueError(f"mode={mode!r}, but the record is one of mode {recorded}")
    return None


def _divergence(z: Tensor, ids: Tensor, p: Tensor) -> Tensor:
    """[R] of student logits z [R, V], ids [R, K] (-1: a free place) and p [R, K], or [R, K + 1] with the bucket."""
    k = ids.shape[1]
    rest, p = p[:, k:], p[:, :k]
    lse = z.logsumexp(dim=1)
    dense = k > 0 and ids.stride(0) == 0
    picked = (z[:, :k] if dense else z.gather(1, ids.clamp(min=0))) - lse[:, None]
    # No term where p is 0, whatever the student has there: it may be -inf.
    value = (torch.xlogy(p, p) - p * picked.masked_fill(p == 0, 0)).sum(dim=1)
    if rest.shape[1] == 0 or not bool((rest > 0).any()):
        return value
    # The student's probability outside of the set, from its own terms: 1 - sum would lose it where it is small.
    if dense:
        inside = torch.zeros_like(z, dtype=torch.bool)
        inside[:, :k] = True
    else:
        inside = torch.zeros_like(z, dtype=torch.uint8).scatter_add_(1, ids.clamp(min=0), ((ids >= 0) & (p > 0)).to(torch.uint8)) > 0
    has = (rest[:, 0] > 0) & (z.detach().masked_fill(inside, -torch.inf).amax(dim=1) > -torch.inf)
    log_s = z.masked_fill(inside & has[:, None], -torch.inf).logsumexp(dim=1) - lse
    r = rest[:, 0].masked_fill(~has, 0)
    return value + torch.xlogy(r, r) - r * log_s
