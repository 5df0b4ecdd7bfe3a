"""The vocoder: exact lengths, batch invariance, saving, losses, seeded crops and an exact resume."""

import io

import numpy as np
import pytest
import soundfile as sf
import torch
from datasets import Dataset

from e2e_tts.modeling.audio_features import MelSpec, MelSpectrogram, length_mask
from e2e_tts.modeling.configuration_vocoder import VocoderConfig
from e2e_tts.modeling.discriminators import SpectralLoss, VocoderDiscriminator, discriminator_loss, generator_losses
from e2e_tts.modeling.griffin_lim import analyse, griffin_lim_spectrum, interpolate_frames, overlap_add
from e2e_tts.modeling.modeling_vocoder import VocoderModel
from e2e_tts.trainers.data.vocoder_data import CropDataset
from e2e_tts.trainers.recipe import load_recipe
from e2e_tts.trainers.train import build_vocoder_trainer

SMALL = {"hidden_size": 16, "num_layers": 2, "intermediate_size": 32}
HIFIGAN = {
    "upsample_initial_channel": 16,
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3], [1, 3]],
}
CONFIGS = {
    "istft": {"architecture": "istft", **SMALL},
    "istft_short_frames": {"architecture": "istft", "istft_n_fft": 640, "istft_hop_length": 160, **SMALL},
    "istft_prior": {"architecture": "istft", "istft_n_fft": 960, "phase_prior_iterations": 3, **SMALL},
    "istft_short_prior": {"istft_n_fft": 480, "istft_hop_length": 80, "phase_prior_iterations": 3, **SMALL},
    "istft_refined": {"istft_n_fft": 960, "phase_prior_iterations": 3, "refine_layers": 2, "refine_size": 8, **SMALL},
    "hifigan": {"architecture": "hifigan", "hifigan": HIFIGAN},
}


def make_model(name: str) -> VocoderModel:
    torch.manual_seed(0)
    model = VocoderModel(VocoderConfig(**CONFIGS[name])).eval()
    # Biases and outputs of a useful size: at the tiny initial scale a leak from padding would go unseen.
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return model


def make_speech(samples: int) -> torch.Tensor:
    """A voiced sweep with some noise, (samples,)."""
    time = torch.arange(samples) / 16000
    phase = 2 * torch.pi * (120 * time + 40 * time**2)
    voice = sum(torch.sin(k * phase) / k for k in range(1, 12))
    return 0.1 * voice + 0.003 * torch.randn(samples, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def dataset() -> Dataset:
    rows = []
    for i, seconds in enumerate([0.5, 0.1, 0.8, 0.6]):
        file = io.BytesIO()
        sf.write(file, make_speech(int(16000 * seconds)).numpy() * (i + 1) / 4, 16000, format="FLAC")
        audio = {"bytes": file.getvalue(), "path": None}
        rows.append({"audio": audio, "seconds": seconds, "source": "ab"[i % 2], "split": "train"})
    return Dataset.from_list(rows)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_utterance_alone_equals_itself_in_a_padded_batch(name):
    model = make_model(name)
    lengths = torch.tensor([9, 1, 5])
    mel = torch.randn(3, 9, 80) * 2 - 5
    mask = length_mask(lengths)
    with torch.no_grad():
        batch = model(mel, mask)
        garbage = model(torch.where(mask[..., None], mel, 7.0), mask)
        assert batch.shape == (3, 9 * 320)
        assert torch.equal(batch, garbage)
        for row, length in enumerate(lengths.tolist()):
            alone = model(mel[row : row + 1, :length])[0]
            assert alone.abs().max() > 1e-3
            torch.testing.assert_close(batch[row, : length * 320], alone, atol=1e-5, rtol=1e-4)
            assert not batch[row, length * 320 :].any()


def test_overlap_add_inverts_a_spectrogram_in_place():
    signal = make_speech(3200)[None]
    for n_fft in (960, 1280):
        window = torch.hann_window(n_fft)
        frames = torch.fft.irfft(analyse(signal, window, 320), n=n_fft)
        torch.testing.assert_close(overlap_add(frames, window, 320), signal, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_and_loaded_gives_the_same(name, tmp_path):
    model = make_model(name)
    model.save_pretrained(tmp_path)
    mel = torch.randn(1, 4, 80)
    with torch.no_grad():
        torch.testing.assert_close(VocoderModel.from_pretrained(tmp_path)(mel), model(mel), atol=0, rtol=0)
        half = VocoderModel.from_pretrained(tmp_path, dtype=torch.bfloat16)(mel)
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        (
            {"architecture": "hifigan", "hifigan": {"upsample_rates": [8, 8], "upsample_kernel_sizes": [16, 16]}},
            "64 320",
        ),
        ({"architecture": "hifigan", "hifigan": {"upsample_kernel_sizes": [16, 10, 8, 4]}}, "10 5"),
        ({"istft_n_fft": 1000}, "1000 320"),
        ({"istft_hop_length": 150}, "150 320"),
        ({"refine_layers": 1, "refine_hop_length": 90}, "refine_hop_length 90 320"),
        ({"refine_layers": 1, "refine_n_fft": 80}, "refine_n_fft 80"),
        ({"mel": {"hop": 3}}, "hop"),
    ],
)
def test_parts_that_do_not_fit_are_refused_with_both_values(settings, values):
    with pytest.raises(ValueError) as error:
        VocoderConfig(**settings)
    assert all(value in str(error.value) for value in values.split())


