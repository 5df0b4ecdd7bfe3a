"""Trains the vocoder: spectral losses from the start, discriminators from a given step."""

import os
import typing
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer

from ..modeling.audio_features import MelSpec, MelSpectrogram
from ..modeling.discriminators import (
    Adversarial,
    SpectralLoss,
    VocoderDiscriminator,
    discriminator_loss,
    generator_losses,
)
from .callbacks import StepsAsAsked
from .decoded_mels import MelDecoder
from .recipe_parts import RecipeError, check_positive
from .safety import bad_batch_folder, divergence, is_finite_norm

DISCRIMINATOR_WEIGHTS = "discriminator.safetensors"
DISCRIMINATOR_OPTIMIZER = "discriminator_optimizer.pt"


@dataclass
class VocoderLossSettings:
    """Weights of the named losses and the resolutions of the spectral ones (windows in samples)."""

    fft_sizes: list[int] = field(default_factory=lambda: [128, 256, 512, 1024, 2048])
    log_magnitude: float = 1.0
    convergence: float = 1.0
    mel: float = 2.0
    adversarial: float = 0.2
    feature_matching: float = 0.5


@dataclass
class DiscriminatorSettings:
    """Discriminators, off unless `start_step` is given.

    start_step: first optimizer step that uses them; None for never.
    batch_size, samples: at most this many crops of a batch, and this many samples of each, are judged.
    Others: see `VocoderDiscriminator`, `discriminator_loss`, and AdamW for lr and betas.
    """

    start_step: int | None = None
    kind: str = "lsgan"
    periods: list[int] = field(default_factory=lambda: [2, 3, 5, 7, 11])
    period_channels: list[int] = field(default_factory=lambda: [16, 32, 64, 64])
    fft_sizes: list[int] = field(default_factory=lambda: [256, 512, 1024])
    spectrogram_channels: list[int] = field(default_factory=lambda: [8, 16, 16, 16])
    batch_size: int = 8
    samples: int = 6400
    learning_rate: float = 2e-4
    betas: list[float] = field(default_factory=lambda: [0.8, 0.99])

    def __post_init__(self) -> None:
        if self.kind not in (kinds := typing.get_args(Adversarial)):
            raise RecipeError(f"discriminator.kind must be {' or '.join(kinds)}, got {self.kind!r}.")
        sizes = {name: getattr(self, name) for name in ("batch_size", "samples", "learning_rate")}
        check_positive("discriminator", **sizes)
        if len(self.betas) != 2:
            raise RecipeError(f"discriminator.betas are two numbers, [0.8, 0.99] for example; got {self.betas}.")


