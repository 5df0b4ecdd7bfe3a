"""Kokoro as a teacher: what it reads of a folder, what it gives the network, and what it makes of its sound."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from e2e_tts.trainers.data import teacher_speech, teachers
from e2e_tts.trainers.data.corpus_files import read_metadata

VOICES = ("zf_one", "zm_two", "af_english")


class FakeSession:
    """Answers with half a second of sound between silences, as loud as the style it was given says."""

    def __init__(self, path, settings, providers):
        self.given, self.settings = [], settings

    def get_inputs(self):
        return [SimpleNamespace(name="input_ids")]

    def run(self, outputs, inputs):
        self.given.append(inputs)
        silence = np.zeros(12000, dtype=np.float32)
        loudness = inputs["style"].flat[0]
        return [np.concatenate([silence, np.full(12000, loudness, dtype=np.float32), silence])[None]]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder laid out like the Hub's, and packages that need no network."""
    packages = {
        "misaki.zh": SimpleNamespace(ZHG2P=lambda: lambda text: (text.replace("。", "."), None)),
        "onnxruntime": SimpleNamespace(InferenceSession=FakeSession, SessionOptions=SimpleNamespace),
    }
    monkeypatch.setattr(teachers, "import_module", packages.__getitem__)
    folder = tmp_path / "kokoro"
    (folder / "voices").mkdir(parents=True)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").touch()
    for name in VOICES:
        # Row n is the style for n + 1 phonemes, and says so by its value.
        styles = np.repeat((np.arange(16, dtype=np.float32)[:, None] + 1) / 10, 256, axis=1)
        styles.tofile(folder / "voices" / f"{name}.bin")
    vocabulary = {symbol: number for number, symbol in enumerate("你好吗.hɛlO wɜɹdˈ", start=5)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}), encoding="utf-8")
    return folder


def test_kokoro_gets_known_phonemes_and_the_style_of_their_number(folder):
    kokoro = teachers.Kokoro(folder, "zh")
    assert kokoro.voices == ["zf_one", "zm_two"]
    samples = kokoro.speak("zm_two", "你x好。")
    (given,) = kokoro.session.given
    assert given["input_ids"].tolist() == [[0, 5, 6, 8, 0]] and given["style"].shape == (1, 256)
    # Silence is cut to its margins; 0.3 is the style for three phonemes.
    assert len(samples) == pytest.approx(16000 * (0.05 + 0.5 + 0.1), abs=2)
    assert samples[4000] == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("sentence", ["？？", "你好吗" * 6])
def test_kokoro_refuses_what_it_cannot_speak(folder, sentence):
    with pytest.raises(RuntimeError, match="1 to 15 phonemes"):
        teachers.Kokoro(folder, "zh").speak("zf_one", sentence)


def test_an_incomplete_folder_is_said_clearly(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \.onnx file.*onnx-community"):
        teachers.Kokoro(tmp_path / "nothing")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="phonemes"):
        teachers.Kokoro(folder)


def test_mandarin_teacher_speech_names_its_language(folder, tmp_path, capsys):
    (tmp_path / "sentences.txt").write_text("你好。\n你好吗。\n", encoding="utf-8")
    arguments = ["--sentences", str(tmp_path / "sentences.txt"), "--kokoro", str(folder)]
    arguments += ["--language", "zh", "--output"]
    with pytest.raises(SystemExit):
        teacher_speech.main([*arguments, str(tmp_path / "out")])
    assert "no voice" in capsys.readouterr().err
    teacher_speech.main([*arguments, str(tmp_path / "out"), "--voices", "zf_one"])
    rows = read_metadata(tmp_path / "out")
    assert {(row["speaker"], row["language"]) for row in rows} == {("kokoro_zf_one", "zh")} and len(rows) == 2


def test_english_voices_get_the_letters_that_kokoro_writes(folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    kokoro = teachers.Kokoro(folder)
    assert kokoro.voices == ["af_english"] and kokoro.session.settings.intra_op_num_threads == 3
    kokoro.speak("af_english", "Hello world")
    (given,) = kokoro.session.given
    letters = {number: symbol for symbol, number in kokoro.vocabulary.items()}
    # "h ɛ l ˈoʊ | w ˈɚ l d ." of the frontend; the ends are the padding 0.
    assert "".join(letters[number] for number in given["input_ids"][0, 1:-1].tolist()) == "hɛlˈO wˈɜɹld."
    with pytest.raises(RuntimeError, match="cannot read"):
        kokoro.speak("af_english", "...")


def test_another_language_without_kokoro_is_refused(tmp_path, capsys):
    (tmp_path / "sentences.txt").write_text("你好。\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        teacher_speech.main(
            ["--sentences", str(tmp_path / "sentences.txt"), "--language", "zh", "--output", str(tmp_path / "out")]
        )
    assert "give --kokoro FOLDER" in capsys.readouterr().err
