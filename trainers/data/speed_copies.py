"""Copies of prepared speech at other speeds: more voices that say the same words, where there is little speech.

python -m e2e_tts.trainers.data.speed_copies --data data/prepared --sources alice --output data/speeds

A copy is resampled, so that its pitch and formants change as well: another speaker, NAME@SPEED, of the source
NAME_speed, with a voice embedding of its own once e2e_tts.trainers.data.annotate has seen it. Train on both folders and
weigh both sources in the recipe (`data.weights`). Only training rows are copied; what was held out stays held out. A
run that was stopped goes on when it is started again.

The augmentation is that of Ko et al., "Audio augmentation for speech recognition", Interspeech 2015.
"""

import argparse
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import soxr
from datasets import Dataset, disable_progress_bars, load_from_disk

from ..command_line import CommandParser
from .part_store import Pace, PartStore
from .prepare import FEATURES
from .speech_data import load_folder
from .speech_signal import encode_flac, read_recording

logger = logging.getLogger(__name__)

ROWS_PER_PART = 200
SPEEDS = (0.87, 0.93, 1.07, 1.14)
SLOWEST, FASTEST = 0.5, 2.0
COPIED = tuple(FEATURES)  # annotate adds the rest, which is another for another voice


def copy_at(row: Mapping, speed: float) -> dict:
    """A prepared row spoken `speed` times as fast, in the same columns."""
    channels, rate = read_recording(row["audio"]["bytes"] or row["audio"]["path"])
    # Played at `rate`, samples made for rate / speed pass by `speed` times as fast.
    samples = soxr.resample(channels.mean(axis=1), rate, rate / speed, quality="VHQ").clip(-1.0, 1.0)
    changes = {
        "id": f"{row['id']}@{speed:g}",
        "audio": {"bytes": encode_flac(samples, rate), "path": None},
        "speaker": f"{row['speaker']}@{speed:g}",
        "source": f"{row['source']}_speed",
        "seconds": len(samples) / rate,
    }
    return {name: row[name] for name in COPIED} | changes


def copy_rows(
    rows: Dataset, speeds: Sequence[float], sources: Sequence[str], output: Path, data: str, overwrite: bool = False
) -> Dataset:
    """Writes copies of the training rows of some sources (of all, if none is named) to `output`, and returns them.

    Raises ValueError for speeds that are none and sources without training rows, FileExistsError (see `PartStore`).
    """
    if not speeds or any(speed == 1.0 or not SLOWEST <= speed <= FASTEST for speed in speeds):
        raise ValueError(f"Speeds lie between {SLOWEST} and {FASTEST} and are not 1, got {list(speeds)}.")
    places = list(zip(rows["source"][:], rows["split"][:], strict=True))
    found = Counter(source for source, split in places if split == "train")
    if missing := sorted(set(sources) - set(found)) or ([] if found else ["any source"]):
        raise ValueError(f"No training rows of {missing}; there are {dict(found)}.")
    kept = [index for index, (source, split) in enumerate(places) if split == "train" and source in (sources or found)]
    rows = rows.select(kept).select_columns(list(COPIED))
    settings = {"data": data, "speeds": list(speeds), "sources": list(sources), "rows": len(rows)}
    store = PartStore(output, settings, rows.features, overwrite)
    done = sum(note["copied"] for note in store.notes)
    pace = Pace(done, len(rows))
    for start in range(done, len(rows), ROWS_PER_PART):
        part = rows.select(range(start, min(start + ROWS_PER_PART, len(rows))))
        store.add([copy_at(row, speed) for row in part for speed in speeds], {"copied": len(part)})
        logger.info("%s", pace(start + len(part)))
    store.finish(store.rows(), {})
    return load_from_disk(str(output))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder written by e2e_tts.trainers.data.prepare")
    parser.add_argument("--sources", nargs="*", default=[], metavar="NAME", help="of the data set; by default all")
    parser.add_argument("--speeds", nargs="+", type=float, default=SPEEDS, help="1 is as it is; default %(default)s")
    parser.add_argument("--output", type=Path, required=True, help="folder for the copies, beside --data")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output, or begin anew")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    disable_progress_bars()
    try:
        rows = load_folder(options.data)
        copies = copy_rows(rows, options.speeds, options.sources, options.output, options.data, options.overwrite)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    for source, count in sorted(Counter(copies["source"][:]).items()):
        print(f"{source}: {count} copies -> {options.output}")


if __name__ == "__main__":
    main()
