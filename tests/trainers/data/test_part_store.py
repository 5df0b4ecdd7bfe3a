"""Work that is written part by part survives a kill at every step of writing."""

from pathlib import Path

import pytest
from datasets import Dataset, Features, Value, load_from_disk

from e2e_tts.trainers.data import part_store
from e2e_tts.trainers.data.part_store import PartStore

FEATURES = Features({"number": Value("int64")})


class Killed(BaseException):
    pass


def opened(output: Path, settings: dict | None = None, **options: bool) -> PartStore:
    return PartStore(output, settings or {"seed": 0}, FEATURES, **options)


def numbers(dataset: Dataset | None) -> list[int]:
    return [] if dataset is None else dataset["number"][:]


def test_a_part_counts_only_with_its_note(tmp_path, monkeypatch):
    store = opened(tmp_path / "out")
    store.add([{"number": 1}, {"number": 2}], {"position": 2})
    store.add([], {"position": 5})

    def killed(*arguments: object) -> None:
        raise Killed

    monkeypatch.setattr(part_store.os, "replace", killed)
    with pytest.raises(Killed):
        store.add([{"number": 9}], {"position": 6})
    monkeypatch.undo()
    again = opened(tmp_path / "out")
    assert [(note["position"], note["rows"]) for note in again.notes] == [(2, 2), (5, 0)]
    assert numbers(again.rows()) == [1, 2]
    again.add([{"number": 3}], {"position": 6})
    again.finish(again.rows(), {"report.txt": "three rows\n"})
    assert numbers(load_from_disk(str(tmp_path / "out"))) == [1, 2, 3]
    assert (tmp_path / "out" / "report.txt").read_text() == "three rows\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_kill_while_tidying_up_leaves_a_complete_output_and_nothing_to_go_on_with(tmp_path, monkeypatch):
    store = opened(tmp_path / "out")
    store.add([{"number": 1}], {})
    removed = part_store.shutil.rmtree

    def killed(path: Path, **options: bool) -> None:
        if Path(path) == store.folder:
            raise Killed
        removed(path, **options)

    monkeypatch.setattr(part_store.shutil, "rmtree", killed)
    with pytest.raises(Killed):
        store.finish(store.rows(), {})
    monkeypatch.undo()
    assert numbers(load_from_disk(str(tmp_path / "out"))) == [1] and store.folder.exists()
    with pytest.raises(FileExistsError, match="--overwrite"):
        opened(tmp_path / "out")
    assert opened(tmp_path / "out", overwrite=True).notes == []


def test_an_output_is_replaced_only_by_a_complete_one(tmp_path):
    store = opened(tmp_path / "out")
    store.add([{"number": 1}], {})
    store.finish(store.rows(), {})
    other = opened(tmp_path / "out", {"seed": 1}, overwrite=True)
    other.add([{"number": 2}], {})
    assert numbers(load_from_disk(str(tmp_path / "out"))) == [1]
    # The same settings go on, other ones begin anew.
    assert len(opened(tmp_path / "out", {"seed": 1}, overwrite=True).notes) == 1
    assert opened(tmp_path / "out", {"seed": 2}, overwrite=True).notes == []
