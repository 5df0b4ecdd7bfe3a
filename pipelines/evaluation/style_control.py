"""Whether a checkpoint's styles do what they say: held-out sentences at every level, measured on the speech.

python -m e2e_tts.pipelines.evaluation.style_control --model runs/refine_lm/final --data runs/data/annotated \\
    --split dev --sources kathleen --limit 40 --output DIR

Each sentence is spoken once a level of each style with the same seed, in the voice and at the rate of its speaker's
other clips. What is measured is what `e2e_tts.trainers.data.style_labels` labels by; styles with named classes, such
as emotions, have no measure and are left out. The last columns compare the highest with the lowest level sentence by
sentence: the mean difference with its 95 % interval, and the share of sentences in which it goes the right way (50 % is
chance).
Writes style_control.json and style_control.md.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from datasets import Dataset
from tqdm.auto import tqdm

from e2e_tts.modeling import SpeechGenerationError
from e2e_tts.modeling.modeling_flow_decoder import SOLVER_STEPS
from e2e_tts.modeling.styles import RATE, RATE_SPEEDS
from e2e_tts.trainers.command_line import CommandParser
from e2e_tts.trainers.data.devices import add_device_option
from e2e_tts.trainers.data.speech_data import SpeechDataset
from e2e_tts.trainers.data.style_labels import MEASURED
from e2e_tts.trainers.data.style_signal import SAMPLING_RATE, measure_style

from .figures import Figure, mean_figure
from .held_out import Voices, load_composite, select_rows
from .held_out_speech import HeldOutSpeaker
from .markdown import markdown_table

UNITS = {"pitch": "Hz", "pitch_range": "semitones", "energy": "dBFS", "effort": "dB", "rate": "symbols/s"}


@dataclass
class StyleFigures:
    """Obedience to one style.

    levels: the measure's mean at every level from the lowest, over the sentences that were spoken at all levels.
    difference: highest against lowest level, in semitones for pitch. right_way: share of sentences where it is above 0.
    failed: sentences whose speech failed at some level.
    """

    levels: list[float]
    difference: Figure
    right_way: Figure
    failed: int


def measured_styles(styles: Mapping[str, Any], sets_rate: bool) -> dict[str, int]:
    """The styles of a model that can be measured on the signal, and their numbers of levels."""
    found = {name: levels for name, levels in styles.items() if name in MEASURED and isinstance(levels, int)}
    return found | ({RATE: len(RATE_SPEEDS)} if sets_rate else {})


def summarise(name: str, values: np.ndarray, resamples: int = 2000, seed: int = 0) -> StyleFigures:
    """Measures (sentences, levels), NaN where speech failed or has no such measure, -> figures.

    Raises ValueError if no sentence was measured at all levels.
    """
    whole = np.isfinite(values).all(axis=1)
    if not whole.any():
        raise ValueError(f"No sentence could be measured at all levels of {name}.")
    kept = values[whole]
    scale = 12 * np.log2(kept) if name == "pitch" else kept
    differences = (scale[:, -1] - scale[:, 0]).tolist()
    figures = (
        mean_figure(numbers, resamples=resamples, seed=seed)
        for numbers in (differences, [float(difference > 0) for difference in differences])
    )
    return StyleFigures(kept.mean(axis=0).tolist(), *figures, failed=int((~whole).sum()))


def measure_levels(speaker: HeldOutSpeaker, rows: Dataset, voices: Voices, name: str, levels: int) -> np.ndarray:
    """Speaks every row at every level of a style -> measures (rows, levels), NaN where there is none."""
    dataset, rate = SpeechDataset(rows, speaker.collate.audio_spec), speaker.model.sampling_rate
    values, sampling = np.full((len(rows), levels), np.nan), speaker.sampling
    try:
        for index in tqdm(range(len(rows)), desc=name, disable=None):
            item = dataset[index]
            for level in range(levels):
                speaker.sampling = {**sampling, "style": {name: level + 1}}
                try:
                    audio = speaker.speech(item, voices.embedding[index], float(voices.seconds_per_symbol[index]))
                except SpeechGenerationError:
                    continue
                samples = soxr.resample(audio, rate, SAMPLING_RATE)
                measured = getattr(measure_style(samples, SAMPLING_RATE, len(item["text_ids"])), name)
                values[index, level] = math.nan if measured is None else measured
    finally:
        speaker.sampling = sampling
    return values


def to_markdown(figures: Mapping[str, StyleFigures], sentences: int) -> str:
    rows = []
    for name, figure in figures.items():
        unit = "semitones" if name == "pitch" else UNITS[name]
        difference, right = figure.difference, figure.right_way
        rows.append(
            [
                f"{name}, {UNITS[name]}",
                ", ".join(f"{value:.1f}" for value in figure.levels),
                f"{difference.value:+.2f} ({difference.low:+.2f} to {difference.high:+.2f}) {unit}",
                f"{100 * right.value:.0f} % ({100 * right.low:.0f} to {100 * right.high:.0f})",
                str(figure.failed),
            ]
        )
    header = ["style", "mean at levels 1, 2, ...", "highest - lowest, 95 % interval", "right way", "failed"]
    return "\n".join([f"{sentences} sentences", "", *markdown_table(header, rows)]) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(
        prog="python -m e2e_tts.pipelines.evaluation.style_control",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="folder of a complete model")
    parser.add_argument("--data", nargs="+", required=True, help="folders of annotated speech")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--sources", nargs="*", default=[], help="by default all")
    parser.add_argument("--limit", type=int, help="number of sentences, spread over the split; by default all")
    parser.add_argument("--styles", nargs="*", metavar="NAME", help="by default all that can be measured")
    parser.add_argument("--steps", type=int, default=SOLVER_STEPS, help="of the decoder")
    add_device_option(parser)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the synthesis and of the bootstrap")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    options = parser.parse_args(arguments)
    try:
        model = load_composite(options.model, device=options.device)
        known = measured_styles(model.config.styles, model.lm.config.text_positions == "aligned")
        wanted = known if options.styles is None else options.styles
        if unknown := sorted(set(wanted) - set(known)) or (not known and ["any"]):
            raise ValueError(f"The checkpoint has no measurable style {unknown}; it has {list(known)}.")
        rows = select_rows(options.data, options.split, options.sources, options.limit)
        voices = Voices.of_rows(rows, options.data)
        speaker = HeldOutSpeaker(model, steps=options.steps, seed=options.seed)
        figures = {}
        for name in wanted:
            values = measure_levels(speaker, rows, voices, name, known[name])
            figures[name] = summarise(name, values, options.resamples, options.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    options.output.mkdir(parents=True, exist_ok=True)
    table = to_markdown(figures, len(rows))
    (options.output / "style_control.md").write_text(table, encoding="utf-8")
    result = {
        "settings": vars(options) | {"output": str(options.output)},
        "styles": {name: asdict(figure) for name, figure in figures.items()},
    }
    (options.output / "style_control.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
