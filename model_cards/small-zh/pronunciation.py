"""Pronunciations inside a text: {HH AH0 L OW1} in CMU phonemes, {ni3 hao3} in pinyin.

Capitals are CMU phonemes (ARPAbet) with a stress digit on each vowel: 0 none, 1 primary, 2 secondary. Small letters are
pinyin syllables with a tone digit, 5 being neutral, and ü written v; they need a Mandarin vocabulary. They are spoken
as given, without tone sandhi. "|" separates words. Braces that hold nothing like it, no phoneme, syllable or digit
after letters, are brackets as in any other text.
"""

import re
from difflib import get_close_matches

from .mandarin_frontend import known_syllables, syllable_symbols
from .phoneme_symbols import TONES, WORD_BOUNDARY

_VOWELS = {
    **{"AA": "ɑ", "AE": "æ", "AH": "ʌ", "AO": "ɔ", "AW": "aʊ", "AY": "aɪ", "EH": "ɛ", "ER": "ɚ", "EY": "eɪ"},
    **{"IH": "ɪ", "IY": "i", "OW": "oʊ", "OY": "ɔɪ", "UH": "ʊ", "UW": "u"},
}
_CONSONANTS = {
    **{"B": "b", "CH": "t͡ʃ", "D": "d", "DH": "ð", "F": "f", "G": "ɡ", "HH": "h", "JH": "d͡ʒ", "K": "k", "L": "l"},
    **{"M": "m", "N": "n", "NG": "ŋ", "P": "p", "R": "ɹ", "S": "s", "SH": "ʃ", "T": "t", "TH": "θ", "V": "v"},
    **{"W": "w", "Y": "j", "Z": "z", "ZH": "ʒ"},
}
# CMU phoneme -> symbol of the frontend. The unstressed AH is a schwa.
CMU_PHONEMES = {
    **_CONSONANTS,
    **{vowel + digit: mark + symbol for digit, mark in zip("012", ("", "ˈ", "ˌ")) for vowel, symbol in _VOWELS.items()},
    "AH0": "ə",
}
_BRACES = re.compile(r"\{([^{}\n]*)(\}|$|(?=[{\n]))")


def take_pronunciations(text: str, language: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Returns the text with a made-up word in place of each pronunciation, and these words with their symbols.

    Raises ValueError, saying what to write instead, for pronunciations with an unknown phoneme or syllable, without
    stress or tone, without a closing brace, and for pinyin in a language without it.
    """
    if "{" not in text:
        return text, ()
    stem = "qxz"
    while stem in text.lower():
        stem += "z"
    given: list[tuple[str, str]] = []

    def replace(match: re.Match) -> str:
        inside = match[1].replace(WORD_BOUNDARY, f" {WORD_BOUNDARY} ")
        if language == "zh":
            inside = re.sub(r"(?<=[a-zü:]\d)(?=[a-zü])", " ", inside)  # ni3hao3
        tokens = inside.split()
        if not _are_meant(tokens if match[2] == "}" else tokens[:1], language):
            return match[0]
        if match[2] != "}":
            raise ValueError(f"The pronunciation {match[0]!r} has no closing brace; write it as {{HH AH0 L OW1}}.")
        name = stem + "".join(chr(ord("a") + int(digit)) for digit in str(len(given))) + "a"
        given.append((name, _symbols(tokens, match[0], language)))
        before, after = match.string[: match.start()], match.string[match.end() :]
        left = " " if before[-1:].isalnum() or before[-1:] == "}" else ""
        right = " " if after[:1].isalnum() or after[:1] == "{" else ""
        return f"{left}{name}{right}"

    return _BRACES.sub(replace, text), tuple(given)


def has_pronunciations(text: str) -> bool:
    """Whether there are braces that `take_pronunciations` would not leave as they are."""
    return any(_are_meant(match[1].split(), "en") for match in _BRACES.finditer(text))


def _are_meant(tokens: list[str], language: str) -> bool:
    """Whether tokens look like a pronunciation, if maybe a wrong one."""
    if any(token in CMU_PHONEMES or token in _VOWELS or re.fullmatch(r"[A-Za-zü:]+\d", token) for token in tokens):
        return True
    return language == "zh" and bool(tokens) and known_syllables().issuperset(tokens)


def _symbols(tokens: list[str], written: str, language: str) -> str:
    words: list[list[str]] = [[]]
    for token in tokens:
        if token == WORD_BOUNDARY:
            words.append([])
        elif token in CMU_PHONEMES:
            words[-1].append(CMU_PHONEMES[token])
        else:
            words[-1].append(_pinyin(token, written, language))
    return f" {WORD_BOUNDARY} ".join(" ".join(word) for word in words if word)


def _pinyin(token: str, written: str, language: str) -> str:
    """The symbols of a syllable. Raises ValueError that tells what is wrong with the token."""
    if token in _VOWELS:
        raise ValueError(
            f"The vowel {token} in {written} needs a stress digit: {token}0 (none), {token}1 (primary) or "
            f"{token}2 (secondary)."
        )
    if token.upper() in CMU_PHONEMES or token.isupper():
        near = get_close_matches(token.upper(), CMU_PHONEMES, 2, 0.5)
        raise ValueError(
            f"Unknown phoneme {token!r} in {written}{_meant(near)} CMU phonemes are written in capitals, vowels with "
            f"a stress digit: {' '.join([*_VOWELS, *_CONSONANTS])}."
        )
    if language != "zh":
        raise ValueError(
            f"{token!r} in {written} is pinyin, which needs a Mandarin vocabulary (language 'zh'). Here write CMU "
            "phonemes, in capitals: {HH AH0 L OW1}."
        )
    try:
        return syllable_symbols(token)
    except ValueError:
        near = [f"{letters}{token[-1] if token[-1] in TONES else 1}"
                for letters in get_close_matches(token.lower().rstrip("0123456789"), known_syllables(), 2)]  # fmt: skip
        raise ValueError(
            f"Unknown pinyin {token!r} in {written}{_meant(near)} Write each syllable with its tone from 1 to 5 "
            "(5 is neutral) and ü as v: {lv4 se4}."
        ) from None


def _meant(near: list[str]) -> str:
    return f"; did you mean {' or '.join(near)}?" if near else "."
