"""Speech corpora of any kind as streams of rows in the terms of one contract.

A corpus is read through `datasets`, whatever it is, so that all of them stream, and resume from a small state. Audio is
never decoded here: rows carry encoded bytes, or a path or URL.
"""

import difflib
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
from datasets import (
    Audio,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    IterableDatasetDict,
    Value,
    load_dataset,
    load_from_disk,
)

from .corpus_files import PROBLEM, SHARD, kaldi_rows, metadata_rows, tar_samples
from .row_checks import RawRow
from .split_names import TRAIN, VALIDATED, choose_splits, first_word, is_unaccepted, standard_split
from .text_lists import KINDS, ljspeech_rows

logger = logging.getLogger(__name__)

FORMATS = ("metadata", "ljspeech", "kaldi", "webdataset", "parquet", "audiofolder", "saved", "datasets")
# Names that a column goes by in widely used corpora; --columns names any other.
ALIASES = {
    "audio": ("audio", "file", "path"),
    "text": ("text", "txt", "sentence", "transcription", "transcript"),
    "id": ("id", "__key__"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "emotion": ("emotion",),
    "language": ("language", "locale"),
    "speaker_embedding": ("speaker_embedding",),
    "split": ("split",),
}
REQUIRED = ("audio", "text")
ROWS_TO_SEE_COLUMNS = 20  # of a stream without a schema


@dataclass(frozen=True)
class CorpusOptions:
    """How sources are read.

    format: one of `FORMATS`, or "auto". config: of a corpus with several. splits: the corpus's own splits to read;
    empty for all. columns: contract name -> the corpus's column, where they differ; "a.b" reaches into a column of
    dictionaries, and "" leaves the column out. streaming: read a corpus on the Hub without downloading it first.
    speaker, language: for rows that name none.
    """

    format: str = "auto"
    config: str | None = None
    splits: Sequence[str] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    streaming: bool = False
    speaker: str | None = None
    language: str = ""

    def __post_init__(self) -> None:
        if self.format not in ("auto", *FORMATS):
            raise ValueError(f"Unknown format {self.format!r}; choose one of {', '.join(('auto', *FORMATS))}.")
        if unknown := sorted(set(self.columns) - set(ALIASES)):
            raise ValueError(f"The contract has no columns {unknown}; it has {', '.join(ALIASES)}.")


class Corpus:
    """One split of one corpus: iterates over `RawRow`, and goes on from where another process stopped.

    name: value of the `source` column. split: train, dev or test where the corpus is split, else None. part: what the
    corpus calls it where several of its parts are of one split, else "". total: number of rows where it is known.

    Raises ValueError if a column is missing.
    """

    def __init__(
        self,
        name: str,
        rows: IterableDataset,
        options: CorpusOptions,
        split: str | None = None,
        folder: Path | None = None,
        total: int | None = None,
        part: str = "",
    ) -> None:
        self.name, self.rows, self.options = name, rows, options
        self.split, self.folder, self.total, self.part = split, folder, total, part
        self.position = 0
        present = rows.column_names
        if present is None:
            present = list(dict.fromkeys(name for row in rows.take(ROWS_TO_SEE_COLUMNS) for name in row))
        self.columns = choose_columns(name, present, rows.features, options.columns)
        self.labels = {
            contract: rows.features[column]
            for contract, column in self.columns.items()
            if rows.features is not None and isinstance(rows.features.get(column), ClassLabel)
        }

    def state(self) -> dict:
        """Where the last iteration stands, in JSON's types."""
        return {"position": self.position, "rows": self.rows.state_dict()}

    def resume(self, state: dict) -> None:
        """Lets the next iteration begin where `state` was taken."""
        self.position = state["position"]
        self.rows.load_state_dict(state["rows"])

    def __iter__(self) -> Iterator[RawRow]:
        for row in self.rows:
            self.position += 1
            yield self.raw_row(row)

    def raw_row(self, row: dict) -> RawRow:
        audio, file = self.audio(self.value(row, "audio"))
        row_id = self.text(row, "id") or self.id_of(file)
        speaker = self.text(row, "speaker") if "speaker" in self.columns else None
        own_split = self.text(row, "split")
        is_asked_for = self.split is not None or bool(self.options.splits)
        return RawRow(
            source=self.name,
            id=f"{self.name}/{row_id}",
            file=file or row.get(SHARD) or row_id,
            audio=audio,
            text=self.text(row, "text"),
            speaker=speaker or self.options.speaker or speaker,
            emotion=self.text(row, "emotion"),
            language=self.text(row, "language") or self.options.language,
            speaker_embedding=self.value(row, "speaker_embedding"),
            split=self.split or standard_split(own_split),
            start_seconds=row.get("start_seconds") or 0.0,
            seconds=None if row.get("start_seconds") is None else row.get("seconds"),
            problem=row.get(PROBLEM) or "",
            unaccepted="" if is_asked_for or not is_unaccepted(own_split) else own_split,
        )

    def value(self, row: Mapping[str, Any], contract: str) -> Any:
        column = self.columns.get(contract)
        return None if column is None else look_up(row, column)

    def text(self, row: Mapping[str, Any], contract: str) -> str:
        value = self.value(row, contract)
        if value is None:
            return ""
        if contract in self.labels:
            return "" if value < 0 else self.labels[contract].int2str(value)  # -1 is "no label"
        return (value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)).strip()

    def audio(self, value: Any) -> tuple[bytes | str | None, str]:
        """An audio column's value -> bytes, path or URL, and the name of the file (empty where there is none)."""
        if isinstance(value, Mapping):
            content, path = value.get("bytes"), value.get("path") or ""
        else:
            content, path = (value, "") if isinstance(value, bytes) else (None, value or "")
        if content:
            return content, path
        if path and "://" not in path and self.folder is not None and not Path(path).is_absolute():
            path = str(self.folder / path)
        if self.folder is not None and path.startswith(f"{self.folder}/"):
            return path or None, path.removeprefix(f"{self.folder}/")
        return path or None, path

    def id_of(self, file: str) -> str:
        """A row's name where the corpus has no id: its file's, else its number in the corpus."""
        if not file:
            return f"{self.part or self.split or 'row'}-{self.position - 1:08d}"
        path = Path(file.split("::")[0])
        # What lies before the name in a URL or an absolute path belongs to this machine, not to the corpus.
        outside = path.is_absolute() or "://" in file
        return path.stem if outside else path.with_suffix("").as_posix()


