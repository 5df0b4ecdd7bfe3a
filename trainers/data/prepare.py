"""Turns speech corpora into one `datasets` dataset that training reads.

python -m e2e_tts.trainers.data.prepare --source speech/alice speech/bob --output data/prepared --sampling-rate 16000

A source is any of these; --format says which where that is not clear from the files:

  metadata     a folder with metadata.csv: file,text and where they are known speaker,emotion,language
  ljspeech     a list of id|text or id|text|normalised text (or a folder with such a metadata.csv), recordings in wavs/;
               a column of speakers is found, and a first line such as audio_file|text|speaker_name is read;
               --columns text=3 speaker=2 says by number what columns without names hold
  kaldi        a folder with wav.scp and text, and utt2spk, segments, utt2lang, utt2emo where they exist
  webdataset   tar shards: a folder, a file, "shards/*.tar" or a URL; .txt is the text, entries of .json are columns
  parquet      a file or "folder/*.parquet"
  audiofolder  a folder as `datasets` has it, with a metadata file that names file_name and text
  saved        a folder of save_to_disk
  datasets     anything else that load_dataset takes: a name on the Hub, or a folder laid out like one

Every row is checked. A row that cannot be used is listed with its reason in refused.csv of the output and never stops
the run; summary.md counts what was kept and refused. A run that was stopped goes on when it is started again.
"""

import argparse
import hashlib
import json
import logging
import multiprocessing
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from datasets import Dataset, Features, List, Value, disable_progress_bars

from ..command_line import CommandParser
from .corpora import ALIASES, FORMATS, Corpus, CorpusOptions, open_corpora
from .part_store import Pace, PartStore
from .prepare_report import markdown, refused_csv, summarise, totals
from .row_checks import NO_TOKENIZER, CheckSettings, RawRow, RefusedRow, RowChecker
from .splits import SplitFractions, Splits
from .text_tokens import PHONEMES, TOKENIZER_HELP

logger = logging.getLogger(__name__)

ROWS_PER_PART = 500
TEXT = Value("string")
FEATURES = {
    "id": TEXT,
    "audio": {"bytes": Value("binary"), "path": TEXT},
    **dict.fromkeys(("text", "speaker", "emotion", "language", "source"), TEXT),
    "seconds": Value("float32"),
    "split": TEXT,
}
Result = dict | RefusedRow
MapRows = Callable[[Iterable[RawRow]], Iterable[Result]]


class CheckOrRefuse:
    """RowChecker that returns a refusal instead of raising it, whatever is wrong with the row."""

    def __init__(self, checker: RowChecker) -> None:
        self.checker = checker

    def __call__(self, row: RawRow) -> Result:
        try:
            return self.checker(row)
        except RefusedRow as refusal:
            return refusal
        except OSError:  # a network or a disk that fails: the run stops, and goes on with the same command
            raise
        except Exception as error:
            # One odd row among thousands must not cost the run; the reason is in refused.csv.
            return RefusedRow("error", f"{type(error).__name__}: {error}")


@contextmanager
def row_mapper(checker: RowChecker, num_proc: int) -> Iterator[MapRows]:
    """Checks rows in order, in this process or in several."""
    check = CheckOrRefuse(checker)
    if num_proc == 1:
        yield lambda rows: map(check, rows)
        return
    with ProcessPoolExecutor(num_proc, multiprocessing.get_context()) as pool:
        yield lambda rows: pool.map(check, rows, chunksize=8)


