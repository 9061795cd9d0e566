#!/usr/bin/env python3
"""Writes src/tokenizer/tables.h: character sets and maps, asked of Hugging Face's own engine.

Every set comes from running `tokenizers` over all code points, because its parts follow Unicode
versions of their own (patterns 16, punctuation and accents an older one). Run it with
`tokenizers==0.22.2` and `unicodedata2==16.0.0`:

    python3 tools/dev/make_tok_tables.py > src/tokenizer/tables.h
"""
import textwrap

import unicodedata2 as new
from tokenizers import Regex, normalizers, pre_tokenizers

ALL = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
TEXT = "".join(ALL)

# Oniguruma's names of scripts that a tokenizer might ask for, and binary properties.
PROPERTIES = """Arabic Armenian Bengali Cyrillic Devanagari Emoji Georgian Greek Han Hangul
Hebrew Hiragana Katakana Khmer Lao Latin Mc Mn Myanmar Tamil Telugu Thai Word""".split()


def ranges(codes):
    out = []
    for c in sorted(codes):
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def members(pre_tokenizer):
    """Code points in the pieces that a pre-tokenizer leaves of the text of all of them."""
    return {ord(c) for piece, _ in pre_tokenizer.pre_tokenize_str(TEXT) for c in piece}


def vanish(normalizer):
    return {ord(c) for c in ALL if normalizer.normalize_str(c) == ""}


def print_wrapped(text):
    print(textwrap.fill(text, 99, initial_indent="    ", subsequent_indent="    "))


def table(name, comment, codes):
    print("/* %s */" % comment)
    print("static const tok_range %s[] = {" % name)
    print_wrapped(" ".join("{0x%x,0x%x}," % (a, b) for a, b in ranges(codes)))
    print("};\n")


every = {ord(c) for c in ALL}
print("/* Made by tools/dev/make_tok_tables.py; edit that, not this. */")
print("#ifndef TDGEN_TOK_TABLES_H\n#define TDGEN_TOK_TABLES_H\n")
print('#include "model/tok_internal.h"\n\n/* clang-format off */\n')
table("tok_punctuation", "What Punctuation and BertPreTokenizer split at.",
      every - members(pre_tokenizers.Punctuation("removed")))
pieces = [p for p, _ in pre_tokenizers.Whitespace().pre_tokenize_str(
    " ".join("a%sa" % c for c in ALL))]
table("tok_word", "Rust's \\w, for single_word and Whitespace.",
      {ord(p[1]) for p in pieces if len(p) == 3 and p[0] == p[2] == "a"})
digits = pre_tokenizers.Digits(individual_digits=True)
table("tok_numeric", "Rust's char::is_numeric, for Digits.",
      {ord(c) for c in ALL if len(digits.pre_tokenize_str("a" + c)) == 2})
table("tok_mark", "What StripAccents removes.", vanish(normalizers.StripAccents()))
table("tok_bert_accent", "What BertNormalizer removes as an accent, after NFD.",
      vanish(normalizers.BertNormalizer(False, False, True, False)))
table("tok_bert_control", "What BertNormalizer's clean_text removes.",
      vanish(normalizers.BertNormalizer(True, False, False, False)))

lower, runs = normalizers.Lowercase(), []
for c in ALL:
    to = lower.normalize_str(c)
    if to == c or len(to) != 1:
        assert to == c or c == "\u0130"
        continue
    a, delta = ord(c), ord(to) - ord(c)
    if runs and runs[-1][3] == delta:
        r = runs[-1]
        if r[0] == r[1] and a - r[1] in (1, 2):
            r[1], r[2] = a, a - r[1]
            continue
        if r[0] != r[1] and a - r[1] == r[2]:
            r[1] = a
            continue
    runs.append([a, a, 1, delta])
print("/* Lowercase: each step-th code point of a range moves by delta; U+0130 alone becomes two. */")
print("static const struct {\n    uint32_t first, last, step;\n    int32_t delta;\n} tok_lower[] = {")
print_wrapped(" ".join("{0x%x,0x%x,%d,%d}," % tuple(r) for r in runs))
print("};\n")

for p in PROPERTIES:
    regex = r"\w" if p == "Word" else r"\p{%s}" % p
    table("tok_property_" + p, regex + " in patterns.",
          members(pre_tokenizers.Split(Regex(regex), "removed", invert=True)))
print("static const struct {\n    const char *name;\n    const tok_range *range;\n    size_t n;\n} tok_properties[] = {")
for p in PROPERTIES:
    print('    {"%s", tok_property_%s, TD_ARRAY_LEN(tok_property_%s)},' % (p.lower(), p, p))
print("};\n")

# As in make_tok_unicode.py, for the other forms.
for form in ("NFD", "NFKC", "NFKD"):
    hf, inert = getattr(normalizers, form)(), set()
    for c in ALL:
        for probe in (c, "a\u0334" + c, "a" + c + "\u0334", "a" + c + "\u0345", "a\u0345" + c):
            if hf.normalize_str(probe) != new.normalize(form, probe):
                inert.add(ord(c))
        d = new.decomposition(c)
        if form == "NFKC" and d and d[0] != "<" and " " in d:
            a, b = (chr(int(x, 16)) for x in d.split())
            if new.normalize(form, a + b) != hf.normalize_str(a + b):
                inert.add(ord(b if b > "\uffff" else a))
    table("tok_%s_inert" % form.lower(), "What HF's %s does not know." % form, inert)
print("#endif")
