"""Mandarin text, with English words in it, to pinyin initials and finals with tones, through pypinyin."""

import re
import unicodedata
from functools import lru_cache
from itertools import chain
from typing import Any

from .english_frontend import english_words
from .mandarin_normalization import ENGLISH_RUN, HAN, LATIN, load_package, normalize_mandarin
from .phoneme_symbols import FINALS, INITIALS, TONES, Word, add_stop

_SENTENCE_END = re.compile(
    r"(?<=[。！？!?])(?![。！？!?])|(?<!\b[A-Za-z]\.)(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bvs\.)(?<=\.)(?=\s)"
)
_PIECE = re.compile(rf"(?P<han>[{HAN}](?:\s*[{HAN}])*)|(?P<run>{ENGLISH_RUN.pattern})|(?:(?![{HAN}])\w)+|\S")
_STOPS = {"。": ".", "、": ",", "…": ",", "—": ",", "―": ",", "–": ",", **{mark: mark for mark in ",.?!;:"}}
# Brackets, quotes, hyphens and marks that have no sound of their own.
_SILENT = frozenset("\"'“”‘’`´„«»‹›()[]{}<>《》〈〉「」『』【】〔〕〖〗〝〞*_~^|\\/-‐‑#§¶†‡•·・‧®©™℠")
# Interjections that pypinyin gives without a final, and the vowel of 欸, spoken as their common syllables.
_RARE = {"n": "en", "ng": "en", "m": "mu", "hm": "heng", "hng": "heng", "ê": "ei"}


@lru_cache(maxsize=4096)
def mandarin_words(text: str, given: tuple[tuple[str, str], ...] = ()) -> tuple[tuple[Word, ...], tuple[str, ...]]:
    """Text -> (its words, what was left out). A stretch of Mandarin between two marks is one word.

    A sentence without a Chinese character but with Latin letters is English, its numbers too; numbers elsewhere are
    Mandarin unless English words stand on both sides.

    given: words of the text (lower-case letters, in no lexicon) whose symbols are known.
    """
    words: list[Word] = []
    dropped: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.replace("\r", "\n")):
        for sentence in _SENTENCE_END.split(paragraph):
            found, missing = _sentence_words(sentence, given)
            words += found
            dropped += missing
        if words and not words[-1][1]:
            add_stop(words, ".")
    return tuple(words), tuple(dict.fromkeys(dropped))


def _sentence_words(sentence: str, given: tuple[tuple[str, str], ...]) -> tuple[list[Word], list[str]]:
    letters = re.sub("|".join(name for name, _ in given), "", sentence) if given else sentence
    if re.search(f"[{LATIN}]", letters) and not re.search(f"[{HAN}]", letters):
        found, missing = english_words(sentence, given)
        return list(found), list(missing)
    words: list[Word] = []
    dropped: list[str] = []
    for piece in _PIECE.finditer(normalize_mandarin(sentence)):
        found, missing = [], []
        if piece["han"]:
            found, missing = _han_words(re.sub(r"\s", "", piece["han"]))
        elif piece["run"]:
            run = piece["run"].strip()
            # A letter by itself is its name, not the article.
            found, missing = english_words(f"{run.upper()}." if len(run) == 1 else run, given)
        elif piece[0] in _STOPS:
            add_stop(words, _STOPS[piece[0]])
        elif piece[0] not in _SILENT and unicodedata.category(piece[0][0])[0] not in "MC":
            missing = [piece[0]]
        words += found
        dropped += missing
    return words, dropped


def _han_words(characters: str) -> tuple[list[Word], list[str]]:
    """Chinese characters in a row -> one word, or none, and the characters that have no reading."""
    pypinyin = load_package("pypinyin")
    readings = load_package("pypinyin.constants").PINYIN_DICT
    missing = [character for character in characters if ord(character) not in readings]
    known = "".join(character for character in characters if ord(character) in readings)
    # Readings of phrases are known in simplified characters only.
    simplified = _simplifier().convert(known)
    syllables = pypinyin.lazy_pinyin(
        simplified if all(ord(character) in readings for character in simplified) else known,
        style=pypinyin.Style.TONE3,
        neutral_tone_with_five=True,
        tone_sandhi=True,
    )
    return ([(" ".join(map(syllable_symbols, syllables)), "")] if syllables else []), missing


@lru_cache(maxsize=1)
def _simplifier() -> Any:
    return load_package("opencc").OpenCC("t2s")


@lru_cache(maxsize=1)
def known_syllables() -> frozenset[str]:
    """All syllables of Mandarin in pinyin without tones, ü as v."""
    convert = load_package("pypinyin.contrib.tone_convert").to_normal
    readings = load_package("pypinyin.constants").PINYIN_DICT.values()
    return frozenset(map(convert, set(chain.from_iterable(reading.split(",") for reading in readings))))


@lru_cache(maxsize=4096)
def syllable_symbols(syllable: str) -> str:
    """A syllable with its tone as symbols: "hao3" -> "h- -ao 3", "wanr2" -> "-uan 2 -er 5".

    Raises ValueError for what is no syllable of Mandarin.
    """
    letters, tone = syllable[:-1].replace("u:", "v").replace("ü", "v"), syllable[-1:]
    if tone not in TONES or not {letters, letters.removesuffix("r")} & known_syllables():
        raise ValueError(f"{syllable!r} is no syllable of Mandarin with a tone from 1 to 5.")
    if letters not in known_syllables():  # the r of "huar1"
        return f"{syllable_symbols(letters.removesuffix('r') + tone)} -er 5"
    convert = load_package("pypinyin.contrib.tone_convert")
    letters = _RARE.get(letters, letters)
    initial, final = convert.to_initials(letters, strict=True), convert.to_finals(letters, strict=True)
    if final not in FINALS or initial not in ("", *INITIALS):
        raise ValueError(f"{syllable!r} is no syllable of Mandarin.")
    return f"{initial}- -{final} {tone}" if initial else f"-{final} {tone}"
