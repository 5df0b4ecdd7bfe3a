"""Finite scalar quantisation: a codebook that is a fixed grid, so nothing can collapse by lack of updates."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import initialization as init


def build_codebook(levels: Sequence[int]) -> torch.Tensor:
    """All codes of the grid, shape (prod(levels), D), values evenly spaced in [-1, 1], dimension 0 fastest."""
    count = 1
    for level in levels:
        count *= level
    indices = torch.arange(count)
    columns = []
    for level in levels:
        columns.append((indices % level).float() * (2.0 / (level - 1)) - 1.0)
        indices = indices // level
    return torch.stack(columns, dim=-1)


class FiniteScalarQuantizer(nn.Module):
    """Projections z (B, T, D) -> codes h on the grid (B, T, D) and their indices (B, T).

    Every dimension is bounded, then rounded to one of its levels with a straight-through gradient. With three levels
    the grid is {-1, 0, 1} and index = sum_j (h_j + 1) 3^j (PAPER: section 2).
    """

    def __init__(self, levels: Sequence[int], bounding: str = "sigmoid") -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.bounding = bounding
        self.register_buffer("codebook", torch.empty(0), persistent=False)
        self.register_buffer("steps", torch.empty(0), persistent=False)
        self.register_buffer("basis", torch.empty(0), persistent=False)
        self.fill_buffers(setter=None)

    def fill_buffers(self, setter=init.copy_) -> None:
        """Computes the grid. Called again by `_init_weights`: loading leaves non-persistent buffers unset."""
        steps = torch.tensor([level - 1 for level in self.levels], dtype=torch.float32)
        basis = torch.cumprod(torch.tensor((1, *self.levels[:-1])), dim=0)
        values = {"codebook": build_codebook(self.levels), "steps": steps, "basis": basis}
        for name, value in values.items():
            if setter is None:
                setattr(self, name, value)
            else:
                setter(getattr(self, name), value)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "FiniteScalarQuantizer":
        """Moves the grid with the model, but leaves it in float32: in bfloat16 its levels would not be those that the
        indices mean. Layers that read codes cast them."""
        super()._apply(fn, recurse)
        if self.codebook.dtype != torch.float32:
            self.codebook, self.steps = self.codebook.float(), self.steps.float()
            self.fill_buffers(setter=lambda buffer, value: buffer.copy_(value))
        return self

    @property
    def num_codes(self) -> int:
        return self.codebook.shape[0]

    def bound(self, z: torch.Tensor) -> torch.Tensor:
        """Maps reals to [0, level - 1] in every dimension, differentiably."""
        # The sigmoid with slope 1.6 is close to a Gaussian's distribution function: normal inputs reach all levels.
        unit = torch.sigmoid(1.6 * z) if self.bounding == "sigmoid" else (torch.tanh(z) * 0.999 + 1.0) / 2.0
        return unit * self.steps

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        bounded = self.bound(z.float())
        level = bounded.round()
        straight_through = bounded + (level - bounded).detach()
        codes = straight_through * (2.0 / self.steps) - 1.0
        return codes, self.levels_to_indices(level)

    def levels_to_indices(self, level: torch.Tensor) -> torch.Tensor:
        return (level.long() * self.basis).sum(dim=-1)

    def codes_to_indices(self, codes: torch.Tensor) -> torch.Tensor:
        """Hard codes (..., D) -> indices (...)."""
        return self.levels_to_indices(((codes + 1.0) * (self.steps / 2.0)).round())

    def indices_to_codes(self, indices: torch.Tensor) -> torch.Tensor:
        """Indices (...) -> hard codes (..., D). Raises ValueError for an index that is not a code."""
        if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= self.num_codes):
            raise ValueError(
                f"Speech code indices must lie in 0..{self.num_codes - 1}, got "
                f"{int(indices.min())}..{int(indices.max())}; they come from a different tokenizer or hold controls."
            )
        return self.codebook[indices]
