"""Turns folders of recordings with a `metadata.csv` into one `datasets` dataset that training reads.

python -m e2e_tts.trainers.prepare --source speech/alice speech/bob --output data/prepared --sampling-rate 16000

Every folder has a `metadata.csv` with the columns file, text, speaker, emotion, language, seconds; `file` is relative
to the folder. A row that cannot be used is listed with its reason in `refused.csv` of the output and never stops the
run.
"""

import argparse
import csv
import io
import json
import logging
import re
import shutil
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import soundfile
import soxr

logger = logging.getLogger(__name__)

COLUMNS = ("file", "text", "speaker", "emotion", "language", "seconds")
SILENCE_DBFS = -60.0
TARGET_RMS_DBFS = -23.0
PEAK_LIMIT = 0.95


class RefusedRow(ValueError):
    """A row that is left out of the dataset; the message is the reason."""


@dataclass
class Splits:
    """Explicit held-out material. Texts are normalised with `normalise_text`, speakers are matched exactly."""

    dev_texts: set[str] = field(default_factory=set)
    test_texts: set[str] = field(default_factory=set)
    dev_speakers: set[str] = field(default_factory=set)
    test_speakers: set[str] = field(default_factory=set)
    excluded_speakers: set[str] = field(default_factory=set)

    @classmethod
    def load(cls, path: str | Path | None) -> "Splits":
        """Reads a JSON file of lists; None gives empty splits. Raises ValueError for unknown keys."""
        if path is None:
            return cls()
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(set(content) - known):
            raise ValueError(f"{path} has unknown keys {unknown}; the known ones are {sorted(known)}.")
        values = {key: set(value) for key, value in content.items()}
        for key in ("dev_texts", "test_texts"):
            values[key] = {normalise_text(text) for text in values.get(key, ())}
        return cls(**values)

    def save(self, path: str | Path) -> None:
        content = {entry.name: sorted(getattr(self, entry.name)) for entry in fields(self)}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def assign(self, text: str, speaker: str) -> str:
        """The split of a row. Raises RefusedRow for an excluded speaker. Test wins over dev, dev over train."""
        if speaker in self.excluded_speakers:
            raise RefusedRow("excluded speaker")
        key = normalise_text(text)
        if key in self.test_texts or speaker in self.test_speakers:
            return "test"
        return "dev" if key in self.dev_texts or speaker in self.dev_speakers else "train"


def normalise_text(text: str) -> str:
    """Lower-case words only, so that the same sentence matches across punctuation, case and apostrophes."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"['\u2019`\u00b4]", "", text)
    return " ".join(re.findall(r"[^\W_]+", text))


def read_metadata(folder: str | Path) -> list[dict[str, str]]:
    """The rows of `folder/metadata.csv`. Raises FileNotFoundError or ValueError (missing columns)."""
    path = Path(folder) / "metadata.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. A source folder needs one, with columns {', '.join(COLUMNS)}.")
    with path.open(encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle)
        missing = [name for name in COLUMNS[:3] if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} lacks the columns {missing}; it has {reader.fieldnames}.")
        return [{name: (row.get(name) or "").strip() for name in COLUMNS} for row in reader]


def frame_levels(samples: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, int]:
    """RMS level in dBFS of every 10 ms frame of mono samples (L,), and the frame length in samples."""
    size = max(1, sampling_rate // 100)
    count = len(samples) // size
    frames = samples[: count * size].reshape(count, size)
    return 10 * np.log10(np.mean(frames.astype(np.float64) ** 2, axis=1) + 1e-12), size


def trim_silence(samples: np.ndarray, sampling_rate: int, keep_seconds: float = 0.1) -> np.ndarray:
    """Cuts leading and trailing silence of mono samples (L,) down to `keep_seconds` each.

    The threshold follows the recording: just above its noise floor, but between 45 and 30 dB below its loud parts, so
    that a noisy recording loses nothing rather than a quiet consonant. Sound counts from three frames in a row (30 ms),
    so a click does not stop the trimming.
    """
    levels, size = frame_levels(samples, sampling_rate)
    if len(levels) < 3:
        return samples
    loud, floor = np.percentile(levels, 95), np.percentile(levels, 5)
    threshold = np.clip(floor + 6, loud - 45, loud - 30)
    active = levels > threshold
    runs = np.flatnonzero(active[:-2] & active[1:-1] & active[2:])
    if not len(runs):
        return samples
    margin = round(keep_seconds * sampling_rate)
    return samples[max(0, runs[0] * size - margin) : (runs[-1] + 3) * size + margin]


def normalise_loudness(samples: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Scales mono samples so that their spoken part has an RMS of -23 dBFS and no peak exceeds 0.95."""
    levels, _ = frame_levels(samples, sampling_rate)
    spoken = levels[levels > np.percentile(levels, 95) - 30]
    rms = np.sqrt(np.mean(10 ** (spoken / 10)))
    gain = 10 ** (TARGET_RMS_DBFS / 20) / rms
    return samples * min(gain, PEAK_LIMIT / float(np.max(np.abs(samples))))


