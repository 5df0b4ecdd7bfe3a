"""Gives modules of a trained checkpoint more layers, so that a later run can learn more than they can hold.

python -m e2e_tts.trainers.deepen --model model_cards/small-en --layers encoder=8 reward=6 --output runs/deeper

The new layers are copies of the last one whose branches add nothing yet (stacking with outputs of zero). A language
model and a flow decoder compute what they did; a Conformer block ends in a layer normalisation, so encoder and reward
model are off by what normalising once more does, which some tens of steps of training mend.
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModel, PreTrainedModel

from e2e_tts.modeling import E2ETTSModel

from .command_line import CommandParser
from .saving import save_checkpoint

CONFORMER_OUTPUTS = ("feed_forward1.linear2", "self_attn.o_proj", "conv.pointwise_conv2", "feed_forward2.linear2")
# For each module: the part of its configuration that counts the layers, the stack's place in the module, and the
# projections that the branches of a layer end in.
STACKS = {
    "encoder": ("encoder_config", "conformer.layers", CONFORMER_OUTPUTS),
    "reward": ("encoder_config", "conformer.layers", CONFORMER_OUTPUTS),
    "lm": ("text_config", "model.layers", ("self_attn.o_proj", "mlp.down_proj")),
    "decoder": (None, "blocks", ("attention_out", "contract")),
}


def deepen_module(module: PreTrainedModel, name: str, num_layers: int) -> PreTrainedModel:
    """The module with num_layers layers: its own, then copies of the last that add nothing yet.

    Raises ValueError for a name that is no stack of layers and for no more layers than there are.
    """
    if name not in STACKS:
        raise ValueError(f"{name} has no layers to add to; choose among {', '.join(STACKS)}.")
    part, stack, outputs = STACKS[name]
    config = type(module.config).from_dict(module.config.to_dict())
    counted = config if part is None else getattr(config, part)
    present = counted.num_hidden_layers
    if num_layers <= present:
        raise ValueError(f"{name} has {present} layers already: give {name} a number above that, not {num_layers}.")
    counted.num_hidden_layers = num_layers
    if getattr(counted, "layer_types", None) is not None:
        counted.layer_types = counted.layer_types + counted.layer_types[-1:] * (num_layers - present)
    deeper = type(module)(config)
    weights = module.state_dict()
    last = f"{stack}.{present - 1}."
    for key in [key for key in weights if key.startswith(last)]:
        silent = any(key.startswith(f"{last}{output}.") for output in outputs)
        for index in range(present, num_layers):
            copied = torch.zeros_like(weights[key]) if silent else weights[key].clone()
            weights[f"{stack}.{index}.{key.removeprefix(last)}"] = copied
    deeper.load_state_dict(weights)
    return deeper


def deepen(model: E2ETTSModel, layers: dict[str, int]) -> E2ETTSModel:
    """Deepens the named modules of a composite, in place; returns it."""
    for name, count in layers.items():
        model.replace_module(name, deepen_module(getattr(model, name, None), name, count))
    return model


def layer_count(text: str) -> tuple[str, int]:
    """`encoder=6` as a name and a number."""
    name, _, count = text.partition("=")
    if name not in STACKS or not count.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: give MODULE=NUMBER, MODULE one of {', '.join(STACKS)}")
    return name, int(count)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a composite")
    parser.add_argument("--layers", nargs="+", type=layer_count, required=True, metavar="MODULE=NUMBER")
    parser.add_argument("--output", required=True, type=Path, help="folder of the deeper composite")
    options = parser.parse_args(arguments)
    if not (Path(options.model) / "config.json").is_file():
        sys.exit(f"{options.model} is no folder of a model: it has no config.json.")
    try:
        model = AutoModel.from_pretrained(options.model)
        if not isinstance(model, E2ETTSModel):
            raise ValueError(f"{options.model} holds a {type(model).__name__}, not a complete model.")
        model = deepen(model, dict(options.layers))
    except ValueError as error:
        sys.exit(str(error))
    save_checkpoint(model, options.model, options.output)
    print(f"{options.output}: {sum(weight.numel() for weight in model.parameters()) / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()
