"""What a tokenizer's codes look like: entropy, predictability, code use, levels (PAPER section 4).

python -m e2e_tts.pipelines.evaluation.token_statistics --model full=runs/joint/final --model cascade=DIR \\
    --data runs/data/annotated --split dev --output DIR

Several tokenizers are compared on the same utterances at the same number of tokens, because every figure here moves
with that number. Two corrections are made, in bits:

- H(X_n) by Miller and Madow: each code is seen often enough for their first-order term, (codes seen - 1) / (2 N ln 2).
- I(X_n+1; X_n) by Chao and Shen's coverage-adjusted entropies. Most *pairs* of codes occur once or never, where a
  first-order term hardly helps; the share of pairs seen once says how much probability was not seen at all. It still
  errs upwards when tokens are few, so the uncorrected figure (an upper end) and the one less that of shuffled tokens
  (a lower end, for shuffling invents more chance pairs than a real sequence has) stand beside it.

Intervals: 95 %, from random halves of the utterances. Drawing with replacement would repeat utterances, and repeated
pairs are just what these estimators take for structure; a half without replacement has the spread of the whole.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModel

import e2e_tts.modeling  # noqa: F401 - makes the models known to AutoModel
from e2e_tts.modeling.modeling_speech_encoder import SpeechEncoderModel
from e2e_tts.trainers.command_line import CommandParser
from e2e_tts.trainers.data.devices import add_device_option, on_device
from e2e_tts.trainers.data.vocoder_data import read_audio

from .held_out import select_rows
from .markdown import markdown_table

Sequences = list[np.ndarray]
MEASURES = ("entropy", "mutual_information", "code_use")


# --- estimators --------------------------------------------------------------------------------------------------


def plugin_entropy(counts: np.ndarray) -> float:
    """Entropy in bits of the observed frequencies; too low by about (symbols - 1) / (2 N ln 2)."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def miller_madow_entropy(counts: np.ndarray) -> float:
    """Entropy in bits with Miller and Madow's first-order correction."""
    return plugin_entropy(counts) + ((counts > 0).sum() - 1) / (2 * counts.sum() * np.log(2))


def chao_shen_entropy(counts: np.ndarray) -> float:
    """Entropy in bits by Chao and Shen (2003): frequencies shrunk by the coverage, sums weighted by inclusion."""
    counts = counts[counts > 0]
    total, once = counts.sum(), (counts == 1).sum()
    # Nothing seen twice would mean that nothing was covered; one symbol less keeps the estimate finite.
    coverage = 1 - min(once, total - 1) / total
    shares = coverage * counts / total
    return float(-(shares * np.log2(shares) / -np.expm1(total * np.log1p(-shares))).sum()) if len(counts) > 1 else 0.0


def mutual_information(sequences: Sequences, num_codes: int, entropy: Callable[[np.ndarray], float]) -> float:
    """I(X_n+1; X_n) in bits over neighbours inside each sequence, from entropies of first, second and pair.

    Raises ValueError if no sequence has two tokens.
    """
    first = np.concatenate([ids[:-1] for ids in sequences])
    second = np.concatenate([ids[1:] for ids in sequences])
    if not len(first):
        raise ValueError("Mutual information needs utterances of two tokens or more.")
    pairs = np.unique(first.astype(np.int64) * num_codes + second, return_counts=True)[1]
    return entropy(np.bincount(first)) + entropy(np.bincount(second)) - entropy(pairs)


def shuffled_information(sequences: Sequences, num_codes: int, shuffles: int = 5, seed: int = 0) -> float:
    """Uncorrected I(X_n+1; X_n) of the same tokens in random order: what chance alone looks like, in bits."""
    generator = np.random.default_rng(seed)
    tokens, ends = np.concatenate(sequences), np.cumsum([len(ids) for ids in sequences])[:-1]
    return float(
        np.mean(
            [
                mutual_information(np.split(generator.permutation(tokens), ends), num_codes, plugin_entropy)
                for _ in range(shuffles)
            ]
        )
    )


