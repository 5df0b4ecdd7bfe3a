"""Examines a recipe before its run: data, model, memory, a few real steps, and the time that all of them will take.

python -m e2e_tts.trainers.doctor --recipe small_joint

Ends with exit code 1 if the run would fail. Nothing is written but to a temporary folder.
"""

import contextlib
import dataclasses
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import numpy as np
import psutil
import torch
from accelerate.utils import parse_flag_from_env
from datasets import Dataset
from transformers import AutoConfig, AutoModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from e2e_tts.modeling import E2ETTSConfig, E2ETTSModel
from e2e_tts.modeling.audio_features import MelSpec

from .built_in_voices import rows_of_voices
from .command_line import CommandParser
from .data.speech_data import Collator, MixtureBatches, check_annotated, check_rate, load_prepared, rows_of_all_sources
from .data.style_labels import check_labels, labelled_rows
from .learning import choose_what_learns
from .memory_reuse import keep_freed_memory
from .own_draws import check_voices
from .recipe import LOSS_NAMES, Recipe, VocoderRecipe, add_override_option, load_recipe
from .sharding import REQUESTS
from .stage_trainers import SpeechTrainer, loss_key, source_counts
from .train import build_trainer, build_vocoder, build_vocoder_trainer, missing_starts_named, training_arguments

SAMPLED_ROWS, SAMPLED_BATCHES = 2000, 200
MOST_PADDING = 0.1
# Bytes a parameter: weights; and where it learns its gradient and both moments of Adam.
WEIGHT, LEARNING = 4, 12


class Report:
    """Findings, printed as they come. A problem is what makes the run fail."""

    def __init__(self) -> None:
        self.problems = 0

    def ok(self, subject: str, message: str) -> None:
        print(f"[ok]      {subject:10} {message}", flush=True)

    def warn(self, subject: str, message: str) -> None:
        print(f"[warning] {subject:10} {message}", flush=True)

    def problem(self, subject: str, message: str) -> None:
        self.problems += 1
        print(f"[problem] {subject:10} {message}", flush=True)

    @contextlib.contextmanager
    def attempt(self, subject: str) -> Iterator[None]:
        """Turns an error inside into a problem: the errors of the package say what to do."""
        try:
            yield
        except (ValueError, OSError) as error:
            self.problem(subject, str(error))
        except Exception as error:  # a doctor reports whatever a run would die of
            self.problem(subject, f"{type(error).__name__}: {error}")


class StepTimes(TrainerCallback):
    """Seconds between the ends of optimizer steps, reading of data included."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, *args: object, **kwargs: object) -> None:
        self.ends.append(time.perf_counter())

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Median; without the first step, which warms up, where there are others."""
        times = [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)]
        return statistics.median(times[1:] or times)


def meta_model(recipe: Recipe) -> E2ETTSModel:
    """The recipe's model without its weights. Raises RecipeError for parts that are not there, and ValueError, naming
    both values, for those that do not fit."""
    with torch.device("meta"), missing_starts_named(recipe):
        model = E2ETTSModel(recipe.start_config())
        for name, folder in recipe.init_modules.items():
            model.replace_module(name, AutoModel.from_config(AutoConfig.from_pretrained(folder)))
        model.add_styles(recipe.styles, [name for name in ("lm", "decoder") if name in recipe.train])
        choose_what_learns(model, recipe)
    return model


def examine_model(recipe: Recipe, arguments: TrainingArguments, report: Report) -> E2ETTSModel:
    """Composition and memory; returns the model on the meta device."""
    model = meta_model(recipe)
    config = model.config
    mel, decoder_mel = MelSpec.from_dict(config.encoder_config.mel), MelSpec.from_dict(config.decoder_config.mel)
    levels, rate = config.encoder_config.levels, config.encoder_config.token_rate
    report.ok(
        "model",
        f"levels {levels} and {rate:g} tokens a second in all modules; the tokenizer hears {mel.sampling_rate} Hz in "
        f"{mel.num_mel_bins} bands, decoder and vocoder share a mel of {decoder_mel.sampling_rate} Hz in "
        f"{decoder_mel.num_mel_bins} bands",
    )

    count = sum(parameter.numel() for parameter in model.parameters())
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    need = WEIGHT * count + LEARNING * learning
    need += WEIGHT * sum(p.numel() for name in recipe.ema for p in getattr(model, name).parameters() if p.requires_grad)
    if recipe.trainer == "end_to_end" and recipe.kl:
        need += WEIGHT * sum(parameter.numel() for parameter in model.lm.parameters())
    # accelerate's launch asks by environment, and leaves the arguments as they are.
    if arguments.fsdp or arguments.deepspeed or any(map(parse_flag_from_env, REQUESTS)):
        need /= arguments.world_size
    free = torch.cuda.mem_get_info()[0] if arguments.device.type == "cuda" else psutil.virtual_memory().available
    message = (
        f"{count / 1e6:.1f} M parameters, {learning / 1e6:.1f} M learn: {need / 1e9:.2f} GB for weights, gradients and "
        f"optimizer, of {free / 1e9:.1f} GB free; activations come on top"
    )
    if need > free:
        report.problem("memory", f"{message}. Use lora, train fewer modules, or shard the model over more GPUs.")
    elif need > 0.7 * free:
        report.warn("memory", f"{message}. Set arguments.activation_checkpointing=true if steps run out of memory.")
    else:
        report.ok("memory", message)
    return model


