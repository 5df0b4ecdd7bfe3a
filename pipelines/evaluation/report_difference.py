r"""Is one system better than another on the same sentences? The paired difference of two systems' reports.

python -m e2e_tts.pipelines.evaluation.report_difference --first adapted/speech.json --second plain/speech.json
python -m e2e_tts.pipelines.evaluation.report_difference --first new/report.json --second old/report.json \
    --measure similarity

The reports are those of e2e_tts.pipelines.evaluation (report.json), of its scoring or of held_out_similarity, one for
each sampling seed, in the same order for both systems. Sentences are drawn whole, with all their seeds, and seeds as
well where there are several: intervals hold 95 % of 2,000 draws.

Utterances of report.json are paired by name. One that a judge refused for either system is left out for both and
counted; speech that failed is not left out, since that would reward failure: it has lost all words and resembles its
speaker by 0, as does speech in which the speaker judge hears no voice.

Reports of different judges, normalisers or recordings of the speaker are refused, and a seed that is given twice.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e_tts.trainers.command_line import CommandParser

from .failures import ERROR, SILENCE
from .judging import CONDITIONS, SPEECH
from .paired_bootstrap import Interval, Measurements, interval, paired_difference

ERRORS, SIMILARITY = "word error rate, %", "speaker similarity"
MEASURES = {"words": ERRORS, "similarity": SIMILARITY}
COLUMNS = {ERRORS: {"words", "edits", "reference"}, SIMILARITY: {"similarity", "reference"}}
NO_SPEECH_REFUSAL = "No speech was found"
"""How a speaker judge's refusal of speech without a voice began in reports of an earlier version."""
RECORDINGS = "recordings of the speaker"
NO_REPORT = "{} is no report of the evaluation, of scoring or of held_out_similarity."

Row = dict[str, Any]
Ratio = tuple[float, float]


@dataclass(frozen=True)
class Report:
    """What a report measures, and its rows with the `COLUMNS` of that. by_name: of the harness, where a row may hold
    None. yardstick: by what the measure was taken, as far as the report says: judge, its version, normaliser,
    recordings of the speaker. draw: checkpoint and seed of speech that the harness had made."""

    measure: str
    rows: list[Row]
    by_name: bool
    yardstick: dict[str, str]
    draw: tuple[str, int] | None


@dataclass(frozen=True)
class Comparison:
    """The measure, its values for "first", "second" and "difference" (first less second, paired), and how many
    utterances are in none of them because a judge refused one of the two."""

    measure: str
    values: dict[str, Interval]
    left_out: int


def read_report(path: Path, condition: str = SPEECH, measure: str | None = None) -> Report:
    """Reads a report. measure: one of `MEASURES`; by default what the report has, words of the harness's.

    Raises ValueError for another file, and for a report without that condition or measure.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        by_name = "conditions" in report
        conditions = report["conditions"] if by_name else {condition: report}
        rows = conditions[condition]["rows"] if condition in conditions else []
        rows = [row | {"reference": row["text"]} for row in rows] if by_name else rows
        measures = [name for name, columns in COLUMNS.items() if all(columns <= row.keys() for row in rows)]
        yardsticks = {name: _yardstick(report, name) for name in measures}
        draw = _draw(report.get("settings", {}))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(NO_REPORT.format(path)) from error
    if by_name and condition not in conditions:
        raise ValueError(f"{path} has no {condition}, only {', '.join(conditions)}: see --condition.")
    if not rows or not measures:
        raise ValueError(NO_REPORT.format(path))
    chosen = measures[0] if measure is None else MEASURES[measure]
    if chosen not in measures or all(ratio(row, chosen) is None for row in rows):
        raise ValueError(f"{path} has no {chosen}; another judge or another report has it: see --measure.")
    return Report(chosen, rows, by_name, yardsticks[chosen], draw)


def _yardstick(report: dict[str, Any], measure: str) -> dict[str, str]:
    """By what a measure was taken; what a report does not say, an older one say, is not there."""
    settings = report.get("settings", {})
    # The harness names a judge for each role, the others' reports have one.
    judge = report.get("judges", {}).get("speaker" if measure == SIMILARITY else "recogniser", report.get("judge"))
    judge = judge if isinstance(judge, dict) else {"name": judge}
    found = {"judges": judge.get("name"), "versions of the judge": judge.get("version")}
    if measure == ERRORS:
        found["normalisers"] = settings.get("normaliser", report.get("normaliser"))
    elif settings.get("speaker_recordings"):
        found[RECORDINGS] = settings.get("speaker_recordings_version")
    elif "speaker_recordings" in settings:
        found[RECORDINGS] = "those of the test set"
    return {name: value for name, value in found.items() if value is not None}


def _draw(settings: dict[str, Any]) -> tuple[str, int] | None:
    """What tells two draws of one system apart; None where the harness was given speech, which has no seed."""
    checkpoint = settings.get("model_version") or settings.get("model")
    return None if checkpoint is None or "seed" not in settings else (checkpoint, settings["seed"])


def ratio(row: Row, measure: str) -> Ratio | None:
    """Numerator and denominator of a row's measure; None where it was not measured."""
    if measure == SIMILARITY:
        return None if row["similarity"] is None else (row["similarity"], 1.0)
    return None if row["words"] is None else (100.0 * row["edits"], row["words"])