class VocoderTrainer(Trainer):
    """`Trainer` for a `VocoderModel` on batches {"waveform": (B, L)}, L a multiple of the mel hop.

    With a mel_decoder the batches also hold "speaker_embedding" (B, S) and "seeds" (B,), and what is learned from are
    mels as it gives them.

    Every named loss is logged as its mean since the last log. Crops come in the data set's own order, so a data set
    whose item depends on (seed, index) makes a killed run resume to the same losses; checkpoints hold the
    discriminators and their optimizer too.

    Raises FloatingPointError, and saves the batch, at a loss that is not finite or above `divergence_factor` times its
    running median (0 is never), and at a gradient that is not finite.
    """

    def __init__(
        self,
        *args: Any,
        loss_settings: VocoderLossSettings | None = None,
        discriminator_settings: DiscriminatorSettings | None = None,
        divergence_factor: float = 10.0,
        mel_decoder: MelDecoder | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.mel_decoder = mel_decoder and mel_decoder.to(self.args.device)
        self.divergence_factor = divergence_factor
        self._target = torch.zeros(0)
        self.add_callback(StepsAsAsked)
        self.loss_settings = loss_settings or VocoderLossSettings()
        self.discriminator_settings = discriminator_settings or DiscriminatorSettings()
        spec = MelSpec.from_dict(self.model.config.mel)
        self.mel_spectrogram = MelSpectrogram(spec).to(self.args.device)
        self.spectral_loss = SpectralLoss(spec, self.loss_settings.fft_sizes).to(self.args.device)
        self.discriminator: VocoderDiscriminator | None = None
        self.discriminator_optimizer: torch.optim.Optimizer | None = None
        if self.discriminator_settings.start_step is not None:
            self._create_discriminator()
        self._sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=self.args.device))
        self._counts: dict[str, int] = defaultdict(int)

    def _create_discriminator(self) -> None:
        settings = self.discriminator_settings
        # An own stream of random numbers: runs with and without discriminators start from the same vocoder.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.args.seed)
            self.discriminator = VocoderDiscriminator(
                settings.periods, settings.period_channels, settings.fft_sizes, settings.spectrogram_channels
            ).to(self.args.device)
        self.discriminator_optimizer = torch.optim.AdamW(
            self.discriminator.parameters(), lr=settings.learning_rate, betas=tuple(settings.betas)
        )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    @property
    def _adversarial(self) -> bool:
        return self.discriminator is not None and self.state.global_step >= self.discriminator_settings.start_step

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        target = inputs["waveform"]
        mel = self.mel_spectrogram(target)
        if model.training and self.mel_decoder is not None:
            mel = self.mel_decoder(mel, target, inputs["speaker_embedding"], inputs["seeds"])
        prediction = model(mel)
        losses = self.spectral_loss(prediction, target)
        if model.training and self._adversarial:
            losses.update(self._adversarial_losses(prediction, target))
        total = sum(getattr(self.loss_settings, name) * value for name, value in losses.items())
        if model.training:
            self._target = target
            if problem := divergence(float(total.detach()), self.state.log_history, self.divergence_factor):
                named = {name: float(value.detach()) for name, value in losses.items()}
                self.stop(f"The loss {problem} at step {self.state.global_step}: {named}.")
            for name, value in losses.items():
                self._record(name, value)
        return (total, prediction) if return_outputs else total

    def stop(self, problem: str) -> None:
        """Saves the last batch to output_dir/bad_batch and raises FloatingPointError."""
        folder = bad_batch_folder(self.args.output_dir, self.state.global_step, self.args.process_index)
        save_file({"waveform": self._target.cpu().contiguous()}, folder / "batch.safetensors")
        raise FloatingPointError(
            f"{problem} Lower the learning rate or the weights of the adversarial losses, or look at the waveforms of "
            f"the step: they are in {folder}."
        )

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor | float | None:
        norm = super()._clip_grad_norm(model)
        if not is_finite_norm(norm, self.accelerator):
            self.stop(f"The gradient is not finite at step {self.state.global_step}.")
        return norm

    def _adversarial_losses(self, prediction: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Trains the discriminators on a part of the batch, then returns the vocoder's losses against them."""
        settings = self.discriminator_settings
        samples = min(settings.samples, target.shape[-1])
        # The part moves with the step, so that all of a crop is judged; no random state has to be saved for it.
        start = (self.state.global_step * 7919) % (target.shape[-1] - samples + 1)
        part = (slice(0, settings.batch_size), slice(start, start + samples))
        real, fake = target[part], prediction[part]

        self.discriminator.train()
        loss = discriminator_loss(self.discriminator(real), self.discriminator(fake.detach()), settings.kind)
        (loss / self.current_gradient_accumulation_steps).backward()
        if self.accelerator.sync_gradients:
            # The discriminators stand outside the prepared model, so their gradients are averaged here.
            for parameter in self.discriminator.parameters():
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
            self.discriminator_optimizer.step()
            self.discriminator_optimizer.zero_grad()
        self._record("discriminator", loss)

        self.discriminator.requires_grad_(False)
        with torch.no_grad():
            real_judged = self.discriminator(real)
        losses = generator_losses(real_judged, self.discriminator(fake), settings.kind)
        self.discriminator.requires_grad_(True)
        return losses

    def _record(self, name: str, value: torch.Tensor) -> None:
        self._sums[name] += value.detach()
        self._counts[name] += 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            for name in sorted(self._sums):
                total = self.accelerator.gather(self._sums[name].reshape(1)).mean().item()
                logs[f"loss_{name}"] = total / self._counts[name]
            self._sums.clear()
            self._counts.clear()
        super().log(logs, start_time)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None, None]:
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.discriminator is not None and self.args.should_save:
            weights = {name: value.contiguous() for name, value in self.discriminator.state_dict().items()}
            save_file(weights, os.path.join(output_dir, DISCRIMINATOR_WEIGHTS))
            torch.save(self.discriminator_optimizer.state_dict(), os.path.join(output_dir, DISCRIMINATOR_OPTIMIZER))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self.discriminator is None:
            return
        weights = os.path.join(checkpoint, DISCRIMINATOR_WEIGHTS)
        # A run may turn its discriminators on only when it is resumed; then the checkpoint has none yet.
        if os.path.isfile(weights):
            self.discriminator.load_state_dict(load_file(weights, device=str(self.args.device)))
            state = torch.load(os.path.join(checkpoint, DISCRIMINATOR_OPTIMIZER), weights_only=True)
            self.discriminator_optimizer.load_state_dict(state)
        elif self.state.global_step > self.discriminator_settings.start_step:
            raise RecipeError(
                f"{checkpoint} is past discriminator.start_step={self.discriminator_settings.start_step} but has no "
                f"{DISCRIMINATOR_WEIGHTS}. Set discriminator.start_step={self.state.global_step} or later to start "
                "them now."
            )
