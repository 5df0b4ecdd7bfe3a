"""Prepared speech as torch data sets: decoding, mixing sources, batches of similar length, and padding."""

import io
import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from datasets import Dataset, concatenate_datasets, load_from_disk
from torch.utils.data import Sampler

from e2e_tts.modeling.audio_features import MelSpec, MelSpectrogram, padded_length
from e2e_tts.modeling.configuration_e2e_tts import E2ETTSConfig
from e2e_tts.modeling.styles import UNSPECIFIED, Levels

from .provenance import check_folders

logger = logging.getLogger(__name__)

SEED_STRIDE = 2_654_435_761  # a large odd number, so that (seed, step, utterance) give distinct streams
PREPARED = ("audio", "seconds", "split")  # what every kind of training needs
ANNOTATED = ("text_ids", "ctc_labels", "speaker_embedding")
# Batches of one pool are of similar length where the pool has many times the rows of a batch.
BATCHES_PER_POOL = 20
UNLABELLED = -100
NOT_GIVEN = -1
TOKENS = "speech_ids"  # of rows whose tokens are known, see e2e_tts.trainers.data.self_speech
STYLE_PREFIX = "style_"  # of the columns of e2e_tts.trainers.data.style_labels, a clip's rank among its speaker's


def load_prepared(folders: Sequence[str], split: str, annotated: bool = True) -> Dataset:
    """Concatenates prepared folders (see `prepare` and `annotate`) and keeps one split, sources included.

    Columns that not all folders have are left out, but for labels of style and speech_ids: they are empty in the rows
    of the others. annotated: False leaves out what `annotate` adds, which then need not go together.
    Raises ValueError if a folder is no prepared data set, if folders were annotated with different speaker encoders or
    text tokenizers, and if there are no rows.
    """
    parts = [(folder, load_folder(folder)) for folder in folders]
    if annotated:
        check_folders(folders)
    else:
        parts = [(folder, part.remove_columns([*{*ANNOTATED} & {*part.column_names}])) for folder, part in parts]
    columns = list(dict.fromkeys(name for _, part in parts for name in part.column_names))
    common = [name for name in columns if all(name in part.column_names for _, part in parts)]
    for name in (name for name in ANNOTATED if name in columns and name not in common):
        without = [folder for folder, part in parts if name not in part.column_names]
        logger.warning("Column %s is left out, because %s lack it; run e2e_tts.trainers.data.annotate.", name, without)
    if "speaker_embedding" in common:
        sizes = {folder: len(part[0]["speaker_embedding"] or ()) for folder, part in parts if len(part)}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"The folders were annotated with different speaker encoders; embedding sizes: {sizes}.")
    styles = [name for name in columns if name.startswith(STYLE_PREFIX)]
    for folder, part in parts:
        if missing := [name for name in styles if name not in part.column_names]:
            logger.warning("%s has no %s: e2e_tts.trainers.data.style_labels adds labels of style.", folder, missing)
    optional = [name for name in (*styles, TOKENS) if name not in common]
    kept = [
        part.select_columns([*common, *(name for name in optional if name in part.column_names)]).select(
            np.flatnonzero(np.asarray(part["split"][:]) == split)
        )
        for _, part in parts
    ]
    if not sum(len(part) for part in kept):
        found = Counter(name for _, part in parts for name in part["split"][:])
        without = "data.eval_rows=0" if annotated else "crops.eval_crops=0"  # stages, or a vocoder
        raise ValueError(
            f"No rows of split {split!r} in {list(folders)}, which hold {dict(found)}. Hold rows out with "
            "e2e_tts.trainers.data.prepare (--dev-fraction, --test-fraction or --split-file), or train without any: "
            f"{without}."
        )
    return concatenate_datasets(kept)


def speaker_numbers(rows: Dataset) -> np.ndarray:
    """A number (rows,) for each row's speaker, from 0 on. Equal names in two sources are two speakers."""
    names = [f"{source}/{speaker}" for source, speaker in zip(rows["source"][:], rows["speaker"][:], strict=True)]
    return np.unique(names, return_inverse=True)[1]


