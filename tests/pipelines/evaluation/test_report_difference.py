"""Two systems' reports are compared on the same sentences, and nothing else is."""

import json
from pathlib import Path

import pytest

from e2e_tts.pipelines.evaluation import report_difference, scoring
from e2e_tts.pipelines.evaluation.report import EvaluationReport
from e2e_tts.pipelines.evaluation.summary import Condition, EvaluatedRow

TEXTS = ["the birds sang in the morning", "he would not go", "nobody was there at all"]


@pytest.fixture
def write(tmp_path):
    def words(name: str, heard: list[str], judge: str = "by hand", normaliser: str = "english") -> Path:
        rows = scoring.score_transcripts(TEXTS[: len(heard)], heard)
        report = scoring.make_report(rows, judge=judge, normaliser=normaliser)
        report.to_json(tmp_path / name)
        return tmp_path / name

    def likeness(name: str, values: list[float], **judge: dict) -> Path:
        rows = [{"reference": text, "similarity": value} for text, value in zip(TEXTS, values, strict=True)]
        (tmp_path / name).write_text(json.dumps({"rows": rows} | judge))
        return tmp_path / name

    words.likeness = likeness
    return words


def test_words_are_counted_over_all_sentences_and_seeds(write):
    worse = [write("a.json", ["the birds sing in the morning", *TEXTS[1:]]), write("b.json", ["", *TEXTS[1:]])]
    better = [write("c.json", TEXTS), write("d.json", TEXTS)]
    comparison = report_difference.compare(worse, better)
    values = comparison.values
    assert comparison.measure == report_difference.ERRORS and comparison.left_out == 0
    assert values["first"].value == values["difference"].value == pytest.approx(100 * (1 + 6) / (2 * 15))
    assert values["second"].value == 0
    # Two sentences of three are the same in both, and a draw may hold nothing else.
    assert values["difference"].low == 0 < values["difference"].high


def test_a_gain_of_every_sentence_has_an_interval_above_zero(write):
    first, second = write.likeness("a.json", [0.9, 0.8, 0.6]), write.likeness("b.json", [0.8, 0.7, 0.5])
    comparison = report_difference.compare([first], [second])
    values, difference = comparison.values, comparison.values["difference"]
    assert comparison.measure == report_difference.SIMILARITY
    assert [difference.low, difference.value, difference.high] == pytest.approx([0.1] * 3)
    # Paired: the sentences differ among each other by more than the systems do.
    assert values["first"].low < values["second"].high


RECOGNISER, SPEAKER_JUDGE = ({"name": name, "version": "1"} for name in ("by hand", "by ear"))


def evaluated(
    path: Path,
    heard: list[str | None],
    likeness: list[float | None],
    condition: str = "speech",
    judges: dict | None = None,
    **settings: str | int,
) -> Path:
    """A report.json as the harness writes it, of which utterance n is TEXTS[n % 3]. None: a judge refused."""
    rows = []
    for index, (transcript, similarity) in enumerate(zip(heard, likeness, strict=True)):
        text = TEXTS[index % len(TEXTS)]
        row = EvaluatedRow(f"u{index}", text, transcript, similarity=similarity)
        if transcript is not None:
            (score,) = scoring.score_transcripts([text], [transcript])
            row.words, row.edits = score.words, score.edits
        row.failures = ["error"] if transcript == "" else []
        rows.append(row)
    judges = {"recogniser": RECOGNISER, "speaker": SPEAKER_JUDGE} | (judges or {})
    conditions = {condition: Condition(rows, {}, {}, {})}
    report = EvaluationReport("a system", {"normaliser": "english"} | settings, judges, [], conditions, [], [])
    report.write_json(path)
    return path


