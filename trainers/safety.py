"""Signs that a run is going wrong: losses that diverge, and tokens that become easy to predict by becoming empty."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from safetensors.torch import save_file

from .recipe_parts import SafetyRecipe

MEDIAN_LOGS, FEWEST_LOGS = 20, 5  # logged losses in the running median, and those that it needs to mean anything
RECONSTRUCTION = ("loss_prior", "loss_flow")
ROW_COLUMNS = ("id", "text", "source", "speaker", "seconds")


def divergence(loss: float, history: Sequence[Mapping[str, float]], factor: float) -> str | None:
    """What is wrong with a step's loss, or None. history: the log so far, whose "loss" entries are means over steps.

    The log is part of every checkpoint, so a resumed run judges as one that was never stopped.
    """
    if not math.isfinite(loss):
        return "is not finite"
    logged = [entry["loss"] for entry in history if "loss" in entry][-MEDIAN_LOGS:]
    if not factor or len(logged) < FEWEST_LOGS:
        return None
    median = statistics.median(logged)
    if loss > factor * median > 0:
        return f"is {loss:.4g}, above {factor:g} times its running median {median:.4g},"
    return None


def _series(history: Sequence[Mapping[str, float]], name: str) -> list[float]:
    return [float(entry[name]) for entry in history if name in entry and "loss" in entry]


def _means(values: Sequence[float], size: int) -> list[float]:
    """Means over every `size` values in a row."""
    return [statistics.fmean(values[end - size : end]) for end in range(size, len(values) + 1)]


def collapse_signs(history: Sequence[Mapping[str, float]], settings: SafetyRecipe) -> dict[str, str]:
    """Alarms that the log gives reason for: name -> sentence with the figures (PAPER section 5).

    Means over `settings.alarm_logs` logs are compared with the best such mean that lies wholly before them.
    """
    size = settings.alarm_logs
    signs = {}
    for name, drop, what in (
        ("token_entropy", settings.entropy_drop, "The entropy of the tokens (bits)"),
        ("code_use", settings.code_use_drop, "The share of codes in use"),
    ):
        means = _means(_series(history, name), size)
        earlier, now = means[:-size], means[-1:]
        if earlier and now[0] < (1 - drop) * max(earlier):
            signs[name] = f"{what} fell from {max(earlier):.3g} to {now[0]:.3g}: the tokens are losing information."
    lm = _means(_series(history, "loss_lm"), size)
    for name in RECONSTRUCTION:
        means = _means(_series(history, name), size)
        if len(means) != len(lm) or len(means) <= size:
            continue
        best = min(range(len(means) - size), key=means.__getitem__)
        if means[-1] > (1 + settings.tradeoff) * means[best] and lm[-1] < (1 - settings.tradeoff) * lm[best]:
            signs[name] = (
                f"{name} rose from {means[best]:.3g} to {means[-1]:.3g} while the LM loss fell from {lm[best]:.3g} to "
                f"{lm[-1]:.3g}: the tokens become predictable at the cost of reconstruction."
            )
    return signs


def bad_batch_folder(output_dir: str | Path, step: int, rank: int) -> Path:
    """Makes the folder bad_batch/step-N (with -rank-R for other processes than the first) of a run."""
    folder = Path(output_dir) / "bad_batch" / (f"step-{step}" + (f"-rank-{rank}" if rank else ""))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def is_finite_norm(norm: torch.Tensor | float | None, accelerator: Accelerator) -> bool:
    """Whether a gradient's norm is finite, as far as it is known: a gradient scaler meets gradients that are not by
    skipping the step, and DeepSpeed gives a number, or None."""
    known = accelerator.scaler is None and norm is not None
    return not known or bool(torch.isfinite(torch.as_tensor(norm)))


def save_bad_batch(
    folder: str | Path, reason: str, step: int, rank: int, batches: Sequence[Mapping[str, Any]], rows: Dataset
) -> Path:
    """Writes what a step was made of: `report.json` (utterances, seeds, losses) and the model's inputs as tensors.

    batches: one entry for each batch of the step, {"inputs", "seeds", "losses"}. Returns the `bad_batch_folder` inside
    `folder`.
    """
    target = bad_batch_folder(folder, step, rank)
    columns = [name for name in ROW_COLUMNS if name in rows.column_names]
    report: dict[str, Any] = {"reason": reason, "step": step, "batches": []}
    for index, batch in enumerate(batches):
        utterances, seeds = batch["inputs"]["utterance"].tolist(), batch["seeds"].tolist()
        described = rows.select_columns(columns).select(utterances)
        report["batches"].append(
            {
                "losses": batch["losses"],
                "utterances": [
                    {"row": row, "seed": seed, **values}
                    for row, seed, values in zip(utterances, seeds, described, strict=True)
                ],
            }
        )
        tensors = {name: value.cpu().contiguous() for name, value in batch["inputs"].items() if torch.is_tensor(value)}
        save_file(tensors, target / f"batch-{index}.safetensors")
    # NaN and infinity as words: bare NaN is no JSON.
    (target / "report.json").write_text(json.dumps(_plain(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return target


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
