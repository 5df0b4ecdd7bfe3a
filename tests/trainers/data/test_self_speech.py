"""Speech of a checkpoint as training data: what is kept, its tokens, a run that goes on, and training on it."""

import csv
import json

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from transformers import AutoModel

from e2e_tts.pipelines.release import save_release
from e2e_tts.trainers.data import self_speech
from e2e_tts.trainers.data.provenance import check_provenance, read_fingerprints, weights_fingerprint
from e2e_tts.trainers.data.self_speech import main
from e2e_tts.trainers.data.speech_data import NOT_GIVEN, Collator, SpeechDataset, decode, load_prepared

SENTENCES = ["Hello, world!", "!?", "A longer sentence follows here.", "Birds sing.", "She sells sea shells."]


@pytest.fixture(scope="module")
def release(tiny_model, processor, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("release")
    save_release(tiny_model(), processor, path, torch.float32)
    return str(path)


@pytest.fixture(scope="module")
def arguments(release, tmp_path_factory) -> list[str]:
    path = tmp_path_factory.mktemp("sentences") / "sentences.txt"
    path.write_text("\n".join([*SENTENCES, SENTENCES[0], ""]))
    return ["--model", release, "--sentences", str(path), "--candidates", "3", "--batch_texts", "2"]


@pytest.fixture(scope="module")
def rows(arguments, tmp_path_factory):
    output = tmp_path_factory.mktemp("self") / "rows"
    main([*arguments, "--max_loss", "100", "--output", str(output), "--device", "cpu"])
    return output


def refused(folder) -> dict[str, str]:
    with (folder / "refused.csv").open(newline="") as file:
        return {row["text"]: row["reason"] for row in csv.DictReader(file)}


def test_rows_hold_what_the_lm_drew(rows, tiny_model):
    kept = load_from_disk(str(rows))
    assert kept["text"][:] == [SENTENCES[index] for index in (0, 2, 3, 4)]
    assert kept["speaker"][:] == ["anna", "anna", "ben", "anna"]  # in turns, the unspeakable one included
    assert "can be spoken" in refused(rows)["!?"]
    model = tiny_model()
    for row in kept:
        samples = decode(row["audio"], 16000)
        assert len(samples) == 640 * len(row["speech_ids"]) and np.abs(samples).max() > 0
        assert row["seconds"] == pytest.approx(len(samples) / 16000)
        codes = model.lm.quantizer.indices_to_codes(torch.tensor([row["speech_ids"]]))
        loss = model.reward.recognition_losses(codes, None, torch.tensor([row["ctc_labels"]]))
        assert row["reward_loss"] == pytest.approx(float(loss), rel=1e-3)
    embedding = model.voice_embeddings[list(model.config.voices).index("ben")]
    torch.testing.assert_close(torch.tensor(kept[2]["speaker_embedding"]), embedding)


def test_voices_share_the_best_draw_of_all_of_them(arguments, tiny_model, tmp_path):
    """Both have a row of each sentence, with the same tokens: of the voice whose best draw is understood best."""
    rows = {}
    for name, options in {"both": ["--shared"], "anna": ["--voices", "anna"], "ben": ["--voices", "ben"]}.items():
        main([*arguments, *options, "--max_loss", "100", "--output", str(tmp_path / name)])
        rows[name] = load_from_disk(str(tmp_path / name))
    both = rows["both"]
    assert both["speaker"][:] == ["anna", "ben"] * 4 and len(set(both["id"][:])) == 8
    pairs = zip(rows["anna"], rows["ben"], strict=True)
    expected = [min(pair, key=lambda row: row["reward_loss"]) for pair in pairs]
    assert {row["speaker"] for row in expected} == {"anna", "ben"}
    for place, row in enumerate(both):
        assert row["text"] == expected[place // 2]["text"]
        assert row["speech_ids"] == expected[place // 2]["speech_ids"]
        assert len(decode(row["audio"], 16000)) == 640 * len(row["speech_ids"])
    model = tiny_model()
    embedding = model.voice_embeddings[list(model.config.voices).index("ben")]
    torch.testing.assert_close(torch.tensor(both[1]["speaker_embedding"]), embedding)


def test_training_speakers_say_the_best_draws_too(arguments, rows, tiny_model, tmp_path, capsys):
    """One of them a sentence, as heard in one of their utterances; built-in voices are no further speakers."""
    data = load_from_disk(str(rows))
    names = ["carl", "anna", "dora", "carl"]
    heard = np.random.default_rng(0).normal(size=(4, len(data[0]["speaker_embedding"])))
    changed = data.remove_columns(["speaker", "speaker_embedding"])
    changed.add_column("speaker", names).add_column("speaker_embedding", heard.tolist()).save_to_disk(tmp_path / "data")
    options = ["--shared", "--voices", "ben", "--max_loss", "100", "--speakers", str(tmp_path / "data")]
    main([*arguments, *options, "--seed", "2", "--output", str(tmp_path / "rows")])
    kept = load_from_disk(str(tmp_path / "rows"))
    assert len(set(kept["id"][:])) == 12 and kept["speaker"][:][0:2] == ["anna", "ben"]
    others = kept.select(range(2, 12, 3))
    assert set(others["speaker"][:]) == {"carl", "dora"}
    for row, own in zip(others, kept.select(range(1, 12, 3)), strict=True):
        assert row["speech_ids"] == own["speech_ids"] and own["speaker"] == "ben"
        np.testing.assert_allclose(row["speaker_embedding"], heard[names.index(row["speaker"])], rtol=1e-6)
    changed.add_column("speaker", names).save_to_disk(tmp_path / "bare")
    with pytest.raises(SystemExit):
        main([*arguments, "--shared", "--speakers", str(tmp_path / "bare"), "--output", str(tmp_path / "none")])
    assert "has no speaker_embedding" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--shared", "--speakers", str(rows), "--output", str(tmp_path / "none")])
    assert "no training speaker but the built-in voices" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--speakers", str(tmp_path / "data"), "--output", str(tmp_path / "none")])
    assert "--speakers needs --shared" in capsys.readouterr().err


def test_what_is_badly_understood_is_left_out(arguments, rows, tmp_path):
    losses = sorted(load_from_disk(str(rows))["reward_loss"][:])
    limit = (losses[1] + losses[2]) / 2
    main([*arguments, "--max_loss", str(limit), "--output", str(tmp_path / "good")])
    good = load_from_disk(str(tmp_path / "good"))
    assert len(good) == 2 and max(good["reward_loss"][:]) < limit
    assert sum("loss is" in reason for reason in refused(tmp_path / "good").values()) == 2
    assert json.loads((tmp_path / "good" / "self_speech.json").read_text())["max_loss"] == pytest.approx(limit)
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--max_loss", "0", "--output", str(tmp_path / "none")])
    assert end.value.code == 1 and not (tmp_path / "none").exists()


@pytest.mark.parametrize("options", [[], ["--shared"]])
def test_a_killed_run_goes_on(options, arguments, tmp_path, monkeypatch):
    arguments = [*arguments, *options, "--max_loss", "100"]
    main([*arguments, "--output", str(tmp_path / "whole")])
    speak, spoken = self_speech.SelfSpeaker.__call__, []

    def killed_later(self, sentences, number):
        if number == 2 and not spoken:
            spoken.append(number)
            raise KeyboardInterrupt
        return speak(self, sentences, number)

    monkeypatch.setattr(self_speech.SelfSpeaker, "__call__", killed_later)
    command = [*arguments, "--output", str(tmp_path / "rows")]
    with pytest.raises(KeyboardInterrupt):
        main(command)
    main(command)
    again, whole = (load_from_disk(str(tmp_path / name)) for name in ("rows", "whole"))
    assert again["id"][:] == whole["id"][:] and again["speech_ids"][:] == whole["speech_ids"][:]


def test_tokens_of_another_speech_tokenizer_are_refused(rows, release, tiny_model, tmp_path):
    """Its own model and its release take the rows; a model whose encoder has learned since does not."""
    model = tiny_model()
    found = read_fingerprints(rows)
    assert found["speech_tokenizer"] == weights_fingerprint(model.encoder)
    assert found["speaker_encoder"] == weights_fingerprint(model.speaker)
    check_provenance([str(rows), str(tmp_path)], model)
    check_provenance([str(rows)], AutoModel.from_pretrained(release))
    encoder = AutoModel.from_pretrained(f"{release}/encoder")
    next(encoder.parameters()).data += 1.0
    model.replace_module("encoder", encoder)
    with pytest.raises(ValueError, match=r"speech_ids of \['.*rows'\] .*another speech tokenizer.*self_speech --model"):
        check_provenance([str(rows)], model)
    # Rows from before there were fingerprints stay usable.
    (tmp_path / "self_speech.json").write_text('{"seed": 0}')
    check_provenance([str(tmp_path)], model)


def test_unknown_voices_are_refused(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*arguments, "--voices", "anna", "carl", "--output", str(tmp_path / "rows")])
    assert "not ['carl']" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--device", "nowhere", "--output", str(tmp_path / "rows")])
    assert "--device nowhere cannot be used" in capsys.readouterr().err


def test_the_lm_learns_the_tokens_that_were_drawn(rows, tiny_model):
    model = tiny_model()
    dataset = SpeechDataset(load_prepared([str(rows)], "train"), Collator.for_model(model.config).audio_spec)
    items = [dataset[0], dataset[1] | {"speech_ids": []}]
    batch = Collator.for_model(model.config)(items)
    given = batch.pop("given_ids")
    assert given[0][given[0] != NOT_GIVEN].tolist() == items[0]["speech_ids"]
    assert (given[1] == NOT_GIVEN).all()
    batch.pop("utterance")
    inputs = batch | {"speaker_embedding": batch["speaker_target"], "seeds": torch.tensor([1, 2])}
    with torch.no_grad():
        heard = model(**inputs, true_losses=("lm",))
        both = model(**inputs, given_ids=given, true_losses=("lm",))
    assert both.ids[0][both.mask[0]].tolist() == items[0]["speech_ids"]
    assert torch.equal(both.ids[1], heard.ids[1]) and not torch.equal(both.ids[0], heard.ids[0])
    with torch.no_grad():
        codes = model.lm.quantizer.indices_to_codes(both.ids) * both.mask[..., None]
        prefix = (batch["text_ids"], batch["text_mask"], codes, both.mask, both.ids)
        expected = model.lm(*prefix, batch["speaker_target"], batch["tokens_per_symbol"]).loss
    torch.testing.assert_close(both.loss_lm, expected)
    with pytest.raises(ValueError, match="tokens in speech_ids, but audio of"):
        Collator.for_model(model.config)([dataset[0] | {"speech_ids": [1, 2]}])
