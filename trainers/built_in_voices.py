"""Built-in voices of a model: measured on annotated rows, and kept beside adapters."""

import json
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from e2e_tts.modeling import E2ETTSModel

from .data.columns import list_lengths, vectors
from .recipe_parts import RecipeError

VOICES_FILE = "voices.json"


def mean_voice(rows: Dataset, token_rate: float) -> tuple[torch.Tensor, float]:
    """A voice from annotated rows: their mean embedding (S,), normalised, and mean of speech tokens per text token."""
    total = sum(piece.sum(axis=0, dtype=np.float64) for piece in vectors(rows, "speaker_embedding"))
    embedding = torch.from_numpy(total / len(rows)).float()
    rates = np.asarray(rows["seconds"][:]) * token_rate / list_lengths(rows, "text_ids")
    return torch.nn.functional.normalize(embedding, dim=-1), float(rates.mean())


def rows_of_voices(rows: Dataset, voices: dict[str, str]) -> dict[str, np.ndarray]:
    """Name of a voice -> its rows: SOURCE[:SPEAKER], "*" for all.

    Raises RecipeError, naming what there is, for a source or speaker without rows.
    """
    sources, speakers = np.asarray(rows["source"][:]), np.asarray(rows["speaker"][:])
    found = {}
    for name, place in voices.items():
        source, _, speaker = place.partition(":")
        chosen = np.full(len(sources), True) if source == "*" else sources == source
        if speaker:
            chosen &= speakers == speaker
        if not chosen.any():
            there = sorted({f"{a}:{b}" for a, b in zip(sources, speakers, strict=True)})
            raise RecipeError(f"voices.{name}: no training rows of {place!r}; there are {there[:20]}.")
        found[name] = np.flatnonzero(chosen)
    return found


def add_voices(model: E2ETTSModel, rows: Dataset, voices: dict[str, str]) -> None:
    """Stores built-in voices in the model beside those it has: name -> rows, as `rows_of_voices` finds them. The first
    of them becomes the default. Raises RecipeError as it does."""
    embeddings, rates = {}, {}
    for name, members in rows_of_voices(rows, voices).items():
        token_rate = model.config.encoder_config.token_rate
        embeddings[name], rates[name] = mean_voice(rows.select(members), token_rate)
    for index, (name, rate) in enumerate(model.config.voices.items()):
        if name not in embeddings:
            embeddings[name], rates[name] = model.voice_embeddings[index], rate
    model.set_voices(embeddings, rates)


def save_voices(model: E2ETTSModel, folder: str | Path) -> None:
    """Writes the model's built-in voices beside an adapter, which has no place for them; the default one first."""
    rows = dict(zip(model.config.voices, model.voice_embeddings.tolist(), strict=True))
    voices = {
        name: {"tokens_per_symbol": model.config.voices[name], "embedding": rows[name]}
        for name in model.config.voice_names
    }
    (Path(folder) / VOICES_FILE).write_text(json.dumps(voices, indent=1) + "\n", encoding="utf-8")


def load_voices(model: E2ETTSModel, folder: str | Path) -> None:
    """Gives the model the voices of `save_voices`; leaves it as it is if the folder has none."""
    file = Path(folder) / VOICES_FILE
    if not file.is_file():
        return
    voices = json.loads(file.read_text(encoding="utf-8"))
    model.set_voices(
        {name: torch.tensor(voice["embedding"]) for name, voice in voices.items()},
        {name: voice["tokens_per_symbol"] for name, voice in voices.items()},
    )
