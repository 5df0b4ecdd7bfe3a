"""What a reward model hears in a tokenizer's codes of held-out speech, and what is lost from the codes on.

python -m e2e_tts.pipelines.evaluation.reward_table --model runs/joint/final --data runs/data/annotated \\
    --split dev --output DIR

All on true tokens, by the models themselves, so that it moves long before error rates of speech do:

- label error rate: greedy CTC of the reward model against the recognition labels
- speaker equal-error rate: the SPK head on all pairs of utterances; beside it that of its teacher
- emotion accuracy, weighted (over utterances) and unweighted (mean over emotions), where the data have labels
- mel distance in dB: mean absolute difference of log-mels, of the decoder's regression ("prior") and of its samples
- L_LM: nats a token, END_OF_SPEECH included

Voices come from other clips of each speaker. Intervals: 95 %, bootstrap over sentences (utterances for the last two of
the reward model's heads).
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm

from e2e_tts.modeling import E2ETTSModel
from e2e_tts.modeling.modeling_flow_decoder import SOLVER_STEPS
from e2e_tts.trainers.command_line import CommandParser
from e2e_tts.trainers.data.columns import all_vectors
from e2e_tts.trainers.data.devices import add_device_option
from e2e_tts.trainers.data.speech_data import Collator, SpeechDataset
from e2e_tts.trainers.stage_trainers import edit_distance

from .held_out import Voices, load_composite, select_rows
from .markdown import markdown_table
from .paired_bootstrap import Interval, Measurements, interval

DECIBELS = 20 / math.log(10)  # of one unit of a natural-log magnitude
UNLABELLED = -100
RATIOS = {
    "label_error_rate": "CTC label error rate",
    "lm_loss": "L_LM, nats a token",
    "mel_distance_prior": "mel distance, regressed, dB",
    "mel_distance_sampled": "mel distance, sampled, dB",
}


@dataclass
class Utterance:
    """One measured row. `measures`: name -> (numerator, denominator), such as edits and labels, or dB and frames."""

    id: str
    sentence: str
    speaker: str
    source: str
    measures: dict[str, tuple[float, float]] = field(default_factory=dict)
    emotion: int = UNLABELLED
    emotion_heard: int = UNLABELLED

    @property
    def voice(self) -> str:
        """Whose it is: equal names in two sources are two speakers."""
        return f"{self.source}/{self.speaker}"


# --- measures of the reward model's heads ------------------------------------------------------------------------


def equal_error_rate(scores: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Where false acceptances and false rejections are equally frequent; scores, same (bool), weights (pairs,).

    Raises ValueError without pairs of both kinds.
    """
    weights = np.ones(len(scores)) if weights is None else weights
    targets, others = weights * same, weights * ~same
    if not (targets.sum() > 0 and others.sum() > 0):
        raise ValueError("An equal-error rate needs pairs of the same and of different speakers.")
    order = np.argsort(-scores, kind="stable")
    # A threshold cannot pass between equal scores.
    last = np.append(np.diff(scores[order]) != 0, True)
    rejected = np.append(1.0, 1 - np.cumsum(targets[order])[last] / targets.sum())
    accepted = np.append(0.0, np.cumsum(others[order])[last] / others.sum())
    crossing = int(np.argmax(accepted >= rejected))
    before, after = rejected[crossing - 1] - accepted[crossing - 1], accepted[crossing] - rejected[crossing]
    share = before / (before + after)
    return float(rejected[crossing - 1] + share * (rejected[crossing] - rejected[crossing - 1]))