def estimate(sequences: Sequences, num_codes: int) -> dict[str, float]:
    """The corrected figures, by the names in MEASURES."""
    counts = np.bincount(np.concatenate(sequences), minlength=num_codes)
    return {
        "entropy": miller_madow_entropy(counts),
        "mutual_information": mutual_information(sequences, num_codes, chao_shen_entropy),
        "code_use": float((counts > 0).mean()),
    }


# --- the report --------------------------------------------------------------------------------------------------


@dataclass
class TokenStatistics:
    """Statistics of one tokenizer. Entropies are in bits, `intervals` are 95 %.

    levels: for every FSQ dimension the share of each of its levels. level_entropy and level_information are H and I of
    that dimension's levels alone: tables so small that their bias can be forgotten. ranked_counts: how often the codes
    occur, most frequent first.
    """

    name: str
    tokens: int
    utterances: int
    num_codes: int
    entropy: float
    entropy_plugin: float
    mutual_information: float
    mutual_information_plugin: float
    mutual_information_less_shuffled: float
    code_use: float
    intervals: dict[str, tuple[float, float]]
    levels: list[list[float]]
    level_entropy: list[float]
    level_information: list[float]
    ranked_counts: list[int]


def cut(sequences: Sequences, tokens: int) -> Sequences:
    """The first `tokens` tokens, the last utterance shortened."""
    starts = np.cumsum([0] + [len(ids) for ids in sequences[:-1]])
    return [ids[: tokens - start] for ids, start in zip(sequences, starts, strict=True) if start < tokens]


def split_levels(ids: np.ndarray, levels: Sequence[int]) -> np.ndarray:
    """Code indices (N,) -> level of every dimension (D, N), dimension 0 fastest as in the quantizer."""
    digits = []
    for level in levels:
        digits.append(ids % level)
        ids = ids // level
    return np.stack(digits)


