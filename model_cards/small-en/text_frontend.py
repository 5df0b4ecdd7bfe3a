"""Text to symbols: written English becomes a space-separated string of IPA phonemes, boundaries and punctuation."""

import re
import sqlite3
import threading
import unicodedata
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

from .text_normalization import PUNCTUATION, fold_letters, normalize_english

WORD_BOUNDARY = "|"
STRESS_MARKS = "ˈˌ"
PAD_SYMBOL, UNKNOWN_SYMBOL = "<pad>", "<unk>"

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
_NUMBER_STEPS = tuple(
    f"{step}_{what}" for step in ("detect", "verbalize") for what in ("numbers", "currency", "dates", "times")
)
_STRONG_STOPS = ".?!"


class TextFrontend:
    """Turns text into the string that a text tokenizer reads.

    kind "phonemes": English through gruut; numbers, money, dates and abbreviations are written out, words are looked
        up in its lexicon (guessed by its model where they are missing), and the result is for example
        "h ɛ l ˈoʊ , | w ˈɚ l d ." with one symbol per token. The same text always gives the same symbols.
    kind "none": the text itself with its white space cleaned up, for a sub-word tokenizer.

    Raises ValueError for an unknown kind or language, ImportError if gruut is missing (on first use).
    """

    KINDS = ("phonemes", "none")

    def __init__(self, kind: str = "phonemes", language: str = "en") -> None:
        if kind not in self.KINDS:
            raise ValueError(f"Unknown text frontend {kind!r}; choose one of {list(self.KINDS)}.")
        if kind == "phonemes" and language != "en":
            raise ValueError(f"The phoneme frontend speaks English ('en'), not {language!r}; use kind='none' instead.")
        self.kind, self.language = kind, language

    def __call__(self, text: str) -> str:
        """One text -> its symbols. Warns about words that cannot be spoken.

        Raises TypeError for anything but a string, ValueError if the text is empty or nothing in it can be spoken.
        """
        if not isinstance(text, str):
            raise TypeError(f"Expected a text as str, got {type(text).__name__}.")
        if not text.strip():
            raise ValueError("The text is empty. Pass at least one word to speak.")
        if self.kind == "none":
            if not any(character.isalnum() for character in text):
                raise ValueError(f"Nothing in {text!r} can be spoken. Pass text that contains words.")
            return " ".join(text.split())
        symbols, dropped = _english_symbols(text)
        if not symbols:
            raise ValueError(f"Nothing in {text!r} can be spoken by the English frontend. Pass English words.")
        if dropped:
            warnings.warn(
                f"The English frontend cannot speak and leaves out: {', '.join(dropped)}. Write them as English words.",
                stacklevel=2,
            )
        return symbols

    @staticmethod
    def symbols(language: str = "en") -> list[str]:
        """All symbols that the phoneme frontend can emit: word boundary, punctuation, then phonemes, in fixed order."""
        if language != "en":
            raise ValueError(f"The phoneme frontend knows English ('en') only, not {language!r}.")
        return [WORD_BOUNDARY, *PUNCTUATION, *ENGLISH_PHONEMES]

    def recognition_symbols(self, symbol_string: str) -> str:
        """What a recogniser should find in the speech: punctuation and stress dropped, boundaries between words only.

        For kind "none" the result is lower-case words separated by one space.
        """
        if self.kind == "none":
            letters = (c if c.isalnum() or unicodedata.combining(c) or c == "'" else " " for c in symbol_string.lower())
            return " ".join("".join(letters).split())
        kept = [symbol.lstrip(STRESS_MARKS) for symbol in symbol_string.split() if symbol not in PUNCTUATION]
        words = " ".join(kept).split(WORD_BOUNDARY)
        return f" {WORD_BOUNDARY} ".join(stripped for word in words if (stripped := word.strip()))


