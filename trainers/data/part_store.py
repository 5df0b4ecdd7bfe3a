"""Long work on rows, written part by part, so that a run killed at any moment goes on where it was."""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from datasets import Dataset, Features, concatenate_datasets
from datasets.arrow_writer import ArrowWriter

SETTINGS = "settings.json"


class PartStore:
    """Rows of a data set in the making, in a hidden folder beside `output`.

    A part is an Arrow file with its rows and a note (JSON) about it; it counts once the note is there. `notes` holds
    the notes of the parts that an earlier, unfinished run with the same settings has left.

    output: the folder that `finish` creates. settings: whatever decides about the rows, in JSON's types. overwrite:
    replace an existing output, and drop parts that were made with other settings.

    Raises FileExistsError if there is an output, or parts of other settings, and `overwrite` is false.
    """

    def __init__(
        self, output: Path, settings: Mapping[str, object], features: Features, overwrite: bool = False
    ) -> None:
        self.output, self.features = output, features
        self.folder = output.parent / f".{output.name}.parts"
        if output.exists() and not overwrite:
            raise FileExistsError(f"{output} exists. Choose another --output or pass --overwrite.")
        wanted = json.loads(json.dumps(settings))
        if self.folder.exists() and not (self.folder / SETTINGS).is_file():
            shutil.rmtree(self.folder)  # what a run left that was stopped while it tidied up
        elif self.folder.exists():
            found = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
            if found != wanted:
                if not overwrite:
                    different = sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))
                    raise FileExistsError(
                        f"{self.folder} holds a run that was stopped and had other settings ({', '.join(different)}). "
                        "Give the same ones to go on with it, pass --overwrite to begin anew, or choose another "
                        "--output."
                    )
                shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(SETTINGS, wanted)
        self.notes: list[dict] = []
        while (note := self.folder / f"{len(self.notes):06d}.json").is_file():
            self.notes.append(json.loads(note.read_text(encoding="utf-8")))

    def _write(self, name: str, content: object) -> None:
        temporary = self.folder / f"{name}.tmp"
        temporary.write_text(json.dumps(content), encoding="utf-8")
        os.replace(temporary, self.folder / name)

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:06d}.arrow"

    def add(self, rows: Sequence[dict], note: dict) -> None:
        """Writes the next part. The note says what is needed to go on after it."""
        number = len(self.notes)
        if rows:
            with ArrowWriter(path=str(self._part(number)), features=self.features) as writer:
                for row in rows:
                    writer.write(row)
                writer.finalize()
        # The note comes last and at once: without it the part is written again.
        self._write(f"{number:06d}.json", {**note, "rows": len(rows)})
        self.notes.append({**note, "rows": len(rows)})

    def rows(self) -> Dataset | None:
        """The rows of all parts, memory-mapped; None if there are none."""
        parts = [Dataset.from_file(str(self._part(number))) for number, note in enumerate(self.notes) if note["rows"]]
        return concatenate_datasets(parts) if parts else None

    def finish(self, dataset: Dataset, files: Mapping[str, str]) -> None:
        """Saves the data set with some text files beside it as `output`, which appears only when complete."""
        complete = self.folder / "complete"
        shutil.rmtree(complete, ignore_errors=True)
        dataset.save_to_disk(str(complete))
        for name, content in files.items():
            (complete / name).write_text(content, encoding="utf-8", newline="")
        if self.output.exists():
            shutil.rmtree(self.output)
        complete.rename(self.output)
        self.discard()

    def discard(self) -> None:
        """Removes all parts."""
        (self.folder / SETTINGS).unlink()
        shutil.rmtree(self.folder)


class Pace:
    """Progress as text: how much is done, how fast, and how long the rest takes.

    done: what an earlier run has done. total: None where it is not known.
    """

    def __init__(self, done: int, total: int | None) -> None:
        self.before, self.total, self.start = done, total, time.monotonic()

    def __call__(self, done: int) -> str:
        speed = (done - self.before) / max(1e-6, time.monotonic() - self.start)
        if self.total is None:
            return f"{done} rows, {speed:.1f} a second"
        left = timedelta(seconds=round((self.total - done) / max(1e-6, speed)))
        return f"{done} of {self.total} rows, {speed:.1f} a second, {left} left"
