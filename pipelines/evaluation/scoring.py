"""Word error rate of a folder of speech, with a confidence interval and the clips that failed.

python -m e2e_tts.pipelines.evaluation.scoring --audio DIR --texts texts.tsv --output report.json

It judges any folder of recordings, not only what this package has spoken. The text file has one `name<TAB>text` a line;
the name is a file of the folder, with or without its suffix. A clip that is missing, cannot be read or is silent counts
with all its words lost.
"""

import argparse
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jiwer
import numpy as np

from e2e_tts.trainers.command_line import CommandParser

from .audio_files import AUDIO_SUFFIXES, find_recording, read_recording
from .failures import ERROR, FAILURES, SILENCE, FailureLimits
from .figures import ratio_figure
from .judge_interface import Recogniser
from .judges import load_normaliser, load_recogniser
from .markdown import markdown_table
from .normalisers import NORMALISERS, Normaliser

logger = logging.getLogger(__name__)


@dataclass
class UtteranceScore:
    """One utterance: texts as given, edits and words counted after normalisation, duration in seconds."""

    name: str
    reference: str
    hypothesis: str
    words: int
    substitutions: int
    deletions: int
    insertions: int
    seconds: float | None = None
    flags: list[str] = field(default_factory=list)
    error: str | None = None

    @property
    def edits(self) -> int:
        return self.substitutions + self.deletions + self.insertions


@dataclass
class ScoreReport:
    """The result of an evaluation. Rates are fractions (0.03 is 3 %); `wer` is all edits over all reference words.

    `wer_low` and `wer_high` bound the 95 % bootstrap interval over utterances: it says how far the figure would move
    with other sentences of the same kind, and is too narrow below some twenty utterances.
    """

    judge: str
    normaliser: str
    wer: float
    wer_low: float
    wer_high: float
    resamples: int
    seed: int
    limits: FailureLimits
    rows: list[UtteranceScore]

    @property
    def failures(self) -> dict[str, list[str]]:
        """The names of the utterances that carry each flag."""
        return {kind: [row.name for row in self.rows if kind in row.flags] for kind in FAILURES}

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the settings, totals, failures and one entry an utterance under "rows"."""
        values = asdict(self)
        rows = [row | {"edits": score.edits} for row, score in zip(values.pop("rows"), self.rows, strict=True)]
        totals = {
            "utterances": len(self.rows),
            **{key: sum(row[key] for row in rows) for key in ("words", "edits", "substitutions", "deletions")},
            "insertions": sum(row["insertions"] for row in rows),
            "seconds": sum(row["seconds"] or 0.0 for row in rows),
        }
        return values | totals | {"failures": self.failures, "rows": rows}

    def to_json(self, path: str | Path | None = None) -> str:
        """The report as JSON text, also written to `path` if given."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text, encoding="utf-8")
        return text

    def to_markdown(self, worst: int = 10) -> str:
        """A table of the totals, the failures, and the `worst` utterances by edits."""
        totals = self.to_dict()
        interval = f"{100 * self.wer_low:.2f} to {100 * self.wer_high:.2f}"
        sums = [str(totals[key]) for key in ("utterances", "words", "substitutions", "deletions", "insertions")]
        lines = markdown_table(
            ["judge", "normaliser", "utterances", "words", "WER %", "95 % interval", "sub", "del", "ins"],
            [[self.judge, self.normaliser, *sums[:2], f"{100 * self.wer:.2f}", interval, *sums[2:]]],
        )
        shown = {
            kind: ", ".join(names[:worst]) + (", ..." if len(names) > worst else "")
            for kind, names in self.failures.items()
        }
        failed = [[kind, str(len(names)), shown[kind]] for kind, names in self.failures.items()]
        lines += ["", *markdown_table(["failure", "clips", "names"], failed)]
        wrong = sorted((row for row in self.rows if row.edits), key=lambda row: -row.edits)[:worst]
        if wrong:
            header, cells = ["worst", "edits / words", "reference", "transcript"], []
            for row in wrong:
                heard = f"({row.error})" if row.error else row.hypothesis
                cells.append([row.name, f"{row.edits} / {row.words}", row.reference, heard])
            lines += ["", *markdown_table(header, cells)]
        return "\n".join(lines) + "\n"


