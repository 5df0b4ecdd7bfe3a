"""What is to be said, and by whom: lists in the format of Seed-TTS-Eval, and data sets.

A row that cannot be used is set aside with the reason, and never ends an evaluation.
"""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .audio_files import read_recording

SHOWN_CHARACTERS = 120
TEST_SETS = Path(__file__).parent / "test_sets"


@dataclass(frozen=True)
class Clip:
    """A recording: a file, or the bytes of one. `label` tells clips apart and names them in messages."""

    label: str
    source: Path | bytes = field(repr=False)


@dataclass(frozen=True)
class Utterance:
    """One text to be said. `prompt` is a clip of the speaker, `reference` a recording of the text itself."""

    name: str
    text: str
    prompt: Clip | None = None
    prompt_text: str | None = None
    reference: Clip | None = None


@dataclass(frozen=True)
class RefusedRow:
    """A row that cannot be used: where it stands, what it says (shortened), and why."""

    place: str
    content: str
    reason: str


@dataclass
class UtteranceSet:
    """The rows that can be used, in order, those refused, and remarks on rows that are used with something missing.

    `reference_seconds` holds the duration of the reference recording, by name, where there is one.
    """

    utterances: list[Utterance] = field(default_factory=list)
    reference_seconds: dict[str, float] = field(default_factory=dict)
    refused: list[RefusedRow] = field(default_factory=list)
    remarks: list[RefusedRow] = field(default_factory=list)


class _Gatherer:
    """Checks rows one by one until `limit` can be used. Clips are decoded once, because a header says little about
    what follows it."""

    def __init__(self, limit: int | None = None) -> None:
        self.result = UtteranceSet()
        self.limit = limit
        self._names: dict[str, str] = {}
        self._problems: dict[str, str | None] = {}
        self._seconds: dict[str, float] = {}

    @property
    def is_full(self) -> bool:
        return len(self.result.utterances) == self.limit

    def refuse(self, place: str, content: str, reason: str) -> None:
        self.result.refused.append(RefusedRow(place, _shorten(content), reason))

    def add(self, place: str, content: str, utterance: Utterance) -> None:
        if not utterance.name:
            return self.refuse(place, content, "it has no name")
        if utterance.name in self._names:
            first = self._names[utterance.name]
            return self.refuse(place, content, f"its name {utterance.name!r} was taken by {first}")
        if not any(character.isalnum() for character in utterance.text):
            return self.refuse(place, content, "its text has no letter or digit")
        if problem := self._problem(utterance.prompt):
            return self.refuse(place, content, f"its prompt cannot be used: {problem}")
        if problem := self._problem(utterance.reference):
            self.result.remarks.append(
                RefusedRow(place, _shorten(content), f"used without its reference recording: {problem}")
            )
            utterance = Utterance(utterance.name, utterance.text, utterance.prompt, utterance.prompt_text)
        if utterance.reference is not None:
            self.result.reference_seconds[utterance.name] = self._seconds[utterance.reference.label]
        self._names[utterance.name] = place
        self.result.utterances.append(utterance)

    def _problem(self, clip: Clip | None) -> str | None:
        if clip is None:
            return None
        if clip.label not in self._problems:
            try:
                waveform, sampling_rate = read_recording(clip.source)
                self._seconds[clip.label] = waveform.size / sampling_rate
                self._problems[clip.label] = None if waveform.size else f"{clip.label} has no samples"
            except ValueError as error:
                self._problems[clip.label] = str(error)
        return self._problems[clip.label]


def read_list(path: str | Path, limit: int | None = None) -> UtteranceSet:
    """Reads `name|prompt text|prompt wav|text[|reference wav]` lines in UTF-8; wavs are relative to the list.

    The two prompt fields may be empty. Empty lines, lines of another form, names that come again, texts with nothing to
    say and prompts that cannot be decoded are refused. Nothing is read beyond the first `limit` rows that can be used.
    A path that is no file may be the name of a list of this package. Raises ValueError if there is neither.
    """
    shipped = {file.stem: file for file in sorted(TEST_SETS.glob("*.lst"))}
    path = Path(path)
    if not path.is_file():
        if str(path) not in shipped:
            raise ValueError(f"There is no list {path}; give a file, or one of this package: {', '.join(shipped)}.")
        path = shipped[str(path)]
    gather = _Gatherer(limit)
    # Read as bytes: one line in another encoding must not hide all the others.
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        if gather.is_full:
            break
        place = f"line {number}"
        try:
            content = line.decode("utf-8").strip()
        except UnicodeDecodeError:
            gather.refuse(place, line.decode("utf-8", "replace"), "it is not UTF-8")
            continue
        fields = [part.strip() for part in content.split("|")]
        if not content:
            gather.refuse(place, "", "it is empty")
        elif len(fields) not in (4, 5):
            gather.refuse(place, content, f"it has {len(fields)} fields; 4 or 5 are needed, split by |")
        else:
            name, prompt_text, prompt, text, *reference = fields
            clips = [_file_clip(path.parent, file) for file in (prompt, *reference)]
            gather.add(place, content, Utterance(name, text, clips[0], prompt_text or None, *clips[1:]))
    return gather.result


