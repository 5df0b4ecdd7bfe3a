"""What the watermark of cloned speech can do: found in marked clips, not in others, after compression, at what price.

python -m e2e_tts.pipelines.evaluation.watermark_study --clips DIR --output DIR

Every clip of a folder is measured without the mark, marked as a whole, and marked as a stream of short chunks, each as
it is, after lossy formats at 16 kHz, at half the rate, and with noise. Says how many are called marked, with the
lowest and highest confidence; how far below the speech the mark lies (dB); and, where speechmos is installed, what the
mark changes in DNSMOS. Writes report.json and report.md.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from tqdm.auto import tqdm

from e2e_tts.trainers.command_line import CommandParser

from ..audio_writer import FORMATS, encode, writable_formats
from ..watermark import THRESHOLD, Watermark, load_watermark
from .audio_files import list_recordings, read_recording
from .figures import mean_figure
from .judge_interface import JUDGE_SAMPLING_RATE, QualityJudge, prepare_waveform
from .judges import load_quality_judge
from .markdown import markdown_table
from .results_folder import write_text

RATE = JUDGE_SAMPLING_RATE
CHUNK_SECONDS = 0.24  # the shortest chunks that speech is streamed in
NOISE_DB = -20.0  # of the speech
UNMARKED, MARKED, STREAMED = "unmarked", "marked", "marked as a stream"

Attack = Callable[[np.ndarray], tuple[np.ndarray, int]]
"""What may happen to speech: samples at `RATE` -> samples and their rate."""


def compressed(audio_format: str) -> Attack:
    """Through a lossy format and back."""

    def attack(samples: np.ndarray) -> tuple[np.ndarray, int]:
        return read_recording(encode(samples, RATE, audio_format))

    return attack


def halved(samples: np.ndarray) -> tuple[np.ndarray, int]:
    """As a telephone has it."""
    return soxr.resample(samples, RATE, RATE // 2), RATE // 2


def noisy(samples: np.ndarray) -> tuple[np.ndarray, int]:
    """With white noise."""
    level = np.sqrt(np.mean(samples**2)) * 10 ** (NOISE_DB / 20)
    noise = np.random.default_rng(len(samples)).normal(0.0, level, len(samples))
    return (samples + noise).astype(np.float32), RATE


def attacks() -> dict[str, Attack]:
    lossy = [name for name in ("mp3", "opus", "ogg") if name in writable_formats()]
    return {
        "as it is": lambda samples: (samples, RATE),
        **{f"{name} ({FORMATS[name].subtype})": compressed(name) for name in lossy},
        f"{RATE // 2} Hz": halved,
        f"noise at {NOISE_DB:g} dB": noisy,
    }


def mark_stream(mark: Watermark, samples: np.ndarray) -> np.ndarray:
    stream, size = mark.stream(RATE), round(CHUNK_SECONDS * RATE)
    return np.concatenate([stream.push(samples[start : start + size]) for start in range(0, len(samples), size)])


def measure(clips: Sequence[np.ndarray], mark: Watermark, judge: QualityJudge | None) -> dict[str, Any]:
    """The report on clips (samples,) at 16 kHz, figures as plain values."""
    confidences: dict[str, dict[str, list[float]]] = {name: {} for name in attacks()}
    changes: dict[str, list[float]] = {}
    for clip in tqdm(clips, unit="clip"):
        versions = {UNMARKED: clip, MARKED: mark.apply(clip, RATE), STREAMED: mark_stream(mark, clip)}
        for name, attack in attacks().items():
            for version, samples in versions.items():
                found = mark.detect(*attack(samples)).confidence
                confidences[name].setdefault(version, []).append(found)
        added = versions[MARKED] - clip
        changes.setdefault("speech over mark, dB", []).append(float(10 * np.log10((clip**2).sum() / (added**2).sum())))
        if judge is not None:
            before, after = (judge.score(samples, RATE) for samples in (clip, versions[MARKED]))
            for scale, value in after.items():
                changes.setdefault(f"DNSMOS {scale}, marked less unmarked", []).append(value - before[scale])
    figures = {name: vars(mean_figure(values)) for name, values in changes.items()}
    return {"clips": len(clips), "threshold": THRESHOLD, "confidences": confidences, "changes": figures}


def to_markdown(report: dict[str, Any]) -> str:
    def cell(values: Sequence[float]) -> str:
        called = sum(value >= report["threshold"] for value in values)
        return f"{called} of {len(values)} ({min(values):.2f} to {max(values):.2f})"

    versions = (UNMARKED, MARKED, STREAMED)
    rows = [[name, *(cell(found[version]) for version in versions)] for name, found in report["confidences"].items()]
    changes = [
        [name, f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"]
        for name, figure in report["changes"].items()
    ]
    lines = markdown_table(["called marked (confidence)", *versions], rows)
    return "\n".join([*lines, "", *markdown_table(["change", "mean over clips"], changes)]) + "\n"


def read_clips(folder: Path, limit: int | None) -> list[np.ndarray]:
    """The recordings of a folder at 16 kHz. Raises ValueError if there is none, or for one that cannot be read."""
    clips = [prepare_waveform(*read_recording(path)) for path in list_recordings(folder)[:limit]]
    if not clips:
        raise ValueError(f"{folder} has no recordings.")
    return clips


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(
        prog="python -m e2e_tts.pipelines.evaluation.watermark_study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--clips", type=Path, required=True, help="folder of recordings, or of any system's speech")
    parser.add_argument("--limit", type=int, help="only the first so many")
    parser.add_argument("--output", type=Path, required=True, help="folder for report.json and report.md")
    options = parser.parse_args(arguments)
    try:
        mark, clips = load_watermark(), read_clips(options.clips, options.limit)
        try:
            judge = load_quality_judge()
        except ImportError as error:
            print(f"without DNSMOS: {error}", file=sys.stderr)
            judge = None
        report = measure(clips, mark, judge)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    options.output.mkdir(parents=True, exist_ok=True)
    text = to_markdown(report)
    write_text(options.output / "report.json", json.dumps(report, indent=1) + "\n")
    write_text(options.output / "report.md", text)
    print(text)


if __name__ == "__main__":
    main()
