"""Teacher data: which sentences are chosen, and that speaking them survives failures and interruptions."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Dataset

from e2e_tts.trainers.data import teacher_speech, teacher_text
from e2e_tts.trainers.data.corpus_files import read_metadata
from e2e_tts.trainers.data.splits import Splits, normalise_text


def noise(seconds: float, sampling_rate: int) -> np.ndarray:
    """Audible noise, float32 (samples,)."""
    random = np.random.default_rng(0)
    return (0.1 * random.standard_normal(int(seconds * sampling_rate))).astype(np.float32)


def test_missing_flite_is_said_clearly(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (tmp_path / "sentences.txt").write_text("A sentence.\n", encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        teacher_speech.main(["--sentences", str(tmp_path / "sentences.txt"), "--output", str(tmp_path / "out")])
    assert stopped.value.code == 1
    assert "`flite` is missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def fake_flite(tmp_path, monkeypatch) -> Path:
    """A program with flite's options that "speaks" noise, and fails on sentences with the word fail."""
    soundfile.write(tmp_path / "noise.wav", noise(0.5, 8000), 8000)
    program = tmp_path / "flite"
    script = """#!/bin/sh
if [ "$1" = -lv ]; then echo "Voices available: slt rms"; exit 0; fi
case "$4" in *fail*) echo "cannot say that" >&2; exit 3;; esac
cp "{folder}/noise.wav" "$6"
echo "$2 $4" >> "{folder}/spoken.txt"
"""
    program.write_text(script.format(folder=tmp_path), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(program))
    return program


def test_teacher_speech_goes_on_after_failures_and_after_a_stop(fake_flite, tmp_path, capsys):
    sentences, output = tmp_path / "sentences.txt", tmp_path / "speech"
    sentences.write_text("One; two.\nThis must fail.\nThree $HOME.\nOne; two.\n\n", encoding="utf-8")
    arguments = ["--sentences", str(sentences), "--voices", "slt:2", "rms", "--output", str(output)]
    teacher_speech.main(arguments)
    assert "2 files" in capsys.readouterr().out
    rows = read_metadata(output)
    assert [row["text"] for row in rows] == ["One; two.", "Three $HOME."]
    assert {row["speaker"] for row in rows} <= {"flite_slt", "flite_rms"}
    samples, rate = soundfile.read(output / rows[0]["file"])
    assert rate == 16000 and len(samples) == pytest.approx(8000, abs=10)
    assert "cannot say that" in (output / "failed.csv").read_text()
    assert not list(output.glob("*.partial"))

    # A file that was lost and a line that was cut off are made again; the finished one is left alone.
    (output / rows[1]["file"]).unlink()
    with (output / "metadata.csv").open("a", encoding="utf-8") as handle:
        handle.write("slt_half.flac,Half a")
    (tmp_path / "spoken.txt").unlink()
    teacher_speech.main(arguments)
    assert [row["text"] for row in read_metadata(output)] == ["One; two.", "Three $HOME."]
    assert (tmp_path / "spoken.txt").read_text().split(" ", 1)[1] == "Three $HOME.\n"