def look_up(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column, or of an entry "a.b" in a column of dictionaries; None where it is absent."""
    if column in row:
        return row[column]
    parent, _, rest = column.partition(".")
    inner = row.get(parent)
    return look_up(inner, rest) if rest and isinstance(inner, Mapping) else None


def choose_columns(
    corpus: str, present: Sequence[str], features: Features | None, asked: Mapping[str, str]
) -> dict[str, str]:
    """Contract column -> column of the corpus: as asked, else by the usual names, else the only audio column."""
    chosen = {}
    for contract, aliases in ALIASES.items():
        if contract in asked:
            column = asked[contract]
            if column and column not in present and column.split(".")[0] not in present:
                near = difflib.get_close_matches(column, present, n=2)
                hint = f" Did you mean {' or '.join(near)}?" if near else ""
                raise ValueError(f"{corpus} has no column {column!r} for {contract}; it has {list(present)}.{hint}")
        else:
            column = next((alias for alias in aliases if alias in present), "")
        if contract == "audio" and "audio" not in asked and features is not None:
            recordings = [name for name, feature in features.items() if isinstance(feature, Audio)]
            column = recordings[0] if len(recordings) == 1 else column
        if column:
            chosen[contract] = column
    for contract in REQUIRED:
        if contract not in chosen:
            raise ValueError(
                f"{corpus} has no column for {contract}; it has {list(present)}. Name one: --columns {contract}=NAME."
            )
    if renamed := [f"{contract} <- {column}" for contract, column in chosen.items() if contract != column]:
        logger.info("%s: %s", corpus, ", ".join(renamed))
    return chosen


def detect_format(source: str) -> str:
    """The format of a source. Raises FileNotFoundError or ValueError for a path that is none."""
    path = Path(source)
    if path.is_dir():
        return detect_folder(path)
    if re.search(r"\.tar(\.\w+)?$", source):
        return "webdataset"
    if source.endswith(".parquet"):
        return "parquet"
    if path.is_file():
        if "|" in path.read_text(encoding="utf-8-sig", errors="replace").partition("\n")[0]:
            return "ljspeech"
        raise ValueError(f"{source}: a file must be a list of {KINDS}, a .tar or a .parquet; give folders as a whole.")
    # A Hub name is `name` or `owner/name`; anything else was meant as a path.
    if path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise FileNotFoundError(f"{source} does not exist.")
    return "datasets"


def detect_folder(folder: Path) -> str:
    """The format of a folder. Raises FileNotFoundError if it is none that is known."""
    if (folder / "wav.scp").is_file():
        return "kaldi"
    if (folder / "metadata.csv").is_file():
        head = (folder / "metadata.csv").read_text(encoding="utf-8-sig", errors="replace").partition("\n")[0]
        if "|" in head:
            return "ljspeech"
        return "audiofolder" if "file_name" in head else "metadata"
    if (folder / "metadata.jsonl").is_file() or (folder / "metadata.parquet").is_file():
        return "audiofolder"
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return "saved"
    if any(folder.glob("*.tar*")):
        return "webdataset"
    if any(folder.rglob("*.parquet")) or (folder / "README.md").is_file():
        return "datasets"
    raise FileNotFoundError(
        f"{folder} is no corpus: {folder / 'metadata.csv'} does not exist, nor is there a wav.scp, a metadata.jsonl, "
        "or any .tar or .parquet."
    )


def source_name(source: str) -> str:
    """What a source is called in the `source` column: its folder, list or repository."""
    path = Path(source)
    if path.exists():
        path = path.resolve()
        return path.name if path.is_dir() else path.stem if path.suffix == ".txt" else path.parent.name
    if "*" in source or "://" in source:
        return path.parent.name
    return path.name


def open_corpora(source: str, options: CorpusOptions, name: str | None = None) -> list[Corpus]:
    """Opens a source: a folder, file, glob, URL or Hub name; gives a corpus for each of its splits that is read, see
    `choose_splits`.

    Raises OSError or ValueError if it cannot be read, lacks a column or has no such split.
    """
    kind = detect_format(source) if options.format == "auto" else options.format
    name = name or source_name(source)
    if kind in ("metadata", "ljspeech", "kaldi"):
        if options.splits:
            raise ValueError(f"{source} ({kind}) has no splits of its own to choose from.")
        lists = partial(ljspeech_rows, asked=options.columns)
        reader = {"metadata": metadata_rows, "ljspeech": lists, "kaldi": kaldi_rows}[kind]
        path = Path(source).absolute()
        rows = reader(path)
        if not rows:
            raise ValueError(f"{source} has no rows.")
        if kind == "ljspeech" and options.speaker is None and "speaker" not in rows[0]:
            # A list has no speaker column because there is one speaker.
            rows = [{**row, "speaker": name} for row in rows]
        stream = Dataset.from_list(rows).to_iterable_dataset()
        return [Corpus(name, stream, options, folder=path if path.is_dir() else path.parent, total=len(rows))]
    if kind == "webdataset":
        return tar_corpora(source, name, options)
    parts = load_parts(source, kind, options)
    chosen = choose_splits(source, list(parts), options.splits)
    splits = Counter(chosen.values())
    corpora = []
    for part, split in chosen.items():
        rows = parts[part]
        corpora.append(
            Corpus(
                name,
                undecoded(rows),
                options,
                # A corpus that is all for training has not been split.
                split=split if len(splits) > 1 or split != TRAIN else None,
                folder=Path(source).absolute() if Path(source).is_dir() else None,
                total=rows.info.splits[part].num_examples or None if part in (rows.info.splits or {}) else None,
                part=part if splits[split] > 1 else "",
            )
        )
    return corpora


def tar_corpora(source: str, name: str, options: CorpusOptions) -> list[Corpus]:
    """Tar shards, split where the names of the shards begin with the names of splits. Shards of one split are one."""
    if Path(source).is_dir():
        shards = sorted(str(path) for path in Path(source).glob("*.tar*"))
    else:
        # fsspec drops the protocol from what it finds.
        protocol, separator, _ = source.rpartition("://")
        filesystem, path = fsspec.url_to_fs(source)
        found = sorted(filesystem.glob(path)) if "*" in source else [path]
        shards = [f"{protocol}{separator}{shard}" if separator else shard for shard in found]
    if not shards:
        raise FileNotFoundError(f"No shard matches {source}.")
    named = defaultdict(list)
    for shard in shards:
        word = first_word(Path(shard).name)
        named[word if word == VALIDATED else standard_split(word) or word].append(shard)
    splits = defaultdict(list)
    for name_of_shards, split in choose_splits(source, list(named), options.splits, may_be_nameless=True).items():
        splits[split] += named[name_of_shards]
    return [
        Corpus(
            name,
            IterableDataset.from_generator(tar_samples, gen_kwargs={"shards": members}),
            options,
            split=split if len(splits) > 1 or split != TRAIN else None,
        )
        for split, members in splits.items()
    ]


def load_parts(source: str, kind: str, options: CorpusOptions) -> dict[str, Dataset | IterableDataset]:
    """The splits of what `datasets` can load, local files without a second copy of them in its cache."""
    local = Path(source).exists()
    try:
        if kind == "saved":
            rows = load_from_disk(source)
        elif kind == "audiofolder":
            where = {"data_dir": source} if local else {"data_files": source}
            rows = load_dataset("audiofolder", **where, streaming=True)
        elif kind == "parquet":
            rows = load_dataset("parquet", data_files=source, streaming=True)
        else:
            rows = load_dataset(source, options.config, streaming=local or options.streaming)
    except ImportError as error:
        raise ValueError(
            f"{source} can be downloaded only with an audio decoder ({error}) Pass --streaming, which needs none."
        ) from error
    if isinstance(rows, (DatasetDict, IterableDatasetDict)):
        return dict(rows)
    return {str(rows.split or "train"): rows}


def undecoded(rows: Dataset | IterableDataset) -> IterableDataset:
    """Rows whose audio stays encoded: Audio columns become paths, or bytes and path, as their reader gives them."""
    stream = rows.to_iterable_dataset() if isinstance(rows, Dataset) else rows
    # `datasets` decodes and encodes audio with torchcodec, even to hand over a path; only Arrow rows pass without it.
    kinds = {"audiofolder": Value("string"), "webdataset": {"bytes": Value("binary"), "path": Value("string")}}
    plain = kinds.get(rows.info.builder_name, Audio(decode=False)) if rows is stream else Audio(decode=False)
    for column, feature in (stream.features or {}).items():
        if isinstance(feature, Audio):
            stream = stream.cast_column(column, plain)
    return stream
