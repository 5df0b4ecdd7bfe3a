"""The study of long texts on constructed speech: order, failures, drift of the voice, the command."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from evaluation_doubles import RATE, KnowingRecogniser, SpectrumJudge, tone

from e2e_tts.pipelines.evaluation import long_text_study
from e2e_tts.pipelines.long_text import split_text

ANIMALS = ["ants", "bees", "cats", "dogs", "eels", "foxes", "goats", "hens", "ibexes", "jays", "kites", "larks"]
TEXT = " ".join(f"Somebody asked the {animal} about {2 * number} apples." for number, animal in enumerate(ANIMALS))
PARTS = split_text(TEXT)
SAMPLES = [8000 + 100 * number for number in range(len(PARTS))]


class Reader:
    """Speaks part n as a tone of its own length; the pitch moves by `drift` Hz a part."""

    def __init__(self, drift: float = 0.0, silent: int | None = None, parts: list[str] = PARTS) -> None:
        self.drift, self.silent, self.parts, self.settings = drift, silent, parts, {}

    def __call__(self, part: str, **settings: object) -> dict:
        number, self.settings = self.parts.index(part), settings
        audio = tone(SAMPLES[number], 500.0 + self.drift * number) * (number != self.silent)
        return {"audio": audio.astype(np.float32), "sampling_rate": RATE}


def study(reader: Reader, output, heard=None) -> long_text_study.LongTextReport:
    recogniser = KnowingRecogniser(dict(zip(SAMPLES, heard or PARTS, strict=True)))
    return long_text_study.run_study(reader, TEXT, output, recogniser, SpectrumJudge(), model="reader", seed=3)


def test_a_perfect_reading(tmp_path):
    reader = Reader()
    report = study(reader, tmp_path)
    assert len(PARTS) == report.parts == 12 and report.words == sum(len(part.split()) for part in PARTS)
    assert report.in_place.value == 1.0 and report.wer.value == 0.0 and not report.failures
    assert report.seconds == pytest.approx(sum(SAMPLES) / RATE)
    assert min(report.voice_first.value, report.voice_last.value) > 0.99
    assert reader.settings == {"seed": 3} and report.memory_end > 0
    assert "| parts in their place, % | 100.0 [100.0, 100.0] |" in (tmp_path / "report.md").read_text()
    with pytest.raises(FileExistsError):
        study(reader, tmp_path)


def test_lost_exchanged_and_bad_parts_are_told_apart(tmp_path):
    heard = list(PARTS)
    heard[2], heard[3] = heard[3], heard[2]
    heard[5] = heard[4]
    heard[7] = heard[7].replace("asked", "has").replace("apples", "chapels")  # badly said, but in its place
    report = study(Reader(silent=9), tmp_path, heard)
    details = json.loads((tmp_path / "report.json").read_text())["details"]
    assert [n for n, part in enumerate(details) if part["nearest"] != n] == [2, 3, 5, 9]
    assert details[9]["nearest"] == -1 and report.failures["silence"] == [9]
    assert report.in_place.value == pytest.approx(8 / 12)


def test_a_voice_that_changes_shows(tmp_path):
    report = study(Reader(drift=60.0), tmp_path)
    assert max(report.voice_first.value, report.voice_last.value) < 0.7


def test_a_part_that_the_speaker_judge_refuses_costs_nothing_else(tmp_path):
    class Picky(SpectrumJudge):
        def embed(self, waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
            if len(waveform) == SAMPLES[4]:
                raise ValueError("No speech was found.")
            return super().embed(waveform, sampling_rate)

    recogniser = KnowingRecogniser(dict(zip(SAMPLES, PARTS, strict=True)))
    report = long_text_study.run_study(Reader(), TEXT, tmp_path, recogniser, Picky(), model="reader", seed=3)
    assert report.wer.value == 0.0 and report.voice_first.value > 0.99


def test_a_sentence_that_comes_twice_is_in_its_place_twice(tmp_path):
    refrain = "Nobody had an answer to that at all."
    text = " ".join([refrain, *PARTS, refrain])

    class Refrain(Reader):
        def __call__(self, part: str, **settings: object) -> dict:
            if part != refrain:
                return super().__call__(part, **settings)
            return {"audio": tone(7000, 500.0).astype(np.float32), "sampling_rate": RATE}

    recogniser = KnowingRecogniser({7000: refrain, **dict(zip(SAMPLES, PARTS, strict=True))})
    report = long_text_study.run_study(Refrain(), text, tmp_path, recogniser, SpectrumJudge(), model="reader")
    assert report.parts == 14 and report.in_place.value == 1.0


def test_mandarin_is_scored_by_its_characters(tmp_path, monkeypatch):
    text = "".join(f"有人问起了第{number}只小鸟的事情，可是没有人知道。" for number in "一二三四五六七八九十")
    parts, asked = split_text(text), []
    assert len(parts) == 10
    recogniser = KnowingRecogniser(dict(zip(SAMPLES, ["有人问起了第七只小鸟", *parts[1:]], strict=False)))
    reader = Reader(parts=parts)
    reader.processor = SimpleNamespace(frontend="phonemes", language="zh")
    monkeypatch.setattr(long_text_study, "load_pipeline", lambda model, device: reader)
    monkeypatch.setattr(long_text_study, "load_speaker_judge", lambda name: SpectrumJudge())
    monkeypatch.setattr(long_text_study, "load_recogniser", lambda name, language: asked.append(language) or recogniser)
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    arguments = ["--model", "reader", "--text", str(tmp_path / "text.txt"), "--output", str(tmp_path / "out")]
    long_text_study.main([*arguments, "--language", "zh", "--normaliser", "characters"])
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert asked == ["zh"] and (report["language"], report["normaliser"]) == ("zh", "characters")
    assert report["words"] == sum(character.isalnum() for character in text)
    assert report["wer"]["value"] == pytest.approx(11 / report["words"]) and report["in_place"]["value"] == 0.9
    table = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "| characters, parts |" in table and "| CER, % |" in table
    with pytest.raises(SystemExit, match="The checkpoint speaks 'zh', and --language is 'en'"):
        long_text_study.main(arguments)


def test_mistakes_are_told(tmp_path, capsys):
    with pytest.raises(ValueError, match="1 parts, at least 10"):
        long_text_study.run_study(Reader(), "Too short a text.", tmp_path, None, None)
    with pytest.raises(SystemExit, match=r"error: .*none\.txt"):
        long_text_study.main(["--model", "x", "--text", str(tmp_path / "none.txt"), "--output", str(tmp_path)])
