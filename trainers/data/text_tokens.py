"""Text as the models read it: one function for the check before training and for the tokens of training."""

import json
import warnings
from functools import lru_cache
from pathlib import Path

from transformers import AutoTokenizer

from e2e_tts.modeling.feature_extraction_e2e_tts import TextToSpeechFeatureExtractor
from e2e_tts.modeling.processing_e2e_tts import TextToSpeechProcessor

PHONEMES = "phonemes"
# What --tokenizer calls the phoneme frontends -> their language.
PHONEME_LANGUAGES = {PHONEMES: "en", "phonemes-zh": "zh"}
# A text that needs everything that a language needs, to find out whether a processor works.
PROBES = {"en": "one", "zh": "一, one, 1"}
TOKENIZER_HELP = f"{PHONEMES} (English), phonemes-zh (Mandarin with English words; pip install 'e2e-tts[zh]')"


@lru_cache(maxsize=2)
def load_processor(tokenizer: str = PHONEMES) -> TextToSpeechProcessor:
    """The processor that turns text into tokens.

    tokenizer: "phonemes" for the English phoneme frontend, "phonemes-zh" for the Mandarin one; else a folder or Hub
    name of a released model of this project, or of any text tokenizer (of the LLM that the LM starts from), which then
    reads the plain text.

    Raises OSError or ValueError if there is no such tokenizer.
    """
    if tokenizer in PHONEME_LANGUAGES:
        return TextToSpeechProcessor.build(language=PHONEME_LANGUAGES[tokenizer])
    saved = Path(tokenizer) / "processor_config.json"
    if saved.is_file() and json.loads(saved.read_text()).get("processor_class") == TextToSpeechProcessor.__name__:
        return TextToSpeechProcessor.from_pretrained(tokenizer)
    return TextToSpeechProcessor(
        TextToSpeechFeatureExtractor(), AutoTokenizer.from_pretrained(tokenizer), frontend="none"
    )


def text_tokens(processor: TextToSpeechProcessor, text: str) -> tuple[list[int], list[int]]:
    """One text -> text tokens for the LM, and the labels that a recogniser should find.

    Raises ValueError if the text is empty, too long, or holds anything that the tokenizer would leave out.
    """
    with warnings.catch_warnings():
        # At inference words that cannot be spoken are left out with a warning; in training the recording has them.
        warnings.simplefilter("error", UserWarning)
        try:
            symbols = processor.text_frontend(text)
        except UserWarning as dropped:
            raise ValueError(str(dropped)) from dropped
    ids = processor(text=symbols, is_symbols=True)["text_ids"][0].tolist()
    unknown = processor.tokenizer.unk_token_id
    if unknown is not None and unknown in ids:
        raise ValueError(f"The tokenizer has no token for part of {text!r}.")
    return ids, processor.ctc_labels(symbols, is_symbols=True)[0][0].tolist()
