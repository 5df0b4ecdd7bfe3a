"""Text normalisers by name: what a reference and a transcript go through before their words are compared."""

import re
import string
from collections.abc import Callable

from .judge_interface import require

Normaliser = Callable[[str], str]

# What Seed-TTS-Eval removes beside ASCII punctuation: Chinese stops, brackets, dashes, quotes and full-width signs.
_CJK_PUNCTUATION = (
    "＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､\u3000、〃〈〉《》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿"
    "–—‘’‛“”„‟…‧﹏﹑﹔·！？｡。"
)
_REMOVED = str.maketrans("", "", (string.punctuation + _CJK_PUNCTUATION).replace("'", ""))


def _seed_tts_english() -> Normaliser:
    def normalise(text: str) -> str:
        # The benchmark would drop a curly apostrophe and keep a straight one; its own lists only have straight ones.
        return " ".join(text.replace("’", "'").translate(_REMOVED).lower().split())

    return normalise


def _seed_tts_mandarin() -> Normaliser:
    simplify = require("opencc", "opencc", "The normaliser seed-tts-zh").OpenCC("t2s").convert

    def normalise(text: str) -> str:
        return " ".join(re.sub(r"\s", "", simplify(text).translate(_REMOVED)))

    return normalise


def _english() -> Normaliser:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer({})


def _english_spelling() -> Normaliser:
    module = require("whisper_normalizer.english", "whisper-normalizer", "The normaliser english-spelling")
    return module.EnglishTextNormalizer()


def _characters() -> Normaliser:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    return BasicTextNormalizer(split_letters=True)


NORMALISERS: dict[str, Callable[[], Normaliser]] = {
    "english": _english,
    "english-spelling": _english_spelling,
    "characters": _characters,
    "seed-tts-en": _seed_tts_english,
    "seed-tts-zh": _seed_tts_mandarin,
}
