"""The reward model's table and the speech of held-out rows: closed forms, invariances, absent heads, the commands."""

import json

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from factories import (
    EMOTIONS,
    LEVELS,
    SPEAKER_DIM,
    WIDTH,
    decoder_settings,
    make_composite,
    make_dataset,
    make_reward,
    make_rows,
    reward_settings,
)

from e2e_tts.pipelines.evaluation import held_out_speech, reward_table
from e2e_tts.pipelines.evaluation.held_out import Voices, load_composite, select_rows
from e2e_tts.pipelines.evaluation.reward_table import (
    DECIBELS,
    HeldOutMeasurement,
    Utterance,
    emotion_accuracy,
    equal_error_rate,
    make_table,
    speaker_error,
)
from e2e_tts.trainers.data.speech_data import Collator, SpeechDataset

FAST = {"steps": 2, "guidance": 0.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return make_dataset(str(tmp_path_factory.mktemp("held_out") / "data"))


@pytest.fixture(scope="module")
def rows(data) -> Dataset:
    return select_rows([data], "train", limit=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    model = make_composite()
    with torch.no_grad():
        # An untrained LM hardly ever ends.
        model.lm.end_head.bias.fill_(3.0)
    path = str(tmp_path_factory.mktemp("model"))
    model.save_pretrained(path)
    return path


# --- closed forms ------------------------------------------------------------------------------------------------


def test_equal_error_rate():
    same = np.array([True, True, False, False])
    assert equal_error_rate(np.array([4.0, 3.0, 2.0, 1.0]), same) == 0.0
    assert equal_error_rate(np.array([1.0, 2.0, 3.0, 4.0]), same) == 1.0
    assert equal_error_rate(np.zeros(4), same) == 0.5
    assert equal_error_rate(np.array([4.0, 2.0, 3.0, 1.0]), same) == 0.5
    # Two normal distributions at a distance d have an equal-error rate of Phi(-d / 2): 0.1587 for d = 2.
    random = np.random.default_rng(0)
    scores, same = np.concatenate([random.normal(2, 1, 20000), random.normal(0, 1, 60000)]), np.arange(80000) < 20000
    rate = equal_error_rate(scores, same)
    assert rate == pytest.approx(0.1587, abs=0.006)
    assert equal_error_rate(np.exp(scores), same) == pytest.approx(rate)
    weights = random.integers(1, 4, 300)
    few = np.concatenate([scores[:150], scores[-150:]]), np.arange(300) < 150
    repeated = [np.repeat(array, weights) for array in few]
    assert equal_error_rate(*few, weights.astype(float)) == pytest.approx(equal_error_rate(*repeated))
    with pytest.raises(ValueError, match="pairs of the same and of different"):
        equal_error_rate(scores, np.ones(80000, dtype=bool))


def test_speaker_error_over_pairs():
    vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    perfect = speaker_error(vectors, ["a", "a", "b", "b"], resamples=50, seed=0)
    assert (perfect.value, perfect.low, perfect.high) == (0.0, 0.0, 0.0)
    assert speaker_error(vectors, ["a", "b", "a", "b"], resamples=50, seed=0).value > 0.4
    # The first draw of three utterances may lack a pair of one speaker, or of two.
    assert all(speaker_error(vectors[:3], list("aab"), resamples=1, seed=seed).value == 0 for seed in range(20))
    assert speaker_error(vectors, ["a"] * 4, 50, 0) is None and speaker_error(vectors, list("abcd"), 50, 0) is None


def test_one_name_in_two_corpora_is_two_speakers():
    """Two voices, one in each corpus, under the same name: the rate would have to take them for one."""
    vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    rows = [Utterance(str(n), "a", "84", source, {"lm_loss": (1.0, 1.0)}) for n, source in enumerate("xxyy")]
    table = make_table(rows, vectors, vectors, {}, resamples=20)
    assert table.figures["speaker_equal_error_rate"].value == 0
    assert "1 sentences, 2 speakers" in table.to_markdown()


def test_emotion_accuracy_masks_what_is_unlabelled():
    labels, heard = [0, 0, 0, 1, -100, 2], [0, 0, 1, 0, 0, -100]
    result = emotion_accuracy(labels, heard, resamples=200, seed=0)
    assert result["emotion_accuracy_weighted"].value == pytest.approx(2 / 4)
    assert result["emotion_accuracy_unweighted"].value == pytest.approx((2 / 3 + 0) / 2)
    assert result["emotion_accuracy_weighted"].low < 0.5 < result["emotion_accuracy_weighted"].high
    assert emotion_accuracy([-100], [1], 10, 0) == {}


# --- rows and voices ---------------------------------------------------------------------------------------------


def test_rows_are_spread_and_voices_come_from_other_clips(data, tmp_path):
    assert select_rows([data], "train", limit=3)["id"][:] == ["train-0", "train-6", "train-11"]
    assert set(select_rows([data], "train", ["second"])["source"][:]) == {"second"}
    everything = make_rows(12) + make_rows(3, split="dev", seed=1)
    dev = select_rows([data], "dev")
    voices = Voices.of_rows(dev, [data])
    of_speaker = [row for row in everything if (row["source"], row["speaker"]) == ("second", "speaker1")]
    others = [row for row in of_speaker if row["id"] != "dev-1"]
    expected = torch.tensor([row["speaker_embedding"] for row in others]).mean(dim=0)
    torch.testing.assert_close(voices.embedding[1], torch.nn.functional.normalize(expected, dim=0))
    rate = np.mean([row["seconds"] / len(row["text_ids"]) for row in others])
    assert float(voices.seconds_per_symbol[1]) == pytest.approx(rate) and voices.alone == 0
    # Nor is one of another corpus's speaker who is called the same.
    namesakes = [{**row, "source": "third", "speaker": "speaker1", "id": f"third/{row['id']}"} for row in make_rows(4)]
    Dataset.from_list(namesakes).save_to_disk(tmp_path / "namesakes")
    beside = Voices.of_rows(dev, [data, str(tmp_path / "namesakes")])
    torch.testing.assert_close(beside.embedding, voices.embedding)
    torch.testing.assert_close(beside.seconds_per_symbol, voices.seconds_per_symbol)
    # A row that lies in two folders is no other clip of its speaker.
    twice = Voices.of_rows(dev, [data, data])
    torch.testing.assert_close(twice.embedding, voices.embedding)
    single = [{**row, "speaker": row["id"]} for row in make_rows(2)]
    Dataset.from_list(single).save_to_disk(tmp_path / "single")
    lonely = Voices.of_rows(select_rows([str(tmp_path / "single")], "train"), [str(tmp_path / "single")])
    assert lonely.alone == 2
    with pytest.raises(ValueError, match=r"lack the columns \['text_ids'\]: run e2e_tts.trainers.data.annotate"):
        Voices.of_rows(dev.remove_columns("text_ids"), [data])


# --- measuring ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_measures_are_those_of_the_models_and_do_not_depend_on_the_batch(rows, data):
    model = make_composite()
    voices = Voices.of_rows(rows, [data])
    measure = HeldOutMeasurement(model, **FAST)
    together, vectors = measure(rows, voices, batch_size=5)
    alone, same_vectors = measure(rows, voices, batch_size=1)
    assert vectors.shape == (5, SPEAKER_DIM)
    np.testing.assert_allclose(vectors, same_vectors, atol=1e-5)
    for first, second in zip(together, alone, strict=True):
        assert first.measures.keys() == set(reward_table.RATIOS)
        for name, (numerator, denominator) in first.measures.items():
            assert (numerator, denominator) == pytest.approx(second.measures[name], rel=1e-4), name
    collate = Collator.for_model(model.config)
    batch = collate([SpeechDataset(rows, collate.audio_spec)[2]])
    output = model(
        batch["input_features"],
        batch["feature_mask"],
        batch["text_ids"],
        batch["text_mask"],
        speaker_embedding=voices.embedding[2:3],
        tokens_per_symbol=batch["tokens_per_symbol"],
        true_losses=("lm",),
    )
    nats, tokens = together[2].measures["lm_loss"]
    assert nats / tokens == pytest.approx(float(output.loss_lm), rel=1e-4)
    assert tokens == int(output.mask.sum()) + 1
    assert together[2].measures["mel_distance_sampled"][1] == 2 * int(output.mask.sum())
    assert together[2].measures["label_error_rate"][1] == len(rows[2]["ctc_labels"])


def test_mel_distance_is_in_decibels(rows, data, monkeypatch):
    model = make_composite()
    measure = HeldOutMeasurement(model, **FAST)
    mels = measure.collate([SpeechDataset(rows, measure.collate.audio_spec)[index] for index in range(5)])
    monkeypatch.setattr(model.decoder, "sample", lambda *_, **__: mels["input_features"] + 1 / DECIBELS)
    for utterance in measure(rows, Voices.of_rows(rows, [data]), batch_size=5)[0]:
        distance, frames = utterance.measures["mel_distance_sampled"]
        assert distance / frames == pytest.approx(1.0, rel=1e-4)


def test_absent_heads_are_left_out_and_said_so(rows, data):
    changes = {
        "reward_config": reward_settings(ctc_vocab_size=0, speaker_dim=0, num_emotions=0),
        "decoder_config": decoder_settings(use_prior=False, hidden_condition_size=WIDTH),
    }
    utterances, vectors = HeldOutMeasurement(make_composite(**changes), **FAST)(rows, Voices.of_rows(rows, [data]))
    assert vectors is None
    teacher = np.eye(5, 8)
    table = make_table(utterances, vectors, teacher, {}, resamples=20)
    assert set(table.figures) == {"lm_loss", "mel_distance_sampled", "speaker_equal_error_rate_of_teacher"}
    notes = "\n".join(table.notes)
    for name in ("label_error_rate", "mel_distance_prior", "speaker_equal_error_rate", "emotion accuracy"):
        assert f"No {name}" in notes


def test_emotions_are_read_where_they_are_known(rows, data):
    model = make_composite()
    names = ["calm", "glad", "sad", "cross"]
    labelled = Dataset.from_list(
        [{**row, "emotion": ["glad", "", "sad", "unknown", "calm"][i]} for i, row in enumerate(rows)]
    )
    voices = Voices.of_rows(labelled, [data])
    utterances, _ = HeldOutMeasurement(model, **FAST, emotions=names)(labelled, voices)
    assert [row.emotion for row in utterances] == [1, -100, 2, -100, 0]
    assert all((row.emotion_heard in range(EMOTIONS)) == (row.emotion >= 0) for row in utterances)
    assert not HeldOutMeasurement(model, **FAST).classes
    model.config.reward_config.id2label = dict(enumerate(names))
    assert list(HeldOutMeasurement(model, **FAST).classes) == names
    with pytest.raises(ValueError, match=f"Got 2 emotions, but the reward model has {EMOTIONS}"):
        HeldOutMeasurement(model, **FAST, emotions=names[:2])


# --- commands ----------------------------------------------------------------------------------------------------


def test_reward_table_command(folder, data, tmp_path, capsys):
    other = make_reward()
    with torch.no_grad():
        other.ctc_head.bias[3] += 100.0
    other.save_pretrained(tmp_path / "reward")
    common = ["--data", data, "--steps", "2", "--resamples", "20", "--split", "dev", "--device", "cpu"]
    reward_table.main([*common, "--model", folder, "--output", str(tmp_path / "a")])
    assert "| CTC label error rate | " in capsys.readouterr().out
    module = ["--module", f"reward={tmp_path}/reward"]
    reward_table.main([*common, "--model", folder, *module, "--output", str(tmp_path / "b")])
    first, second = (json.loads((tmp_path / name / "reward_table.json").read_text()) for name in "ab")
    assert first["figures"]["lm_loss"] == second["figures"]["lm_loss"]
    assert first["figures"]["label_error_rate"] != second["figures"]["label_error_rate"]
    figure = first["figures"]["mel_distance_sampled"]
    assert figure["low"] <= figure["value"] <= figure["high"]
    assert [row["id"] for row in first["utterances"]] == ["dev-0", "dev-1", "dev-2"]
    for wrong, message in (
        (["--model", str(tmp_path)], "not a checkpoint"),
        (["--model", folder, "--module", "reward"], "NAME=FOLDER"),
        (["--model", folder, "--split", "test"], "No rows of split 'test'"),
        (["--model", folder, "--device", "nowhere"], "--device nowhere cannot be used"),
    ):
        with pytest.raises(SystemExit, match=message):
            reward_table.main([*common, *wrong, "--output", str(tmp_path / "c")])


def test_held_out_speech_goes_on_where_it_stopped(folder, data, tmp_path, capsys):
    command = ["--model", folder, "--data", data, "--steps", "2", "--output", str(tmp_path)]
    held_out_speech.main([*command, "--device", "cpu"])
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.wav"))
    assert len(files) == 6
    whole = {path: (tmp_path / path).read_bytes() for path in files}
    recording, rate = soundfile.read(tmp_path / "reconstruction" / "0001.wav")
    seconds = select_rows([data], "dev")[1]["seconds"]
    assert rate == 16000 and 0 <= len(recording) / rate - seconds < 0.04
    assert (tmp_path / "texts.tsv").read_text() == "".join(f"{index:04d}\ta text\n" for index in range(3))
    (tmp_path / "speech" / "0002.wav").unlink()
    kept = tmp_path / "speech" / "0000.wav"
    kept.write_bytes(b"done before")
    held_out_speech.main(command)
    assert kept.read_bytes() == b"done before"
    assert (tmp_path / "speech" / "0002.wav").read_bytes() == whole[files[-1]]
    assert "speech: 3 sentences" in capsys.readouterr().out
    # What is there belongs to its checkpoint, sentences and settings.
    make_reward().save_pretrained(tmp_path / "reward")
    for change, name in (
        (["--seed", "1"], "seed"),
        (["--limit", "2"], "rows"),
        (["--top_k", "3"], "sampling.top_k"),
        (["--module", f"reward={tmp_path}/reward"], "checkpoint"),
    ):
        with pytest.raises(SystemExit, match=f"other settings .*{name}: "):
            held_out_speech.main([*command, *change])


def test_inputs_go_to_the_device_of_the_model(folder, data, monkeypatch):
    """No second device is at hand, so what is moved is written down: every tensor that a module gets has been."""
    rows = select_rows([data], "dev", limit=1)
    voices = Voices.of_rows(rows, [data])
    speaker = held_out_speech.HeldOutSpeaker(load_composite(folder), steps=1)
    moved, move = set(), torch.Tensor.to

    def recorded(self, *places, **settings):
        result = move(self, *places, **settings)
        if places == (speaker.model.device,):
            moved.add(id(result))
            kept.append(result)  # an id is of nothing else while its tensor lives
        return result

    kept = []
    monkeypatch.setattr(torch.Tensor, "to", recorded)
    seen = []
    for name in ("vocoder", "encoder"):
        module = getattr(speaker.model, name)
        module.register_forward_pre_hook(lambda module, inputs: seen.extend(map(id, inputs)))
    item = SpeechDataset(rows, speaker.collate.audio_spec)[0]
    for condition in ("vocoder", "reconstruction"):
        getattr(speaker, condition)(item, voices.embedding[0], float(voices.seconds_per_symbol[0]))
    # The last one is the vocoder's mel of reconstruction, which the decoder has made.
    assert len(seen) == 4 and set(seen[:-1]) <= moved


def test_speech_without_end_is_silence(data, tmp_path, capsys):
    model = make_composite()
    with torch.no_grad():
        model.lm.end_head.bias.fill_(-1e4)
    model.save_pretrained(tmp_path / "model")
    command = ["--model", str(tmp_path / "model"), "--data", data, "--limit", "1", "--steps", "1"]
    held_out_speech.main([*command, "--conditions", "speech", "--output", str(tmp_path)])
    audio, _ = soundfile.read(tmp_path / "speech" / "0000.wav")
    assert len(audio) == 8000 and not audio.any()
    assert "1 failed" in capsys.readouterr().out


def test_composites_take_modules_that_fit(folder, tmp_path):
    make_reward(levels=[*LEVELS, 3]).save_pretrained(tmp_path / "odd")
    with pytest.raises(ValueError, match="FSQ levels differ"):
        load_composite(folder, [f"reward={tmp_path}/odd"])
    with pytest.raises(ValueError, match="No module 'rewrad'"):
        load_composite(folder, [f"rewrad={tmp_path}/odd"])
