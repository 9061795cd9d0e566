"""The numbers of llama.cpp's --kl-divergence-base file, and what its 16 bits leave of them."""

import numpy as np
from .targets import log_softmax


class Clipped:
    """What the format's floor, 16 below the highest log-probability, and its 16 bits do to the rows."""

    def __init__(self):
        self.n_rows = self.n_hit = self.n_values = 0
        self.nats = self.mass = self.kl = 0.0

    def look(self, logits, stored):
        """Compares rows with what is stored of them, which it returns."""
        v = min(logits.shape[1], stored.shape[1] - 4)
        head = np.ascontiguousarray(stored[:, :4]).view("<f4").astype(np.float64)
        logp = log_softmax(logits)[:, :v].astype(np.float64)
        have = head[:, :1] * stored[:, 4 : 4 + v] + head[:, 1:2]
        finite = np.isfinite(logp)
        raised = logp < head[:, 1:2] - 1e-3  # by more than float32's rounding of log sum exp
        self.n_rows += len(logp)
        self.n_hit += int(raised.any(axis=1).sum())
        self.n_values += int(raised.sum())
        p = np.exp(logp)
        with np.errstate(invalid="ignore"):
            self.nats = max(self.nats, float(np.where(raised & finite, have - logp, 0).max(initial=0)))
            kl = np.abs(np.where(p > 0, p * (logp - have), 0).sum(axis=1))
        self.mass = max(self.mass, float(np.where(raised, np.exp(have), 0).sum(axis=1).max(initial=0)))
        self.kl = max(self.kl, float(kl.max(initial=0)))
        return stored

    def summary(self):
        return {"positions": self.n_rows, "positions_with_clipped": self.n_hit, "values": self.n_values,
                "worst_nats": self.nats, "worst_mass": self.mass, "worst_kl": self.kl}

    def note(self):
        text = f"\nnote: the format's 16 bits change a position's KL by up to {self.kl:.1e}"
        if self.n_hit:
            text += (f"; log-probabilities more than 16 below a position's highest are raised to that: {self.n_values:,} in "
                     f"{self.n_hit:,} of {self.n_rows:,} positions, by up to {self.nats:.1f} nats, which then hold up to "
                     f"{self.mass:.1e} of the probability")
        return text


def quantise_llamacpp(logits, v=None):
    """uint16 [n, 4 + v rounded up to even] of the first v (all) of float32 logits [n, V], in llama.cpp's own float32
    arithmetic; log-probabilities are over all V."""
    n, v = len(logits), v or logits.shape[1]
    whole, logits = logits, logits[:, :v]
    out = np.zeros((n, 4 + (v + 1) // 2 * 2), "<u2")
    high = logits.max(axis=1, keepdims=True)
    low = np.maximum(logits.min(axis=1, keepdims=True), high - np.float32(16))
    above = whole.max(axis=1, keepdims=True)
    total = np.exp(whole - above).sum(axis=1, keepdims=True, dtype=np.float64)
    log_total = np.log(total).astype(np.float32) + (above - high)  # above is high, where nothing is cut
    scale = ((high - low) / np.float32(65535)).astype(np.float32)
    head = out[:, :4].view("<f4")
    head[:, 0:1], head[:, 1:2] = scale, low - high - log_total
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.rint((np.float32(1) / scale) * (logits - low))
    out[:, 4 : 4 + v] = np.where((logits > low) & (scale > 0), steps, 0).astype(np.uint16)
    return out
