"""Phase from magnitude without weights: the Griffin-Lim algorithm on mels, as a prior of the vocoder or by itself."""

import math
from dataclasses import replace
from functools import lru_cache

import torch
from torch.nn import functional as F

from .audio_features import MelSpec, mel_filterbank


def overlap_add(
    frames: torch.Tensor, window: torch.Tensor, hop_length: int, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Least-squares synthesis: frames (B, N, n_fft) -> (B, N * hop_length), frame t centred on hop t.

    Args:
        frames: not yet windowed for synthesis; n_fft is a multiple of hop_length and n_fft - hop_length is even.
        window: (n_fft,), of the analysis too.
        mask: (B, N) boolean. Masked frames count neither in the sum nor in the window envelope, as if the utterance
            ended there, and their samples are zero.
    """
    count, n_fft = frames.shape[1:]
    valid = frames.new_ones(1, count, 1) if mask is None else mask[..., None].to(frames.dtype)
    signal = _shift_and_sum(frames * (window * valid), hop_length)
    envelope = _shift_and_sum(window.square() * valid, hop_length)
    trim = (n_fft - hop_length) // 2
    inside = slice(trim, trim + count * hop_length)
    # The clamp only acts in padding, where both are zero.
    waveform = signal[:, inside] / envelope[:, inside].clamp_min(1e-8)
    return waveform if mask is None else waveform * mask.repeat_interleave(hop_length, dim=1)


def _shift_and_sum(frames: torch.Tensor, hop_length: int) -> torch.Tensor:
    """(B, N, P * hop): block p of frame t lands on hop t + p; returns (B, (N + P - 1) * hop)."""
    blocks = frames.unflatten(-1, (-1, hop_length))
    pieces = blocks.shape[2]
    return sum(F.pad(blocks[:, :, p], (0, 0, p, pieces - 1 - p)) for p in range(pieces)).flatten(1)


def analyse(waveform: torch.Tensor, window: torch.Tensor, hop_length: int) -> torch.Tensor:
    """Waveform (B, N * hop_length) -> complex spectrum (B, N, n_fft // 2 + 1) of the frames `overlap_add` takes."""
    n_fft = window.shape[0]
    pad = (n_fft - hop_length) // 2
    return torch.fft.rfft(F.pad(waveform, (pad, pad)).unfold(-1, n_fft, hop_length) * window, dim=-1)


@lru_cache(maxsize=8)
def _filters(spec: MelSpec, n_fft: int) -> torch.Tensor:
    """The mel filters at the resolution of n_fft, (n_fft // 2 + 1, n_mels); building them is slow, hence the cache."""
    return mel_filterbank(replace(spec, n_fft=n_fft, win_length=n_fft))


def mel_to_magnitude(mel: torch.Tensor, spec: MelSpec, n_fft: int, iterations: int = 20) -> torch.Tensor:
    """Natural-log mel (B, T, n_mels) -> magnitudes (B, T, n_fft // 2 + 1) whose mel comes close to it.

    n_fft may differ from the mel's; magnitudes grow with the window as those of tones do. Multiplicative updates of
    non-negative least squares: they keep the sign and need no step size.
    """
    filters = _filters(spec, n_fft).to(mel.device)
    target = mel.float().exp() * (n_fft / spec.win_length)
    wanted = target @ filters.T
    magnitude = wanted.clamp_min(1e-8)
    for _ in range(iterations):
        magnitude = magnitude * wanted / (magnitude @ filters @ filters.T).clamp_min(1e-10)
    return magnitude


def initial_phase(frames: int, n_fft: int, hop_length: int, first_frame: int = 0) -> torch.Tensor:
    """(frames, n_fft // 2 + 1): scattered over frequency, and in time advancing as a tone in each bin would.

    Computed, not drawn: the same for a frame whatever the length of its utterance, counted from first_frame.
    """
    bins = torch.arange(n_fft // 2 + 1)
    # Fractions of an irrational number times squares scatter evenly without a random generator.
    scattered = (bins.double().square() * (math.sqrt(5) - 1) / 2) % 1
    frame = torch.arange(first_frame, first_frame + frames)[:, None]
    turns = scattered + (frame * (bins * hop_length % n_fft) % n_fft).double() / n_fft
    return (2 * math.pi * (turns % 1)).float()


def interpolate_frames(mel: torch.Tensor, count: int, mask: torch.Tensor | None = None) -> torch.Tensor:
    """(B, T, n_mels) -> (B, T * count, n_mels): linear in time, constant beyond the first and the last frame, the last
    being that of each row's mask (B, T)."""
    before = torch.cat([mel[:, :1], mel[:, :-1]], dim=1)
    after = torch.cat([mel[:, 1:], mel[:, -1:]], dim=1)
    if mask is not None:
        after = torch.where(F.pad(mask[:, 1:], (0, 1))[..., None], after, mel)
    places = (torch.arange(count, device=mel.device) + 0.5) / count - 0.5
    parts = [mel + abs(place) * ((before if place < 0 else after) - mel) for place in places.tolist()]
    return torch.stack(parts, dim=2).flatten(1, 2)


@torch.no_grad()
def griffin_lim_spectrum(
    mel: torch.Tensor,
    spec: MelSpec,
    n_fft: int,
    iterations: int,
    mask: torch.Tensor | None = None,
    first_frame: int = 0,
    hop_length: int | None = None,
) -> torch.Tensor:
    """Natural-log mel (B, T, n_mels) -> complex spectrum (B, N, n_fft // 2 + 1) with nearly consistent phases.

    The accelerated algorithm (momentum 0.99). hop_length: that of the spectrum, by default the mel's, of which it is a
    divisor, and n_fft a multiple; N = T * mel hop / hop_length. The result for a frame does not depend on padding,
    given its mask (B, T), and carries no gradient. first_frame: where in its utterance the mel begins, so that the
    phases of a part go with those of the whole.
    """
    hop_length = hop_length or spec.hop_length
    count = spec.hop_length // hop_length
    if count > 1:
        mel = interpolate_frames(mel.float(), count, mask)
        mask = None if mask is None else mask.repeat_interleave(count, dim=1)
        first_frame *= count
    # In float16 the smallest magnitudes would be zero divided by zero, so autocast is off here.
    with torch.autocast(mel.device.type, enabled=False):
        return _griffin_lim(mel.float(), spec, n_fft, hop_length, iterations, mask, first_frame)


def _griffin_lim(
    mel: torch.Tensor,
    spec: MelSpec,
    n_fft: int,
    hop_length: int,
    iterations: int,
    mask: torch.Tensor | None,
    first_frame: int,
) -> torch.Tensor:
    magnitude = mel_to_magnitude(mel, spec, n_fft)
    if mask is not None:
        magnitude = magnitude * mask[..., None]
    window = torch.hann_window(n_fft, device=mel.device)
    phase = initial_phase(mel.shape[1], n_fft, hop_length, first_frame).to(mel.device)
    estimate = torch.polar(torch.ones_like(phase), phase)
    previous = torch.zeros_like(magnitude, dtype=estimate.dtype)
    for _ in range(iterations):
        frames = torch.fft.irfft(magnitude * estimate, n=n_fft, dim=-1)
        rebuilt = analyse(overlap_add(frames, window, hop_length, mask), window, hop_length)
        accelerated = rebuilt - 0.99 / 1.99 * previous
        estimate = accelerated / accelerated.abs().clamp_min(1e-8)
        previous = rebuilt
    return magnitude * estimate
