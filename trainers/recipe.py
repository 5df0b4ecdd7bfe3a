"""Recipes: a training stage as data. Unknown keys are refused with the nearest known ones."""

import argparse
import difflib
import typing
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path

from transformers import PreTrainedConfig

from e2e_tts.modeling.configuration_e2e_tts import E2ETTSConfig
from e2e_tts.modeling.configuration_vocoder import VocoderConfig

from .data.vocoder_data import CropSettings
from .decoded_mels import DecodedSettings
from .feature_masks import FeatureMasks
from .recipe_parts import (
    LOSS_NAMES,
    MODULE_NAMES,
    DataRecipe,
    GumbelSchedule,
    LoraRecipe,
    OwnHistoryRecipe,
    PredictedLosses,
    RecipeError,
    SafetyRecipe,
    SampleRecipe,
    TrueLosses,
    check_key,
)
from .recipe_values import INERT, INERT_IN_STAGES, checked_arguments, read_yaml, typed
from .vocoder_trainer import DiscriminatorSettings, VocoderLossSettings

RECIPE_FOLDER = Path(__file__).parent / "recipes"


@dataclass
class Recipe:
    """One stage of training.

    trainer: "joint", "component" or "end_to_end". init: folder of a composite to start from; init_modules: folders of
    single modules that replace parts of it. model: the composite's configuration, for a start from scratch.
    text_vocab_size: symbols of LM and recognition where the language is another than that of init; text embeddings and
    recognition head then start anew, and its built-in voices, whose rates are of its language, are left out; everything
    else starts from what init has learned. train: the modules that learn; the others are frozen. lora: learn adapters
    instead of the modules' own weights. learning_rates and max_grad_norms: by module, default the trainer's.
    ramp_steps: by loss (`LOSS_NAMES`), the steps over which it grows from 0 to its weight. text_dropout: share of the
    utterances whose text the LM does not see, so that text guidance works. history_dropout: share of the codes that the
    LM does not see when it predicts later ones, so that it leans on the text. feature_masks: what the tokenizer does
    not hear in training. styles: style control that LM and decoder get where they learn, name -> number of levels or
    names of classes (see `SpeechLMConfig`), beside what they have. style_dropout: share of the utterances without any
    style, and of the others without each one, so that speech without a style stays as good. own_history: in stage 3,
    let the LM speak for itself before it is judged, instead of predicting each code from the recording's before it (see
    `OwnHistoryRecipe`). kl: weight of the divergence from the starting LM. ema: by module, the decay of an average of
    its weights that is evaluated and saved in their place. voices: built-in voices that the result gets, name ->
    SOURCE[:SPEAKER] of the training rows, or "*" for all of them. arguments: fields of transformers' TrainingArguments.
    """

    trainer: str = "joint"
    init: str | None = None
    init_modules: dict[str, str] = field(default_factory=dict)
    model: dict | None = None
    text_vocab_size: int | None = None
    train: list[str] = field(default_factory=list)
    data: DataRecipe = field(default_factory=DataRecipe)
    losses: TrueLosses = field(default_factory=TrueLosses)
    predicted_losses: PredictedLosses = field(default_factory=PredictedLosses)
    kl: float = 0.0
    own_history: OwnHistoryRecipe | None = None
    predict_from: str = "codes"
    gumbel: GumbelSchedule = field(default_factory=GumbelSchedule)
    ramp_steps: dict[str, int] = field(default_factory=dict)
    rate_jitter: float = 0.0
    text_dropout: float = 0.0
    history_dropout: float = 0.0
    feature_masks: FeatureMasks = field(default_factory=FeatureMasks)
    styles: dict[str, int | list[str]] = field(default_factory=dict)
    style_dropout: float = 0.2
    learning_rates: dict[str, float] = field(default_factory=dict)
    max_grad_norms: dict[str, float] = field(default_factory=dict)
    lora: LoraRecipe | None = None
    ema: dict[str, float] = field(default_factory=dict)
    voices: dict[str, str] = field(default_factory=dict)
    safety: SafetyRecipe = field(default_factory=SafetyRecipe)
    samples: SampleRecipe = field(default_factory=SampleRecipe)
    arguments: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.arguments = checked_arguments(self.arguments, INERT_IN_STAGES)
        if self.trainer not in ("joint", "component", "end_to_end"):
            raise RecipeError(f"trainer must be joint, component, end_to_end or vocoder, got {self.trainer!r}.")
        if self.predict_from not in ("codes", "hidden"):
            raise RecipeError(f"predict_from must be codes or hidden, got {self.predict_from!r}.")
        by_module = {"max_grad_norms": self.max_grad_norms, "ema": self.ema, "learning_rates": self.learning_rates}
        if self.lora is not None:
            by_module["lora.targets"] = self.lora.targets
        for name in [*self.train, *self.init_modules]:
            check_key(name, MODULE_NAMES, "modules")
        for entry, values in by_module.items():
            for name in values:
                check_key(name, MODULE_NAMES, entry)
                if name not in self.train:
                    raise RecipeError(f"{entry} names {name!r}, which does not learn: add it to train or drop it.")
        for name, norm in self.max_grad_norms.items():
            if norm <= 0:
                raise RecipeError(
                    f"max_grad_norms.{name} must be above 0, got {norm:g}: it would make every gradient nothing. To "
                    "leave gradients as they are give a large norm, 1e9 for example."
                )
        if self.max_grad_norms and self.arguments.get("max_grad_norm", 1.0) <= 0:
            raise RecipeError("max_grad_norms needs arguments.max_grad_norm above 0, which clips the other modules.")
        predicted = [name for name, weight in asdict(self.predicted_losses).items() if weight]
        if self.trainer != "end_to_end" and (predicted or self.kl):
            raise RecipeError(
                f"trainer {self.trainer} has no losses on predicted codes and no anchor, which predicted_losses and kl "
                "weigh: set trainer to end_to_end or drop them."
            )
        heard = any(getattr(self.predicted_losses, name) for name in ("asr", "spk", "ser", "policy"))
        if self.own_history is not None and not heard:
            raise RecipeError(
                "own_history is speech for the reward model, which no loss asks: give predicted_losses.policy or "
                "predicted_losses.asr a weight."
            )
        if self.predicted_losses.policy and (self.own_history is None or self.own_history.draws < 2):
            raise RecipeError(
                "predicted_losses.policy compares draws of one text: set own_history, {draws: 4} for example."
            )
        best = self.arguments.get("load_best_model_at_end") and not self.arguments.get("metric_for_best_model")
        if self.predicted_losses.policy and best:
            raise RecipeError(
                "arguments.load_best_model_at_end: how draws compare with each other does not say how good they are. "
                "Set arguments.metric_for_best_model=predicted_loss_asr."
            )
        for name, decay in self.ema.items():
            if not 0.0 < decay < 1.0:
                raise RecipeError(f"ema.{name} must lie between 0 and 1, 0.999 for example; got {decay}.")
        for name in self.ramp_steps:
            check_key(name, LOSS_NAMES, "ramp_steps")
        shares = {"text_dropout": "utterances", "history_dropout": "codes", "style_dropout": "utterances"}
        for entry, of in shares.items():
            if not 0.0 <= getattr(self, entry) < 1.0:
                raise RecipeError(f"{entry} is a share of {of}, 0.1 for example; got {getattr(self, entry)}.")
        if self.styles and ({"lm", "decoder"}.isdisjoint(self.train) or self.lora is not None):
            raise RecipeError("styles are learned by own weights of LM or decoder: add one to train and drop lora.")
        if self.model is not None:
            _check_model(self.model, E2ETTSConfig, "model")
        if not self.train:
            raise RecipeError("train is empty: name the modules that learn, e.g. [encoder, reward, lm, decoder].")
        if self.init is None and self.model is None:
            raise RecipeError("A recipe needs either init (a folder to start from) or model (a configuration).")
        if self.text_vocab_size is not None and (self.init is None or self.text_vocab_size < 1):
            raise RecipeError(
                "text_vocab_size is the number of symbols of a language that init does not know; without init set "
                "model.lm_config.text_config.vocab_size and model.reward_config.ctc_vocab_size."
            )
        if not predicted and not any(asdict(self.losses).values()):
            raise RecipeError("No loss has a weight: give some, as in losses: {lm: 1.0}.")

    def judged_by(self) -> set[str]:
        """The losses of the reward model, of asr, spk and ser, by which codes of any kind are judged."""
        true, predicted = asdict(self.losses), asdict(self.predicted_losses)
        names = {name for name in ("asr", "spk", "ser") if true[name] or predicted[name]}
        return names | set(self.own_history.reward if self.predicted_losses.policy else ())

    def forward_options(self) -> dict[str, typing.Any]:
        """What the composite's forward computes: the losses that have a weight, and what the decoder reads."""
        true, predicted = self.losses, self.predicted_losses
        true_losses = {
            "lm": true.lm,
            "reward": true.asr or true.spk or true.ser,
            "flow": true.flow,
            "prior": true.prior,
        }
        # On predicted codes the prior has no cheap path of its own.
        predicted_losses = {
            "reward": predicted.asr or predicted.spk or predicted.ser,
            "flow": predicted.flow or predicted.prior,
            "policy": predicted.policy,
        }
        return {
            "true_losses": tuple(name for name, weight in true_losses.items() if weight),
            "predicted_losses": tuple(name for name, weight in predicted_losses.items() if weight),
            "predict_from": self.predict_from,
        }

    def start_config(self) -> E2ETTSConfig:
        """The configuration of the composite that training starts from, before modules are replaced."""
        if self.init is None:
            return E2ETTSConfig(**self.model)
        config = E2ETTSConfig.from_pretrained(self.init)
        if self.text_vocab_size is not None:
            config.lm_config.text_config.vocab_size = self.text_vocab_size
            config.voices, config.default_voice = {}, None
            if config.reward_config.ctc_vocab_size:
                config.reward_config.ctc_vocab_size = self.text_vocab_size
        return config


