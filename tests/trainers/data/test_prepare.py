"""From recordings to prepared rows: what is kept, what is refused and why, reports, and going on after a kill."""

import io
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Dataset, load_from_disk
from recordings import CLIPS, noise, read_refused, write_metadata

from e2e_tts.modeling.audio_features import MelSpec
from e2e_tts.trainers.data import prepare, row_checks, speech_data
from e2e_tts.trainers.data.corpora import CorpusOptions, open_corpora
from e2e_tts.trainers.data.corpus_files import read_metadata
from e2e_tts.trainers.data.row_checks import CheckSettings, RawRow, RefusedRow, RowChecker
from e2e_tts.trainers.data.speech_signal import trim_silence
from e2e_tts.trainers.data.splits import SplitFractions, Splits


@pytest.fixture(scope="module")
def clips() -> list[dict[str, str]]:
    return read_metadata(CLIPS)


@pytest.fixture(scope="module")
def prepared(clips, tmp_path_factory) -> Path:
    """The output of `prepare` for four good clips, a stereo file, and one row of every kind that is refused."""
    folder = tmp_path_factory.mktemp("sources") / "speech"
    folder.mkdir(parents=True)
    rows = [(clip["file"], clip["text"], clip["speaker"]) for clip in clips[:4]]
    for file, _, _ in rows:
        shutil.copyfile(CLIPS / file, folder / file)
    broken = noise(1.0)
    broken[500] = np.nan
    soundfile.write(folder / "nan.wav", broken, 16000, subtype="FLOAT")
    soundfile.write(folder / "silent.wav", np.zeros(16000, dtype=np.float32), 16000)
    soundfile.write(folder / "short.wav", noise(0.3), 16000)
    soundfile.write(folder / "long.wav", noise(12.0), 16000)
    soundfile.write(folder / "quiet.wav", np.concatenate([noise(0.2), np.zeros((16000, 1))]), 16000)
    soundfile.write(folder / "stereo.wav", noise(1.5, 44100, channels=2), 44100)
    soundfile.write(folder / "clipped.wav", (40 * noise(1.5)).clip(-1, 1), 16000)
    soundfile.write(folder / "telephone.wav", noise(1.5, 8000), 8000)
    (folder / "corrupt.flac").write_bytes(b"not audio at all")
    (folder / "empty.wav").write_bytes(b"")
    rows += [
        ("stereo.wav", "Two channels, another rate.", "anna"),
        ("nan.wav", "Some words.", "anna"),
        ("silent.wav", "Some words.", "anna"),
        ("corrupt.flac", "Some words.", "anna"),
        ("empty.wav", "Some words.", "anna"),
        ("missing.wav", "Some words.", "anna"),
        (rows[0][0], "The id is used already.", "anna"),
        ("stereo.wav", "", "anna"),
        ("stereo.wav", "...!", "anna"),
        ("stereo.wav", "Some words.", ""),
        ("", "Some words.", "anna"),
        ("short.wav", "Some words.", "anna"),
        ("quiet.wav", "Some words.", "anna"),
        ("long.wav", "Some words.", "anna"),
        ("stereo.wav", "Some words.", "mallory"),
        ("clipped.wav", "Some words.", "anna"),
        ("telephone.wav", "Some words.", "anna"),
        ("stereo.wav", "你好", "anna"),
        ("stereo.wav", "Some words and 你好.", "anna"),
        ("stereo.wav", "Nobody could say all of these many words in so short a time.", "anna"),
    ]
    write_metadata(folder, rows)
    splits = folder.parent / "splits.json"
    # Written as someone else would: another case, other punctuation.
    content = {"dev_texts": [clips[2]["text"].upper().strip(".") + " !"], "excluded_speakers": ["mallory"]}
    splits.write_text(json.dumps(content), encoding="utf-8")
    output = folder.parent / "prepared"
    prepare.main(["--source", str(folder), "--output", str(output), "--split-file", str(splits)])
    return output


