#!/usr/bin/env python3
"""Compares tdgen's tokenizer with Hugging Face's `tokenizers` over all of Unicode.

Needs `tokenizers` (0.22 and 0.23 say the same) and a built tdgen:

    python3 tools/dev/check_unicode.py build/src/tdgen [CLASSES|FORMS|PIECES ...]

CLASSES: what each class of a pattern matches, of every code point. FORMS: every normalizer on every
code point alone, and the normal forms on random strings of what combines. PIECES: how the
pre-tokenizers cut around every code point. Prints what differs, and exits 1 then.
"""
import json
import random
import subprocess
import sys
import tempfile
import unicodedata

import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

ALL = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
VISIBLE = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTES = {"type": "BPE", "vocab": {c: i for i, c in enumerate(VISIBLE)}, "merges": []}
PIECES = {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"}
TO_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}

CLASSES = [r"\p{%s}" % c for c in (
    "L M N P S Z C Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co "
    "Han Hiragana Katakana Hangul Latin Greek Cyrillic Armenian Hebrew Arabic Devanagari Bengali Tamil "
    "Telugu Thai Lao Myanmar Georgian Khmer").split()]
CLASSES += [r"\P{L}", r"\P{N}", r"\s", r"\S", r"\w", r"\W", r"\d", r"\D", r"\h", "[^\\s\\p{L}\\p{N}]",
            "[\\p{L}\\p{M}]", "[^\\r\\n\\p{L}\\p{N}]", "[[:alpha:]]", "[[:punct:]]", "[[:space:]]", "[[:alnum:]]",
            "[[:upper:]]", "[[:lower:]]", "[[:digit:]]"]
NORMALIZERS = [{"type": t} for t in ("NFC NFD NFKC NFKD Lowercase StripAccents Nmt").split()]
NORMALIZERS += [{"type": "BertNormalizer", "clean_text": a, "handle_chinese_chars": b, "strip_accents": c,
                 "lowercase": d} for a, b, c, d in ((1, 1, None, 1), (1, 0, False, 0), (0, 1, True, 0))]
NORMALIZERS += [{"type": "Strip", "strip_left": True, "strip_right": True}]
for n in NORMALIZERS:
    for k in n:
        n[k] = bool(n[k]) if n[k] in (0, 1) else n[k]
CUTS = [{"type": "Whitespace"}, {"type": "WhitespaceSplit"}, {"type": "BertPreTokenizer"},
        {"type": "Digits", "individual_digits": True}, {"type": "Digits", "individual_digits": False},
        {"type": "Punctuation", "behavior": "Isolated"},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]


def tokenizer(model, normalizer=None, pre=None):
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": normalizer,
            "pre_tokenizer": pre, "post_processor": None, "decoder": None, "model": model}


def compare(tdgen, name, tok, texts, show):
    """Prints up to five texts with other ids than the reference's; their number."""
    with tempfile.TemporaryDirectory() as folder:
        with open(folder + "/tokenizer.json", "w") as f:
            json.dump(tok, f)
        hf = Tokenizer.from_file(folder + "/tokenizer.json")
        want = [e.ids for e in hf.encode_batch(texts, add_special_tokens=False)]
        out = subprocess.run([tdgen, "tokenize", "--no-special", "--model", folder], capture_output=True, text=True,
                             input="".join(json.dumps({"text": t}) + "\n" for t in texts))
    if out.returncode:
        print(f"{name}: {out.stderr.strip()[-200:]}", flush=True)
        return "not supported" not in out.stderr  # refused by name: nothing wrong
    got = [json.loads(line) for line in out.stdout.splitlines()]
    bad = [(t, w, g) for t, w, g in zip(texts, want, got) if w != g]
    print(f"{name}: {len(bad)} of {len(texts)} differ", flush=True)
    for t, w, g in bad[:5]:
        print("   ", show(t), "reference", w[:40], "tdgen", g[:40])
    if len(want) != len(got):
        print("    other number of rows")
    return len(bad) + (len(want) != len(got))


def codes(t):
    return " ".join("%04X" % ord(c) for c in t[:12])


def check_classes(tdgen):
    bad = 0
    for pattern in CLASSES:
        pre = {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": False}, TO_BYTES]}
        texts = ["".join(ALL[i:i + 64]) for i in range(0, len(ALL), 64)]
        bad += compare(tdgen, pattern, tokenizer(BYTES, None, pre), texts, codes)
    return bad


def check_forms(tdgen):
    rng = random.Random(1)
    some = [c for c in ALL if unicodedata.combining(c) or unicodedata.decomposition(c) or
            unicodedata.category(c).startswith("M")]
    jamo = [chr(c) for c in [*range(0x10FE, 0x1202), 0xA960, 0xD7B0, 0xD7CB]]
    syllables = [chr(c) for c in range(0xAC00, 0xD7A4, 14)]
    mixed = ["".join(rng.choice(rng.choice((some, some, "aeioucnAEO", jamo, syllables)))
                     for _ in range(rng.randint(2, 5))) for _ in range(400000)]
    hangul = [a + b + c for a in syllables[:60] + jamo[:20] for b in jamo[160:200] for c in ("", "\u11a7", "\u11a8", "x")]
    bad = 0
    for n in NORMALIZERS:
        tok = tokenizer(BYTES, n, TO_BYTES)
        texts = ["a" + c for c in ALL] + (mixed + hangul if n["type"].startswith("NF") else [])
        bad += compare(tdgen, json.dumps(n), tok, texts, codes)
    return bad


def check_pieces(tdgen):
    return sum(compare(tdgen, json.dumps(cut), tokenizer(PIECES, None, cut), [f"a{c}b" for c in ALL], codes)
               for cut in CUTS)


def main():
    tdgen, parts = sys.argv[1], sys.argv[2:] or ["CLASSES", "FORMS", "PIECES"]
    print("tokenizers", tokenizers.__version__)
    checks = {"CLASSES": check_classes, "FORMS": check_forms, "PIECES": check_pieces}
    sys.exit(1 if sum(checks[p](tdgen) for p in parts) else 0)


if __name__ == "__main__":
    main()
