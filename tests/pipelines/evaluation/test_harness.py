"""The harness on constructed test sets whose answers are known: figures, failures, continuing, reports."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from evaluation_doubles import (
    RATE,
    SAMPLES_PER_WORD,
    KnowingRecogniser,
    LevelJudge,
    SpectrumJudge,
    ToneSpeaker,
    tone,
    write,
)

from e2e_tts.pipelines.evaluation import harness
from e2e_tts.pipelines.evaluation.judge_interface import NoSpeechError
from e2e_tts.pipelines.evaluation.judging import NO_VOICE, Judges
from e2e_tts.pipelines.evaluation.options import EvaluationOptions, parse_pairs, parse_settings

TEXTS = {
    "one": "Birds sing.",
    "two": "It rained all day.",
    "three": "She walked home in the dark.",
    "four": "We have never been there before, I think.",
}


@pytest.fixture
def folder(tmp_path):
    """Recordings of the texts, all of different lengths, a list that names them, and the same files as a system's."""
    lines = []
    for index, (name, text) in enumerate(TEXTS.items()):
        waveform = tone(SAMPLES_PER_WORD * len(text.split()) + 7000, 300 + 400 * index)
        write(tmp_path / "recordings" / f"{name}.wav", waveform)
        write(tmp_path / "system" / f"{name}.wav", waveform)
        lines.append(f"{name}|Its prompt.|recordings/{name}.wav|{text}|recordings/{name}.wav")
    (tmp_path / "set.lst").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def judges(extra: dict[int, str] | None = None) -> Judges:
    heard = {SAMPLES_PER_WORD * len(text.split()) + 7000: text for text in TEXTS.values()}
    return Judges(KnowingRecogniser(heard | (extra or {})), SpectrumJudge(), LevelJudge())


def options(folder, **changes) -> EvaluationOptions:
    settings = {"output_dir": str(folder / "out"), "test_list": str(folder / "set.lst"), "resamples": 200}
    if "model" not in changes:
        settings["audio"] = str(folder / "system")
    return EvaluationOptions(**(settings | changes))


def test_the_recordings_themselves_score_as_the_recordings(folder):
    heard = judges()
    heard.recogniser.transcripts[SAMPLES_PER_WORD * 2 + 7000] = "Birds sting."
    report = harness.run_evaluation(options(folder), judges=heard)
    speech, recording = report.conditions["speech"], report.conditions["recording"]
    assert speech.figures["similarity"]["value"] == pytest.approx(1)
    assert speech.figures["similarity"]["utterances"] == 4
    # The judge's own error: one word of 20 that it hears wrong whoever says it.
    assert speech.figures["error_rate"]["value"] == recording.figures["error_rate"]["value"] == pytest.approx(1 / 20)
    assert speech.figures["error_rate_by_utterance"]["value"] == pytest.approx(1 / 8)
    assert speech.figures["duration_ratio"]["value"] == pytest.approx(1)
    assert speech.figures["quality_overall"]["value"] == pytest.approx(1 + 4 * 0.3, abs=1e-3)
    assert speech.figures["failures_failed"]["value"] == 0
    assert "real_time_factor" not in speech.figures
    assert report.worst_rows("speech")[0].name == "one"


def test_other_voices_and_shuffled_speech_are_told_apart(folder):
    names = list(TEXTS)
    for index, name in enumerate(names):
        source = folder / "recordings" / f"{names[index - 1]}.wav"
        (folder / "system" / f"{name}.wav").write_bytes(source.read_bytes())
    report = harness.run_evaluation(options(folder), judges=judges())
    speech, recording = report.conditions["speech"], report.conditions["recording"]
    assert speech.figures["error_rate"]["low"] > 0.8 and recording.figures["error_rate"]["high"] == 0
    assert speech.figures["similarity"]["high"] < 0.3