def build_phoneme_tokenizer() -> Any:
    """The vocabulary of the phoneme frontend as a `PreTrainedTokenizerFast`, one id per symbol.

    Id 0 is `<pad>` and at the same time the CTC blank, id 1 `<unk>`, then follow `TextFrontend.symbols()`. Language
    model text and CTC labels share it: unstressed vowels are symbols of their own.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = [PAD_SYMBOL, UNKNOWN_SYMBOL, *TextFrontend.symbols()]
    backend = Tokenizer(
        models.WordLevel({symbol: index for index, symbol in enumerate(vocabulary)}, unk_token=UNKNOWN_SYMBOL)
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD_SYMBOL,
        unk_token=UNKNOWN_SYMBOL,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


class _Lexicon:
    """gruut's pronunciations in memory: word and part of speech -> phonemes.

    gruut itself asks an SQLite file without an index and does not remember misses, which takes most of a second for
    a sentence; this takes microseconds.
    """

    def __init__(self, path: Path) -> None:
        self.default: dict[str, str] = {}
        self.by_role: dict[tuple[str, str], str] = {}
        any_role: dict[str, str] = {}
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
        try:
            for word, role, phonemes in connection.execute(
                "SELECT word, role, phonemes FROM word_phonemes ORDER BY pron_order, id"
            ):
                if role:
                    self.by_role.setdefault((word, role), phonemes)
                    any_role.setdefault(word, phonemes)
                else:
                    self.default.setdefault(word, phonemes)
        finally:
            connection.close()
        for word, phonemes in any_role.items():
            self.default.setdefault(word, phonemes)

    def __contains__(self, word: str) -> bool:
        return word in self.default

    def __call__(self, word: str, role: str | None = None, do_transforms: bool = True) -> list[str] | None:
        """The signature that gruut's text processor calls."""
        forms = [word]
        if do_transforms:
            lower = word.lower()
            forms += [lower, re.sub(r"[\W_]+", "", lower), fold_letters(lower)]
        for form in forms:
            phonemes = self.by_role.get((form, role or "")) or self.default.get(form)
            if phonemes is not None:
                return phonemes.split()
        stem = fold_letters(word.lower()).removesuffix("'s")
        if do_transforms and stem != fold_letters(word.lower()) and stem in self.default:
            phonemes = self.default[stem].split()
            return phonemes + possessive_ending(phonemes[-1])
        return None


@lru_cache(maxsize=1)
def _english() -> tuple[Any, _Lexicon, Any]:
    """gruut's text processor over the lexicon in memory, the lexicon, and the lock that gruut's models need."""
    try:
        import gruut_lang_en
        from gruut.g2p import GraphemesToPhonemes
        from gruut.text_processor import TextProcessor
    except ImportError as error:
        raise ImportError("English phonemes need gruut. Install it: pip install 'gruut[en]'") from error
    folder = Path(gruut_lang_en.get_lang_dir())
    lexicon = _Lexicon(folder / "lexicon.db")
    guesser = GraphemesToPhonemes(folder / "g2p" / "model.crf")

    def guess(word: str, role: str | None = None) -> list[str]:
        # The model has seen lower-case ASCII letters only, and turns an apostrophe into sounds.
        letters = re.sub(r"[^a-z']", "", fold_letters(word.lower())).strip("'")
        stem = letters.removesuffix("'s")
        phonemes = [p for p in guesser(stem.replace("'", "")) if p in ENGLISH_PHONEMES]
        return phonemes + possessive_ending(phonemes[-1]) if phonemes and stem != letters else phonemes

    processor = TextProcessor(default_lang="en_US", lookup_phonemes=lexicon, guess_phonemes=guess)
    return processor, lexicon, threading.Lock()


@lru_cache(maxsize=4096)
def _english_symbols(text: str) -> tuple[str, tuple[str, ...]]:
    """Text -> (symbol string, the words that were left out). The string is empty if nothing can be spoken."""
    processor, lexicon, lock = _english()
    normalized, dropped = normalize_english(text, lexicon)
    if not normalized:
        return "", tuple(dropped)
    words: list[str] = []
    stops: list[str] = []  # the punctuation after each word
    # Without a digit the searches for numbers have nothing to find and take half of the time.
    numeric = any(character.isdigit() for character in normalized)
    with lock:
        graph, root = processor(normalized, **dict.fromkeys(_NUMBER_STEPS, numeric))
        sentences = list(processor.sentences(graph, root))
    for word in (word for sentence in sentences for word in sentence):
        if word.is_minor_break or word.is_major_break:
            mark = word.text.strip()[:1]
            # Of several marks in a row the one that ends a sentence counts.
            if words and mark in PUNCTUATION and (not stops[-1] or mark in _STRONG_STOPS):
                stops[-1] = mark
        elif word.phonemes:
            words.append(" ".join(word.phonemes))
            stops.append("")
        # What is still a digit after the numbers were written out, or has no sound at all, would vanish silently.
        if word.is_spoken and any(c.isdigit() or (c.isalpha() and not word.phonemes) for c in word.text):
            dropped.append(word.text)
    if not words:
        return "", tuple(dropped)
    if stops[-1] not in tuple(_STRONG_STOPS):
        stops[-1] = "."
    spoken = (f"{word} {stop}" if stop else word for word, stop in zip(words, stops, strict=True))
    return f" {WORD_BOUNDARY} ".join(spoken), tuple(dict.fromkeys(dropped))


def possessive_ending(last: str) -> list[str]:
    """The sound of 's after a word that ends in the phoneme `last`."""
    if last in ("s", "z", "ʃ", "ʒ", "t͡ʃ", "d͡ʒ"):
        return ["ɪ", "z"]
    return ["s"] if last in ("p", "t", "k", "f", "θ") else ["z"]
