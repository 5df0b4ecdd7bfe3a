"""Data: batches that depend on seed and number alone, exact lengths, padding that is zero."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from datasets import Dataset
from factories import composite_settings, make_clip, make_dataset, make_rows, reward_settings
from torch.utils.data import DataLoader

from e2e_tts.modeling import E2ETTSConfig
from e2e_tts.modeling.audio_features import MelSpec, MelSpectrogram
from e2e_tts.trainers.data.speech_data import (
    Collator,
    MixtureBatches,
    SpeechDataset,
    decode,
    load_prepared,
    rows_of_all_sources,
    speaker_numbers,
)


def lengths_only(count: int = 200) -> Dataset:
    random = np.random.default_rng(0)
    seconds = random.uniform(0.5, 12.0, count)
    return Dataset.from_dict({"seconds": seconds, "source": [("a", "b", "c")[i % 3] for i in range(count)]})


def batches_of(rows: Dataset, count: int = 60, seed: int = 0, **settings) -> list[list[int]]:
    settings = {"weights": {"a": 3.0, "b": 1.0}, "seconds_per_batch": 40.0, "max_rows": 6, **settings}
    return list(MixtureBatches(rows, num_batches=count, seed=seed, **settings))


def test_batches_are_deterministic():
    rows = lengths_only()
    first = batches_of(rows)
    assert first == batches_of(rows)
    assert first != batches_of(rows, seed=1)
    # Batch k depends on (seed, k) alone: a longer run begins with the same batches.
    assert batches_of(rows, count=130)[:60] == first
    assert len(first) == 60 and len(MixtureBatches(rows, {"a": 1.0}, 7, 0, 40.0)) == 7


def test_batches_are_the_same_after_a_restart():
    """What Trainer does on resuming: it skips the batches that were done, in a new process's sampler."""
    rows = lengths_only()
    sampler = MixtureBatches(rows, {"a": 1.0, "b": 1.0}, 50, 3, 30.0)
    loader = DataLoader(list(range(len(rows))), batch_sampler=sampler)
    resumed = skip_first_batches(DataLoader(list(range(len(rows))), batch_sampler=sampler), 33)
    whole = [batch.tolist() for batch in loader]
    assert len(whole) == 50
    assert [batch.tolist() for batch in resumed] == whole[33:]


# Lengths of read speech, of a corpus with prompts and sentences, and of clips spread evenly.
LENGTHS = {
    "read": lambda random: np.clip(random.lognormal(1.3, 0.5, 20000), 0.6, 10.0),
    "two kinds": lambda random: np.r_[random.uniform(0.6, 2.0, 15000), random.uniform(6.0, 10.0, 5000)],
    "even": lambda random: random.uniform(0.6, 10.0, 20000),
}


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("seconds_per_batch", "max_rows"), [(24.0, 64), (120.0, 64), (800.0, 512)])
def test_padding_is_below_a_tenth(lengths, seconds_per_batch, max_rows):
    seconds = LENGTHS[lengths](np.random.default_rng(0))
    rows = Dataset.from_dict({"seconds": seconds, "source": ["a"] * len(seconds)})
    batches = MixtureBatches(rows, {"a": 1.0}, 300, 0, seconds_per_batch, max_rows)
    padded, speech = 0.0, 0.0
    for batch in batches:
        padded += len(batch) * seconds[batch].max()
        speech += seconds[batch].sum()
    assert 1 - speech / padded < 0.1
    # Nor are the batches bought by being small: on average they use most of the budget.
    assert padded / 300 > 0.7 * seconds_per_batch or max_rows < seconds_per_batch / seconds.mean()


def test_batches_respect_the_limits():
    rows = lengths_only()
    seconds = np.asarray(rows["seconds"][:])
    for batch in batches_of(rows, count=200, max_seconds=8.0):
        assert 1 <= len(batch) <= 6
        assert seconds[batch].max() <= 8.0
        assert len(batch) * seconds[batch].max() <= 40.0


def test_a_clip_longer_than_a_batch_stands_alone():
    rows = lengths_only()
    for batch in batches_of(rows, seconds_per_batch=3.0):
        assert len(batch) == 1 or len(batch) * max(rows["seconds"][i] for i in batch) <= 3.0


def test_sources_have_their_shares():
    rows = lengths_only()
    source = np.asarray(rows["source"][:])
    members = source[[index for batch in batches_of(rows, count=400) for index in batch]]
    assert set(members) == {"a", "b"}
    assert abs((members == "a").mean() - 0.75) < 0.04


def test_no_batch_holds_a_row_twice():
    rows = lengths_only()
    for settings in ({}, {"weights": {"a": 1.0, "b": 40.0}}, {"max_rows": 64, "seconds_per_batch": 500.0}):
        assert all(len(set(batch)) == len(batch) for batch in batches_of(rows, count=200, **settings)), settings
    # Where the pool is the whole source, every row is read once before any is read again.
    few = batches_of(lengths_only(30), count=40, weights={"a": 1.0}, max_seconds=20.0)
    read = [row for batch in few for row in batch]
    assert all(len(set(read[start : start + 10])) == 10 for start in range(0, len(read) - 10, 10))