def load_speech(path: Path, sampling_rate: int, min_seconds: float, max_seconds: float) -> np.ndarray:
    """Reads, checks, resamples, trims and levels one recording: float32 mono samples (L,). Raises RefusedRow."""
    if not path.is_file():
        raise RefusedRow("file is missing")
    try:
        samples, original_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise RefusedRow(f"does not decode: {error}") from error
    samples = samples.mean(axis=1)
    if not np.isfinite(samples).all():
        raise RefusedRow("has samples that are not finite")
    if len(samples) < min_seconds * original_rate:
        raise RefusedRow(f"shorter than {min_seconds} s")
    if original_rate != sampling_rate:
        samples = soxr.resample(samples, original_rate, sampling_rate, quality="VHQ")
    levels, _ = frame_levels(samples, sampling_rate)
    if np.percentile(levels, 95) < SILENCE_DBFS:
        raise RefusedRow("silent")
    samples = trim_silence(samples, sampling_rate)
    seconds = len(samples) / sampling_rate
    if not min_seconds <= seconds <= max_seconds:
        raise RefusedRow(f"{seconds:.2f} s of speech, outside {min_seconds} to {max_seconds} s")
    return normalise_loudness(samples, sampling_rate).astype(np.float32)


def encode_flac(samples: np.ndarray, sampling_rate: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sampling_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


class Preparation:
    """Iterates over the usable rows of all sources; collects the refused ones and the totals on the way."""

    def __init__(
        self, sources: Iterable[Path], sampling_rate: int, min_seconds: float, max_seconds: float, splits: Splits
    ) -> None:
        self.sampling_rate, self.min_seconds, self.max_seconds = sampling_rate, min_seconds, max_seconds
        self.splits = splits
        # Read up front: a missing or malformed metadata.csv is a mistake in the command and should fail at once.
        self.rows = {Path(source): read_metadata(source) for source in sources}
        names = Counter(folder.resolve().name for folder in self.rows)
        if repeated := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"Several source folders are called {repeated}; ids would clash. Rename one of them.")
        self.refused: list[dict[str, str]] = []
        self.clips: Counter = Counter()
        self.seconds: defaultdict = defaultdict(float)

    def examples(self) -> Iterator[dict]:
        seen: set[str] = set()
        for folder, rows in self.rows.items():
            name = folder.resolve().name
            for row in rows:
                try:
                    example = self.example(folder, name, row)
                    if example["id"] in seen:
                        raise RefusedRow(f"repeats the id {example['id']}")
                except RefusedRow as refusal:
                    self.refuse(name, row, str(refusal))
                    continue
                except Exception as error:
                    # One odd row among thousands must not cost the run; the reason is in refused.csv.
                    self.refuse(name, row, f"{type(error).__name__}: {error}")
                    continue
                seen.add(example["id"])
                key = (name, example["split"], example["speaker"])
                self.clips[key] += 1
                self.seconds[key] += example["seconds"]
                if len(seen) % 1000 == 0:
                    logger.info("%d clips done", len(seen))
                yield example

    def example(self, folder: Path, source: str, row: dict[str, str]) -> dict:
        if not row["file"] or not normalise_text(row["text"]):
            raise RefusedRow("no file name or no text")
        if not row["speaker"]:
            raise RefusedRow("no speaker")
        split = self.splits.assign(row["text"], row["speaker"])
        samples = load_speech(folder / row["file"], self.sampling_rate, self.min_seconds, self.max_seconds)
        return {
            "id": f"{source}/{Path(row['file']).stem}",
            "audio": {"bytes": encode_flac(samples, self.sampling_rate), "path": None},
            "text": unicodedata.normalize("NFC", row["text"]),
            "speaker": row["speaker"],
            "emotion": row["emotion"],
            "language": row["language"],
            "source": source,
            "seconds": len(samples) / self.sampling_rate,
            "split": split,
        }

    def refuse(self, source: str, row: dict[str, str], reason: str) -> None:
        self.refused.append({"source": source, "file": row["file"], "text": row["text"], "reason": reason})

    def write_refused(self, path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, ("source", "file", "text", "reason"))
            writer.writeheader()
            writer.writerows(self.refused)

    def summary(self) -> list[dict]:
        """Clips and hours for every source, split and speaker."""
        return [
            {"source": s, "split": p, "speaker": k, "clips": n, "hours": round(self.seconds[s, p, k] / 3600, 4)}
            for (s, p, k), n in sorted(self.clips.items())
        ]


