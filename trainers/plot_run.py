"""Plots the named losses and token statistics of runs: `python -m e2e_tts.trainers.plot_run --help`."""

import argparse
import json
from pathlib import Path

PANELS = {
    "L_LM, nats a token": ("loss_lm",),
    "L_RM": ("loss_asr", "loss_spk", "predicted_loss_asr"),
    "L_FM": ("loss_flow", "loss_prior", "predicted_loss_flow"),
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("runs", nargs="+", help="folders of runs, drawn one after the other, e.g. stages 1, 2 and 3")
    parser.add_argument("--output", required=True, help="the PNG to write")
    options = parser.parse_args(arguments)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(4 * len(PANELS), 3.2), constrained_layout=True)
    for run in options.runs:
        history = read_history(Path(run))
        for axis, (title, names) in zip(axes, PANELS.items(), strict=True):
            axis.set_title(title)
            axis.set_xlabel("step")
            for name in names:
                points = [(entry["step"], float(entry[name])) for entry in history if name in entry]
                if points:
                    axis.plot(*zip(*points, strict=True), label=f"{Path(run).name}: {name}", linewidth=1)
    for axis in axes:
        axis.legend(fontsize=6)
        axis.grid(alpha=0.3)
    figure.savefig(options.output, dpi=90)
    print(f"plot: {options.output}")


if __name__ == "__main__":
    main()