def test_batches_hold_similar_lengths():
    rows = lengths_only()
    seconds = np.asarray(rows["seconds"][:])
    spreads = [np.ptp(seconds[batch]) for batch in batches_of(rows, count=200)]
    assert np.mean(spreads) < 1.0


def test_source_without_rows_is_refused():
    with pytest.raises(ValueError, match="source 'd', of which there are no rows"):
        batches_of(lengths_only(), weights={"a": 1.0, "d": 1.0})
    with pytest.raises(ValueError, match="source 'a'"):
        batches_of(lengths_only(), max_seconds=0.1)


@pytest.mark.parametrize(
    "settings", [{"weights": {}}, {"weights": {"a": 0.0}}, {"seconds_per_batch": 0.0}, {"max_rows": 0}]
)
def test_settings_without_a_batch_are_refused(settings):
    with pytest.raises(ValueError, match="positive"):
        batches_of(lengths_only(), **settings)


def test_rows_that_are_too_long_are_counted(caplog):
    rows = lengths_only()
    with caplog.at_level(logging.WARNING):
        batches_of(rows, max_seconds=8.0, weights={"a": 1.0})
    longer = sum(1 for row in rows if row["source"] == "a" and row["seconds"] > 8.0)
    assert f"{longer} of 67 rows of a are longer than 8.0 s" in caplog.text


def test_prepared_folders(tmp_path):
    folder = make_dataset(str(tmp_path / "data"))
    assert len(load_prepared([folder], "train")) == 12
    assert len(load_prepared([folder, folder], "dev")) == 6
    with pytest.raises(ValueError, match=r"No rows of split 'test'.*'train': 12, 'dev': 3.*data.eval_rows=0"):
        load_prepared([folder], "test")
    with pytest.raises(ValueError, match="No rows of split 'train'"):
        load_prepared([], "train")


def write_rows(folder: Path, drop: tuple[str, ...] = (), **changes: object) -> str:
    rows = [{**row, **changes} for row in make_rows(3)]
    Dataset.from_list([{k: v for k, v in row.items() if k not in drop} for row in rows]).save_to_disk(folder)
    return str(folder)


def test_folders_that_do_not_go_together(tmp_path, caplog):
    annotated = make_dataset(str(tmp_path / "annotated"))
    with pytest.raises(ValueError, match="nowhere is no prepared data set"):
        load_prepared([annotated, str(tmp_path / "nowhere")], "train")
    with pytest.raises(ValueError, match=r"lacks the columns \['seconds'\]"):
        load_prepared([write_rows(tmp_path / "raw", drop=("seconds",))], "train")
    other = write_rows(tmp_path / "other", speaker_embedding=[0.0] * 7)
    with pytest.raises(ValueError, match=r"different speaker encoders; embedding sizes: .*16.*7"):
        load_prepared([annotated, other], "train")
    # Without labels some kinds of training are still possible, so the message comes where they are needed.
    prepared = write_rows(tmp_path / "prepared", drop=("text_ids",))
    rows = load_prepared([annotated, prepared], "train")
    assert len(rows) == 15 and "text_ids" not in rows.column_names
    assert "text_ids is left out" in caplog.text and prepared in caplog.text
    dataset = SpeechDataset(rows, MelSpec())
    with pytest.raises(ValueError, match=r"lack \['text_ids'\]: .*e2e_tts.trainers.data.annotate"):
        Collator(MelSpec(), 2)([dataset[0]])


def test_emotions_become_classes():
    dataset = SpeechDataset(Dataset.from_list(make_rows(4)), MelSpec())
    rows = [{**dataset[index], "emotion": ("sad", "", None, "calm")[index]} for index in range(4)]
    config = E2ETTSConfig(**composite_settings(reward_config=reward_settings(
        num_emotions=2, id2label={0: "calm", 1: "sad"})))  # fmt: skip
    assert Collator.for_model(config)(rows)["emotion_labels"].tolist() == [1, -100, -100, 0]
    assert "emotion_labels" not in Collator(MelSpec(), 2)(rows)
    unnamed = E2ETTSConfig(**composite_settings())
    assert Collator.for_model(unnamed)(rows[1:3])["emotion_labels"].tolist() == [-100, -100]
    with pytest.raises(ValueError, match=r"emotions \['calm', 'sad'\].*reward_config.id2label"):
        Collator.for_model(unnamed)(rows)


def test_decoding():
    row = make_rows(1)[0]
    samples = decode(row["audio"], 16000)
    assert samples.dtype == np.float32 and len(samples) / 16000 == row["seconds"]
    with pytest.raises(ValueError, match="prepared at 16000 Hz but the recipe's mel is at 24000 Hz"):
        decode(row["audio"], 24000)