def _file_clip(folder: Path, file: str) -> Clip | None:
    return Clip(str(folder / file), folder / file) if file else None


@dataclass(frozen=True)
class Columns:
    """Which columns of a data set hold what. Of the default ones all but `text` may be absent, others are demanded; ""
    is no column. Names default to positions."""

    name: str = "id"
    text: str = "text"
    reference: str = "audio"
    prompt: str = "prompt_audio"
    prompt_text: str = "prompt_text"

    def demanded(self) -> list[str]:
        """The columns that a data set must have."""
        given = [(getattr(self, item.name), item.default) for item in fields(self) if item.name != "text"]
        return [self.text, *(column for column, default in given if column not in ("", default))]


def read_dataset(
    source: str, split: str, columns: Columns, filters: dict[str, str] | None = None, limit: int | None = None
) -> UtteranceSet:
    """Reads a folder that `save_to_disk` wrote, or whatever `datasets.load_dataset` loads by that name.

    Audio columns are read undecoded: paths, or {"bytes", "path"}. `filters` keeps rows whose columns have these values.
    A data set saved without splits is filtered by its column "split" if it has one. No audio is read beyond the first
    `limit` rows that can be used. Raises ValueError for a data set or split that cannot be loaded, and for missing
    columns.
    """
    from datasets import Audio, DatasetDict, load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError

    try:
        saved = Path(source).is_dir() and any(
            (Path(source) / file).is_file() for file in ("dataset_info.json", "dataset_dict.json")
        )
        data = load_from_disk(source) if saved else load_dataset(source, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        raise ValueError(f"The data set {source} (split {split}) cannot be loaded: {error}") from error
    if isinstance(data, DatasetDict):
        if split not in data:
            raise ValueError(f"{source} has no split {split!r}; it has {', '.join(data)}.")
        data = data[split]
    filters = {**({"split": split} if saved and "split" in data.column_names else {}), **(filters or {})}
    if absent := [column for column in (*columns.demanded(), *filters) if column not in data.column_names]:
        near = [name for column in absent for name in difflib.get_close_matches(column, data.column_names, n=1)]
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"{source} has no column {', '.join(absent)}; it has {', '.join(data.column_names)}.{hint}")
    for column in (columns.reference, columns.prompt):
        if column in data.column_names and isinstance(data.features[column], Audio):
            data = data.cast_column(column, Audio(decode=False))
    gather = _Gatherer(limit)
    for index in _matching(data, filters):
        if gather.is_full:
            break
        row = data[index]
        text, name = row.get(columns.text), row.get(columns.name)
        place = f"row {index}"
        gather.add(
            place,
            str(text),
            Utterance(
                name=str(index if name is None else name),
                text=str(text or "").strip(),
                prompt=_column_clip(row.get(columns.prompt), f"{place}, {columns.prompt}"),
                prompt_text=row.get(columns.prompt_text) or None,
                reference=_column_clip(row.get(columns.reference), f"{place}, {columns.reference}"),
            ),
        )
    return gather.result


def _matching(data: Any, filters: dict[str, str]) -> Iterable[int]:
    """Positions of the rows that all filters keep; audio is not touched."""
    kept: Iterator[int] | range = range(len(data))
    for column, wanted in filters.items():
        values = data[column][:]
        kept = [index for index in kept if str(values[index]) == wanted]
    return kept


def _column_clip(value: Any, label: str) -> Clip | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return Clip(value, Path(value))
    if value.get("bytes") is not None:
        return Clip(label, value["bytes"])
    return Clip(value["path"], Path(value["path"])) if value.get("path") else None


def _shorten(content: str) -> str:
    content = " ".join(content.split())
    return content if len(content) <= SHOWN_CHARACTERS else content[: SHOWN_CHARACTERS - 3] + "..."