@dataclass
class VocoderRecipe:
    """Training of the vocoder. folders hold prepared speech; arguments as in `Recipe`.

    model is a `VocoderConfig`, for a start from scratch; init the folder of a vocoder to go on from, whose
    configuration holds then (entries of model that differ from it are refused). divergence_factor: the run stops at a
    loss above this many times the median of the last logged ones; 0 is never. One that is not finite always stops it.
    """

    trainer: str = "vocoder"
    folders: list[str] = field(default_factory=list)
    init: str | None = None
    model: dict = field(default_factory=dict)
    losses: VocoderLossSettings = field(default_factory=VocoderLossSettings)
    discriminator: DiscriminatorSettings = field(default_factory=DiscriminatorSettings)
    crops: CropSettings = field(default_factory=CropSettings)
    decoded: DecodedSettings = field(default_factory=DecodedSettings)
    divergence_factor: float = 10.0
    arguments: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.arguments = checked_arguments(self.arguments, INERT)
        _check_model(self.model, VocoderConfig, "model")


def _check_model(values: dict, cls: type[PreTrainedConfig], where: str) -> None:
    # Configurations keep any keyword, so a typo in one would otherwise leave a default in place without a word.
    for key, value in values.items():
        check_key(key, ["model_type", *(item.name for item in fields(cls))], where)
        part = cls.sub_configs.get(key)
        if part is not None and isinstance(value, dict):
            _check_model(value, part, f"{where}.{key}")


