"""Mandarin transcripts as short plain sentences for a synthetic teacher voice to speak."""

import re
from collections.abc import Iterator
from pathlib import Path

from e2e_tts.modeling.mandarin_normalization import HAN

_QUOTES = re.compile(r"[《》〈〉“”‘’「」『』\s]")
_STOPS = "，。、！？；："
_FULL_WIDTH = str.maketrans(",!?;:", "，！？；：")
_PLAIN = re.compile(rf"[{HAN}{_STOPS}]*[{HAN}][。！？]")


def plain_sentences(transcript: str, longest: int) -> Iterator[str]:
    """Sentences of at most `longest` characters, where clauses allow it; none of a transcript with digits or letters.

    Clauses are kept together while they fit: a sentence of two clauses teaches the pause between them.
    """
    if re.search(rf"[^{HAN}{_STOPS}]", bare := _QUOTES.sub("", transcript)):
        return
    sentence = ""
    for clause in re.split(r"(?<=[，。！？；])", bare):
        if sentence and len(sentence) + len(clause) > longest:
            yield close(sentence)
            sentence = ""
        sentence += clause
    if sentence:
        yield close(sentence)


def sentences_of_chinese_file(path: Path, longest: int) -> Iterator[str]:
    """Sentences of running text, one paragraph a line; those with digits, letters or other signs are left out alone."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        for sentence in re.split(r"(?<=[。！？])", line.translate(_FULL_WIDTH)):
            yield from plain_sentences(sentence, longest)


def close(sentence: str) -> str:
    """The sentence with a full stop at its end where it had another mark or none."""
    return sentence if sentence[-1] in "。！？" else sentence.rstrip(_STOPS) + "。"


def is_plain_sentence(sentence: str, shortest: int, longest: int) -> bool:
    """True for a closed sentence of Chinese characters, punctuation counted, within both lengths."""
    return shortest <= len(sentence) <= longest and _PLAIN.fullmatch(sentence) is not None
