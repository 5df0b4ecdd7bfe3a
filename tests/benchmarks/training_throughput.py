r"""Where the time of a stage-1 step goes, and how much of this machine's arithmetic it uses, as a Markdown table.

python tests/benchmarks/training_throughput.py
python tests/benchmarks/training_throughput.py --recipe small_joint --seconds 4 --rounds 7 --output throughput.md

A round times, one after the other: a float32 matrix product, each module's own forward and backward pass, the joint
step, the three steps of a cascade that encodes on the fly, and joint steps of other batch sizes. Ratios are taken
inside a round and their median is reported, so a load that comes and goes does not change them much.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from e2e_tts.modeling import E2ETTSConfig, E2ETTSModel
from e2e_tts.trainers.data.speech_data import MixtureBatches
from e2e_tts.trainers.memory_reuse import keep_freed_memory
from e2e_tts.trainers.recipe import Recipe, load_recipe
from e2e_tts.trainers.step_cost import example_batch, flop_counter

LEARNING = ("encoder", "reward", "lm", "decoder")
CASCADE = {"tokenizer": ("encoder", "reward"), "language model": ("lm",), "flow decoder": ("decoder",)}
CASCADE_LOSSES = {"tokenizer": ("reward",), "language model": ("lm",), "flow decoder": ("flow",)}
TEXT_RATE = 12.0  # text tokens a second; phonemes of English, boundaries of words included
MATRIX = 1536  # side of the square matrices whose product measures the peak
BATCH_SIZES = (0.25, 0.5, 1.0)  # as shares of the recipe's batch
PADDING_BATCHES = 400


@dataclass(frozen=True)
class Cost:
    """Seconds of one round and floating-point operations of a piece of work."""

    seconds: list[float]
    flops: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def random_batch(config: E2ETTSConfig, rows: int, seconds: float, generator: torch.Generator) -> dict:
    """`example_batch` with values as training has them: log-mels, symbols, unit voice vectors, CTC labels."""
    batch = example_batch(config, rows, seconds, TEXT_RATE)
    for name in ("input_features", "mel"):
        batch[name] = torch.randn(batch[name].shape, generator=generator) * 2.5 - 5.0
    for name in ("speaker_target", "speaker_embedding"):
        batch[name] = torch.nn.functional.normalize(torch.randn(batch[name].shape, generator=generator), dim=-1)
    symbols = config.lm_config.text_config.vocab_size
    batch["text_ids"] = torch.randint(1, symbols, batch["text_ids"].shape, generator=generator)
    if labels := config.reward_config.ctc_vocab_size:
        batch["ctc_labels"] = torch.randint(1, labels, batch["text_ids"].shape, generator=generator)
    return batch


def total_loss(output: dict) -> torch.Tensor:
    return sum(value for name, value in output.items() if name.startswith("loss") and value is not None)


def module_passes(model: E2ETTSModel, batch: dict) -> dict[str, Callable[[], None]]:
    """Forward and backward of each module by itself, with the gradient of its input where stage 1 needs that."""
    with torch.no_grad():
        encoded = model.encoder(batch["input_features"], batch["feature_mask"])
    ids, mask = encoded.ids, encoded.mask

    def codes() -> torch.Tensor:
        return encoded.codes.detach().clone().requires_grad_()

    def encoder() -> None:
        model.encoder(batch["input_features"], batch["feature_mask"]).codes.sum().backward()

    def reward() -> None:
        targets = batch.get("ctc_labels"), batch["speaker_target"], batch["emotion_labels"]
        total_loss(model.reward(codes(), mask, *targets)).backward()

    def lm() -> None:
        inputs = batch["text_ids"], batch["text_mask"], codes(), mask, ids
        model.lm(*inputs, batch["speaker_embedding"], batch["tokens_per_symbol"]).loss.backward()

    def decoder() -> None:
        inputs = codes(), mask, batch["mel"], batch["seeds"], batch["speaker_embedding"]
        total_loss(model.decoder(*inputs)).backward()

    return {"encoder": encoder, "reward": reward, "lm": lm, "decoder": decoder}


def joint_step(model: E2ETTSModel, batch: dict, options: dict) -> Callable[[], None]:
    return lambda: total_loss(model(**batch, **options)).backward()


def cascade_step(model: E2ETTSModel, batch: dict, part: str) -> Callable[[], None]:
    """A step of separate training of one part; LM and decoder encode the speech with the frozen tokenizer."""

    def step() -> None:
        frozen = model._frozen
        model.freeze([name for name in (*LEARNING, "speaker", "vocoder") if name not in CASCADE[part]])
        joint_step(model, batch, {"true_losses": CASCADE_LOSSES[part]})()
        model.freeze(frozen)

    return step


def matrix_product(size: int) -> Callable[[], None]:
    a, b, out = (torch.randn(size, size) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


def optimizer_step(model: E2ETTSModel) -> Callable[[], None]:
    """Clipping and AdamW as the Trainer runs them, on the gradients that are there."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def count_flops(work: Callable[[], None]) -> int:
    with flop_counter() as counter:
        work()
    return counter.get_total_flops()


