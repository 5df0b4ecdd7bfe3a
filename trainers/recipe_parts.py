"""The parts that a recipe is made of: data, weights of losses, what guards a run."""

import difflib
import typing
from dataclasses import dataclass, field

MODULE_NAMES = ("encoder", "reward", "lm", "decoder", "speaker", "vocoder")
CODE_LOSSES = ("asr", "spk", "ser", "flow", "prior")
LOSS_NAMES = ("lm", *CODE_LOSSES, *(f"predicted_{name}" for name in (*CODE_LOSSES, "policy")), "kl")


class RecipeError(ValueError):
    """A recipe that cannot be run; the message says which entry and what to do."""


def check_key(key: str, known: typing.Iterable[str], where: str) -> None:
    """Raises RecipeError for a key that is not among the known ones, naming the nearest of them."""
    known = list(known)
    if key not in known:
        near = difflib.get_close_matches(str(key), known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known))}."
        raise RecipeError(f"Unknown entry {key!r} in {where}; {hint}")


def check_positive(where: str, **values: float) -> None:
    """Raises RecipeError for a number that is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise RecipeError(f"{where}.{name} must be above 0, got {value}.")


@dataclass
class DataRecipe:
    """Where speech comes from. `folders` are annotated data sets.

    weights: by source, its share of the utterances that are drawn, by default that of its rows. It is no share of the
    loss: a batch is cut by `seconds_per_batch` and its loss is a mean over its utterances, so an utterance weighs by
    about its duration, and a source of longer clips more than its share of the draws. Of `small_refine_decoder`'s
    draws half are kathleen's, whose clips are short, and they have 0.37 of the loss.
    """

    folders: list[str] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    seconds_per_batch: float = 48.0
    max_rows: int = 64
    max_seconds: float = 8.0
    eval_rows: int = 48


@dataclass
class TrueLosses:
    """Weights of the losses on the tokenizer's own codes; 0 leaves a loss out and does not compute its module."""

    lm: float = 0.0
    asr: float = 0.0
    spk: float = 0.0
    ser: float = 0.0
    flow: float = 0.0
    prior: float = 0.0


@dataclass
class PredictedLosses:
    """Weights of the losses on codes that the LM predicts (second-order, stage 3).

    policy: of whole draws of the LM, compared with each other (see `modeling.own_history.policy_loss`); needs
    `own_history` with several draws.
    """

    asr: float = 0.0
    spk: float = 0.0
    ser: float = 0.0
    flow: float = 0.0
    prior: float = 0.0
    policy: float = 0.0


@dataclass
class GumbelSchedule:
    """Temperature of the Gumbel-Softmax, falling linearly over the run."""

    start: float = 1.0
    end: float = 0.3


@dataclass
class OwnHistoryRecipe:
    """Speech that the LM draws itself in stage 3, for the reward model and the anchor.

    draws: of each text; predicted_losses.policy compares them by `reward`, weights of the reward model's losses asr and
    spk. temperature, top_k, top_p and text_guidance: how the LM draws, best as it will be asked to speak. voices:
    built-in voices of the model, name -> share of the utterances; they speak the rows' texts at their own rate, so that
    a voice learns from every text there is. By default a row's own speaker does. longest: tokens a symbol, relative to
    what the rate asks for, after which a draw is cut off.
    """

    draws: int = 4
    reward: dict[str, float] = field(default_factory=lambda: {"asr": 1.0})
    temperature: float = 1.0
    top_k: int = 25
    top_p: float = 1.0
    text_guidance: float = 1.0
    voices: dict[str, float] = field(default_factory=dict)
    longest: float = 2.0

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.top_k < 1 or not 0.0 < self.top_p <= 1.0 or self.longest <= 1.0:
            raise RecipeError(
                "own_history needs temperature > 0, top_k >= 1, 0 < top_p <= 1 and longest > 1, got "
                f"{self.temperature}, {self.top_k}, {self.top_p} and {self.longest}."
            )
        if self.draws < 1:
            raise RecipeError(f"own_history.draws must be at least 1, got {self.draws}.")
        for name in self.reward:
            check_key(name, ("asr", "spk"), "own_history.reward")
        for entry, shares in {"voices": self.voices, "reward": self.reward}.items():
            if any(share <= 0 for share in shares.values()):
                raise RecipeError(f"own_history.{entry} needs numbers above 0, got {shares}.")
        if not self.reward:
            raise RecipeError("own_history.reward is empty: draws are compared by asr, spk or both.")


@dataclass
class LoraRecipe:
    """Low-rank adapters (peft) on linear layers of the modules in `train`, in place of their own weights.

    rank, alpha and dropout are those of peft's LoraConfig. targets: for each module, the endings of its layers' names,
    by default those of `adapters.DEFAULT_TARGETS`. merged: whether the run's final folder is a whole checkpoint with
    the adapters added to its weights; otherwise it is an adapter folder (see e2e_tts.trainers.adapters).
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: dict[str, list[str]] = field(default_factory=dict)
    merged: bool = False


@dataclass
class SafetyRecipe:
    """What stops a run or warns of it.

    divergence_factor: the run stops at a loss above this many times the median of the last logged ones; 0 is never.
    A loss that is not finite always stops it. Alarms compare means over `alarm_logs` logs with the best such mean so
    far: token entropy or code use lower by the given shares; or, since reconstruction was best, its loss higher by
    `tradeoff` while the LM loss fell by as much. stop_on_alarm: save and stop, instead of only warning.
    """

    divergence_factor: float = 10.0
    alarm_logs: int = 10
    entropy_drop: float = 0.1
    code_use_drop: float = 0.2
    tradeoff: float = 0.1
    stop_on_alarm: bool = False


@dataclass
class SampleRecipe:
    """Held-out sentences spoken every so many steps (0 is never) into output_dir/samples, with the same seed."""

    every: int = 0
    count: int = 2
    seed: int = 0
