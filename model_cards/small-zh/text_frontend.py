"""Text to symbols: a space-separated string of phonemes, boundaries and punctuation."""

import unicodedata
import warnings
from typing import Any

from .english_frontend import english_words
from .mandarin_frontend import mandarin_words
from .phoneme_symbols import LANGUAGES, PAD_SYMBOL, UNKNOWN_SYMBOL, join_words, symbol_inventory, without_prosody
from .pronunciation import has_pronunciations, take_pronunciations

_NAMES = {"en": "English", "zh": "Mandarin"}
_WORDS = {"en": english_words, "zh": mandarin_words}


class TextFrontend:
    """Turns text into the string that a text tokenizer reads.

    kind "phonemes": numbers, money, dates, units and abbreviations are written out, words are looked up, and the result
        is for example "h ɛ l ˈoʊ , | w ˈɚ l d ." with one symbol per token. The same text always gives the same
        symbols. Braces hold pronunciations: {HH AH0 L OW1} or {ni3 hao3}, see `pronunciation`.
    kind "none": the text itself with its white space cleaned up, for a sub-word tokenizer.
    language, for phonemes: "en" through gruut's lexicon (its model guesses missing words), in IPA; "zh" through
        pypinyin, in initials and finals with tones, and English words among them as in "en", so that "你好 world" is
        "n- -i 2 h- -ao 3 | w ˈɚ l d .".

    Raises ValueError for an unknown kind or language, ImportError if a language's packages are missing (on first use).
    """

    KINDS = ("phonemes", "none")

    def __init__(self, kind: str = "phonemes", language: str = "en") -> None:
        if kind not in self.KINDS:
            raise ValueError(f"Unknown text frontend {kind!r}; choose one of {list(self.KINDS)}.")
        if kind == "phonemes" and language not in LANGUAGES:
            raise ValueError(
                f"The phoneme frontend speaks {list(LANGUAGES)}, not {language!r}; use kind='none' instead."
            )
        self.kind, self.language = kind, language

    def __call__(self, text: str) -> str:
        """One text -> its symbols. Warns about what cannot be spoken.

        Raises TypeError for anything but a string, ValueError if the text is empty, nothing in it can be spoken, or a
        pronunciation in braces is wrong.
        """
        if not isinstance(text, str):
            raise TypeError(f"Expected a text as str, got {type(text).__name__}.")
        if not text.strip():
            raise ValueError("The text is empty. Pass at least one word to speak.")
        if self.kind == "none":
            return self._plain(text)
        symbols, warning = self.read(text)
        if not symbols:
            name = _NAMES[self.language]
            raise ValueError(f"Nothing in {text!r} can be spoken by the {name} frontend. Pass {name} text.")
        if warning:
            warnings.warn(warning, stacklevel=2)
        return symbols

    def read(self, text: str) -> tuple[str, str]:
        """Part of a text -> its symbols, empty if nothing in it can be spoken, and a warning, empty if there is none.

        Raises ValueError for wrong pronunciations in braces.
        """
        if self.kind == "none":
            return " ".join(text.split()), ""
        name = _NAMES[self.language]
        words, dropped = _WORDS[self.language](*take_pronunciations(text, self.language))
        left_out = ", ".join(dropped)
        warning = f"The {name} frontend cannot speak and leaves out: {left_out}. Write them as {name} words."
        return join_words(list(words)), warning if dropped else ""

    @staticmethod
    def symbols(language: str = "en") -> list[str]:
        """All symbols that the phoneme frontend can emit: word boundary, punctuation, then phonemes, in fixed order.

        Every language begins with the English ones.
        """
        return symbol_inventory(language)

    def recognition_symbols(self, symbol_string: str) -> str:
        """What a recogniser should find in the speech: punctuation and stress dropped, boundaries between words only.

        For kind "none" the result is lower-case words separated by one space.
        """
        if self.kind == "none":
            letters = (c if c.isalnum() or unicodedata.combining(c) or c == "'" else " " for c in symbol_string.lower())
            return " ".join("".join(letters).split())
        return without_prosody(symbol_string)

    @staticmethod
    def _plain(text: str) -> str:
        if not any(character.isalnum() for character in text):
            raise ValueError(f"Nothing in {text!r} can be spoken. Pass text that contains words.")
        if has_pronunciations(text):
            warnings.warn("Pronunciations in braces need a phoneme frontend; here they are read as text.", stacklevel=3)
        return " ".join(text.split())


def phoneme_vocabulary_size(language: str = "en") -> int:
    """How many ids the tokenizer of a language has: vocab_size of an LM and ctc_vocab_size of a reward model for it."""
    return 2 + len(TextFrontend.symbols(language))


def build_phoneme_tokenizer(language: str = "en") -> Any:
    """The vocabulary of the phoneme frontend as a `PreTrainedTokenizerFast`, one id per symbol.

    Id 0 is `<pad>` and at the same time the CTC blank, id 1 `<unk>`, then follow `TextFrontend.symbols(language)`: a
    symbol of the English vocabulary has the same id in all. Language model text and CTC labels share it: unstressed
    vowels are symbols of their own.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = [PAD_SYMBOL, UNKNOWN_SYMBOL, *TextFrontend.symbols(language)]
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
