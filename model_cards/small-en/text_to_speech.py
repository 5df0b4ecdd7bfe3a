"""The text-to-speech pipeline. The file travels with checkpoints, so it imports nothing of this package."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import Pipeline
from transformers.dynamic_module_utils import custom_object_save

TASK = "text-to-speech"
SILENCE_PEAK = 1e-4


class TextToSpeechPipeline(Pipeline):
    """Texts to speech, in a built-in voice or in that of a reference recording.

    ```python
    speak = pipeline("text-to-speech", model=folder, trust_remote_code=True)
    speech = speak("Hello, world!", voice="anna", seed=0)
    soundfile.write("hello.wav", speech["audio"], speech["sampling_rate"])
    ```

    A text gives {"audio": float32 array (samples,), "sampling_rate": Hz}; a list gives a list, `batch_size` at a time.
    These settings may be given to the constructor and to each call:

    voice (`str`): a built-in voice; by default the first one.
    reference_audio: a recording whose voice is taken instead: a path, {"array", "sampling_rate"}, or samples (array,
        tensor or list) together with `sampling_rate` (Hz).
    reference_text (`str`): what the recording says; given, the speech continues the recording, which copies the manner
        of speaking too.
    speed (`float`): 0.25 to 4; 2 speaks twice as fast.
    seed (`int`): makes a call repeatable (for the same texts and batch_size).
    num_steps (`int`), guidance (`float`): solver steps and guidance of the acoustic decoder.
    temperature, top_k, top_p: sampling of the speech tokens; temperature 0 is greedy.

    Raises TypeError for unknown settings, ValueError for texts, recordings and settings that cannot be used, and
    RuntimeError where speech fails: no end, silence, values that are not finite.
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
        """One text, a list, or an iterable of texts; settings as in the class."""
        if isinstance(inputs, list | tuple):
            if not inputs:
                raise ValueError("Got an empty list of texts.")
            inputs = list(inputs)
        for text in inputs if isinstance(inputs, list) else [inputs]:
            if isinstance(text, bytes | dict | int | float | None):
                raise ValueError(f"Expected a text (str) or a list of texts, got {type(text).__name__}.")
        return super().__call__(inputs, *args, **kwargs)

    def _sanitize_parameters(
        self,
        voice: str | None = None,
        reference_audio: Any = None,
        sampling_rate: int | None = None,
        reference_text: str | None = None,
        speed: float | None = None,
        seed: int | None = None,
        num_steps: int | None = None,
        guidance: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        **unknown: Any,
    ) -> tuple[dict, dict, dict]:
        numbers = {
            "speed": (speed, 0.25, 4.0),
            "num_steps": (num_steps, 1, 1000),
            "guidance": (guidance, 0.0, 100.0),
            "temperature": (temperature, 0.0, 100.0),
            "top_k": (top_k, 1, math.inf),
            "top_p": (top_p, 1e-6, 1.0),
        }
        if unknown:
            names = ["voice", "reference_audio", "sampling_rate", "reference_text", "seed", *numbers, "batch_size"]
            raise TypeError(f"Unknown settings {sorted(unknown)}; this pipeline knows {', '.join(names)}.")
        settings: dict[str, Any] = {} if seed is None else {"seed": int(seed)}
        for name, (value, low, high) in numbers.items():
            if value is None:
                continue
            if not low <= value <= high:
                raise ValueError(f"{name} must lie between {low} and {high}, got {value}.")
            settings[name] = value
        if voice is not None:
            if reference_audio is not None:
                raise ValueError("Give either a voice or reference_audio, not both.")
            if voice not in self.model.config.voices:
                raise ValueError(f"Unknown voice {voice!r}; this model has {sorted(self.model.config.voices)}.")
            settings["voice"] = voice
        if reference_audio is None and (reference_text is not None or sampling_rate is not None):
            raise ValueError("reference_text and sampling_rate describe a reference_audio, which was not given.")
        if reference_audio is not None:
            settings |= self._reference(reference_audio, sampling_rate, reference_text)
        return {}, settings, {}

    def _reference(self, audio: Any, sampling_rate: int | None, text: str | None) -> dict[str, torch.Tensor]:
        if isinstance(audio, str | Path):
            audio, sampling_rate = read_audio(audio)
        elif isinstance(audio, dict):
            missing = {"array", "sampling_rate"} - set(audio)
            if missing:
                raise ValueError(f"A reference_audio dictionary lacks {sorted(missing)}.")
            audio, sampling_rate = audio["array"], audio["sampling_rate"]
        features = self.processor(audio=audio, sampling_rate=sampling_rate)
        if len(features["reference_features"]) != 1:
            raise ValueError("Give one reference recording, not several.")
        if text is not None:
            features["prompt_text_ids"] = self.processor(text=text)["text_ids"]
        return dict(features)

    def preprocess(self, inputs: str) -> dict[str, torch.Tensor]:
        return dict(self.processor(text=inputs))

    def _forward(self, model_inputs: dict[str, torch.Tensor], **settings: Any) -> dict[str, torch.Tensor]:
        settings = self._ensure_tensor_on_device(settings, device=self.device)
        output = self.model.generate(**model_inputs, **settings)
        return {name: output[name] for name in ("audio", "audio_lengths")}

    def postprocess(self, model_outputs: dict[str, torch.Tensor]) -> dict[str, Any]:
        length = int(model_outputs["audio_lengths"].reshape(-1)[0])
        audio = model_outputs["audio"].reshape(-1)[:length].float().cpu()
        if not bool(torch.isfinite(audio).all()):
            raise RuntimeError("The model gave samples that are not finite; try another seed, or load it in float32.")
        if audio.numel() == 0 or float(audio.abs().max()) < SILENCE_PEAK:
            raise RuntimeError("The model gave silence; try another seed or another text.")
        return {"audio": audio.numpy(), "sampling_rate": self.model.config.sampling_rate}

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Saves model, processor and this file; `pipeline("text-to-speech", model=save_directory,
        trust_remote_code=True)` then gives this pipeline. kwargs go to the model's save_pretrained."""
        folder = Path(save_directory)
        self.model.save_pretrained(folder, **kwargs)
        self.processor.save_pretrained(folder)
        custom_object_save(self, folder)
        path = folder / "config.json"
        config = json.loads(path.read_text())
        implementation = f"{Path(__file__).stem}.{type(self).__name__}"
        config["custom_pipelines"] = {TASK: {"impl": implementation, "pt": ["AutoModel"]}}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def read_audio(path: str | Path) -> tuple[Any, int]:
    """Samples (samples,) or (samples, channels) and their rate in Hz. Raises ValueError for what cannot be read."""
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("Reading a recording from a path needs soundfile: pip install soundfile") from error
    if not Path(path).is_file():
        raise ValueError(f"There is no recording {path}.")
    try:
        return soundfile.read(path, dtype="float32")
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{path} cannot be read as audio: {error}") from error
