"""An inaudible mark in speech of cloned voices, by which `e2e-tts detect` tells it from recordings.

The mark and the weights that write and read it are those of Perth (resemble-perth, by Resemble AI, MIT): a change of a
few decibels below 2 kHz, where the speech itself hides it; any Perth detector finds it. It says that speech was made,
not by whom. It survives resampling, lossy formats and, mostly, noise, but not somebody who sets out to remove it: the
detector is public.

Of the package only the weights are read. Its own code declares no dependencies, needs a torchaudio and a pkg_resources
that many machines do not have, and prints to standard output, where speech may be going.

The file travels with checkpoints, so it imports nothing of this package but its neighbours in the folder.
"""

import functools
import importlib.util
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
import yaml
from torch import nn

PACKAGE, DISTRIBUTION = "perth", "resemble-perth"
MODEL_FOLDER = Path("perth_net") / "pretrained" / "implicit"
# Levels are counted from the quietest magnitude of the settings up to this many dB above full scale.
HEADROOM_DB = 15.0
# A frame below this share of the loudest one's level is taken for silence: it is neither marked nor read.
QUIET_SHARE = 0.05
# The reader listens at these paces, for speech that was slowed down or sped up after it was marked.
PACES = {"slow_layers": 1.25, "normal_layers": 1.0, "fast_layers": 0.75}
THRESHOLD = 0.5
# Below a second one unmarked clip in twenty is taken for a marked one.
SHORTEST_SECONDS = 1.0
# Long recordings are read in parts of about this length: memory stays bounded, and a few marked seconds are found.
PART_SECONDS = 10.0
# Up to this length speech is marked as a whole, longer speech as a stream of such parts.
WHOLE_SECONDS = 60.0
# How far the writer looks back: 15 frames of 10 ms on account of its convolutions, and the window of a frame.
CONTEXT_SECONDS = 0.25
FADE_SECONDS = 0.01

MISSING = (
    f"The package that marks cloned speech inaudibly is missing. To mark it: pip install {DISTRIBUTION}. To go without "
    "the mark and this message: watermark=False, or --no-watermark on the command line."
)


class WatermarkMissingError(ImportError):
    """The package with the mark, or one that it needs, is not installed."""


@dataclass(frozen=True)
class Detection:
    """What was found in a recording.

    confidence: 0 to 1, of the part that speaks loudest for a mark. start, end: in seconds, where the first marked part
    begins and the last one ends; None where nothing is marked.
    """

    confidence: float
    start: float | None = None
    end: float | None = None

    @property
    def is_marked(self) -> bool:
        return self.start is not None