def test_every_kind_of_bad_speech_is_counted_and_none_ends_the_run(folder, tmp_path):
    write(folder / "system" / "one.wav", np.zeros(RATE, np.float32))
    (folder / "system" / "two.wav").write_bytes(b"RIFF this is no sound")
    (folder / "system" / "three.wav").unlink()
    with open(folder / "set.lst", "a", encoding="utf-8") as file:
        file.write("\none|||Again.\nfive|||Nobody knows this.\nsix|||Much too long.\nseven|||Again and again.\n")
    write(folder / "system" / "five.wav", tone(12345))
    write(folder / "system" / "six.wav", tone(20 * RATE))
    write(folder / "system" / "seven.wav", tone(RATE))
    # What it knows: six is cut off as well as too long, seven repeats itself; five is unknown, so the judge fails.
    heard = judges({20 * RATE: "much", RATE: "again and again again and again"})
    report = harness.run_evaluation(options(folder), judges=heard)
    speech = report.conditions["speech"]
    assert {kind: count for kind, count in speech.failure_counts.items() if count} == {
        "error": 2,
        "silence": 1,
        "empty_transcript": 1,
        "over_long": 1,
        "cut_off": 1,
        "repetition": 1,
        "failed": 5,
    }
    # What was lost counts as deleted words; what the judge refused does not count.
    assert speech.figures["error_rate"]["utterances"] == 6
    assert speech.word_counts["deletions"] == 2 + 4 + 6 + 2 and speech.word_counts["insertions"] == 3
    # Nor does it resemble its speaker, while there is no opinion of it. Only four has a sound and a prompt.
    assert speech.figures["similarity"]["utterances"] == 4
    assert speech.figures["similarity"]["value"] == pytest.approx(1 / 4)
    assert [row.similarity for row in speech.rows if row.name in ("one", "two", "three", "six")] == [0, 0, 0, None]
    assert speech.figures["quality_overall"]["utterances"] == 4
    assert "| 4, 3 failed left out |" in report.to_markdown()
    assert [(row.place, row.reason.split(":")[0]) for row in report.refused] == [
        ("line 5", "it is empty"),
        ("line 6", "its name 'one' was taken by line 1"),
    ]
    assert [refusal[:3] for refusal in report.refusals()] == [("speech", "five", "recogniser")]
    assert {row.name for row in report.worst_rows("speech")[:2]} == {"two", "three"}
    markdown = (folder / "out" / "report.md").read_text(encoding="utf-8")
    for part in ("line 6", "KeyError: 12345", "cannot be read", "has no file three"):
        assert part in markdown
    # A second run judges nothing again but what was refused.
    before = len(heard.recogniser.heard)
    again = harness.run_evaluation(options(folder), judges=heard)
    assert heard.recogniser.heard[before:] == [12345]
    assert again.to_dict() == report.to_dict()


def test_failed_speech_of_an_earlier_version_counts_too(folder):
    """Records without a speaker for failed speech, as they were once written, are judged again."""
    (folder / "system" / "two.wav").unlink()
    report = harness.run_evaluation(options(folder), judges=judges())
    records = folder / "out" / "judged_speech.jsonl"
    lines = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    lines = [line | ({} if line["speaker_vector"] else {"speaker": None}) for line in lines]
    records.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    again = judges()
    assert harness.run_evaluation(options(folder), judges=again).to_dict() == report.to_dict()
    assert again.recogniser.heard == []
    assert report.conditions["speech"].figures["similarity"]["utterances"] == 4


def test_answers_that_are_no_numbers_are_refusals(folder):
    class Broken(LevelJudge):
        def score(self, waveform, sampling_rate):
            return {"overall": float("nan")}

    class Lost(SpectrumJudge):
        def embed(self, waveform, sampling_rate):
            vector = super().embed(waveform, sampling_rate)
            return vector if vector.argmax() < 8 else vector * np.nan  # only "one" has a voice

    report = harness.run_evaluation(
        options(folder, judge_recordings=False), judges=Judges(judges().recogniser, Lost(), Broken())
    )
    figures = report.conditions["speech"].figures
    assert figures["similarity"]["utterances"] == 1 and "quality_overall" not in figures
    assert figures["error_rate"]["utterances"] == 4
    reasons = {(name, role): reason for _, name, role, reason in report.refusals()}
    assert reasons["one", "quality"] == "ValueError: the scores overall are not finite"
    assert reasons["two", "speaker"] == "ValueError: the speaker vector is not finite"


def test_speech_without_a_voice_resembles_its_speaker_by_0(folder):
    """Leaving noise out would reward it; of a recording without a voice nobody is to blame."""

    class Attentive(SpectrumJudge):
        def embed(self, waveform, sampling_rate):
            if waveform.size == RATE:
                raise NoSpeechError("No speech was found.")
            return super().embed(waveform, sampling_rate)

    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    write(folder / "system" / "five.wav", noise)
    write(folder / "noise.wav", noise)
    with open(folder / "set.lst", "a", encoding="utf-8") as file:
        file.write("five|Its prompt.|recordings/one.wav|Nobody knows this.|noise.wav\n")
    heard = Judges(judges({RATE: "Nobody knows this."}).recogniser, Attentive())
    report = harness.run_evaluation(options(folder), judges=heard)
    speech, recording = report.conditions["speech"], report.conditions["recording"]
    assert [row.similarity for row in speech.rows] == pytest.approx([1, 1, 1, 1, 0])
    assert speech.figures["similarity"]["value"] == pytest.approx(4 / 5) and speech.failure_counts["failed"] == 0
    assert [row.voice for row in speech.rows] == [None] * 4 + [NO_VOICE]
    assert recording.figures["similarity"]["utterances"] == 4
    assert [refusal[:3] for refusal in report.refusals()] == [("recording", "five", "speaker")]
    for page in ("report.md", "report.html"):
        assert "No voice heard, a similarity of 0: 1 (five)." in (folder / "out" / page).read_text(encoding="utf-8")
    assert harness.run_evaluation(options(folder), judges=heard).to_dict() == report.to_dict()