def speaker_error(vectors: np.ndarray, speakers: Sequence[str], resamples: int, seed: int) -> Interval | None:
    """Equal-error rate of unit vectors (utterances, S) over all pairs; None where no two share a speaker, or all do."""
    first, second = np.triu_indices(len(vectors), k=1)
    names = np.asarray(speakers)
    same = names[first] == names[second]
    if same.all() or not same.any():
        return None
    scores = (vectors @ vectors.T)[first, second]
    generator, rates = np.random.default_rng(seed), []
    while len(rates) < resamples:
        drawn = np.bincount(generator.integers(len(vectors), size=len(vectors)), minlength=len(vectors))
        weights = (drawn[first] * drawn[second]).astype(float)
        # A draw of one speaker's clips alone has no rate.
        if (weights * same).any() and (weights * ~same).any():
            rates.append(equal_error_rate(scores, same, weights))
    low, high = np.quantile(rates, [0.025, 0.975])
    return Interval(equal_error_rate(scores, same), float(low), float(high))


def emotion_accuracy(labels: Sequence[int], heard: Sequence[int], resamples: int, seed: int) -> dict[str, Interval]:
    """Accuracy over the labelled utterances and its mean over their emotions; empty where nothing is labelled."""
    labels, heard = np.asarray(labels), np.asarray(heard)
    labelled = (labels != UNLABELLED) & (heard != UNLABELLED)
    labels, right = labels[labelled], (labels == heard)[labelled]
    if not len(labels):
        return {}

    def accuracies(rows: np.ndarray) -> tuple[float, float]:
        by_emotion = [right[rows][labels[rows] == emotion].mean() for emotion in np.unique(labels[rows])]
        return float(right[rows].mean()), float(np.mean(by_emotion))

    generator = np.random.default_rng(seed)
    draws = [accuracies(generator.integers(len(labels), size=len(labels))) for _ in range(resamples)]
    values, bounds = accuracies(np.arange(len(labels))), np.quantile(draws, [0.025, 0.975], axis=0)
    names = ("emotion_accuracy_weighted", "emotion_accuracy_unweighted")
    return {name: Interval(values[i], float(bounds[0][i]), float(bounds[1][i])) for i, name in enumerate(names)}


def emotion_names(model: E2ETTSModel, names: Sequence[str]) -> list[str]:
    """The reward model's emotions in the order of its classes: as given, or as its configuration names them.

    Empty if neither says. Raises ValueError for another number of names than classes.
    """
    config = model.config.reward_config
    if not names and config.num_emotions and config.id2label and len(config.id2label) == config.num_emotions:
        named = [config.id2label[index] for index in range(config.num_emotions)]
        names = [] if any(name.startswith("LABEL_") for name in named) else named
    if names and len(names) != config.num_emotions:
        raise ValueError(f"Got {len(names)} emotions, but the reward model has {config.num_emotions} classes.")
    return list(names)


# --- measuring ---------------------------------------------------------------------------------------------------


