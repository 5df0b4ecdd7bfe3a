"""Where an evaluation keeps what it has done, so that a killed one continues: settings, and records line by line."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SETTINGS = "settings.json"


class ResultsFolder:
    """A folder of one evaluation. Records go to NAME.jsonl, one JSON object a line, each with a "name".

    Raises ValueError if the folder holds an evaluation with other settings, whose records would be mixed with new ones.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any]) -> None:
        self.path = Path(folder)
        self.path.mkdir(parents=True, exist_ok=True)
        settings = json.loads(json.dumps(settings))  # as they will be read again: tuples are lists there
        file = self.path / SETTINGS
        if file.is_file():
            differences = list(_differences(json.loads(file.read_text(encoding="utf-8")), settings))
            if differences:
                raise ValueError(
                    f"{folder} holds an evaluation with other settings ({'; '.join(differences)}). Give another output "
                    "folder, or the settings of the one there, or delete it."
                )
        elif any(self.path.glob("*.jsonl")):
            raise ValueError(f"{folder} has records but no {SETTINGS}; give another output folder.")
        else:
            write_text(file, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")

    def records(self, kind: str) -> dict[str, dict[str, Any]]:
        """All records of a kind by name, the last of each. What a killed run left of a line is removed."""
        file = self.path / f"{kind}.jsonl"
        if not file.is_file():
            return {}
        content = file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(file, len(whole))
        return read_records(whole)

    def append(self, kind: str, records: Iterable[dict[str, Any]]) -> None:
        """Adds records, all of them or, if killed in between, the first ones."""
        lines = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
        with open(self.path / f"{kind}.jsonl", "a", encoding="utf-8") as file:
            file.write(lines)


def read_records(content: bytes) -> dict[str, dict[str, Any]]:
    """The records of a file by name, the last of each; a line without an end is no record yet."""
    # Not str.splitlines, which would also split at the line separators that a transcript may hold.
    *lines, _ = content.split(b"\n")
    records = (json.loads(line) for line in lines if line)
    return {record["name"]: record for record in records}


def write_text(path: Path, text: str) -> None:
    """Writes a file aside and renames it, so that it is never half there."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def fingerprint(parts: Iterable[str | bytes]) -> str:
    """A short hash of texts or bytes in order."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


def fingerprint_files(files: Iterable[Path]) -> str:
    """A short hash of files' names and contents, read in pieces."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode("utf-8"))
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()[:16]


def fingerprint_checkpoint(folder: str | Path) -> str:
    """A short hash of the configuration and weights in a folder."""
    return fingerprint_files([Path(folder) / "config.json", *Path(folder).rglob("*.safetensors")])


def fingerprint_clip(source: Path | bytes | None) -> str | None:
    """A short hash of a recording, a file or its bytes; None if there is none."""
    if isinstance(source, bytes):
        return fingerprint([source])
    return fingerprint_files([source]) if source is not None and source.is_file() else None


def _differences(stored: dict[str, Any], given: dict[str, Any], prefix: str = "") -> Iterable[str]:
    for key in sorted(stored.keys() | given.keys()):
        first, second = stored.get(key), given.get(key)
        if isinstance(first, dict) and isinstance(second, dict):
            yield from _differences(first, second, f"{prefix}{key}.")
        elif first != second:
            yield f"{prefix}{key}: {first!r} there, {second!r} now"
