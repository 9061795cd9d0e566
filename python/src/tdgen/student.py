"""What a student must share with the record: its tokenizer, and that it has the ids.

Two models of one tokenizer can differ in how many ids they have (padding of the embedding). An id beyond the
student's is an index error in its loss at best; so it is refused by name, or cut with the lost probability
stated. How many it has, its config.json says.
"""

import os

import numpy as np

from .files import ExportError
from .targets import check_tokens, cut_vocab, to_logprobs
from .tokenizer import content_hash
from .trust import RecordError, hash_hex, parse_json, read_bounded, whole

_MAX_CONFIG = 16 << 20
_MAX_TOKENIZER = 1 << 30


class Student:
    """n ids, said by `where`. Counts what cutting the teacher's rows costs."""

    def __init__(self, n, where, cut):
        self.n, self.where, self.cut = n, where, cut
        self.n_rows = self.n_hit = self.n_entries = self.n_emptied = 0
        self.worst = self.total = 0.0

    def rows(self, record, ids, logp, vocab_size):
        """The rows' candidates without those that the student does not have; refuses such without cut."""
        tokens_of(self, record)
        n_before = np.count_nonzero((ids >= self.n) & (logp > -np.inf)) if vocab_size > self.n else 0
        ids, logp, lost = cut_vocab(ids, logp, self.n)
        self.lose(record, lost, vocab_size, n_before)
        self.n_emptied += int((lost > 0)[~(ids >= 0).any(axis=1)].sum())
        return ids, logp

    def lose(self, record, lost, vocab_size, n_entries):
        self.n_rows += len(lost)
        if not (lost > 0).any():
            return
        r = int(lost.argmax())
        if not self.cut:
            raise ExportError(
                f"the teacher has {vocab_size} ids, the student {self.n} ({self.where}): in dataset row "
                f"{record['index']}, position {int(record['row_position'][r])}, ids from {self.n} on hold {lost[r]:.3g} "
                "of the probability. --cut-vocab leaves them out and says what is lost; a student with more rows in its "
                "embedding (resize_token_embeddings) needs no cut")
        self.n_hit += int((lost > 0).sum())
        self.n_entries += int(n_entries)
        self.worst, self.total = max(self.worst, float(lost[r])), self.total + float(lost.sum())

    def summary(self, vocab_size):
        if not self.n_hit:
            return ""
        return (f"\nnote: cut to the student's {self.n} ids of {vocab_size} ({self.where}): {self.n_entries:,} entries in "
                f"{self.n_hit:,} of {self.n_rows:,} positions, with them {self.total / self.n_rows:.3g} of the probability "
                f"on average and {self.worst:.3g} at most"
                + (f"; {self.n_emptied:,} positions have no candidate left" if self.n_emptied else ""))


def tokens_of(student, record):
    try:
        check_tokens(record, student.n)
    except ValueError as e:
        raise ExportError(f"{e} ({student.where})") from None


def student_of(folder=None, n=None, cut=False):
    """The Student of a folder (or its tokenizer.json), or of n ids; None where neither is given."""
    if n is not None:
        return Student(n, "--student-vocab", cut)
    if folder is None:
        if cut:
            raise ExportError("--cut-vocab needs the student: --tokenizer DIR or --student-vocab N")
        return None
    root = os.path.dirname(os.path.abspath(folder)) if os.path.isfile(folder) else folder
    path = os.path.join(root, "config.json")
    try:
        if os.path.lexists(path):
            config = parse_json(read_bounded(path, _MAX_CONFIG), path)
            for part in (config, config.get("text_config")):
                if isinstance(part, dict) and part.get("vocab_size") is not None:
                    return Student(whole(part["vocab_size"], 1, 2**31 - 1), f"{path}, vocab_size", cut)
        path = folder if os.path.isfile(folder) else os.path.join(folder, "tokenizer.json")
        return Student(tokenizer_size(path), f"{path}; no config.json says vocab_size: --student-vocab N does", cut)
    except (RecordError, ValueError) as e:
        raise ExportError(f"--tokenizer: {e}" if isinstance(e, RecordError) else f"--tokenizer: {path}: vocab_size: {e}") from None


