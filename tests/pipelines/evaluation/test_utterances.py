"""Test sets: what is read, and what is set aside with a reason."""

import io

import numpy as np
import pytest
import soundfile
from datasets import Dataset
from evaluation_doubles import RATE, tone, write

from e2e_tts.pipelines.evaluation import utterances
from e2e_tts.pipelines.evaluation.audio_files import read_recording
from e2e_tts.pipelines.evaluation.utterances import Columns, read_dataset, read_list


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "wavs" / "prompt.wav", tone(RATE))
    write(tmp_path / "wavs" / "reference.wav", tone(2 * RATE))
    (tmp_path / "wavs" / "damaged.wav").write_bytes(b"RIFF this is no sound")
    (tmp_path / "wavs" / "bare.raw").write_bytes(bytes(RATE))
    soundfile.write(tmp_path / "wavs" / "nothing.wav", np.zeros(0, np.float32), RATE)
    return tmp_path


def test_rows_are_read_and_broken_ones_listed(folder):
    lines = [
        "one|What I say.|wavs/prompt.wav|Hello there.|wavs/reference.wav",
        "",
        "two|||Just a text.",
        "one|What I say.|wavs/prompt.wav|The name again.",
        "three|only three|fields",
        "four|What I say.|wavs/missing.wav|Hello.",
        "five|What I say.|wavs/damaged.wav|Hello.",
        "six|What I say.|wavs/nothing.wav|Hello.",
        "seven|||...",
        "|||No name.",
        "eight|||Without its recording.|wavs/damaged.wav",
        "nine|What I say.|wavs/bare.raw|Hello.",
    ]
    content = "\ufeff" + "\r\n".join(lines) + "\r\n"
    (folder / "set.lst").write_bytes(content.encode() + "zehn|||schön|".encode("latin-1"))
    result = read_list(folder / "set.lst")
    assert [item.name for item in result.utterances] == ["one", "two", "eight"]
    one, two, eight = result.utterances
    assert (one.text, one.prompt_text) == ("Hello there.", "What I say.")
    assert [read_recording(clip.source)[0].size for clip in (one.prompt, one.reference)] == [RATE, 2 * RATE]
    assert two.prompt is None and two.prompt_text is None and eight.reference is None
    reasons = {row.place: row.reason for row in result.refused}
    expected = {
        "line 2": "empty",
        "line 4": "taken by line 1",
        "line 5": "3 fields",
        "line 6": "no file",
        "line 7": "cannot be read",
        "line 8": "no samples",
        "line 9": "no letter",
        "line 10": "no name",
        "line 12": "has no header: make a wav of it first",
        "line 13": "UTF-8",
    }
    assert list(reasons) == list(expected)
    assert all(part in reasons[place] for place, part in expected.items())
    assert [row.place for row in result.remarks] == ["line 11"]


def test_a_missing_list_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no list.*everyday_en"):
        read_list(tmp_path / "none.lst")


def test_the_everyday_sentences_come_with_the_package():
    result = read_list("everyday_en")
    lengths = [len(utterance.text.split()) for utterance in result.utterances]
    assert len(set(utterance.text for utterance in result.utterances)) == 200 and not result.refused
    assert np.median(lengths) >= 8 and min(lengths) >= 8
    assert len(read_list("everyday_en", limit=3).utterances) == 3


def test_mandarin_sentences_come_with_the_package():
    texts = [utterance.text for utterance in read_list("everyday_zh").utterances]
    assert len(set(texts)) == 100 and all(9 <= len(text) <= 22 for text in texts)


@pytest.fixture
def saved(tmp_path):
    file = io.BytesIO()
    soundfile.write(file, tone(RATE), RATE, format="FLAC")
    audio = {"bytes": file.getvalue(), "path": None}
    rows = [
        {"id": "a", "audio": audio, "text": "One.", "source": "first", "split": "test"},
        {"id": "b", "audio": {"bytes": b"no sound", "path": None}, "text": "Two.", "source": "first", "split": "test"},
        {"id": "c", "audio": audio, "text": "Three.", "source": "second", "split": "test"},
        {"id": "d", "audio": audio, "text": None, "source": "first", "split": "test"},
        {"id": "e", "audio": audio, "text": "Five.", "source": "first", "split": "train"},
    ]
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "data"))
    return str(tmp_path / "data")


def test_a_data_set_is_filtered_and_its_sound_read(saved):
    result = read_dataset(saved, "test", Columns(), {"source": "first"})
    assert [item.name for item in result.utterances] == ["a", "b"]
    assert read_recording(result.utterances[0].reference.source)[0].size == RATE
    assert result.utterances[1].reference is None and [row.place for row in result.remarks] == ["row 1"]
    assert [row.place for row in result.refused] == ["row 3"]
    prompted = read_dataset(saved, "train", Columns(name="", prompt="audio", reference=""))
    assert [(item.name, item.reference) for item in prompted.utterances] == [("4", None)]
    assert prompted.utterances[0].prompt is not None


def test_a_data_set_may_be_a_file_of_json_lines(tmp_path):
    write(tmp_path / "a.wav", tone(RATE))
    path = tmp_path / "rows"
    path.mkdir()
    Dataset.from_list([{"text": "Hello.", "audio": str(tmp_path / "a.wav")}]).to_json(str(path / "test.jsonl"))
    (item,) = read_dataset(str(path), "test", Columns()).utterances
    assert item.name == "0" and read_recording(item.reference.source)[0].size == RATE


def test_nothing_is_read_beyond_the_limit(folder, saved, monkeypatch):
    read = []
    monkeypatch.setattr(utterances, "read_recording", lambda source: read.append(source) or read_recording(source))
    lines = ["one|||Hello.", "", *(f"{name}||wavs/prompt.wav|Hello.|wavs/{name}.wav" for name in ("reference", "x"))]
    (folder / "set.lst").write_text("\n".join(lines), encoding="utf-8")
    result = read_list(folder / "set.lst", limit=2)
    assert [item.name for item in result.utterances] == ["one", "reference"] and len(read) == 2
    assert [row.place for row in result.refused] == ["line 2"]
    read.clear()
    assert [item.name for item in read_dataset(saved, "test", Columns(), limit=1).utterances] == ["a"]
    assert len(read) == 1


def test_a_damaged_data_set_is_said_in_words(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"text": "a"}\n{bad\n', encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be loaded"):
        read_dataset(str(tmp_path), "test", Columns())


def test_what_a_data_set_lacks_is_named(saved):
    with pytest.raises(ValueError, match="no column words; it has id, audio"):
        read_dataset(saved, "test", Columns(text="words"))
    with pytest.raises(ValueError, match=r"no column adio, sorce; it has id, .*\. Did you mean audio, source\?"):
        read_dataset(saved, "test", Columns(prompt="adio"), {"sorce": "first"})
    with pytest.raises(ValueError, match=r"no column speech; it has id, .*split\.$"):
        read_dataset(saved, "test", Columns(reference="speech"))
    with pytest.raises(ValueError, match="cannot be loaded"):
        read_dataset(saved + "-not-there", "test", Columns())
