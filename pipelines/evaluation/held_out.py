"""Held-out rows of prepared speech: which are measured, by which model, and in whose voice a sentence is spoken."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets, load_from_disk
from transformers import AutoModel

from e2e_tts.modeling import E2ETTSModel
from e2e_tts.trainers.data.columns import all_vectors, list_lengths, positions_by_number
from e2e_tts.trainers.data.devices import on_device
from e2e_tts.trainers.data.speech_data import load_prepared

from ..release import load_checkpoint
from .results_folder import fingerprint, fingerprint_checkpoint


def load_composite(folder: str, modules: Sequence[str] = (), device: str = "cpu") -> E2ETTSModel:
    """The complete model in a folder, with single modules replaced by those of NAME=FOLDER entries.

    Raises ValueError for folders that hold something else, for modules that do not fit, and for a device that is not
    there.
    """
    model = load_checkpoint(folder)
    for entry in modules:
        name, separator, place = entry.partition("=")
        if not separator or not (Path(place) / "config.json").is_file():
            raise ValueError(f"A module is NAME=FOLDER with the folder of a saved module, got {entry!r}.")
        model.replace_module(name, AutoModel.from_pretrained(place, dtype=torch.float32))
    return on_device(model.eval(), device)


def composite_version(folder: str, modules: Sequence[str] = ()) -> str:
    """A hash of what `load_composite` loads, which tells two states of a checkpoint in the same folder apart."""
    replaced = [entry.partition("=") for entry in modules]
    parts = [part for name, _, place in replaced for part in (name, fingerprint_checkpoint(place))]
    return fingerprint([fingerprint_checkpoint(folder), *parts])


def select_rows(folders: Sequence[str], split: str, sources: Sequence[str] = (), limit: int | None = None) -> Dataset:
    """Rows of a split, of some sources only if named; `limit` rows at equal distances, so that all speakers stay in.

    Raises ValueError, naming the sources that there are, if none is left.
    """
    rows = load_prepared(folders, split)
    if sources:
        origin = np.asarray(rows["source"][:])
        unknown = sorted(set(sources) - set(origin))
        if unknown:
            raise ValueError(f"No {split} rows of sources {unknown}; there are {sorted(set(origin.tolist()))}.")
        rows = rows.select(np.flatnonzero(np.isin(origin, list(sources))))
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}.")
    if limit is not None and limit < len(rows):
        rows = rows.select(np.linspace(0, len(rows) - 1, limit).round().astype(int))
    return rows


def speakers_of(rows: Dataset) -> list[tuple[str, str]]:
    """Source and name of each row's speaker."""
    return list(zip(rows["source"][:], rows["speaker"][:], strict=True))


@dataclass
class Voices:
    """The voice of every held-out row.

    embedding (rows, S): unit vectors, on the CPU. seconds_per_symbol (rows,): speaking rate in seconds per text token.
    alone: number of rows whose speaker has no other clip; they use their own.
    """

    embedding: torch.Tensor
    seconds_per_symbol: torch.Tensor
    alone: int

    @classmethod
    def of_rows(cls, rows: Dataset, folders: Sequence[str]) -> "Voices":
        """From all *other* clips, of any split, of each row's speaker in the annotated data sets `folders`: no clip
        tells of itself. Equal names in two sources are two speakers, as they are in training."""
        columns = ["id", "source", "speaker", "speaker_embedding", "seconds", "text_ids"]
        if missing := sorted(set(columns) - set(rows.column_names)):
            raise ValueError(f"The data lack the columns {missing}: run e2e_tts.trainers.data.annotate on them first.")
        pool = concatenate_datasets([load_from_disk(folder).select_columns(columns) for folder in folders])
        own = speakers_of(rows)
        numbers = {speaker: number for number, speaker in enumerate(dict.fromkeys(own))}
        # Of a large corpus only the speakers that are held out are read.
        known = np.array([numbers.get(speaker, -1) for speaker in speakers_of(pool)])
        pool = pool.select(np.flatnonzero(known >= 0))
        clips = positions_by_number(known[known >= 0])
        ids, embeddings = np.asarray(pool["id"][:]), all_vectors(pool, "speaker_embedding")
        rates = np.asarray(pool["seconds"][:]) / np.maximum(1, list_lengths(pool, "text_ids"))
        vectors, speeds, alone = [], [], 0
        for name, speaker in zip(rows["id"][:], own, strict=True):
            members = clips[numbers[speaker]]
            others = members[ids[members] != name]
            alone += not len(others)
            chosen = others if len(others) else members
            vectors.append(embeddings[chosen].mean(axis=0))
            speeds.append(rates[chosen].mean())
        embedding = torch.nn.functional.normalize(torch.from_numpy(np.stack(vectors)), dim=-1)
        return cls(embedding, torch.tensor(speeds, dtype=torch.float32), alone)

    @classmethod
    def built_in(cls, model: E2ETTSModel, name: str, rows: int) -> "Voices":
        """A built-in voice for all rows. Raises ValueError for a voice that the model does not have."""
        known = list(model.config.voices)
        if name not in known:
            raise ValueError(f"Unknown voice {name!r}; the model has {known}.")
        seconds = model.config.voices[name] / model.config.encoder_config.token_rate
        embedding = model.voice_embeddings[known.index(name)].cpu()
        return cls(embedding.expand(rows, -1), torch.full((rows,), seconds), 0)