def tokenizer_size(path):
    """One more than the largest id of a tokenizer.json."""
    found = parse_json(read_bounded(path, _MAX_TOKENIZER), path)
    try:
        vocab = found["model"]["vocab"]
        largest = max(map(whole, vocab.values()), default=-1) if isinstance(vocab, dict) else len(vocab) - 1
        added = [whole(t["id"]) for t in found.get("added_tokens") or []]
        return whole(1 + max([largest, *added]), 1, 2**31 - 1)
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise RecordError(f"{path}: its vocabulary cannot be read: {e!r}") from None


def check_tokenizer(run, folder):
    """The student's tokenizer.json must be the one the ids were made with; shows both sides if not."""
    path = folder if os.path.isfile(folder) else os.path.join(folder, "tokenizer.json")
    try:
        data = read_bounded(path, _MAX_TOKENIZER)
    except RecordError as e:
        raise ExportError(f"--student: {e}") from None
    have, plain = content_hash(data), hash_hex(data)
    # Rows that came as ids carry what their token file says of itself.
    want = run.manifest["identity"].get("tokenizer.hash") or run.manifest.get("data_tokenizer_hash")
    if want is None:
        raise ExportError(f"{run.path}: its rows came as token ids, and nothing says which tokenizer made them: with "
                          "--vocab-size N only the ids are checked")
    if want not in (have, plain):  # the plain one is what versions before wrote
        raise ExportError(f"the ids were not made with this tokenizer:\n  {path}: {have}\n  {run.path}: {want}")


def cut_record(run, record, student):
    """The record of a student: ids that it does not have are left out, and tail_mass is what is then not recorded."""
    tokens_of(student, record)
    if run.vocab_size <= student.n or run.mode == "hidden":
        return record
    if "draw_ids" in record and len(record["draw_ids"]) and int(record["draw_ids"].max()) >= student.n:
        raise ExportError(f"dataset row {record['index']}: a draw is token {int(record['draw_ids'].max())}; the student has "
                          f"{student.n} ids ({student.where}), the teacher {run.vocab_size}. A record's draws cannot be cut, "
                          "as their counts say how many there were; the trainers' formats have the estimate itself")
    record = dict(record)
    lost, n = np.zeros(len(record["tail_mass"])), 0
    if run.mode in ("topk", "topk+sample"):
        n = np.count_nonzero(record["topk_ids"] >= student.n)
        record["topk_ids"], record["topk_logprobs"], lost = cut_vocab(record["topk_ids"], record["topk_logprobs"], student.n)
        student.n_emptied += int(((lost > 0) & ~(record["topk_ids"] >= 0).any(axis=1)).sum())
    if run.mode == "topp":
        keep = record["topp_ids"] < student.n
        rows = np.repeat(np.arange(len(lost)), np.diff(record["topp_offsets"]))
        np.add.at(lost, rows[~keep], np.exp(record["topp_logprobs"][~keep], dtype=np.float64))
        n = np.count_nonzero(~keep)
        counts = np.bincount(rows[keep], minlength=len(lost))
        student.n_emptied += int((counts == 0).sum())
        record.update(topp_ids=record["topp_ids"][keep], topp_logprobs=record["topp_logprobs"][keep],
                      topp_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
    if run.mode == "full":
        beyond = to_logprobs(record)[1][:, student.n :]
        lost, n = np.exp(beyond, dtype=np.float64).sum(axis=1), np.count_nonzero(beyond > -np.inf)
        record["logits"] = record["logits"][:, : student.n]
    student.lose(record, lost, run.vocab_size, n)
    record["tail_mass"] = (record["tail_mass"] + lost).astype(np.float32)
    return record