class Workload:
    """The pieces of work of a stage-1 recipe on utterances of `seconds`, each run once to count it and to warm up.

    Names: "matrix", the modules, "joint", "optimizer", "cascade ..." of each part, and "batch N" of N frames.
    """

    def __init__(self, recipe: Recipe, seconds: float, matrix: int = MATRIX) -> None:
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        model = self.model = E2ETTSModel(E2ETTSConfig(**recipe.model))
        model.freeze([name for name in ("speaker", "vocoder", *LEARNING) if name not in recipe.train])
        model.train()
        options = recipe.forward_options()
        rows = max(1, min(recipe.data.max_rows, round(recipe.data.seconds_per_batch / seconds)))
        batch = random_batch(model.config, rows, seconds, generator)
        self.work = {
            "matrix": matrix_product(matrix),
            **module_passes(model, batch),
            "joint": joint_step(model, batch, options),
            "optimizer": optimizer_step(model),
            **{f"cascade {part}": cascade_step(model, batch, part) for part in CASCADE},
        }
        for count in sorted({max(1, round(rows * share)) for share in BATCH_SIZES}):
            sized = random_batch(model.config, count, seconds, generator)
            self.work[f"batch {sized['feature_mask'].numel()}"] = joint_step(model, sized, options)
        self.flops = dict(self._each(count_flops))

    def _each(self, run: Callable[[Callable[[], None]], Any]) -> Iterator[tuple[str, Any]]:
        for name, step in self.work.items():
            if name != "optimizer":  # which takes the gradients of the joint step
                self.model.zero_grad()
            yield name, run(step)

    def time(self, rounds: int) -> dict[str, Cost]:
        times = defaultdict(list)
        for _ in range(rounds):
            for name, seconds in self._each(elapsed):
                times[name].append(seconds)
        return {name: Cost(times[name], self.flops[name]) for name in self.work}


