r"""Is one system better than another on the same sentences? The paired difference of two systems' reports.

python -m e2e_tts.pipelines.evaluation.report_difference --first adapted/speech.json --second plain/speech.json

The reports are those of e2e_tts.pipelines.evaluation.scoring or of held_out_similarity, one for each sampling seed, in
the same order for both systems. Sentences are drawn whole, with all their seeds, and seeds as well where there are
several: intervals hold 95 % of 2,000 draws.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .paired_bootstrap import Interval, Measurements, interval, paired_difference

ERRORS, SIMILARITY = "word error rate, %", "speaker similarity"


def read_report(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """What a report measures, and its rows. Raises ValueError for another file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        measure = SIMILARITY if "similarity" in rows[0] else ERRORS
        needed = {"reference", "similarity"} if measure is SIMILARITY else {"reference", "edits", "words"}
        complete = all(needed <= row.keys() for row in rows)
    except (ValueError, LookupError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise ValueError(f"{path} is no report of scoring or held_out_similarity.")
    return measure, rows


def collect(paths: Sequence[Path]) -> tuple[str, Measurements]:
    """Reports of one system, one a seed, as ratios by sentence. Raises ValueError for reports of different measures."""
    reports = [read_report(path) for path in paths]
    measures = {measure for measure, _ in reports}
    if len(measures) > 1:
        raise ValueError("Words and similarity are compared in two calls: give reports of one of them.")
    measure = measures.pop()
    records = []
    for seed, (_, rows) in enumerate(reports):
        for row in rows:
            parts = (row["similarity"], 1.0) if measure is SIMILARITY else (100.0 * row["edits"], row["words"])
            records.append((seed, row["reference"], *parts))
    return measure, Measurements.collect(records)


def compare(first: Sequence[Path], second: Sequence[Path]) -> tuple[str, dict[str, Interval]]:
    """The measure, and its value for "first", for "second" and for "difference" (first less second, paired).

    Raises ValueError for files that are no reports, of different measures, sentences or numbers of seeds.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} reports: give one a seed for both systems, in one order.")
    (measure, ours), (other_measure, theirs) = collect(first), collect(second)
    if measure != other_measure:
        raise ValueError(f"One side has {measure}, the other {other_measure}: give reports of one of them.")
    return measure, {
        "first": interval(ours),
        "second": interval(theirs),
        "difference": paired_difference(ours, theirs),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m e2e_tts.pipelines.evaluation.report_difference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--first", type=Path, nargs="+", required=True, help="JSON reports, one a seed")
    parser.add_argument("--second", type=Path, nargs="+", required=True, help="the same of the other system")
    options = parser.parse_args(arguments)
    try:
        measure, values = compare(options.first, options.second)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    digits = 3 if measure is SIMILARITY else 1
    print(f"| {measure} | | 95 % interval |\n|---|---|---|")
    for name, value in values.items():
        print(f"| {name} | {value.value:.{digits}f} | {value.low:.{digits}f} to {value.high:.{digits}f} |")


if __name__ == "__main__":
    main()
