"""Exponential moving averages of weights: evaluated and saved in place of the weights that learn."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .recipe_parts import RecipeError

LEARNING_WEIGHTS = "learning_weights.safetensors"


class WeightAverages:
    """Averages of the parameters that learn, module by module.

    modules: name -> module; decays: name -> decay in (0, 1), which grows towards that value over the first steps as
    (1 + step) / (10 + step), so that a short run does not keep its initial weights.

    A saved model holds the averages. What learning goes on from, the weights themselves, lies beside the optimizer's
    state in `LEARNING_WEIGHTS`.
    """

    def __init__(self, modules: Mapping[str, nn.Module], decays: Mapping[str, float]) -> None:
        self.decays = dict(decays)
        self.learning = {
            module: {f"{module}.{name}": p for name, p in modules[module].named_parameters() if p.requires_grad}
            for module in self.decays
        }
        self.averages = {
            module: {name: parameter.detach().clone() for name, parameter in members.items()}
            for module, members in self.learning.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the averages towards the weights after optimizer step `step`, counted from 0."""
        for module, decay in self.decays.items():
            average = get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))
            average(list(self.averages[module].values()), list(self.learning[module].values()), step)

    @torch.no_grad()
    def _exchange(self) -> None:
        for module, members in self.learning.items():
            for name, parameter in members.items():
                average = self.averages[module][name]
                learning = parameter.detach().clone()
                parameter.copy_(average)
                average.copy_(learning)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the averages inside this context."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def save_learning(self, folder: str | Path) -> None:
        """Writes the weights that learn, for `resume`, beside a model that was saved with the averages."""
        weights = {name: p.detach().cpu().contiguous() for part in self.learning.values() for name, p in part.items()}
        save_file(weights, Path(folder) / LEARNING_WEIGHTS)

    @torch.no_grad()
    def resume(self, folder: str | Path) -> None:
        """Takes the averages from the model, which was loaded from `folder`, and the weights that learn from there.

        From a checkpoint without averages, as of a run that had none, the averages start at the loaded weights. Raises
        RecipeError if the checkpoint averages modules that this run does not: their weights would be lost unnoticed.
        """
        for module, members in self.learning.items():
            for name, parameter in members.items():
                self.averages[module][name].copy_(parameter)
        file = Path(folder) / LEARNING_WEIGHTS
        stored = load_file(file) if file.is_file() else {}
        dropped = {name.split(".")[0] for name in stored} - set(self.learning)
        if dropped:
            raise RecipeError(
                f"{folder} was saved with averages of {', '.join(sorted(dropped))}, which this recipe's ema does not "
                "name: give it the same ema, or start anew with --fresh."
            )
        for members in self.learning.values():
            for name, parameter in members.items():
                if name in stored:
                    parameter.copy_(stored[name])


class UpdateAverages(TrainerCallback):
    """Updates the averages after every optimizer step."""

    def __init__(self, averages: WeightAverages) -> None:
        self.averages = averages

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.averages.update(state.global_step)