def examine_for_model(recipe: Recipe, rows: Dataset, config: E2ETTSConfig, report: Report) -> None:
    """Whether the training rows are made for the model: rates, vocabularies, embeddings, voices."""
    with report.attempt("data"):
        check_rate(rows, Collator.for_model(config).audio_spec.sampling_rate)
    some = np.random.default_rng(0).permutation(len(rows))[:SAMPLED_ROWS]
    sampled = rows.select_columns(["text_ids", "ctc_labels", "speaker_embedding"]).select(some)
    for column, size, entry in (
        ("text_ids", config.lm_config.text_config.vocab_size, "the LM's vocab_size"),
        ("ctc_labels", config.reward_config.ctc_vocab_size, "the reward model's ctc_vocab_size"),
    ):
        largest = max(max(ids, default=0) for ids in sampled[column][:])
        if largest >= size and (column == "text_ids" or "asr" in recipe.judged_by()):
            report.problem("data", f"{column} go up to {largest}, but {entry} is {size}: annotate for this model.")
    width, expected = len(sampled[0]["speaker_embedding"]), config.speaker_config.embedding_size
    if width != expected:
        report.problem("data", f"speaker_embedding has {width} values, the model's are {expected}: annotate again.")
    with report.attempt("voices"):
        check_voices({**recipe.voices, **config.voices}, recipe)


def examine_data(recipe: Recipe, model: E2ETTSModel | None, arguments: TrainingArguments, report: Report) -> None:
    """Folders, columns, sources' shares and padding; and what the model asks for, where there is one."""
    data = recipe.data
    rows = load_prepared(data.folders, "train")
    check_annotated(rows)
    if model is not None:
        examine_for_model(recipe, rows, model.config, report)
    with report.attempt("voices"):
        rows_of_voices(rows, recipe.voices)
    with report.attempt("styles"):
        check_labels(rows, recipe.styles)
        known = {} if model is None else model.config.styles
        for name, count in labelled_rows(rows).items():
            if name in known:
                report.ok("styles", f"{name}: {known[name]} levels, {count} rows have a label")

    weights = data.weights or source_counts(rows, data.max_seconds)
    batches = MixtureBatches(
        rows, weights, SAMPLED_BATCHES, arguments.seed, data.seconds_per_batch, data.max_rows, data.max_seconds
    )
    seconds, sources = np.asarray(rows["seconds"][:]), np.asarray(rows["source"][:])
    drawn = [seconds[batch] for batch in batches]
    per_step = arguments.gradient_accumulation_steps * arguments.world_size * statistics.fmean(map(len, drawn))
    for source, weight in weights.items():
        own = seconds[(sources == source) & (seconds <= data.max_seconds)]
        share = weight / sum(weights.values())
        passes = arguments.max_steps * per_step * share / len(own)
        size = f"{len(own)} rows, {own.sum() / 3600:.2f} h"
        report.ok("data", f"{source}: {size}, share {share:.2f}, read {passes:.1f} times")
    padding = 1 - sum(batch.sum() for batch in drawn) / sum(len(batch) * batch.max() for batch in drawn)
    message = f"{statistics.fmean(map(len, drawn)):.1f} rows a batch; share of padding {padding:.1%}"
    if padding > MOST_PADDING:
        report.warn("batches", f"{message}. More rows of data, or fewer seconds_per_batch, are padded less.")
    else:
        report.ok("batches", message)
    if data.eval_rows:
        with report.attempt("held out"):
            held_out = load_prepared(data.folders, "dev")
            chosen = Counter(held_out.select(rows_of_all_sources(held_out, data.eval_rows))["source"][:])
            evaluated = ", ".join(f"{count} of {source}" for source, count in chosen.items())
            report.ok("held out", f"{len(held_out)} rows; evaluated: {evaluated}")