def _words(text: str) -> str:
    """Drops words without a letter or digit: Whisper's normaliser turns the transcript "..." into the word "."."""
    return " ".join(word for word in text.split() if any(character.isalnum() for character in word))


def score_transcripts(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    normalise: Normaliser | None = None,
    limits: FailureLimits | None = None,
) -> list[UtteranceScore]:
    """Counts the edits that turn each reference into its hypothesis, both normalised (by default as "english").

    Names default to the positions. A transcript carries the flags that `limits` finds in it. A reference in which no
    word is left counts zero words, and each word that was heard is an insertion.
    Raises ValueError if the sequences differ in length.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"Got {len(references)} references and {len(hypotheses)} hypotheses; each needs its partner.")
    names = [str(index) for index in range(len(references))] if names is None else names
    if len(names) != len(references):
        raise ValueError(f"Got {len(names)} names for {len(references)} references.")
    normalise, limits = normalise or load_normaliser(), limits or FailureLimits()
    rows = []
    for name, reference, hypothesis in zip(names, references, hypotheses, strict=True):
        heard = _words(normalise(hypothesis))
        result = jiwer.process_words([_words(normalise(reference))], [heard])
        # Words of the text after the last one heard. If that one is wrong, the speech did not just lose its end.
        steps = [step.type for step in result.alignments[0]]
        last = result.alignments[0][-1] if steps[-2:] == ["equal", "delete"] else None
        lost = last.ref_end_idx - last.ref_start_idx if last else 0
        rows.append(
            UtteranceScore(
                name=name,
                reference=reference,
                hypothesis=hypothesis,
                words=result.hits + result.substitutions + result.deletions,
                substitutions=result.substitutions,
                deletions=result.deletions,
                insertions=result.insertions,
                flags=limits.transcript_flags(result.references[0], result.hypotheses[0], lost),
            )
        )
    return rows


def corpus_wer(rows: Sequence[UtteranceScore]) -> float:
    """All edits over all reference words, as a fraction. Raises ValueError if the references have no word."""
    words = sum(row.words for row in rows)
    if not words:
        raise ValueError("The references have no word after normalisation: there is no word error rate to compute.")
    return sum(row.edits for row in rows) / words


def bootstrap_interval(rows: Sequence[UtteranceScore], *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of `corpus_wer` when sentences are drawn again with replacement; same seed, same answer.

    Sentences are the unit because the errors inside one depend on each other, and takes of one are no independent
    evidence. Raises ValueError for rows without words or fewer than one resample.
    """
    corpus_wer(rows)
    edits, words = Counter[str](), Counter[str]()
    for row in rows:
        edits[row.reference] += row.edits
        words[row.reference] += row.words
    figure = ratio_figure([edits[name] for name in words], [*words.values()], resamples=resamples, seed=seed)
    return figure.low, figure.high


def make_report(
    rows: list[UtteranceScore],
    *,
    judge: str,
    normaliser: str,
    resamples: int = 2000,
    seed: int = 0,
    limits: FailureLimits | None = None,
) -> ScoreReport:
    """Sums scored utterances up. Raises ValueError if their references have no word."""
    low, high = bootstrap_interval(rows, resamples=resamples, seed=seed)
    return ScoreReport(judge, normaliser, corpus_wer(rows), low, high, resamples, seed, limits or FailureLimits(), rows)


def read_texts(path: str | Path) -> dict[str, str]:
    """Reads `name<TAB>text` lines (UTF-8, empty lines skipped). Raises ValueError, with the line, for anything else."""
    texts: dict[str, str] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        name, _, text = (part.strip() for part in line.partition("\t"))
        if not name or not text:
            raise ValueError(f"{path}, line {number}: expected name<TAB>text, got {line!r}.")
        if name in texts:
            raise ValueError(f"{path}, line {number}: the name {name!r} comes a second time; names must differ.")
        texts[name] = text
    if not texts:
        raise ValueError(f"{path} holds no text; it needs one name<TAB>text a line.")
    return texts