def test_reports_of_the_harness_are_compared_by_name_and_sentence(tmp_path):
    """Four utterances of three sentences; failed speech counts as a similarity of 0, what a judge refused is left out
    with its partner."""
    worse = evaluated(tmp_path / "a.json", ["", TEXTS[1], TEXTS[2], TEXTS[0]], [0.0, 0.8, None, 0.6])
    better = evaluated(tmp_path / "b.json", [TEXTS[0], TEXTS[1], TEXTS[2], None], [0.9, 0.9, 0.9, 0.8])
    words = report_difference.compare([worse], [better])
    assert words.measure == report_difference.ERRORS and words.left_out == 1
    assert words.values["difference"].value == pytest.approx(100 * 6 / 15)
    likeness = report_difference.compare([worse], [better], measure="similarity")
    assert likeness.measure == report_difference.SIMILARITY and likeness.left_out == 1
    assert likeness.values["difference"].value == pytest.approx((0.0 + 0.8 + 0.6) / 3 - (0.9 + 0.9 + 0.8) / 3)
    # An earlier version wrote no similarity of failed speech.
    earlier = evaluated(tmp_path / "c.json", ["", TEXTS[1], TEXTS[2], TEXTS[0]], [None, 0.8, None, 0.6])
    assert report_difference.compare([earlier], [better], measure="similarity") == likeness
    # Nor of speech without a voice, which it took for a refusal.
    values = json.loads(earlier.read_text())
    row = values["conditions"]["speech"]["rows"][0]
    row |= {"failures": [], "refusals": {"speaker": "ValueError: No speech was found in the clip: it has no speaker."}}
    earlier.write_text(json.dumps(values))
    assert report_difference.compare([earlier], [better], measure="similarity") == likeness
    row["refusals"]["speaker"] = "ValueError: cannot embed a clip of 0.10 s"
    earlier.write_text(json.dumps(values))
    assert report_difference.compare([earlier], [better], measure="similarity").left_out == 2
    # Of several seeds, a sentence is there with all of them or with none.
    other = evaluated(tmp_path / "d.json", [None, *TEXTS[1:], TEXTS[0]], [0.9] * 4)
    seeds = report_difference.compare([worse, better], [other, better])
    assert seeds.left_out == 2 and seeds.values["difference"].value == 0


def test_reports_of_the_harness_that_cannot_be_compared_are_refused(write, tmp_path, capsys):
    plain = evaluated(tmp_path / "a.json", TEXTS, [None] * 3)
    recording = evaluated(tmp_path / "b.json", TEXTS, [0.5] * 3, condition="recording")
    fewer = evaluated(tmp_path / "c.json", TEXTS[:2], [0.5] * 2)
    words = write("d.json", TEXTS)
    for first, second, choice, message in (
        (plain, recording, {}, "b.json has no speech, only recording"),
        (plain, fewer, {}, r"same sentences; \['u2'\]"),
        (plain, plain, {"measure": "similarity"}, "a.json has no speaker similarity"),
        (words, words, {"measure": "similarity"}, "d.json has no speaker similarity"),
        (plain, words, {}, "compared with another one"),
    ):
        with pytest.raises(ValueError, match=message):
            report_difference.compare([first], [second], **choice)
    arguments = ["--first", str(recording), "--second", str(recording), "--condition", "recording"]
    report_difference.main([*arguments, "--measure", "similarity"])
    assert "| second | 0.500 | 0.500 to 0.500 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "measure", "message"),
    [
        ({"judges": {"recogniser": RECOGNISER | {"name": "by ear"}}}, "words", "judges are by hand and by ear"),
        ({"judges": {"recogniser": RECOGNISER | {"version": "2"}}}, "words", "versions of the judge are 1 and 2"),
        ({"normaliser": "seed-tts-en"}, "words", "normalisers are english and seed-tts-en"),
        ({"judges": {"speaker": SPEAKER_JUDGE | {"version": "2"}}}, "similarity", "versions of the judge are 1 and 2"),
        ({"speaker_recordings_version": "b"}, "similarity", "recordings of the speaker are a and b"),
        ({"speaker_recordings": None}, "similarity", "recordings of the speaker are a and those of the test set"),
    ],
)
def test_measures_that_were_taken_in_different_ways_are_not_compared(tmp_path, change, measure, message):
    recordings = {"speaker_recordings": "clips", "speaker_recordings_version": "a"}
    first = evaluated(tmp_path / "a.json", TEXTS, [0.5] * 3, **recordings)
    second = evaluated(tmp_path / "b.json", TEXTS, [0.5] * 3, **(recordings | change))
    with pytest.raises(ValueError, match=f"a.json and .*b.json cannot be compared: their {message}"):
        report_difference.compare([first], [second], measure=measure)
    # It does not matter for the other measure, and what an older report does not say is not held against it.
    (other,) = {"words", "similarity"} - {measure}
    report_difference.compare([first], [second], measure=other)
    values = json.loads(second.read_text())
    second.write_text(json.dumps({"conditions": values["conditions"]}))
    report_difference.compare([first], [second], measure=measure)