def test_teacher_speech_refuses_unknown_voices(fake_flite, tmp_path, capsys):
    (tmp_path / "sentences.txt").write_text("A sentence.\n", encoding="utf-8")
    arguments = ["--sentences", str(tmp_path / "sentences.txt"), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        teacher_speech.main([*arguments, "--voices", "slt", "kal99"])
    assert "no voice ['kal99']; it has ['rms', 'slt']" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        teacher_speech.main([*arguments, "--voices", "slt:0"])
    assert "VOICE:WEIGHT" in capsys.readouterr().err


def test_voices_are_used_by_their_weights():
    sentences = [f"Sentence {i}." for i in range(9)]
    jobs = list(teacher_speech.plan(sentences, [("slt", 2), ("rms", 1)], all_voices=False, seed=3))
    assert [sentence for _, _, sentence in jobs] == sentences
    assert [voice for _, voice, _ in jobs].count("slt") == 6
    assert jobs == list(teacher_speech.plan(sentences, [("slt", 2), ("rms", 1)], all_voices=False, seed=3))
    every = list(teacher_speech.plan(sentences, [("slt", 2), ("rms", 1)], all_voices=True, seed=3))
    assert len(every) == 18 and len({name for name, _, _ in every}) == 18


@pytest.mark.parametrize(
    ("sentence", "speakable"),
    [
        ("The birds sang in the morning.", True),
        ("Don't you see, I hate well-known tunes?", True),
        ("the birds sang.", False),
        ("The birds sang", False),
        ("Birds sang.", False),
        ("He paid 5 dollars to me.", False),
        ("The NASA birds sang.", False),
        ("Then Mr. Smith sang.", False),
        ("Then Mr Smith sang.", False),
        ("The letter b was there.", False),
        ("Zzzt brr hmm.", False),
        ("He was sooo tired.", False),
        ("One two three four five six seven eight nine ten eleven twelve thirteen.", False),
    ],
)
def test_speakable_sentences(sentence, speakable):
    assert teacher_text.is_speakable(sentence, 3, 12) is speakable


def test_teacher_text_keeps_plain_new_sentences_only(tmp_path, capsys):
    held_out, other = "A held out sentence stays unseen.", "Another one is for dev."
    rows = [("Learnt from the data.", "train"), ("Never from the test rows.", "test"), (other, "train")]
    prepared = tmp_path / "prepared"
    Dataset.from_list([{"text": text, "split": split} for text, split in rows]).save_to_disk(prepared)
    text = tmp_path / "fortunes"
    text.write_text(
        f"The first line is cut\nin the middle. {held_out}\n%\n"
        '"The quoted one comes out plain," he said -- slowly.\n\t-- Somebody Important Wrote This.\n'
        f"%\nThe first line is cut in the middle!\n%\nOnly 3 dogs came home.\n{other}\n",
        encoding="utf-8",
    )
    (tmp_path / "fortunes.dat").write_bytes(b"\x00\x01The index is not a text.")
    splits = tmp_path / "splits.json"
    Splits(test_texts={normalise_text(held_out)}, dev_texts={normalise_text(other)}).save(splits)
    arguments = ["--text", str(tmp_path / "fortunes"), "--prepared", str(prepared), "--split-file", str(splits)]
    for name in ("first", "again"):
        teacher_text.main([*arguments, "--count", "50", "--output", str(tmp_path / name)])
    lines = (tmp_path / "first").read_text(encoding="utf-8").splitlines()
    assert (tmp_path / "again").read_text(encoding="utf-8").splitlines() == lines
    assert sorted(lines) == [
        "Learnt from the data.",
        "The first line is cut in the middle.",
        "The quoted one comes out plain, he said, slowly.",
    ]

    with pytest.raises(SystemExit):
        teacher_text.main(["--text", str(tmp_path / "absent"), "--output", str(tmp_path / "out")])
    assert "absent does not exist" in capsys.readouterr().err


def test_patterns_give_different_sentences_of_a_closed_vocabulary(tmp_path, capsys):
    pattern = "The   {red,old} {cat,dog,bird} {sleeps,runs}."
    arguments = ["--pattern", pattern, "--output", str(tmp_path / "all.txt")]
    teacher_text.main(arguments)
    sentences = (tmp_path / "all.txt").read_text().splitlines()
    assert len(sentences) == len(set(sentences)) == 12
    assert {word for sentence in sentences for word in sentence.split()} == {
        *("The", "red", "old", "cat", "dog", "bird", "sleeps.", "runs.")
    }
    teacher_text.main([*arguments, "--count", "5"])
    assert len((tmp_path / "all.txt").read_text().splitlines()) == 5
    for wrong, message in (("The {red cat sleeps.", "do not match"), ("The {red,} cat sleeps.", "empty alternative")):
        with pytest.raises(SystemExit):
            teacher_text.main(["--pattern", wrong, "--output", str(tmp_path / "none.txt")])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "none.txt").exists()


def test_mandarin_text_is_split_at_clauses_that_do_not_fit(tmp_path, capsys):
    texts = ["“早上好”，我们去公园吧。", "第3次。", "他说：这座桥是很久以前由村里的人一起修建的；现在还在。", "短。"]
    rows = [{"text": text, "split": "train"} for text in texts] + [{"text": "不要这一句话。", "split": "test"}]
    Dataset.from_list(rows).save_to_disk(tmp_path / "prepared")
    arguments = ["--language", "zh", "--prepared", str(tmp_path / "prepared"), "--output", str(tmp_path / "text.txt")]
    teacher_text.main(arguments)
    expected = {"早上好，我们去公园吧。", "他说：这座桥是很久以前由村里的人一起修建的。"}
    assert set((tmp_path / "text.txt").read_text(encoding="utf-8").splitlines()) == expected
    with pytest.raises(SystemExit):
        teacher_text.main([*arguments, "--bible", "5"])
    assert "English" in capsys.readouterr().err
    # Of a file, a paragraph a line, only the sentences that cannot be spoken are left out.
    (tmp_path / "file.txt").write_text("他们都很高兴!第3次来。我还想再来一次,真的\n不要这一句话。\n", encoding="utf-8")
    Splits(test_texts={"不要这一句话"}).save(splits := tmp_path / "splits.json")
    teacher_text.main([*arguments, "--text", str(tmp_path / "file.txt"), "--split-file", str(splits)])
    expected |= {"他们都很高兴！", "我还想再来一次，真的。"}
    assert set((tmp_path / "text.txt").read_text(encoding="utf-8").splitlines()) == expected
