"""The text-to-speech pipeline.

The file travels with checkpoints, so it imports nothing of this package but its neighbours in the folder.
"""

import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from itertools import chain
from numbers import Real
from pathlib import Path
from types import GeneratorType
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import Pipeline
from transformers.dynamic_module_utils import custom_object_save

from .long_text import PAUSE_SECONDS, fit_parts, is_long, named_part, speak_long, split_pieces, split_text
from .voice_tools import VoiceTools
from .watermark import Watermark, choose_watermark, load_watermark

TASK = "text-to-speech"
SILENCE_PEAK = 1e-4
VOICE_SUFFIX = ".safetensors"
# The lowest and the highest value of settings that are numbers.
RANGES = {
    "speed": (0.25, 4.0),
    "num_steps": (1, 1000),
    "guidance": (0.0, 100.0),
    "decoder_temperature": (0.0, 100.0),
    "temperature": (0.0, 100.0),
    "top_k": (1, math.inf),
    "top_p": (1e-6, 1.0),
    "text_guidance": (0.0, 100.0),
    "candidates": (1, 64),
    "seed": (0, 2**63 - 1),
}
WHOLE_NUMBERS = ("num_steps", "top_k", "candidates", "seed")


class TextToSpeechPipeline(VoiceTools, Pipeline):
    """Texts to speech, in a built-in voice or in that of a reference recording.

    `speak_long` takes texts of any length, `stream` speaks while it reads them; `clone`, `convert`, `tokenize` and
    `detokenize` are in `VoiceTools`.

    ```python
    speak = pipeline("text-to-speech", model=folder, trust_remote_code=True)
    speech = speak("Hello, world!", voice="anna", seed=0)
    soundfile.write("hello.wav", speech["audio"], speech["sampling_rate"])
    ```

    A text gives {"audio": float32 array (samples,), "sampling_rate": Hz, "watermarked": whether the audio carries an
    inaudible mark, see below}; a list gives a list, `batch_size` at a time.
    These settings may be given to the constructor and to each call:

    voice: a built-in voice by name, a saved one by the path of its .safetensors file, or what `clone` returned; by
        default the checkpoint's default voice.
    reference_audio: a recording whose voice is taken instead: a path, {"array", "sampling_rate"}, or samples (array,
        tensor or list) together with `sampling_rate` (Hz).
    reference_text (`str`): what the recording says; given, the speech continues the recording, which copies the manner
        of speaking too. transcribe (`bool`): let the model find it out. See `clone`.
    speed (`float`): 0.25 to 4; 2 speaks twice as fast.
    style: the manner of speaking, where the model has learned it: {"pitch": "high", "effort": 2} or "pitch=high,
        effort=2", relative to what is usual for the voice. "rate" ("slow", "fast") is a coarser speed. An unknown style
        or level is refused with those that there are.
    seed (`int`): makes a call repeatable (for the same texts and batch_size).
    num_steps (`int`), guidance (`float`): solver steps and guidance of the acoustic decoder. decoder_temperature
        (`float`): scale of its noise; below 1 speech is calmer. By default as the checkpoint says.
    temperature, top_k, top_p: sampling of the speech tokens; temperature 0 is greedy.
    text_guidance (`float`): above 1 the speech tokens keep closer to the text; 1 is off.
    candidates (`int`): how many times to draw the speech tokens; the reward model keeps those that it understands best.
        By default as the checkpoint says; `stream` by default draws once, since its first sound would wait for all.
    watermark (`bool`): True marks all speech inaudibly, False none. By default speech in the voice of a recording is
        marked, and what `convert` and `detokenize` make; where the package `resemble-perth` is missing it is not, and a
        warning says so, once.

    Raises TypeError for unknown settings, ValueError for texts, recordings and settings that cannot be used,
    ImportError for watermark=True where the package is missing, and RuntimeError where speech fails: no end, silence,
    values that are not finite.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    # The model samples itself; generation settings of transformers' generate have no meaning for it.
    _pipeline_calls_generate = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not hasattr(self.model, "embed_speaker") or self.processor is None:
            raise ValueError(
                "This pipeline needs a complete text-to-speech model and its processor, got "
                f"{type(self.model).__name__} and {type(self.processor).__name__}; instead of the folder of one "
                "module, give the folder above it."
            )
        # Batches hold text only. With both parts of the processor set, transformers would compare padding sides.
        self.feature_extractor = None

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """One text, a list, or an iterable of texts; settings as in the class. Generators and PyTorch's data sets are
        read while they are spoken, other iterables before."""
        if not isinstance(inputs, str | GeneratorType | Dataset):
            # transformers would take what it does not know for one text.
            if isinstance(inputs, bytes | dict) or not isinstance(inputs, Iterable):
                raise ValueError(f"Expected a text (str) or texts, got {type(inputs).__name__}.")
            inputs = list(inputs)
            if not inputs:
                raise ValueError("Got an empty list of texts.")
            for text in inputs:
                if not isinstance(text, str):
                    raise ValueError(f"Expected texts (str), got {type(text).__name__} among them.")
        return super().__call__(inputs, *args, **kwargs)

    def speak_long(
        self,
        text: str,
        progress: Callable[[int, int, str], None] | None = None,
        pause_seconds: float = PAUSE_SECONDS,
        **settings: Any,
    ) -> dict[str, Any]:
        """A text of any length, a paragraph or a book, sentence by sentence with pauses between them -> what a call
        gives. progress(number, count, part) is called before each part; settings and errors as in a call, but a
        sentence that fails is tried again."""
        return speak_long(self, text, progress, pause_seconds, **settings)

    def stream(
        self,
        text: str | Iterable[str],
        chunking: Any = None,
        pause_seconds: float = PAUSE_SECONDS,
        progress: Callable[[int, int | None, str], None] | None = None,
        **settings: Any,
    ) -> Iterator[dict[str, Any]]:
        """Speech in chunks, the first one before the text is spoken to its end, in memory for one sentence.

        text: of any length, or pieces of it as they come, from a language model say; of these the first clause is
        spoken as soon as it is complete, then sentences. Sentences follow each other with a pause.
        chunking: fields of `e2e_tts.modeling.Chunking`, {"first": 6} for instance makes the first sound come earlier.
        progress(number, count, part): called before each part; count is None for a text that comes in pieces, and
        changes where a part has more tokens than the processor takes, or nothing to speak.
        settings: as in a call.

        Yields {"audio": float32 (samples,), "sampling_rate": Hz, "watermarked": as in a call, "text": the part that is
        being spoken, "ids": the chunk's speech tokens (T,), "mel": (frames, n_mels), both as before the watermark};
        pauses have no ids and no mel. A watermark waits for no later chunk; see `WatermarkStream`.

        Raises at once where the text is one string: for settings that cannot be used and for an unspeakable text. The
        iterator raises what a call raises, after the chunks that were good; a part in which nothing can be spoken is
        left out with a warning.
        """
        _, settings, _ = self._sanitize_parameters(**settings)
        settings = {**self._forward_params, **settings}
        mark = self.find_watermark(settings.get("voice"), settings.pop("watermark", None))
        if isinstance(text, str):
            # A text with nothing to speak goes to the frontend as it is, whose message says what is wrong.
            whole = split_text(text) or [text]
            parts = fit_parts(self, whole, len(whole))
            first = next(parts)
            inputs = self._ensure_tensor_on_device(self.preprocess(first[2]), device=self.device)
            # Nothing is drawn before the first chunk is asked for: this only says what cannot be used.
            self.model.generate_stream(**inputs, chunking=chunking, **{**settings, "seed": 0}).close()
            parts = chain([first], parts)
        else:
            parts = fit_parts(self, split_pieces(text), None)
        return self._stream_parts(parts, chunking, pause_seconds, progress, settings, mark)

    def _stream_parts(
        self,
        parts: Iterator[tuple[int, int | None, str]],
        chunking: Any,
        pause_seconds: float,
        progress: Callable[[int, int | None, str], None] | None,
        settings: dict[str, Any],
        mark: Watermark | None,
    ) -> Iterator[dict[str, Any]]:
        rate = self.model.config.sampling_rate
        for number, count, part in parts:
            if progress is not None:
                progress(number, count, part)
            if number > 1 and pause_seconds > 0:
                pause = np.zeros(round(pause_seconds * rate), np.float32)
                yield {"audio": pause, "sampling_rate": rate, "watermarked": mark is not None, "text": part}
            with named_part(part, number, count):
                yield from self._stream_part(part, chunking, settings, mark)

    def _stream_part(
        self, part: str, chunking: Any, settings: dict[str, Any], mark: Watermark | None
    ) -> Iterator[dict[str, Any]]:
        rate = self.model.config.sampling_rate
        stream = None if mark is None else mark.stream(rate)
        inputs = self._ensure_tensor_on_device(self.preprocess(part), device=self.device)
        peak = 0.0
        # Closed when the reader leaves: the LM stops then, and does not wait for the garbage collector.
        with closing(self.model.generate_stream(**inputs, chunking=chunking, **settings)) as chunks:
            for chunk in chunks:
                audio = checked_audio(chunk["audio"][0])
                peak = max(peak, float(np.abs(audio).max()))
                yield {
                    "audio": audio if stream is None else stream.push(audio),
                    "sampling_rate": rate,
                    "watermarked": stream is not None,
                    "text": part,
                    "ids": chunk["ids"][0].cpu().numpy(),
                    "mel": chunk["mel"][0].float().cpu().numpy(),
                }
        check_audible(peak)

    def _sanitize_parameters(
        self,
        voice: Any = None,
        reference_audio: Any = None,
        sampling_rate: int | None = None,
        reference_text: str | None = None,
        transcribe: bool = False,
        speed: float | None = None,
        style: Mapping[str, str | int] | str | None = None,
        seed: int | None = None,
        num_steps: int | None = None,
        guidance: float | None = None,
        decoder_temperature: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        text_guidance: float | None = None,
        candidates: int | None = None,
        watermark: bool | None = None,
        **unknown: Any,
    ) -> tuple[dict, dict, dict]:
        numbers = {
            "speed": speed,
            "num_steps": num_steps,
            "guidance": guidance,
            "decoder_temperature": decoder_temperature,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "text_guidance": text_guidance,
            "candidates": candidates,
            "seed": seed,
        }
        if unknown:
            reference = ("reference_audio", "sampling_rate", "reference_text", "transcribe")
            names = ["voice", *reference, "style", *numbers, "watermark", "batch_size"]
            raise TypeError(f"Unknown settings {sorted(unknown)}; this pipeline knows {', '.join(names)}.")
        settings: dict[str, Any] = {
            name: check_number(name, value) for name, value in numbers.items() if value is not None
        }
        if style:
            self.model.resolve_style(style)  # refuses what the model does not have before anything is spoken
            settings["style"] = style
        if watermark is not None:
            if not isinstance(watermark, bool):
                raise ValueError(f"watermark is True, False or None, got {watermark!r}.")
            settings["watermark"] = watermark
            # A mark that is asked for and cannot be had is refused before anything is spoken.
            choose_watermark(watermark, is_cloned=False)
        if voice is not None:
            if reference_audio is not None:
                raise ValueError("Give either a voice or reference_audio, not both.")
            settings["voice"] = self.find_voice(voice)
        if reference_audio is None and (reference_text is not None or sampling_rate is not None or transcribe):
            raise ValueError(
                "reference_text, transcribe and sampling_rate are about a reference_audio, which was not given."
            )
        if reference_audio is not None:
            settings["voice"] = self.clone(reference_audio, sampling_rate, reference_text, transcribe)
        return {}, settings, {}

    def find_voice(self, voice: Any) -> Any:
        """A built-in voice's name as it is, a file as the voice in it. Raises ValueError for what is neither."""
        known = sorted(self.model.config.voices)
        if str(voice) in known or hasattr(voice, "embedding"):
            return voice
        if not isinstance(voice, str | Path):
            raise ValueError(f"A voice is a name, a file or what clone returned, got {type(voice).__name__}.")
        if Path(voice).suffix == VOICE_SUFFIX:
            return self.load_voice(voice)
        raise ValueError(f"Unknown voice {voice!r}; this model has {known}, or give the {VOICE_SUFFIX} file of one.")

    def preprocess(self, inputs: str) -> dict[str, torch.Tensor]:
        if is_long(inputs):
            warnings.warn(
                f"A text of {len(inputs)} characters is spoken in one go, longer than what checkpoints have learned: "
                "words may be skipped or repeated. speak_long and stream of this pipeline go sentence by sentence.",
                stacklevel=2,
            )
        return dict(self.processor(text=inputs))

    def find_watermark(self, voice: Any, wanted: bool | None = None, is_recorded: bool = False) -> Watermark | None:
        """The mark that speech in a voice will carry, None for none. is_recorded: the speech follows a recording.

        wanted: the setting `watermark`, by default the constructor's. Warns and raises as that setting says.
        """
        wanted = self._forward_params.get("watermark") if wanted is None else wanted
        # A built-in voice is a name; whatever else is a voice was made of a clip.
        return choose_watermark(wanted, is_cloned=is_recorded or hasattr(voice, "embedding"))

    def _forward(
        self, model_inputs: dict[str, torch.Tensor], watermark: bool | None = None, **settings: Any
    ) -> dict[str, torch.Tensor]:
        settings = self._ensure_tensor_on_device(settings, device=self.device)
        mark = self.find_watermark(settings.get("voice"), watermark)
        output = self.model.generate(**model_inputs, **settings)
        # One entry an utterance, as batches are taken apart.
        watermarked = torch.full_like(output["audio_lengths"], mark is not None, dtype=torch.bool)
        return {**{name: output[name] for name in ("audio", "audio_lengths")}, "watermarked": watermarked}

    def postprocess(self, model_outputs: dict[str, torch.Tensor]) -> dict[str, Any]:
        length = int(model_outputs["audio_lengths"].reshape(-1)[0])
        audio = checked_audio(model_outputs["audio"].reshape(-1)[:length])
        check_audible(float(np.abs(audio).max(initial=0.0)))
        rate = self.model.config.sampling_rate
        watermarked = bool(model_outputs["watermarked"].any())
        if watermarked:
            audio = load_watermark().apply(audio, rate)
        return {"audio": audio, "sampling_rate": rate, "watermarked": watermarked}

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Saves model, processor and this file; `pipeline("text-to-speech", model=save_directory,
        trust_remote_code=True)` then gives this pipeline. kwargs go to the model's save_pretrained.

        Raises ValueError for push_to_hub and variant, before anything is written: `push_to_hub` of the pipeline pushes
        all of it.
        """
        if kwargs.pop("push_to_hub", False) or kwargs.get("variant") is not None:
            raise ValueError("Neither push_to_hub nor variant is known here: call push_to_hub(name) of the pipeline.")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        # First, because the processor's abbreviations.py must replace the pipeline's, which needs this package.
        custom_object_save(self, folder)
        self.model.save_pretrained(folder, **kwargs)
        self.processor.save_pretrained(folder)
        path = folder / "config.json"
        config = json.loads(path.read_text())
        implementation = f"{Path(__file__).stem}.{type(self).__name__}"
        config["custom_pipelines"] = {TASK: {"impl": implementation, "pt": ["AutoModel"]}}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def check_number(name: str, value: Any) -> float:
    """The value of a setting in `RANGES` as int or float. Raises ValueError for what is none, or beyond its range."""
    is_whole = name in WHOLE_NUMBERS
    if not isinstance(value, Real) or isinstance(value, bool) or (is_whole and not float(value).is_integer()):
        raise ValueError(f"{name} is a {'whole ' if is_whole else ''}number, got {value!r}.")
    low, high = RANGES[name]
    if not low <= value <= high:
        raise ValueError(f"{name} must lie between {low} and {high}, got {value}.")
    return int(value) if is_whole else float(value)


def checked_audio(audio: torch.Tensor) -> np.ndarray:
    """Samples (samples,) as float32. Raises RuntimeError for samples that are not finite."""
    audio = audio.float().cpu()
    if not bool(torch.isfinite(audio).all()):
        raise RuntimeError("The model gave samples that are not finite; try another seed, or load it in float32.")
    return audio.numpy()


def check_audible(peak: float) -> None:
    """Raises RuntimeError for speech whose largest absolute sample is next to nothing."""
    if peak < SILENCE_PEAK:
        raise RuntimeError("The model gave silence; try another seed or another text.")
