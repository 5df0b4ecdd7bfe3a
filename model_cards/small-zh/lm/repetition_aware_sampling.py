"""Repetition-aware sampling as a transformers LogitsProcessor (Chen et al., VALL-E 2, arXiv 2406.05370)."""

from collections.abc import Sequence

import torch
from transformers.generation import LogitsProcessor


class RepetitionAwareSampling(LogitsProcessor):
    """Draws from the nucleus; a token drawn too often of late is drawn again from the full distribution without it.

    The processor returns scores in which only the drawn token is possible, so it decides and `generate` follows. A
    token is "too often" if it stands at least `limit` times among the last `window` tokens; `exempt` ids never are.
    `generator` (on the device of the scores) makes the draws independent of what else the process draws.
    """

    def __init__(
        self,
        top_k: int = 25,
        top_p: float = 0.8,
        temperature: float = 1.0,
        window: int = 10,
        limit: int = 1,
        exempt: Sequence[int] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        if top_k < 1 or not 0.0 < top_p <= 1.0 or temperature <= 0.0:
            raise ValueError(
                f"Sampling needs top_k >= 1, 0 < top_p <= 1 and temperature > 0, got {top_k}, {top_p}, {temperature}."
            )
        self.top_k, self.top_p, self.temperature = top_k, top_p, temperature
        self.window, self.limit = window, limit
        self.exempt = tuple(exempt)
        self.generator = generator

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        probabilities = (scores.float() / self.temperature).softmax(dim=-1)
        top, order = probabilities.topk(min(self.top_k, scores.shape[-1]), dim=-1)
        # A token belongs to the nucleus while the mass before it is below top_p; the first always does.
        nucleus = top * (top.cumsum(dim=-1) - top < self.top_p)
        drawn = order.gather(1, torch.multinomial(nucleus, 1, generator=self.generator))
        recent = input_ids[:, -self.window :] if self.window else input_ids[:, :0]
        repeated = (recent == drawn).sum(dim=1, keepdim=True) >= self.limit
        for token in self.exempt:
            repeated &= drawn != token
        if repeated.any():
            others = probabilities.scatter(1, drawn, 0.0)
            usable = others.sum(dim=-1, keepdim=True) > 0
            weights = torch.where(usable, others, probabilities)
            again = torch.multinomial(weights, 1, generator=self.generator)
            drawn = torch.where(repeated, again, drawn)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)