def test_judges_of_the_other_reports_are_compared_too(write):
    first = write("a.json", TEXTS)
    for change, message in (
        ({"judge": "by ear"}, "by hand and by ear"),
        ({"normaliser": "seed-tts-en"}, "english and"),
    ):
        with pytest.raises(ValueError, match=message):
            report_difference.compare([first], [write("b.json", TEXTS, **change)])
    likeness = write.likeness("c.json", [0.5] * 3, judge=SPEAKER_JUDGE)
    other = write.likeness("d.json", [0.5] * 3, judge=SPEAKER_JUDGE | {"name": "by hand"})
    with pytest.raises(ValueError, match="judges are by ear and by hand"):
        report_difference.compare([likeness], [other])
    assert report_difference.compare([likeness], [write.likeness("e.json", [0.5] * 3)]).left_out == 0


def test_one_draw_is_no_evidence_twice(tmp_path):
    def drawn(name: str, **settings: str | int) -> Path:
        return evaluated(tmp_path / name, TEXTS, [0.5] * 3, **({"model": "m", "model_version": "1"} | settings))

    first, second, copy, other = (drawn(f"{seed}.json", seed=int(seed[0])) for seed in ("0", "1", "0b", "2"))
    assert report_difference.compare([first, second], [first, second]).left_out == 0
    for side, message in (([first, first], "0.json is given twice"), ([first, copy], "0b.json are both seed 0 of one")):
        with pytest.raises(ValueError, match=message):
            report_difference.compare([second, other], side)
    # Trained anew it is other speech, and so is that of wavs that were given, whose seed means nothing.
    trained = drawn("a.json", seed=0), drawn("b.json", seed=0, model_version="2")
    given = [drawn(name, seed=0, model=None, model_version=None) for name in ("c.json", "d.json")]
    assert report_difference.compare(trained, given).left_out == 0


def test_what_cannot_be_compared_is_refused(write, tmp_path, capsys):
    words, fewer = write("a.json", TEXTS), write("b.json", TEXTS[:2])
    likeness = write.likeness("c.json", [0.5, 0.6, 0.7])
    (tmp_path / "d.json").write_text('{"rows": [{"text": "a"}]}')
    (tmp_path / "e.json").write_text("[]")
    for first, second, message in (
        ([words], [likeness], "One side has word error rate"),
        ([words, likeness], [words, words], "compared in two calls"),
        ([words, words], [words], "2 and 1 reports"),
        ([words, words], [words, fewer], "a.json is given twice"),
        ([words], [fewer], "same sentences"),
        ([words], [tmp_path / "d.json"], "d.json is no report"),
        ([words], [tmp_path / "e.json"], "e.json is no report"),
    ):
        with pytest.raises(ValueError, match=message):
            report_difference.compare(first, second)
    with pytest.raises(SystemExit, match="no_such"):
        report_difference.main(["--first", str(tmp_path / "no_such.json"), "--second", str(words)])
    report_difference.main(["--first", str(words), "--second", str(words)])
    assert "| difference | 0.0 | 0.0 to 0.0 |" in capsys.readouterr().out
