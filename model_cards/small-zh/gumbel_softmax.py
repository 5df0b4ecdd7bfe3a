"""Straight-through Gumbel-Softmax over codes: hard forward, soft gradients backward (PAPER section 3, stage 3)."""

import torch

from .randomness import seeded_noise

GUMBEL = 11  # salt of an utterance's Gumbel noise


def gumbel_noise(logits: torch.Tensor, seeds: torch.LongTensor, drawn: torch.LongTensor | None = None) -> torch.Tensor:
    """Noise (B, T, C) that, added to logits (B, T, C), makes their argmax a sample of softmax(logits).

    drawn (B, T): samples that have been taken before. The noise then is distributed as if it had led to just these
    (Paulus, Maddison and Krause, arXiv 2010.04838, equation 11), so that codes drawn one after the other get the
    gradient of those drawn at once.
    """
    noise = seeded_noise(seeds, GUMBEL, logits.shape[1:], logits.device, kind="gumbel")
    if drawn is None:
        return noise
    logits = logits.detach()
    place = drawn[..., None]
    # The highest of all sums is a Gumbel variable at the logarithm of the total mass, whichever of them it is; the
    # others are below it: -log(E_i / exp(l_i) + E_top / Z), with E = exp(-noise) exponential.
    highest = logits.logsumexp(dim=-1, keepdim=True) + noise.gather(-1, place)
    others = -torch.logaddexp(-noise - logits, -highest)
    return others.scatter(-1, place, highest) - logits


def straight_through_codes(
    logits: torch.Tensor,
    codebook: torch.Tensor,
    seeds: torch.LongTensor,
    temperature: float,
    drawn: torch.LongTensor | None = None,
) -> torch.Tensor:
    """Logits (B, T, C) over a codebook (C, D) -> hard codes (B, T, D) with the gradients of soft ones.

    temperature: of the relaxation; the hard codes do not depend on it. drawn (B, T): the codes, where they have been
    drawn already; otherwise they are drawn here, keyed by seeds (B,).
    """
    soft = ((logits + gumbel_noise(logits, seeds, drawn)) / temperature).softmax(dim=-1)
    hard = codebook[soft.argmax(dim=-1) if drawn is None else drawn]
    soft_codes = soft @ codebook
    return hard + (soft_codes - soft_codes.detach())
