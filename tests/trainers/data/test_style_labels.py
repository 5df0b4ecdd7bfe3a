"""Labels of style: closed forms on tones, real speech played faster, ranks among the speaker's own clips."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from datasets import Dataset, load_from_disk
from factories import composite_settings, lm_settings, make_dataset, make_rows, reward_settings
from recordings import CLIPS, noise
from stages import make_folders, recipe_values, stage_recipe

from e2e_tts.modeling import E2ETTSConfig
from e2e_tts.trainers.data import style_labels
from e2e_tts.trainers.data.provenance import read_fingerprints
from e2e_tts.trainers.data.speech_data import Collator, SpeechDataset, load_prepared
from e2e_tts.trainers.data.style_labels import check_labels, mid_ranks, speaker_ranks
from e2e_tts.trainers.data.style_signal import measure_style
from e2e_tts.trainers.recipe import RecipeError, load_recipe
from e2e_tts.trainers.train import build_model, build_trainer

RATE = 16000


def tone(frequency: float | np.ndarray, seconds: float = 1.0, harmonics: int = 5) -> np.ndarray:
    """Harmonics of a frequency in Hz, a number or one a sample; their amplitudes fall as 1 / number."""
    frequency = np.broadcast_to(frequency, (round(seconds * RATE),))
    phase = 2 * np.pi * np.cumsum(frequency) / RATE
    return 0.1 * sum(np.sin(number * phase) / number for number in range(1, harmonics + 1))


@pytest.mark.parametrize("harmonics", [1, 6])
@pytest.mark.parametrize("frequency", [70.0, 111.1, 200.0, 333.3])
def test_a_tone_has_its_pitch(frequency, harmonics):
    measures = measure_style(tone(frequency, harmonics=harmonics), RATE)
    assert measures.pitch == pytest.approx(frequency, rel=3e-3)
    assert measures.pitch_range < 0.05
    assert measures.rate is None


def test_a_glide_has_the_mean_and_the_deviation_of_its_logarithm():
    """log2 F0 is uniform over an octave: its mean is in the middle, its deviation 12 / sqrt(12) semitones."""
    measures = measure_style(tone(100.0 * 2 ** np.linspace(0, 1, 3 * RATE), 3.0), RATE)
    assert measures.pitch == pytest.approx(100 * 2**0.5, rel=0.01)
    assert measures.pitch_range == pytest.approx(12**0.5, rel=0.03)


def test_gain_changes_the_energy_alone():
    clip = tone(150.0)
    soft, loud = (measure_style(gain * clip, RATE, symbols=9) for gain in (0.25, 1.0))
    assert loud.energy - soft.energy == pytest.approx(20 * np.log10(4), abs=1e-6)
    # RMS of the sines: amplitudes 0.1 / k.
    assert loud.energy == pytest.approx(10 * np.log10(0.5 * sum((0.1 / k) ** 2 for k in range(1, 6))), abs=0.05)
    for name in ("pitch", "pitch_range", "effort", "rate"):
        assert getattr(loud, name) == pytest.approx(getattr(soft, name), rel=1e-6), name


@pytest.mark.parametrize("amplitude", [0.03, 0.3])
def test_effort_is_the_level_of_high_against_low_frequencies(amplitude):
    time = np.arange(RATE) / RATE
    clip = 0.2 * (np.sin(2 * np.pi * 200 * time) + amplitude * np.sin(2 * np.pi * 2000 * time))
    assert measure_style(clip, RATE).effort == pytest.approx(20 * np.log10(amplitude), abs=0.1)


@pytest.mark.parametrize(("pause", "seconds"), [(0.1, 1.1), (0.5, 1.0)])
def test_pauses_do_not_slow_the_rate_but_closures_belong_to_speech(pause, seconds):
    burst, silence = tone(150.0, 0.5), np.zeros(round(pause * RATE))
    clip = np.concatenate([silence, burst, silence, burst, silence])
    assert measure_style(clip, RATE, symbols=22).rate == pytest.approx(22 / seconds, rel=1e-3)


def test_silence_has_no_style_and_noise_no_pitch():
    assert measure_style(np.zeros(RATE), RATE, symbols=5) == measure_style(np.zeros(0), RATE)
    hiss = measure_style(noise(1.0)[:, 0], RATE, symbols=5)
    assert hiss.pitch is None and hiss.effort is None and hiss.pitch_range is None
    assert hiss.rate == pytest.approx(5.0, rel=0.02) and hiss.energy == pytest.approx(-20.0, abs=0.2)


@pytest.mark.parametrize("file", ["LJ001-0160.opus", "arctic_a0236_1592711676.opus"])
def test_speech_played_faster_is_higher_and_faster_by_that_factor(file):
    samples, rate = soundfile.read(CLIPS / file)
    samples = soxr.resample(samples, rate, RATE)
    factor = 2 ** (3 / 12)
    usual, fast = (measure_style(clip, RATE, 40) for clip in (samples, soxr.resample(samples, factor, 1.0)))
    assert 130 < usual.pitch < 260  # both read by women
    assert fast.pitch / usual.pitch == pytest.approx(factor, rel=0.02)
    assert fast.rate / usual.rate == pytest.approx(factor, rel=0.02)
    assert fast.pitch_range == pytest.approx(usual.pitch_range, rel=0.15)


# ---------------------------------------------------------------- ranks


def test_ranks_are_even_and_ties_share_one():
    np.testing.assert_allclose(mid_ranks(np.array([30.0, 10.0, 20.0, 40.0])), [0.625, 0.125, 0.375, 0.875])
    np.testing.assert_allclose(mid_ranks(np.array([5.0, 1.0, 5.0, 5.0])), [0.625, 0.125, 0.625, 0.625])
    values = np.random.default_rng(0).normal(150.0, 20.0, 40)
    ranks, reason = speaker_ranks("pitch", np.r_[values, np.nan])
    assert reason == "" and np.isnan(ranks[-1])
    assert np.bincount((ranks[:-1] * 5).astype(int)).tolist() == [8] * 5


def test_speakers_that_cannot_be_ranked_are_left_open():
    ranks, reason = speaker_ranks("rate", np.arange(19.0))
    assert np.isnan(ranks).all() and reason == "fewer than 20 clips"
    ranks, reason = speaker_ranks("energy", np.full(30, -23.0) + np.random.default_rng(0).normal(0, 0.1, 30))
    assert np.isnan(ranks).all() and reason == "clips hardly differ"


def tone_rows(speakers: dict[str, list[float]], source: str = "first") -> list[dict]:
    """One annotated row for each of a speaker's pitches in Hz, all of the same level."""
    rows = []
    for speaker, pitches in speakers.items():
        for index, pitch in enumerate(pitches):
            file = io.BytesIO()
            soundfile.write(file, tone(pitch, 0.4), RATE, format="FLAC", subtype="PCM_16")
            row = {"id": f"{speaker}-{index}", "audio": {"bytes": file.getvalue(), "path": None}, "seconds": 0.4}
            rows.append({**make_rows(1)[0], **row, "speaker": speaker, "source": source, "emotion": ""})
    return rows


