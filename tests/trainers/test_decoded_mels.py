"""Mels as a checkpoint's decoder has them, for the vocoder to learn from."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from factories import composite_settings, make_composite, make_dataset, random_tensor, vocoder_settings

from e2e_tts.modeling import E2ETTSConfig, E2ETTSModel, VocoderConfig
from e2e_tts.modeling.audio_features import MelSpec, MelSpectrogram
from e2e_tts.trainers import train
from e2e_tts.trainers.decoded_mels import DecodedSettings, MelDecoder
from e2e_tts.trainers.recipe import load_recipe
from e2e_tts.trainers.recipe_parts import RecipeError

VOCODER = VocoderConfig(**vocoder_settings())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("checkpoint"))
    make_composite().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def crops() -> dict[str, torch.Tensor]:
    """Four crops of eight mel frames."""
    waveform = 0.1 * random_tensor(4, 8 * 320)
    mel = MelSpectrogram(MelSpec.from_dict(VOCODER.mel))(waveform)
    voices = random_tensor(4, make_composite().config.speaker_config.embedding_size)
    return {"mel": mel, "waveform": waveform, "speaker_embedding": voices, "seeds": torch.arange(4) + 5}


def decoded(checkpoint: str, crops: dict, rows: list[int] | None = None, **settings) -> torch.Tensor:
    decoder = MelDecoder(DecodedSettings(checkpoint, **settings), VOCODER, [])
    return decoder(**{name: value if rows is None else value[rows] for name, value in crops.items()})


def test_a_share_of_the_crops_is_decoded(checkpoint, crops):
    assert torch.equal(decoded(checkpoint, crops, share=0.0), crops["mel"])
    changed = (decoded(checkpoint, crops, share=1.0) - crops["mel"]).abs().amax(dim=(1, 2))
    assert bool((changed > 0.1).all())
    many = crops | {"mel": crops["mel"][:1].repeat(64, 1, 1), "waveform": crops["waveform"][:1].repeat(64, 1)}
    many |= {"speaker_embedding": crops["speaker_embedding"][:1].repeat(64, 1), "seeds": torch.arange(64)}
    half = (decoded(checkpoint, many, share=0.5) != many["mel"]).any(dim=2).any(dim=1)
    assert 20 <= int(half.sum()) <= 44


def test_the_later_decoding_starts_the_more_of_the_true_mel_stays(checkpoint, crops):
    times = (0.0, 0.5, 0.9, 0.999)
    errors = [
        float((decoded(checkpoint, crops, share=1.0, from_time=[time, time]) - crops["mel"]).square().mean())
        for time in times
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-3 * errors[0]


def test_a_crop_is_decoded_alike_in_any_batch(checkpoint, crops):
    together = decoded(checkpoint, crops, share=0.7, from_time=[0.4, 0.4])
    for row in range(4):
        alone = decoded(checkpoint, crops, [row], share=0.7, from_time=[0.4, 0.4])
        torch.testing.assert_close(alone[0], together[row], atol=1e-4, rtol=1e-4)


def recipe_of(tmp_path: Path, checkpoint: str, **changes) -> str:
    values = {
        "trainer": "vocoder",
        "folders": [str(tmp_path / "data")],
        "model": vocoder_settings(),
        "losses": {"fft_sizes": [256]},
        "decoded": {"model": checkpoint},
        "crops": {"crop_seconds": 0.18, "eval_crops": 2},
        "arguments": {
            "max_steps": 3,
            "save_steps": 1,
            "logging_steps": 1,
            "per_device_train_batch_size": 2,
            "lr_scheduler_type": "constant",
            "use_cpu": True,
        },
        **changes,
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    return str(tmp_path / "recipe.yaml")


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_a_run_learns_from_decoded_mels_and_resumes_to_the_same_losses(checkpoint, tmp_path):
    make_dataset(str(tmp_path / "data"))
    command = ["--recipe", recipe_of(tmp_path, checkpoint), "--output_dir"]
    train.main([*command, str(tmp_path / "whole")])
    train.main([*command, str(tmp_path / "parts"), "--max_steps", "2"])
    train.main([*command, str(tmp_path / "parts")])
    train.main([*command, str(tmp_path / "true"), "--set", "decoded.share=0"])
    whole = losses(tmp_path / "whole")
    assert losses(tmp_path / "parts") == pytest.approx(whole, rel=1e-5)
    assert losses(tmp_path / "true") != pytest.approx(whole, rel=1e-3)
    # 0.18 s are nine frames of the mel, which are no whole tokens.
    trainer = train.build_vocoder_trainer(load_recipe(command[1]), str(tmp_path / "run"))
    assert trainer.train_dataset[0]["waveform"].shape == (10 * 320,)


def test_what_cannot_be_decoded_is_refused(checkpoint, tmp_path):
    rows = Dataset.load_from_disk(make_dataset(str(tmp_path / "data")))

    def build(decoded: dict, **changes) -> None:
        train.build_vocoder_trainer(load_recipe(recipe_of(tmp_path, checkpoint, decoded=decoded, **changes)), "run")

    with pytest.raises(RecipeError, match=r"no checkpoint can be loaded from .*absent"):
        build({"model": str(tmp_path / "absent")})
    with pytest.raises(RecipeError, match=r"decoder is one module"):
        build({"model": f"{checkpoint}/decoder"})
    with pytest.raises(RecipeError, match=r"decoded\.share must be between 0 and 1"):
        build({"model": checkpoint, "share": 1.5})
    with pytest.raises(RecipeError, match=r"decoded\.from_time are two times"):
        build({"model": checkpoint, "from_time": [0.7, 0.2]})
    mel = VOCODER.mel | {"num_mel_bins": 64}
    parts = composite_settings()
    parts = {name: parts[name] | {"mel": mel} for name in ("decoder_config", "vocoder_config")}
    E2ETTSModel(E2ETTSConfig(**composite_settings(**parts))).save_pretrained(tmp_path / "other")
    with pytest.raises(RecipeError, match=r"mel and the vocoder's differ \(num_mel_bins: 64 vs 80"):
        build({"model": str(tmp_path / "other")})
    rows.remove_columns(["text_ids", "ctc_labels", "speaker_embedding"]).save_to_disk(tmp_path / "bare")
    with pytest.raises(ValueError, match="annotate"):
        build({"model": checkpoint}, folders=[str(tmp_path / "bare")])
