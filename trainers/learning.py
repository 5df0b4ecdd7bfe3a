"""What of a model a recipe lets learn: the modules of `train`, or adapters in them, without heads that no loss reaches.

DDP waits forever for the gradient of a parameter that a step does not reach, unless it is told to look for such ones
(arguments.ddp_find_unused_parameters), which costs time in every step.
"""

from peft import PeftModel
from torch import nn

from e2e_tts.modeling import E2ETTSModel

from .adapters import add_adapters
from .recipe import MODULE_NAMES, Recipe


def unreached_heads(recipe: Recipe) -> list[str]:
    """Heads, as "module.head", that no loss with a weight reaches, in modules that the others reach."""
    true, predicted = recipe.losses, recipe.predicted_losses
    speaker, emotion = true.spk or predicted.spk, true.ser or predicted.ser
    used = {
        "reward.ctc_head": true.asr or predicted.asr,
        "reward.speaker_head": speaker,
        "reward.emotion_head": emotion,
        "reward.pooling": speaker or emotion,
        # Codes are predicted from the scores of codes alone; a draw is as likely as its codes and its end.
        "lm.end_head": true.lm or recipe.kl or predicted.policy,
    }
    return [name for name, weight in used.items() if not weight]


def choose_what_learns(model: E2ETTSModel, recipe: Recipe) -> E2ETTSModel | PeftModel:
    """Freezes all else, in place, and adds the recipe's adapters: returns the model, or what peft makes of it."""
    model.freeze([name for name in MODULE_NAMES if name not in recipe.train])
    adapted = model if recipe.lora is None else add_adapters(model, recipe.lora, recipe.train)
    for name in unreached_heads(recipe):
        module, head = name.split(".")
        part: nn.Module | None = getattr(getattr(model, module), head)
        if part is not None:
            part.requires_grad_(False)
    return adapted