def half_samples(
    sequences: Sequences, num_codes: int, utterances: int, resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """Every measure on random halves of the utterances: arrays (resamples,).

    The same seed draws the same halves of the `utterances` that there were before `cut`, for every tokenizer.
    """
    generator = np.random.default_rng(seed)
    values = []
    while len(values) < resamples:
        chosen = generator.permutation(utterances)[: (utterances + 1) // 2]
        half = [sequences[index] for index in chosen if index < len(sequences)]
        if any(len(ids) > 1 for ids in half):
            values.append(estimate(half, num_codes))
    return {name: np.array([value[name] for value in values]) for name in MEASURES}


def centred_interval(value: float, draws: np.ndarray) -> tuple[float, float]:
    """The spread of the draws around `value`: halves have more bias than the whole, but the same spread."""
    low, high = np.quantile(draws, [0.025, 0.975]) - draws.mean()
    return value + float(low), value + float(high)


def compare(
    tokenizers: dict[str, Sequences], levels: dict[str, Sequence[int]], resamples: int = 200, seed: int = 0
) -> tuple[list[TokenStatistics], list[dict]]:
    """Statistics of every tokenizer at the same number of tokens, and the paired differences from the first one.

    tokenizers: name -> code indices of each utterance, the same utterances for all. Raises ValueError otherwise, for
    fewer than two utterances or one resample, and where no utterance has two tokens.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}.")
    lengths = {name: len(sequences) for name, sequences in tokenizers.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Tokenizers are compared on the same utterances, but have {lengths}.")
    if min(lengths.values()) < 2:
        raise ValueError("At least two utterances are needed.")
    tokens = min(sum(map(len, sequences)) for sequences in tokenizers.values())
    reports, draws = [], {}
    for name, sequences in tokenizers.items():
        sequences, num_codes = cut(sequences, tokens), int(np.prod(levels[name]))
        if max(map(len, sequences)) < 2:
            raise ValueError(f"No utterance of {name} has two tokens: there is no mutual information to compute.")
        draws[name] = half_samples(sequences, num_codes, lengths[name], resamples, seed)
        reports.append(_describe(name, sequences, levels[name], draws[name]))
    first, differences = reports[0], []
    for report in reports[1:]:
        difference = {"first": report.name, "second": first.name}
        for measure in MEASURES:
            value = getattr(report, measure) - getattr(first, measure)
            spread = draws[report.name][measure] - draws[first.name][measure]
            difference[measure] = {"value": value, "interval": centred_interval(value, spread)}
        differences.append(difference)
    return reports, differences


def _describe(name: str, sequences: Sequences, levels: Sequence[int], draws: dict[str, np.ndarray]) -> TokenStatistics:
    num_codes, tokens = int(np.prod(levels)), np.concatenate(sequences)
    counts, values = np.bincount(tokens, minlength=num_codes), estimate(sequences, num_codes)
    plugin = mutual_information(sequences, num_codes, plugin_entropy)
    digits = [split_levels(ids, levels) for ids in sequences]
    shares, entropies, information = [], [], []
    for dimension, level in enumerate(levels):
        rows = [row[dimension] for row in digits]
        occurring = np.bincount(np.concatenate(rows), minlength=level)
        shares.append((occurring / len(tokens)).tolist())
        entropies.append(miller_madow_entropy(occurring))
        information.append(mutual_information(rows, level, miller_madow_entropy))
    return TokenStatistics(
        name=name,
        tokens=len(tokens),
        utterances=len(sequences),
        num_codes=num_codes,
        **values,
        entropy_plugin=plugin_entropy(counts),
        mutual_information_plugin=plugin,
        mutual_information_less_shuffled=plugin - shuffled_information(sequences, num_codes),
        intervals={measure: centred_interval(values[measure], draws[measure]) for measure in MEASURES},
        levels=shares,
        level_entropy=entropies,
        level_information=information,
        ranked_counts=sorted(counts[counts > 0].tolist(), reverse=True),
    )


def to_markdown(reports: Sequence[TokenStatistics], differences: Sequence[dict]) -> str:
    """Tables of the statistics, the differences and the levels."""

    def cell(value: float, bounds: Sequence[float]) -> str:
        return f"{value:.3f} [{bounds[0]:.3f}, {bounds[1]:.3f}]"

    table = []
    for report in reports:
        h, i, use = (cell(getattr(report, name), report.intervals[name]) for name in MEASURES)
        ends = [f"{report.mutual_information_plugin:.3f}", f"{report.mutual_information_less_shuffled:.3f}"]
        counts = [str(report.tokens), str(report.utterances)]
        table.append([report.name, *counts, h, f"{np.log2(report.num_codes):.2f}", i, *ends, use])
    header = ["tokenizer", "tokens", "utterances", "H(X_n), bits", "ceiling", "I(X_n+1; X_n), bits", "uncorrected"]
    lines = markdown_table([*header, "less shuffled", "code use"], table)
    if differences:
        cells = [
            [f"{row['first']} - {row['second']}"]
            + [cell(row[name]["value"], row[name]["interval"]) for name in MEASURES]
            for row in differences
        ]
        lines += ["", *markdown_table(["difference, same utterances", "H", "I", "code use"], cells)]
    levels = [
        [report.name, str(dimension), " ".join(f"{share:.3f}" for share in shares)]
        + [f"{values[dimension]:.3f}" for values in (report.level_entropy, report.level_information)]
        for report in reports
        for dimension, shares in enumerate(report.levels)
    ]
    lines += ["", *markdown_table(["tokenizer", "dimension", "share of each level", "H, bits", "I, bits"], levels)]
    return "\n".join(lines) + "\n"


def plot(reports: Sequence[TokenStatistics], folder: Path) -> None:
    """Writes rank_frequency.png and levels.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 3.5), constrained_layout=True)
    for report in reports:
        ranks = np.arange(1, len(report.ranked_counts) + 1)
        axis.loglog(ranks, np.array(report.ranked_counts) / report.tokens, label=report.name)
    axis.set(xlabel="rank of the code", ylabel="relative frequency")
    axis.legend()
    axis.grid(alpha=0.3)
    figure.savefig(folder / "rank_frequency.png", dpi=110)
    pyplot.close(figure)
    columns = max(len(report.levels) for report in reports)
    size = (1.6 * columns, 1.6 * len(reports))
    figure, axes = pyplot.subplots(len(reports), columns, figsize=size, squeeze=False, constrained_layout=True)
    for row, report in zip(axes, reports, strict=True):
        row[0].set_ylabel(report.name)
        for dimension, axis in enumerate(row):
            axis.set_visible(dimension < len(report.levels))
            if axis.get_visible():
                axis.bar(range(len(report.levels[dimension])), report.levels[dimension])
                axis.set_title(f"dimension {dimension}", fontsize=8)
    figure.savefig(folder / "levels.png", dpi=110)
    pyplot.close(figure)


