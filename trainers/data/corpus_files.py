"""Corpora as folders and lists of files: today's metadata.csv, Kaldi folders, tar shards.

Every reader gives rows as dictionaries of the corpus's own columns; an audio column holds a path or encoded bytes.
"""

import csv
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import soundfile

COLUMNS = ("file", "text", "speaker", "emotion", "language", "seconds")
AUDIO_SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()} | {".opus", ".mp3", ".ogg"}
# Where LJSpeech and corpora shaped like it keep the recordings of a list.
RECORDING_FOLDERS = ("wavs", "wav", "")
PROBLEM = "__problem__"  # why a row has no recording
SHARD = "__shard__"


def read_metadata(folder: str | Path) -> list[dict[str, str | None]]:
    """The rows of `folder/metadata.csv`: the columns of `COLUMNS`, None where the file lacks one, and its others.

    Raises FileNotFoundError or ValueError (missing columns).
    """
    path = Path(folder) / "metadata.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. A source folder needs one, with columns {', '.join(COLUMNS)}.")
    # Excel begins a CSV with a byte-order mark, which would become part of the first column's name.
    with path.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.DictReader(handle)
        missing = [name for name in COLUMNS[:2] if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} lacks the columns {missing}; it has {reader.fieldnames}.")
        absent = dict.fromkeys(name for name in COLUMNS if name not in reader.fieldnames)
        return [{name: (row[name] or "").strip() for name in reader.fieldnames} | absent for row in reader]


def metadata_rows(folder: Path) -> list[dict[str, str | None]]:
    """Rows of `read_metadata` with the path of the recording, and without the columns that the file does not have.

    Where it has no column id, a row is called by its file, folders included: two speakers may each have a 001.wav.
    """
    return [
        {name: value for name, value in row.items() if value is not None}
        | {"audio": str(folder / row["file"]) if row["file"] else None}
        for row in read_metadata(folder)
    ]


def find_recording(folder: Path, name: str) -> str | None:
    """The recording that a list calls `name`, with or without its suffix."""
    suffixes = [""] if Path(name).suffix.lower() in AUDIO_SUFFIXES else [".wav", *sorted(AUDIO_SUFFIXES)]
    candidates = (folder / place / f"{name}{suffix}" for suffix in suffixes for place in RECORDING_FOLDERS)
    return next((str(path) for path in candidates if path.is_file()), None)


def read_table(path: Path) -> list[tuple[str, str]]:
    """Lines of a Kaldi table as (key, rest)."""
    lines = path.read_text(encoding="utf-8").splitlines()
    parts = (line.strip().split(maxsplit=1) for line in lines if line.strip())
    return [(key, rest[0] if rest else "") for key, *rest in parts]


def kaldi_rows(folder: Path) -> list[dict[str, str | float | None]]:
    """Utterances of a Kaldi folder: wav.scp and text, and segments, utt2spk, utt2lang and utt2emo where they exist.

    Paths are relative to the working directory, as Kaldi has them, or else to the folder. A wav.scp entry that is a
    command or an archive with an offset gives a row without a recording: no command out of a corpus is ever run.
    Raises FileNotFoundError without `text`.
    """
    if not (folder / "text").is_file():
        raise FileNotFoundError(f"{folder / 'text'} does not exist; a Kaldi folder needs wav.scp and text.")
    recordings = read_table(folder / "wav.scp")
    segments = folder / "segments"
    if segments.is_file():
        paths = dict(recordings)
        utterances = []
        for key, rest in read_table(segments):
            name, start, end = [*rest.split(), "", "", ""][:3]
            utterances.append((key, paths.get(name, ""), start, end))
    else:
        utterances = [(key, path, "", "") for key, path in recordings]
    optional = {"speaker": "utt2spk", "language": "utt2lang", "emotion": "utt2emo"}
    tables = {column: dict(read_table(folder / name)) for column, name in optional.items() if (folder / name).is_file()}
    texts = dict(read_table(folder / "text"))
    rows = []
    for key, path, start, end in utterances:
        audio, problem = locate(path, folder)
        row = {"id": key, "audio": audio, "text": texts.get(key, ""), PROBLEM: problem}
        row |= {"start_seconds": None, "seconds": None}
        if start or end:
            try:
                row |= {"start_seconds": float(start), "seconds": float(end) - float(start)}
                if row["start_seconds"] < 0 or row["seconds"] <= 0:
                    raise ValueError
            except ValueError:
                row |= {"audio": None, PROBLEM: f"segments gives no time span: {start!r} to {end!r}"}
        rows.append(row | {column: table.get(key, "") for column, table in tables.items()})
    known = {row["id"] for row in rows}
    missing = [key for key in texts if key not in known]
    where = "segments" if segments.is_file() else "wav.scp"
    rows += [{"id": key, "audio": None, "text": texts[key], PROBLEM: f"not in {where}"} for key in missing]
    return rows


