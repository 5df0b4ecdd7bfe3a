r"""Makes the tokenizer, reward model and LM that a recipe starts from out of pretrained models.

python -m e2e_tts.trainers.convert_pretrained --recipe paper_joint --output runs/paper/pretrained \
    --ctc nvidia/parakeet-ctc-0.6b --lm Qwen/Qwen3-0.6B

The recipe says what is wanted; architectures that differ are refused with both values. A CTC Conformer (transformers'
ParakeetForCTC) is split where the recipe's tokenizer ends: its subsampling and lower layers go to OUTPUT/encoder, its
upper layers to OUTPUT/reward, with the CTC head if the recipe's alphabet is the checkpoint's (the blank moves to index
0). Strides of the subsampling may differ, which changes the frame rate and no weight. A Qwen3 goes to OUTPUT/lm with
its text vocabulary. What the pretrained models do not have, FSQ and the adapters around it, starts at random. Name the
folders in the recipe's init_modules, as the paper_* recipes do.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from transformers import (
    AutoModel,
    AutoModelForCTC,
    ParakeetForCTC,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Model,
    set_seed,
)

from e2e_tts.modeling import (
    E2ETTSConfig,
    RewardModel,
    RewardModelConfig,
    SpeechEncoderConfig,
    SpeechEncoderModel,
    SpeechLM,
    SpeechLMConfig,
)

from .command_line import CommandParser
from .recipe import RecipeError, VocoderRecipe, add_override_option, load_recipe

CONFORMER_FIELDS = (
    *("hidden_size", "num_attention_heads", "intermediate_size", "hidden_act", "attention_bias", "convolution_bias"),
    *("conv_kernel_size", "scale_input"),
)
SUBSAMPLING_FIELDS = (
    *("num_mel_bins", "subsampling_factor", "subsampling_conv_channels", "subsampling_conv_kernel_size"),
    "subsampling_conv_stride",
)
LM_FIELDS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("intermediate_size", "hidden_act", "attention_bias", "rms_norm_eps", "rope_parameters", "layer_types"),
    "sliding_window",
)


class ConversionError(ValueError):
    """A pretrained model that does not fit the recipe; the message names both values."""


def require_equal(found: PreTrainedConfig, wanted: PreTrainedConfig, names: tuple[str, ...], where: str) -> None:
    """Raises ConversionError with every differing field and the recipe's override that would make it fit."""
    differing = [name for name in names if getattr(found, name) != getattr(wanted, name)]
    if differing:
        listed = "; ".join(f"{name} is {getattr(found, name)}, the recipe says {getattr(wanted, name)}"
                           for name in differing)  # fmt: skip
        overrides = " ".join(f"model.{where}.{name}={json.dumps(getattr(found, name))}" for name in differing)
        raise ConversionError(f"The pretrained model is not the recipe's: {listed}. If it is meant: --set {overrides}")


def split_conformer(
    source: ParakeetForCTC, encoder_config: SpeechEncoderConfig, reward_config: RewardModelConfig
) -> tuple[SpeechEncoderModel, RewardModel]:
    """A CTC Conformer -> the tokenizer of its lower layers and the reward model of its upper ones.

    Without FSQ between them the two compute the source's hidden states, given the source's strides and features.
    Raises ConversionError for architectures that differ.
    """
    lower, upper = encoder_config.encoder_config, reward_config.encoder_config
    found = source.config.encoder_config
    require_equal(found, lower, CONFORMER_FIELDS + SUBSAMPLING_FIELDS, "encoder_config.encoder_config")
    require_equal(found, upper, CONFORMER_FIELDS, "reward_config.encoder_config")
    wanted = lower.num_hidden_layers + upper.num_hidden_layers
    if wanted != found.num_hidden_layers:
        raise ConversionError(
            f"The pretrained Conformer has {found.num_hidden_layers} layers, the recipe's tokenizer and reward model "
            f"{lower.num_hidden_layers} + {upper.num_hidden_layers}: set num_hidden_layers of both."
        )
    for name, config in {"encoder_config": encoder_config, "reward_config": reward_config}.items():
        if config.conv_norm != "batch":
            raise ConversionError(f"Pretrained statistics need model.{name}.conv_norm=batch, not {config.conv_norm}.")
    encoder, reward = SpeechEncoderModel(encoder_config), RewardModel(reward_config)
    encoder.subsampling.load_state_dict(source.encoder.subsampling.state_dict())
    targets = [*encoder.conformer.layers, *reward.conformer.layers]
    for target, layer in zip(targets, source.encoder.layers, strict=True):
        target.load_state_dict(layer.state_dict())
    return encoder, reward