class Preparation:
    """The rows of all corpora, checked and split.

    splits: explicit held-out material. It decides before a corpus's own splits, and these before `fractions`.
    """

    def __init__(
        self, corpora: Sequence[Corpus], checker: RowChecker, splits: Splits, fractions: SplitFractions
    ) -> None:
        self.corpora, self.checker, self.splits, self.fractions = corpora, checker, splits, fractions
        places = defaultdict(list)
        for corpus in corpora:
            places[corpus.name, corpus.split].append(corpus.part)
        # Parts of one corpus have names of their own, and what is in two of them is found by its id.
        clashing = {key for key, parts in places.items() if len(parts) > 1 and len({*parts} - {""}) < len(parts)}
        if repeated := sorted({name for name, _ in clashing}):
            raise ValueError(f"Several sources are called {repeated}; ids would clash. Tell them apart with --name.")
        totals = [corpus.total for corpus in corpora]
        self.total = None if None in totals else sum(totals)

    def features(self) -> Features:
        """The columns of the prepared data set; embeddings are there if a corpus brings them."""
        embeddings = any("speaker_embedding" in corpus.columns for corpus in self.corpora)
        return Features(FEATURES | ({"speaker_embedding": List(Value("float64"))} if embeddings else {}))

    def split_of(self, row: RawRow, example: dict) -> str:
        explicit = self.splits.assign(example["text"], example["speaker"])
        if explicit != "train":
            return explicit
        return row.split or self.fractions.assign(example["text"], example["speaker"])

    def write(self, store: PartStore, map_rows: MapRows) -> None:
        """Writes the rows that `store` does not have yet. A part holds rows of one corpus."""
        kept = store.rows()
        seen = set() if kept is None else set(kept["id"][:])
        first, state, read = 0, None, 0
        if store.notes:
            last = store.notes[-1]
            first, state, read = last["corpus"], last["state"], last["read"]
            logger.info("Going on after %d rows.", read)
        pace = Pace(read, self.total)
        for number, corpus in enumerate(self.corpora[first:], first):
            if state is not None:
                corpus.resume(state)
                state = None
            stream = iter(corpus)
            while raw := list(islice(stream, ROWS_PER_PART)):
                examples, refused = self.part(raw, map_rows, seen)
                read += len(raw)
                store.add(examples, {"corpus": number, "state": corpus.state(), "read": read, "refused": refused})
                logger.info("%s: %s, %d kept", corpus.name, pace(read), len(seen))

    def part(self, raw: Sequence[RawRow], map_rows: MapRows, seen: set[str]) -> tuple[list[dict], list[dict]]:
        """Checks some rows: the usable ones, whose ids are added to `seen`, and the refused ones with their reasons."""
        examples, refused = [], []
        wanted = [row for row in raw if row.speaker not in self.splits.excluded_speakers]
        results = iter(map_rows(wanted))
        for row in raw:
            if row.speaker in self.splits.excluded_speakers:
                result: Result = RefusedRow("excluded speaker", "excluded speaker")
            else:
                result = next(results)
            if not isinstance(result, RefusedRow) and row.id in seen:
                result = RefusedRow("repeated id", f"repeats the id {row.id}")
            if isinstance(result, RefusedRow):
                entry = {"source": row.source, "id": row.id, "file": row.file, "text": row.text}
                refused.append({**entry, "check": result.check, "reason": str(result)})
            else:
                seen.add(row.id)
                examples.append({**result, "split": self.split_of(row, result)})
        return examples, refused


def prepare(
    preparation: Preparation, output: Path, settings: dict[str, object], num_proc: int = 1, overwrite: bool = False
) -> dict:
    """Writes the data set with refused.csv, summary.json and summary.md to `output`; returns the summary.

    The folder appears only when complete. settings: what the rows depend on, for the report and for going on later.
    Raises FileExistsError (see `PartStore`), ValueError if no row could be used.
    """
    store = PartStore(output, settings, preparation.features(), overwrite)
    with row_mapper(preparation.checker, num_proc) as map_rows:
        preparation.write(store, map_rows)
    refused = [row for note in store.notes for row in note["refused"]]
    rows: Dataset | None = store.rows()
    if rows is None:
        listed = output.parent / f"{output.name}.refused.csv"
        listed.write_text(refused_csv(refused), encoding="utf-8", newline="")
        store.discard()  # the next run should look at the corpora again
        counts = ", ".join(f"{check}: {n}" for check, n in Counter(row["check"] for row in refused).most_common())
        raise ValueError(f"No usable row in the sources ({counts or 'they are empty'}); see the reasons in {listed}.")
    summary = summarise(rows, refused, settings)
    files = {
        "refused.csv": refused_csv(refused),
        "summary.json": json.dumps(summary, indent=1, ensure_ascii=False),
        "summary.md": markdown(summary),
    }
    store.finish(rows, files)
    return summary


