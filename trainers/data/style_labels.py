"""Adds labels of style, computed from the signal, to annotated speech.

python -m e2e_tts.trainers.data.style_labels --data data/annotated --output data/styled

Columns added for each of pitch, pitch_range, energy, effort and rate: measured_NAME (what `style_signal.StyleMeasures`
says) and style_NAME, its rank among the speaker's own clips, between 0 and 1, from which training makes as many levels
as a model has (`styles` of a recipe). A rank is empty where the speaker has too few clips, or clips that hardly differ:
the energy of recordings that were brought to one loudness, for instance, where effort, the balance of high and low
frequencies, still tells a loud voice from a soft one. styles.csv in the output counts the clips of every speaker. A run
that was stopped goes on when it is started again.
"""

import argparse
import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Value, concatenate_datasets, disable_progress_bars, load_from_disk

from e2e_tts.modeling.styles import Levels

from ..command_line import CommandParser
from .columns import positions_by_number
from .part_store import Pace, PartStore
from .provenance import carried
from .speech_data import STYLE_PREFIX, load_folder
from .style_signal import SAMPLING_RATE, StyleMeasures, measure_style
from .vocoder_data import read_audio

logger = logging.getLogger(__name__)

ROWS_PER_PART = 500
MIN_CLIPS = 20
# Clips of a speaker that differ by less, from the 10th to the 90th percentile, are not told apart: semitones for pitch
# and its range, dB, symbols a second. Less can hardly be heard.
LEAST_SPREAD = {"pitch": 0.5, "pitch_range": 0.25, "energy": 1.0, "effort": 1.0, "rate": 0.5}
MEASURED = tuple(LEAST_SPREAD)


def measure(row: Mapping) -> StyleMeasures:
    """Measures of a prepared row; the rate needs its text tokens. A recording that cannot be read has none."""
    try:
        samples = read_audio(row["audio"], SAMPLING_RATE)
    except (OSError, RuntimeError) as error:
        logger.warning("%s gets no style: %s", row.get("id"), error)
        return StyleMeasures()
    return measure_style(samples, SAMPLING_RATE, len(row.get("text_ids") or ()))


def mid_ranks(values: np.ndarray) -> np.ndarray:
    """Shares of the values (N,) below each one, (N,), between 0 and 1; equal values share the middle of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return ((np.cumsum(counts) - counts / 2) / len(values))[places]


def speaker_ranks(name: str, values: np.ndarray, min_clips: int = MIN_CLIPS) -> tuple[np.ndarray, str]:
    """Measures of one speaker's clips (N,), NaN where there is none -> ranks (N,) and, if all are NaN, why."""
    ranks, known = np.full(len(values), np.nan), np.flatnonzero(np.isfinite(values))
    if len(known) < min_clips:
        return ranks, f"fewer than {min_clips} clips"
    scaled = 12 * np.log2(values[known]) if name == "pitch" else values[known]
    low, high = np.percentile(scaled, [10, 90])
    if high - low < LEAST_SPREAD[name]:
        return ranks, "clips hardly differ"
    ranks[known] = mid_ranks(values[known])
    return ranks, ""


