r"""Memory and time of a recipe on GPUs that are not there yet, as a Markdown table.

python -m e2e_tts.trainers.memory_budget --recipe paper_joint --gpus 8 16 64
python -m e2e_tts.trainers.memory_budget --recipe paper_end_to_end --model paper_joint --gpus 8 --launch ddp fsdp

The model is built and one step is run on tensors without memory, which gives exact counts of parameters, of what the
step keeps for its backward pass and of its floating-point operations (matrix products, convolutions and attention).
Memory and time follow from these by the assumptions printed above the table.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from e2e_tts.modeling import E2ETTSModel

from .command_line import CommandParser
from .doctor import meta_model
from .recipe import Recipe, RecipeError, VocoderRecipe, add_override_option, load_recipe
from .step_cost import StepCost, measure_step

FLOAT, HALF, MOMENTS = 4, 2, 8  # bytes of a weight or gradient, of a bfloat16 one, and of Adam's two moments
LAUNCHES = ("ddp", "fsdp", "deepspeed_zero2", "deepspeed_zero3")


@dataclass(frozen=True)
class Machine:
    """One GPU and its links: dense bfloat16 peak, the share of it that training reaches, memory, bandwidths."""

    peak_tflops: float = 989.0
    utilisation: float = 0.3
    memory_gb: float = 80.0
    gpus_per_node: int = 8
    node_bandwidth: float = 450.0
    bandwidth: float = 50.0


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters: those that learn and all, by module; `anchor`, a frozen copy of the LM in every process;
    `gathered`, the most that a sharded step has whole at one time."""

    learning: dict[str, int]
    all: dict[str, int]
    anchor: int
    gathered: int

    @classmethod
    def of(cls, model: E2ETTSModel, recipe: Recipe) -> "Sizes":
        """Counts of a model that is frozen as its recipe says."""
        modules = dict(model.named_children())
        counts = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
        learning = {
            name: sum(p.numel() for p in module.parameters() if p.requires_grad) for name, module in modules.items()
        }
        blocks = [m for m in model.modules() if type(m).__name__ in model._no_split_modules]
        sizes = sorted((sum(p.numel() for p in block.parameters()) for block in blocks), reverse=True)
        # Outside the blocks everything is gathered at once; of the blocks one computes while the next one arrives.
        gathered = sum(counts.values()) - sum(sizes) + sum(sizes[:2])
        anchored = recipe.trainer == "end_to_end" and bool(recipe.kl)
        return cls(learning, counts, counts["lm"] if anchored else 0, gathered)


@dataclass(frozen=True)
class Budget:
    """Bytes a GPU, and bytes that it sends and receives in a step."""

    parameters: float
    gradients: float
    optimizer: float
    gathered: float
    activations: float
    traffic: float

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.optimizer + self.gathered + self.activations


def budget(sizes: Sizes, cost: StepCost, launch: str, gpus: int, half: bool) -> Budget:
    """What one of `gpus` GPUs holds and sends. half: it computes in bfloat16; weights and moments are float32."""
    learning, everything = sum(sizes.learning.values()), sum(sizes.all.values())
    sent = HALF if half else FLOAT
    # A collective operation on n bytes sends n (N - 1) / N of them; summing gradients for everyone is two of them.
    link = (gpus - 1) / gpus
    shared = {"ddp": (1, 1), "deepspeed_zero2": (1, gpus)}.get(launch, (gpus, gpus))
    traffic = {
        "ddp": 2 * FLOAT * learning,
        "fsdp": 2 * sent * everything + FLOAT * learning,
        "deepspeed_zero2": (sent + FLOAT) * learning,
        "deepspeed_zero3": 2 * sent * everything + sent * learning,
    }[launch]
    return Budget(
        parameters=FLOAT * (everything / shared[0] + sizes.anchor),
        gradients=FLOAT * learning / shared[1],
        optimizer=MOMENTS * learning / shared[1],
        gathered=(sent + FLOAT) * sizes.gathered if shared[0] > 1 else 0.0,
        activations=cost.activations,
        traffic=traffic * link,
    )