def test_good_rows_are_kept_and_bad_ones_are_listed_with_reasons(prepared, clips):
    dataset = load_from_disk(str(prepared))
    names = [Path(clip["file"]).stem for clip in clips[:4]]
    assert dataset["id"][:] == [f"speech/{name}" for name in [*names, "stereo"]]
    assert dataset["text"][:4] == [clip["text"] for clip in clips[:4]]
    assert dataset["source"][:] == ["speech"] * 5
    refused = read_refused(prepared)
    expected = [
        ("nan.wav", "not finite", "not finite"),
        ("silent.wav", "silence", "silent"),
        ("corrupt.flac", "does not decode", "does not decode"),
        ("empty.wav", "does not decode", "does not decode"),
        ("missing.wav", "no audio", "file is missing"),
        (clips[0]["file"], "repeated id", "repeats the id"),
        ("stereo.wav", "no text", "no text"),
        ("stereo.wav", "no text", "no words"),
        ("stereo.wav", "no speaker", "no speaker"),
        ("row-00000014", "no audio", "no recording"),
        ("short.wav", "length", "shorter than 0.6 s"),
        ("quiet.wav", "length", "s of speech, outside 0.6 to 10.0 s"),
        ("long.wav", "length", "s of speech, outside 0.6 to 10.0 s"),
        ("stereo.wav", "excluded speaker", "excluded speaker"),
        ("clipped.wav", "clipping", "of its samples are at full scale"),
        ("telephone.wav", "sampling rate", "recorded at 8000 Hz, below 14400 Hz; --min-source-rate 8000 takes it"),
        ("stereo.wav", "alphabet", "can be spoken"),
        ("stereo.wav", "alphabet", "leaves out: 你好"),
        ("stereo.wav", "characters a second", "characters a second, outside 1.0 to 30.0"),
    ]
    assert [(row["file"], row["check"]) for row in refused] == [(file, check) for file, check, _ in expected]
    for row, (_, _, part) in zip(refused, expected, strict=True):
        assert part in row["reason"], row


def test_the_summary_counts_what_was_kept_and_refused(prepared):
    dataset, refused = load_from_disk(str(prepared)), read_refused(prepared)
    summary = json.loads((prepared / "summary.json").read_text(encoding="utf-8"))
    assert (summary["rows"], summary["kept"], summary["refused"]) == (24, 5, 19)
    assert summary["refused_by_check"] == dict(Counter(row["check"] for row in refused))
    assert summary["hours"] == pytest.approx(sum(dataset["seconds"][:]) / 3600, abs=1e-4)
    assert sum(group["clips"] for group in summary["groups"]) == 5 and summary["speakers"] == 2
    assert {group["split"] for group in summary["groups"]} == {"train", "dev"}
    for histogram in summary["histograms"].values():
        assert sum(histogram["counts"]) == 5 and len(histogram["edges"]) == len(histogram["counts"]) + 1
    page = (prepared / "summary.md").read_text(encoding="utf-8")
    assert "5 of 24 rows kept" in page and "| does not decode | 2 |" in page and "| speech | dev | 1 |" in page


def test_audio_is_mono_at_the_asked_rate_and_level(prepared):
    dataset = load_from_disk(str(prepared))
    for row in dataset:
        samples = speech_data.decode(row["audio"], 16000)
        assert samples.ndim == 1
        assert len(samples) / 16000 == pytest.approx(row["seconds"], abs=1e-4)
        assert 0.6 <= row["seconds"] <= 2.3
        assert np.abs(samples).max() <= 0.951
        assert 0.02 < np.sqrt(np.mean(samples**2)) < 0.12
    # All of the stereo file is sound: nothing is trimmed, and 1.5 s stay 1.5 s at the new rate.
    assert dataset[4]["seconds"] == pytest.approx(1.5, abs=0.01)
    with pytest.raises(ValueError, match="prepared at 16000 Hz"):
        speech_data.decode(dataset[0]["audio"], 24000)


