"""LoRA adapters of a composite: learning them, folders that hold them, and merging them into a checkpoint.

python -m e2e_tts.trainers.adapters --adapter runs/voice/final --output runs/voice/merged

An adapter folder is peft's own format and `voices.json`, the built-in voices of the fine-tuned model.
`AutoModel.from_pretrained(folder)` gives the adapted model; `load_adapted` gives it with its voices.
"""

import json
import re
import sys
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModel

from e2e_tts.modeling import E2ETTSModel

from .built_in_voices import load_voices
from .command_line import CommandParser
from .recipe_parts import LoraRecipe, RecipeError
from .saving import save_checkpoint

CONFORMER_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "linear1", "linear2"]
DEFAULT_TARGETS = {
    "encoder": CONFORMER_TARGETS,
    "reward": CONFORMER_TARGETS,
    "lm": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "speaker_projection"],
    "decoder": ["qkv", "attention_out", "modulation", "expand", "contract", "speaker_projection"],
}


def target_pattern(model: E2ETTSModel, recipe: LoraRecipe, modules: list[str]) -> str:
    """The regular expression, for peft, of the layers that get an adapter.

    Raises RecipeError for a module without default targets and for a target that is no linear layer of its module.
    """
    patterns = []
    for module in modules:
        targets = recipe.targets.get(module) or DEFAULT_TARGETS.get(module)
        if targets is None:
            raise RecipeError(f"lora has no default layers for {module}: name them in lora.targets.{module}.")
        linear = [name for name, layer in getattr(model, module).named_modules() if isinstance(layer, nn.Linear)]
        for target in targets:
            if not any(name == target or name.endswith(f".{target}") for name in linear):
                known = sorted({name.split(".")[-1] for name in linear})
                raise RecipeError(f"lora.targets.{module}: no linear layer ends in {target!r}; known: {known}.")
        patterns.append(rf"{module}\.(.*\.)?({'|'.join(re.escape(target) for target in targets)})")
    return "|".join(patterns)


def add_adapters(model: E2ETTSModel, recipe: LoraRecipe, modules: list[str]) -> PeftModel:
    """Gives the model's layers adapters, in place; only the adapters learn. At first they change nothing."""
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=target_pattern(model, recipe, modules),
    )
    return get_peft_model(model, config)


def load_adapted(folder: str | Path, base: str | Path | None = None) -> PeftModel:
    """An adapter folder on its checkpoint, voices included. base: that checkpoint, if it has moved.

    Raises ValueError, saying what is missing, for a folder that is no adapter and for a checkpoint that is not there.
    """
    config_file = Path(folder) / "adapter_config.json"
    if not config_file.is_file():
        raise ValueError(f"{folder} is not an adapter folder: it has no adapter_config.json.")
    base = base or json.loads(config_file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    try:
        model = AutoModel.from_pretrained(base)
    except OSError as error:
        raise ValueError(f"The adapter's checkpoint {base} cannot be loaded ({error}); give it with --base.") from error
    if not isinstance(model, E2ETTSModel):
        raise ValueError(f"The adapter's checkpoint {base} is a {type(model).__name__}, not a complete model.")
    adapted = PeftModel.from_pretrained(model, str(folder))
    load_voices(model, folder)
    return adapted


def save_merged(adapted: PeftModel, folder: str | Path) -> E2ETTSModel:
    """Adds the adapters to the weights and saves a whole checkpoint, with the processor of the adapter's base.

    The model is changed: afterwards it is the merged one, which is returned.
    """
    base = adapted.get_base_model().name_or_path
    model = adapted.merge_and_unload()
    save_checkpoint(model, base, folder)
    return model


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description="Merges a LoRA adapter into a checkpoint that stands alone.")
    parser.add_argument("--adapter", required=True, help="folder of a fine-tuning run's final/ or checkpoint-N/")
    parser.add_argument("--output", required=True, help="folder to write the merged checkpoint to")
    parser.add_argument("--base", help="the checkpoint that was adapted, if it is no longer where it was")
    options = parser.parse_args(arguments)
    try:
        model = save_merged(load_adapted(options.adapter, options.base), options.output)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{options.output}: merged, voices {model.config.voice_names}")


if __name__ == "__main__":
    main()