def markdown(name: str, recipe: Recipe, sizes: Sizes, cost: StepCost, rows: list[tuple], machine: Machine) -> str:
    """The report; rows: (GPUs, launch, budget)."""
    checkpointing = "are computed again in the backward pass" if cost.recomputed else "keep their activations"
    lines = [
        f"# Budget of {name}",
        "",
        f"- A step of one GPU: {cost.rows} utterances of {cost.seconds:g} s; blocks that learn {checkpointing}.",
        f"- It takes {cost.flops / 1e12:.1f} TFLOP, backward pass included, and {cost.activations / 1e9:.1f} GB of "
        "activations at most.",
        f"- Assumed: {machine.peak_tflops:g} TFLOP/s a GPU, of which training reaches {machine.utilisation:.0%}; "
        f"{machine.node_bandwidth:g} GB/s between the {machine.gpus_per_node} GPUs of a machine and "
        f"{machine.bandwidth:g} GB/s a GPU between machines; sending and computing overlap.",
        "- Weights, gradients and Adam's moments are float32. What CUDA needs itself and loses between allocations is "
        "on top: a fifth of a GPU is left for it.",
        "",
        "| module | parameters (M) | learning (M) |",
        "|---|---:|---:|",
        *(f"| {part} | {count / 1e6:.1f} | {sizes.learning[part] / 1e6:.1f} |" for part, count in sizes.all.items()),
        f"| all | {sum(sizes.all.values()) / 1e6:.1f} | {sum(sizes.learning.values()) / 1e6:.1f} |",
        *([f"| anchor (copy of the LM) | {sizes.anchor / 1e6:.1f} | 0.0 |"] if sizes.anchor else []),
        "",
        "| GPUs | launch | weights | gradients | optimizer | gathered | activations | GB a GPU | fits "
        "| compute s | sending s | step s | speech h a step | days |",
        "|---:|---|" + "---:|" * 6 + "---|" + "---:|" * 5,
    ]
    for gpus, launch, part in rows:
        bandwidth = machine.node_bandwidth if gpus <= machine.gpus_per_node else machine.bandwidth
        compute = cost.flops / (machine.peak_tflops * 1e12 * machine.utilisation)
        sending = part.traffic / (bandwidth * 1e9)
        step = max(compute, sending)
        parts = (part.parameters, part.gradients, part.optimizer, part.gathered, part.activations, part.total)
        days = step * recipe.arguments.get("max_steps", 0) / 86400
        lines.append(
            f"| {gpus} | {launch} | "
            + " | ".join(f"{value / 1e9:.1f}" for value in parts)
            + f" | {'yes' if part.total < 0.8 * machine.memory_gb * 1e9 else 'no'} | {compute:.2f} | {sending:.2f} | "
            + f"{step:.2f} | {gpus * cost.rows * cost.seconds / 3600:.2f} | {days:.1f} |"
        )
    return "\n".join(lines) + "\n"


def report(
    name: str,
    recipe: Recipe,
    gpus: list[int],
    launches: list[str],
    machine: Machine,
    seconds: float = 10.0,
    text_rate: float = 4.0,
) -> str:
    """The Markdown report of a recipe; see `measure_step` for seconds and text_rate.

    Raises RecipeError for one whose LM draws for itself.
    """
    if recipe.own_history is not None:
        raise RecipeError(
            "The LM's own draws (own_history) take as many steps as they are long, which is not counted here: try a "
            "few steps with e2e_tts.trainers.doctor, or count the other losses with --set own_history=null "
            "predicted_losses.policy=0 predicted_losses.asr=1."
        )
    model = meta_model(recipe)
    sizes = Sizes.of(model, recipe)
    cost = measure_step(model, recipe, seconds, text_rate)
    half = bool(recipe.arguments.get("bf16"))
    rows = [(n, launch, budget(sizes, cost, launch, n, half)) for n in gpus for launch in launches]
    return markdown(name, recipe, sizes, cost, rows, machine)


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="a YAML file, or the name of a shipped recipe")
    add_override_option(parser, "overrides of the recipe")
    parser.add_argument("--model", help="recipe whose model is meant, while the folders of init are not there yet")
    parser.add_argument("--gpus", nargs="+", type=int, default=[8, 16, 64], help="numbers of GPUs")
    parser.add_argument("--launch", nargs="+", choices=LAUNCHES, default=["ddp", "fsdp", "deepspeed_zero2"])
    parser.add_argument("--seconds", type=float, default=10.0, help="length of an utterance (default: %(default)s)")
    parser.add_argument("--text_rate", type=float, default=4.0, help="text tokens a second (default: %(default)s)")
    for name, text in {
        "peak_tflops": "dense bfloat16 peak of a GPU",
        "utilisation": "share of it that training reaches",
        "memory_gb": "memory of a GPU",
        "gpus_per_node": "GPUs of a machine",
        "node_bandwidth": "GB/s of a GPU inside a machine",
        "bandwidth": "GB/s of a GPU between machines",
    }.items():
        default = getattr(Machine, name)
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default: {default:g})")
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    options = parser.parse_args(arguments)
    try:
        recipe = load_recipe(options.recipe, options.set)
        if isinstance(recipe, VocoderRecipe):
            raise RecipeError("A vocoder is small enough for any GPU; this reckons the stages of the speech model.")
        model = recipe.model if options.model is None else load_recipe(options.model).model
        if model is None:
            raise RecipeError(f"{options.recipe} starts from {recipe.init}: name the recipe of its model, --model.")
        recipe = replace(recipe, model=model, init=None, init_modules={})
        machine = Machine(**{name: getattr(options, name) for name in Machine.__dataclass_fields__})
        text = report(options.recipe, recipe, options.gpus, options.launch, machine, options.seconds, options.text_rate)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(text, end="")
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
