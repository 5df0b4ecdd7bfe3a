"""Texts of any length: split at the ends of sentences, spoken one by one, joined with short pauses.

The file travels with checkpoints.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import numpy as np

from .abbreviations import sentence_goes_on

# Speech is trained on utterances of a few seconds; about 15 letters are spoken in one, and 4 ideographs.
MAX_CHARACTERS = 160
MIN_CHARACTERS = 25
IDEOGRAPH_CHARACTERS = 4
# A brace this far back opens no pronunciation, so it holds up no cut.
PRONUNCIATION_CHARACTERS = 80
PAUSE_SECONDS = 0.3
# Sampling now and then finds no end; another draw usually does.
ATTEMPTS = 3

_CLOSERS = "\"'”’)\\]」』）》"
_PARAGRAPH_END = r"\n\s*\n"
_SENTENCE_END = re.compile(
    rf"(?:(?<=[!?…])|\.)[{_CLOSERS}]*\s+|(?P<always>(?<=[。！？])[{_CLOSERS}]*\s*|{_PARAGRAPH_END})"
)
_RUN = re.compile(rf"[{_CLOSERS}\s]*")
_CLAUSE_END = re.compile(rf"(?<=[,;:—–])\s+|(?<=[!?…])[{_CLOSERS}]*\s+|(?<=[，、；：])\s*")
_WORD_END = re.compile(r"\s+")
_SIGN_END = re.compile(r"(?<=[^\w\s])")
# What may stand before the first word of a sentence, and that word.
_OPENERS = re.compile(r"[\"'“‘(\[—–-]*\s*")
_LETTERS = re.compile(r"[^\W\d_]*")
_LONGEST_WORD = 40
_IDEOGRAPH = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_IDEOGRAPH_END = re.compile(f"(?<={_IDEOGRAPH.pattern})(?={_IDEOGRAPH.pattern})")


class TextSplitter:
    """Parts of a text that arrives in pieces, the same however it is cut into pieces.

    A part is a sentence, at most `max_characters` long unless one word is longer; longer sentences are cut after a
    comma, else between words, else between ideographs, and never inside a pronunciation in braces. A very short
    sentence is put together with the next, behind an empty line if it ends a paragraph, as a heading does. Parts
    without any letter or digit are left out, and nothing else is. With `eager` the first part may already end with a
    clause, for speech to start early. An ideograph counts as four characters.
    """

    def __init__(self, max_characters: int = MAX_CHARACTERS, eager: bool = False) -> None:
        self.max_characters = max_characters
        self.eager = eager
        self._text = ""  # what no part holds yet
        self._short = ""  # sentences waiting for the next one
        self._joint = " "  # what will stand between them
        self._complete = False  # whether no more text will come

    def push(self, piece: str) -> Iterator[str]:
        """Takes more text and yields the parts that are now complete."""
        self._text = (self._text + piece).lstrip()
        while (end := self._next_end()) is not None:
            yield from self._take(end)

    def finish(self) -> Iterator[str]:
        """Yields what is left once no more text comes."""
        self._complete = True
        yield from self.push("")
        yield from self._take(len(self._text))
        if _is_spoken(self._short):
            yield self._short
        self._short = ""

    def _next_end(self) -> int | None:
        """Where the first part of the text ends, if it is known by now."""
        # What lies behind is too far away for the first part, and would be read anew for every one. No mark is parted
        # from the white space behind it.
        window = _RUN.match(self._text, self.max_characters + 1).end()
        found, is_sure = self._sentence_end(window)
        if self.eager:
            clause = self._clause_end(window)
            if clause is not None and (found is None or clause < found):
                return self._cut(window) if self._is_long(clause) else clause
        if self._is_long(found):
            return self._cut(window)
        return found if is_sure else None

    def _is_long(self, end: int | None) -> bool:
        """Whether the text until an end is longer than a part, of which no more than that is measured."""
        return _length(self._text[:end].rstrip()[: self.max_characters + 1]) > self.max_characters

    def _sentence_end(self, stop: int) -> tuple[int | None, bool]:
        """Where the first sentence ends before a place, and whether that is sure: if not, the word after it has not
        come yet."""
        for match in _SENTENCE_END.finditer(self._text, 0, stop):
            if match.end() == len(self._text):
                break
            if match["always"] is not None or re.search(_PARAGRAPH_END, match[0]):
                return match.end(), True
            start = _OPENERS.match(self._text, match.end()).end()
            is_sure = self._complete or _LETTERS.match(self._text, start).end() < len(self._text)
            if not is_sure or _ends_sentence(match, self._text[start : start + _LONGEST_WORD]):
                return match.end(), is_sure
        return None, True

    def _clause_end(self, stop: int) -> int | None:
        """Where the first clause that is long enough to be spoken alone ends before a place, if the text goes on: at
        its very end more could belong to it."""
        for match in _CLAUSE_END.finditer(self._text, 0, stop):
            if match.end() < len(self._text) and _length(self._text[: match.end()]) >= MIN_CHARACTERS:
                return match.end()
        return None

    def _cut(self, window: int) -> int | None:
        """The end of as many clauses, else words, else ideographs, of a long sentence as fit, else of its first word;
        None if not even that has come."""
        for pattern in (_CLAUSE_END, _WORD_END, _IDEOGRAPH_END):
            fitting = list(takewhile(lambda end: not self._is_long(end), self._cuts(pattern, window)))
            if fitting:
                return fitting[-1]
        first_word = next(self._cuts(_WORD_END, len(self._text)), None)
        found, is_sure = self._sentence_end(len(self._text) if first_word is None else first_word)
        return first_word if found is None or not is_sure else found

    def _cuts(self, pattern: re.Pattern, stop: int) -> Iterator[int]:
        """The ends of matches before a place, but for those inside a pronunciation and at the end of the text."""
        for match in pattern.finditer(self._text, 0, stop):
            end = match.end()
            if end == len(self._text):
                return
            near = (max(0, end - PRONUNCIATION_CHARACTERS), end)
            if self._text.rfind("{", *near) <= self._text.rfind("}", *near):
                yield end

    def _take(self, end: int) -> Iterator[str]:
        taken, self._text = self._text[:end], self._text[end:].lstrip()
        part = taken.strip()
        if self._short and _length(self._short + self._joint) + _length(part) <= self.max_characters:
            part, self._short = f"{self._short}{self._joint}{part}".strip(), ""
        elif self._short:
            if _is_spoken(self._short):
                self.eager = False
                yield self._short
            self._short = ""
        if _length(part) < MIN_CHARACTERS:
            self._short = part
            self._joint = "\n\n" if re.search(_PARAGRAPH_END, taken[len(taken.rstrip()) :]) else " "
        elif _is_spoken(part):
            self.eager = False
            yield part


def _ends_sentence(match: re.Match, after: str) -> bool:
    """Whether a match of _SENTENCE_END is neither an abbreviation's full stop nor a mark inside a sentence, as in
    "Come back!" he shouted ... and left. after: what follows, from its first letter."""
    before = match.string[: match.start()]
    if match[0].startswith(".") and not before.endswith("."):
        return not sentence_goes_on(before, after)
    return not after[:1].islower()


def is_long(text: str) -> bool:
    """Whether a text is longer than any part of several words."""
    return _length(text) > MAX_CHARACTERS and len(split_text(text)) > 1


def _length(text: str) -> int:
    return len(text) + (IDEOGRAPH_CHARACTERS - 1) * len(_IDEOGRAPH.findall(text))


def _is_spoken(part: str) -> bool:
    return any(character.isalnum() for character in part)


def split_text(text: str, max_characters: int = MAX_CHARACTERS) -> list[str]:
    """The parts of a whole text in order; see `TextSplitter`."""
    splitter = TextSplitter(max_characters)
    return [*splitter.push(text), *splitter.finish()]


def split_pieces(pieces: Iterable[str], max_characters: int = MAX_CHARACTERS) -> Iterator[str]:
    """The parts of a text that arrives in pieces, each as soon as it is complete, the first after its first clause."""
    splitter = TextSplitter(max_characters, eager=True)
    for piece in pieces:
        if not isinstance(piece, str):
            raise ValueError(f"Expected pieces of text (str), got {type(piece).__name__}.")
        yield from splitter.push(piece)
    yield from splitter.finish()


def speak_parts(
    pipe: Callable[..., dict[str, Any]],
    text: str,
    progress: Callable[[int, int, str], None] | None = None,
    pause_seconds: float = PAUSE_SECONDS,
    attempts: int = ATTEMPTS,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """Speaks a text of any length with a TextToSpeechPipeline, part by part, in memory for one part.

    Yields what a call gives and "text", the part; every part but the first begins with a
    pause, so the parts put together are the speech. progress(number, count, part) is called before each part; the count
    may change, see `fit_parts`. Where speech fails (it finds no end, say), it is tried again, with a seed given with
    that plus 1, 2 and so on.

    Warns of parts in which nothing can be spoken. Raises what the pipeline raises, naming the part where there are
    several.
    """
    settings = _with_one_voice(pipe, settings)
    # A text with nothing to speak goes to the pipeline as it is, whose message says what is wrong.
    parts = split_text(text) or [text]
    for number, count, part in fit_parts(pipe, parts, len(parts)):
        if progress is not None:
            progress(number, count, part)
        with named_part(part, number, count):
            speech = _speak(pipe, part, attempts, settings)
        if number > 1:
            pause = np.zeros(round(pause_seconds * speech["sampling_rate"]), dtype=np.float32)
            speech["audio"] = np.concatenate([pause, speech["audio"]])
        yield {**speech, "text": part}


def speak_long(
    pipe: Callable[..., dict[str, Any]],
    text: str,
    progress: Callable[[int, int, str], None] | None = None,
    pause_seconds: float = PAUSE_SECONDS,
    attempts: int = ATTEMPTS,
    **settings: Any,
) -> dict[str, Any]:
    """The speech of `speak_parts` as one: {"audio": float32 (samples,), "sampling_rate": Hz, "watermarked": bool}."""
    parts = list(speak_parts(pipe, text, progress, pause_seconds, attempts, **settings))
    same = {name: value for name, value in parts[0].items() if name != "text"}
    return {**same, "audio": np.concatenate([part["audio"] for part in parts])}


def fit_parts(pipe: Any, parts: Iterable[str], count: int | None) -> Iterator[tuple[int, int | None, str]]:
    """Parts as the pipeline can speak them, each with its number and how many there are, as far as is known.

    A part of more tokens than the processor takes, figures or an address say, is halved until it fits; one in which
    nothing can be spoken is left out with the frontend's warning. count: of the parts, None if not known.

    Raises ValueError where nothing is left to speak, and for wrong pronunciations.
    """
    number, part = 0, ""
    for part in parts:
        with named_part(part, number + 1, count):
            # What is wrong with the only part is said by the pipeline's error, without a warning before it.
            pieces = list(_fitting(pipe, part, warn=count != 1))
        if not pieces and count == 1:
            break
        if count is not None:
            count += len(pieces) - 1
        for piece in pieces:
            number += 1
            yield number, count, piece
    if number == 0:
        if part:
            pipe.processor.text_frontend(part)
        raise ValueError("There was nothing to speak in the text.")


def _fitting(pipe: Any, part: str, warn: bool = True) -> Iterator[str]:
    processor = getattr(pipe, "processor", None)
    read = getattr(getattr(processor, "text_frontend", None), "read", None)
    # Another kind of pipeline, or an older processor; or a text that the pipeline itself refuses.
    if read is None or not _is_spoken(part):
        yield part
        return
    symbols, warning = read(part)
    if not symbols:
        if warn and warning:
            warnings.warn(warning, stacklevel=2)
        return
    tokens = processor.tokenizer(symbols, add_special_tokens=False)["input_ids"]
    middle = _middle(part) if len(tokens) > processor.max_text_tokens else None
    if middle is None:
        yield part
        return
    for half in (part[:middle].strip(), part[middle:].strip()):
        if _is_spoken(half):
            yield from _fitting(pipe, half)


def _middle(part: str) -> int | None:
    """The end of a word nearest to the middle, else that of a sign, else the middle; None inside a pronunciation."""
    half = len(part) / 2
    places = range(1, len(part))
    for ends in (
        [match.end() for match in _WORD_END.finditer(part)],
        [match.end() for match in _SIGN_END.finditer(part)],
        places,
    ):
        fitting = [end for end in ends if end in places and part.rfind("{", 0, end) <= part.rfind("}", 0, end)]
        if fitting:
            return min(fitting, key=lambda end: abs(end - half))
    return None


@contextmanager
def named_part(part: str, number: int, count: int | None) -> Iterator[None]:
    """Adds to a ValueError or RuntimeError which part of a text it is about. count: None if not known."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if count == 1:
            raise
        of = f" of {count}" if count else ""
        raise type(error)(f"{error} (In part {number}{of}: {part!r})") from error


def _speak(pipe: Callable[..., dict[str, Any]], part: str, attempts: int, settings: dict[str, Any]) -> dict[str, Any]:
    for attempt in range(attempts):
        again = settings if settings.get("seed") is None else {**settings, "seed": settings["seed"] + attempt}
        try:
            return pipe(part, **again)
        except RuntimeError:
            if attempt == attempts - 1:
                raise
    raise ValueError(f"attempts must be at least 1, got {attempts}.")


def _with_one_voice(pipe: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings in which a reference recording, or the file of a voice, has become a voice: it is listened to once."""
    settings = dict(settings)
    if settings.get("reference_audio") is not None and settings.get("voice") is not None:
        raise ValueError("Give either a voice or reference_audio, not both.")
    if settings.get("reference_audio") is None:
        if settings.get("voice") is not None and hasattr(pipe, "find_voice"):  # another kind of pipeline has none
            settings["voice"] = pipe.find_voice(settings["voice"])
        return settings
    voice = pipe.clone(
        settings.pop("reference_audio"),
        settings.pop("sampling_rate", None),
        settings.pop("reference_text", None),
        settings.pop("transcribe", False),
    )
    return {**settings, "voice": voice}
