"""Collects short, plain, varied sentences for a synthetic teacher voice to speak.

python -m e2e_tts.trainers.data.teacher_text --text /usr/share/games/fortunes --prepared data/prepared \
    --split-file splits.json --count 9000 --output teacher.txt

Sources are plain text files (fortune-style `%` separators and attributions are understood), the King James Bible of
Debian's `bible-kjv` where asked for, and the training transcripts of prepared datasets. No held-out text is kept.
With --language zh, Mandarin sentences of plain text files, one paragraph a line, and of prepared transcripts.
For a small task of few words, --pattern "The {red,old} {cat,dog} sleeps." gives sentences of a closed vocabulary.
"""

import argparse
import logging
import math
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from e2e_tts.trainers.data.mandarin_text import is_plain_sentence, plain_sentences, sentences_of_chinese_file
from e2e_tts.trainers.data.splits import Splits, normalise_text

from ..command_line import CommandParser

logger = logging.getLogger(__name__)

ALLOWED = re.compile(r"[A-Z][A-Za-z]*(?:['-][A-Za-z]+)*(?:[,;]? [A-Za-z]+(?:['-][A-Za-z]+)*)*[.?!]")
# Compiled indexes and second copies that Debian puts beside every fortune file.
SKIPPED_SUFFIXES = {".dat", ".u8"}
# Read differently by different front ends, so the transcript would not tell what was said.
ABBREVIATIONS = frozenset(
    [
        "mr",
        "mrs",
        "ms",
        "dr",
        "prof",
        "rev",
        "hon",
        "gen",
        "col",
        "sgt",
        "jr",
        "sr",
        "st",
        "co",
        "ltd",
        "inc",
        "dept",
        "vol",
        "vs",
        "etc",
    ]
)
# Words, or Chinese characters with their punctuation, of the shortest and the longest sentence.
LENGTHS = {"en": (3, 12), "zh": (6, 24)}
ONE_LETTER_WORDS = frozenset("aio")


def is_speakable(sentence: str, min_words: int, max_words: int) -> bool:
    """True for a capitalised sentence of plain words: no digits, acronyms, abbreviations, initials or symbols."""
    if not ALLOWED.fullmatch(sentence):
        return False
    words = re.findall(r"[A-Za-z'-]+", sentence)
    if not min_words <= len(words) <= max_words:
        return False
    return all(is_plain_word(word) for word in words)


def is_plain_word(word: str) -> bool:
    """False for initials, acronyms, abbreviations, mixed case and words without a vowel or with a drawn-out letter."""
    if len(word) == 1:
        return word.lower() in ONE_LETTER_WORDS
    if len(word) > 16 or word.isupper() or word.lower() in ABBREVIATIONS:
        return False
    return re.search("[aeiouy]", word.lower()) is not None and re.search(r"[a-z][A-Z]|(.)\1\1", word) is None


def split_sentences(paragraph: str) -> Iterator[str]:
    """Sentences of running text, tidied: outer quotes dropped, dashes and dots of hesitation turned into commas."""
    paragraph = re.sub(r"[\u2018\u2019`]", "'", paragraph)
    paragraph = re.sub(r"[\"\u201c\u201d_*]|''", "", paragraph)
    paragraph = re.sub(r"\s*(?:--+|\u2014)\s*", ", ", paragraph)
    for sentence in re.split(r"(?<=[.?!])\s+(?=[A-Z'(])", " ".join(paragraph.split())):
        yield sentence.strip(" '")


def text_files(paths: list[Path]) -> list[Path]:
    """The plain files among `paths` and directly inside folders. Raises FileNotFoundError."""
    found = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist.")
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        found += [file for file in inside if file.is_file() and file.suffix not in SKIPPED_SUFFIXES]
    return found


def sentences_of_file(path: Path) -> Iterator[str]:
    """Sentences of a text file; a paragraph ends at an empty line, a `%` line, an indented line or an attribution."""
    paragraph: list[str] = []
    for line in [*path.read_text(encoding="utf-8", errors="replace").splitlines(), ""]:
        attribution = line.lstrip().startswith("-- ")
        if paragraph and (attribution or line.strip() in ("", "%") or line[:1].isspace()):
            yield from split_sentences(" ".join(paragraph))
            paragraph = []
        if not attribution and line.strip() not in ("", "%"):
            paragraph.append(line.strip())


def sentences_of_bible() -> Iterator[str]:
    """Clauses of the King James Bible as sentences. Raises FileNotFoundError if the `bible` program is absent."""
    if shutil.which("bible") is None:
        raise FileNotFoundError("The program `bible` is missing: install Debian's bible-kjv or leave out --bible.")
    # With an empty standard input the program prints the passage and ends instead of waiting for commands.
    command = ["bible", "Gen1:1-Rev22:21"]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60)
    for verse in re.split(r"\n\s*\d+ |\n\s*\n", result.stdout.decode("utf-8", errors="replace")):
        for clause in re.split(r"[:;]|(?<=[.?!])", " ".join(verse.split())):
            clause = clause.strip(" ()")
            if clause:
                yield clause[0].upper() + clause[1:] + ("" if clause[-1] in ".?!" else ".")