LOW, HIGH = np.linspace(90, 120, 20).tolist(), np.linspace(190, 240, 20).tolist()


def run(data: Path | str, output: Path, *extra: object) -> Dataset:
    style_labels.main(["--data", str(data), "--output", str(output), *map(str, extra)])
    return load_from_disk(str(output))


@pytest.fixture(scope="module")
def annotated(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "annotated"
    Dataset.from_list(tone_rows({"low": LOW, "high": HIGH, "rare": [150.0, 160.0]})).save_to_disk(folder)
    (folder / "annotation.json").write_text('{"fingerprints": {"text_tokenizer": "one"}}')
    return folder


@pytest.fixture(scope="module")
def styled(annotated, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("data") / "styled"
    run(annotated, output)
    return output


def test_levels_are_relative_to_the_speaker(annotated, styled):
    rows, before = load_from_disk(str(styled)), load_from_disk(str(annotated))
    assert rows.remove_columns([n for n in rows.column_names if n not in before.column_names]).to_list() == (
        before.to_list()
    )
    measured = np.array(rows["measured_pitch"][:40])
    np.testing.assert_allclose(measured, LOW + HIGH, rtol=5e-3)
    # The highest clip of the low voice lies below the lowest of the high one, and both voices have all ranks.
    expected = (np.arange(20) + 0.5) / 20
    np.testing.assert_allclose(rows["style_pitch"][:40], np.r_[expected, expected], atol=1e-6)
    assert rows["style_pitch"][40:] == [None, None]
    assert rows["style_energy"][:] == [None] * 42
    with (styled / "styles.csv").open(encoding="utf-8", newline="") as handle:
        table = {(line["speaker"], line["style"]): line for line in csv.DictReader(handle)}
    assert table["first/low", "pitch"]["why_unspecified"] == ""
    assert table["first/low", "energy"]["why_unspecified"] == "clips hardly differ"
    assert table["first/rare", "pitch"]["why_unspecified"] == "fewer than 20 clips"
    assert float(table["first/high", "pitch"]["median"]) == pytest.approx(215, rel=0.01)
    assert json.loads((styled / "styles.json").read_text())["min_clips"] == 20
    # What tokens and embeddings were made by is known of the labelled rows too.
    assert read_fingerprints(styled) == {"text_tokenizer": "one"}


def test_a_stopped_run_goes_on_and_an_output_is_kept(annotated, styled, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(style_labels, "ROWS_PER_PART", 10)
    measure, seen = style_labels.measure, []

    def counting(row: dict) -> object:
        if len(seen) == 25:
            raise KeyboardInterrupt
        seen.append(row["id"])
        return measure(row)

    monkeypatch.setattr(style_labels, "measure", counting)
    with pytest.raises(KeyboardInterrupt):
        run(annotated, tmp_path / "styled")
    seen.clear()
    assert run(annotated, tmp_path / "styled").to_list() == load_from_disk(str(styled)).to_list()
    assert len(seen) == 42 - 20
    with pytest.raises(SystemExit):
        run(annotated, tmp_path / "styled")
    assert "--overwrite" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(tmp_path, tmp_path / "other")
    assert "no prepared data set" in capsys.readouterr().err


# ---------------------------------------------------------------- training


def test_levels_reach_a_batch_and_missing_ones_are_unspecified(styled, tmp_path, caplog):
    unlabelled = make_dataset(str(tmp_path / "unlabelled"))
    rows = load_prepared([str(styled), unlabelled], "train")
    assert "has no ['style_pitch'" in caplog.text and len(rows) == 42 + 12
    config = E2ETTSConfig(**composite_settings(lm_config=lm_settings(styles={"pitch": 5, "effort": 3, "energy": 2})))
    collator = Collator.for_model(config)
    dataset = SpeechDataset(rows, collator.audio_spec)
    levels = collator([dataset[index] for index in range(54)])["style_levels"]
    assert levels.shape == (54, 3) and list(config.lm_config.styles) == ["effort", "energy", "pitch"]
    assert levels[:40, 2].tolist() == 2 * [level for level in range(1, 6) for _ in range(4)]
    assert not levels[40:].any() and not levels[:, 1].any()
    assert "style_levels" not in Collator.for_model(E2ETTSConfig(**composite_settings()))([dataset[0]])


def test_classes_of_a_corpus_are_levels():
    rows = [{**row, "emotion": emotion} for row, emotion in zip(make_rows(3), ["sad", "", "calm"], strict=True)]
    parts = {"lm_config": lm_settings(styles={"emotion": ["calm", "sad"]})}
    config = E2ETTSConfig(**composite_settings(**parts, reward_config=reward_settings(num_emotions=0)))
    dataset = SpeechDataset(Dataset.from_list(rows), Collator.for_model(config).audio_spec)
    items = [dataset[index] for index in range(3)]
    assert Collator.for_model(config)(items)["style_levels"].tolist() == [[2], [0], [1]]
    config.lm_config.set_styles({"emotion": ["calm"]})
    with pytest.raises(ValueError, match=r"emotion 'sad'.*add it to styles\.emotion"):
        Collator.for_model(config)(items)


def test_a_recipe_gives_a_trained_lm_styles(styled, tmp_path):
    folders = make_folders(tmp_path) | {"data": str(styled)}
    data = recipe_values("component", folders)["data"] | {"weights": {}, "eval_rows": 0}
    changes = {"train": ["lm"], "losses": {"lm": 1.0}, "data": data, "style_dropout": 0.4}
    plain = build_trainer(stage_recipe("component", folders, **changes), str(tmp_path / "plain"))
    trainer = build_trainer(
        stage_recipe("component", folders, **changes, styles={"pitch": 5, "effort": 2}), str(tmp_path / "run")
    )
    assert trainer.model.config.styles == {"effort": 2, "pitch": 5} and not trainer.model.decoder.config.styles
    inputs = trainer.data_collator([trainer.train_dataset[index] for index in range(12)])
    drawn = torch.stack([trainer.draw_inputs(inputs, step)["style_levels"] for step in range(100)])
    assert torch.equal(drawn[3], trainer.draw_inputs(inputs, 3)["style_levels"])
    kept = drawn[..., 1] > 0
    assert ((drawn[..., 1] == inputs["style_levels"][:, 1]) == kept).all()
    assert kept.float().mean().item() == pytest.approx(0.6**2, abs=0.05)
    # The same first loss as without styles, for they have learned nothing yet; afterwards they have.
    for one in (plain, trainer):
        one.train()
    first = [next(entry["loss"] for entry in one.state.log_history if "loss" in entry) for one in (plain, trainer)]
    assert first[0] == first[1]
    weight = trainer.model.lm.style_embeddings["pitch"].weight
    assert weight[1:].abs().max() > 0 and not weight[0].any()


def test_the_decoder_learns_styles_by_itself_and_beside_an_lm_that_has_others(styled, tmp_path):
    folders = make_folders(tmp_path) | {"data": str(styled)}
    data = recipe_values("component", folders)["data"] | {"weights": {}, "eval_rows": 0}
    start = build_model(stage_recipe("component", folders, train=["lm"], styles={"effort": 2}))
    start.save_pretrained(tmp_path / "first")
    changes = {"train": ["decoder"], "losses": {"flow": 1.0, "prior": 1.0}, "data": data, "styles": {"pitch": 5}}
    recipe = stage_recipe("component", folders | {"start": str(tmp_path / "first")}, **changes, style_dropout=0.0)
    trainer = build_trainer(recipe, str(tmp_path / "run"))
    trainer.train()
    model = trainer.model
    assert model.config.styles == {"effort": 2, "pitch": 5} and list(model.lm.style_embeddings) == ["effort"]
    assert model.decoder.style_embeddings["pitch"].weight[1:].abs().max() > 0
    assert not model.lm.style_embeddings["effort"].weight.any()


def test_mistakes_are_refused(styled, tmp_path):
    rows = load_prepared([str(styled)], "train")
    with pytest.raises(ValueError, match=r"No row has a label of the style 'energy'.*style_labels.*styles\.csv"):
        check_labels(rows, {"pitch": 5, "energy": 5})
    with pytest.raises(ValueError, match="No row has a label of the style 'emotion'"):
        check_labels(rows, {"emotion": ["sad"]})
    recipe = load_recipe("small_refine_lm", ["styles.pitch=5", "styles.emotion=[sad, calm]", "style_dropout=0.3"])
    assert recipe.styles == {"pitch": 5, "emotion": ["sad", "calm"]} and recipe.style_dropout == 0.3
    assert load_recipe("small_refine_decoder", ["styles.pitch=5"]).styles == {"pitch": 5}
    with pytest.raises(RecipeError, match="by own weights of LM or decoder"):
        load_recipe("small_refine_reward", ["styles.pitch=5"])
    with pytest.raises(RecipeError, match="drop lora"):
        load_recipe("small_finetune_voice", ["styles.pitch=5"])
    with pytest.raises(RecipeError, match="style_dropout is a share"):
        load_recipe("small_refine_lm", ["style_dropout=1.0"])