def test_transcripts_may_hold_any_line_separator(folder):
    heard = judges()
    heard.recogniser.transcripts[SAMPLES_PER_WORD * 2 + 7000] = "Birds\u2028sing\x85."
    first = harness.run_evaluation(options(folder), judges=heard)
    assert harness.run_evaluation(options(folder), judges=heard).to_dict() == first.to_dict()
    assert first.conditions["speech"].figures["error_rate"]["value"] == 0


def speak(folder, speaker, out="out", **changes):
    heard = {SAMPLES_PER_WORD * len(text.split()): text for text in TEXTS.values()}
    settings = {"model": "tones", "output_dir": str(folder / out), "batch_size": 2, "voice": "anna", **changes}
    return harness.run_evaluation(options(folder, **settings), judges=judges(heard), load_speaker=lambda: speaker)


def test_speech_is_made_judged_and_timed(folder):
    speaker = ToneSpeaker()
    report = speak(folder, speaker, sampling=["temperature=0.5"])
    figures = report.conditions["speech"].figures
    assert figures["error_rate"]["value"] == 0 and figures["error_rate"]["utterances"] == 4
    assert figures["real_time_factor"]["utterances"] == 4 and figures["real_time_factor"]["value"] > 0
    assert figures["duration_ratio"]["value"] < 1
    assert speaker.calls == [list(TEXTS.values())[:2], list(TEXTS.values())[2:]]
    assert speaker.arguments == [{"voice": "anna", "temperature": 0.5}] * 2


def test_a_killed_run_continues_to_the_same_report(folder):
    whole = speak(folder, ToneSpeaker(), out="whole")
    with pytest.raises(KeyboardInterrupt):
        speak(folder, ToneSpeaker(killed_at=1))
    # Killed while it wrote: half a record, and a batch of which one part is there.
    records = folder / "out" / "synthesis.jsonl"
    first = records.read_text(encoding="utf-8").splitlines()[0]
    records.write_text(first + '\n{"name": "tw', encoding="utf-8")
    speaker = ToneSpeaker()
    continued = speak(folder, speaker)
    assert [len(call) for call in speaker.calls] == [2, 2]
    untimed = [
        {row.name: (row.transcript, row.similarity, row.seconds) for row in report.conditions["speech"].rows}
        for report in (whole, continued)
    ]
    assert untimed[0] == untimed[1]
    for path in sorted((folder / "whole" / "audio").iterdir()):
        assert path.read_bytes() == (folder / "out" / "audio" / path.name).read_bytes()
    # A finished one speaks nothing more.
    idle = ToneSpeaker(killed_at=0)
    assert speak(folder, idle).to_dict() == continued.to_dict()


def test_a_checkpoint_speaks_on_the_cpu_unless_a_device_is_named(folder, monkeypatch):
    """Another device draws other numbers, which must not depend on the machine."""
    devices = []
    monkeypatch.setattr(harness, "model_version", lambda model: "1")
    monkeypatch.setattr(
        "e2e_tts.pipelines.load_pipeline", lambda model, device, **settings: devices.append(device) or ToneSpeaker()
    )
    for out, device in (("first", {}), ("second", {"device": "cuda:0"})):
        harness.run_evaluation(options(folder, model="m", output_dir=str(folder / out), **device), judges=Judges())
    assert devices == ["cpu", "cuda:0"]
    settings = [json.loads((folder / out / "settings.json").read_text()) for out in ("first", "second")]
    assert [stored.get("device") for stored in settings] == [None, "cuda"]


def test_other_settings_are_refused_by_name(folder):
    speak(folder, ToneSpeaker())
    with pytest.raises(ValueError, match="seed: 0 there, 5 now"):
        speak(folder, ToneSpeaker(), seed=5)
    (folder / "set.lst").write_text("one|||Another text.\n", encoding="utf-8")
    with pytest.raises(ValueError, match="test_set"):
        speak(folder, ToneSpeaker())