def elapsed(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def median_ratio(over: list[list[float]], under: list[list[float]]) -> float:
    """The median over rounds of sum(over) / sum(under)."""
    rounds = zip(zip(*over, strict=True), zip(*under, strict=True), strict=True)
    return statistics.median(sum(above) / sum(below) for above, below in rounds)


def share_of_peak(costs: dict[str, Cost], names: list[str]) -> float:
    """Operations a second of some work over those of the matrix product of the same round, the median over rounds."""
    flops = sum(costs[name].flops for name in names)
    share = median_ratio([costs["matrix"].seconds], [costs[name].seconds for name in names])
    return share * flops / costs["matrix"].flops


def ratios(costs: dict[str, Cost]) -> dict[str, float]:
    """What joint training costs, in ratios of one run.

    The joint step over its modules and over the cascade's steps, and the exponent of time in batch frames (1 is
    linear); the same of the counted operations, which no load of the machine changes.
    """
    joint, cascade = costs["joint"], [cost for name, cost in costs.items() if name.startswith("cascade")]
    modules = [costs[name] for name in LEARNING]
    sizes = {int(name.split()[1]): cost for name, cost in costs.items() if name.startswith("batch")}
    frames = np.log(list(sizes))
    return {
        "joint / modules": median_ratio([joint.seconds], [cost.seconds for cost in modules]),
        "joint / modules, operations": joint.flops / sum(cost.flops for cost in modules),
        "joint / cascade": median_ratio([joint.seconds], [cost.seconds for cost in cascade]),
        "joint / cascade, operations": joint.flops / sum(cost.flops for cost in cascade),
        "exponent of batch frames": float(np.polyfit(frames, np.log([cost.median for cost in sizes.values()]), 1)[0]),
        "exponent of batch frames, operations": float(
            np.polyfit(frames, np.log([cost.flops for cost in sizes.values()]), 1)[0]
        ),
        "share of peak, passes": share_of_peak(costs, ["joint"]),
        "share of peak, with the optimizer": share_of_peak(costs, ["joint", "optimizer"]),
    }


def speech_lengths(rows: int, longest: float, seed: int = 0) -> np.ndarray:
    """Seconds of utterances as read speech has them: log-normal, half of them below 3.5 s, none above `longest`."""
    random = np.random.default_rng(seed)
    return np.clip(random.lognormal(np.log(3.5), 0.5, rows), 0.8, longest)


def padding_waste(recipe: Recipe, lengths: np.ndarray) -> float:
    """The share of frames that are padding in the batches that a recipe draws from utterances of these seconds."""
    sources = list(recipe.data.weights) or ["speech"]
    rows = Dataset.from_dict({"seconds": lengths, "source": [sources[i % len(sources)] for i in range(len(lengths))]})
    weights = recipe.data.weights or {"speech": 1.0}
    data = recipe.data
    batches = MixtureBatches(rows, weights, PADDING_BATCHES, 0, data.seconds_per_batch, data.max_rows, data.max_seconds)
    drawn = [lengths[batch] for batch in batches]
    return 1 - sum(batch.sum() for batch in drawn) / sum(len(batch) * batch.max() for batch in drawn)


def table(recipe_name: str, costs: dict[str, Cost], waste: float) -> str:
    """The result as Markdown."""
    joint = costs["joint"]
    lines = [
        f"Stage-1 step of `{recipe_name}`, {torch.get_num_threads()} threads, float32; matrix product beside it "
        f"{costs['matrix'].flops / costs['matrix'].median / 1e9:.0f} GFLOP/s.",
        "",
        "| part | ms | share of the joint step | GFLOP | share of the matrix product's rate |",
        "|---|---|---|---|---|",
    ]
    for name, cost in costs.items():
        if name == "matrix":
            continue
        share = median_ratio([cost.seconds], [joint.seconds])
        label = f"joint, {name.split()[1]} frames" if name.startswith("batch") else name
        lines.append(
            f"| {label} | {cost.median * 1e3:.0f} | {share:.2f} | {cost.flops / 1e9:.1f} | "
            f"{share_of_peak(costs, [name]):.2f} |"
        )
    lines += ["", "| ratio | value |", "|---|---|"]
    lines += [f"| {name} | {value:.3f} |" for name, value in ratios(costs).items()]
    lines.append(f"| padding in batches of read speech | {waste:.3f} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="small_joint", help="a stage-1 recipe: a file or a shipped one's name")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="as for e2e_tts.trainers.train")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of the utterances in the batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--give_memory_back", action="store_true", help="leave the C library as it is, which training does not"
    )
    parser.add_argument("--output", type=Path, help="also write the table here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if not options.give_memory_back:
        keep_freed_memory()  # as training does
    recipe = load_recipe(options.recipe, options.set)
    if getattr(recipe, "model", None) is None or getattr(recipe, "trainer", "") != "joint":
        parser.error(f"{options.recipe} is no stage-1 recipe with a model of its own; small_joint is one.")
    costs = Workload(recipe, options.seconds).time(options.rounds)
    text = table(options.recipe, costs, padding_waste(recipe, speech_lengths(4000, recipe.data.max_seconds)))
    print(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
