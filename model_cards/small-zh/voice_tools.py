"""What the pipeline does beside speaking texts: voices from recordings, voice conversion, speech tokens.

The file travels with checkpoints, so it imports nothing of this package but its neighbours in the folder.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from .audio_files import as_samples
from .speech_tokens import SpeechTokens

# More than a quarter of the tokens of an artificial clip differ only between tokenizers, not between precisions.
MIN_PROBE_AGREEMENT = 0.75


class VoiceTools:
    """Methods of `TextToSpeechPipeline`, which has the model and the processor that they need.

    Recordings (`audio`) are a path, {"array", "sampling_rate"}, or samples together with `sampling_rate` in Hz; they
    are resampled as needed. Voices are the name of a built-in one, the path of a saved one, or what `clone` returned.
    """

    def clone(
        self,
        audio: Any,
        sampling_rate: int | None = None,
        text: str | None = None,
        transcribe: bool = False,
        prompt: bool = True,
        metadata: dict[str, str] | None = None,
    ) -> Any:
        """The voice of a recording, for `voice=` of every call and for `save_voice`.

        text: what the recording says. The LM then continues the recording, which copies the manner of speaking, and the
        speaking rate is known. transcribe: let the reward model's recogniser find the text instead, as symbols of the
        text frontend. Without either the recording gives the timbre only, whatever its language: to the LM by the
        speaker embedding, to the decoder also, unless `prompt` is false, by continuing its sound. metadata: strings
        that are kept with the voice.

        Raises ValueError for recordings and texts that cannot be used, and where nothing is recognised.
        """
        if text is not None and transcribe:
            raise ValueError("Give the text of the recording, or let it be transcribed, not both.")
        samples, sampling_rate = as_samples(audio, sampling_rate)
        features = self._features(samples, sampling_rate)
        symbols = None
        if transcribe:
            symbols = self._recognise(features)
        elif text is not None:
            symbols = self.processor.text_frontend(text)
        text_ids = None if symbols is None else self._text_ids(symbols)
        mel = self._decoder_mel(samples, sampling_rate, features) if prompt or text_ids is not None else None
        return self.model.make_voice(
            features, text_ids=text_ids, mel=mel, prompt=prompt, symbols=symbols, metadata=metadata
        )

    def save_voice(self, voice: Any, path: str | Path) -> None:
        """Writes what `clone` returned to a .safetensors file. Raises ValueError for another suffix or no folder."""
        if not hasattr(voice, "embedding"):
            raise ValueError(f"Only voices made by clone can be saved, got {voice!r}.")
        self.model.save_voice(voice, path)

    def load_voice(self, path: str | Path) -> Any:
        """The voice in a file. Raises ValueError for other files, and for voices of other models."""
        voice = self.model.load_voice(path)
        if voice.prompt_text_ids is not None and voice.symbols is not None:
            # Symbols mean the same in every vocabulary that has them, ids do not.
            voice.prompt_text_ids = self._text_ids(voice.symbols)[0]
        return voice

    def convert(
        self,
        audio: Any,
        voice: Any = None,
        sampling_rate: int | None = None,
        seed: int | None = None,
        num_steps: int | None = None,
        guidance: float | None = None,
        decoder_temperature: float | None = None,
        watermark: bool | None = None,
    ) -> dict[str, Any]:
        """A recording in another voice, its words and timing kept: what a call gives.

        voice: by default the default voice. seed (default 0), num_steps, guidance, decoder_temperature: as in a call.
        watermark: by default the speech is marked, whatever the voice, since it passes for what somebody has said.
        """
        samples, sampling_rate = as_samples(audio, sampling_rate)
        ids = self._encode(self._features(samples, sampling_rate))
        return self._speak_ids(
            ids,
            voice=voice,
            seed=seed,
            num_steps=num_steps,
            guidance=guidance,
            decoder_temperature=decoder_temperature,
            watermark=watermark,
        )

    def tokenize(self, audio: Any, sampling_rate: int | None = None) -> SpeechTokens:
        """A recording as speech tokens, which `SpeechTokens.save` keeps in a file."""
        samples, sampling_rate = as_samples(audio, sampling_rate)
        encoder = self.model.config.encoder_config
        return SpeechTokens(
            self._encode(self._features(samples, sampling_rate))[0].cpu().numpy(),
            levels=list(encoder.levels),
            token_rate=encoder.token_rate,
            probe=self.model.probe()["ids"].numpy(),
        )

    def detokenize(
        self,
        tokens: Any,
        voice: Any = None,
        seed: int | None = None,
        num_steps: int | None = None,
        guidance: float | None = None,
        decoder_temperature: float | None = None,
        watermark: bool | None = None,
    ) -> dict[str, Any]:
        """Speech tokens in a voice: what a call gives.

        tokens: what `tokenize` returned, the path of a file of them, or ids (T,). The rest as in `convert`.

        Raises ValueError for tokens that this model's tokenizer cannot have made.
        """
        if isinstance(tokens, str | Path):
            tokens = SpeechTokens.load(tokens)
        elif not hasattr(tokens, "ids"):
            tokens = SpeechTokens(tokens.cpu().numpy() if isinstance(tokens, torch.Tensor) else tokens)
        self._check_tokens(tokens)
        ids = torch.from_numpy(tokens.ids)[None].to(self.device)
        return self._speak_ids(
            ids,
            voice=voice,
            seed=seed,
            num_steps=num_steps,
            guidance=guidance,
            decoder_temperature=decoder_temperature,
            watermark=watermark,
        )

    def _features(self, samples: Any, sampling_rate: int | None) -> torch.Tensor:
        features = self.processor(audio=samples, sampling_rate=sampling_rate)["reference_features"]
        if len(features) != 1:
            raise ValueError("Give one recording, not several.")
        return features.to(self.device, self.model.dtype)

    def _decoder_mel(self, samples: Any, sampling_rate: int | None, features: torch.Tensor) -> torch.Tensor | None:
        """The recording's mel as the decoder writes it; None where it is the tokenizer's."""
        spec, config = self.processor.feature_extractor.mel, self.model.config.decoder_config
        if config.mel == spec:
            return None
        # The same extractor with the decoder's settings: its resampling and its refusals hold here too.
        kind = type(self.processor.feature_extractor)
        extractor = kind(mel=config.mel, frames_per_token=config.frames_per_token)
        mel = extractor(samples, sampling_rate=sampling_rate)["input_features"].to(features)
        frames = features.shape[1] // self.processor.feature_extractor.frames_per_token * config.frames_per_token
        # Resampling to two rates may round to a token more or less.
        floor = float(np.log(config.mel["log_floor"]))
        return torch.nn.functional.pad(mel, (0, 0, 0, max(0, frames - mel.shape[1])), value=floor)[:, :frames]

    def _text_ids(self, symbols: str) -> torch.Tensor:
        return self.processor(text=symbols, is_symbols=True)["text_ids"].to(self.device)

    @torch.no_grad()
    def _recognise(self, features: torch.Tensor) -> str:
        reward = self.model.reward
        if reward.ctc_head is None:
            raise ValueError("This model's reward model has no recogniser, so it cannot transcribe; give the text.")
        best = reward(self.model.encoder(features).codes).ctc_logits.argmax(dim=-1)
        symbols = self.processor.ctc_decode(best)[0].strip()
        if not symbols:
            raise ValueError("Nothing was recognised in the recording; give its text, or none.")
        return symbols

    @torch.no_grad()
    def _encode(self, features: torch.Tensor) -> torch.Tensor:
        return self.model.encoder(features).ids

    def _check_tokens(self, tokens: SpeechTokens) -> None:
        encoder = self.model.config.encoder_config
        for name, found, own in (
            ("levels", tokens.levels, list(encoder.levels)),
            ("token_rate", tokens.token_rate, encoder.token_rate),
        ):
            if found is not None and found != own:
                raise ValueError(f"These tokens have {name} {found}, this model's have {own}: tokenize again with it.")
        if tokens.probe is not None:
            own = self.model.probe()["ids"].numpy()
            agreement = float((tokens.probe == own).mean()) if tokens.probe.shape == own.shape else 0.0
            if agreement < MIN_PROBE_AGREEMENT:
                raise ValueError(
                    f"These tokens come from another tokenizer ({agreement:.0%} of a probe clip's tokens agree): "
                    "tokenize again with this model."
                )

    def _speak_ids(self, ids: torch.Tensor, **settings: Any) -> dict[str, Any]:
        _, settings, _ = self._sanitize_parameters(**settings)
        names = ("voice", "seed", "num_steps", "guidance", "decoder_temperature")
        settings = {name: value for name, value in self._forward_params.items() if name in names} | settings
        mark = self.find_watermark(settings.get("voice"), settings.pop("watermark", None), is_recorded=True)
        # As long as recordings may be, speech is decoded at once; longer in chunks, in memory that does not grow.
        longest = self.processor.feature_extractor.max_seconds * self.model.config.encoder_config.token_rate
        chunking = {} if ids.shape[1] > longest else None
        output = self.model.decode(ids, chunking=chunking, **settings)
        return self.postprocess({**output, "watermarked": torch.tensor([mark is not None])})
