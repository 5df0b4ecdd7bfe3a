"""Random draws keyed by utterance: the same in any batch, on any number of processes, after any resume."""

from collections.abc import Sequence

import torch


def _generators(seeds: torch.Tensor | Sequence[int], salt: int) -> list[torch.Generator]:
    # A large odd multiplier separates the streams of one utterance (noise, time, dropout) from each other.
    values = seeds.tolist() if isinstance(seeds, torch.Tensor) else seeds
    return [torch.Generator().manual_seed((int(s) * 1_000_003 + salt * 7_919) % (2**63 - 1)) for s in values]


def seeded_uniform(seeds: torch.Tensor, salt: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """One uniform number in [0, 1) per utterance, shape (B,)."""
    return torch.stack([torch.rand((), generator=g) for g in _generators(seeds, salt)]).to(device)


def seeded_noise(
    seeds: torch.Tensor,
    salt: int,
    shape: tuple[int, int],
    device: torch.device | str = "cpu",
    kind: str = "normal",
) -> torch.Tensor:
    """Noise (B, T, n), drawn frame after frame, so that padding an utterance does not change its own noise.

    kind: "normal", "gumbel" (standard, for the Gumbel-Softmax trick) or "uniform" in [0, 1).
    """
    rows = []
    for generator in _generators(seeds, salt):
        if kind == "normal":
            rows.append(_normal(shape, generator))
        elif kind == "gumbel":
            uniform = torch.rand(shape, generator=generator).clamp(1e-10, 1.0 - 1e-7)
            rows.append(-(-uniform.log()).log())
        elif kind == "uniform":
            rows.append(torch.rand(shape, generator=generator))
        else:
            raise ValueError(f"Unknown kind of noise {kind!r}; use 'normal', 'gumbel' or 'uniform'.")
    return torch.stack(rows).to(device)


def _normal(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    # torch.randn fills in blocks that depend on the size of the tensor; uniforms come one after the other.
    uniform = torch.rand((*shape, 2), generator=generator).clamp_min(1e-12)
    return (-2.0 * uniform[..., 0].log()).sqrt() * torch.cos(2.0 * torch.pi * uniform[..., 1])


class NoiseWindow:
    """The normal noise of one utterance, that of `seeded_noise`, in windows that only move forward.

    What lies before the last window is forgotten, so memory and time do not grow with the utterance.
    """

    def __init__(self, seeds: torch.Tensor | Sequence[int], salt: int, size: int) -> None:
        """seeds (1,) and salt key the noise, size is its number of columns."""
        (self._generator,) = _generators(seeds, salt)
        self._first, self._kept = 0, torch.zeros(0, size)

    def take(self, first: int, count: int) -> torch.Tensor:
        """Frames first to first + count of the utterance, (1, count, n).

        Raises ValueError for a window that begins before the last one.
        """
        if first < self._first:
            raise ValueError(f"The noise before frame {self._first} is forgotten, so none begins at {first}.")
        if (missing := first + count - self._first - len(self._kept)) > 0:
            self._kept = torch.cat([self._kept, _normal((missing, self._kept.shape[1]), self._generator)])
        self._kept, self._first = self._kept[first - self._first :], first
        return self._kept[None, :count]