def rows_of_all_sources(rows: Dataset, count: int) -> list[int]:
    """At most `count` rows, of each source in turn; those of a source lie at equal distances, to reach all speakers."""
    sources = np.asarray(rows["source"][:])
    members = [np.flatnonzero(sources == name) for name in dict.fromkeys(sources.tolist())]
    shares = [0] * len(members)
    for _ in range(min(count, len(rows))):
        unfinished = [index for index, share in enumerate(shares) if share < len(members[index])]
        shares[min(unfinished, key=shares.__getitem__)] += 1
    spread = [
        own[np.linspace(0, len(own) - 1, share).round().astype(int)].tolist()
        for own, share in zip(members, shares, strict=True)
    ]
    turns = itertools.zip_longest(*spread)
    return [row for turn in turns for row in turn if row is not None]


def load_folder(folder: str) -> Dataset:
    """One prepared folder. Raises ValueError if it is none."""
    if not (Path(folder) / "state.json").is_file():
        raise ValueError(f"{folder} is no prepared data set; write it with e2e_tts.trainers.data.prepare.")
    rows = load_from_disk(folder)
    if missing := [name for name in PREPARED if name not in rows.column_names]:
        raise ValueError(f"{folder} lacks the columns {missing}; prepare it with e2e_tts.trainers.data.prepare.")
    return rows


def check_annotated(rows: Dataset) -> None:
    """Raises ValueError for rows that `annotate` has not seen."""
    if missing := [name for name in ANNOTATED if name not in rows.column_names]:
        raise ValueError(f"The data lack the columns {missing}: run e2e_tts.trainers.data.annotate on every folder.")


def check_rate(rows: Dataset, sampling_rate: int) -> None:
    """Raises ValueError for a source that was prepared at another rate; the first row of each is looked at."""
    sources = np.asarray(rows["source"][:])
    for source in np.unique(sources):
        decode(rows[int(np.flatnonzero(sources == source)[0])]["audio"], sampling_rate)


def decode(audio: dict, sampling_rate: int) -> np.ndarray:
    """The float32 samples of a prepared row. Raises ValueError if it was prepared for another rate."""
    samples, rate = soundfile.read(io.BytesIO(audio["bytes"]), dtype="float32")
    if rate != sampling_rate:
        raise ValueError(
            f"The data was prepared at {rate} Hz but the recipe's mel is at {sampling_rate} Hz: prepare it with "
            f"--sampling-rate {sampling_rate}."
        )
    return samples