# --- tokens of a checkpoint --------------------------------------------------------------------------------------


def load_encoder(folder: str, device: str = "cpu") -> SpeechEncoderModel:
    """The tokenizer in a folder: of a complete model, or saved alone. Raises ValueError for anything else, and for a
    device that is not there."""
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"{folder} is not a checkpoint: it has no config.json.")
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    model = model.encoder if model.config.model_type == "e2e_tts" else model
    if model.config.model_type != "e2e_tts_speech_encoder":
        raise ValueError(f"{folder} holds a model of type {model.config.model_type!r}, which gives no speech tokens.")
    return on_device(model, device)


@torch.no_grad()
def tokenize(encoder: SpeechEncoderModel, rows: Dataset, batch_size: int = 8) -> Sequences:
    """Code indices of every row of prepared speech, resampled to the tokenizer's rate where needed."""
    sequences = []
    for start in range(0, len(rows), batch_size):
        rate, recordings = encoder.config.mel["sampling_rate"], rows[start : start + batch_size]["audio"]
        clips = [torch.from_numpy(read_audio(recording, rate)) for recording in recordings]
        lengths = torch.tensor([len(clip) for clip in clips])
        audio = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
        encoded = encoder.encode(audio.to(encoder.device), lengths.to(encoder.device))
        sequences += [ids[mask].cpu().numpy() for ids, mask in zip(encoded.ids, encoded.mask, strict=True)]
    return sequences


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(
        prog="python -m e2e_tts.pipelines.evaluation.token_statistics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", action="append", required=True, metavar="NAME=FOLDER", help="a checkpoint; the first is compared to"
    )
    parser.add_argument("--data", nargs="+", required=True, help="folders of prepared speech")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--sources", nargs="*", default=[], help="by default all")
    parser.add_argument("--limit", type=int, help="number of utterances, spread over the split; by default all")
    add_device_option(parser)
    parser.add_argument("--resamples", type=int, default=200, help="halves drawn for the intervals")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="folder for the JSON, the Markdown and the plots")
    options = parser.parse_args(arguments)
    try:
        rows = select_rows(options.data, options.split, options.sources, options.limit).select_columns(["id", "audio"])
        tokenizers, levels = {}, {}
        for entry in options.model:
            name, separator, folder = entry.partition("=")
            if not separator or name in tokenizers:
                raise ValueError(f"--model is NAME=FOLDER with a name of its own, got {entry!r}.")
            encoder = load_encoder(folder, options.device)
            tokenizers[name], levels[name] = tokenize(encoder, rows), encoder.config.levels
        reports, differences = compare(tokenizers, levels, options.resamples, options.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    options.output.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    values = {"settings": settings, "tokenizers": [asdict(item) for item in reports], "differences": differences}
    (options.output / "token_statistics.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    (options.output / "token_statistics.md").write_text(to_markdown(reports, differences), encoding="utf-8")
    print(to_markdown(reports, differences))
    if find_spec("matplotlib"):
        plot(reports, options.output)
    else:
        print('No plots: matplotlib is missing (pip install "e2e-tts[report]").')


if __name__ == "__main__":
    main()
