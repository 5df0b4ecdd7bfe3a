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
    first: int = 0,
) -> torch.Tensor:
    """Noise (B, T, n), drawn frame after frame, so that padding an utterance does not change its own noise.

    kind: "normal", "gumbel" (standard, for the Gumbel-Softmax trick) or "uniform" in [0, 1). first: the frame of the
    utterance at which the noise begins; a part of an utterance then gets the noise that it has in the whole.
    """
    shape = (first + shape[0], *shape[1:])
    rows = []
    for generator in _generators(seeds, salt):
        if kind == "normal":
            # torch.randn fills in blocks that depend on the size of the tensor; uniforms come one after the other.
            uniform = torch.rand((*shape, 2), generator=generator).clamp_min(1e-12)
            rows.append((-2.0 * uniform[..., 0].log()).sqrt() * torch.cos(2.0 * torch.pi * uniform[..., 1]))
        elif kind == "gumbel":
            uniform = torch.rand(shape, generator=generator).clamp(1e-10, 1.0 - 1e-7)
            rows.append(-(-uniform.log()).log())
        elif kind == "uniform":
            rows.append(torch.rand(shape, generator=generator))
        else:
            raise ValueError(f"Unknown kind of noise {kind!r}; use 'normal', 'gumbel' or 'uniform'.")
    return torch.stack(rows)[:, first:].to(device)