def ratios_by_name(first: Report, second: Report) -> dict[str, tuple[str, Ratio | None, Ratio | None]]:
    """Name -> sentence, and what both systems have for it. Raises ValueError for different utterances."""
    ours, theirs = ({row["name"]: row for row in report.rows} for report in (first, second))
    if odd := [
        name
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name, {}).get("reference") != theirs.get(name, {}).get("reference")
    ]:
        raise ValueError(f"A comparison needs the same sentences; {odd[:3]} are in one report alone or differ in text.")
    paired = {}
    for name, row in ours.items():
        rows, found = (row, theirs[name]), [ratio(item, first.measure) for item in (row, theirs[name])]
        if first.measure == SIMILARITY and any(found):
            # A report of an earlier version has no similarity of failed speech, though there is one to compare with.
            failed = [_has_failed(item) for item in rows]
            found = [(0.0, 1.0) if known is None and lost else known for known, lost in zip(found, failed, strict=True)]
        paired[name] = (row["reference"], *found)
    return paired


def _has_failed(row: Row) -> bool:
    """Whether speech of the harness resembles nobody: it is missing or silent, or there is no voice in it."""
    refusal = row.get("refusals", {}).get("speaker", "")
    return bool({ERROR, SILENCE} & set(row["failures"]) or row.get("voice") or NO_SPEECH_REFUSAL in refusal)


def _check_yardsticks(reports: Sequence[tuple[Path, Report]]) -> None:
    """Raises ValueError, naming both values, for reports whose measures were not taken in the same way."""
    first: dict[str, tuple[Path, str]] = {}
    for path, report in reports:
        for name, value in report.yardstick.items():
            place, known = first.setdefault(name, (path, value))
            if known != value:
                raise ValueError(f"{place} and {path} cannot be compared: their {name} are {known} and {value}.")


def _check_draws(reports: Sequence[tuple[Path, Report]]) -> None:
    """Raises ValueError for a file or a seed that one system is given twice: it would count as further evidence."""
    files: set[Path] = set()
    draws: dict[tuple[str, int], Path] = {}
    for path, report in reports:
        if path.resolve() in files:
            raise ValueError(f"{path} is given twice for one system.")
        files.add(path.resolve())
        if report.draw is not None and draws.setdefault(report.draw, path) != path:
            raise ValueError(f"{draws[report.draw]} and {path} are both seed {report.draw[1]} of one checkpoint.")


def compare(
    first: Sequence[Path], second: Sequence[Path], condition: str = SPEECH, measure: str | None = None
) -> Comparison:
    """Compares two systems, each with one report a seed. condition: of the harness's reports; measure: `read_report`'s.

    Raises ValueError for files that are no reports, of different measures, judges, normalisers, sentences or numbers of
    seeds, and for a report or a seed that a system is given twice.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} reports: give one a seed for both systems, in one order.")
    sides = [[read_report(path, condition, measure) for path in paths] for paths in (first, second)]
    measures = [{report.measure for report in side} for side in sides]
    if max(map(len, measures)) > 1:
        raise ValueError("Words and similarity are compared in two calls: give reports of one of them.")
    if measures[0] != measures[1]:
        raise ValueError(f"One side has {min(measures[0])}, the other {min(measures[1])}: name one with --measure.")
    kinds = {report.by_name for side in sides for report in side}
    if len(kinds) > 1:
        raise ValueError("A report.json of the evaluation is compared with another one, not with one of scoring.")
    (chosen,) = measures[0]
    named = [list(zip(paths, side, strict=True)) for paths, side in zip((first, second), sides, strict=True)]
    _check_yardsticks([*named[0], *named[1]])
    for side in named:
        _check_draws(side)
    seeds = list(zip(*sides, strict=True))
    left_out: set[str] = set()
    if kinds == {True}:
        paired = [ratios_by_name(*pair) for pair in seeds]
        # A sentence must be there with all its seeds, or not at all.
        left_out = {name for pairs in paired for name, (_, *found) in pairs.items() if None in found}
        records = [
            [
                (seed, sentence, *found[side])
                for seed, pairs in enumerate(paired)
                for name, (sentence, *found) in pairs.items()
                if name not in left_out
            ]
            for side in range(2)
        ]
    else:
        records = [
            [(seed, row["reference"], *ratio(row, chosen)) for seed, report in enumerate(side) for row in report.rows]
            for side in sides
        ]
    ours, theirs = map(Measurements.collect, records)
    values = {"first": interval(ours), "second": interval(theirs), "difference": paired_difference(ours, theirs)}
    return Comparison(chosen, values, len(left_out))


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(
        prog="python -m e2e_tts.pipelines.evaluation.report_difference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--first", type=Path, nargs="+", required=True, help="JSON reports, one a seed")
    parser.add_argument("--second", type=Path, nargs="+", required=True, help="the same of the other system")
    parser.add_argument(
        "--measure", choices=tuple(MEASURES), help="by default what the reports have, of report.json the words"
    )
    parser.add_argument("--condition", choices=CONDITIONS, default=SPEECH, help="of report.json")
    options = parser.parse_args(arguments)
    try:
        comparison = compare(options.first, options.second, options.condition, options.measure)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    digits = 3 if comparison.measure is SIMILARITY else 1
    print(f"| {comparison.measure} | | 95 % interval |\n|---|---|---|")
    for name, figure in comparison.values.items():
        print(f"| {name} | {figure.value:.{digits}f} | {figure.low:.{digits}f} to {figure.high:.{digits}f} |")
    if comparison.left_out:
        print(f"\n{comparison.left_out} utterances left out: a judge refused them for one of the two systems.")


if __name__ == "__main__":
    main()
