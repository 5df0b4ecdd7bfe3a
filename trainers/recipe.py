"""Recipes: a training stage as data. Unknown keys are refused with the nearest known ones."""

import difflib
import re
import typing
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path

import yaml
from transformers import PreTrainedConfig, TrainingArguments

from e2e_tts.modeling.configuration_e2e_tts import E2ETTSConfig
from e2e_tts.modeling.configuration_vocoder import VocoderConfig

from .vocoder_data import CropSettings
from .vocoder_trainer import DiscriminatorSettings, VocoderLossSettings

RECIPE_FOLDER = Path(__file__).parent / "recipes"
MODULE_NAMES = ("encoder", "reward", "lm", "decoder", "speaker", "vocoder")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4, without a dot, as a string; recipes and overrides mean the number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class RecipeError(ValueError):
    """A recipe that cannot be run; the message says which entry and what to do."""


@dataclass
class DataRecipe:
    """Where speech comes from. `folders` are annotated data sets; `weights` the share of utterances by source."""

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
    """Weights of the losses on codes that the LM predicts (second-order, stage 3)."""

    asr: float = 0.0
    spk: float = 0.0
    ser: float = 0.0
    flow: float = 0.0
    prior: float = 0.0


@dataclass
class GumbelSchedule:
    """Temperature of the Gumbel-Softmax, falling linearly over the run."""

    start: float = 1.0
    end: float = 0.3


@dataclass
class Recipe:
    """One stage of training.

    trainer: "joint", "component" or "end_to_end". init: folder of a composite to start from; init_modules: folders of
    single modules that replace parts of it. model: the composite's configuration, for a start from scratch. train:
    the modules that learn; the others are frozen. learning_rates: by module, default the trainer's. lm_ramp_steps:
    the LM loss grows from 0 to its weight over these steps. kl: weight of the divergence from the starting LM.
    arguments: fields of transformers' TrainingArguments.
    """

    trainer: str = "joint"
    init: str | None = None
    init_modules: dict[str, str] = field(default_factory=dict)
    model: dict | None = None
    train: list[str] = field(default_factory=list)
    data: DataRecipe = field(default_factory=DataRecipe)
    losses: TrueLosses = field(default_factory=TrueLosses)
    predicted_losses: PredictedLosses = field(default_factory=PredictedLosses)
    kl: float = 0.0
    predict_from: str = "codes"
    gumbel: GumbelSchedule = field(default_factory=GumbelSchedule)
    lm_ramp_steps: int = 0
    rate_jitter: float = 0.0
    learning_rates: dict[str, float] = field(default_factory=dict)
    arguments: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.trainer not in ("joint", "component", "end_to_end"):
            raise RecipeError(f"trainer must be joint, component, end_to_end or vocoder, got {self.trainer!r}.")
        for name in [*self.train, *self.learning_rates, *self.init_modules]:
            _check_key(name, MODULE_NAMES, "modules")
        for name in self.arguments:
            _check_key(name, [item.name for item in fields(TrainingArguments)], "arguments")
        if self.model is not None:
            _check_model(self.model, E2ETTSConfig, "model")
        if not self.train:
            raise RecipeError("train is empty: name the modules that learn, e.g. [encoder, reward, lm, decoder].")
        if self.init is None and self.model is None:
            raise RecipeError("A recipe needs either init (a folder to start from) or model (a configuration).")


@dataclass
class VocoderRecipe:
    """Training of the vocoder. folders hold prepared speech; model is a `VocoderConfig`; arguments as in `Recipe`."""

    trainer: str = "vocoder"
    folders: list[str] = field(default_factory=list)
    model: dict = field(default_factory=dict)
    losses: VocoderLossSettings = field(default_factory=VocoderLossSettings)
    discriminator: DiscriminatorSettings = field(default_factory=DiscriminatorSettings)
    crops: CropSettings = field(default_factory=CropSettings)
    arguments: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.arguments:
            _check_key(name, [item.name for item in fields(TrainingArguments)], "arguments")
        _check_model(self.model, VocoderConfig, "model")


def _check_key(key: str, known: typing.Iterable[str], where: str) -> None:
    known = list(known)
    if key not in known:
        near = difflib.get_close_matches(key, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known))}."
        raise RecipeError(f"Unknown entry {key!r} in {where}; {hint}")


def _check_model(values: dict, cls: type[PreTrainedConfig], where: str) -> None:
    # Configurations keep any keyword, so a typo in one would otherwise leave a default in place without a word.
    for key, value in values.items():
        _check_key(key, ["model_type", *(item.name for item in fields(cls))], where)
        part = cls.sub_configs.get(key)
        if part is not None and isinstance(value, dict):
            _check_model(value, part, f"{where}.{key}")


def _build(cls: type, values: dict, where: str) -> typing.Any:
    if not isinstance(values, dict):
        raise RecipeError(f"{where} must be a mapping, got {values!r}.")
    types = typing.get_type_hints(cls)
    names = [item.name for item in fields(cls)]
    built = {}
    for key, value in values.items():
        _check_key(key, names, where)
        if is_dataclass(types[key]):
            value = _build(types[key], value or {}, f"{where}.{key}")
        elif types[key] is float:
            value = float(value)
        built[key] = value
    return cls(**built)


def parse_recipe(values: dict, where: str = "recipe") -> Recipe | VocoderRecipe:
    """Builds a recipe from a mapping. Raises RecipeError for unknown keys, with the near misses."""
    return _build(VocoderRecipe if values.get("trainer") == "vocoder" else Recipe, values, where)


def find_recipe(name: str) -> Path:
    """A file, or the name of a shipped recipe with or without .yaml."""
    for path in (Path(name), RECIPE_FOLDER / name, RECIPE_FOLDER / f"{name}.yaml"):
        if path.is_file():
            return path
    shipped = sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml"))
    near = difflib.get_close_matches(name, shipped, n=3, cutoff=0.4)
    hint = f"near: {', '.join(near)}" if near else f"shipped: {', '.join(shipped)}"
    raise RecipeError(f"No recipe {name!r}; {hint}.")


def load_recipe(name: str, overrides: typing.Sequence[str] = ()) -> Recipe | VocoderRecipe:
    """Reads a recipe and applies overrides such as "arguments.max_steps=100"; values are YAML."""
    values = yaml.load(find_recipe(name).read_text(), _Loader) or {}
    for override in overrides:
        path, separator, value = override.partition("=")
        if not separator:
            raise RecipeError(f"Overrides look like key.sub=value, got {override!r}.")
        *parents, last = path.split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = yaml.load(value, _Loader)
    return parse_recipe(values, str(name))
