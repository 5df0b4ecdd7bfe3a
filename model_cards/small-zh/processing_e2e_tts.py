"""One object for both inputs of the models: text to ids, reference recordings to features."""

from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin

from .auto_classes import register
from .configuration_e2e_tts import E2ETTSConfig
from .feature_extraction_e2e_tts import TextToSpeechFeatureExtractor
from .text_frontend import TextFrontend, build_phoneme_tokenizer, phoneme_vocabulary_size

# Without a phoneme vocabulary the recogniser spells UTF-8 bytes; 0 is the CTC blank, a byte b has label b + 1.
_BYTE_LABELS = 257
IGNORED_LABEL = -100


class TextToSpeechProcessor(ProcessorMixin):
    r"""
    Text frontend, text tokenizer and feature extractor of a text-to-speech model.

    feature_extractor (`TextToSpeechFeatureExtractor`): for reference recordings.
    tokenizer (`PreTrainedTokenizerFast`): `build_phoneme_tokenizer(language)`, or a sub-word one with frontend "none".
    frontend (`str`): "phonemes" or "none"; see `TextFrontend`.
    max_text_tokens (`int`): longer texts are refused.
    language (`str`): of the phonemes, "en" (English) or "zh" (Mandarin with English words).
    """

    def __init__(
        self,
        feature_extractor: Any = None,
        tokenizer: Any = None,
        frontend: str = "phonemes",
        max_text_tokens: int = 400,
        language: str = "en",
    ) -> None:
        super().__init__(feature_extractor, tokenizer)
        self.frontend = frontend
        self.max_text_tokens = max_text_tokens
        self.language = language
        if tokenizer.pad_token_id is None:
            raise ValueError("The tokenizer has no pad token; set tokenizer.pad_token first.")
        self.text_frontend = TextFrontend(frontend, language)
        if frontend == "phonemes" and len(tokenizer) < (needed := phoneme_vocabulary_size(language)):
            raise ValueError(
                f"The tokenizer has {len(tokenizer)} symbols, but the language {language!r} needs {needed}: take "
                "build_phoneme_tokenizer(language)."
            )

    @classmethod
    def build(
        cls, mel: dict | None = None, frames_per_token: int = 2, language: str = "en", **kwargs: Any
    ) -> "TextToSpeechProcessor":
        """A processor for the phonemes of a language and the given features (fields of `MelSpec`)."""
        extractor = TextToSpeechFeatureExtractor(mel=mel, frames_per_token=frames_per_token)
        return cls(extractor, build_phoneme_tokenizer(language), language=language, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["text_ids", "text_mask", "ctc_labels", "reference_features", "reference_mask"]

    @property
    def ctc_vocab_size(self) -> int:
        """Size of the recognition alphabet, the blank (0) included."""
        return len(self.tokenizer) if self.frontend == "phonemes" else _BYTE_LABELS

    def __call__(
        self,
        text: str | list[str] | None = None,
        audio: Any = None,
        sampling_rate: int | None = None,
        return_tensors: str | None = "pt",
        is_symbols: bool = False,
        padding: bool | str = True,
    ) -> BatchFeature:
        """Texts and reference recordings -> model inputs.

        text: one text or a list of B texts; with `is_symbols` they already are what the frontend returns.
        audio: one clip, or a list of B clips, at `sampling_rate` Hz (see `TextToSpeechFeatureExtractor`); a single
        clip serves all texts.

        Returns text_ids (B, N) padded on the right, text_mask (B, N) bool, and ctc_labels (B, N') padded with -100:
        what a recogniser should hear. With audio also reference_features (B, T_mel, num_mel_bins) and reference_mask
        (B, T_mel) bool.

        Raises ValueError for an empty, unspeakable or too long text, refused audio, or differing batch sizes.
        """
        if text is None and audio is None:
            raise ValueError("Pass text, audio or both.")
        if return_tensors not in (None, "pt"):
            raise ValueError(f"The processor returns PyTorch tensors ('pt'), not {return_tensors!r}.")
        if padding not in (True, "longest"):
            raise ValueError(f"Texts are padded to the longest of them (padding=True), not {padding!r}.")
        data: dict[str, torch.Tensor] = {}
        if text is not None:
            symbols = self._symbols(text, is_symbols)
            ids = self._encode(symbols)
            data["text_ids"] = _pad(ids, self.tokenizer.pad_token_id)
            data["text_mask"] = _pad([[1] * len(row) for row in ids], 0).bool()
            data["ctc_labels"] = self.ctc_labels(symbols, is_symbols=True)[0]
        if audio is not None:
            features = self.feature_extractor(audio, sampling_rate=sampling_rate)
            clips, mask = features["input_features"], features["feature_mask"]
            batch = len(clips) if text is None else len(data["text_ids"])
            if len(clips) not in (1, batch):
                raise ValueError(f"Got {batch} texts and {len(clips)} clips; pass one clip a text, or one for all.")
            if len(clips) != batch:
                clips, mask = clips.repeat(batch, 1, 1), mask.repeat(batch, 1)
            data["reference_features"], data["reference_mask"] = clips, mask
        return BatchFeature(data)

    def ctc_labels(self, texts: str | list[str], is_symbols: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """What a recogniser should read in the speech of B texts.

        Returns label ids (B, N), padded with -100, and their lengths (B,). Label 0 is the CTC blank and never occurs.
        """
        spoken = [self.text_frontend.recognition_symbols(text) for text in self._symbols(texts, is_symbols)]
        if self.frontend == "phonemes":
            ids = self._encode(spoken)
        else:
            ids = [[byte + 1 for byte in text.encode()] for text in spoken]
        return _pad(ids, IGNORED_LABEL), torch.tensor([len(row) for row in ids])

    def ctc_decode(self, ids: torch.Tensor) -> list[str]:
        """The recognised strings of the best CTC path. ids (B, T): repeats are merged, then blanks (0) dropped."""
        texts = []
        for row in ids:
            labels = [label for label in torch.unique_consecutive(row).tolist() if label > 0]
            if self.frontend == "phonemes":
                texts.append(" ".join(self.tokenizer.convert_ids_to_tokens(labels)))
            else:
                texts.append(bytes(label - 1 for label in labels).decode(errors="replace"))
        return texts

    def _symbols(self, texts: str | list[str], is_symbols: bool) -> list[str]:
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("Got an empty list of texts.")
        return texts if is_symbols else [self.text_frontend(text) for text in texts]

    def _encode(self, symbols: list[str]) -> list[list[int]]:
        """Symbol strings -> ids, in which no symbol is unknown."""
        rows = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in symbols]
        for index, (row, text) in enumerate(zip(rows, symbols, strict=True)):
            if len(row) > self.max_text_tokens:
                raise ValueError(
                    f"Text {index} has {len(row)} tokens, more than the {self.max_text_tokens} allowed: split it, "
                    "best at the ends of sentences, or let speak_long or stream of the pipeline do so."
                )
            if self.frontend == "phonemes" and self.tokenizer.unk_token_id in row:
                known = self.tokenizer.get_vocab()
                unknown = sorted({symbol for symbol in text.split() if symbol not in known})
                raise ValueError(f"Text {index} has symbols that the tokenizer does not know: {unknown}.")
        return rows


def _pad(rows: list[list[int]], value: int) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (width - len(row)) for row in rows], dtype=torch.long)


register(E2ETTSConfig, AutoFeatureExtractor=TextToSpeechFeatureExtractor, AutoProcessor=TextToSpeechProcessor)