def _build(cls: type, values: dict, where: str) -> typing.Any:
    if not isinstance(values, dict):
        raise RecipeError(f"{where} must be a mapping, got {values!r}.")
    annotations = typing.get_type_hints(cls)
    names = [item.name for item in fields(cls)]
    built = {}
    for key, value in values.items():
        check_key(key, names, where)
        parts = [part for part in (annotations[key], *typing.get_args(annotations[key])) if is_dataclass(part)]
        optional = type(None) in typing.get_args(annotations[key])
        if parts and not (optional and value is None):
            value = _build(parts[0], value or {}, f"{where}.{key}")
        elif not optional or value is not None:
            value = typed(value, annotations[key], f"{where}.{key}")
        built[key] = value
    return cls(**built)


def parse_recipe(values: dict, where: str = "recipe") -> Recipe | VocoderRecipe:
    """Builds a recipe from a mapping. Raises RecipeError for unknown keys, with the near misses, and for no mapping."""
    vocoder = isinstance(values, dict) and values.get("trainer") == "vocoder"
    return _build(VocoderRecipe if vocoder else Recipe, values, where)


def find_recipe(name: str) -> Path:
    """A file, or the name of a shipped recipe with or without .yaml."""
    for path in (Path(name), RECIPE_FOLDER / name, RECIPE_FOLDER / f"{name}.yaml"):
        if path.is_file():
            return path
    shipped = sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml"))
    near = difflib.get_close_matches(name, shipped, n=3, cutoff=0.4)
    hint = f"near: {', '.join(near)}" if near else f"shipped: {', '.join(shipped)}"
    raise RecipeError(f"No recipe {name!r}; {hint}.")


def add_override_option(parser: argparse.ArgumentParser, text: str) -> None:
    """Gives a command --set, which may be repeated, for the overrides of `load_recipe`."""
    parser.add_argument("--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help=text)


def load_recipe(name: str, overrides: typing.Sequence[str] = ()) -> Recipe | VocoderRecipe:
    """Reads a recipe and applies overrides such as "arguments.max_steps=100"; values are YAML."""
    file = find_recipe(name)
    values = read_yaml(file.read_text(encoding="utf-8"), f"{file} is not YAML: mend it where the parser stopped.")
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise RecipeError(f"{file} must hold a mapping of entries such as trainer: joint, got {values!r}.")
    for override in overrides:
        path, separator, value = override.partition("=")
        if not separator:
            raise RecipeError(
                f"Overrides look like key.sub=value, got {override!r}. Quote one that has spaces in it: "
                '--set "data.folders=[a, b]".'
            )
        *parents, last = path.split(".")
        target = values
        for parent in parents:
            if target.get(parent) is None:
                target[parent] = {}
            target = target[parent]
            if not isinstance(target, dict):
                raise RecipeError(f"{override!r} sets a part of {parent}, which is {target!r} and has no parts.")
        quote = f'{override!r} has no YAML value. Quote an entry with spaces in it: --set "data.folders=[a, b]".'
        target[last] = read_yaml(value, quote)
    parts = [override for override in overrides if override.startswith("model.")]
    if parts and values.get("init") is not None and values.get("trainer") != "vocoder":
        raise RecipeError(
            f"{parts[0]!r} would change nothing: the model comes from init ({values['init']}). Drop it, or set "
            "init=null to train such a model from scratch; e2e_tts.trainers.deepen adds layers to a trained one."
        )
    return parse_recipe(values, str(name))
