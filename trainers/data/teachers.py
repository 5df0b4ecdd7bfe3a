"""Synthesizers whose speech, with its exact transcript, teaches a small model more words than its recordings hold."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile
import soxr

from e2e_tts.modeling.text_frontend import TextFrontend

SAMPLING_RATE = 16000
TIMEOUT_SECONDS = 30
# Kokoro speaks in 24 kHz and begins and ends with up to half a second of near silence.
KOKORO_RATE = 24000
KOKORO_SILENCE = 0.01
KOKORO_MARGINS = (0.05, 0.1)  # seconds kept before the first and after the last sound
KOKORO_INITIALS = {"en": "ab", "zh": "z"}  # a voice's first letter is its language: American, British, Mandarin
# Kokoro writes diphthongs and affricates as one letter each.
KOKORO_LETTERS = {
    **{"oʊ": "O", "eɪ": "A", "aɪ": "I", "aʊ": "W", "ɔɪ": "Y"},
    **{"d͡ʒ": "ʤ", "t͡ʃ": "ʧ", "ˈɚ": "ˈɜɹ", "ˌɚ": "ˌɜɹ", "ɚ": "əɹ"},
}
MISAKI = "Kokoro's Mandarin phonemes come from the package misaki. Install it with: pip install 'e2e-tts[kokoro]'"


class Teacher(Protocol):
    """A synthesizer with named voices of one language."""

    name: str
    language: str
    voices: list[str]

    def speak(self, voice: str, sentence: str) -> np.ndarray:
        """Speech of one sentence: float32 mono samples (L,) at 16 kHz. Raises RuntimeError where it fails."""
        ...


def at_16_khz(samples: np.ndarray, rate: int) -> np.ndarray:
    """Samples (L,) at another rate -> float32 (L',) at 16 kHz, never louder than full scale."""
    resampled = samples if rate == SAMPLING_RATE else soxr.resample(samples, rate, SAMPLING_RATE, quality="VHQ")
    return np.clip(resampled, -1, 1).astype(np.float32)


class Flite:
    """Debian's flite: English, about 40 times faster than speech. Raises FileNotFoundError if it is absent."""

    name, language = "flite", "en"

    def __init__(self) -> None:
        program = shutil.which("flite")
        if program is None:
            raise FileNotFoundError(
                "The program `flite` is missing. Install it, for example with `apt-get install flite`."
            )
        self.program = program
        listing = subprocess.run([program, "-lv"], capture_output=True, text=True, timeout=TIMEOUT_SECONDS).stdout
        self.voices = listing.partition(":")[2].split()

    def speak(self, voice: str, sentence: str) -> np.ndarray:
        """See `Teacher.speak`."""
        with tempfile.TemporaryDirectory() as scratch:
            wav = Path(scratch) / "speech.wav"
            command = [self.program, "-voice", voice, "-t", sentence, "-o", str(wav)]
            try:
                # A list and no shell: the sentence is one argument, whatever it contains.
                result = subprocess.run(
                    command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_SECONDS
                )
            except (subprocess.TimeoutExpired, ValueError) as error:
                raise RuntimeError(f"flite did not finish: {error}") from error
            if result.returncode or not wav.is_file():
                raise RuntimeError(f"flite failed with code {result.returncode}: {result.stderr.strip()[:200]}")
            return at_16_khz(*soundfile.read(wav, dtype="float32"))


class Kokoro:
    """Kokoro-82M by ONNX: neural voices, on one core about twice as fast as speech.

    language: "en", its American (af_, am_) and British (bf_, bm_) voices by the phonemes of this package, or "zh", its
    Mandarin ones (zf_, zm_) by those of misaki. folder: holds what the Hub repository
    onnx-community/Kokoro-82M-v1.0-ONNX does: an .onnx file, alone or in onnx/, `voices/NAME.bin`, and `tokenizer.json`
    (or a `config.json` with the entry vocab).

    Raises FileNotFoundError for what is not there, ImportError without onnxruntime or what the phonemes need.
    """

    name = "kokoro"

    def __init__(self, folder: Path, language: str = "en") -> None:
        self.language = language
        models = sorted([*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")])
        voices = {path.stem: path for path in sorted(folder.glob("voices/*.bin"))}
        voices = {name: path for name, path in voices.items() if name[0] in KOKORO_INITIALS[language]}
        if not models or not voices:
            patterns = " or ".join(f"voices/{initial}*.bin" for initial in KOKORO_INITIALS[language])
            missing = "no .onnx file" if not models else f"no voice of language {language} ({patterns})"
            raise FileNotFoundError(
                f"{folder} has {missing}. It should hold what onnx-community/Kokoro-82M-v1.0-ONNX has."
            )
        self.vocabulary = _kokoro_vocabulary(folder)
        self.phonemize = _english_phonemes() if language == "en" else _mandarin_phonemes()
        onnxruntime: Any = import_module("onnxruntime")
        settings = onnxruntime.SessionOptions()
        # onnxruntime does not read the variable itself, and would take every core from what runs beside it.
        settings.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
        self.session = onnxruntime.InferenceSession(models[0], settings, providers=["CPUExecutionProvider"])
        self.tokens_input = self.session.get_inputs()[0].name  # "tokens" or "input_ids", by who exported it
        # One style (256) for every number of phonemes.
        self.styles = {name: np.fromfile(path, dtype=np.float32).reshape(-1, 256) for name, path in voices.items()}
        self.voices = list(voices)

    def speak(self, voice: str, sentence: str) -> np.ndarray:
        """See `Teacher.speak`."""
        try:
            phonemes = self.phonemize(sentence)
        except ValueError as error:
            raise RuntimeError(f"kokoro cannot read it: {error}") from error
        ids = [self.vocabulary[symbol] for symbol in phonemes if symbol in self.vocabulary]
        styles = self.styles[voice]
        if not 0 < len(ids) < len(styles):
            raise RuntimeError(f"kokoro speaks 1 to {len(styles) - 1} phonemes, the sentence has {len(ids)}")
        inputs = {
            self.tokens_input: np.array([[0, *ids, 0]], dtype=np.int64),
            "style": styles[len(ids) - 1][None],
            "speed": np.ones(1, dtype=np.float32),
        }
        samples = self.session.run(None, inputs)[0].ravel()
        sounding = np.flatnonzero(np.abs(samples) > KOKORO_SILENCE)
        if not len(sounding):
            raise RuntimeError("kokoro made silence")
        before, after = (int(seconds * KOKORO_RATE) for seconds in KOKORO_MARGINS)
        return at_16_khz(samples[max(0, sounding[0] - before) : sounding[-1] + after], KOKORO_RATE)


def kokoro_letters(symbols: str) -> str:
    """Symbols of the English frontend, separated by spaces -> phonemes as Kokoro's English voices know them."""
    letters = "".join(" " if symbol == "|" else symbol for symbol in symbols.split())
    for ours, theirs in KOKORO_LETTERS.items():
        letters = letters.replace(ours, theirs)
    return letters


def _english_phonemes() -> Callable[[str], str]:
    frontend = TextFrontend()
    return lambda sentence: kokoro_letters(frontend(sentence))


def _mandarin_phonemes() -> Callable[[str], str]:
    try:
        phonemize = import_module("misaki.zh").ZHG2P()
    except ImportError as error:
        raise ImportError(f"{MISAKI} ({error})") from error
    return lambda sentence: phonemize(sentence)[0]


def _kokoro_vocabulary(folder: Path) -> dict[str, int]:
    """Phoneme symbol -> number, as the model was trained."""
    for name in ("tokenizer.json", "config.json"):
        if (path := folder / name).is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            if vocabulary := content.get("vocab") or content.get("model", {}).get("vocab"):
                return dict(vocabulary)
    raise FileNotFoundError(f"{folder} has neither a tokenizer.json nor a config.json with Kokoro's phonemes (vocab).")
