"""From folders of recordings to annotated rows: what is kept, what is refused and why, and what is held out."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset, load_from_disk

from e2e_tts.modeling import SpeakerEncoderConfig, SpeakerEncoderModel
from e2e_tts.modeling.text_frontend import TextFrontend, build_phoneme_tokenizer
from e2e_tts.trainers import annotate, make_splits, prepare, speech_data

CLIPS = Path(__file__).parents[1] / "fixtures" / "clips"


def noise(seconds: float, sampling_rate: int = 16000, channels: int = 1) -> np.ndarray:
    """Audible noise, float32 (samples, channels)."""
    random = np.random.default_rng(0)
    return (0.1 * random.standard_normal((int(seconds * sampling_rate), channels))).astype(np.float32)


def write_metadata(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    """metadata.csv of (file, text, speaker); returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(prepare.COLUMNS)
        writer.writerows((*row, "neutral", "en", "1.5") for row in rows)
    return folder


@pytest.fixture(scope="module")
def clips() -> list[dict[str, str]]:
    return prepare.read_metadata(CLIPS)


@pytest.fixture(scope="module")
def prepared(clips, tmp_path_factory) -> Path:
    """The output of `prepare` for four good clips, a stereo file, and one row of every kind that is refused."""
    folder = tmp_path_factory.mktemp("sources") / "speech"
    (folder / "again").mkdir(parents=True)
    rows = [(clip["file"], clip["text"], clip["speaker"]) for clip in clips[:4]]
    for file, _, _ in rows:
        shutil.copyfile(CLIPS / file, folder / file)
    shutil.copyfile(CLIPS / rows[0][0], folder / "again" / rows[0][0])
    broken = noise(1.0)
    broken[500] = np.nan
    soundfile.write(folder / "nan.wav", broken, 16000, subtype="FLOAT")
    soundfile.write(folder / "silent.wav", np.zeros(16000, dtype=np.float32), 16000)
    soundfile.write(folder / "short.wav", noise(0.3), 16000)
    soundfile.write(folder / "long.wav", noise(12.0), 16000)
    soundfile.write(folder / "quiet.wav", np.concatenate([noise(0.2), np.zeros((16000, 1))]), 16000)
    soundfile.write(folder / "stereo.wav", noise(1.5, 44100, channels=2), 44100)
    (folder / "corrupt.flac").write_bytes(b"not audio at all")
    (folder / "empty.wav").write_bytes(b"")
    rows += [
        ("stereo.wav", "Two channels, another rate.", "anna"),
        ("nan.wav", "Some words.", "anna"),
        ("silent.wav", "Some words.", "anna"),
        ("corrupt.flac", "Some words.", "anna"),
        ("empty.wav", "Some words.", "anna"),
        ("missing.wav", "Some words.", "anna"),
        (f"again/{rows[0][0]}", "The id is used already.", "anna"),
        ("stereo.wav", "", "anna"),
        ("stereo.wav", "...!", "anna"),
        ("stereo.wav", "Some words.", ""),
        ("", "Some words.", "anna"),
        ("short.wav", "Some words.", "anna"),
        ("quiet.wav", "Some words.", "anna"),
        ("long.wav", "Some words.", "anna"),
        ("stereo.wav", "Some words.", "mallory"),
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
    with (prepared / "refused.csv").open(encoding="utf-8", newline="") as handle:
        reasons = [(row["file"], row["reason"]) for row in csv.DictReader(handle)]
    expected = [
        ("nan.wav", "not finite"),
        ("silent.wav", "silent"),
        ("corrupt.flac", "does not decode"),
        ("empty.wav", "does not decode"),
        ("missing.wav", "file is missing"),
        (f"again/{clips[0]['file']}", "repeats the id"),
        ("stereo.wav", "no file name or no text"),
        ("stereo.wav", "no file name or no text"),
        ("stereo.wav", "no speaker"),
        ("", "no file name or no text"),
        ("short.wav", "shorter than 0.6 s"),
        ("quiet.wav", "s of speech, outside 0.6 to 10.0 s"),
        ("long.wav", "s of speech, outside 0.6 to 10.0 s"),
        ("stereo.wav", "excluded speaker"),
    ]
    assert [file for file, _ in reasons] == [file for file, _ in expected]
    for (file, reason), (_, part) in zip(reasons, expected, strict=True):
        assert part in reason, (file, reason)
    summary = json.loads((prepared / "summary.json").read_text(encoding="utf-8"))
    assert sum(entry["clips"] for entry in summary) == len(dataset)


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


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Don't go!", "dont go"),
        ("“Eh?” said Tom", "eh said tom"),
        ("well-known", "Well known"),
        ("ﬁne Café", "FINE café"),
    ],
)
def test_a_text_matches_across_spellings(first, second):
    assert prepare.normalise_text(first) == prepare.normalise_text(second)