@pytest.mark.parametrize("frames_per_token", [2, 4])
def test_collator_lengths_are_exact_and_padding_is_zero(frames_per_token):
    dataset = SpeechDataset(Dataset.from_list(make_rows(5)), MelSpec())
    rows = [dataset[index] for index in range(5)]
    rows[0]["waveform"] = make_clip(0.04, 0)  # 640 samples: exactly one token of two frames
    rows[1]["waveform"] = make_clip(0.04, 0)[:1]
    batch = Collator(MelSpec(), frames_per_token)(rows)
    samples_per_token = 320 * frames_per_token
    tokens = torch.tensor([-(-len(row["waveform"]) // samples_per_token) for row in rows])
    frames = batch["feature_mask"].sum(dim=1)
    assert torch.equal(frames, tokens * frames_per_token)
    assert tokens[:2].tolist() == [1, 1]
    assert batch["input_features"].shape == (5, int(tokens.max()) * frames_per_token, 80)
    assert not batch["input_features"][~batch["feature_mask"]].any()
    # Valid frames come first, without holes.
    assert torch.equal(batch["feature_mask"], torch.arange(batch["feature_mask"].shape[1])[None] < frames[:, None])
    for index, row in enumerate(rows):
        symbols = len(row["text_ids"])
        assert batch["text_mask"][index].sum() == symbols
        assert batch["text_ids"][index, :symbols].tolist() == row["text_ids"]
        assert not batch["text_ids"][index, symbols:].any()
        assert batch["ctc_labels"][index].tolist() == row["ctc_labels"] + [-100] * (
            batch["ctc_labels"].shape[1] - len(row["ctc_labels"])
        )
        assert batch["tokens_per_symbol"][index] == pytest.approx(int(tokens[index]) / symbols)
    assert batch["utterance"].tolist() == list(range(5))
    assert batch["speaker_target"].shape == (5, 16)


def test_collated_features_do_not_depend_on_the_batch():
    dataset = SpeechDataset(Dataset.from_list(make_rows(4)), MelSpec())
    rows = [dataset[index] for index in range(4)]
    collator = Collator(MelSpec(), 2)
    together = collator(rows)
    for index, row in enumerate(rows):
        alone = collator([row])["input_features"][0]
        torch.testing.assert_close(together["input_features"][index, : len(alone)], alone)
    padded = torch.nn.functional.pad(torch.from_numpy(rows[0]["waveform"]), (0, -len(rows[0]["waveform"]) % 640))
    direct = MelSpectrogram(MelSpec())(padded[None])[0]
    torch.testing.assert_close(together["input_features"][0, : len(direct)], direct)


def test_a_decoder_with_a_mel_of_its_own_gets_it():
    tokenizer, decoder = MelSpec(), MelSpec(sampling_rate=24000, n_fft=1920, win_length=1920, hop_length=480)
    rows = [dict(SpeechDataset(Dataset.from_list(make_rows(3)), tokenizer)[index]) for index in range(3)]
    times = [np.arange(int(seconds * 24000)) / 24000 for seconds in (0.51, 0.8, 0.33)]
    for row, time in zip(rows, times, strict=True):
        row["waveform"] = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    batch = Collator(tokenizer, 2, decoder)(rows)
    assert batch["mel"].shape == batch["input_features"].shape == (3, 40, 80)
    assert batch["feature_mask"].sum(dim=1).tolist() == [26, 40, 18]
    # The tokenizer hears the same 440 Hz as if the clip had been recorded at its own rate.
    time = np.arange(int(0.8 * 16000)) / 16000
    rows[1]["waveform"] = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    direct = Collator(tokenizer, 2)([rows[1]])["input_features"][0]
    heard = batch["input_features"][1]
    loud = direct > -3
    assert loud.any() and (heard[loud] - direct[loud]).abs().mean() < 0.05


def test_rows_of_all_sources_are_taken_in_turn():
    rows = Dataset.from_dict({"source": ["a"] * 50 + ["b"] * 2 + ["c"] * 20})
    chosen = rows_of_all_sources(rows, 10)
    sources = [rows[index]["source"] for index in chosen]
    assert sources[:5] == ["a", "b", "c", "a", "b"] and sorted(sources) == ["a"] * 4 + ["b"] * 2 + ["c"] * 4
    # Those of a source reach from its first to its last row.
    assert [index for index in chosen if index < 50] == [0, 16, 33, 49]
    assert rows_of_all_sources(rows, 10) == chosen
    assert sorted(rows_of_all_sources(rows, 1000)) == list(range(72)) and rows_of_all_sources(rows, 0) == []


def test_one_name_in_two_sources_is_two_speakers():
    rows = Dataset.from_dict({"source": ["x", "y", "x", "y"], "speaker": ["84", "84", "84", "85"]})
    assert speaker_numbers(rows).tolist() == [0, 1, 0, 2]
