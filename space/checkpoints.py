"""The checkpoints of the demo: where they are, how they are loaded, and the vocoder that they share."""

import os
from pathlib import Path
from typing import Any

from transformers import pipeline

HERE = Path(__file__).resolve().parent
# In the repository the released checkpoint; in a Space of its own, a copy of it beside this file.
DEFAULT_MODELS = (HERE.parent / "model_cards" / "small-en", HERE / "model")
# A Space on the Hub is configured by variables: NAME=FOLDER_OR_HUB_NAME, several with commas between them.
VARIABLE = "E2E_TTS_CHECKPOINTS"


def find_sources() -> list[str]:
    """The checkpoints that the environment variable names, else the default one. Raises FileNotFoundError."""
    named = [part.strip() for part in os.environ.get(VARIABLE, "").split(",")]
    if any(named):
        return [part for part in named if part]
    for folder in DEFAULT_MODELS:
        if (folder / "config.json").is_file():
            return [str(folder)]
    looked = " or ".join(str(folder) for folder in DEFAULT_MODELS)
    raise FileNotFoundError(
        f"There is no model in {looked}. Name one: python app.py --model FOLDER_OR_HUB_NAME, or set {VARIABLE}."
    )


def load_checkpoints(sources: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Pipelines by name, in order, from "NAME=FOLDER_OR_HUB_NAME" or the latter alone, whose last part is the name.

    All speak through the first one's vocoder, so that what differs is what was trained differently, and it is in memory
    once. The second value names those that keep their own since that one does not fit their mel.

    Raises ValueError for equal names and for checkpoints that cannot stream.
    """
    checkpoints: dict[str, Any] = {}
    for source in sources:
        name, separator, place = source.partition("=")
        name, place = (name.strip(), place.strip()) if separator else (Path(source).name, source)
        if not name or not place:
            raise ValueError(f"A checkpoint is given as NAME=FOLDER_OR_HUB_NAME, got {source!r}.")
        if name in checkpoints:
            raise ValueError(f"Two checkpoints are called {name!r}; name them: first=FOLDER second=FOLDER.")
        checkpoints[name] = _load(place)
    return checkpoints, _share_vocoder(checkpoints)


def _load(place: str) -> Any:
    try:
        from e2e_tts.pipelines import load_pipeline
    except ImportError:
        # A Space has the checkpoints alone, which bring their own code.
        pipe = pipeline("text-to-speech", model=place, trust_remote_code=True)
    else:
        pipe = load_pipeline(place)
    if not hasattr(pipe, "stream"):
        raise ValueError(f"The code in {place} is older than this demo: load and save the checkpoint again.")
    return pipe


def _share_vocoder(checkpoints: dict[str, Any]) -> list[str]:
    first, *others = checkpoints
    own = []
    for name in others:
        try:
            checkpoints[name].model.replace_module("vocoder", checkpoints[first].model.vocoder)
        except ValueError:
            own.append(name)
    return own
