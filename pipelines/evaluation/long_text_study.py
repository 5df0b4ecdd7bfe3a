"""Whether a long text is spoken whole, in order, in one voice and in bounded memory.

python -m e2e_tts.pipelines.evaluation.long_text_study --model model_cards/small-en --text book.txt --output DIR

The text is spoken part by part, as `e2e-tts speak` does. A recogniser hears every part: it is in its place if what was
heard is nearer to its own text than to that of any other part, which tells lost, repeated and exchanged sentences from
words that are merely said badly. A speaker judge compares the parts of the first and of the last third with the mean of
the middle third: a voice that drifts is far from it at the ends. Memory is that of the whole process, after a
tenth of the parts and at the end. Writes parts/NUMBER.wav, report.json and report.md.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import psutil
from tqdm.auto import tqdm

from e2e_tts.pipelines import load_pipeline
from e2e_tts.pipelines.long_text import speak_parts, split_text
from e2e_tts.trainers.command_line import CommandParser

from .audio_files import list_recordings, read_recording, write_speech
from .failures import FAILURES, SILENCE, FailureLimits
from .figures import Figure, mean_figure, ratio_figure
from .judge_interface import Recogniser, SpeakerJudge
from .judges import AUTO, load_normaliser, load_recogniser, load_speaker_judge
from .markdown import markdown_table
from .normalisers import Normaliser
from .options import STUDY_NORMALISERS, add_language_options, check_language, choose_normaliser, parse_settings
from .report import error_rate_unit
from .results_folder import write_text
from .scoring import score_transcripts
from .speaker_judges import cosine

logger = logging.getLogger(__name__)

FEWEST_PARTS = 10
MEBIBYTE = 2**20


@dataclass
class LongTextReport:
    """words: of the texts as normalised, of Mandarin characters. in_place: share of the parts that are. failures: parts
    by kind. voice_first, voice_last: similarity of the first and the last third's parts to the middle. memory: of the
    process in MiB, after a tenth and at the end."""

    model: str
    judges: list[str]
    language: str
    normaliser: str
    words: int
    parts: int
    seconds: float
    real_time_factor: float
    in_place: Figure
    wer: Figure
    failures: dict[str, list[int]]
    voice_first: Figure
    voice_last: Figure
    memory_early: float
    memory_end: float

    def to_markdown(self) -> str:
        def cell(figure: Figure, scale: float = 1.0, digits: int = 3) -> str:
            value, low, high = (f"{scale * number:.{digits}f}" for number in (figure.value, figure.low, figure.high))
            return f"{value} [{low}, {high}]"

        failed = ", ".join(f"{kind}: {len(parts)}" for kind, parts in self.failures.items()) or "none"
        unit = error_rate_unit(self.normaliser)
        counted = "characters" if unit == "CER" else "words"
        rows = [
            [f"{counted}, parts", f"{self.words}, {self.parts}"],
            ["minutes of speech, real-time factor", f"{self.seconds / 60:.1f}, {self.real_time_factor:.2f}"],
            ["parts in their place, %", cell(self.in_place, 100, 1)],
            [f"{unit}, %", cell(self.wer, 100, 1)],
            ["failures", failed],
            ["similarity to the middle third: first third", cell(self.voice_first)],
            ["similarity to the middle third: last third", cell(self.voice_last)],
            ["memory after a tenth, at the end, MiB", f"{self.memory_early:.0f}, {self.memory_end:.0f}"],
        ]
        head = f"{self.model}; judges: {', '.join(self.judges)}; normaliser: {self.normaliser}"
        return "\n".join([head, "", *markdown_table(["", ""], rows)]) + "\n"


def nearest_parts(texts: Sequence[str], heard: Sequence[str], normalise: Normaliser) -> list[int]:
    """For each transcript the number of the text that it is nearest to, in edits a word; -1 where nothing was heard."""
    wanted = [normalise(text) for text in texts]
    nearest = []
    for transcript in heard:
        said = normalise(transcript)
        if not said:
            nearest.append(-1)
            continue
        rates = [jiwer.wer(text, said) if text else np.inf for text in wanted]
        nearest.append(int(np.argmin(rates)))
    return nearest


def thirds(vectors: Sequence[np.ndarray]) -> tuple[list[float], list[float]]:
    """Cosines of the first and of the last third of some vectors with the mean of the middle third."""
    size = len(vectors) // 3
    middle = np.mean(vectors[size : len(vectors) - size], axis=0)
    return tuple([cosine(vector, middle) for vector in part] for part in (vectors[:size], vectors[-size:]))


def run_study(
    pipe: Callable[..., dict[str, Any]],
    text: str,
    output: str | Path,
    recogniser: Recogniser,
    speaker_judge: SpeakerJudge,
    model: str = "",
    language: str = "en",
    normaliser: str | None = None,
    **settings: Any,
) -> LongTextReport:
    """Speaks and judges; settings are the pipeline's. normaliser: by default the language's.

    Raises ValueError for a text of too few parts, a checkpoint of another language and a language without a normaliser,
    FileExistsError for an output that has parts already.
    """
    check_language(getattr(pipe, "processor", None), language)
    normaliser = choose_normaliser(language, normaliser, STUDY_NORMALISERS)
    count, output = len(split_text(text)), Path(output)
    if count < FEWEST_PARTS:
        raise ValueError(f"The text has {count} parts, at least {FEWEST_PARTS} are needed: give a longer one.")
    normalise, limits, process = load_normaliser(normaliser), FailureLimits(), psutil.Process()
    parts, lengths, memory, flags, start = [], [], [], [], time.perf_counter()
    if (output / "parts").exists():
        # Wavs of another text would be taken for parts of this one.
        raise FileExistsError(f"{output / 'parts'} exists, of another run: remove it or choose another output.")
    (output / "parts").mkdir(parents=True)
    for number, speech in enumerate(speak_parts(pipe, text, pause_seconds=0.0, **settings)):
        rate = speech["sampling_rate"]
        write_speech(output / "parts" / f"{number:04d}.wav", speech["audio"], rate)
        # As it was spoken: a part with too many figures is halved.
        parts.append(speech["text"])
        lengths.append(len(speech["audio"]) / rate)
        flags.append(limits.flags(speech["audio"], rate, parts[number]))
        memory.append(process.memory_info().rss / MEBIBYTE)
    elapsed = time.perf_counter() - start
    heard, vectors = [], []
    for path, own in zip(list_recordings(output / "parts"), flags, strict=True):
        waveform, rate = read_recording(path)
        heard.append("" if SILENCE in own else recogniser.transcribe(waveform, rate))
        if SILENCE not in own:
            try:
                vectors.append(speaker_judge.embed(waveform, rate))
            except ValueError as refusal:  # too short, say: one part must not cost the whole text
                logger.warning("%s is in no comparison of voices: %s", path.name, refusal)
    if len(vectors) < 3:
        raise ValueError(f"Nearly all parts are silent; listen to {output / 'parts'}.")
    rows = score_transcripts(parts, heard, normalise=normalise, limits=limits)
    kinds = [[*own, *row.flags] for own, row in zip(flags, rows, strict=True)]
    nearest = nearest_parts(parts, heard, normalise)
    first, last = thirds(vectors)
    report = LongTextReport(
        model=model,
        judges=[recogniser.name, speaker_judge.name],
        language=language,
        normaliser=normaliser,
        words=sum(row.words for row in rows),
        parts=len(parts),
        seconds=sum(lengths),
        real_time_factor=elapsed / sum(lengths),
        in_place=mean_figure([float(n >= 0 and parts[n] == part) for n, part in zip(nearest, parts, strict=True)]),
        wer=ratio_figure([row.edits for row in rows], [row.words for row in rows]),
        failures={kind: found for kind in FAILURES if (found := [n for n, own in enumerate(kinds) if kind in own])},
        voice_first=mean_figure(first),
        voice_last=mean_figure(last),
        memory_early=memory[len(memory) // 10],
        memory_end=memory[-1],
    )
    details = [
        {"text": part, "heard": said, "nearest": place, "flags": own}
        for part, said, place, own in zip(parts, heard, nearest, kinds, strict=True)
    ]
    content = json.dumps(asdict(report) | {"details": details}, indent=1, ensure_ascii=False)
    write_text(output / "report.json", content + "\n")
    write_text(output / "report.md", report.to_markdown())
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        prog="python -m e2e_tts.pipelines.evaluation.long_text_study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a complete checkpoint: a folder or owner/model")
    parser.add_argument("--text", type=Path, required=True, help="a text file")
    parser.add_argument("--voice", help="by default the checkpoint's first")
    parser.add_argument("--judge", default=AUTO, help="recogniser: a name, owner/model, a local folder or auto")
    parser.add_argument("--speaker_judge", default=AUTO, help="likewise")
    add_language_options(parser)
    parser.add_argument(
        "--sampling", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the pipeline: candidates=1"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the synthesis")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, required=True, help="folder for all that is written")
    options = parser.parse_args(arguments)
    try:
        settings = {"voice": options.voice, "seed": options.seed, **parse_settings(options.sampling, "sampling")}
        text = options.text.read_text(encoding="utf-8")
        pipe = load_pipeline(options.model, device=options.device)
        recogniser = load_recogniser(options.judge, language=options.language)
        judges = recogniser, load_speaker_judge(options.speaker_judge)
        settings |= {"language": options.language, "normaliser": options.normaliser}
        progress = tqdm(total=len(split_text(text)), desc="parts", disable=None)
        settings["progress"] = lambda number, count, part: progress.update()
        report = run_study(pipe, text, options.output, *judges, model=options.model, **settings)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    print(report.to_markdown())


if __name__ == "__main__":
    main()