def column(value: str) -> tuple[str, str]:
    """NAME=COLUMN -> its two parts. Raises argparse.ArgumentTypeError."""
    contract, separator, name = value.partition("=")
    if not separator or contract not in ALIASES:
        raise argparse.ArgumentTypeError(f"expected NAME=COLUMN with a NAME of {', '.join(ALIASES)}; got {value!r}")
    return contract, name


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", nargs="+", required=True, help="folders, files, patterns or names on the Hub")
    parser.add_argument("--output", type=Path, required=True, help="folder for the dataset")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output, or begin anew")
    parser.add_argument("--num-proc", type=int, default=1, help="processes that check and encode")
    reading = parser.add_argument_group("reading")
    reading.add_argument("--format", choices=("auto", *FORMATS), default="auto")
    reading.add_argument("--config", help="of a corpus on the Hub that has several")
    reading.add_argument(
        "--split", nargs="+", default=[], help="read these splits of the corpus only; without it, "
        "train, dev and test by their names (train.clean.100, validation, ...)",
    )  # fmt: skip
    reading.add_argument("--streaming", action="store_true", help="read from the Hub without downloading first")
    reading.add_argument(
        "--columns", nargs="+", type=column, default=[], metavar="NAME=COLUMN",
        help=f"where a column ({', '.join(ALIASES)}) has another name, e.g. text=sentence speaker=json.reader; "
        "an empty COLUMN leaves it out",
    )  # fmt: skip
    reading.add_argument("--name", nargs="+", help="of each source in the data set, by which recipes weigh them")
    reading.add_argument("--speaker", help="of rows that name none; otherwise each is a voice of its own")
    reading.add_argument("--language", default="", help="of rows that name none")
    checks = parser.add_argument_group("checks")
    checks.add_argument("--sampling-rate", type=int, default=16000, help="of the prepared audio, in Hz")
    checks.add_argument("--min-source-rate", type=int, help="of a recording, in Hz; 90 %% of --sampling-rate")
    checks.add_argument("--min-seconds", type=float, default=CheckSettings.min_seconds)
    checks.add_argument("--max-seconds", type=float, default=CheckSettings.max_seconds)
    checks.add_argument("--max-clipped", type=float, default=CheckSettings.max_clipped, help="share of the samples")
    checks.add_argument("--min-characters", type=float, default=CheckSettings.min_characters, help="a second")
    checks.add_argument("--max-characters", type=float, default=CheckSettings.max_characters, help="a second")
    checks.add_argument(
        "--tokenizer", default=PHONEMES,
        help=f"text must be in its alphabet: {TOKENIZER_HELP}, a tokenizer or model by folder or Hub name, or "
        f"{NO_TOKENIZER}",
    )  # fmt: skip
    splits = parser.add_argument_group("held-out rows")
    splits.add_argument("--split-file", type=Path, help="JSON as written by e2e_tts.trainers.data.make_splits")
    splits.add_argument("--dev-fraction", type=float, default=0.0, help="of a corpus without splits of its own")
    splits.add_argument("--test-fraction", type=float, default=0.0, help="of a corpus without splits of its own")
    splits.add_argument("--hold-out-by", choices=("text", "speaker"), default="text")
    splits.add_argument("--seed", type=int, default=0, help="of the fractions")
    return parser


def _digest(values: set[str]) -> str:
    """Tells one list of held-out texts or speakers from another; a count would not."""
    return hashlib.sha256("\n".join(sorted(values)).encode()).hexdigest()[:16]


def main(arguments: list[str] | None = None) -> None:
    parser = build_parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # The bars of `datasets` fill a log file with control characters; progress is logged part by part instead.
    disable_progress_bars()
    if options.name and len(options.name) != len(options.source):
        parser.error("--name needs one name for each --source")
    if options.num_proc < 1:
        parser.error("--num-proc must be at least 1")
    try:
        checks = CheckSettings(**{name: getattr(options, name) for name in CheckSettings.__dataclass_fields__})
        fractions = SplitFractions(options.dev_fraction, options.test_fraction, options.hold_out_by, options.seed)
        splits = Splits.load(options.split_file)
        reading = CorpusOptions(
            options.format,
            options.config,
            options.split,
            dict(options.columns),
            options.streaming,
            options.speaker,
            options.language,
        )
        names = options.name or [None] * len(options.source)
        corpora = [
            corpus
            for source, name in zip(options.source, names, strict=True)
            for corpus in open_corpora(source, reading, name)
        ]
        settings = {
            "sources": options.source,
            "corpora": [[corpus.name, corpus.split, corpus.total, corpus.part] for corpus in corpora],
            "reading": asdict(reading),
            "checks": asdict(checks),
            "fractions": asdict(fractions),
            "held_out": {name: _digest(values) for name, values in vars(splits).items()},
        }
        preparation = Preparation(corpora, RowChecker(checks), splits, fractions)
        summary = prepare(preparation, options.output, settings, options.num_proc, options.overwrite)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    for source, split, clips, hours, _ in totals(summary):
        print(f"{source:20s} {split:6s} {clips:7d} clips {hours:8.2f} h")
    print(f"{summary['refused']} rows refused, see {options.output / 'refused.csv'}")
    found = {split for _, split, *_ in totals(summary)}
    for split, fraction in (("dev", options.dev_fraction), ("test", options.test_fraction)):
        if fraction and split not in found:
            print(
                f"No row is held out for {split}: a corpus with splits of its own keeps those; else chance decides for "
                f"each {options.hold_out_by}, and here are too few for {fraction:g}. Raise --{split}-fraction or try "
                "another --seed."
            )


if __name__ == "__main__":
    main()
