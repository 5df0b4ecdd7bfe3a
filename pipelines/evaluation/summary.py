"""From what the judges said to figures with intervals, by the metrics of `evaluate`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .failures import ERROR, SILENCE, FailureLimits
from .metrics import (
    DurationRatio,
    MeanOpinionScore,
    RealTimeFactor,
    SpeakerSimilarity,
    SpeechFailures,
    WordErrorRate,
)
from .normalisers import Normaliser
from .scoring import score_transcripts
from .speaker_judges import cosine
from .utterances import Utterance

Record = dict[str, Any]


@dataclass
class EvaluatedRow:
    """One utterance of one condition. Absent values are None: nothing to measure, or a judge refused. voice: says so
    where the speaker judge hears none."""

    name: str
    text: str
    transcript: str | None = None
    words: int | None = None
    edits: int | None = None
    similarity: float | None = None
    quality: dict[str, float] | None = None
    seconds: float | None = None
    duration_ratio: float | None = None
    real_time_factor: float | None = None
    failures: list[str] = field(default_factory=list)
    error: str | None = None
    voice: str | None = None
    refusals: dict[str, str] = field(default_factory=dict)

    @property
    def error_rate(self) -> float | None:
        return self.edits / self.words if self.words else None

    @property
    def has_no_speech(self) -> bool:
        """Whether the clip is missing, cannot be read or is silent."""
        return ERROR in self.failures or SILENCE in self.failures

    @property
    def badness(self) -> tuple:
        """Sorts the worst first: what is missing, then by error rate, failures, and lack of similarity."""
        return (self.error is None, -(self.error_rate or 0.0), -len(self.failures), self.similarity or 0.0)

    def to_dict(self) -> Record:
        return asdict(self) | {"error_rate": self.error_rate}


@dataclass(frozen=True)
class Statistics:
    """How figures are made of rows: the normaliser's name and function, and the bootstrap's settings."""

    normaliser: str
    normalise: Normaliser
    limits: FailureLimits
    resamples: int = 2000
    seed: int = 0


@dataclass
class Condition:
    """The rows of the speech or of the recordings, in the order of the test set, and their figures by name.

    failed_left_out: how many clips without speech a figure could not count, by its name, where there are some.
    """

    rows: list[EvaluatedRow]
    figures: dict[str, dict[str, float]]
    failure_counts: dict[str, int]
    word_counts: dict[str, int]
    failed_left_out: dict[str, int] = field(default_factory=dict)


def summarise(
    utterances: Sequence[Utterance],
    records: dict[str, Record],
    spoken: dict[str, Record],
    vectors: dict[str, Any],
    reference_seconds: dict[str, float],
    statistics: Statistics,
) -> Condition:
    """Figures of the utterances that have a record.

    `records` are the judges' (see `judge_clips`), `spoken` those of synthesis (empty if it was not ours), `vectors` the
    speakers' by label, and `reference_seconds` the durations of recordings to compare with, where there are some. What
    a judge refused is left out of that judge's figures. A clip that is missing, cannot be read or is silent has lost
    its words and resembles its speaker by 0, as does speech in which the speaker judge hears no voice: leaving it out
    would reward failure. Quality has no such value, since opinion scores are of speech: clips without any are left out
    and counted beside the figure.
    """
    chosen = [item for item in utterances if item.name in records]
    rows = [_row(item, records[item.name], spoken.get(item.name), reference_seconds.get(item.name)) for item in chosen]
    draw = {"resamples": statistics.resamples, "seed": statistics.seed}
    figures: dict[str, dict[str, float]] = {}
    counts: dict[str, int] = {}

    _count_failures(rows, records, statistics)
    heard = [row for row in rows if row.transcript is not None]
    if any(row.words for row in heard):
        result = WordErrorRate(keep_in_memory=True).compute(
            predictions=[row.transcript for row in heard],
            references=[row.text for row in heard],
            normaliser=statistics.normaliser,
            **draw,
        )
        figures |= {name: result.pop(name) for name in ("error_rate", "error_rate_by_utterance")}
        counts = result

    pairs = []
    for row in rows:
        record = records[row.name]
        if record["speaker_vector"] is not None:
            pair = (np.asarray(record["speaker_vector"]), np.asarray(vectors[record["speaker"]]))
            row.similarity = cosine(*pair)
            pairs.append(pair)
        elif record["speaker"] is not None and (row.has_no_speech or row.voice is not None):
            row.similarity = 0.0
            pairs.append((np.zeros(0), np.asarray(vectors[record["speaker"]])))
    if pairs:
        first, second = zip(*pairs, strict=True)
        metric = SpeakerSimilarity(keep_in_memory=True)
        figures |= metric.compute(predictions=list(first), references=list(second), **draw)

    scored = [row.quality for row in rows if row.quality]
    unscored = sum(row.has_no_speech for row in rows)
    left_out: dict[str, int] = {}
    for scale in scored[0] if scored else ():
        metric = MeanOpinionScore(keep_in_memory=True)
        result = metric.compute(predictions=[scores[scale] for scores in scored], **draw)
        figures[f"quality_{scale}"] = result["opinion_score"]
        if unscored:
            left_out[f"quality_{scale}"] = unscored

    timed = [row for row in rows if row.duration_ratio is not None]
    if timed:
        figures |= DurationRatio(keep_in_memory=True).compute(
            predictions=[row.seconds for row in timed],
            references=[reference_seconds[row.name] for row in timed],
            **draw,
        )
    clocked = [spoken[row.name] for row in rows if row.real_time_factor is not None]
    if clocked:
        figures |= RealTimeFactor(keep_in_memory=True).compute(
            predictions=[record["spent"] for record in clocked],
            references=[record["seconds"] for record in clocked],
            **draw,
        )
    failures = SpeechFailures(keep_in_memory=True).compute(predictions=[row.failures for row in rows], **draw)
    failure_counts = failures.pop("counts")
    figures |= {f"failures_{kind}": figure for kind, figure in failures.items()}
    return Condition(rows, figures, failure_counts, counts, left_out)


def _row(utterance: Utterance, record: Record, spoken: Record | None, reference_seconds: float | None) -> EvaluatedRow:
    row = EvaluatedRow(
        name=utterance.name,
        text=utterance.text,
        transcript=record["transcript"],
        quality=record["quality"],
        seconds=record["seconds"],
        error=record["error"],
        voice=record.get("voice"),  # records of an earlier version do not have it
        refusals=record["refusals"],
    )
    if row.seconds is not None and reference_seconds is not None:
        row.duration_ratio = row.seconds / reference_seconds
    if spoken is not None and spoken["seconds"]:
        row.real_time_factor = spoken["spent"] / spoken["seconds"]
    return row


def _count_failures(rows: list[EvaluatedRow], records: dict[str, Record], statistics: Statistics) -> None:
    """Fills in words, edits and failures."""
    for row in rows:
        record = records[row.name]
        if row.error is not None:
            row.failures = [ERROR]
        else:
            row.failures = statistics.limits.sound_flags(record["peak"], record["rms"], row.seconds or 0.0, row.text)
        if row.transcript is None:
            continue
        (score,) = score_transcripts(
            [row.text], [row.transcript], normalise=statistics.normalise, limits=statistics.limits
        )
        row.words, row.edits = score.words, score.edits
        if row.error is None:
            row.failures += score.flags