def sentences_of_dataset(path: Path, split: Callable[[str], Iterator[str]]) -> Iterator[str]:
    """Transcripts of the training rows of a prepared dataset, split into sentences."""
    from datasets import load_from_disk

    dataset = load_from_disk(str(path)).select_columns(["text", "split"])
    for row in dataset:
        if row["split"] == "train":
            yield from split(row["text"])


def sentences_of_pattern(pattern: str, count: int, rng: random.Random) -> list[str]:
    """At most `count` different sentences of a pattern, in which {a,b,c} stands for one of its alternatives.

    Raises ValueError for braces that do not close, do not open or hold nothing.
    """
    parts = re.split(r"\{([^{}]*)\}", " ".join(pattern.split()))
    if any(brace in part for part in parts for brace in "{}"):
        raise ValueError(f"The braces of the pattern {pattern!r} do not match; write {{a,b}} for one of a and b.")
    choices = [[word.strip() for word in part.split(",")] if index % 2 else [part] for index, part in enumerate(parts)]
    if any(not word for index, words in enumerate(choices) if index % 2 for word in words):
        raise ValueError(f"The pattern {pattern!r} has an empty alternative.")
    total = math.prod(len(words) for words in choices)
    sentences = []
    for number in rng.sample(range(total), min(count, total)):
        picked = []
        for words in choices:
            number, index = divmod(number, len(words))
            picked.append(words[index])
        sentences.append("".join(picked))
    return sentences


class Collection:
    """Unique speakable sentences, in the order in which they were offered."""

    def __init__(self, splits: Splits, wanted: Callable[[str], bool]) -> None:
        self.seen = splits.dev_texts | splits.test_texts
        self.wanted = wanted

    def take(self, sentences: Iterator[str], name: str) -> list[str]:
        """The sentences that are wanted and neither held out nor offered before."""
        taken = []
        for sentence in sentences:
            key = normalise_text(sentence)
            if key not in self.seen and self.wanted(sentence):
                self.seen.add(key)
                taken.append(sentence)
        logger.info("%-40s %6d sentences", name, len(taken))
        return taken


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="*", type=Path, default=[], help="plain text files, or folders of them")
    parser.add_argument("--prepared", nargs="*", type=Path, default=[], help="datasets written by prepare")
    parser.add_argument("--bible", type=int, default=0, metavar="N", help="at most N clauses of the King James Bible")
    parser.add_argument("--pattern", nargs="*", default=[], help="sentences with {alternatives,in,braces}")
    parser.add_argument("--split-file", type=Path, help="JSON as written by e2e_tts.trainers.data.make_splits")
    parser.add_argument("--count", type=int, default=9000, help="sentences to write")
    parser.add_argument("--language", choices=list(LENGTHS), default="en", help="of the sentences")
    parser.add_argument("--min-words", type=int, help=f"of a sentence, in Mandarin characters; by default {LENGTHS}")
    parser.add_argument("--max-words", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rng = random.Random(options.seed)
    try:
        mandarin = options.language == "zh"
        if mandarin and (options.bible or options.pattern):
            raise ValueError("--language zh takes --text and --prepared; --bible and --pattern are English.")
        shortest, longest = LENGTHS[options.language]
        shortest = shortest if options.min_words is None else options.min_words
        longest = longest if options.max_words is None else options.max_words
        is_plain = is_plain_sentence if mandarin else is_speakable
        split = partial(plain_sentences, longest=longest) if mandarin else split_sentences
        read = partial(sentences_of_chinese_file, longest=longest) if mandarin else sentences_of_file
        collection = Collection(Splits.load(options.split_file), lambda sentence: is_plain(sentence, shortest, longest))
        sentences = []
        for path in options.prepared:
            sentences += collection.take(sentences_of_dataset(path, split), str(path))
        for path in text_files(options.text):
            sentences += collection.take(read(path), str(path))
        if options.bible:
            verses = collection.take(sentences_of_bible(), "bible")
            sentences += rng.sample(verses, min(options.bible, len(verses)))
        for pattern in options.pattern:
            sentences += collection.take(sentences_of_pattern(pattern, options.count, rng), pattern)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        parser.exit(1, f"{error}\n")
    rng.shuffle(sentences)
    if len(sentences) < options.count:
        logger.warning("Only %d of %d sentences found; add --text or --bible.", len(sentences), options.count)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    chosen = sentences[: options.count]
    options.output.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    print(f"{len(chosen)} of {len(sentences)} sentences -> {options.output}")


if __name__ == "__main__":
    main()
