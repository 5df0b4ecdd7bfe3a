"""English words to IPA phonemes, through gruut."""

import re
import sqlite3
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

from .phoneme_symbols import ENGLISH_PHONEMES, STRESS_MARKS, Word, add_stop
from .text_normalization import fold_letters, normalize_english

_NUMBER_STEPS = tuple(
    f"{step}_{what}" for step in ("detect", "verbalize") for what in ("numbers", "currency", "dates", "times")
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
def english_words(text: str, given: tuple[tuple[str, str], ...] = ()) -> tuple[tuple[Word, ...], tuple[str, ...]]:
    """Text -> (its words, what was left out). There are no words if nothing can be spoken.

    given: words of the text (lower-case letters, in no lexicon) whose symbols are known.
    """
    processor, lexicon, lock = _english()
    known = dict(given)
    normalized, dropped = normalize_english(text, lexicon)
    if not normalized:
        return (), tuple(dropped)
    # Without a digit the searches for numbers have nothing to find and take half of the time.
    numeric = any(character.isdigit() for character in normalized)
    with lock:
        graph, root = processor(normalized, **dict.fromkeys(_NUMBER_STEPS, numeric))
        sentences = list(processor.sentences(graph, root))
    words: list[Word] = []
    for word in (word for sentence in sentences for word in sentence):
        stem, _, ending = word.text.lower().partition("'")
        if word.is_minor_break or word.is_major_break:
            add_stop(words, word.text.strip()[:1])
        elif stem in known:
            last = known[stem].split()[-1].lstrip(STRESS_MARKS)
            words.append((" ".join([known[stem], *(possessive_ending(last) if ending == "s" else ())]), ""))
            continue
        elif word.phonemes:
            words.append((" ".join(word.phonemes), ""))
        # What is still a digit after the numbers were written out, or has no sound at all, would vanish silently.
        if word.is_spoken and any(c.isdigit() or (c.isalpha() and not word.phonemes) for c in word.text):
            dropped.append(word.text)
    return tuple(words), tuple(dict.fromkeys(dropped))


def possessive_ending(last: str) -> list[str]:
    """The sound of 's after a word that ends in the phoneme `last`."""
    if last in ("s", "z", "ʃ", "ʒ", "t͡ʃ", "d͡ʒ"):
        return ["ɪ", "z"]
    return ["s"] if last in ("p", "t", "k", "f", "θ") else ["z"]