def run_steps(trainer: Trainer, total: int, report: Report) -> None:
    """Trains, and estimates time and memory of the whole run of `total` steps."""
    times = StepTimes()
    trainer.add_callback(times)
    trainer.remove_callback(PrinterCallback)
    on_gpu = trainer.args.device.type == "cuda"
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    report.ok("steps", f"{len(losses)} steps, loss {losses[0]:.4g} to {losses[-1]:.4g}")
    duration = timedelta(seconds=round(times.seconds * total))
    report.ok("time", f"{times.seconds:.2f} s a step, {duration} (h:mm:ss) for {total} steps, evaluation not counted")
    if on_gpu:
        report.ok("memory", f"{torch.cuda.max_memory_allocated() / 1e9:.2f} GB at most on the GPU")
    else:
        report.ok("memory", f"{psutil.Process().memory_info().rss / 1e9:.2f} GB in this process after the steps")


def examine_losses(trainer: SpeechTrainer, report: Report) -> None:
    """Whether every weighted loss was computed, and all that is to learn was reached by one."""
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = {loss_key(name): name for name in LOSS_NAMES}
    for key, weight in trainer.full_weights().items():
        values = [entry[key] for entry in entries if key in entry]
        if not values:
            report.warn("losses", f"{names[key]} has weight {weight:g}, but model and data do not give this loss.")
        elif not any(values) and key != "loss_kl":
            report.warn("losses", f"{names[key]} is 0 in every step: no row seems to carry its label.")
    reached = set(trainer.optimizer.state)  # only parameters that had a gradient
    for module in trainer.recipe.train:
        members = dict(getattr(trainer.composite, module).named_parameters())
        if reached.isdisjoint(members.values()):
            report.problem("losses", f"train names {module}, but no loss reaches it: weight one, or take it out.")
            continue
        left = sorted(name for name, p in members.items() if p.requires_grad and p not in reached)
        if not left:
            continue
        message = f"no loss reaches {len(left)} of the weights of {module} that learn, {left[0]} among them"
        if trainer.args.ddp_find_unused_parameters is False:
            advice = "Several processes would wait for them: set arguments.ddp_find_unused_parameters=true."
            report.problem("losses", f"{message}. {advice}")
        else:
            report.warn("losses", f"{message}; they stay as they are.")


def examine(recipe: Recipe | VocoderRecipe, steps: int, report: Report) -> None:
    """All checks of one recipe, those that cost nothing first."""
    with tempfile.TemporaryDirectory() as folder:
        with report.attempt("arguments"):
            arguments = training_arguments(recipe, folder, None)
            place = f"{arguments.device}, {arguments.world_size} process(es)"
            report.ok("arguments", f"{arguments.max_steps} steps on {place}")
        if report.problems:
            return
        quiet = {"save_strategy": "no", "eval_strategy": "no", "logging_steps": 1, "report_to": "none"}
        short = dataclasses.replace(recipe, arguments={**recipe.arguments, **quiet, "disable_tqdm": True})
        if isinstance(recipe, VocoderRecipe):
            with report.attempt("model"):
                config = build_vocoder(recipe).config
                report.ok("model", f"{config.architecture}, {MelSpec.from_dict(config.mel)}")
            build = build_vocoder_trainer
        else:
            model = None
            with report.attempt("model"):
                model = examine_model(recipe, arguments, report)
            with report.attempt("data"):
                examine_data(recipe, model, arguments, report)
            short = dataclasses.replace(short, samples=dataclasses.replace(recipe.samples, every=0))
            build = build_trainer
        if report.problems or not steps:
            return
        with report.attempt("steps"):
            trainer = build(short, folder, steps)
            run_steps(trainer, arguments.max_steps, report)
            if isinstance(trainer, SpeechTrainer):
                examine_losses(trainer, report)


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__.split("\n")[0], epilog="Ends with exit code 1 if the run would fail.")
    parser.add_argument("--recipe", required=True, help="a YAML file, or the name of a shipped recipe")
    add_override_option(parser, "as for e2e_tts.trainers.train")
    parser.add_argument("--steps", type=int, default=10, help="steps to run; 0 for none")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    report = Report()
    with report.attempt("recipe"):
        recipe = load_recipe(options.recipe, options.set)
        examine(recipe, options.steps, report)
    if report.problems:
        sys.exit(f"{options.recipe}: the run would fail, problems: {report.problems}")
    print(f"{options.recipe}: ready")


if __name__ == "__main__":
    main()