def test_clips_that_have_changed_are_judged_anew(folder):
    heard = judges({5000: "Birds sting."})
    (folder / "system" / "two.wav").unlink()
    first = harness.run_evaluation(options(folder), judges=heard).conditions["speech"]
    assert first.figures["error_rate"]["value"] == pytest.approx(4 / 20) and first.failure_counts["error"] == 1
    write(folder / "system" / "one.wav", tone(5000))
    (folder / "system" / "two.wav").write_bytes((folder / "recordings" / "two.wav").read_bytes())
    before = len(heard.recogniser.heard)
    second = harness.run_evaluation(options(folder), judges=heard).conditions["speech"]
    assert heard.recogniser.heard[before:] == [5000, SAMPLES_PER_WORD * 4 + 7000]
    assert second.figures["error_rate"]["value"] == pytest.approx(1 / 20) and second.failure_counts["error"] == 0
    # Another prompt, or another speaker to resemble, is another question.
    settings = {"speaker_recordings": str(folder / "recordings"), "output_dir": str(folder / "other")}
    harness.run_evaluation(options(folder, **settings), judges=heard)
    write(folder / "recordings" / "one.wav", tone(5000))
    with pytest.raises(ValueError, match="test_set: "):
        harness.run_evaluation(options(folder), judges=heard)
    with pytest.raises(ValueError, match="speaker_recordings_version: "):
        harness.run_evaluation(options(folder, **settings), judges=heard)


def test_one_text_that_cannot_be_spoken_takes_no_other_with_it(folder):
    report = speak(folder, ToneSpeaker(unspeakable=TEXTS["two"]))
    rows = {row.name: row for row in report.conditions["speech"].rows}
    assert rows["two"].error == "It did not end." and rows["two"].failures == ["error"]
    assert rows["one"].error is None and rows["one"].error_rate == 0


def test_prompts_speak_unless_a_voice_is_named(folder):
    speaker = ToneSpeaker()
    speak(folder, speaker, voice=None, continue_prompt=True)
    assert [len(call) for call in speaker.calls] == [1] * 4  # a batch has one voice
    reference = speaker.arguments[0]["reference_audio"]
    assert reference["array"].size == SAMPLES_PER_WORD * 2 + 7000 and reference["sampling_rate"] == RATE
    assert speaker.arguments[0]["reference_text"] == "Its prompt."


def test_similarity_to_a_folder_of_the_speakers_recordings(folder):
    for index in range(2):
        write(folder / "speaker" / f"{index}.wav", tone(RATE, 300))
    (folder / "speaker" / "broken.wav").write_bytes(b"no sound")
    report = harness.run_evaluation(options(folder, speaker_recordings=str(folder / "speaker")), judges=judges())
    rows = {row.name: row.similarity for row in report.conditions["speech"].rows}
    assert rows["one"] > 0.99 and max(rows["two"], rows["three"], rows["four"]) < 0.3
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="no recording of the speaker"):
        settings = {"speaker_recordings": str(folder / "empty"), "output_dir": str(folder / "other")}
        harness.run_evaluation(options(folder, **settings), judges=judges())


def test_pairs_stay_text_and_settings_are_read():
    # Names such as 0011 and no are not what YAML takes them for.
    assert parse_pairs(["speaker=0011", "language = no"], "filters") == {"speaker": "0011", "language": "no"}
    values = parse_settings(["top_p=9e-1", "beam_size=2", "cache_folder=/tmp/a=b", "language=no"], "recogniser_options")
    assert values == {"top_p": 0.9, "beam_size": 2, "cache_folder": "/tmp/a=b", "language": "no"}
    with pytest.raises(ValueError, match="--filters takes NAME=VALUE"):
        parse_pairs(["source"], "filters")