def test_held_out_text_is_not_in_train(prepared, clips):
    dataset = load_from_disk(str(prepared))
    assert [row["text"] for row in dataset if row["split"] == "dev"] == [clips[2]["text"]]
    train = speech_data.load_prepared([str(prepared)], "train")
    assert clips[2]["text"] not in train["text"][:] and len(train) == 4
    with pytest.raises(ValueError, match="No rows of split 'test'"):
        speech_data.load_prepared([str(prepared)], "test")


def test_prepare_refuses_what_would_lose_data_or_is_a_mistake(prepared, tmp_path, capsys):
    def complaint(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            prepare.main([*arguments])
        assert stopped.value.code not in (0, None)
        return capsys.readouterr().err

    output = ["--output", str(tmp_path / "out")]
    assert "--overwrite" in complaint("--source", str(CLIPS), "--output", str(prepared))
    assert "metadata.csv does not exist" in complaint("--source", str(tmp_path), *output)
    assert "does not exist" in complaint("--source", str(tmp_path / "nowhere"), *output)
    (tmp_path / "metadata.csv").write_text("file,words\n", encoding="utf-8")
    assert "lacks the columns ['text']" in complaint("--source", str(tmp_path), *output)
    twin = write_metadata(tmp_path / "other" / CLIPS.name, [("missing.wav", "Some words.", "anna")])
    assert "ids would clash" in complaint("--source", str(CLIPS), str(twin), *output)
    assert "one name for each" in complaint("--source", str(CLIPS), "--name", "a", "b", *output)
    assert "min_seconds < max_seconds" in complaint("--source", str(CLIPS), "--max-seconds", "0.1", *output)
    assert "held-out fractions" in complaint("--source", str(CLIPS), "--dev-fraction", "1.5", *output)
    assert "expected NAME=COLUMN" in complaint("--source", str(CLIPS), "--columns", "words=text", *output)
    unknown = complaint("--source", str(CLIPS), "--columns", "text=txet", *output)
    assert "Did you mean text?" in unknown
    assert "No usable row" in complaint("--source", str(twin), *output)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
    assert "file is missing" in (tmp_path / "out.refused.csv").read_text()


def test_trimming_keeps_a_margin_and_ignores_a_click():
    speech = noise(1.0)[:, 0]
    samples = np.concatenate([np.zeros(8000), speech, np.zeros(8000)]).astype(np.float32)
    samples[100] = 0.5
    trimmed = trim_silence(samples, 16000)
    assert len(trimmed) == pytest.approx(len(speech) + 2 * 1600, abs=320)
    assert np.array_equal(trim_silence(speech, 16000), speech)


def test_the_checks_follow_the_language_and_the_tokenizer():
    def refusal(tokenizer: str, **changes: str) -> str | None:
        row = RawRow("corpus", "corpus/1", "1.wav", None, **{"text": "Guten Morgen.", "speaker": "anna", **changes})
        try:
            RowChecker(CheckSettings(tokenizer=tokenizer)).check_text(row)
        except RefusedRow as error:
            return str(error)
        return None

    assert "speaks English, not 'de'" in refusal("phonemes", language="de")
    assert refusal("phonemes", language="en-GB") is None and refusal("none", language="de") is None
    assert refusal("none", text="?!") == "no text, or no words in it"


# ---------------------------------------------------------------- a corpus with mistakes


def encoded(samples: np.ndarray, sampling_rate: int = 16000, subtype: str = "PCM_16") -> dict:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sampling_rate, format="WAV", subtype=subtype)
    return {"bytes": buffer.getvalue(), "path": None}


