"""Chooses held-out sentences and speakers once, with a seed, and writes them to the file that `prepare` reads.

python -m e2e_tts.trainers.data.make_splits --by-sentence speech/alice:40:40 --by-speaker speech/many:20:15 \
    --output splits.json

By sentence: a unique text is held out with all its takes. By speaker: a speaker is held out with all clips, and the
texts of those clips with them, so no sentence of the test set is learnt from anyone else.
"""

import argparse
import random
from collections import defaultdict
from pathlib import Path

from e2e_tts.trainers.data.corpus_files import read_metadata
from e2e_tts.trainers.data.splits import Splits, normalise_text

from ..command_line import CommandParser


def parse_request(value: str) -> tuple[Path, int, int]:
    """FOLDER:n_test:n_dev -> its three parts. Raises ArgumentTypeError."""
    try:
        folder, n_test, n_dev = value.rsplit(":", 2)
        return Path(folder), int(n_test), int(n_dev)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected FOLDER:n_test:n_dev, got {value!r}") from error


def duration(row: dict[str, str]) -> float:
    """Seconds of a row as its metadata says; 0 where it says nothing."""
    return float(row["seconds"] or 0)


def hold_out_sentences(
    rows: list[dict[str, str]], n_test: int, n_dev: int, rng: random.Random, min_words: int, max_seconds: float
) -> tuple[list[str], list[str]]:
    """Draws original texts for test and dev: at least `min_words` words, no take longer than `max_seconds`.

    Raises ValueError if there are too few.
    """
    takes = defaultdict(list)
    for row in rows:
        takes[normalise_text(row["text"])].append(row)
    candidates = sorted(
        group[0]["text"]
        for key, group in takes.items()
        if len(key.split()) >= min_words and max(map(duration, group)) <= max_seconds
    )
    if len(candidates) < n_test + n_dev:
        raise ValueError(
            f"Asked for {n_test + n_dev} held-out sentences, but only {len(candidates)} have at least {min_words} "
            f"words and at most {max_seconds} s. Lower the numbers or --min-words."
        )
    drawn = rng.sample(candidates, n_test + n_dev)
    return drawn[:n_test], drawn[n_test:]


def hold_out_speakers(
    rows: list[dict[str, str]], n_test: int, n_dev: int, rng: random.Random, clips: tuple[int, int], excluded: set[str]
) -> tuple[list[str], list[str]]:
    """Draws speakers for test and dev among those with `clips` (fewest, most) clips. Raises ValueError if too few."""
    counts = defaultdict(int)
    for row in rows:
        if row["speaker"]:
            counts[row["speaker"]] += 1
    candidates = sorted(s for s, count in counts.items() if clips[0] <= count <= clips[1] and s not in excluded)
    if len(candidates) < n_test + n_dev:
        raise ValueError(
            f"Asked for {n_test + n_dev} held-out speakers, but only {len(candidates)} have {clips[0]} to {clips[1]} "
            "clips. Lower the numbers or widen --clips-per-speaker."
        )
    drawn = rng.sample(candidates, n_test + n_dev)
    return drawn[:n_test], drawn[n_test:]


def exclude_speakers(prefixes: list[str], sources: dict[Path, list[dict[str, str]]]) -> set[str]:
    """Full ids of the speakers that start with a prefix. Raises ValueError for a prefix that fits none or several."""
    speakers = {row["speaker"] for rows in sources.values() for row in rows if row["speaker"]}
    excluded = set()
    for prefix in prefixes:
        matches = sorted(speaker for speaker in speakers if speaker.startswith(prefix))
        if len(matches) != 1:
            raise ValueError(f"--exclude-speakers {prefix}: expected one speaker, found {matches or 'none'}.")
        excluded.update(matches)
    return excluded


def write_sentences(path: Path | None, texts: list[str]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    request = {"nargs": "+", "type": parse_request, "default": [], "metavar": "FOLDER:N_TEST:N_DEV"}
    parser.add_argument("--by-sentence", **request, help="hold out unique sentences")
    parser.add_argument("--by-speaker", **request, help="hold out whole speakers")
    parser.add_argument("--exclude-speakers", nargs="*", default=[], metavar="PREFIX", help="never to be used")
    parser.add_argument("--min-words", type=int, default=6, help="of a held-out sentence")
    parser.add_argument("--max-seconds", type=float, default=10.0, help="of a held-out sentence, as in prepare")
    parser.add_argument("--clips-per-speaker", nargs=2, type=int, default=(2, 10), metavar=("FEWEST", "MOST"))
    parser.add_argument("--test-sentences", type=Path, help="also write the first --by-sentence folder's test texts")
    parser.add_argument("--dev-sentences", type=Path, help="also write the first --by-sentence folder's dev texts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="the JSON file")
    options = parser.parse_args(arguments)
    splits = Splits()
    try:
        requests = options.by_sentence + options.by_speaker
        sources = {folder: read_metadata(folder) for folder, _, _ in requests}
        splits.excluded_speakers = exclude_speakers(options.exclude_speakers, sources)
        for position, (folder, n_test, n_dev) in enumerate(options.by_sentence):
            # One generator a folder: adding a folder later leaves the other folders' choice as it was.
            rng = random.Random(f"{options.seed}/{folder.resolve().name}")
            test, dev = hold_out_sentences(sources[folder], n_test, n_dev, rng, options.min_words, options.max_seconds)
            splits.test_texts |= {normalise_text(text) for text in test}
            splits.dev_texts |= {normalise_text(text) for text in dev}
            if position == 0:
                write_sentences(options.test_sentences, test)
                write_sentences(options.dev_sentences, dev)
        for folder, n_test, n_dev in options.by_speaker:
            rng = random.Random(f"{options.seed}/{folder.resolve().name}")
            test, dev = hold_out_speakers(
                sources[folder], n_test, n_dev, rng, tuple(options.clips_per_speaker), splits.excluded_speakers
            )
            splits.test_speakers |= set(test)
            splits.dev_speakers |= set(dev)
            splits.test_texts |= {normalise_text(r["text"]) for r in sources[folder] if r["speaker"] in test}
            splits.dev_texts |= {normalise_text(r["text"]) for r in sources[folder] if r["speaker"] in dev}
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    splits.dev_texts -= splits.test_texts
    splits.save(options.output)
    print(", ".join(f"{len(values)} {name}" for name, values in vars(splits).items()), "->", options.output)


if __name__ == "__main__":
    main()
