"""Texts of any length: split at the ends of sentences, spoken one by one, joined with short pauses."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# Speech is trained on utterances of a few seconds; about 15 letters are spoken in one.
MAX_CHARACTERS = 160
MIN_CHARACTERS = 25
PAUSE_SECONDS = 0.3

_ABBREVIATIONS = r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bvs)(?<!\bNo)(?<!\b[A-Za-z])"
_SENTENCE_END = re.compile(rf"(?:(?<=[!?…])|{_ABBREVIATIONS}(?<=\w)\.|(?<=\W)\.)[\"'”’)\]]*\s+|\n\s*\n")
_CLAUSE_END = re.compile(r"(?<=[,;:—–])\s+")


def split_text(text: str, max_characters: int = MAX_CHARACTERS) -> list[str]:
    """Parts of a text in order, each at most `max_characters` long unless one word is longer.

    Sentences stay whole where they fit; long ones are cut after a comma, else between words. A very short one is spoken
    together with the next. Parts without any letter or digit are left out.
    """
    parts: list[str] = []
    for sentence in _cut(text, _SENTENCE_END):
        if parts and len(parts[-1]) < MIN_CHARACTERS and len(parts[-1]) + 1 + len(sentence) <= max_characters:
            parts[-1] = f"{parts[-1]} {sentence}".strip()
        elif len(sentence) <= max_characters:
            parts.append(sentence)
        else:
            clauses = _cut(sentence, _CLAUSE_END)
            pieces = [piece for clause in clauses for piece in _fit(clause.split(), max_characters)]
            parts.extend(_fit(pieces, max_characters))
    return [part for part in parts if any(character.isalnum() for character in part)]


def _cut(text: str, end: re.Pattern) -> Iterator[str]:
    """Pieces of a text, each with the mark that ends it."""
    start = 0
    for match in end.finditer(text):
        yield text[start : match.end()].strip()
        start = match.end()
    yield text[start:].strip()


def _fit(pieces: list[str], limit: int) -> Iterator[str]:
    """Joins neighbours as long as they fit."""
    line = ""
    for piece in pieces:
        if line and len(line) + 1 + len(piece) > limit:
            yield line
            line = ""
        line = f"{line} {piece}".strip()
    if line:
        yield line


def speak_long(
    pipe: Callable[..., dict[str, Any]],
    text: str,
    progress: Callable[[int, int, str], None] | None = None,
    pause_seconds: float = PAUSE_SECONDS,
    **settings: Any,
) -> dict[str, Any]:
    """Speaks a text of any length with a TextToSpeechPipeline: {"audio": float32 (samples,), "sampling_rate": Hz}.

    progress(number, count, part) is called before each part. Raises what the pipeline raises, naming the part where
    there are several.
    """
    # A text with nothing to speak goes to the pipeline as it is, whose message says what is wrong.
    parts = split_text(text) or [text]
    pieces: list[np.ndarray] = []
    rate = 0
    for number, part in enumerate(parts, 1):
        if progress is not None:
            progress(number, len(parts), part)
        try:
            speech = pipe(part, **settings)
        except (ValueError, RuntimeError) as error:
            if len(parts) == 1:
                raise
            raise type(error)(f"{error} (In part {number} of {len(parts)}: {part!r})") from error
        rate = speech["sampling_rate"]
        if pieces:
            pieces.append(np.zeros(round(pause_seconds * rate), dtype=np.float32))
        pieces.append(speech["audio"])
    return {"audio": np.concatenate(pieces), "sampling_rate": rate}
