"""The King James Bible as printed by the Debian packages bible-kjv and bible-kjv-text.

The text is public domain. A chapter is the unit of the train / held-out split, and a
document is a chapter's verses, one a line, without their references.
"""

import random
import re
import subprocess
from dataclasses import dataclass

BOS = "<|bos|>"
EOS = "<|eos|>"

VERSES = 31102
HELD_OUT_SHARE = 0.02
SPLIT_SEED = 1611

# Chapters everyone quotes: never held out, and trained on more than others.
FAMILIAR = {
    "Ge1", "Exo20", "Psa1", "Psa23", "Eccl3", "Isa53", "Mat5", "Mat6", "John1", "John3", "1Cor13",
}  # fmt: skip


@dataclass(frozen=True)
class Verse:
    chapter: str
    number: int
    text: str


def chapters() -> dict[str, list[Verse]]:
    """Every chapter in order, keyed by its reference ("Ge1", "Psa23")."""
    printed = subprocess.run(
        ["bible", "-f", "gen1:1-rev22:21"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found: dict[str, list[Verse]] = {}
    for line in printed.splitlines():
        match = re.fullmatch(r"(\d?[A-Za-z]+\d+):(\d+) (.*)", line)
        if not match:
            raise ValueError(f"unexpected line from bible: {line!r}")
        chapter, number, text = match.groups()
        text = " ".join(text.split())
        found.setdefault(chapter, []).append(Verse(chapter, int(number), text))
    count = sum(map(len, found.values()))
    if count != VERSES:
        raise ValueError(f"bible printed {count} verses, not {VERSES}")
    return found


def split(
    book: dict[str, list[Verse]],
) -> tuple[dict[str, list[Verse]], dict[str, list[Verse]]]:
    """Training chapters and held-out chapters, the same ones every time."""
    candidates = [chapter for chapter in book if chapter not in FAMILIAR]
    random.Random(SPLIT_SEED).shuffle(candidates)
    held = set(candidates[: round(HELD_OUT_SHARE * len(book))])
    train = {chapter: verses for chapter, verses in book.items() if chapter not in held}
    held_out = {chapter: verses for chapter, verses in book.items() if chapter in held}
    return train, held_out


def join(verses: list[Verse]) -> str:
    return "\n".join(verse.text for verse in verses)
