"""What a stage logs between two entries of its log: means of the named losses, and statistics of the tokens."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from accelerate import Accelerator

from e2e_tts.modeling.modeling_e2e_tts import E2ETTSOutput

from .data.speech_data import UNLABELLED


def named_losses(output: E2ETTSOutput) -> dict[str, float]:
    """The losses that a model has given, by their names in its output."""
    return {name: float(value.detach()) for name, value in output.items() if "loss" in name and value is not None}


def rows_of_loss(name: str, inputs: Mapping[str, torch.Tensor]) -> int:
    """How many rows of a batch a named loss is the mean of: that of emotions is 0, and says nothing, without labels."""
    labels = inputs.get("emotion_labels") if name.endswith("_ser") else None
    return len(inputs["input_features"]) if labels is None else int((labels != UNLABELLED).sum())


def token_statistics(counts: torch.Tensor) -> dict[str, float]:
    """Code counts (C,) -> entropy in bits and the share of codes that occur."""
    probabilities = counts.double() / counts.sum().clamp_min(1)
    entropy = -(probabilities * probabilities.clamp_min(1e-30).log2()).sum()
    return {"token_entropy": float(entropy), "code_use": float((counts > 0).double().mean())}


class LossLog:
    """Sums over batches since the last log. A loss's mean is that over the batches that have rows for it."""

    def __init__(self, num_codes: int) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.batches: dict[str, int] = defaultdict(int)
        self.code_counts = torch.zeros(num_codes, dtype=torch.long)

    def add(self, losses: Mapping[str, float], inputs: Mapping[str, torch.Tensor], output: E2ETTSOutput) -> None:
        """Counts a batch in, its losses being `named_losses` of the output."""
        for name, value in losses.items():
            self.sums[name] += value
            self.batches[name] += rows_of_loss(name, inputs) > 0
        if output.too_short is not None:
            self.sums["rows_too_short"] += float(output.too_short.float().mean())
            self.batches["rows_too_short"] += 1
        self.code_counts += torch.bincount(output.ids[output.mask].cpu(), minlength=len(self.code_counts))

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """What to log, over all processes, which have to call this together; sums start anew. Empty without batches.

        A loss that no batch has had rows for is left out.
        """
        if not self.sums:
            return {}
        totals = torch.tensor([[*self.sums.values()], [*self.batches.values()]], device=accelerator.device)
        sums, batches = accelerator.reduce(totals).tolist()
        counts = accelerator.reduce(self.code_counts.to(accelerator.device))
        means = zip(self.sums, sums, batches, strict=True)
        logs = {name: round(total / number, 5) for name, total, number in means if number}
        logs |= {name: round(value, 4) for name, value in token_statistics(counts).items()}
        self.sums.clear()
        self.batches.clear()
        self.code_counts.zero_()
        return logs