@torch.no_grad()
def take_ctc_head(source: ParakeetForCTC, reward: RewardModel) -> bool:
    """Copies the CTC head if the alphabets have one size; returns whether they have.

    The source's blank, its last label as a rule, becomes label 0, and its label k becomes k + 1. Where a token has
    several CTC frames all of them start with the same weights, which decodes to the same labels.
    """
    size, blank = source.config.vocab_size, source.config.pad_token_id
    if reward.ctc_head is None or reward.config.ctc_vocab_size != size:
        return False
    order = [blank, *(label for label in range(size) if label != blank)]
    frames = reward.config.ctc_upsampling
    reward.ctc_head.weight.copy_(source.ctc_head.weight[order, :, 0].repeat(frames, 1))
    reward.ctc_head.bias.copy_(source.ctc_head.bias[order].repeat(frames))
    return True


def put_into_lm(source: Qwen3Model, config: SpeechLMConfig) -> SpeechLM:
    """A Qwen3 -> the speech LM whose transformer and text embeddings it becomes.

    Raises ConversionError for architectures that differ.
    """
    require_equal(source.config, config.text_config, LM_FIELDS, "lm_config.text_config")
    lm = SpeechLM(config)
    lm.model.load_state_dict(source.state_dict())
    return lm


def load_source(auto_class: type, name: str, kind: type[PreTrainedModel]) -> PreTrainedModel:
    """A pretrained model in float32. Raises OSError if there is none, ConversionError if it is of another kind."""
    try:
        # Weights are often stored in bfloat16; training keeps them in float32.
        model = auto_class.from_pretrained(name, dtype=torch.float32)
    except ValueError as error:
        raise ConversionError(f"{name} is no {kind.__name__}: {error}") from error
    if not isinstance(model, kind):
        raise ConversionError(f"{name} is a {type(model).__name__}; this needs a {kind.__name__}.")
    return model


def convert(config: E2ETTSConfig, output: Path, ctc: str | None = None, lm: str | None = None) -> dict:
    """Writes OUTPUT/encoder and OUTPUT/reward from `ctc`, OUTPUT/lm from `lm`, and OUTPUT/conversion.json.

    Returns what the latter holds: sources, parameters by module, and whether the CTC head came along.
    """
    modules: dict[str, PreTrainedModel] = {}
    report: dict = {"ctc": ctc, "lm": lm}
    if ctc is not None:
        source = load_source(AutoModelForCTC, ctc, ParakeetForCTC)
        modules["encoder"], modules["reward"] = split_conformer(source, config.encoder_config, config.reward_config)
        report["ctc_head_taken"] = take_ctc_head(source, modules["reward"])
        report["ctc_labels"] = {"pretrained": source.config.vocab_size, "recipe": config.reward_config.ctc_vocab_size}
        del source
    if lm is not None:
        modules["lm"] = put_into_lm(load_source(AutoModel, lm, Qwen3Model), config.lm_config)
    for name, module in modules.items():
        module.save_pretrained(output / name)
    report["parameters"] = {name: module.num_parameters() for name, module in modules.items()}
    (output / "conversion.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="paper_joint", help="its model says what is wanted (default: %(default)s)")
    parser.add_argument("--ctc", help="a ParakeetForCTC, by folder or Hub name")
    parser.add_argument("--lm", help="a Qwen3, by folder or Hub name")
    parser.add_argument("--output", required=True, type=Path, help="folder to write encoder, reward and lm to")
    add_override_option(parser, "overrides of the recipe")
    parser.add_argument("--seed", type=int, default=0, help="of the weights that start at random")
    options = parser.parse_args(arguments)
    if options.ctc is None and options.lm is None:
        parser.error("nothing to convert: give --ctc, --lm or both")
    try:
        recipe = load_recipe(options.recipe, options.set)
        if isinstance(recipe, VocoderRecipe) or recipe.model is None:
            raise RecipeError(f"{options.recipe} describes no model of speech tokens: name the recipe of stage 1.")
        set_seed(options.seed)
        report = convert(E2ETTSConfig(**recipe.model), options.output, options.ctc, options.lm)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for name, count in report["parameters"].items():
        print(f"{options.output / name}: {count / 1e6:.1f} M parameters")
    if not report.get("ctc_head_taken", True):
        labels = report["ctc_labels"]
        print(
            f"The CTC head starts at random: the recipe's alphabet has {labels['recipe']} labels, the pretrained one "
            f"{labels['pretrained']}."
        )


if __name__ == "__main__":
    main()
