"""Writes demo/demo.jsonl and demo/qa.jsonl: inputs for the demo teacher, from its own text.

    VENV/bin/python tools/demo/make_prompts.py --tokenizer demo/teacher/tokenizer.json --out demo

An id tells where its passage is from: train/Ge1:1-5, or heldout/Job34:2+9w for nine words.
"""

import argparse
import json
import random
from pathlib import Path

from tokenizers import Tokenizer

import kjv

SEED = 7
TRAIN_PASSAGES = 180
HELD_OUT_PASSAGES = 20
SHORTEST, LONGEST = 6, 400  # tokens of a passage, with its bos

# Verses of training chapters, and the words that each one's prompt ends with.
FAMILIAR = [
    ("Ge1", 1, "God created"),
    ("Ge1", 3, "Let there be light:"),
    ("Exo20", 12, "Honour thy father and thy mother:"),
    ("Psa1", 6, "the way of the righteous:"),
    ("Psa23", 1, "The LORD is my"),
    ("Psa23", 4, "I will fear no evil:"),
    ("Eccl3", 1, "there is a season,"),
    ("Isa53", 6, "gone astray;"),
    ("Mat5", 5, "Blessed are the meek:"),
    ("Mat6", 9, "Our Father which art in heaven,"),
    ("John1", 1, "and the Word was with God,"),
    ("John3", 16, "only begotten Son,"),
    ("1Cor13", 13, "but the greatest of these"),
]
HELD_OUT_PAIRS = 7


def passage(
    tokenizer: Tokenizer, book: dict[str, list[kjv.Verse]], draw: random.Random
) -> tuple[str, str]:
    """A reference and verses from a random one on, about as long as a random target."""
    target = round(SHORTEST * (LONGEST / SHORTEST) ** draw.random())
    while True:
        verses = draw.choice(list(book.values()))
        first = draw.randrange(len(verses))
        last = first
        while last < len(verses) and size(tokenizer, kjv.join(verses[first : last + 1])) <= target:
            last += 1
        start = f"{verses[first].chapter}:{verses[first].number}"
        if last == len(verses):
            continue  # the chapter ends before the target
        if last > first + 1:
            return f"{start}-{verses[last - 1].number}", kjv.join(verses[first:last])
        if last == first + 1:
            return start, verses[first].text
        words = verses[first].text.split()
        while size(tokenizer, " ".join(words)) > target:
            words.pop()
        if len(words) > 2:
            return f"{start}+{len(words)}w", " ".join(words)


def size(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text).ids)


def passages(
    tokenizer: Tokenizer,
    book: dict[str, list[kjv.Verse]],
    count: int,
    kind: str,
    draw: random.Random,
) -> list[dict[str, str]]:
    found: dict[str, str] = {}
    while len(found) < count:
        reference, text = passage(tokenizer, book, draw)
        found.setdefault(f"{kind}/{reference}", text)
    return [{"id": name, "text": text} for name, text in found.items()]


def pair(verse: kjv.Verse, prompt_end: str) -> dict[str, str]:
    cut = verse.text.index(prompt_end) + len(prompt_end)
    return {"prompt": verse.text[:cut], "completion": verse.text[cut:]}


def half(verse: kjv.Verse) -> dict[str, str]:
    words = verse.text.split()
    return pair(verse, " ".join(words[: len(words) // 2]))


def write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{path.name}: {len(rows)} rows, {path.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the demo inputs.")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    book = kjv.chapters()
    train, held_out = kjv.split(book)
    draw = random.Random(SEED)

    rows = passages(tokenizer, train, TRAIN_PASSAGES, "train", draw)
    rows += passages(tokenizer, held_out, HELD_OUT_PASSAGES, "heldout", draw)
    draw.shuffle(rows)
    write_lines(args.out / "demo.jsonl", rows)

    pairs = [pair(book[chapter][number - 1], end) for chapter, number, end in FAMILIAR]
    verses = [verse for chapter in held_out.values() for verse in chapter]
    pairs += [half(verse) for verse in draw.sample(verses, HELD_OUT_PAIRS)]
    write_lines(args.out / "qa.jsonl", pairs)


if __name__ == "__main__":
    main()