def locate(entry: str, folder: Path) -> tuple[str | None, str]:
    """A wav.scp entry -> its path and "", or None and the problem."""
    if not entry:
        return None, "wav.scp has no recording for it"
    if entry.endswith("|"):
        return None, "wav.scp has a command here, which is not run: write its output to a file"
    if "://" in entry:
        return entry, ""
    if Path(entry).is_file():
        return str(Path(entry).absolute()), ""
    if (folder / entry).is_file():
        return str(folder / entry), ""
    return None, f"file is missing: {entry}"


def tar_samples(shards: list[str]) -> Iterator[dict]:
    """Samples of webdataset shards: members that share a name up to its first dot, read in order without unpacking.

    shards: paths or fsspec URLs of tar files, compressed or not. A sample has id, audio (bytes), text (of .txt) and
    the entries of its .json as columns. What cannot be read of a sample is its problem; a shard that breaks off gives
    what came before, and a row that says so.
    """
    for shard in shards:
        name, members = None, {}
        try:
            with fsspec.open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r|*") as archive:
                for member in archive:
                    if not member.isfile():
                        continue
                    folder, _, base = member.name.rpartition("/")
                    stem, _, extension = base.partition(".")
                    key = f"{folder}/{stem}" if folder else stem
                    if key != name and members:
                        yield tar_sample(shard, name, members)
                        members = {}
                    name = key
                    members[extension.lower()] = archive.extractfile(member).read()
        except (tarfile.TarError, EOFError) as error:
            # The sample that was being read may lack its last members. An OSError (network, disk) is not caught: it
            # stops the command, which goes on from there when it is started again.
            yield {"id": f"{Path(shard).name} after {name}", "audio": None, PROBLEM: f"the shard breaks off: {error}"}
        else:
            if members:
                yield tar_sample(shard, name, members)


def tar_sample(shard: str, name: str, members: dict[str, bytes]) -> dict:
    """The members of one sample, by extension, as columns."""
    described: dict = {}
    sample: dict = {"id": name, "audio": None, SHARD: shard}
    problems = []
    for extension, content in members.items():
        suffix = f".{extension.rpartition('.')[-1]}"
        try:
            if suffix == ".json":
                described |= json.loads(content)
            elif suffix == ".txt":
                sample["text"] = content.decode("utf-8").strip()
            elif suffix in AUDIO_SUFFIXES:
                sample["audio"] = content
        except (ValueError, TypeError) as error:
            problems.append(f".{extension} cannot be read: {error}")
    if problems:
        sample["audio"] = None
    return described | sample | {PROBLEM: "; ".join(problems)}


def read_sentences(path: Path) -> list[str]:
    """The lines of a text file, each once, without empty ones. Raises OSError, and ValueError if nothing is left."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    sentences = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not sentences:
        raise ValueError(f"{path} has no sentence; one a line is expected.")
    return sentences
