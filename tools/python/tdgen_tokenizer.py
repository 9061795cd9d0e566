"""tdgen_tokenizer - which tokenizer a folder holds: the hash that tdgen compares."""

import re

from tdgen_shard import hash_hex

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