def prepare(preparation: Preparation, output: Path, overwrite: bool = False) -> None:
    """Writes the dataset with refused.csv and summary.json to `output`; the folder appears only when complete.

    Raises FileExistsError if `output` exists and `overwrite` is false, ValueError if no row could be used.
    """
    from datasets import Dataset, Features, Value
    from datasets.arrow_writer import ArrowWriter

    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists. Choose another --output or pass --overwrite.")
    text = Value("string")
    features = Features(
        {
            "id": text,
            "audio": {"bytes": Value("binary"), "path": text},
            **{name: text for name in ("text", "speaker", "emotion", "language", "source")},
            "seconds": Value("float32"),
            "split": text,
        }
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".preparing-") as temporary:
        shard = f"{temporary}/prepared.arrow"
        with ArrowWriter(path=shard, features=features, writer_batch_size=200) as writer:
            for example in preparation.examples():
                writer.write(example)
            writer.finalize()
        if not preparation.clips:
            refused = output.parent / "refused.csv"
            preparation.write_refused(refused)
            raise ValueError(f"No usable row in the sources; see the reasons in {refused}.")
        dataset = Dataset.from_file(shard)
        finished = Path(temporary) / "dataset"
        dataset.save_to_disk(finished)
        preparation.write_refused(finished / "refused.csv")
        (finished / "summary.json").write_text(json.dumps(preparation.summary(), indent=1), encoding="utf-8")
        if output.exists():
            shutil.rmtree(output)
        finished.rename(output)


def main(arguments: list[str] | None = None) -> None:
    from datasets import disable_progress_bars

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", nargs="+", type=Path, required=True, help="folders that hold a metadata.csv")
    parser.add_argument("--output", type=Path, required=True, help="folder for the dataset")
    parser.add_argument("--sampling-rate", type=int, default=16000, help="of the prepared audio, in Hz")
    parser.add_argument("--min-seconds", type=float, default=0.6)
    parser.add_argument("--max-seconds", type=float, default=10.0)
    parser.add_argument("--split-file", type=Path, help="JSON as written by e2e_tts.trainers.make_splits")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # The bars of `datasets` fill a log file with control characters; progress is logged every 1000 clips instead.
    disable_progress_bars()
    try:
        splits = Splits.load(options.split_file)
        preparation = Preparation(
            options.source, options.sampling_rate, options.min_seconds, options.max_seconds, splits
        )
        prepare(preparation, options.output, options.overwrite)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    totals: defaultdict = defaultdict(lambda: [0, 0.0])
    for (source, split, _), count in preparation.clips.items():
        totals[source, split][0] += count
    for (source, split, _), seconds in preparation.seconds.items():
        totals[source, split][1] += seconds
    for (source, split), (count, seconds) in sorted(totals.items()):
        print(f"{source:20s} {split:6s} {count:7d} clips {seconds / 3600:8.2f} h")
    print(f"{len(preparation.refused)} rows refused, see {options.output / 'refused.csv'}")


if __name__ == "__main__":
    main()
