"""The report as one HTML page that needs no network: figures, and a player and a mel spectrogram for each sample."""

import base64
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jinja2 import Environment, PackageLoader

from .audio_files import read_recording
from .judge_interface import prepare_waveform, require
from .report import INTERVAL_NOTE, EvaluationReport
from .results_folder import write_text
from .summary import EvaluatedRow

logger = logging.getLogger(__name__)

Sources = dict[str, dict[str, Path | bytes]]
"""Where the clips are: condition -> utterance -> file or bytes."""


def write_html(report: EvaluationReport, sources: Sources, path: str | Path, samples: int = 50) -> None:
    """Writes the page, with sound and picture for the `samples` worst utterances and a line for each of the others.

    Without matplotlib (extra "report") the page has no pictures and says so.
    """
    try:
        draw = require("matplotlib.image", "matplotlib", "The report's spectrograms").imsave
        missing = None
    except ImportError as error:
        logger.warning("%s", error)
        draw, missing = None, str(error)
    names = report.shown_names()
    rows = report.worst_rows(names[0])
    by_name = {name: {row.name: row for row in report.conditions[name].rows} for name in names}
    shown = []
    for row in rows[:samples]:
        clips = [
            _clip(name, by_name[name][row.name], sources[name].get(row.name), draw)
            for name in names
            if row.name in by_name[name]
        ]
        shown.append({"row": row, "clips": clips})
    environment = Environment(loader=PackageLoader(__package__), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("report.html.j2").render(
        report=report,
        shown=shown,
        others=rows[samples:],
        missing_pictures=missing,
        interval_note=INTERVAL_NOTE,
    )
    write_text(Path(path), page)


def _clip(condition: str, row: EvaluatedRow, source: Path | bytes | None, draw: Any) -> dict[str, Any]:
    clip: dict[str, Any] = {"condition": condition, "row": row, "audio": None, "picture": None}
    if source is None or row.error is not None:
        return clip
    waveform, sampling_rate = read_recording(source)
    if waveform.size:
        clip["audio"] = audio_uri(waveform, sampling_rate)
        clip["picture"] = draw and mel_uri(waveform, sampling_rate, draw)
    return clip


def audio_uri(waveform: np.ndarray, sampling_rate: int) -> str:
    """A waveform (samples,) as a data URI of a 16-bit FLAC file, which browsers play and which loses nothing."""
    file = io.BytesIO()
    soundfile.write(file, waveform.clip(-1.0, 1.0), sampling_rate, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def mel_uri(waveform: np.ndarray, sampling_rate: int, draw: Any) -> str:
    """The mel spectrogram of a waveform (samples,) up to 8 kHz as a data URI of a PNG; low frequencies at the bottom.

    One pixel is a mel bin high and a frame (20 ms) wide; dark is 80 dB below the clip's loudest value. `draw` is
    matplotlib's imsave.
    """
    import torch

    from e2e_tts.modeling.audio_features import MelSpec, MelSpectrogram, padded_length

    spec = MelSpec()
    waveform = prepare_waveform(waveform, sampling_rate)
    padded = np.pad(waveform, (0, padded_length(waveform.size, spec.hop_length) - waveform.size))
    mel = MelSpectrogram(spec)(torch.from_numpy(padded)[None])[0].T.numpy()
    file = io.BytesIO()
    draw(file, mel, vmin=mel.max() - 80 / 20 * np.log(10), vmax=mel.max(), cmap="magma", origin="lower", format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
