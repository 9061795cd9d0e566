"""How a run shows itself: one line for a prompt, a table for a notebook, tokens as text.

All of it comes from files that nobody vouches for: what reaches a terminal is made printable, what reaches a
notebook is escaped.
"""

from __future__ import annotations

import html as _html
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .trust import RecordError, hash_hex, read_bounded
from .tokenizer import content_hash

if TYPE_CHECKING:
    from .reader import Run

_MAX_TOKENIZER = 1 << 30
_SHOWN_ROWS, _SHOWN_CANDIDATES = 8, 4


def printable(text: Any) -> str:
    """Text for a terminal: control characters, and what turns the direction of writing, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


# ---- tokens ----


def load_tokenizer(run: Run, path: str | None) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise RecordError("tokens become text with the tokenizers package: pip install tokenizers") from None
    given, folder = path is not None, path if path is not None else str(run.manifest.get("model_path") or "")
    file = folder if os.path.isfile(folder) else os.path.join(folder, "tokenizer.json")
    say = "tdgen.open(path, tokenizer=DIR) takes the teacher's folder"
    if not given and not os.path.exists(file):
        raise RecordError(f"{run.path} was made with the tokenizer in {printable(folder)!r}, which is not here: {say}")
    data = read_bounded(file, _MAX_TOKENIZER)
    want = run.manifest["identity"].get("tokenizer.hash") or run.manifest.get("data_tokenizer_hash")
    have, plain = content_hash(data), hash_hex(data)  # the plain one is what versions before wrote
    if want not in (have, plain) and not (given and want is None):
        raise RecordError(f"the ids of {run.path} were not made with this tokenizer:\n  {file}: {have}\n"
                          f"  {run.path}: {printable(want)}\n{say}")
    try:
        return tokenizers.Tokenizer.from_str(data.decode("utf-8"))
    except Exception as e:  # the library has no type of its own for it
        raise RecordError(f"{file} cannot be read: {e}") from None


def token_text(tokenizer: Any, token: int) -> str:
    """Twice the token less once: decoders strip the blank in front of a text's first word."""
    if token < 0:
        return ""
    once = tokenizer.decode([token], skip_special_tokens=False)
    twice = tokenizer.decode([token, token], skip_special_tokens=False)
    return twice[len(once):] if twice.startswith(once) else once


# ---- a run ----


def essentials(run: Run) -> list[tuple[str, str]]:
    """(name, value) pairs, values printable."""
    spec, identity = run.capture, run.manifest["identity"]
    mode = run.mode
    if mode in ("topk", "topk+sample"):
        mode += f", top_k {run.top_k}"
    if mode == "topp":
        mode += f", top_p {spec.get('top_p')}, at most {run.top_k}"
    if "sample" in mode:
        mode += f", {spec['n_draws']} draws"
    mode += f", {spec.get('dense_dtype') or 'f16' if run.mode in ('full', 'hidden') else spec.get('logprob_dtype', 'f16')}"
    if run.temperatures:
        mode += f", temperatures {', '.join(f'{t:g}' for t in run.temperatures)}"
    whole = {True: "complete", False: "unfinished", None: "an older version's, completeness not known"}[run.complete]
    return [("samples", f"{len(run):,}"), ("positions", f"{run.n_positions:,}"), ("mode", printable(mode)),
            ("ids", f"{run.vocab_size:,}"),
            ("teacher", printable(identity.get("model.architecture", "")) + " in "
             + printable(run.manifest.get("model_path", "?"))),
            ("run", whole), ("fingerprint", printable(run.fingerprint))]


def one_line(run: Run) -> str:
    e = dict(essentials(run))
    return (f"<tdgen run {printable(run.path)!r}: {e['samples']} samples, {e['positions']} positions, {e['mode']}, "
            f"{e['ids']} ids, {e['run']}, {e['fingerprint']}>")


def html(run: Run) -> str:
    """The essentials, and the first positions of the first sample that has some."""
    rows = "".join(f"<tr><th style='text-align:left'>{_html.escape(k)}</th><td style='text-align:left'>{_html.escape(v)}</td>"
                   "</tr>" for k, v in essentials(run))
    out = f"<table><caption>tdgen run {_html.escape(printable(run.path))}</caption>{rows}</table>"
    try:
        return out + _positions(run)
    except (RecordError, OSError) as e:  # a notebook shows what can be shown
        return out + f"<p>{_html.escape(printable(e))}</p>"


def _positions(run: Run) -> str:
    found = next((k for k, entry in enumerate(run.shards) if entry["rows"]), None)
    if found is None or "target_logprob" not in run.shard(found):  # states say nothing of probabilities by themselves
        return ""
    i = run.first_sample(found) + int(np.flatnonzero(np.diff(run.shard(found)["row_offsets"]))[0])
    record = run.sample(i, dense=False)
    n = min(_SHOWN_ROWS, len(record["row_position"]))
    try:
        text = run.tokens
        text([0])
    except RecordError:
        def text(ids):
            return [str(int(x)) if x >= 0 else "" for x in ids]

    def cell(value):
        return f"<td style='text-align:left'>{_html.escape(printable(value))}</td>"

    at = record["row_position"][:n]
    before, after = text(record["input_ids"][at]), text(record["input_ids"][at + 1])
    has_set = "topk_ids" in record or "topp_ids" in record
    out = []
    for r in range(n):
        cells = [cell(int(at[r])), cell(before[r]), cell(after[r]), cell(f"{np.exp(record['target_logprob'][r]):.1%}")]
        if has_set:
            ids, logp = _row(record, r)
            cells.append(cell("   ".join(f"{t!r} {np.exp(p):.0%}" for t, p in zip(text(ids), logp))))
        out.append(f"<tr>{''.join(cells)}</tr>")
    names = ["position", "token", "next token", "its probability"] + (["most probable"] if has_set else [])
    head = "".join(f"<th style='text-align:left'>{name}</th>" for name in names)
    return f"<table><caption>sample {i}</caption><tr>{head}</tr>{''.join(out)}</table>"


def _row(record, r):
    if "topk_ids" in record:
        ids, logp = record["topk_ids"][r], record["topk_logprobs"][r]
    else:
        part = slice(*(int(x) for x in record["topp_offsets"][r : r + 2]))
        ids, logp = record["topp_ids"][part], record["topp_logprobs"][part]
    keep = ids[:_SHOWN_CANDIDATES] >= 0
    return ids[:_SHOWN_CANDIDATES][keep], logp[:_SHOWN_CANDIDATES][keep]
