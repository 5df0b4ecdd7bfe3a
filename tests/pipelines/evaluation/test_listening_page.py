"""The listening page carries the sound it was given, sentence by sentence."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from e2e_tts.pipelines.evaluation import listening_page


def tone(rate: int, pitch: float, seconds: float = 0.5) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def pitch_of(uri: str) -> float:
    waveform, rate = soundfile.read(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    return float(np.abs(np.fft.rfft(waveform)).argmax() * rate / len(waveform))


@pytest.fixture
def folders(tmp_path):
    """Three sentences by two systems at 16 and 22.05 kHz; the second has no recording of the last one."""
    names = ("0000", "0001", "0002")
    (tmp_path / "texts.tsv").write_text("".join(f"{name}\tSentence <{name}> & more.\n" for name in names))
    for system, rate, count in (("a", 16000, 3), ("b", 22050, 2)):
        (tmp_path / system).mkdir()
        for index in range(count):
            soundfile.write(tmp_path / system / f"{names[index]}.wav", tone(rate, 200 * (index + 1)), rate)
    return tmp_path


def test_page_holds_each_sentence_of_each_system(folders, capsys):
    systems = [f"first={folders}/a", f"second={folders}/b"]
    page = folders / "listen.html"
    listening_page.main(["--texts", f"{folders}/texts.tsv", "--system", *systems, "--output", str(page)])
    printed = capsys.readouterr()
    assert "3 sentences, 2 systems" in printed.out and "second: there is no recording 0002" in printed.err
    text = page.read_text()
    assert "Sentence &lt;0001&gt; &amp; more." in text and "<0001>" not in text
    pitches = [pitch_of(uri) for uri in re.findall(r'src="(data:[^"]+)"', text)]
    assert pitches == pytest.approx([200, 200, 400, 400, 600], abs=5)
    # Nothing is fetched from anywhere.
    assert not re.search(r"https?:", text)


def test_the_harness_folder_is_a_system_and_its_list_has_the_texts(folders, capsys):
    (folders / "set.lst").write_text("".join(f"{name}|||Sentence {name}.\n" for name in ("0000", "0001", "0002")))
    records = [{"name": f"000{index}", "file": f"audio/0000{index}-a.wav"} for index in range(2)]
    records.append({"name": "0002", "file": None, "error": "It did not end."})
    (folders / "out" / "audio").mkdir(parents=True)
    for record in records[:2]:
        (folders / "out" / record["file"]).write_bytes((folders / "a" / f"{record['name']}.wav").read_bytes())
    # The last line is what a killed run leaves.
    lines = "".join(json.dumps(record) + "\n" for record in records) + '{"name": "00'
    (folders / "out" / "synthesis.jsonl").write_text(lines)
    page = folders / "listen.html"
    systems = [f"wavs={folders}/a", f"harness={folders}/out"]
    listening_page.main(["--texts", f"{folders}/set.lst", "--system", *systems, "--output", str(page)])
    assert capsys.readouterr().err == f"left empty: harness: there is no recording 0002 in {folders}/out\n"
    text = page.read_text()
    pitches = [pitch_of(uri) for uri in re.findall(r'src="(data:[^"]+)"', text)]
    assert "Sentence 0001." in text and pitches == pytest.approx([200, 200, 400, 400, 600], abs=5)
    assert (folders / "out" / "synthesis.jsonl").read_text() == lines
    assert len(listening_page.read_sentences(Path("everyday_en"))) == 200


def test_sentences_are_spread_over_the_list():
    assert listening_page.spread([str(i) for i in range(9)], 3) == ["0", "4", "8"]
    assert listening_page.spread(["a", "b"], 10) == ["a", "b"]


@pytest.mark.parametrize(
    "changes, message",
    [
        (["--system", "first"], "NAME=FOLDER"),
        (["--system", "a={}/a", "a={}/b"], "each name once"),
        (["--system", "a={}/missing"], "Nothing to hear of a"),
        (["--limit", "0"], "limit must be at least 1"),
        (["--texts", "{}/none.tsv"], "none.tsv"),
    ],
)
def test_mistakes_are_told(folders, changes, message):
    usual = ["--texts", f"{folders}/texts.tsv", "--system", f"a={folders}/a", "--output", f"{folders}/page.html"]
    with pytest.raises(SystemExit, match=message):
        listening_page.main([*usual, *(change.format(folders) for change in changes)])
    assert not (folders / "page.html").exists()
