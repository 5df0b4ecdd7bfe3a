"""Similarity of held-out speech, constructed: whom a row is compared with, what counts as 0, what is kept."""

import json

import numpy as np
import pytest
from datasets import Dataset
from evaluation_doubles import RATE, SpectrumJudge, tone, write

from e2e_tts.pipelines.evaluation import held_out_similarity
from e2e_tts.pipelines.evaluation.audio_files import read_recording
from e2e_tts.pipelines.evaluation.held_out import select_rows

PITCHES = {"ada": 300.0, "bob": 1500.0, "one": 2600.0}


@pytest.fixture
def data(tmp_path) -> str:
    """Three clips of two speakers, the first held out, and a speaker of one clip."""
    rows = []
    for speaker, pitch in PITCHES.items():
        for number in range(1 if speaker == "one" else 3):
            write(tmp_path / "clip.wav", tone(9000 + number, pitch))
            audio = {"bytes": (tmp_path / "clip.wav").read_bytes(), "path": None}
            split = "train" if number else "dev"
            rows.append({"id": f"{speaker}{number}", "audio": audio, "text": f"I am  {speaker}.", "speaker": speaker})
            rows[-1] |= {"source": "x", "split": split, "seconds": 9000 / RATE, "emotion": "", "language": "en"}
    Dataset.from_list(rows).save_to_disk(tmp_path / "data")
    return str(tmp_path / "data")


def run(data: str, audio, output, monkeypatch, *options: str) -> dict:
    monkeypatch.setattr(held_out_similarity, "load_speaker_judge", lambda name: SpectrumJudge())
    held_out_similarity.main(["--audio", str(audio), "--data", data, "--output", str(output), *options])
    return json.loads(output.read_text())


def test_rows_are_compared_with_other_clips_of_their_speaker(data, tmp_path, monkeypatch):
    audio = tmp_path / "speech"
    write(audio / "0000.wav", tone(9000, PITCHES["ada"]))
    write(audio / "0001.wav", tone(9000, PITCHES["ada"]))  # bob's sentence in ada's voice
    write(audio / "0002.wav", np.zeros(9000, np.float32))
    report = run(data, audio, tmp_path / "out.json", monkeypatch)
    assert [row["reference"] for row in report["rows"]] == ["I am ada.", "I am bob.", "I am one."]
    own, other, silent = (row["similarity"] for row in report["rows"])
    assert own > 0.99 and other < 0.1 and silent == 0.0
    assert report["similarity"] == pytest.approx((own + other + silent) / 3)


def test_vectors_are_of_other_clips_and_computed_once(data, tmp_path):
    class Counting(SpectrumJudge):
        heard: list[int] = []  # noqa: RUF012 - of this test alone

        def embed(self, waveform, sampling_rate):
            self.heard.append(len(waveform))
            return super().embed(waveform, sampling_rate)

    vectors = held_out_similarity.SpeakerVectors(Counting(), [data], tmp_path / "kept")
    vectors.reference("ada0", ("x", "ada"))
    assert Counting.heard == [9001, 9002]
    vectors.reference("one0", ("x", "one"))
    assert Counting.heard == [9001, 9002, 9000]
    again = held_out_similarity.SpeakerVectors(Counting(), [data], tmp_path / "kept")
    expected = np.mean([SpectrumJudge().embed(tone(length, 300.0), RATE) for length in (9001, 9002)], axis=0)
    np.testing.assert_allclose(again.reference("ada0", ("x", "ada")), expected, atol=1e-3)
    assert len(Counting.heard) == 3


def test_one_name_in_two_corpora_is_two_speakers(data, tmp_path, monkeypatch):
    """The other corpus's ada sounds like bob: she is no clip to compare this ada's speech with."""
    rows = [row | {"source": "y", "id": f"y/{row['id']}"} for row in Dataset.load_from_disk(data)]
    named = [{**row, "speaker": {"ada": "bob", "bob": "ada"}.get(row["speaker"], "one")} for row in rows]
    Dataset.from_list(named).save_to_disk(tmp_path / "other")
    write(tmp_path / "speech" / "0000.wav", tone(9000, PITCHES["ada"]))
    both = ["--data", data, str(tmp_path / "other"), "--sources", "x"]
    report = run(data, tmp_path / "speech", tmp_path / "out.json", monkeypatch, *both)
    assert report["rows"][0]["similarity"] > 0.99


def test_missing_speech_counts_as_nothing_and_missing_folders_are_refused(data, tmp_path, monkeypatch):
    write(tmp_path / "speech" / "0000.wav", read_recording(select_rows([data], "dev")[0]["audio"]["bytes"])[0])
    report = run(data, tmp_path / "speech", tmp_path / "out.json", monkeypatch)
    assert [round(row["similarity"], 2) for row in report["rows"]] == [1.0, 0.0, 0.0]
    with pytest.raises(SystemExit, match="run held_out_speech first"):
        run(data, tmp_path / "absent", tmp_path / "out.json", monkeypatch)
