"""The cloning study on constructed speakers, each a pitch: perfect clones, clones of nobody, failures, continuing."""

import io
import json

import numpy as np
import pytest
import soundfile
from evaluation_doubles import RATE, KnowingRecogniser, SpectrumJudge, tone, write

from e2e_tts.pipelines.evaluation import cloning
from e2e_tts.pipelines.evaluation.judge_interface import NoSpeechError
from e2e_tts.pipelines.evaluation.judging import RECORDING, SPEECH

PITCHES = {"ada": 300.0, "bob": 700.0, "cem": 1500.0, "dan": 2600.0}


@pytest.fixture
def clips(tmp_path):
    """Four speakers of four clips each, another who is in two splits, and one who has too few."""
    lines = ["file,text,speaker,split"]
    for name, pitch in [*PITCHES.items(), ("eve", 3100.0), ("few", 3500.0)]:
        for number in range(1 if name == "few" else 4):
            file = write(tmp_path / "clips" / f"{name}{number}.wav", tone(9000 + 1000 * number, pitch))
            split = "train" if name == "eve" and number == 0 else "test"
            lines.append(f"{file},Sentence number {number}.,{name},{split}")
    (tmp_path / "clips" / "metadata.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "clips"


class Mimic:
    """Called like the pipeline: answers with the sound of the reference, or with a tone of its own."""

    def __init__(self, pitch: float | None = None, fails_at: int | None = None, killed_at: int | None = None) -> None:
        self.pitch, self.fails_at, self.killed_at, self.calls = pitch, fails_at, killed_at, 0

    def __call__(self, texts, batch_size, seed, reference_audio):
        self.calls += 1
        if self.calls == self.killed_at:
            raise KeyboardInterrupt
        if self.calls == self.fails_at:
            raise RuntimeError("It did not end.")
        audio = reference_audio["array"] if self.pitch is None else tone(9000, self.pitch)
        return [{"audio": audio, "sampling_rate": RATE} for _ in texts]


def study(clips, output, speaker, **changes) -> cloning.CloningReport:
    settings = {"speakers": 4, "judge": SpectrumJudge(), "load_speaker": lambda: speaker, "resamples": 200}
    return cloning.run_study("mimic", str(clips), output, **(settings | changes))


def test_speakers_of_the_split_alone_with_the_longest_clip_as_reference(clips):
    people = cloning.read_speakers(str(clips), "test", 4, 2)
    assert list(people) == list(PITCHES)
    for name, items in people.items():
        assert [item.name.rpartition("/")[2] for item in items] == [f"{name}0", f"{name}1"]
        assert {item.prompt.source.name for item in items} == {f"{name}3.wav"}
        assert [item.reference.source.name for item in items] == [f"{name}0.wav", f"{name}1.wav"]
    with pytest.raises(ValueError, match="4 speakers with 3 clips or more"):
        cloning.read_speakers(str(clips), "test", 5, 2)
    with pytest.raises(ValueError, match="At least 2 speakers"):
        cloning.read_speakers(str(clips), "test", 1, 2)


def test_utterances_that_are_parts_of_a_recording(tmp_path):
    folder = tmp_path / "kaldi"
    lines = {"wav.scp": [], "segments": [], "text": [], "utt2spk": []}
    for name, pitch in (("ada", 300.0), ("bob", 900.0)):
        whole = np.concatenate([tone(RATE, pitch + 100 * number) for number in range(3)])
        lines["wav.scp"].append(f"{name} {write(folder / f'{name}.wav', whole)}")
        for number in range(3):
            end = number + (1.0 if number == 1 else 0.75)  # the second part is the longest
            lines["segments"].append(f"{name}-{number} {name} {number} {end}")
            lines["text"].append(f"{name}-{number} Sentence {number}.")
            lines["utt2spk"].append(f"{name}-{number} {name}")
    for file, content in lines.items():
        (folder / file).write_text("\n".join(content) + "\n")
    people = cloning.read_speakers(str(folder), "test", 2, 2)
    (first, second) = people["ada"]
    assert [item.name.split("/")[-1] for item in (first, second)] == ["ada-0", "ada-2"]
    samples, rate = soundfile.read(io.BytesIO(first.prompt.source), dtype="float32")
    assert len(samples) == rate and np.allclose(samples, tone(RATE, 400.0), atol=1e-3)


def test_other_sentences_in_turn(clips):
    people, own = (cloning.read_speakers(str(clips), "test", 4, 2, texts) for texts in (["One.", "Two.", "Three."], []))
    assert [item.text for items in people.values() for item in items][:4] == ["One.", "Two.", "Three.", "One."]
    for name, items in own.items():
        assert [item.reference for item in items] == [item.reference for item in people[name]]
        assert [item.text for item in items] == ["Sentence number 0.", "Sentence number 1."]


def test_perfect_clones_are_as_near_as_recordings(clips, tmp_path):
    report = study(clips, tmp_path / "out", Mimic())
    for condition in (SPEECH, RECORDING):
        figures = report.figures[condition]
        assert figures["own"].value > 0.99 and figures["identified"].value == 1.0
        assert figures["difference"].value == pytest.approx(figures["own"].value - figures["others"].value)
        assert figures["difference"].low <= figures["difference"].value <= figures["difference"].high
    assert report.gap["difference"].low <= 0.01 and abs(report.gap["difference"].value) < 0.02
    assert report.by_speaker.keys() == PITCHES.keys() and not report.failed
    values = json.loads((tmp_path / "out" / "report.json").read_text())
    assert values["figures"]["speech"]["difference"]["value"] == report.figures[SPEECH]["difference"].value
    assert "| clones |" in (tmp_path / "out" / "report.md").read_text()


def test_a_voice_that_is_nobodys_shows_no_difference(clips, tmp_path):
    report = study(clips, tmp_path / "out", Mimic(pitch=700.0))
    # The same sound for all: near to one speaker of four, and on the whole no nearer to the own one than to others.
    assert abs(report.figures[SPEECH]["difference"].value) < 0.01
    assert report.figures[SPEECH]["identified"].value == 0.25
    assert report.figures[SPEECH]["difference"].low < 0 < report.figures[SPEECH]["difference"].high
    assert report.gap["difference"].value < -0.9


def test_intervals_are_over_speakers(clips, tmp_path):
    """Saying every sentence of a speaker again makes nothing surer."""
    sentences = [
        cloning.ClonedSentence(f"{name}{take}", name, dict.fromkeys(cloning.MEASURES, value))
        for name, value in zip(PITCHES, (0.1, 0.2, 0.4, 0.7), strict=True)
        for take in range(5)
    ]
    people = cloning.read_speakers(str(clips), "test", 4, 1)

    def width(members) -> float:
        report = cloning.make_report("x", {}, people, {SPEECH: members, RECORDING: members}, {}, 500)
        return report.figures[SPEECH]["own"].high - report.figures[SPEECH]["own"].low

    assert width(sentences) == pytest.approx(width(sentences[::5]))


def test_what_fails_is_named_and_in_no_figure(clips, tmp_path):
    report = study(clips, tmp_path / "out", Mimic(fails_at=1))
    (name,) = report.failed
    assert name.endswith("ada0, speech") and report.failed[name] == "It did not end."
    assert report.figures[SPEECH]["own"].value > 0.99
    assert name.split(",")[0] in (tmp_path / "out" / "report.md").read_text()
    write(clips / "bob1.wav", np.zeros(9000, np.float32))
    assert any(name.endswith("bob1, recording") for name in study(clips, tmp_path / "new", Mimic()).failed)

    class Deaf(SpectrumJudge):
        def embed(self, waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
            if len(waveform) == 9000:
                raise NoSpeechError("No speech was found.")
            return super().embed(waveform, sampling_rate)

    with pytest.raises(ValueError, match="Nothing could be compared: no voice heard"):
        study(clips, tmp_path / "deaf", Mimic(pitch=333.0), judge=Deaf())


def test_one_reference_that_the_judge_refuses_costs_its_speaker_alone(clips, tmp_path):
    longest = clips / "bob3.wav"
    write(longest, tone(12000, 1234.0))

    class Picky(SpectrumJudge):
        def embed(self, waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
            vector = super().embed(waveform, sampling_rate)
            if vector @ super().embed(tone(12000, 1234.0), RATE) > 0.99:
                raise ValueError("No speech was found.")
            return vector

    report = study(clips, tmp_path / "out", Mimic(pitch=333.0), judge=Picky())
    assert any("reference of bob" in name for name in report.failed)
    assert "bob" not in report.by_speaker and len(report.by_speaker) == 3


def test_a_killed_study_goes_on(clips, tmp_path):
    killed, second = Mimic(killed_at=4), Mimic()
    with pytest.raises(KeyboardInterrupt):
        study(clips, tmp_path / "out", killed)
    report = study(clips, tmp_path / "out", second)
    assert second.calls == 8 - 3
    assert report.figures == study(clips, tmp_path / "whole", Mimic()).figures
    with pytest.raises(ValueError, match="other settings"):
        study(clips, tmp_path / "out", Mimic(), seed=1)


def test_words_of_clones_and_recordings(clips, tmp_path):
    """Clones are as long as their reference, 12,000 samples, the recordings 9,000 and 10,000."""
    heard = {9000: "Sentence number zero", 10000: "Sentence number one", 12000: "sentence number 0 indeed"}
    settings = {"recogniser": KnowingRecogniser(heard), "normaliser": "english"}
    report = study(clips, tmp_path / "out", Mimic(fails_at=1), **settings)
    assert report.words[RECORDING].value == 0.0
    # Of 24 words: seven sentences have one too many, the four of number 1 a wrong one, and one sentence is lost.
    assert report.words[SPEECH].value == pytest.approx((7 + 4 + 3) / 24)
    assert report.words[SPEECH].low < report.words[SPEECH].value < report.words[SPEECH].high
    page = (tmp_path / "out" / "report.md").read_text()
    assert "| knowing (1) | WER % |" in page and "| clones | 58.3 [" in page
    assert study(clips, tmp_path / "out", Mimic(), **settings).words == report.words
    others = study(clips, tmp_path / "others", Mimic(), texts=["Number zero."], **settings)
    assert others.words.keys() == {SPEECH}, "recordings do not say these sentences"
    assert not study(clips, tmp_path / "none", Mimic()).words


def test_command(clips, tmp_path, capsys):
    with pytest.raises(SystemExit, match="not the 20 asked for"):
        cloning.main(["--model", "x", "--clips", str(clips), "--speakers", "20", "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="not a checkpoint"):
        cloning.main(
            [
                "--model",
                str(clips),
                "--clips",
                str(clips),
                "--speakers",
                "4",
                "--judge",
                "resemblyzer",
                "--output",
                str(tmp_path / "out"),
            ]
        )
