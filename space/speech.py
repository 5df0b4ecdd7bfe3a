"""Requests to a checkpoint, and the speech that comes back in chunks."""

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import soundfile
from files import save_audio, save_picture
from pictures import draw_speech

MAX_CHARACTERS = 400
# Pauses between sentences, as many tokens long, so that mel and tokens keep to one time axis in the picture.
PAUSE_TOKENS = 8
# A first chunk that no sentence fills: everything is decoded at once, as well as the checkpoint can.
AT_ONCE = {"first": 1_000_000}


@dataclass(frozen=True)
class Request:
    """What to speak and how. `settings` are those of the pipeline's sampling and decoding."""

    text: str
    voice: str | None = None
    reference: str | None = None
    transcript: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("text", self.text), ("transcript", self.transcript)):
            if len(value) > MAX_CHARACTERS:
                raise ValueError(
                    f"The {name} has {len(value)} characters, more than the {MAX_CHARACTERS} allowed; shorten it."
                )
        if self.transcript and self.reference is None:
            raise ValueError("There is a transcript but no reference clip; add the clip.")

    def voice_settings(self, name: str, voices: list[str]) -> dict[str, Any]:
        """The voice as settings of the pipeline. Raises ValueError where checkpoint `name` has others only.

        The pipeline also takes files as voices. Here a voice comes from anywhere, so it must be a built-in one.
        """
        if self.reference is not None:
            return {"reference_audio": self.reference, "reference_text": self.transcript or None}
        if self.voice is not None and self.voice not in voices:
            raise ValueError(f"{name} has no voice {self.voice!r}; it has {', '.join(voices) or 'none: add a clip'}.")
        return {"voice": self.voice}


@dataclass(frozen=True)
class Speech:
    """Speech so far: audio (samples,), mel (T_mel, n_mels) and codes (T, D), both NaN in pauses; mel settings; whether
    the audio carries an inaudible mark."""

    audio: np.ndarray
    mel: np.ndarray
    codes: np.ndarray
    spec: dict
    watermarked: bool = False

    @property
    def rate(self) -> int:
        return self.spec["sampling_rate"]

    def recording(self) -> str:
        """The path of a wav file with all audio."""
        return save_audio(self.rate, to_int16(self.audio))

    def picture(self) -> str:
        """The path of a png file with mel and tokens."""
        return save_picture(draw_speech(self.mel, self.codes, self.spec))


def speak(name: str, pipe: Any, request: Request, streamed: bool) -> Iterator[tuple[np.ndarray, Speech]]:
    """Yields each chunk of audio (samples,) and all speech until then; not `streamed`, a chunk is a sentence.

    Raises what the pipeline raises: ValueError about the input, RuntimeError where speech fails.
    """
    config = pipe.model.config
    spec, frames = config.decoder_config.mel, config.decoder_config.frames_per_token
    speech = Speech(
        np.zeros(0, np.float32),
        np.zeros((0, spec["num_mel_bins"]), np.float32),
        np.zeros((0, len(config.decoder_config.levels)), np.float32),
        spec,
    )
    chunks = pipe.stream(
        request.text,
        chunking=None if streamed else AT_ONCE,
        pause_seconds=PAUSE_TOKENS / config.encoder_config.token_rate,
        **request.voice_settings(name, list(config.voices)),
        **request.settings,
    )
    for chunk in chunks:
        if "ids" in chunk:
            mel, codes = chunk["mel"], pipe.model.lm.quantizer.codebook[chunk["ids"]].float().cpu().numpy()
        else:
            mel = np.full((PAUSE_TOKENS * frames, speech.mel.shape[1]), np.nan, np.float32)
            codes = np.full((PAUSE_TOKENS, speech.codes.shape[1]), np.nan, np.float32)
        speech = replace(
            speech,
            audio=np.concatenate([speech.audio, chunk["audio"]]),
            mel=np.concatenate([speech.mel, mel]),
            codes=np.concatenate([speech.codes, codes]),
            # Checkpoints whose own code is older do not mark.
            watermarked=chunk.get("watermarked", False),
        )
        yield chunk["audio"], speech


def left_out(pipe: Any, text: str) -> list[str]:
    """What the text frontend warns about, such as words it cannot speak. Raises its ValueError."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        pipe.processor.text_frontend(text)
    return [str(note.message) for note in notes]


def to_int16(audio: np.ndarray) -> np.ndarray:
    """Samples in -1 .. 1 as 16-bit ones. Given floats, Gradio would raise every utterance to full scale."""
    return (audio.clip(-1.0, 1.0) * 32767).astype(np.int16)


def to_wav(audio: np.ndarray, rate: int) -> bytes:
    """Samples as the bytes of a 16-bit wav file, the form in which Gradio takes chunks without a file for each."""
    file = io.BytesIO()
    soundfile.write(file, to_int16(audio), rate, format="WAV", subtype="PCM_16")
    return file.getvalue()