def tone(frequency: float, seconds: float = 0.7, level: float = 0.3) -> np.ndarray:
    time = np.arange(round(seconds * 16000)) / 16000
    return (level * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def corpus_with_mistakes(path: Path) -> list[tuple[str, str]]:
    """A parquet file of 1,000 rows, 50 of them bad in ten ways; returns their ids and the checks that find them."""
    good = [encoded(tone(200 + 50 * index, 0.65 + 0.05 * (index % 9))) for index in range(12)]
    holes = tone(300)
    holes[100:200] = np.inf
    bad = {
        "no text": {"text": " ... "},
        "alphabet": {"text": "你好吗"},
        "no audio": {"audio": {"bytes": None, "path": str(path.parent / "gone.wav")}},
        "does not decode": {"audio": {"bytes": good[0]["bytes"][:20], "path": None}},
        "not finite": {"audio": encoded(holes, subtype="FLOAT")},
        "length": {"audio": encoded(tone(300, 0.1))},
        "silence": {"audio": encoded(np.zeros(16000, dtype=np.float32))},
        "clipping": {"audio": encoded((9 * tone(300)).clip(-1, 1))},
        "characters a second": {"text": "Far too many words for a clip of well under one second."},
        "repeated id": {"id": "good-0"},
    }
    kinds = [kind for kind in bad for _ in range(5)]
    places = np.random.default_rng(0).permutation(np.arange(1, 1000))[:50]
    expected = dict(zip(places.tolist(), kinds, strict=True))
    rows = []
    for number in range(1000):
        row = {
            "id": f"{'bad' if number in expected else 'good'}-{number}",
            "audio": good[number % 12],
            "text": ("A tone.", "Some sound.", "One more.")[number % 3],
            "speaker": f"voice{number % 4}",
            "emotion": "neutral",
            "language": "en",
            "speaker_embedding": [1.0, float(number), 0.0],
        }
        if number in expected:
            row |= bad[expected[number]]
        rows.append(row)
    Dataset.from_list(rows).to_parquet(path)
    return [(rows[number]["id"], expected[number]) for number in sorted(expected)]


def test_of_1000_rows_950_come_through_and_50_are_listed_with_their_reasons(tmp_path):
    expected = corpus_with_mistakes(tmp_path / "tones.parquet")
    output = tmp_path / "prepared"
    prepare.main(["--source", str(tmp_path / "tones.parquet"), "--output", str(output), "--name", "tones"])
    rows = load_from_disk(str(output))
    refused = read_refused(output)
    assert len(rows) == 950 and len(refused) == 50
    assert [(row["id"].removeprefix("tones/"), row["check"]) for row in refused] == expected
    assert set(Counter(check for _, check in expected).values()) == {5}
    assert all(row["reason"] for row in refused)
    assert all(name.startswith("tones/good-") for name in rows["id"])
    # The rows go into batches with what the corpus brought along.
    train = speech_data.load_prepared([str(output)], "train")
    assert set(train["emotion"][:]) == {"neutral"} and train[3]["speaker_embedding"][0] == 1.0
    dataset = speech_data.SpeechDataset(train, MelSpec())
    for batch in speech_data.MixtureBatches(train, {"tones": 1.0}, 3, 0, 8.0):
        assert all(len(dataset[index]["waveform"]) >= 0.6 * 16000 for index in batch)


# ---------------------------------------------------------------- going on after a kill


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


def shards_of_tones(folder: Path) -> Path:
    """Three parquet shards of five rows each; the second row of the second is bad."""
    folder.mkdir()
    for shard in range(3):
        rows = [
            {"id": f"{shard}{index}", "audio": encoded(tone(200 + 90 * index + 30 * shard)), "text": "A tone."}
            for index in range(5)
        ]
        if shard == 1:
            rows[1]["text"] = ""
        Dataset.from_list(rows).to_parquet(folder / f"{shard}.parquet")
    return folder


@pytest.mark.parametrize("kill_at", [0, 4, 9, 14])
def test_a_killed_preparation_goes_on_and_gives_the_same(kill_at, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "ROWS_PER_PART", 4)
    source = shards_of_tones(tmp_path / "tones")
    arguments = ["--source", f"{source}/*.parquet", "--tokenizer", "none", "--dev-fraction", "0.5", "--output"]
    checked: list[str] = []
    call = RowChecker.__call__

    def counting(self: RowChecker, row: RawRow) -> dict:
        checked.append(row.id)
        return call(self, row)

    def failing(self: RowChecker, row: RawRow) -> dict:
        if len(checked) == kill_at:
            raise Killed
        return counting(self, row)

    monkeypatch.setattr(RowChecker, "__call__", failing)
    with pytest.raises(Killed):
        prepare.main([*arguments, str(tmp_path / "killed")])
    assert not (tmp_path / "killed").exists()
    checked.clear()
    monkeypatch.setattr(RowChecker, "__call__", counting)
    # Other settings would mix two kinds of rows.
    with pytest.raises(SystemExit):
        prepare.main([*arguments, str(tmp_path / "killed"), "--seed", "1"])
    assert "other settings (fractions)" in capsys.readouterr().err and not checked
    prepare.main([*arguments, str(tmp_path / "killed")])
    assert len(checked) == 15 - kill_at // 4 * 4
    prepare.main([*arguments, str(tmp_path / "whole")])
    resumed, whole = (load_from_disk(str(tmp_path / name)) for name in ("killed", "whole"))
    assert resumed.to_list() == whole.to_list() and len(whole) == 14
    assert read_refused(tmp_path / "killed") == read_refused(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "tones", "whole"]


def test_several_processes_give_what_one_gives(tmp_path):
    source = shards_of_tones(tmp_path / "tones")
    for name, processes in (("one", "1"), ("two", "2")):
        arguments = ["--tokenizer", "none", "--num-proc", processes, "--output", str(tmp_path / name)]
        prepare.main(["--source", f"{source}/*.parquet", *arguments])
    one, two = (load_from_disk(str(tmp_path / name)) for name in ("one", "two"))
    assert one.to_list() == two.to_list()
    assert read_refused(tmp_path / "one") == read_refused(tmp_path / "two") != []


def test_a_row_that_breaks_a_check_does_not_stop_the_others(tmp_path, monkeypatch):
    def broken(samples: np.ndarray) -> float:
        raise ZeroDivisionError("in the middle of a check")

    source = shards_of_tones(tmp_path / "tones")
    monkeypatch.setattr(row_checks, "clipped_share", broken)
    checker = prepare.CheckOrRefuse(RowChecker(CheckSettings(tokenizer="none")))
    (corpus,) = open_corpora(f"{source}/0.parquet", CorpusOptions())
    results = [checker(row) for row in corpus]
    assert [result.check for result in results] == ["error"] * 5
    assert str(results[0]) == "ZeroDivisionError: in the middle of a check"


def test_a_fraction_that_holds_nothing_out_is_told(tmp_path, capsys):
    source = shards_of_tones(tmp_path / "tones")
    arguments = ["--source", f"{source}/*.parquet", "--tokenizer", "none", "--output"]
    prepare.main([*arguments, str(tmp_path / "few"), "--dev-fraction", "0.999", "--test-fraction", "1e-9"])
    assert "No row is held out for test: a corpus with splits" in (told := capsys.readouterr().out)
    assert "held out for dev" not in told
    prepare.main([*arguments, str(tmp_path / "none")])
    assert "No row is held out" not in capsys.readouterr().out


def test_explicit_splits_win_over_the_corpus_and_these_over_fractions(tmp_path):
    def split(own: str | None, text: str) -> str:
        preparation = prepare.Preparation(
            [], RowChecker(CheckSettings(tokenizer="none")), Splits(test_texts={"held out"}), SplitFractions(dev=0.999)
        )
        row = RawRow("corpus", "corpus/1", "1.wav", None, text, split=own)
        return preparation.split_of(row, {"text": text, "speaker": "anna"})

    assert split("dev", "Held out!") == "test"
    assert split("train", "Something else") == "train"
    assert split(None, "Something else") == "dev"
