"""Has the LM speak the texts of a batch, for the losses of stage 3 on its own history."""

from collections.abc import Collection

import numpy as np
import torch

from e2e_tts.modeling.modeling_e2e_tts import E2ETTSModel
from e2e_tts.modeling.own_history import OwnHistory

from .recipe import Recipe
from .recipe_parts import RecipeError
from .sharding import gathered

VOICE = 26  # salt of the draws of voice and rate


def check_voices(built_in: Collection[str], recipe: Recipe) -> None:
    """Raises RecipeError where the recipe has voices speak that are not among those of the model."""
    voices = [] if recipe.own_history is None else recipe.own_history.voices
    if missing := sorted({*voices} - {*built_in}):
        raise RecipeError(
            f"own_history.voices: {missing} are not built in; the model has {[*built_in]}. Name these, or "
            "none, to have each row's own speaker."
        )


@torch.no_grad()
def draw_history(
    model: E2ETTSModel,
    recipe: Recipe,
    inputs: dict[str, torch.Tensor],
    drawn: dict[str, torch.Tensor],
    is_first: bool = False,
) -> OwnHistory:
    """Draws for the texts of a batch as `recipe.own_history` says.

    inputs: the collator's batch; drawn: the same with the trainer's draws, seeds, voices and rates among them. What is
    drawn depends on these seeds and on which utterances are in the batch. is_first: whether the model, sharded, has not
    been called yet.
    """
    settings = recipe.own_history
    voice, target, rate = drawn["speaker_embedding"], inputs["speaker_target"], drawn["tokens_per_symbol"]
    if settings.voices:
        shares = np.array([*settings.voices.values()]) / sum(settings.voices.values())
        sources = [np.random.default_rng((seed, VOICE)) for seed in drawn["seeds"].tolist()]
        numbers = [[*model.config.voices].index(source.choice([*settings.voices], p=shares)) for source in sources]
        jitter = [source.standard_normal() * recipe.rate_jitter for source in sources]
        rates = [*model.config.voices.values()]
        voice = target = model.voice_embeddings[numbers]
        rate = rate.new_tensor([rates[number] for number in numbers]) * rate.new_tensor(jitter).exp()
    if is_first:
        # The first call decides which sharded module is the outermost; parts called before it would each be their own.
        model(inputs["input_features"], inputs["feature_mask"], true_losses=())
    generator = torch.Generator(device=voice.device).manual_seed(int(drawn["seeds"].sum()))
    rows = (inputs["text_ids"], inputs["text_mask"], voice, rate, target)
    text_ids, text_mask, voice, rate, target = (row.repeat_interleave(settings.draws, dim=0) for row in rows)
    model.lm.eval()
    with gathered(model):
        speech = model.lm.generate_codes(
            text_ids,
            text_mask,
            voice,
            rate,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            text_guidance=settings.text_guidance,
            max_tokens_per_symbol=settings.longest * float(rate.max()),
            generator=generator,
        )
    model.lm.train(model.training)
    return OwnHistory(
        speech.ids,
        speech.mask,
        speech.finished,
        text_mask,
        voice,
        rate,
        target,
        settings.temperature,
        settings.draws,
        settings.reward,
    )