class Page(HTMLParser):
    """Collects the addresses that a page asks for, and the tags that are left open."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself(folder):
    with open(folder / "set.lst", "a", encoding="utf-8") as file:
        file.write("<b>|||<script>alert(1)</script>\nbad line\n")
    harness.run_evaluation(options(folder, samples=3), judges=judges())
    content = (folder / "out" / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(content)
    assert page.open == [] and "script" not in page.tags
    assert all(address.startswith("data:") for address in page.addresses)
    # Three samples, of which one was never spoken; each stands beside its recording.
    assert page.tags.count("article") == 3 and page.tags.count("audio") == 4
    pytest.importorskip("matplotlib")
    assert page.tags.count("img") == 4
    assert "&lt;script&gt;" in content and "bad line" in content
    assert not re.search(r"https?://", content)


def test_reports_for_machines_are_strict_json(folder):
    report = harness.run_evaluation(options(folder), judges=judges())

    def refuse(constant):
        raise AssertionError(constant)

    text = (folder / "out" / "report.json").read_text(encoding="utf-8")
    values = json.loads(text, parse_constant=refuse)
    assert values == json.loads(json.dumps(report.to_dict()))
    assert values["judges"]["recogniser"] == {"name": "knowing", "version": "1"}
    for condition in values["conditions"].values():
        for figure in condition["figures"].values():
            assert figure["low"] <= figure["value"] <= figure["high"] and figure["utterances"] > 0


def test_a_recogniser_that_refuses_everything_ends_the_run(folder):
    deaf = Judges(KnowingRecogniser({}))
    with pytest.raises(RuntimeError, match="could score no speech at all: KeyError"):
        harness.run_evaluation(options(folder), judges=deaf)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_list": None}, "what is to be said"),
        ({"model": "m", "audio": "a"}, "who speaks"),
        ({"batch_size": 0}, "--batch_size must be at least 1"),
        ({"voice": "anna"}, "steer a checkpoint"),
        ({"language": "de"}, "name one with --normaliser"),
        ({"normaliser": "englisch"}, "Did you mean 'english'"),
        ({"filters": ["source=a"]}, "are for --dataset"),
        ({"sampling": ["voice=anna", "seed=3"]}, "cannot set seed, voice"),
        ({"audio": "nowhere"}, "not a folder"),
        ({"recogniser": "whisper-base-ofline"}, "Did you mean 'whisper-base-offline'"),
        ({"recogniser": "none", "speaker_judge": "resemblizer"}, "resemblyzer"),
        ({"recogniser": "none", "recogniser_options": ["x"], "quality_judge": "mos"}, "dnsmos"),
        ({"model": "nowhere", "recogniser": "none", "speaker_judge": "none"}, "not a checkpoint"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(folder, capsys, changes, message):
    values = vars(options(folder, **changes))
    arguments = []
    for name in ("output_dir", "test_list", *changes, "audio"):
        value = values[name]
        if value is not None and f"--{name}" not in arguments:
            arguments += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
    assert harness.main(arguments) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_the_command_evaluates(folder, capsys):
    arguments = ["--output_dir", str(folder / "out"), "--test_list", str(folder / "set.lst")]
    arguments += ["--audio", str(folder / "system"), "--recogniser", "none", "--speaker_judge", "none"]
    arguments += ["--quality_judge", "none", "--resamples", "10"]
    assert harness.main(arguments) == 0
    assert "| duration / recording's | 1.000 | 1.000 to 1.000 | 4 |" in capsys.readouterr().out


def test_a_checkpoint_speaks_a_list_and_a_run_continues(folder, tiny_model, processor, capsys):
    """The whole path with a real pipeline: random weights, prompts as voices, other settings refused."""
    from e2e_tts.pipelines import TextToSpeechPipeline

    model = tiny_model()
    TextToSpeechPipeline(model=model, processor=processor).save_pretrained(folder / "model")
    arguments = ["--output_dir", str(folder / "out"), "--test_list", str(folder / "set.lst"), "--limit", "2"]
    arguments += ["--model", str(folder / "model"), "--device", "cpu", "--resamples", "10"]
    for role in ("recogniser", "speaker_judge", "quality_judge"):
        arguments += [f"--{role}", "none"]
    assert harness.main([*arguments, "--sampling", "num_steps=2", "temperature=0.9"]) == 0
    assert "| real-time factor |" in capsys.readouterr().out
    values = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
    assert [row["seconds"] > 0 for row in values["conditions"]["speech"]["rows"]] == [True, True]
    before = [path.stat().st_mtime_ns for path in sorted((folder / "out" / "audio").iterdir())]
    assert harness.main([*arguments, "--sampling", "num_steps=2", "temperature=0.9"]) == 0
    assert [path.stat().st_mtime_ns for path in sorted((folder / "out" / "audio").iterdir())] == before
    capsys.readouterr()
    for changes, message in (
        (["--sampling", "num_steps=3", "temperature=0.9"], "sampling:"),
        (["--sampling", "steps=2", "--output_dir", str(folder / "new")], "Unknown settings ['steps']"),
        (["--voice", "nobody", "--output_dir", str(folder / "newer")], "Unknown voice 'nobody'"),
    ):
        assert harness.main([*arguments, *changes]) == 1
        assert message in capsys.readouterr().err
