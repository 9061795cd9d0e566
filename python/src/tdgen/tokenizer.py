"""Which tokenizer a folder holds: the hash that tdgen compares, and whether transformers builds it.

tdgen reads tokenizer.json as the `tokenizers` library does. transformers' AutoTokenizer may build another one of the
same folder: from version 5 on a class with code of its own (LlamaTokenizer, GemmaTokenizer, Qwen2Tokenizer and more)
takes only vocabulary, merges and post-processor from the file; and tokens that only tokenizer_config.json names are
added. Nobody but the two tokenizers themselves knows: they are compared, part by part.
"""

import json
import re

from .trust import hash_hex

_PART = re.compile(rb'"(?:[^"\\]|\\.)*"?|[{}\[\]]', re.DOTALL)
_SCALAR = re.compile(rb"[^,\]} \t\n\r]*")
_BLANK = b" \t\n\r"


def content_hash(data):
    """xxh3-64 of tokenizer.json's bytes with null in the place of the values of the top-level members
    "truncation" and "padding", which change no id; every other byte counts. src/tokenizer/json_text.c is the same.
    """
    out, done = [], 0
    for begin, end in _cut_values(data):
        out += [data[done:begin], b"null"]
        done = end
    return hash_hex(b"".join(out) + data[done:] if out else data)


def _cut_values(data):
    """(begin, end) of the two members' values, in the file's order."""
    if data.lstrip(_BLANK)[:1] != b"{" or (b'"truncation"' not in data and b'"padding"' not in data):
        return
    depth, key, pending = 0, None, None  # pending: where a value of ours that is a list or an object began
    for m in _PART.finditer(data):
        c = data[m.start()]
        if c in b"{[":
            if depth == 1 and key:
                pending, key = m.start(), None
            depth += 1
        elif c in b"}]":
            depth -= 1
            if depth == 1 and pending is not None:
                yield pending, m.end()
                pending = None
            elif depth == 0:
                return
        elif depth == 1:
            if key:  # a text as value
                yield m.span()
                key = None
                continue
            at = _skip(data, m.end())
            if m[0] in (b'"truncation"', b'"padding"') and data[at : at + 1] == b":":
                at = _skip(data, at + 1)
                if data[at : at + 1] in (b"{", b"[", b'"'):
                    key = m[0]
                else:
                    yield at, _SCALAR.match(data, at).end()


def _skip(data, at):
    while at < len(data) and data[at] in _BLANK:
        at += 1
    return at


# ---- the same tokenizer? ----

PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def differences(auto, own):
    """Texts that name what differs between two serialised tokenizers, transformers' and tokenizer.json's. What only
    decides how ids become text again (the decoder, offsets) is named only beside something else."""
    out = []
    for part in PARTS:
        a, b = (_plain(x.get(part)) for x in (auto, own))
        if a != b and part != "decoder":
            out.append(f"{part} ({_brief(a)} instead of {_brief(b)})")
    model_a, model_b = auto["model"], own["model"]
    keys = sorted((set(model_a) | set(model_b)) - {"vocab", "merges"})
    if all(m.get("byte_fallback") and _has_bytes(m.get("vocab")) for m in (model_a, model_b)):
        keys = [k for k in keys if k not in ("unk_token", "fuse_unk")]  # nothing is ever unknown
    flags = [f"{k} = {json.dumps(model_a.get(k))} instead of {json.dumps(model_b.get(k))}" for k in keys
             if (model_a.get(k) or None) != (model_b.get(k) or None)]
    if flags:
        out.append(f"model ({', '.join(flags)})")
    for key in ("vocab", "merges"):
        if _pairs(model_a.get(key)) != _pairs(model_b.get(key)):
            out.append(f"the model's {key}")
    a, b = ({t["content"]: {k: v for k, v in t.items()} for t in x.get("added_tokens") or []} for x in (auto, own))
    names = [t for t in {**a, **b} if a.get(t) != b.get(t)]
    if names:
        what = ", ".join(f"{t!r} {_token(a.get(t), b.get(t))}" for t in names[:4]) + (", ..." if len(names) > 4 else "")
        out.append(f"{len(names)} added token{'s' if len(names) > 1 else ''} ({what})")
    if out and _plain(auto.get("decoder")) != _plain(own.get("decoder")):
        out.append("decoder")
    return out


def _token(a, b):
    if a is None or b is None:
        return "only there" if b is None else "not there"
    return ", ".join(f"{k} = {json.dumps(a.get(k))}" for k in a if a.get(k) != b.get(k))


def _plain(part):
    """A part without what changes no id, and as if it were not there where nothing is left of it."""
    if part is None:
        return None
    if part["type"] == "Sequence":
        key = next(k for k in part if k != "type")
        inner = [x for x in map(_plain, part[key]) if x is not None]
        return inner[0] if len(inner) == 1 else {"type": "Sequence", key: inner} if inner else None
    part = {k: v for k, v in part.items() if k != "trim_offsets"}
    if part["type"] == "TemplateProcessing":
        used = {k for x in part["single"] for k in [x.get("SpecialToken", {}).get("id")] if k}
        ids = {k: v["ids"] for k, v in part["special_tokens"].items() if k in used}
        single = [x["SpecialToken"]["id"] if "SpecialToken" in x else "$A" for x in part["single"]]
        return {"type": part["type"], "single": single, "ids": ids} if ids else None
    return part


def _brief(part):
    if part is None:
        return "none"
    inner = next((v for k, v in part.items() if k != "type" and isinstance(v, list)), None)
    if part["type"] == "Sequence" and inner:
        return " + ".join(map(_brief, inner))
    rest = {k: v for k, v in part.items() if k != "type" and v not in (None, [])}
    text = json.dumps(rest, ensure_ascii=False)[1:-1]
    return part["type"] + (f" {text[:90]}" if text else "")


def _has_bytes(vocab):
    return isinstance(vocab, dict) and all(f"<0x{i:02X}>" in vocab for i in range(256))


def _pairs(value):
    """Merges as pairs, whichever way they are written."""
    if isinstance(value, list) and value and isinstance(value[0], str):
        return [x.split(" ", 1) for x in value]
    return value
