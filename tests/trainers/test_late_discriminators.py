"""Discriminators that a vocoder's run turns on when it is resumed."""

import json

import pytest
from factories import vocoder_settings
from stages import make_folders

from e2e_tts.trainers import train
from e2e_tts.trainers.vocoder_trainer import DISCRIMINATOR_WEIGHTS


def test_discriminators_are_turned_on_from_the_checkpoint_on(tmp_path):
    folders = make_folders(tmp_path)
    small = {"samples": 1600, "periods": [3], "period_channels": [4, 4], "fft_sizes": [128]}
    values = {
        "trainer": "vocoder",
        "folders": [folders["data"]],
        "model": vocoder_settings(),
        "losses": {"fft_sizes": [256]},
        "discriminator": {**small, "spectrogram_channels": [4, 4]},
        "crops": {"crop_seconds": 0.2, "source_weights": {"first": 1.0}},
        "arguments": {"max_steps": 3, "save_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    command = ["--recipe", str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "run"), "--max_steps"]
    train.main([*command, "2"])
    with pytest.raises(SystemExit, match=r"checkpoint-2 is past .*Set discriminator\.start_step=2 or later"):
        train.main([*command, "3", "--set", "discriminator.start_step=1"])
    train.main([*command, "3", "--set", "discriminator.start_step=2"])
    assert (tmp_path / "run" / "checkpoint-3" / DISCRIMINATOR_WEIGHTS).is_file()
    assert not (tmp_path / "run" / "checkpoint-2" / DISCRIMINATOR_WEIGHTS).exists()
