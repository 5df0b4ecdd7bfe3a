"""Plots the named losses and token statistics of runs: `python -m e2e_tts.trainers.plot_run --help`."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .command_line import CommandParser

PANELS = {
    "L_LM, nats a token": ("loss_lm",),
    "L_RM": (
        *("loss_asr", "loss_spk", "loss_ser"),
        *("predicted_loss_asr", "predicted_loss_spk", "predicted_loss_ser"),
    ),
    "L_FM": ("loss_flow", "loss_prior", "predicted_loss_flow", "predicted_loss_prior"),
    "draws compared": ("predicted_loss_policy",),
    "spectral losses": ("loss_log_magnitude", "loss_convergence", "loss_mel"),
    "adversarial losses": ("loss_adversarial", "loss_feature_matching", "loss_discriminator"),
    "anchor, nats a token": ("loss_kl",),
    "token entropy, bits": ("token_entropy",),
    "share of codes used": ("code_use",),
}


def read_history(folder: Path) -> list[dict]:
    """The log of a run, from trainer_state.json of the run or of its newest checkpoint."""
    states = [folder / "trainer_state.json"] if (folder / "trainer_state.json").is_file() else []
    states += sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name[11:]))
    if not states:
        raise FileNotFoundError(f"No trainer_state.json in {folder} or its checkpoints: is this the folder of a run?")
    return json.loads(states[-1].read_text())["log_history"]


def curves(histories: dict[str, list[dict]]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Logs by name of run -> the panels that have something to show: title -> label -> points (step, value)."""
    panels = {}
    for title, names in PANELS.items():
        lines = {
            f"{run}: {name}": [(entry["step"], float(entry[name])) for entry in history if name in entry]
            for run, history in histories.items()
            for name in names
        }
        if lines := {label: points for label, points in lines.items() if points}:
            panels[title] = lines
    return panels


def names_of(folders: Sequence[str]) -> list[str]:
    """A name for each folder: what is left of its path without what all of them share."""
    paths = [os.path.abspath(folder) for folder in folders]
    shared = os.path.dirname(paths[0]) if len(set(paths)) == 1 else os.path.commonpath(paths)
    return [os.path.relpath(path, shared) for path in paths]


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__.split(":")[0])
    parser.add_argument("runs", nargs="+", help="folders of runs, drawn one after the other, e.g. stages 1, 2 and 3")
    parser.add_argument("--output", required=True, help="the PNG to write")
    options = parser.parse_args(arguments)
    try:
        histories = [read_history(Path(run)) for run in options.runs]
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    panels = curves(dict(zip(names_of(options.runs), histories, strict=True)))
    if not panels:
        sys.exit(f"{', '.join(options.runs)}: nothing of what is plotted has been logged yet ({', '.join(PANELS)}).")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (4 * len(panels), 3.2)
    figure, axes = pyplot.subplots(1, len(panels), figsize=size, constrained_layout=True, squeeze=False)
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for label, points in lines.items():
            axis.plot(*zip(*points, strict=True), label=label, linewidth=1)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.legend(fontsize=6)
        axis.grid(alpha=0.3)
    figure.savefig(options.output, dpi=90)
    print(f"plot: {options.output}")


if __name__ == "__main__":
    main()
