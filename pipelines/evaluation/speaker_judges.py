"""Speaker judges: Resemblyzer, which a package ships, and any x-vector model of transformers."""

import numpy as np

from .judge_interface import (
    JUDGE_SAMPLING_RATE,
    NoSpeechError,
    hub_version,
    package_versions,
    prepare_waveform,
    require,
)


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Cosine, in [-1, 1], of two vectors of shape (dimensions,). Raises ValueError if one of them is zero."""
    norms = float(np.linalg.norm(first)) * float(np.linalg.norm(second))
    if not norms:
        raise ValueError("A speaker vector is zero: it has no direction to compare.")
    return float(np.clip(np.dot(first, second) / norms, -1.0, 1.0))


def check_speech(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """`prepare_waveform`, and NoSpeechError for silence: speaker encoders divide by the energy."""
    waveform = prepare_waveform(waveform, sampling_rate)
    if not waveform.any():
        raise NoSpeechError("The clip is silent: it has no speaker.")
    return waveform


class ResemblyzerJudge:
    """Resemblyzer's speaker encoder on the CPU: vectors of 256 dimensions and unit length."""

    name = "resemblyzer"

    def __init__(self) -> None:
        self._package = require("resemblyzer", "resemblyzer", "The speaker judge resemblyzer")
        self._encoder = self._package.VoiceEncoder("cpu", verbose=False)
        self.version = package_versions("resemblyzer")

    def embed(self, waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
        """Maps a mono waveform of shape (samples,) to (256,), float32. Raises NoSpeechError where no voice is heard."""
        speech = self._package.preprocess_wav(check_speech(waveform, sampling_rate))
        if not speech.size:
            raise NoSpeechError("No speech was found in the clip: it has no speaker.")
        return np.asarray(self._encoder.embed_utterance(speech), dtype=np.float32)


class TransformersSpeakerJudge:
    """Any x-vector model of transformers, by its id on the Hub or a local folder.

    A model without a trained speaker head, such as microsoft/wavlm-large itself, is refused: transformers would give it
    a random one. `device` is what torch takes; by default an accelerator where there is one.
    """

    def __init__(self, name: str, *, device: str | None = None) -> None:
        import torch
        from transformers import AutoFeatureExtractor, AutoModelForAudioXVector

        self.name = name
        try:
            self._extractor = AutoFeatureExtractor.from_pretrained(name)
            model, loading = AutoModelForAudioXVector.from_pretrained(name, output_loading_info=True)
        except OSError as error:
            raise OSError(
                f"Could not load the speaker judge {name}: the Hub may be out of reach, or it holds no such model. "
                "Give a local folder, or use resemblyzer."
            ) from error
        # The classes that training told apart play no part in the vectors.
        missing = sorted(key for key in loading["missing_keys"] if not key.startswith("objective."))
        if missing:
            raise ValueError(
                f"{name} has no trained speaker head ({', '.join(missing[:3])} are missing); give a model that was "
                "trained to verify speakers."
            )
        if device is None:
            device = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
        self._torch, self._model = torch, model.eval().to(device)
        self.version = hub_version(name, model.config)

    def embed(self, waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
        """Maps a mono waveform of shape (samples,) to a float32 vector of length 1. Raises NoSpeechError for silence,
        ValueError for a clip that the model refuses."""
        waveform = check_speech(waveform, sampling_rate)
        inputs = self._extractor(waveform, sampling_rate=JUDGE_SAMPLING_RATE, return_tensors="pt")
        with self._torch.no_grad():
            try:
                vector = self._model(**inputs.to(self._model.device)).embeddings[0]
            except RuntimeError as error:
                seconds = waveform.size / JUDGE_SAMPLING_RATE
                raise ValueError(f"The judge {self.name} cannot embed a clip of {seconds:.2f} s: {error}") from error
        return self._torch.nn.functional.normalize(vector.float(), dim=-1).cpu().numpy()
