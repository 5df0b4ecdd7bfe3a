"""Voices as small files: a speaker embedding, a speaking rate and, where the reference is to be continued, a prompt."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .audio_features import MelSpec

FORMAT, VERSION = "e2e_tts_voice", "1"
SUFFIX = ".safetensors"
PROBE = "probe_"  # how the names of the probe's tensors begin
# The models of two files are taken for the same if they hear the same in one artificial clip, up to rounding.
MIN_PROBE_COSINE, MIN_PROBE_AGREEMENT = 0.98, 0.75
PROBE_TOKENS = 32


@dataclass
class Voice:
    """
    embedding (`torch.Tensor` of shape (S,)): what the speaker encoder makes of the reference; a unit vector.
    tokens_per_symbol (`float`): speaking rate in speech tokens per text token.
    prompt_ids (`torch.LongTensor` of shape (P,), *optional*): the reference as speech tokens. The decoder continues
        it, so timbre and recording carry on.
    prompt_mel (`torch.Tensor` of shape (P * frames_per_token, n_mels), *optional*): its mel, as the decoder makes it;
        there if and only if prompt_ids is.
    prompt_text_ids (`torch.LongTensor` of shape (N,), *optional*): what the reference says. The LM continues it too,
        which copies the manner of speaking.
    symbols (`str`, *optional*): the same as a string of the text frontend, for whoever reads the file.
    metadata (`dict[str, str]`): anything else worth keeping: a name, where the clip came from.
    """

    embedding: torch.Tensor
    tokens_per_symbol: float
    prompt_ids: torch.LongTensor | None = None
    prompt_mel: torch.Tensor | None = None
    prompt_text_ids: torch.LongTensor | None = None
    symbols: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.prompt_ids is None) != (self.prompt_mel is None):
            raise ValueError("A prompt needs both prompt_ids and prompt_mel; only one of them was given.")
        if self.prompt_text_ids is not None and self.prompt_ids is None:
            raise ValueError("prompt_text_ids without prompt_ids: the text of a prompt that is not there.")
        if not self.tokens_per_symbol > 0:
            raise ValueError(f"tokens_per_symbol must be positive, got {self.tokens_per_symbol}.")

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that are there, by the names of their fields."""
        names = ("embedding", "prompt_ids", "prompt_mel", "prompt_text_ids")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def save(self, path: str | Path, probe: Mapping[str, torch.Tensor]) -> None:
        """Writes a safetensors file. probe: what the model hears in its artificial clip, see `check_probe`.

        Raises ValueError for another suffix, a folder that does not exist, and metadata under a name in use.
        """
        path = Path(path)
        if path.suffix != SUFFIX:
            raise ValueError(f"A voice is saved to a {SUFFIX} file, got {path}.")
        if not path.parent.is_dir():
            raise ValueError(f"There is no folder {path.parent}; make it first.")
        own = {"format": FORMAT, "version": VERSION, "tokens_per_symbol": repr(float(self.tokens_per_symbol))}
        if self.symbols is not None:
            own["symbols"] = self.symbols
        if clash := sorted({*own, "symbols"} & set(self.metadata)):
            raise ValueError(f"The metadata must not use the names {clash}; rename these entries.")
        tensors = self.tensors() | {f"{PROBE}{name}": value for name, value in probe.items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(tensors, path, metadata={key: str(value) for key, value in self.metadata.items()} | own)

    @classmethod
    def load(cls, path: str | Path) -> tuple["Voice", dict[str, torch.Tensor]]:
        """The voice in a file and the probe that was saved with it.

        Raises ValueError for a file that is missing, is no safetensors file, or holds something else.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"There is no voice file {path}.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read as a voice: {error}") from error
        if metadata.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is a safetensors file, but not a voice: clone a voice and save it.")
        version = metadata.pop("version", None)
        if version != VERSION:
            raise ValueError(f"{path} is a voice of version {version}; this code reads version {VERSION}.")
        probe = {name.removeprefix(PROBE): tensors.pop(name) for name in list(tensors) if name.startswith(PROBE)}
        try:
            rate = float(metadata.pop("tokens_per_symbol"))
            voice = cls(tokens_per_symbol=rate, symbols=metadata.pop("symbols", None), metadata=metadata, **tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"The voice in {path} is damaged: {error}") from error
        return voice, probe


def check_probe(path: str | Path, saved: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError if a file was made with another speaker encoder or speech tokenizer: in this model its numbers
    would mean another voice, or noise.

    saved, own: what the model of the file and this one hear in the artificial clip, see `VoiceMixin.probe`. Whatever
    `own` holds is compared. Weights of another precision pass, other weights do not.
    """
    again = "Make it again with this model."
    for name, value in own.items():
        found = tuple(saved[name].shape) if name in saved else None
        if found != tuple(value.shape):
            raise ValueError(f"{path} is of another model: probe {name} {found}, here {tuple(value.shape)}. {again}")
    cosine = 1.0
    if "embedding" in own:
        cosine = float(nn.functional.cosine_similarity(saved["embedding"].float(), own["embedding"].float(), dim=0))
    if not cosine >= MIN_PROBE_COSINE:
        raise ValueError(
            f"{path} was made with another speaker encoder (similarity {cosine:.2f} on the probe clip, "
            f"{MIN_PROBE_COSINE} needed). {again}"
        )
    agreement = float((saved["ids"] == own["ids"]).float().mean()) if "ids" in own else 1.0
    if agreement < MIN_PROBE_AGREEMENT:
        raise ValueError(
            f"{path} was made with another speech tokenizer ({agreement:.0%} of the probe's tokens agree, "
            f"{MIN_PROBE_AGREEMENT:.0%} needed). {again}"
        )


@dataclass
class Condition:
    """What is known of the speaker: embedding (B, S), tokens_per_symbol (B,), and a voice with a prompt, or None."""

    embedding: torch.Tensor
    tokens_per_symbol: torch.Tensor
    prompt: Voice | None = None


class VoiceMixin:
    """The methods of `E2ETTSModel` that make, keep and find voices; it needs that class's modules and configuration."""

    @torch.no_grad()
    def embed_speaker(self, features: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Reference features (B, T_mel, n_mels) -> speaker embedding (B, S)."""
        return self.speaker(features, mask).embedding

    def set_voices(self, embeddings: dict[str, torch.Tensor], tokens_per_symbol: dict[str, float]) -> None:
        """Stores built-in voices: name -> speaker embedding (S,), and name -> speaking rate. The first is the default.

        They are kept in the order of their names: config.json is written with sorted keys, and row i of
        `voice_embeddings` is the voice that comes at place i there.
        """
        names = sorted(embeddings)
        self.config.voices = {name: float(tokens_per_symbol[name]) for name in names}
        self.config.default_voice = next(iter(embeddings))
        values = [nn.functional.normalize(embeddings[name].float(), dim=-1) for name in names]
        self.voice_embeddings = torch.stack(values).to(self.voice_embeddings)

    @torch.no_grad()
    def make_voice(
        self,
        features: torch.Tensor,
        mask: torch.Tensor | None = None,
        text_ids: torch.LongTensor | None = None,
        mel: torch.Tensor | None = None,
        prompt: bool = True,
        symbols: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> Voice:
        """Clones the voice of one clip.

        features (1, T_mel, n_mels) and mask (1, T_mel): the clip as the tokenizer reads it. text_ids (1, N), if known:
        what it says; the LM then continues the clip, and its speaking rate is known. prompt: whether the decoder
        continues it (always with text_ids). mel (1, T * frames_per_token, n_mels'): the clip as the decoder writes it,
        needed for a prompt where that is another mel than the tokenizer's. symbols, metadata: kept with the voice.
        """
        if features.shape[0] != 1:
            raise ValueError(f"A voice is made from one clip, got a batch of {features.shape[0]}.")
        if mask is not None:
            features = features[:, : int(mask.sum())]
        voice = Voice(
            self.embed_speaker(features)[0],
            float(self.config.default_tokens_per_symbol),
            symbols=symbols,
            metadata=dict(metadata or {}),
        )
        if prompt or text_ids is not None:
            encoded = self.encoder(features)
            voice.prompt_ids = encoded.ids[0]
            voice.prompt_mel = self._decoder_mel(features, mel, encoded.ids.shape[1])[0]
        if text_ids is not None:
            voice.prompt_text_ids = text_ids[0]
            voice.tokens_per_symbol = encoded.ids.shape[1] / text_ids.shape[1]
        return voice

    def _decoder_mel(self, features: torch.Tensor, mel: torch.Tensor | None, tokens: int) -> torch.Tensor:
        """The clip's mel (1, tokens * frames_per_token, n_mels) as the decoder writes it."""
        config = self.config.decoder_config
        if mel is None:
            difference = MelSpec.from_dict(config.mel).differences(MelSpec.from_dict(self.config.encoder_config.mel))
            if difference:
                raise ValueError(
                    f"The decoder's and the tokenizer's mel differ ({difference}): a prompt needs the clip in both; "
                    "pass mel, its features as the decoder writes them, or prompt=False."
                )
            return features
        shape = (1, tokens * config.frames_per_token, config.mel["num_mel_bins"])
        if mel.shape != shape:
            raise ValueError(f"{tokens} speech tokens need a mel of shape {shape}, got {tuple(mel.shape)}.")
        return mel

    @torch.no_grad()
    def probe(self, with_ids: bool = True) -> dict[str, torch.Tensor]:
        """What this model hears in an artificial clip: "embedding" (S,) of the speaker encoder and "ids" (T,) of the
        tokenizer. Files keep it to recognise the model that they belong to, see `check_probe`."""
        spec = MelSpec.from_dict(self.config.encoder_config.mel)
        frame = torch.arange(PROBE_TOKENS * self.config.encoder_config.frames_per_token, dtype=torch.float32)
        place = torch.arange(spec.num_mel_bins) / spec.num_mel_bins
        # Bands that rise and fall at different rates, between silence and full level.
        features = 3.0 * torch.sin(frame[:, None] * (0.15 + 0.1 * place) + 9.0 * place) - 5.0
        features = features[None].to(self.device, self.voice_embeddings.dtype)
        probe = {"embedding": self.embed_speaker(features)[0].float().cpu()}
        if with_ids:
            probe["ids"] = self.encoder(features).ids[0].cpu()
        return probe

    def save_voice(self, voice: Voice, path: str | Path) -> None:
        """Writes a voice to a .safetensors file, with what recognises the model that it was made with."""
        self.check_voice(voice)
        voice.save(path, self.probe(voice.prompt_ids is not None))

    def load_voice(self, path: str | Path) -> Voice:
        """The voice in a file that `save_voice` wrote. Raises ValueError for other files and for voices of models whose
        speaker encoder or, where it matters, tokenizer is another one."""
        voice, probe = Voice.load(path)
        check_probe(path, probe, self.probe(voice.prompt_ids is not None))
        self.check_voice(voice)
        return voice

    def check_voice(self, voice: Voice) -> None:
        """Raises ValueError, naming both values, for a voice whose shapes or ids do not fit this model."""
        config = self.config
        checks = [("embedding", tuple(voice.embedding.shape), (config.speaker_config.embedding_size,))]
        if voice.prompt_ids is not None:
            frames = voice.prompt_ids.shape[0] * config.decoder_config.frames_per_token
            checks.append(
                ("prompt_mel", tuple(voice.prompt_mel.shape), (frames, config.decoder_config.mel["num_mel_bins"]))
            )
        for name, found, needed in checks:
            if found != needed:
                raise ValueError(f"The voice's {name} has shape {found}, this model needs {needed}: clone it again.")
        for name, ids, size in (
            ("prompt_ids", voice.prompt_ids, config.lm_config.num_codes),
            ("prompt_text_ids", voice.prompt_text_ids, config.lm_config.text_config.vocab_size),
        ):
            if ids is not None and (ids.numel() == 0 or int(ids.min()) < 0 or int(ids.max()) >= size):
                raise ValueError(f"The voice's {name} must be some ids below {size} for this model: clone it again.")

    def _condition(self, voice: Any, batch: int) -> Condition:
        """A voice (a name, a path, a `Voice`, an embedding (B or 1, S)), or B names -> what generation needs."""
        rate = self.config.default_tokens_per_symbol
        prompt = None
        if isinstance(voice, torch.Tensor):
            embedding = voice
        elif isinstance(voice, str | Path) and str(voice) not in self.config.voices and Path(voice).suffix == SUFFIX:
            return self._condition(self.load_voice(voice), batch)
        elif voice is None or isinstance(voice, str | Path | list | tuple):
            embedding, rate = self._built_in(voice, batch)
        elif hasattr(voice, "prompt_ids"):
            # Not asked by class: a voice may come from another copy of this file, that of a checkpoint say.
            self.check_voice(voice)
            embedding, rate = voice.embedding[None], voice.tokens_per_symbol
            prompt = voice if voice.prompt_ids is not None else None
        else:
            raise ValueError(f"A voice is a name, a file, a Voice or an embedding, got {type(voice).__name__}.")
        width = self.voice_embeddings.shape[1]
        if embedding.shape not in ((width,), (1, width), (batch, width)):
            raise ValueError(
                f"A voice is an embedding ({width},), or one a text ({batch}, {width}), got {tuple(embedding.shape)}."
            )
        embedding = embedding.to(self.device, self.voice_embeddings.dtype).expand(batch, -1)
        return Condition(embedding, torch.as_tensor(rate, device=self.device).float().expand(batch), prompt)

    def _built_in(self, names: Any, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        known = list(self.config.voices)
        if names is None:
            if not known:
                raise ValueError("This model has no built-in voice: give a reference clip, a voice or an embedding.")
            names = self.config.voice_names[0]
        names = [str(names)] * batch if isinstance(names, str | Path) else list(names)
        unknown = sorted({str(name) for name in names} - set(known))
        if unknown:
            raise ValueError(
                f"Unknown voices {unknown}; this model has {known}, or give a voice file or a reference clip."
            )
        if len(names) != batch:
            raise ValueError(f"Got {len(names)} voices for {batch} texts; give one, or one a text.")
        embeddings = self.voice_embeddings[[known.index(name) for name in names]]
        return embeddings, torch.tensor([self.config.voices[name] for name in names])