def read_clip(folder: Path, name: str) -> tuple[np.ndarray, int]:
    """Reads the clip `name`, suffix optional, as mono float32 of shape (samples,), and its rate in Hz.

    Raises ValueError if there is none or it cannot be read.
    """
    path = find_recording(folder, name)
    if path is None:
        raise ValueError(f"{folder} has no file {name} ({', '.join(AUDIO_SUFFIXES)} tried)")
    return read_recording(path)


def score_folder(
    audio: str | Path,
    texts: str | Path | dict[str, str],
    judge: str | Recogniser = "whisper-base-offline",
    *,
    judge_options: dict[str, Any] | None = None,
    normaliser: str = "english",
    limits: FailureLimits | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> ScoreReport:
    """Transcribes the clips that `texts` (a file, or a dictionary from name to text) names, and scores them.

    A clip that is missing or cannot be read counts as an error with all its words deleted, and the run goes on. A
    silent clip is not shown to the recogniser, which would invent words for it: its words count as deleted too.

    Raises NotADirectoryError if `audio` is no folder, ValueError for texts that are malformed or have no words, what
    `load_recogniser` raises, and RuntimeError if the recogniser itself fails, since that is no fault of the speech.
    """
    folder = Path(audio)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder of audio files.")
    texts = texts if isinstance(texts, dict) else read_texts(texts)
    normalise = load_normaliser(normaliser)
    limits = limits or FailureLimits()
    if not any(_words(normalise(text)) for text in texts.values()):
        raise ValueError(f"The normaliser {normaliser} leaves no word of the texts: there is nothing to score.")
    recogniser = load_recogniser(judge, **(judge_options or {})) if isinstance(judge, str) else judge

    hypotheses: list[str] = []
    notes: list[tuple[float | None, list[str], str | None]] = []
    for name, text in texts.items():
        try:
            waveform, sampling_rate = read_clip(folder, name)
        except ValueError as error:
            logger.warning("%s counts as an error: %s", name, error)
            hypotheses.append("")
            notes.append((None, [ERROR], str(error)))
            continue
        flags = limits.flags(waveform, sampling_rate, text)
        try:
            hypotheses.append("" if SILENCE in flags else recogniser.transcribe(waveform, sampling_rate))
        except Exception as error:
            raise RuntimeError(f"The recogniser {recogniser.name} failed on {name}: {error}") from error
        notes.append((waveform.size / sampling_rate, flags, None))

    rows = score_transcripts(list(texts.values()), hypotheses, names=list(texts), normalise=normalise, limits=limits)
    for row, (seconds, flags, message) in zip(rows, notes, strict=True):
        row.seconds, row.error = seconds, message
        # A clip that nobody heard has no transcript to be called empty.
        row.flags = flags if message else flags + row.flags
    return make_report(
        rows, judge=recogniser.name, normaliser=normaliser, resamples=resamples, seed=seed, limits=limits
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the head of this file."""
    parser = CommandParser(
        prog="python -m e2e_tts.pipelines.evaluation.scoring",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--audio", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--texts", type=Path, required=True, help="one name<TAB>text a line")
    parser.add_argument("--output", type=Path, required=True, help="where the JSON report goes")
    parser.add_argument("--judge", default="whisper-base-offline", help="a name, owner/model, or a local folder")
    parser.add_argument("--normaliser", default="english", help=f"one of {', '.join(NORMALISERS)}")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    options = parser.add_argument_group("options of the judge, passed on where given")
    options.add_argument("--language")
    options.add_argument("--beam-size", type=int)
    options.add_argument("--cpu-threads", type=int)
    options.add_argument("--cache-folder", type=Path)
    options.add_argument("--device")
    given = vars(parser.parse_args(arguments))
    names = ("language", "beam_size", "cpu_threads", "cache_folder", "device")
    judge_options = {name: given[name] for name in names if given[name] is not None}
    try:
        report = score_folder(
            given["audio"],
            given["texts"],
            given["judge"],
            judge_options=judge_options,
            normaliser=given["normaliser"],
            seed=given["seed"],
        )
    except (OSError, ValueError, TypeError, ImportError, RuntimeError) as error:
        parser.error(str(error))
    report.to_json(given["output"])
    print(report.to_markdown())
    if len(report.failures[ERROR]) == len(report.rows):
        logger.warning("No clip could be read: is %s the right folder?", given["audio"])


if __name__ == "__main__":
    main()
