"""Carries what a stage has taught a module over to another training of it, without its steps.

python -m e2e_tts.trainers.carry_over --module runs/refine_lm/final/lm --after DRAWS/final/lm --before OLDER/lm \
    --output runs/carried_lm

What the stage changed (`after` less `before`) is added to the weights of `module` (task vectors, Ilharco et al., arXiv
2212.04089). Both trainings must come from one model: a new stage 2 on tokens that went on from the old ones, say. How
much is carried best (--scale) is seen from what the result says.
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModel, PreTrainedModel

import e2e_tts.modeling  # noqa: F401 - makes the models known to AutoModel

from .command_line import CommandParser


@torch.no_grad()
def carry_over(
    module: PreTrainedModel, after: PreTrainedModel, before: PreTrainedModel, scale: float = 1.0
) -> PreTrainedModel:
    """Adds scale * (after - before) to the weights of a module, in place; returns it.

    Raises ValueError for models of different kinds or shapes, naming the first weight that differs.
    """
    weights, ends, starts = (model.state_dict() for model in (module, after, before))
    for name in {**weights, **ends, **starts}:
        shapes = [tuple(state[name].shape) if name in state else None for state in (weights, ends, starts)]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"The models differ: {name} has the shapes {', '.join(map(str, shapes))} (None: it lacks it)."
            )
    for name, weight in weights.items():
        if weight.is_floating_point():
            weight += scale * (ends[name] - starts[name]).to(weight)
    return module


def load_module(folder: str) -> PreTrainedModel:
    """A module in float32. Raises ValueError where a folder holds none."""
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"{folder} is no folder of a model: it has no config.json.")
    return AutoModel.from_pretrained(folder, dtype=torch.float32)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--module", required=True, help="folder of the module that gets it, e.g. runs/refine_lm/final/lm"
    )
    parser.add_argument("--after", required=True, help="folder of the module as the stage has left it")
    parser.add_argument("--before", required=True, help="folder of the module as the stage found it")
    parser.add_argument("--scale", type=float, default=1.0, help="how much of the change is added (default: all of it)")
    parser.add_argument("--output", required=True, help="folder of the result")
    options = parser.parse_args(arguments)
    try:
        module, after, before = map(load_module, (options.module, options.after, options.before))
        carry_over(module, after, before, options.scale)
    except ValueError as error:
        sys.exit(str(error))
    module.save_pretrained(options.output)
    print(f"{options.output}: {type(module).__name__}, {options.scale:g} of the change added")


if __name__ == "__main__":
    main()
