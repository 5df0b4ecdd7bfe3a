"""Obedience to styles: closed forms, speech at every level, and the command."""

import json

import numpy as np
import pytest
from factories import WIDTH, lm_settings, make_composite, make_dataset, random_tensor

from e2e_tts.pipelines.evaluation import style_control
from e2e_tts.pipelines.evaluation.held_out import Voices, select_rows
from e2e_tts.pipelines.evaluation.held_out_speech import HeldOutSpeaker
from e2e_tts.pipelines.evaluation.style_control import measure_levels, measured_styles, summarise


def test_figures():
    values = np.array([[100.0, 150.0, 200.0], [200.0, 220.0, 100.0], [100.0, 110.0, 200.0], [90.0, np.nan, 120.0]])
    figures = summarise("pitch", values)
    assert figures.levels == pytest.approx([400 / 3, 160.0, 500 / 3]) and figures.failed == 1
    assert figures.difference.value == pytest.approx(4.0)  # an octave up, one down, one up
    assert figures.right_way.value == pytest.approx(2 / 3)
    assert summarise("effort", values).difference.value == pytest.approx(100 / 3)
    with pytest.raises(ValueError, match="all levels of rate"):
        summarise("rate", np.full((3, 2), np.nan))


def test_only_what_can_be_measured():
    styles = {"pitch": 5, "emotion": ["sad", "calm"], "whisper": 2}
    assert measured_styles(styles, sets_rate=False) == {"pitch": 5}
    assert measured_styles(styles, sets_rate=True) == {"pitch": 5, "rate": 5}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return make_dataset(str(tmp_path_factory.mktemp("styles") / "data"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    model = make_composite(lm_config=lm_settings(styles={"pitch": 3}, text_positions="aligned"))
    model.lm.style_embeddings["pitch"].weight.data[1:] = random_tensor(3, WIDTH)
    model.lm.end_head.bias.data.fill_(3.0)  # an untrained LM hardly ever ends
    path = str(tmp_path_factory.mktemp("model"))
    model.save_pretrained(path)
    return path


def test_every_level_is_spoken(data, folder, monkeypatch):
    rows = select_rows([data], "dev", limit=2)
    speaker = HeldOutSpeaker(style_control.load_composite(folder), steps=1, sampling={"temperature": 0.9})
    asked, speech = [], HeldOutSpeaker.speech

    def spoken(self, item, voice, rate):
        asked.append((item["index"], self.sampling))
        audio = speech(self, item, voice, rate)
        time = np.arange(16000) / 16000
        return audio[:0] if item["index"] else np.sin(2 * np.pi * 100 * self.sampling["style"]["pitch"] * time)

    monkeypatch.setattr(HeldOutSpeaker, "speech", spoken)
    values = measure_levels(speaker, rows, Voices.of_rows(rows, [data]), "pitch", 3)
    np.testing.assert_allclose(values[0], [100, 200, 300], rtol=0.01)
    assert np.isnan(values[1]).all()
    assert asked == [(row, {"temperature": 0.9, "style": {"pitch": level}}) for row in (0, 1) for level in (1, 2, 3)]
    assert speaker.sampling == {"temperature": 0.9}


def test_command(data, folder, tmp_path, monkeypatch, capsys):
    arguments = ["--model", folder, "--data", data, "--limit", "3", "--steps", "1", "--output", str(tmp_path / "out")]
    style_control.main([*arguments, "--styles", "rate", "--device", "cpu"])
    result = json.loads((tmp_path / "out" / "style_control.json").read_text())
    rate = result["styles"]["rate"]
    assert len(rate["levels"]) == 5 and result["settings"]["limit"] == 3
    assert "| rate, symbols/s |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"no measurable style \['energy'\]; it has \['pitch', 'rate'\]"):
        style_control.main([*arguments, "--styles", "energy"])
