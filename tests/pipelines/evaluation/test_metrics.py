"""Metrics against closed forms, loaded as `evaluate` loads a local script; failures of constructed transcripts."""

from importlib import resources

import evaluate
import numpy as np
import pytest

from e2e_tts.pipelines.evaluation import metrics
from e2e_tts.pipelines.evaluation.failures import FailureLimits, loudness, repeated_words
from e2e_tts.pipelines.evaluation.judges import load_normaliser
from e2e_tts.pipelines.evaluation.scoring import score_transcripts


@pytest.fixture
def load(tmp_path):
    def load(name: str) -> evaluate.Metric:
        with resources.as_file(resources.files(metrics) / f"{name}.py") as path:
            return evaluate.load(str(path), cache_dir=str(tmp_path))

    return load


def test_error_rates_over_words_and_over_utterances(load):
    result = load("word_error_rate").compute(
        predictions=["yes", "one two three four five six seven eight nine"],
        references=["no", "one two three four five six seven eight nine"],
        normaliser="seed-tts-en",  # the one of "english" makes a single number of the second
    )
    assert result["error_rate"]["value"] == pytest.approx(1 / 10)
    assert result["error_rate_by_utterance"]["value"] == pytest.approx(1 / 2)
    assert (result["words"], result["substitutions"], result["insertions"]) == (10, 1, 0)
    for name in ("error_rate", "error_rate_by_utterance"):
        assert result[name]["low"] <= result[name]["value"] <= result[name]["high"]
        assert result[name]["utterances"] == 2


def test_shuffled_transcripts_are_wrong_and_the_right_ones_are_not(load):
    texts = [f"sentence {word} says {word} again and {word} twice" for word in ("rain", "sun", "snow", "hail", "fog")]
    metric = load("word_error_rate")
    assert metric.compute(predictions=texts, references=texts)["error_rate"]["value"] == 0
    shuffled = metric.compute(predictions=texts[1:] + texts[:1], references=texts)["error_rate"]
    assert shuffled["value"] == pytest.approx(3 / 8) and shuffled["low"] > 0.3


def test_similarity_is_the_mean_cosine_whatever_the_lengths(load):
    vectors = np.random.default_rng(0).standard_normal((20, 16))
    metric = load("speaker_similarity")
    same = metric.compute(predictions=vectors, references=3 * vectors)["similarity"]
    assert same["value"] == pytest.approx(1) and same["low"] == pytest.approx(1)
    assert metric.compute(predictions=vectors, references=-vectors)["similarity"]["value"] == pytest.approx(-1)
    across = metric.compute(predictions=[[1.0, 0.0]], references=[[1.0, 1.0]])["similarity"]["value"]
    assert across == pytest.approx(2**-0.5)


def test_the_interval_of_a_mean_is_that_of_theory(load):
    scores = np.random.default_rng(1).normal(3, 0.5, 400)
    result = load("mean_opinion_score").compute(predictions=scores, seed=2)["opinion_score"]
    margin = 1.96 * scores.std() / 400**0.5
    assert result["low"] == pytest.approx(scores.mean() - margin, abs=0.01)
    assert result["high"] == pytest.approx(scores.mean() + margin, abs=0.01)


def test_durations_and_real_time(load):
    ratio = load("duration_ratio")
    assert ratio.compute(predictions=[2, 3], references=[1, 6])["duration_ratio"]["value"] == pytest.approx(1.25)
    with pytest.raises(ValueError, match="leave it out"):
        ratio.compute(predictions=[2], references=[0])
    factor = load("real_time_factor").compute(predictions=[1, 3], references=[1, 7])["real_time_factor"]
    assert factor["value"] == pytest.approx(0.5)


def test_failures_are_counted_by_kind(load):
    metric = load("speech_failures")
    result = metric.compute(predictions=[[], ["silence", "empty_transcript"], ["cut_off"], []])
    assert result["counts"] == {
        "error": 0,
        "silence": 1,
        "empty_transcript": 1,
        "over_long": 0,
        "cut_off": 1,
        "repetition": 0,
        "failed": 2,
    }
    assert result["failed"]["value"] == 0.5 and result["cut_off"]["value"] == 0.25
    with pytest.raises(ValueError, match="Unknown failures"):
        metric.compute(predictions=[["boring"]])


@pytest.mark.parametrize(
    ("heard", "flags"),
    [
        ("we went home before the rain", []),
        ("we went home before the", []),
        ("we went home", ["cut_off"]),
        ("went home before the rain", []),
        ("we went home we went home before the rain", ["repetition"]),
        ("we we went home before the rain", []),
        ("we went home before the rain rain rain rain", ["repetition"]),
        ("we went home home home home", ["repetition"]),
        ("they ate", []),
        ("", ["empty_transcript"]),
        ("...", ["empty_transcript"]),
    ],
)
def test_what_a_transcript_shows(heard, flags):
    (row,) = score_transcripts(["We went home before the rain."], [heard])
    assert row.flags == flags


def test_a_text_that_repeats_itself_may():
    (row,) = score_transcripts(["no no no no no"], ["no no no no no"])
    assert row.flags == [] and repeated_words(list("ababccd")) == 3


def test_silence_and_length():
    limits, noise = FailureLimits(), np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    assert limits.flags(noise, 16000, "Hello.") == []
    assert limits.flags(noise * 1e-3, 16000, "Hello.") == ["silence"]
    assert limits.flags(np.tile(noise, 5), 16000, "Hello.") == ["over_long"]
    assert loudness(noise[:0]) == (0.0, 0.0)
    # A Mandarin sentence read slowly, at 3.5 characters a second, is not too long; at one a second it is.
    mandarin = "他昨天下午在图书馆里安安静静地读完了一本关于中国古代建筑历史的书籍。"
    assert limits.sound_flags(0.5, 0.1, 33 / 3.5, mandarin) == []
    assert limits.sound_flags(0.5, 0.1, 33.0, mandarin) == ["over_long"]


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("Hello, World!  It's 18 o'clock -- really?", "hello world it's 18 o'clock really"),
        ("“Don’t”, she said…", "don't she said"),
        ("well-known", "wellknown"),
    ],
)
def test_the_benchmarks_english_normalisation(text, normalised):
    assert load_normaliser("seed-tts-en")(text) == normalised


def test_the_benchmarks_mandarin_normalisation():
    pytest.importorskip("opencc")
    normalise = load_normaliser("seed-tts-zh")
    assert normalise("漢字，轉換 OK！") == normalise("汉字转换OK。") == "汉 字 转 换 O K"
    (row,) = score_transcripts(["你好，世界。"], ["你好世间"], normalise=normalise)
    assert (row.words, row.edits) == (4, 1)
