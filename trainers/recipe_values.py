"""Values of recipes: what YAML makes of a text, what an entry of a type may hold, and arguments of transformers."""

import re
import types
import typing
from dataclasses import fields

import yaml
from transformers import TrainingArguments

from .recipe_parts import RecipeError, check_key

KINDS = {
    **{"dict": "a mapping", "list": "a list", "tuple": "a list", "str": "a text", "int": "a whole number"},
    **{"float": "a number", "bool": "true or false"},
}
# Arguments of transformers that a stage would pass over without a word, and what is meant by them here.
INERT = {
    "num_train_epochs": "data is a stream, whose length is arguments.max_steps",
    "data_seed": "what is drawn from the data follows arguments.seed",
    "remove_unused_columns": "every column that a step reads is kept",
    "label_smoothing_factor": "the losses are those of the model, weighed by the recipe's entries",
}
INERT_IN_STAGES = INERT | {
    "per_device_train_batch_size": "a batch is cut by data.seconds_per_batch and data.max_rows",
    "auto_find_batch_size": "a batch is cut by data.seconds_per_batch and data.max_rows",
    "dataloader_drop_last": "data is a stream, which has no last batch",
}
# Arguments with which a stopped run would go on otherwise than one that was never stopped.
INEXACT = {
    "save_only_model": "checkpoints would lack the optimizer; arguments.save_total_limit keeps them few",
    "ignore_data_skip": "data that was read would be read again",
}
AT_LEAST_ONE = ("gradient_accumulation_steps", "per_device_train_batch_size", "per_device_eval_batch_size")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4, without a dot, as a string; recipes and overrides mean the number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(text: str, failure: str) -> typing.Any:
    """The value of a text. Raises RecipeError for one that is no YAML: `failure`, and where it ceases to be."""
    try:
        return own_copy(yaml.load(text, _Loader))
    except yaml.YAMLError as error:
        raise RecipeError(f"{failure} ({' '.join(str(error).split())})") from error


def own_copy(value: typing.Any) -> typing.Any:
    """The value with every mapping and list its own: what anchors and aliases share, one override would change all
    of (copy.deepcopy keeps what is shared shared)."""
    if isinstance(value, dict):
        return {key: own_copy(item) for key, item in value.items()}
    return [own_copy(item) for item in value] if isinstance(value, list) else value


def typed(value: typing.Any, annotation: typing.Any, where: str) -> typing.Any:
    """A value as an entry of this type holds it, 1e4 as a whole number. Raises RecipeError for another kind."""
    union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    parts = [part for part in (typing.get_args(annotation) if union else (annotation,)) if part is not type(None)]
    for part in parts:
        kind, inner = typing.get_origin(part) or part, typing.get_args(part)
        if kind is typing.Any or (kind is typing.Literal and value in inner):
            return value
        if kind is typing.Literal:
            continue
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if kind is int and isinstance(value, float) and value.is_integer():
            return int(value)
        if not isinstance(value, (list, tuple) if kind is tuple else kind) or isinstance(value, bool) != (kind is bool):
            continue
        if kind is dict and inner:
            return {key: typed(item, inner[1], f"{where}.{key}") for key, item in value.items()}
        if kind in (list, tuple) and inner:
            return kind(typed(item, inner[0], f"{where}[{index}]") for index, item in enumerate(value))
        return value
    names = [KINDS.get((typing.get_origin(part) or part).__name__, str(part)) for part in parts]
    raise RecipeError(f"{where} must be {' or '.join(dict.fromkeys(names))}, got {value!r}.")


def checked_arguments(values: dict, inert: dict[str, str]) -> dict:
    """Fields of TrainingArguments as it holds them. Raises RecipeError for unknown ones, for values of another kind,
    and for those that would say nothing (`inert`) or make a stopped run go on otherwise."""
    annotations = typing.get_type_hints(TrainingArguments)
    names, checked = [item.name for item in fields(TrainingArguments)], {}
    for name, value in values.items():
        check_key(name, names, "arguments")
        if name in inert:
            raise RecipeError(f"arguments.{name} says nothing here, drop it: {inert[name]}.")
        if name in INEXACT and value:
            raise RecipeError(
                f"arguments.{name} would have a stopped run go on otherwise than an unbroken one, drop it: "
                f"{INEXACT[name]}."
            )
        optional = type(None) in typing.get_args(annotations[name])
        checked[name] = None if optional and value is None else typed(value, annotations[name], f"arguments.{name}")
        if name in AT_LEAST_ONE and checked[name] < 1:
            raise RecipeError(f"arguments.{name} must be at least 1, got {value!r}.")
    return checked
