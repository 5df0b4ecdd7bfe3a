"""Copies at other speeds: what is copied, how it sounds, what is refused, and a run that goes on."""

import io

import numpy as np
import pytest
import soundfile
from datasets import Dataset, load_from_disk
from recordings import CLIPS

from e2e_tts.trainers.data import prepare, speed_copies
from e2e_tts.trainers.data.speech_data import decode
from e2e_tts.trainers.data.speech_signal import encode_flac

RATE, PITCH = 16000, 440.0


def row(name: str, source: str, split: str) -> dict:
    tone = 0.5 * np.sin(2 * np.pi * PITCH * np.arange(RATE) / RATE)
    return {
        "id": name,
        "audio": {"bytes": encode_flac(tone, RATE), "path": None},
        "text": "A tone.",
        "speaker": "ann",
        "emotion": "",
        "language": "en",
        "source": source,
        "seconds": 1.0,
        "split": split,
        "left_out": 1,
    }


@pytest.fixture
def prepared(tmp_path):
    rows = [row("one", "a", "train"), row("two", "b", "train"), row("three", "a", "dev"), row("four", "a", "train")]
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "prepared"))
    return tmp_path / "prepared"


def test_training_rows_become_other_speakers(prepared, tmp_path, capsys):
    output = tmp_path / "copies"
    arguments = ["--data", str(prepared), "--sources", "a", "--speeds", "0.8", "1.25", "--output", str(output)]
    speed_copies.main(arguments)
    assert "a_speed: 4 copies" in capsys.readouterr().out
    copies = load_from_disk(str(output))
    assert copies["id"][:] == ["one@0.8", "one@1.25", "four@0.8", "four@1.25"]
    assert copies["speaker"][:2] == ["ann@0.8", "ann@1.25"] and set(copies["split"][:]) == {"train"}
    assert "left_out" not in copies.column_names
    for copy, speed in zip(copies, (0.8, 1.25), strict=False):
        samples = decode(copy["audio"], RATE)
        assert copy["seconds"] == len(samples) / RATE == pytest.approx(1 / speed, abs=1e-3)
        peak = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() * RATE / len(samples)
        assert peak == pytest.approx(PITCH * speed, abs=2.0)
    with pytest.raises(SystemExit):
        speed_copies.main(arguments)
    assert "exists" in capsys.readouterr().err


def test_mistakes_are_refused(prepared, tmp_path):
    rows = load_from_disk(str(prepared))
    for speeds, sources, message in (
        ([1.0], [], "are not 1"),
        ([3.0], [], "between 0.5 and 2.0"),
        ([0.9], ["c"], r"No training rows of \['c'\]; there are \{'a': 2, 'b': 1\}"),
    ):
        with pytest.raises(ValueError, match=message):
            speed_copies.copy_rows(rows, speeds, sources, tmp_path / "none", "x")
    with pytest.raises(ValueError, match="any source"):
        speed_copies.copy_rows(rows.select([2]), [0.9], [], tmp_path / "none", "x")
    assert not (tmp_path / "none").exists()


def test_a_killed_run_goes_on(prepared, tmp_path, monkeypatch):
    rows = load_from_disk(str(prepared))
    whole = speed_copies.copy_rows(rows, [0.9, 1.1], [], tmp_path / "whole", "x")
    monkeypatch.setattr(speed_copies, "ROWS_PER_PART", 1)
    copy_at, calls = speed_copies.copy_at, []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return copy_at(*arguments)

    monkeypatch.setattr(speed_copies, "copy_at", dying)
    with pytest.raises(KeyboardInterrupt):
        speed_copies.copy_rows(rows, [0.9, 1.1], [], tmp_path / "again", "x")
    again = speed_copies.copy_rows(rows, [0.9, 1.1], [], tmp_path / "again", "x")
    assert len(calls) == 4 + 4  # the second row once more, and the third
    assert again.to_list() == whole.to_list()


def test_copies_of_what_prepare_writes(tmp_path):
    prepare.main(["--source", str(CLIPS), "--output", str(tmp_path / "prepared"), "--max-characters", "60"])
    prepared = load_from_disk(str(tmp_path / "prepared"))
    copies = speed_copies.copy_rows(prepared, [0.9], [], tmp_path / "copies", "x")
    assert len(copies) == len(prepared) and copies.features == prepared.features
    samples, rate = soundfile.read(io.BytesIO(copies[0]["audio"]["bytes"]))
    assert rate == RATE and np.abs(samples).max() > 0.05