def label_styles(
    rows: Dataset, output: Path, settings: Mapping[str, object], min_clips: int = MIN_CLIPS, overwrite: bool = False
) -> Dataset:
    """Writes the rows with the columns of all styles to `output`, with styles.csv and styles.json (the settings).

    Ranks are over all clips of a speaker in the data set, whatever their split. Raises FileExistsError (see
    `PartStore`), ValueError for a data set without rows.
    """
    features = Features({name: Value("float64") for name in MEASURED})
    store = PartStore(output, {**settings, "rows": len(rows)}, features, overwrite)
    done = sum(note["rows"] for note in store.notes)
    pace = Pace(done, len(rows))
    for start in range(done, len(rows), ROWS_PER_PART):
        part = rows.select(range(start, min(start + ROWS_PER_PART, len(rows))))
        store.add([asdict(measure(row)) for row in part], {})
        logger.info("%s", pace(start + len(part)))
    measures = store.rows()
    if measures is None:
        store.discard()
        raise ValueError("The data set has no rows.")
    sources = rows["source"][:] if "source" in rows.column_names else [""] * len(rows)
    names = [f"{source}/{speaker}" for source, speaker in zip(sources, rows["speaker"][:], strict=True)]
    speakers, numbers = np.unique(names, return_inverse=True)
    members = positions_by_number(numbers)
    columns, table = {}, []
    for name in MEASURED:
        values = np.asarray(measures[name][:], dtype=np.float64)
        ranks = np.full(len(rows), np.nan)
        for speaker, own in zip(speakers, members, strict=True):
            ranks[own], reason = speaker_ranks(name, values[own], min_clips)
            known = values[own][np.isfinite(values[own])]
            spread = np.percentile(known, [10, 50, 90]).round(2).tolist() if len(known) else ["", "", ""]
            table.append([speaker, name, len(own), *spread, reason])
        columns[f"measured_{name}"] = values
        columns[f"{STYLE_PREFIX}{name}"] = ranks
    added = Dataset.from_dict(
        {name: [None if np.isnan(value) else value for value in values] for name, values in columns.items()},
        Features({name: Value("float32") for name in columns}),
    )
    own = rows.remove_columns([name for name in columns if name in rows.column_names])
    listed = io.StringIO()
    header = ("speaker", "style", "clips", "percentile_10", "median", "percentile_90", "why_unspecified")
    csv.writer(listed).writerows([header, *sorted(table, key=lambda line: (-line[2], line[0]))])
    files = {"styles.csv": listed.getvalue(), "styles.json": json.dumps(settings, indent=1)}
    files |= carried(str(settings["data"]))
    store.finish(concatenate_datasets([own, added], axis=1), files)
    return load_from_disk(str(output))


def labelled_rows(rows: Dataset) -> dict[str, int]:
    """Style -> number of rows that have a label of it."""
    return {
        name: sum(rank is not None for rank in rows[f"{STYLE_PREFIX}{name}"][:])
        for name in MEASURED
        if f"{STYLE_PREFIX}{name}" in rows.column_names
    }


def check_labels(rows: Dataset, styles: Mapping[str, Levels]) -> None:
    """Raises ValueError if no row has a label of one of the styles that a model is to learn."""
    for name, levels in styles.items():
        column = f"{STYLE_PREFIX}{name}" if isinstance(levels, int) else name
        labels = rows[column][:] if column in rows.column_names else ()
        if not any(label not in (None, "") for label in labels):
            raise ValueError(
                f"No row has a label of the style {name!r} (column {column}), so it cannot be learned: run "
                "e2e_tts.trainers.data.style_labels on the data and see its styles.csv, or take it out of styles."
                if isinstance(levels, int)
                else f"No row has a label of the style {name!r} (column {column}): take it out of styles."
            )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder written by e2e_tts.trainers.data.annotate")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--min_clips", type=int, default=MIN_CLIPS, help="least clips of a speaker that is labelled")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output, or begin anew")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    disable_progress_bars()
    if options.min_clips < 2:
        parser.error("--min_clips must be at least 2: a single clip has no rank")
    try:
        rows = load_folder(options.data)
        if "text_ids" not in rows.column_names:
            logger.warning("rate stays empty: it needs text_ids, which e2e_tts.trainers.data.annotate adds.")
        settings = {"data": options.data, "min_clips": options.min_clips}
        labelled = label_styles(rows, options.output, settings, options.min_clips, options.overwrite)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    counts = ", ".join(f"{name} {count}" for name, count in labelled_rows(labelled).items())
    print(f"{len(labelled)} rows, of which have a label: {counts} (see styles.csv) -> {options.output}")


if __name__ == "__main__":
    main()