def test_wrong_shapes_are_refused():
    model = make_model("istft")
    with pytest.raises(ValueError, match="80"):
        model(torch.zeros(1, 4, 40))
    with pytest.raises(ValueError, match="mask"):
        model(torch.zeros(1, 4, 80), torch.ones(1, 5, dtype=torch.bool))


def test_losses_vanish_on_equal_signals_and_reach_the_input():
    loss = SpectralLoss(MelSpec(), fft_sizes=(128, 512))
    target = make_speech(3200)[None]
    assert all(value.item() < 1e-6 for value in loss(target, target).values())
    silence = torch.zeros(1, 3200, requires_grad=True)
    losses = loss(silence, target)
    sum(losses.values()).backward()
    assert set(losses) == {"log_magnitude", "convergence", "mel"}
    assert silence.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["lsgan", "hinge"])
def test_a_discriminator_learns_to_tell_and_guides(kind):
    torch.manual_seed(0)
    discriminator = VocoderDiscriminator([2, 3], [4, 8], [128], [4, 8])
    real = make_speech(2000)[None].repeat(2, 1)
    fake = (0.1 * torch.randn(2, 2000)).requires_grad_()
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = discriminator_loss(discriminator(real), discriminator(fake.detach()), kind)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    sum(generator_losses(discriminator(real), discriminator(fake), kind).values()).backward()
    assert fake.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="Unknown"):
        discriminator_loss(discriminator(real), discriminator(real), "gan")


@pytest.mark.parametrize("frames", [1, 40])
def test_griffin_lim_keeps_length_and_spectrum(frames):
    spec = MelSpec()
    signal = make_speech(frames * 320)[None]
    mel = MelSpectrogram(spec)(signal)
    spectrum = griffin_lim_spectrum(mel, spec, 960, iterations=30)
    waveform = overlap_add(torch.fft.irfft(spectrum, n=960, dim=-1), torch.hann_window(960), spec.hop_length)
    assert waveform.shape == signal.shape and waveform.isfinite().all()
    if frames > 1:
        inner = slice(3, -3)
        assert (MelSpectrogram(spec)(waveform) - mel)[:, inner].abs().mean() < 0.35


def test_crops_depend_on_seed_and_index_alone(dataset):
    crops = CropDataset(dataset, 40, 3200, 16000, seed=3, source_weights={"a": 3.0, "b": 1.0}, gain_db=6.0)
    again = CropDataset(dataset, 40, 3200, 16000, seed=3, source_weights={"a": 3.0, "b": 1.0}, gain_db=6.0)
    other = CropDataset(dataset, 40, 3200, 16000, seed=4, source_weights={"a": 3.0, "b": 1.0}, gain_db=6.0)
    assert torch.equal(crops[31]["waveform"], again[31]["waveform"])
    assert not torch.equal(crops[31]["waveform"], other[31]["waveform"])
    batch = torch.stack([crops[i]["waveform"] for i in range(40)])
    assert batch.shape == (40, 3200) and batch.abs().max() <= 1
    short = CropDataset(dataset.select([1]), 1, 3200, 16000, seed=0)[0]["waveform"]
    assert short[:1600].any() and not short[1600:].any()
    with pytest.raises(ValueError, match="nobody"):
        CropDataset(dataset, 4, 3200, 16000, seed=0, source_weights={"nobody": 1.0})