@dataclass(frozen=True)
class PerthSettings:
    """The settings that the weights were trained with: Hz, samples, and the smallest magnitude that counts."""

    sample_rate: int
    n_fft: int
    hop_size: int
    window_size: int
    max_wmark_freq: int
    hidden_size: int
    stft_magnitude_min: float

    @classmethod
    def read(cls, path: Path) -> "PerthSettings":
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return cls(**{name: values[name] for name in cls.__dataclass_fields__})

    @property
    def bands(self) -> int:
        """How many of the lowest frequency bins hold the mark."""
        return round((self.n_fft // 2 + 1) * self.max_wmark_freq / (self.sample_rate / 2))


def _stack(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Convolutions over frames, named as in Perth's weights."""

    def layer(channels: int, kernel: int) -> nn.Sequential:
        conv = nn.Conv1d(channels, hidden, kernel, padding=kernel // 2)
        return nn.Sequential(OrderedDict(conv=conv, activation=nn.LeakyReLU()))

    last = nn.Sequential(OrderedDict(conv=nn.Conv1d(hidden, outputs, 1)))
    return nn.Sequential(layer(inputs, 1), *(layer(hidden, 7) for _ in range(5)), last)


class Watermark(nn.Module):
    """Writes and reads the mark. Waveforms are float32 arrays (samples,) in [-1, 1], at any rate in Hz."""

    def __init__(self, settings: PerthSettings) -> None:
        super().__init__()
        self.settings = settings
        bands, hidden = settings.bands, settings.hidden_size
        self.encoder = nn.ModuleDict({"layers": _stack(bands, hidden, bands)})
        self.decoder = nn.ModuleDict({name: _stack(bands, hidden, 2) for name in PACES})
        self.register_buffer("window", torch.hann_window(settings.window_size), persistent=False)

    @classmethod
    def from_folder(cls, folder: Path) -> "Watermark":
        """The network in the folder of a Perth model. Raises WatermarkMissingError for what cannot be read as one."""
        try:
            mark = cls(PerthSettings.read(folder / "hparams.yaml"))
            (weights,) = folder.glob("*.pth.tar")
            # weights_only: tensors and nothing else, whatever the file holds.
            state = torch.load(weights, map_location="cpu", weights_only=True)["model"]
            mark.load_state_dict({name: value for name, value in state.items() if not name.startswith("ap.")})
        except (OSError, LookupError, TypeError, ValueError, RuntimeError, yaml.YAMLError, UnpicklingError) as error:
            raise WatermarkMissingError(
                f"The installed {DISTRIBUTION} does not hold the watermark that this code knows ({error}); install it "
                f'again: pip install --force-reinstall --no-deps "{DISTRIBUTION}<2".'
            ) from error
        return mark.eval().requires_grad_(False)

    def apply(self, samples: np.ndarray, sampling_rate: int) -> np.ndarray:
        """The same speech with the mark in it, of the same length, in memory that does not grow with it."""
        size = round(WHOLE_SECONDS * sampling_rate)
        if len(samples) <= size:
            return samples + self.residual(samples, sampling_rate)
        stream = self.stream(sampling_rate)
        return np.concatenate([stream.push(samples[start : start + size]) for start in range(0, len(samples), size)])

    def stream(self, sampling_rate: int) -> "WatermarkStream":
        """Marks speech that comes in chunks."""
        return WatermarkStream(self, sampling_rate)

    @torch.no_grad()
    def residual(self, samples: np.ndarray, sampling_rate: int) -> np.ndarray:
        """What marking adds to a waveform: float32 (samples,)."""
        if not len(samples):
            return np.zeros(0, np.float32)
        spectrum, length = self._spectrum(samples, sampling_rate)
        bands = self.settings.bands
        level, loud = self._levels(spectrum)
        change = self.encoder["layers"](level[:, :bands]) * loud
        added = torch.zeros_like(spectrum)
        added[:, :bands] = spectrum[:, :bands] * (10.0 ** (change * self._span / 20.0) - 1.0)
        waveform = torch.istft(added, **self._stft, length=length)[0].numpy()
        waveform = _resample(waveform, self.settings.sample_rate, sampling_rate)[: len(samples)]
        return np.pad(waveform, (0, len(samples) - len(waveform)))

    def detect(self, samples: np.ndarray, sampling_rate: int) -> Detection:
        """Looks for the mark. Raises ValueError for a recording that is too short to tell, or without any sound."""
        seconds = len(samples) / sampling_rate
        if seconds < SHORTEST_SECONDS:
            raise ValueError(f"{seconds:.2f} s are too short to find a mark in; {SHORTEST_SECONDS:g} s are needed.")
        if not np.any(samples):
            raise ValueError("The recording is silent: there is nothing to find a mark in.")
        parts = np.array_split(samples, max(1, round(seconds / PART_SECONDS)))
        confidences = [self._confidence(part, sampling_rate) for part in parts]
        ends = np.cumsum([len(part) for part in parts]) / sampling_rate
        marked = [index for index, confidence in enumerate(confidences) if confidence >= THRESHOLD]
        if not marked:
            return Detection(max(confidences))
        start = float(ends[marked[0]] - len(parts[marked[0]]) / sampling_rate)
        return Detection(max(confidences), start, float(ends[marked[-1]]))

    @torch.no_grad()
    def _confidence(self, samples: np.ndarray, sampling_rate: int) -> float:
        if not np.any(samples):
            return 0.0
        level, loud = self._levels(self._spectrum(samples, sampling_rate)[0])
        level = level[:, : self.settings.bands]
        weights, marks = [], []
        for name, pace in PACES.items():
            frames = int(level.shape[-1] * pace)
            stretched = nn.functional.interpolate(level, size=frames, mode="linear", align_corners=True)
            mask = nn.functional.interpolate(loud[:, None], size=frames, mode="nearest")
            # A weight of the pace and the evidence for a mark, both means over the frames that are not silence.
            weight, mark = ((self.decoder[name](stretched) * mask).sum(-1) / mask.sum(-1).clip(min=1.0))[0]
            weights.append(weight)
            marks.append(mark)
        evidence = (torch.stack(weights).softmax(0) * torch.stack(marks)).sum()
        return float(evidence.clip(0.0, 1.0))

    def _spectrum(self, samples: np.ndarray, sampling_rate: int) -> tuple[torch.Tensor, int]:
        """The spectrum (1, bins, frames) of a waveform, and the number of samples that it stands for."""
        waveform = torch.from_numpy(_resample(samples, sampling_rate, self.settings.sample_rate))[None]
        # Reflection at the edges needs more than half a window.
        length = max(waveform.shape[1], self.settings.n_fft)
        waveform = nn.functional.pad(waveform, (0, length - waveform.shape[1]))
        return torch.stft(waveform, **self._stft, pad_mode="reflect", return_complex=True), length

    @property
    def _stft(self) -> dict:
        names = {"n_fft": "n_fft", "hop_length": "hop_size", "win_length": "window_size"}
        return {name: getattr(self.settings, field) for name, field in names.items()} | {"window": self.window}

    @property
    def _span(self) -> float:
        """dB from level 0 to level 1."""
        return HEADROOM_DB - 20.0 * float(np.log10(self.settings.stft_magnitude_min))

    def _levels(self, spectrum: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Levels (1, bins, frames), 0 for the quietest magnitude, and which frames are not silence (1, frames)."""
        decibels = 20.0 * spectrum.abs().clip(min=self.settings.stft_magnitude_min).log10()
        level = 1.0 + (decibels - HEADROOM_DB) / self._span
        total = level.sum(dim=1)
        return level, (total > QUIET_SHARE * total.max()).float()


class WatermarkStream:
    """Marks speech that comes in chunks, each at once: none waits for the next one.

    Each chunk is marked as the end of the last quarter of a second and itself. What follows is not known yet, so at the
    edges of chunks the mark differs from that of the whole; it fades out and in there, within 10 ms, without a step.
    """

    def __init__(self, mark: Watermark, sampling_rate: int) -> None:
        self._mark, self._rate = mark, sampling_rate
        self._past = np.zeros(0, np.float32)

    def push(self, chunk: np.ndarray) -> np.ndarray:
        """The chunk, float32 (samples,), with its mark."""
        heard = np.concatenate([self._past, chunk])
        residual = self._mark.residual(heard, self._rate)[len(self._past) :]
        distance = np.minimum(np.arange(len(chunk)), np.arange(len(chunk))[::-1])
        fade = np.clip(distance / (FADE_SECONDS * self._rate), 0.0, 1.0).astype(np.float32)
        self._past = heard[-round(CONTEXT_SECONDS * self._rate) :]
        return chunk + fade * residual


@functools.lru_cache(maxsize=1)
def load_watermark() -> Watermark:
    """The installed mark. Raises WatermarkMissingError, saying what to install, where there is none."""
    # Not imported: see the head of this file.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("soxr") is None:
        raise WatermarkMissingError(MISSING)
    return Watermark.from_folder(Path(spec.submodule_search_locations[0]) / MODEL_FOLDER)


def choose_watermark(wanted: bool | None, is_cloned: bool) -> Watermark | None:
    """The mark that speech shall carry, None for none.

    wanted: True marks all speech, False none, None that of cloned voices where the package is installed; where it is
    not, a warning says so, once. Raises WatermarkMissingError for True without the package.
    """
    if wanted is False or (wanted is None and not is_cloned):
        return None
    try:
        return load_watermark()
    except WatermarkMissingError as error:
        if wanted:
            raise
        # Python shows the same warning from the same line once.
        warnings.warn(f"This speech in a cloned voice carries no watermark. {error}", stacklevel=2)
        return None


def _resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    if rate == wanted:
        return samples
    try:
        import soxr
    except ImportError as error:
        raise WatermarkMissingError("The watermark needs soxr: pip install soxr") from error
    return soxr.resample(samples, rate, wanted)
