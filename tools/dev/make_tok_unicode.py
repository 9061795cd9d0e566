#!/usr/bin/env python3
"""Writes src/tokenizer/unicode.h: what Hugging Face's Unicode tables say otherwise than our libraries.

Run it in an environment with `unicodedata2==16.0.0` and `tokenizers==0.22.2`, on a Python whose own
unicodedata is 14.0.0 (3.11), which is also the version of Debian 12's PCRE2:

    python3 tools/dev/make_tok_unicode.py > src/tokenizer/unicode.h
"""
import sys
import unicodedata as old

import unicodedata2 as new
from tokenizers import normalizers

assert old.unidata_version == "14.0.0" and new.unidata_version == "16.0.0"
ALL = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]


def ranges(chars):
    out = []
    for c in sorted(map(ord, chars)):
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


print("/* Made by tools/dev/make_tok_unicode.py; edit that, not this. */")
print("#ifndef TDGEN_TOK_UNICODE_H\n#define TDGEN_TOK_UNICODE_H\n\n#include \"model/tok_internal.h\"\n")
print("/* Code points that joined a general category between Unicode 14 (PCRE2 10.42) and Unicode 16")
print(" * (HF's engine), as items of a PCRE2 character class. No category used here lost any. */")
print("static const struct {\n    const char *name, *more;\n} tok_category[] = {")
names = sorted({new.category(c) for c in ALL} - {"Cn", "Cs", "Mn", "Mc"})
for name in ["L", "M", "N", "P", "S", "Z"] + names:
    was = {c for c in ALL if old.category(c).startswith(name)}
    now = {c for c in ALL if new.category(c).startswith(name)}
    assert was <= now, name
    items = "".join(
        "\\\\x{%X}" % a if a == b else "\\\\x{%X}-\\\\x{%X}" % (a, b) for a, b in ranges(now - was)
    )
    lines, cur = [], ""  # cut between ranges only
    for part in items.split("\\\\x")[1:]:
        if len(cur) > 72 and not cur.endswith("-"):
            lines.append(cur)
            cur = ""
        cur += "\\\\x" + part
    lines.append(cur)
    print('    {"%s", %s},' % (name, "\n     ".join('"%s"' % s for s in lines)))
print("};\n")

hf = normalizers.NFC()
inert = set()
for c in ALL:
    for probe in ("a\u0334" + c, "a" + c + "\u0334", "a" + c + "\u0345", "a\u0345" + c):
        if hf.normalize_str(probe) != new.normalize("NFC", probe):
            inert.add(c)
    d = new.decomposition(c)
    if d and d[0] != "<" and " " in d:
        a, b = (chr(int(x, 16)) for x in d.split())
        if new.normalize("NFC", a + b) == c and hf.normalize_str(a + b) != c:
            # A new letter with an old mark: the mark keeps its other compositions.
            inert.add(b if b > "\uffff" else a)
print("/* Marks that HF's NFC does not know (its tables are those of an older Unicode): it neither")
print(" * reorders them nor composes with them. */")
print("static const tok_range tok_nfc_inert[] = {")
for a, b in ranges(inert):
    print("    {0x%x, 0x%x}," % (a, b))
print("};\n\n#endif")
print(len(inert), "inert marks", file=sys.stderr)