def write_recipe(path, steps: int, extra: str = "", folder: str = "nowhere") -> str:
    path.write_text(
        f"""
trainer: vocoder
folders: ["{folder}"]
model: {{hidden_size: 16, num_layers: 2, intermediate_size: 32}}
losses: {{fft_sizes: [256, 512]{extra}}}
discriminator:
  {{start_step: 2, samples: 1600, periods: [3], period_channels: [4, 4], fft_sizes: [128],
    spectrogram_channels: [4, 4]}}
crops: {{crop_seconds: 0.2}}
arguments:
  {{max_steps: {steps}, per_device_train_batch_size: 2, logging_steps: 1, save_steps: 4, learning_rate: 1.0e-3,
    disable_tqdm: true, use_cpu: true, seed: 5}}
"""
    )
    return str(path)


def test_a_killed_run_resumes_to_the_same_losses(dataset, tmp_path):
    dataset.save_to_disk(str(tmp_path / "data"))
    recipe = load_recipe(write_recipe(tmp_path / "recipe.yaml", 7, folder=str(tmp_path / "data")))
    whole = build_vocoder_trainer(recipe, str(tmp_path / "run"))
    whole.train()
    resumed = build_vocoder_trainer(recipe, str(tmp_path / "run"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))

    def losses(trainer):
        return {
            log["step"]: {name: value for name, value in log.items() if name.startswith("loss")}
            for log in trainer.state.log_history
            if "loss" in log
        }

    assert "loss_discriminator" not in losses(whole)[2] and "loss_discriminator" in losses(whole)[3]
    assert {step: losses(resumed)[step] for step in (5, 6, 7)} == {step: losses(whole)[step] for step in (5, 6, 7)}
    for ours, theirs in zip(resumed.discriminator.parameters(), whole.discriminator.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_typo_in_a_recipe_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"log_magnitud.*log_magnitude"):
        load_recipe(write_recipe(tmp_path / "recipe.yaml", 1, ", log_magnitud: 1.0"))


def test_the_shipped_recipe_is_readable_and_small():
    recipe = load_recipe("small_vocoder")
    size = sum(parameter.numel() for parameter in VocoderModel(VocoderConfig(**recipe.model)).parameters())
    assert 2 * size < 10e6
    assert np.isclose(sum(recipe.crops.source_weights.values()), 1.0)


def test_a_second_pass_begins_by_changing_nothing_and_learns():
    torch.manual_seed(0)
    plain = VocoderModel(VocoderConfig(**CONFIGS["istft_prior"])).eval()
    refined = VocoderModel(VocoderConfig(**CONFIGS["istft_refined"]))
    assert not refined.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    mel, mask = torch.randn(2, 7, 80) * 2 - 5, length_mask(torch.tensor([7, 4]))
    with torch.no_grad():
        torch.testing.assert_close(refined(mel, mask), plain(mel, mask), atol=1e-5, rtol=1e-4)
    refined(mel, mask).square().mean().backward()
    assert refined.vocoder.refiner.head.weight.grad.abs().max() > 0


def test_interpolated_frames_do_not_look_into_padding():
    mel = torch.arange(4.0)[None, :, None].repeat(2, 1, 3)
    mask = length_mask(torch.tensor([4, 2]))
    mel[1, 2:] = 100.0
    fine = interpolate_frames(mel, 4, mask)[..., 0]
    # Centres of the quarters of a frame, at -3/8, -1/8, 1/8 and 3/8 of it; constant beyond the ends.
    expected = (torch.arange(16) - 1.5) / 4
    torch.testing.assert_close(fine[0], expected.clamp(0, 3))
    torch.testing.assert_close(fine[1, :8], expected[:8].clamp(0, 1))