def test_test_wins_over_dev_and_dev_over_train():
    splits = prepare.Splits(dev_texts={"a b"}, test_texts={"a b", "c d"}, dev_speakers={"dora"}, test_speakers={"tess"})
    assert splits.assign("A b.", "anna") == "test"
    assert splits.assign("C d.", "dora") == "test"
    assert splits.assign("E f.", "tess") == "test"
    assert splits.assign("E f.", "dora") == "dev"
    assert splits.assign("E f.", "anna") == "train"


def test_prepare_refuses_what_would_lose_data_or_is_a_mistake(prepared, tmp_path, capsys):
    with pytest.raises(SystemExit):
        prepare.main(["--source", str(CLIPS), "--output", str(prepared)])
    assert "--overwrite" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        prepare.main(["--source", str(tmp_path), "--output", str(tmp_path / "out")])
    assert "metadata.csv does not exist" in capsys.readouterr().err
    (tmp_path / "metadata.csv").write_text("file,words\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"lacks the columns \['text', 'speaker'\]"):
        prepare.read_metadata(tmp_path)
    (tmp_path / "splits.json").write_text('{"dev_text": []}', encoding="utf-8")
    with pytest.raises(ValueError, match="unknown keys"):
        prepare.Splits.load(tmp_path / "splits.json")
    with pytest.raises(ValueError, match="ids would clash"):
        twin = write_metadata(tmp_path / "other" / CLIPS.name, [])
        prepare.Preparation([CLIPS, twin], 16000, 0.6, 10.0, prepare.Splits())
    only_bad = write_metadata(tmp_path / "bad", [("missing.wav", "Some words.", "anna")])
    with pytest.raises(SystemExit):
        prepare.main(["--source", str(only_bad), "--output", str(tmp_path / "out")])
    assert "No usable row" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and "file is missing" in (tmp_path / "refused.csv").read_text()


def test_trimming_keeps_a_margin_and_ignores_a_click():
    speech = noise(1.0)[:, 0]
    samples = np.concatenate([np.zeros(8000), speech, np.zeros(8000)]).astype(np.float32)
    samples[100] = 0.5
    trimmed = prepare.trim_silence(samples, 16000)
    assert len(trimmed) == pytest.approx(len(speech) + 2 * 1600, abs=320)
    assert np.array_equal(prepare.trim_silence(speech, 16000), speech)


# ---------------------------------------------------------------- held-out material


@pytest.fixture
def corpora(tmp_path) -> tuple[Path, Path]:
    """Metadata of one reader with two takes of each of 30 sentences, and of ten speakers with three clips each."""
    reader = [
        (f"{i}_{take}.wav", f"Sentence number {i} has six words{'!' * take}", "anna")
        for i in range(30)
        for take in (0, 1)
    ]
    crowd = [
        (f"{s}_{i}.wav", f"Sentence number {3 * s + i} has six words", f"s{s}") for s in range(10) for i in range(3)
    ]
    return write_metadata(tmp_path / "reader", reader), write_metadata(tmp_path / "crowd", crowd)


def run_make_splits(corpora: tuple[Path, Path], output: Path, *extra: str) -> prepare.Splits:
    requests = ["--by-sentence", f"{corpora[0]}:4:3", "--by-speaker", f"{corpora[1]}:2:1"]
    make_splits.main([*requests, *extra, "--output", str(output)])
    return prepare.Splits.load(output)


def test_splits_are_the_same_for_the_same_seed(corpora, tmp_path):
    first, again = tmp_path / "first.json", tmp_path / "again.json"
    splits = run_make_splits(corpora, first)
    run_make_splits(corpora, again)
    assert first.read_bytes() == again.read_bytes()
    assert run_make_splits(corpora, again, "--seed", "1") != splits
    # A folder's choice does not depend on the other folders.
    make_splits.main(["--by-sentence", f"{corpora[0]}:4:3", "--output", str(again)])
    assert prepare.Splits.load(again).test_texts <= splits.test_texts


def test_splits_share_nothing(corpora, tmp_path):
    splits = run_make_splits(corpora, tmp_path / "splits.json", "--exclude-speakers", "s9")
    assert len(splits.test_speakers) == 2 and len(splits.dev_speakers) == 1 and splits.excluded_speakers == {"s9"}
    assert not splits.test_speakers & splits.dev_speakers and not splits.test_texts & splits.dev_texts
    assert 4 <= len(splits.test_texts) <= 4 + 2 * 3
    by_split: dict[str, set] = {"train": set(), "dev": set(), "test": set()}
    for folder in corpora:
        for row in prepare.read_metadata(folder):
            if row["speaker"] != "s9":
                by_split[splits.assign(row["text"], row["speaker"])].add(prepare.normalise_text(row["text"]))
    assert not by_split["train"] & (splits.test_texts | splits.dev_texts)
    assert splits.test_texts == by_split["test"]


def test_splits_say_what_cannot_be_done(corpora, tmp_path, capsys):
    for arguments, message in (
        (["--by-sentence", f"{corpora[0]}:29:29"], "only 30 have at least 6 words"),
        (["--by-speaker", f"{corpora[1]}:9:9"], "only 10 have 2 to 10 clips"),
        (["--by-speaker", f"{corpora[1]}:1:1", "--exclude-speakers", "s"], "expected one speaker"),
        (["--by-sentence", str(corpora[0])], "expected FOLDER:n_test:n_dev"),
    ):
        with pytest.raises(SystemExit):
            make_splits.main([*arguments, "--output", str(tmp_path / "splits.json")])
        assert message in capsys.readouterr().err


# ---------------------------------------------------------------- annotation


@pytest.fixture(scope="module")
def speaker_encoder() -> SpeakerEncoderModel:
    torch.manual_seed(0)
    return SpeakerEncoderModel(SpeakerEncoderConfig(hidden_size=16, num_hidden_layers=1, embedding_size=12)).eval()


def test_annotation_adds_what_training_reads(prepared, speaker_encoder, tmp_path):
    speaker_encoder.save_pretrained(tmp_path / "speaker")
    annotate.main(
        [
            *("--data", str(prepared), "--speaker_encoder", str(tmp_path / "speaker")),
            *("--output", str(tmp_path / "annotated")),
        ]
    )
    before, rows = load_from_disk(str(prepared)), load_from_disk(str(tmp_path / "annotated"))
    assert rows["id"][:] == before["id"][:] and "refused" not in rows.column_names
    frontend, tokenizer = TextFrontend("phonemes"), build_phoneme_tokenizer()
    for row in rows:
        symbols = frontend(row["text"])
        assert tokenizer.convert_ids_to_tokens(row["text_ids"]) == symbols.split()
        assert tokenizer.convert_ids_to_tokens(row["ctc_labels"]) == frontend.recognition_symbols(symbols).split()
        # 0 is the CTC blank and 1 the unknown symbol: a label must be neither.
        assert min(row["ctc_labels"]) > 1 and min(row["text_ids"]) > 1
        assert len(row["speaker_embedding"]) == 12
        assert np.linalg.norm(row["speaker_embedding"]) == pytest.approx(1.0, abs=1e-5)
    assert len({tuple(vector) for vector in rows["speaker_embedding"][:]}) == len(rows)


def test_annotation_refuses_what_cannot_be_spoken(prepared, speaker_encoder):
    rows = load_from_disk(str(prepared)).select([0, 1, 2]).to_list()
    rows[1]["text"] = "你好"
    rows[2]["audio"]["bytes"] = b"not audio"
    kept, refused = annotate.annotate(Dataset.from_list(rows), annotate.Annotator(speaker_encoder))
    assert kept["id"][:] == [rows[0]["id"]]
    assert [row_id for row_id, _ in refused] == [rows[1]["id"], rows[2]["id"]]
    assert "cannot be spoken" in refused[0][1] or "can be spoken" in refused[0][1]
