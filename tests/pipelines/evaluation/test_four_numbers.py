"""The four numbers: what is rendered, what is scored, what is refused."""

import json
from collections import defaultdict

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from evaluation_doubles import KnowingRecogniser
from factories import SPEAKER_DIM, make_composite, make_rows

from e2e_tts.modeling import TextToSpeechProcessor
from e2e_tts.pipelines.evaluation import four_numbers
from e2e_tts.pipelines.evaluation.utterances import read_list

TEXTS = ["Birds sing.", "It rained | all day.", "Birds sing.", "She walked home."]


@pytest.fixture
def command(tmp_path, monkeypatch) -> list[str]:
    rows = [{**row, "text": text} for row, text in zip(make_rows(4, split="dev"), TEXTS, strict=True)]
    Dataset.from_list([{**row, "source": "anna"} for row in rows]).save_to_disk(tmp_path / "data")
    model = make_composite()
    with torch.no_grad():
        model.lm.end_head.bias.fill_(3.0)  # an untrained LM hardly ever ends
    model.set_voices({"anna": torch.ones(SPEAKER_DIM)}, {"anna": 4.0})
    model.save_pretrained(tmp_path / "model")

    def load_recogniser(name: str, language: str) -> KnowingRecogniser:
        return KnowingRecogniser(defaultdict(lambda: "鸟儿唱歌" if language == "zh" else "birds sing"))

    monkeypatch.setattr(four_numbers, "load_recogniser", load_recogniser)
    folders = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "data")]
    return [*folders, "--source", "anna", "--steps", "1"]


def test_each_sentence_is_rendered_four_times_and_scored(command, tmp_path, capsys):
    out = tmp_path / "out"
    four_numbers.main([*command, "--output", str(out), "--device", "cpu"])
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert list(report["conditions"]) == ["recording", "vocoder", "reconstruction", "speech"]
    texts = ["Birds sing.", "It rained | all day.", "She walked home."]
    for condition, scores in report["conditions"].items():
        assert [row["reference"] for row in scores["rows"]] == texts
        assert scores["wer"] == pytest.approx((0 + 4 + 3) / 9)
        assert len(list((out / condition).iterdir())) == 3
    assert "speech          WER   77.8 % [" in capsys.readouterr().out
    listed = read_list(out / "sentences.lst")
    assert [item.text for item in listed.utterances] == [text.replace("| ", "") for text in texts]
    assert not listed.remarks and listed.reference_seconds["0000"] > 0
    # The recording's own samples; the same seed gives the same sound, reconstruction included.
    assert np.ptp(soundfile.read(out / "recording" / "0000.wav")[0]) > 0
    four_numbers.main([*command, "--output", str(tmp_path / "again"), "--conditions", "speech", "reconstruction"])
    for condition in ("speech", "reconstruction"):
        for path in (out / condition).iterdir():
            assert path.read_bytes() == (tmp_path / "again" / condition / path.name).read_bytes()
    assert read_list(tmp_path / "again" / "sentences.lst").utterances[0].reference is None


def test_mandarin_is_scored_by_its_characters(command, tmp_path, capsys):
    rows = Dataset.load_from_disk(str(tmp_path / "data"))
    rows.map(lambda row: {"text": "小鸟唱歌。"}).save_to_disk(str(tmp_path / "zh"))
    out = tmp_path / "out"
    arguments = ["--data", str(tmp_path / "zh"), "--conditions", "recording", "--output", str(out)]
    four_numbers.main([*command, *arguments, "--language", "zh", "--normaliser", "characters"])
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert (report["settings"]["language"], report["settings"]["normaliser"]) == ("zh", "characters")
    scores = report["conditions"]["recording"]
    assert scores["normaliser"] == "characters" and scores["wer"] == pytest.approx(2 / 4)
    assert "recording       CER   50.0 % [" in capsys.readouterr().out
    # A checkpoint that speaks English says so, before anything is spoken.
    TextToSpeechProcessor.build().save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match="The checkpoint speaks 'en', and --language is 'zh'"):
        four_numbers.main([*command, *arguments, "--language", "zh", "--normaliser", "characters"])


def test_what_cannot_be_measured_is_said_in_words(command, tmp_path):
    for change, message in (
        (["--voice", "berta"], r"Unknown voice 'berta'; the model has \['anna'\]"),
        (["--source", "berta"], r"there are \['anna'\]"),
        (["--split", "test"], "No rows of split 'test'"),
        (["--limit", "0"], "at least 1"),
        (["--language", "de"], "for de name one with --normaliser"),
        (["--model", str(tmp_path)], "not a checkpoint"),
    ):
        with pytest.raises(SystemExit, match=message):
            four_numbers.main([*command, *change])
