"""Speaks sentences with other synthesizers: exact transcripts and open vocabulary for training a small model.

python -m e2e_tts.trainers.data.teacher_speech --sentences teacher.txt --voices slt:2 rms awb --output speech/teacher

In flite's English voices, or, with --kokoro FOLDER, in Kokoro's, English or Mandarin (--language zh). Writes FLAC files
and a `metadata.csv` that `prepare` reads. Started again with the same arguments it goes on where it stopped. A sentence
that fails is listed in `failed.csv` and does not stop the run.
"""

import argparse
import csv
import hashlib
import logging
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from e2e_tts.trainers.data.corpus_files import COLUMNS, read_metadata, read_sentences
from e2e_tts.trainers.data.teachers import SAMPLING_RATE, Flite, Kokoro, Teacher

from ..command_line import CommandParser

logger = logging.getLogger(__name__)

FLITE_VOICES = ["slt", "rms", "awb"]
KOKORO_VOICES = {
    "en": ["af_heart", "af_bella", "am_michael", "am_fenrir", "bf_emma", "bm_george"],
    "zh": ["zf_xiaoyi", "zm_yunjian"],
}


def parse_voice(value: str) -> tuple[str, int]:
    """NAME or NAME:WEIGHT -> its two parts. Raises argparse.ArgumentTypeError."""
    name, _, weight = value.partition(":")
    if not name or (weight and (not weight.isdigit() or int(weight) < 1)):
        raise argparse.ArgumentTypeError(f"expected VOICE or VOICE:WEIGHT with a whole weight above 0, got {value!r}")
    return name, int(weight or 1)


def check_voices(teacher: Teacher, voices: list[str]) -> None:
    """Raises ValueError for a voice that the teacher does not have."""
    if unknown := [voice for voice in voices if voice not in teacher.voices]:
        raise ValueError(f"{teacher.name} has no voice {unknown}; it has {sorted(teacher.voices)}.")


def plan(
    sentences: list[str], voices: list[tuple[str, int]], all_voices: bool, seed: int
) -> Iterator[tuple[str, str, str]]:
    """Yields (file name, voice, sentence). Every round of sum(weights) sentences uses each voice by its weight.

    The name depends on voice and text alone, so finished files are recognised whatever else changes.
    """
    rng = random.Random(seed)
    round_of_voices = [name for name, weight in voices for _ in range(weight)]
    order: list[str] = []
    for sentence in sentences:
        if not order:
            order = rng.sample(round_of_voices, len(round_of_voices))
        chosen = [name for name, _ in voices] if all_voices else [order.pop()]
        for voice in chosen:
            yield f"{voice}_{hashlib.sha256(sentence.encode()).hexdigest()[:12]}.flac", voice, sentence


def speak(teacher: Teacher, voice: str, sentence: str) -> np.ndarray:
    """`Teacher.speak`; raises RuntimeError also for silence and for less than 0.2 s."""
    samples = teacher.speak(voice, sentence)
    if len(samples) < SAMPLING_RATE // 5 or not np.abs(samples).max() > 1e-3:
        raise RuntimeError(f"{teacher.name} made silence or less than 0.2 s")
    return samples


def finished_rows(output: Path) -> list[dict[str, str]]:
    """Rows of an earlier run whose file is there; a row cut off by a kill lacks its seconds and is dropped."""
    if not (output / "metadata.csv").is_file():
        return []
    return [row for row in read_metadata(output) if row["seconds"] and (output / row["file"]).is_file()]


def generate(teacher: Teacher, jobs: list[tuple[str, str, str]], output: Path) -> tuple[int, int]:
    """Speaks all jobs that are not yet done; returns the numbers of finished and of failed files."""
    output.mkdir(parents=True, exist_ok=True)
    rows = finished_rows(output)
    done = {row["file"] for row in rows}
    if rows:
        logger.info("%d files are already there", len(rows))
    # Rewritten as a whole first, so that a half-written last line of an earlier run is gone.
    rewritten = output / "metadata.csv.partial"
    with rewritten.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(rewritten, output / "metadata.csv")
    failed = 0
    with (
        (output / "metadata.csv").open("a", encoding="utf-8", newline="") as metadata,
        (output / "failed.csv").open("w", encoding="utf-8", newline="") as failures,
    ):
        writer, failure_writer = csv.DictWriter(metadata, COLUMNS), csv.writer(failures)
        failure_writer.writerow(("file", "text", "reason"))
        for name, voice, sentence in jobs:
            if name in done:
                continue
            partial = output / f"{name}.partial"
            try:
                samples = speak(teacher, voice, sentence)
                soundfile.write(partial, samples, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
                os.replace(partial, output / name)
            except (RuntimeError, OSError) as error:
                failed += 1
                failure_writer.writerow((name, sentence, error))
                partial.unlink(missing_ok=True)
                continue
            seconds = f"{len(samples) / SAMPLING_RATE:.3f}"
            values = (name, sentence, f"{teacher.name}_{voice}", "neutral", teacher.language, seconds)
            writer.writerow(dict(zip(COLUMNS, values, strict=True)))
            metadata.flush()
            done.add(name)
            if len(done) % 500 == 0:
                logger.info("%d files", len(done))
    return len(done), failed


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=Path, required=True, help="text file, one sentence a line")
    parser.add_argument(
        "--voices",
        nargs="+",
        type=parse_voice,
        help=f"NAME or NAME:WEIGHT; by default {FLITE_VOICES}, or of Kokoro {KOKORO_VOICES}",
    )
    parser.add_argument("--kokoro", type=Path, metavar="FOLDER", help="a copy of onnx-community/Kokoro-82M-v1.0-ONNX")
    parser.add_argument("--language", choices=sorted(KOKORO_VOICES), default="en", help="of the sentences")
    parser.add_argument("--all-voices", action="store_true", help="every sentence in every voice, not one of them")
    parser.add_argument("--output", type=Path, required=True, help="folder for the audio and metadata.csv")
    parser.add_argument("--seed", type=int, default=0, help="for the order of the voices")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        sentences = read_sentences(options.sentences)
        if options.language != Flite.language and not options.kokoro:
            raise ValueError(f"flite speaks English only; give --kokoro FOLDER for --language {options.language}.")
        teacher: Teacher = Kokoro(options.kokoro, options.language) if options.kokoro else Flite()
        default = KOKORO_VOICES[options.language] if options.kokoro else FLITE_VOICES
        voices = options.voices or [(name, 1) for name in default]
        check_voices(teacher, [name for name, _ in voices])
        jobs = list(plan(sentences, voices, options.all_voices, options.seed))
        done, failed = generate(teacher, jobs, options.output)
    except (OSError, ImportError, ValueError, subprocess.SubprocessError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{done} files in {options.output}, {failed} failed" + (", see failed.csv" if failed else ""))


if __name__ == "__main__":
    main()
