"""Two systems' reports are compared on the same sentences, and nothing else is."""

import json
from pathlib import Path

import pytest

from e2e_tts.pipelines.evaluation import report_difference, scoring

TEXTS = ["the birds sang in the morning", "he would not go", "nobody was there at all"]


@pytest.fixture
def write(tmp_path):
    def words(name: str, heard: list[str]) -> Path:
        rows = scoring.score_transcripts(TEXTS[: len(heard)], heard)
        report = scoring.make_report(rows, judge="by hand", normaliser="english")
        report.to_json(tmp_path / name)
        return tmp_path / name

    def likeness(name: str, values: list[float]) -> Path:
        rows = [{"reference": text, "similarity": value} for text, value in zip(TEXTS, values, strict=True)]
        (tmp_path / name).write_text(json.dumps({"rows": rows}))
        return tmp_path / name

    words.likeness = likeness
    return words


def test_words_are_counted_over_all_sentences_and_seeds(write):
    worse = [write("a.json", ["the birds sing in the morning", *TEXTS[1:]]), write("b.json", ["", *TEXTS[1:]])]
    better = [write("c.json", TEXTS), write("d.json", TEXTS)]
    measure, values = report_difference.compare(worse, better)
    assert measure == report_difference.ERRORS
    assert values["first"].value == values["difference"].value == pytest.approx(100 * (1 + 6) / (2 * 15))
    assert values["second"].value == 0
    # Two sentences of three are the same in both, and a draw may hold nothing else.
    assert values["difference"].low == 0 < values["difference"].high


def test_a_gain_of_every_sentence_has_an_interval_above_zero(write):
    first, second = write.likeness("a.json", [0.9, 0.8, 0.6]), write.likeness("b.json", [0.8, 0.7, 0.5])
    measure, values = report_difference.compare([first], [second])
    difference = values["difference"]
    assert measure == report_difference.SIMILARITY
    assert [difference.low, difference.value, difference.high] == pytest.approx([0.1] * 3)
    # Paired: the sentences differ among each other by more than the systems do.
    assert values["first"].low < values["second"].high


def test_what_cannot_be_compared_is_refused(write, tmp_path, capsys):
    words, fewer = write("a.json", TEXTS), write("b.json", TEXTS[:2])
    likeness = write.likeness("c.json", [0.5, 0.6, 0.7])
    (tmp_path / "d.json").write_text('{"rows": [{"text": "a"}]}')
    (tmp_path / "e.json").write_text("[]")
    for first, second, message in (
        ([words], [likeness], "One side has word error rate"),
        ([words, likeness], [words, words], "compared in two calls"),
        ([words, words], [words], "2 and 1 reports"),
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
