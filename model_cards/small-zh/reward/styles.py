"""Styles of speech: what they are called, their levels, and how a request becomes levels.

`styles` in the configurations of LM and decoder maps the name of a style to its number of levels, or to the names of
its classes. A style that is measured, pitch say, has levels from 1 (lowest) up, relative to what is usual for the
speaker; level 0 of any style means that nothing is asked for.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import nn

Levels: TypeAlias = int | Sequence[str]
Style: TypeAlias = Mapping[str, str | int] | str  # {"pitch": "high", "effort": 2}, or "pitch=high, effort=2"

UNSPECIFIED = 0
RATE = "rate"
LEVEL_WORDS = {
    2: ("low", "high"),
    3: ("low", "medium", "high"),
    4: ("very low", "low", "high", "very high"),
    5: ("very low", "low", "medium", "high", "very high"),
}
# Where the text's positions follow the speaking rate (text_positions="aligned") it is set exactly, by these factors.
RATE_SPEEDS = {"very slow": 0.7, "slow": 0.85, "medium": 1.0, "fast": 1.2, "very fast": 1.4}


def count_levels(levels: Levels) -> int:
    return levels if isinstance(levels, int) else len(levels)


def check_styles(styles: Mapping[str, Levels]) -> None:
    """Raises ValueError for styles that no model can have."""
    for name, levels in styles.items():
        if not name.isidentifier():
            raise ValueError(f"A style's name consists of letters, digits and underscores, got {name!r}.")
        if hasattr(nn.ModuleDict, name) or hasattr(nn.ModuleDict(), name):
            raise ValueError(f"{name!r} means something to torch and cannot be the name of a style: choose another.")
        named = not isinstance(levels, int)
        if named and (isinstance(levels, str) or len({*levels}) < len(levels) or not all(levels)):
            raise ValueError(f"The classes of the style {name!r} must be a list of different names, got {levels!r}.")
        if isinstance(levels, bool) or count_levels(levels) < (1 if named else 2):
            raise ValueError(
                f"The style {name!r} needs at least 2 levels, or a list with the names of its classes; got {levels!r}."
            )


def ordered_styles(styles: Mapping[str, Levels]) -> dict[str, Levels]:
    """Checked (see `check_styles`) and in the order of their names, which files keep."""
    check_styles(styles)
    return dict(sorted(styles.items()))


def level_words(name: str, levels: Levels) -> tuple[str, ...]:
    """The words for the levels 1, 2, ... of a style; empty where there are too many levels for words."""
    if not isinstance(levels, int):
        return tuple(levels)
    words = LEVEL_WORDS.get(levels, ())
    if name == RATE:
        words = tuple(word.replace("low", "slow").replace("high", "fast") for word in words)
    return words


def known_styles(styles: Mapping[str, Levels], rate_is_set: bool) -> dict[str, Levels]:
    """All that may be asked for. rate_is_set: the model's speaking rate is set, not learned, so "rate" is among it."""
    return dict(styles) | ({RATE: len(RATE_SPEEDS)} if rate_is_set else {})


def describe_styles(styles: Mapping[str, Levels]) -> str:
    """What may be asked for, as a sentence part: "pitch (1 to 3: low, medium, high) and ..."."""
    parts = []
    for name, levels in styles.items():
        words = level_words(name, levels)
        parts.append(f"{name} (1 to {count_levels(levels)}{': ' if words else ''}{', '.join(words)})")
    return " and ".join(parts)


def parse_level(name: str, level: str | int, levels: Levels) -> int:
    """A word ("high"), a number or a number as text -> the level. Raises ValueError with the choices."""
    words, count = level_words(name, levels), count_levels(levels)
    if isinstance(level, str):
        if level in words:
            return words.index(level) + 1
        text = level.strip()
        level = int(text) if text.isascii() and text.isdecimal() else -1
    if isinstance(level, bool) or not isinstance(level, int) or not UNSPECIFIED <= level <= count:
        raise ValueError(f"Style {describe_styles({name: levels})} has no such level; {UNSPECIFIED} asks for nothing.")
    return level


def parse_style(text: str) -> dict[str, str]:
    """From "pitch=very high, effort=2" to {"pitch": "very high", "effort": "2"}. Raises ValueError for another form."""
    style = {}
    for part in filter(str.strip, text.split(",")):
        name, separator, level = (piece.strip() for piece in part.partition("="))
        if not separator or not name or name in style:
            raise ValueError(f'Styles are written "pitch=high, effort=2", each once; got {text!r}.')
        style[name] = level
    return style


def resolve_styles(
    wanted: Style | Sequence[Style], styles: Mapping[str, Levels], batch: int, rate_is_set: bool
) -> tuple[torch.LongTensor, torch.Tensor]:
    """Requests, one for all texts or one each, -> levels (batch, styles) in the order of `styles`, and speeds (batch,).

    rate_is_set: the model's speaking rate is set, not learned; "rate" then gives a factor of the speed.
    Raises ValueError, saying what there is, for a style or level that the model does not have.
    """
    if not isinstance(wanted, Mapping | str | Sequence):
        raise ValueError(f'A style is a mapping such as {{"pitch": "high"}}, got {wanted!r}.')
    requests = [wanted] * batch if isinstance(wanted, Mapping | str) else list(wanted)
    if len(requests) != batch:
        raise ValueError(f"There are {batch} texts but {len(requests)} styles; give one for all, or one each.")
    known = known_styles(styles, rate_is_set)
    resolved, speeds = torch.zeros(batch, len(styles), dtype=torch.long), torch.ones(batch)
    columns = {name: column for column, name in enumerate(styles)}
    for row, request in enumerate(requests):
        request = parse_style(request) if isinstance(request, str) else request
        if not isinstance(request, Mapping):
            raise ValueError(f'A style is a mapping such as {{"pitch": "high"}}, got {request!r}.')
        for name, level in request.items():
            if name not in known:
                has = f"it has {describe_styles(known)}" if known else "it was trained without any"
                raise ValueError(f"The model has no style {name!r}: {has}.")
            number = parse_level(name, level, known[name])
            if name in columns:
                resolved[row, columns[name]] = number
            elif number != UNSPECIFIED:
                speeds[row] = list(RATE_SPEEDS.values())[number - 1]
    return resolved, speeds