class MixtureBatches(Sampler[list[int]]):
    """Batches of row indices: sources by weight, similar lengths together; batch k depends on (seed, k) alone.

    weights maps a value of the `source` column to its share of the utterances; unnamed sources are left out. A batch
    holds at most `seconds_per_batch` in all, padding included, and at most `max_rows` rows, of at most `max_seconds`
    each; a row longer than a batch stands alone. Rows are drawn in pools of at least `pool_rows`, and more where
    batches are large, and grouped by length inside a pool. No batch holds a row twice, and a pool holds it again only
    where its source has no other left: a copy, with the same random draws, would count its row double.

    Raises ValueError for settings that allow no batch, and for a source without rows.
    """

    def __init__(
        self,
        rows: Dataset,
        weights: dict[str, float],
        num_batches: int,
        seed: int,
        seconds_per_batch: float,
        max_rows: int = 64,
        max_seconds: float = 10.0,
        pool_rows: int = 256,
    ) -> None:
        if seconds_per_batch <= 0 or max_rows < 1:
            raise ValueError(f"No batch fits {seconds_per_batch} seconds and {max_rows} rows; both must be positive.")
        sources = np.asarray(rows["source"][:])
        if not weights or min(weights.values()) <= 0:
            raise ValueError(
                f"The recipe must give positive weights to sources, got {weights}; the data has "
                f"{sorted(set(sources.tolist()))}."
            )
        self.seconds = np.asarray(rows["seconds"][:])
        self.groups = {}
        for source in weights:
            of_source = sources == source
            members = np.flatnonzero(of_source & (self.seconds <= max_seconds))
            if not len(members):
                raise ValueError(
                    f"The recipe gives weight to source {source!r}, of which there are no rows of at most "
                    f"{max_seconds} s; the data has {sorted(set(sources.tolist()))}. Give weights to those, or "
                    "data.weights={} to read each as often as it is large."
                )
            if longer := int(of_source.sum()) - len(members):
                logger.warning("%d of %d rows of %s are longer than %s s and left out.", longer, of_source.sum(),
                               source, max_seconds)  # fmt: skip
            self.groups[source] = members
        total = sum(weights.values())
        self.shares = [weight / total for weight in weights.values()]
        mean_seconds = sum(
            share * self.seconds[members].mean()
            for share, members in zip(self.shares, self.groups.values(), strict=True)
        )
        rows_per_batch = min(max_rows, seconds_per_batch / mean_seconds)
        wanted = max(pool_rows, math.ceil(BATCHES_PER_POOL * rows_per_batch))
        self.pool_rows = min(wanted, sum(len(members) for members in self.groups.values()))
        self.num_batches, self.seed = num_batches, seed
        self.seconds_per_batch, self.max_rows = seconds_per_batch, max_rows

    def __len__(self) -> int:
        return self.num_batches

    def _pool(self, number: int) -> list[list[int]]:
        random = np.random.default_rng((self.seed, number))
        groups = list(self.groups.values())
        choice = random.choice(len(groups), self.pool_rows, p=self.shares)
        picks = []
        for rows, count in zip(groups, np.bincount(choice, minlength=len(groups)), strict=True):
            orders = [random.permutation(rows) for _ in range(-(-count // len(rows)))]
            picks.extend(np.concatenate(orders)[:count] if orders else ())
        left = sorted(map(int, picks), key=self.seconds.__getitem__)
        batches = []
        while left:
            batch, later = {}, []  # a dictionary is a set that keeps its order
            for place, pick in enumerate(left):
                size = len(batch) + 1
                if pick in batch:
                    later.append(pick)
                elif batch and (size > self.max_rows or self.seconds[pick] * size > self.seconds_per_batch):
                    later += left[place:]
                    break
                else:
                    batch[pick] = None
            batches.append([*batch])
            left = later
        random.shuffle(batches)
        return batches

    def __iter__(self) -> Iterator[list[int]]:
        produced, number = 0, 0
        while produced < self.num_batches:
            for batch in self._pool(number):
                if produced == self.num_batches:
                    return
                yield batch
                produced += 1
            number += 1


class SpeechDataset(torch.utils.data.Dataset):
    """Rows of an annotated data set -> tensors; audio is decoded on access."""

    def __init__(self, rows: Dataset, spec: MelSpec) -> None:
        self.rows, self.spec = rows, spec

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[int(index)]
        return {**row, "index": int(index), "waveform": decode(row["audio"], self.spec.sampling_rate)}


def style_level(row: dict, name: str, levels: Levels) -> int:
    """The level of a row's style: its speaker's clips in as many equal parts, or the class that the row names.

    Raises ValueError for a class that is not among them.
    """
    if isinstance(levels, int):
        rank = row.get(f"{STYLE_PREFIX}{name}")
        return UNSPECIFIED if rank is None else 1 + min(int(rank * levels), levels - 1)
    label = row.get(name) or ""
    if label and label not in levels:
        raise ValueError(f"The data has {name} {label!r}, the style has {list(levels)}: add it to styles.{name}.")
    return 1 + list(levels).index(label) if label else UNSPECIFIED


class Collator:
    """Pads rows to a batch of model inputs; every utterance is padded with zeros to whole tokens first.

    Gives input_features (B, T_mel, n_mels), feature_mask, text_ids (B, N), text_mask, ctc_labels (B, N'),
    speaker_target (B, S), tokens_per_symbol (B,) and utterance (B,), the row number that keys random draws. Where the
    decoder's mel is another one, `mel` holds it; rows then come at the decoder's sampling rate and are resampled for
    the tokenizer. With `emotions`, the names of the classes of an emotion head, emotion_labels (B,) holds the classes
    of the column emotion, -100 where it is empty. With `styles`, those of the model, style_levels (B, S) holds their
    levels in this order: those of ranks in the column style_NAME, or the classes in the column NAME; 0 where a column
    or its value is missing. Where a row brings its tokens in speech_ids, given_ids (B, T) holds them, -1 elsewhere.

    Raises ValueError for rows that are not annotated, and for an emotion or the like that is no class.
    """

    def __init__(
        self,
        spec: MelSpec,
        frames_per_token: int,
        decoder_spec: MelSpec | None = None,
        emotions: Sequence[str] | None = None,
        styles: Mapping[str, Levels] | None = None,
    ) -> None:
        self.styles = dict(styles or {})
        self.mel = MelSpectrogram(spec)
        self.frames_per_token = frames_per_token
        self.samples_per_token = spec.hop_length * frames_per_token
        self.audio_spec = decoder_spec or spec
        self.decoder_mel = MelSpectrogram(self.audio_spec) if self.audio_spec != spec else None
        self.audio_per_token = self.audio_spec.sampling_rate * self.samples_per_token // spec.sampling_rate
        self.emotions = None if emotions is None else {name: index for index, name in enumerate(emotions)}

    @classmethod
    def for_model(cls, config: E2ETTSConfig) -> "Collator":
        """The collator that a composite needs; `audio_spec.sampling_rate` is the rate of the rows that it takes."""
        encoder, reward = config.encoder_config, config.reward_config
        emotions = None
        if reward.num_emotions:
            # Without names for all its classes the head can serve unlabelled rows only.
            named = len(reward.id2label) == reward.num_emotions
            emotions = [reward.id2label[index] for index in range(reward.num_emotions)] if named else []
        return cls(
            MelSpec.from_dict(encoder.mel),
            encoder.frames_per_token,
            MelSpec.from_dict(config.decoder_config.mel),
            emotions,
            config.styles,
        )

    def _emotion_labels(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        if self.emotions is None:
            return {}
        names = [row.get("emotion") or "" for row in rows]
        if unknown := sorted({name for name in names if name} - self.emotions.keys()):
            raise ValueError(
                f"The data has the emotions {unknown}, the reward model {list(self.emotions)}. Name its classes in "
                "reward_config.id2label, as many as num_emotions."
            )
        return {"emotion_labels": torch.tensor([self.emotions.get(name, UNLABELLED) for name in names])}

    def _style_levels(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        if not self.styles:
            return {}
        levels = [[style_level(row, name, levels) for name, levels in self.styles.items()] for row in rows]
        return {"style_levels": torch.tensor(levels)}

    @staticmethod
    def _given_ids(rows: list[dict], counts: list[int]) -> dict[str, torch.Tensor]:
        given = [row.get(TOKENS) or [] for row in rows]
        if not any(given):
            return {}
        batch = torch.full((len(rows), max(counts)), NOT_GIVEN)
        for target, ids, count, row in zip(batch, given, counts, rows, strict=True):
            if ids and len(ids) != count:
                raise ValueError(f"Row {row['id']} has {len(ids)} tokens in {TOKENS}, but audio of {count}.")
            target[: len(ids)] = torch.tensor(ids, dtype=torch.long)
        return {"given_ids": batch}

    @staticmethod
    def _stack(waveforms: list[np.ndarray], lengths: list[int]) -> torch.Tensor:
        audio = torch.zeros(len(waveforms), max(lengths))
        for target, waveform, length in zip(audio, waveforms, lengths, strict=True):
            part = torch.from_numpy(waveform[:length])
            target[: len(part)] = part
        return audio

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        if missing := [name for name in ANNOTATED if name not in rows[0]]:
            raise ValueError(f"The rows lack {missing}: give folders that e2e_tts.trainers.data.annotate has written.")
        waveforms = [row["waveform"] for row in rows]
        counts = [padded_length(len(waveform), self.audio_per_token) // self.audio_per_token for waveform in waveforms]
        batch = self._emotion_labels(rows) | self._style_levels(rows) | self._given_ids(rows, counts)
        if self.decoder_mel is not None:
            batch["mel"] = self.decoder_mel(self._stack(waveforms, [count * self.audio_per_token for count in counts]))
            rates = self.audio_spec.sampling_rate, self.mel.spec.sampling_rate
            if rates[0] != rates[1]:
                waveforms = [soxr.resample(waveform, *rates) for waveform in waveforms]
        features = self.mel(self._stack(waveforms, [count * self.samples_per_token for count in counts]))
        tokens = torch.tensor(counts)
        feature_mask = torch.arange(features.shape[1])[None] < tokens[:, None] * self.frames_per_token
        text = [torch.tensor(row["text_ids"]) for row in rows]
        labels = [torch.tensor(row["ctc_labels"]) for row in rows]
        text_lengths = torch.tensor([len(ids) for ids in text])
        return batch | {
            "input_features": features * feature_mask[..., None],
            "feature_mask": feature_mask,
            "text_ids": torch.nn.utils.rnn.pad_sequence(text, batch_first=True),
            "text_mask": torch.arange(int(text_lengths.max()))[None] < text_lengths[:, None],
            "ctc_labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=UNLABELLED),
            "speaker_target": torch.tensor(np.array([row["speaker_embedding"] for row in rows]), dtype=torch.float32),
            "tokens_per_symbol": tokens / text_lengths,
            "utterance": torch.tensor([row["index"] for row in rows]),
        }