class HeldOutMeasurement:
    """Runs a composite on held-out rows, on its device. steps, guidance: of the decoder's sampling; seed keys its
    noise."""

    def __init__(
        self,
        model: E2ETTSModel,
        *,
        steps: int = SOLVER_STEPS,
        guidance: float = 0.7,
        emotions: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.model = model.eval()
        self.collate = Collator.for_model(model.config)
        # Labels are read here: an emotion that is no class of this model is masked, where training refuses it.
        self.collate.emotions = None
        self.steps, self.guidance, self.seed = steps, guidance, seed
        self.classes = {name: index for index, name in enumerate(emotion_names(model, emotions))}

    @torch.no_grad()
    def __call__(self, rows: Dataset, voices: Voices, batch_size: int = 8) -> tuple[list[Utterance], np.ndarray | None]:
        """Measured rows and the SPK head's unit vectors (rows, S), None without that head."""
        dataset, utterances, vectors = SpeechDataset(rows, self.collate.audio_spec), [], []
        for start in tqdm(range(0, len(rows), batch_size), desc="measuring", disable=None):
            items = [dataset[index] for index in range(start, min(start + batch_size, len(rows)))]
            voice = voices.embedding[start : start + len(items)]
            measured, vector = self._batch(items, voice)
            utterances += measured
            vectors.append(vector)
        return utterances, None if vectors[0] is None else torch.cat(vectors).cpu().numpy()

    def _batch(self, items: list[dict], voice: torch.Tensor) -> tuple[list[Utterance], torch.Tensor | None]:
        model = self.model
        batch = {name: value.to(model.device) for name, value in self.collate(items).items()}
        voice = voice.to(model.device)
        encoded = model.encoder(batch["input_features"], batch["feature_mask"])
        text, rate = (batch["text_ids"], batch["text_mask"]), batch["tokens_per_symbol"]
        logits = model.lm(*text, encoded.codes, encoded.mask, None, voice, rate).logits
        heard = model.reward(encoded.codes, encoded.mask)
        measured = [Utterance(row["id"], row["text"], row["speaker"], row["source"]) for row in items]
        for index, (utterance, row) in enumerate(zip(measured, items, strict=True)):
            tokens = int(encoded.mask[index].sum()) + 1
            one = slice(index, index + 1)
            loss = model.lm.loss(logits[one], encoded.ids[one], encoded.mask[one])
            utterance.measures["lm_loss"] = (float(loss) * tokens, tokens)
            if heard.emotion_logits is not None and row.get("emotion") in self.classes:
                utterance.emotion = self.classes[row["emotion"]]
                utterance.emotion_heard = int(heard.emotion_logits[index].argmax())
        if model.reward.ctc_head is not None:
            transcripts = model.reward.transcribe(encoded.codes, encoded.mask)
            for utterance, row, labels in zip(measured, items, transcripts, strict=True):
                said = list(row["ctc_labels"])
                utterance.measures["label_error_rate"] = (edit_distance(labels, said), len(said))
        source = model.decoder_source(encoded.codes, encoded.mask, *text, voice, rate)
        frame_mask = encoded.mask.repeat_interleave(model.decoder.config.frames_per_token, dim=1)
        target = batch.get("mel", batch["input_features"])
        for name, mel in self._mels(source, encoded.mask, voice, batch["utterance"]):
            distance = (mel - target).abs().mean(dim=-1) * frame_mask * DECIBELS
            for utterance, total, frames in zip(measured, distance.sum(dim=1), frame_mask.sum(dim=1), strict=True):
                utterance.measures[name] = (float(total), int(frames))
        return measured, heard.speaker_embedding

    def _mels(
        self, source: torch.Tensor, mask: torch.Tensor, voice: torch.Tensor, rows: torch.Tensor
    ) -> Iterator[tuple[str, torch.Tensor]]:
        decoder = self.model.decoder
        prior = decoder.condition(source, mask, voice)[1]
        if prior is not None:
            yield "mel_distance_prior", prior * decoder.config.mel_std + decoder.config.mel_mean
        seeds = rows + 1_000_003 * self.seed
        sampled = decoder.sample(source, mask, voice, seeds=seeds, num_steps=self.steps, guidance=self.guidance)
        yield "mel_distance_sampled", sampled


# --- the report --------------------------------------------------------------------------------------------------


@dataclass
class RewardTable:
    """figures: name -> value with interval. notes: why a figure is absent. settings: what was measured, and how."""

    settings: dict[str, Any]
    figures: dict[str, Interval]
    notes: list[str]
    utterances: list[Utterance]

    def to_markdown(self) -> str:
        labels = RATIOS | {
            "speaker_equal_error_rate": "speaker equal-error rate",
            "speaker_equal_error_rate_of_teacher": "speaker equal-error rate of the teacher",
            "emotion_accuracy_weighted": "emotion accuracy, weighted",
            "emotion_accuracy_unweighted": "emotion accuracy, unweighted",
        }
        lines = [
            f"{len(self.utterances)} utterances, {len({row.sentence for row in self.utterances})} sentences, "
            f"{len({row.voice for row in self.utterances})} speakers",
            "",
        ]
        cells = []
        for name, figure in self.figures.items():
            is_rate = "rate" in name or "accuracy" in name
            scale, unit, digits = (100, " %", 1) if is_rate else (1, "", 3)
            value, low, high = (f"{scale * number:.{digits}f}" for number in (figure.value, figure.low, figure.high))
            cells.append([labels[name], f"{value}{unit}", f"{low} to {high}"])
        lines += markdown_table(["measure", "value", "95 % interval"], cells)
        return "\n".join([*lines, *(["", *(f"- {note}" for note in self.notes)] if self.notes else [])]) + "\n"

    def write(self, folder: Path) -> None:
        """reward_table.json and reward_table.md."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False)
        (folder / "reward_table.json").write_text(text + "\n", encoding="utf-8")
        (folder / "reward_table.md").write_text(self.to_markdown(), encoding="utf-8")


def make_table(
    utterances: list[Utterance],
    vectors: np.ndarray | None,
    teacher: np.ndarray,
    settings: dict[str, Any],
    resamples: int = 1000,
    seed: int = 0,
) -> RewardTable:
    """Sums measured rows up. vectors, teacher (rows, S): unit speaker vectors of the SPK head and of its teacher."""
    figures, notes = {}, []
    for name in RATIOS:
        records = [(0, row.sentence, *row.measures[name]) for row in utterances if name in row.measures]
        if records:
            figures[name] = interval(Measurements.collect(records), resamples=resamples, seed=seed)
        else:
            notes.append(f"No {name}: the model has no such head.")
    speakers = [row.voice for row in utterances]
    for name, rows in (("speaker_equal_error_rate", vectors), ("speaker_equal_error_rate_of_teacher", teacher)):
        rate = None if rows is None else speaker_error(rows, speakers, min(resamples, 200), seed)
        if rate is None:
            notes.append(f"No {name}: no SPK head, or no pairs both of the same and of different speakers.")
        else:
            figures[name] = rate
    accuracies = emotion_accuracy(
        [row.emotion for row in utterances], [row.emotion_heard for row in utterances], resamples, seed
    )
    if not accuracies:
        notes.append("No emotion accuracy: no SER head, no labels in the data, or no names for its classes.")
    return RewardTable(settings, figures | accuracies, notes, utterances)


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(
        prog="python -m e2e_tts.pipelines.evaluation.reward_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="folder of a complete model")
    parser.add_argument(
        "--module", action="append", default=[], metavar="NAME=FOLDER", help="replace a module, reward say (repeatable)"
    )
    parser.add_argument("--data", nargs="+", required=True, help="folders of annotated speech")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--sources", nargs="*", default=[], help="by default all")
    parser.add_argument("--limit", type=int, help="number of utterances, spread over the split; by default all")
    parser.add_argument("--emotions", nargs="*", default=[], help="names of the SER classes, in their order")
    parser.add_argument("--steps", type=int, default=SOLVER_STEPS, help="of the decoder")
    parser.add_argument("--guidance", type=float, default=0.7)
    add_device_option(parser)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the decoder's noise and of the bootstrap")
    parser.add_argument("--output", type=Path, required=True, help="folder for reward_table.json and reward_table.md")
    options = parser.parse_args(arguments)
    try:
        rows = select_rows(options.data, options.split, options.sources, options.limit)
        voices = Voices.of_rows(rows, options.data)
        measure = HeldOutMeasurement(
            load_composite(options.model, options.module, options.device),
            steps=options.steps,
            guidance=options.guidance,
            emotions=options.emotions,
            seed=options.seed,
        )
        utterances, vectors = measure(rows, voices)
        teacher = all_vectors(rows, "speaker_embedding")
        teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
        settings = vars(options) | {"output": str(options.output), "rows_with_own_voice": voices.alone}
        table = make_table(utterances, vectors, teacher, settings, options.resamples, options.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    table.write(options.output)
    print(table.to_markdown())


if __name__ == "__main__":
    main()
