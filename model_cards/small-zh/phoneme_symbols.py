"""The symbols of the phoneme frontend, and how words of them become one string."""

from .text_normalization import PUNCTUATION

LANGUAGES = ("en", "zh")
WORD_BOUNDARY = "|"
STRESS_MARKS = "ˈˌ"
PAD_SYMBOL, UNKNOWN_SYMBOL = "<pad>", "<unk>"
STRONG_STOPS = ".?!"

_VOWELS = ("aɪ", "aʊ", "eɪ", "i", "oʊ", "u", "æ", "ɑ", "ɔ", "ɔɪ", "ɚ", "ɛ", "ɪ", "ʊ", "ʌ")
_CONSONANTS = (
    *("b", "d", "d͡ʒ", "f", "h", "j", "k", "l", "m", "n", "p", "s", "t", "t͡ʃ"),
    *("v", "w", "z", "ð", "ŋ", "ɡ", "ɹ", "ʃ", "ʒ", "θ"),
)
# Every symbol that gruut's English lexicon and its model for unknown words contain. Fixed here, because the order is
# the vocabulary of released checkpoints. Of the vowels only the schwa never carries stress.
ENGLISH_PHONEMES: tuple[str, ...] = tuple(
    sorted([*_CONSONANTS, "ə", *(mark + vowel for vowel in _VOWELS for mark in ("", *STRESS_MARKS))])
)

INITIALS = (
    *("b", "p", "m", "f", "d", "t", "n", "l", "g", "k", "h"),
    *("j", "q", "x", "zh", "ch", "sh", "r", "z", "c", "s"),
)
# The finals that pypinyin's strict style gives ("v" is ü); its rare syllables without one are in mandarin_frontend.
FINALS = (
    *("a", "ai", "an", "ang", "ao", "e", "ei", "en", "eng", "er"),
    *("i", "ia", "ian", "iang", "iao", "ie", "in", "ing", "iong", "iou", "o", "ong", "ou"),
    *("u", "ua", "uai", "uan", "uang", "uei", "uen", "ueng", "uo", "v", "van", "ve", "vn"),
)
TONES = "12345"  # 5 is the neutral tone
# Hyphens, by which initials and finals are told apart by convention, also tell Mandarin b [p] from English b. A tone is
# a symbol of its own: finals share their data over all tones, and a second of speech holds about as many symbols as in
# English, so that one speaking rate serves both languages.
MANDARIN_SYMBOLS: tuple[str, ...] = (
    *(f"{initial}-" for initial in INITIALS),
    *(f"-{final}" for final in FINALS),
    *TONES,
)
_MANDARIN = frozenset(MANDARIN_SYMBOLS)

# A word as symbols separated by spaces (or several words, separated by boundaries), and the punctuation after it.
Word = tuple[str, str]


def symbol_inventory(language: str) -> list[str]:
    """All symbols of a language in fixed order: word boundary, punctuation, English phonemes, then its own.

    Raises ValueError for an unknown language.
    """
    if language not in LANGUAGES:
        raise ValueError(f"The phoneme frontend speaks {list(LANGUAGES)}, not {language!r}; use kind='none' instead.")
    return [WORD_BOUNDARY, *PUNCTUATION, *ENGLISH_PHONEMES, *(MANDARIN_SYMBOLS if language == "zh" else ())]


def join_words(words: list[Word]) -> str:
    """One symbol string that ends with a strong stop; empty without words.

    Boundaries stand between words. Mandarin is written without them: they are there only at its punctuation and beside
    English words.
    """
    if not words:
        return ""
    *others, (last, stop) = words
    parts: list[str] = []
    for symbols, mark in [*others, (last, stop if stop and stop in STRONG_STOPS else ".")]:
        if parts:
            parts.extend(_between(parts[-1], symbols))
        parts.append(f"{symbols} {mark}" if mark else symbols)
    return " ".join(parts)


def without_prosody(symbol_string: str) -> str:
    """A symbol string without punctuation and stress, its boundaries only where `join_words` sets them between words.

    Tones stay: they tell words apart.
    """
    kept = [symbol.lstrip(STRESS_MARKS) for symbol in symbol_string.split() if symbol not in PUNCTUATION]
    words = [stripped for word in " ".join(kept).split(WORD_BOUNDARY) if (stripped := word.strip())]
    return join_words([(word, "") for word in words]).removesuffix(" .")


def add_stop(words: list[Word], mark: str) -> None:
    """Puts punctuation after the last word. Of several marks in a row the one that ends a sentence counts, before all
    the question mark."""
    if words and mark in PUNCTUATION and (not words[-1][1] or (mark in STRONG_STOPS and words[-1][1] != "?")):
        words[-1] = (words[-1][0], mark)


def _between(left: str, right: str) -> list[str]:
    mandarin = left.split()[-1] in _MANDARIN and right.split()[0] in _MANDARIN
    return [] if mandarin else [WORD_BOUNDARY]
