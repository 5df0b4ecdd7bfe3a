"""Trainers of the three stages: losses live in the model, their weights here, their values in recipes."""

import copy
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer

from e2e_tts.modeling.modeling_e2e_tts import E2ETTSModel, E2ETTSOutput

from .adapters import save_merged
from .averages import UpdateAverages, WeightAverages
from .built_in_voices import save_voices
from .callbacks import CollapseAlarm, SpeechSamples, StepsAsAsked
from .data.columns import all_vectors, positions_by_number
from .data.speech_data import (
    SEED_STRIDE,
    MixtureBatches,
    SpeechDataset,
    rows_of_all_sources,
    speaker_numbers,
)
from .learning import choose_what_learns
from .loss_log import LossLog, named_losses, rows_of_loss
from .own_draws import check_voices, draw_history
from .recipe import Recipe, RecipeError
from .safety import divergence, is_finite_norm, save_bad_batch
from .sharding import gathered, prepare_sharding, refuse_sharded

OTHER_CLIP, RATE, NO_TEXT, NO_STYLE, MASKS = 21, 22, 23, 24, 25  # salts of the trainer's own draws


def loss_key(name: str) -> str:
    """The name of a loss in a recipe -> its name in the model's output: "predicted_asr" -> "predicted_loss_asr"."""
    return f"predicted_loss_{name.removeprefix('predicted_')}" if name.startswith("predicted_") else f"loss_{name}"


def source_counts(rows: Dataset, max_seconds: float) -> dict[str, float]:
    """Rows of each source that are not too long: weights that make every row equally likely."""
    sources = np.asarray(rows["source"][:])[np.asarray(rows["seconds"][:]) <= max_seconds]
    names, counts = np.unique(sources, return_counts=True)
    return dict(zip(names.tolist(), counts.astype(float).tolist(), strict=True))


class SpeechTrainer(Trainer):
    """What the stages share: seeded draws, voices from other clips, settings by module, named losses, safety nets.

    Every loss is a mean over the utterances of a batch (those with a label) of per-utterance means, and a step's
    gradient the mean over its batches, so the same batches give the same gradient however they are dealt to processes
    and accumulation steps. Batches are cut by seconds: an utterance weighs by about its duration.
    """

    def __init__(self, model: E2ETTSModel, recipe: Recipe, *args, **kwargs) -> None:
        self.recipe = recipe
        super().__init__(choose_what_learns(model, recipe), *args, **kwargs)
        prepare_sharding(self.accelerator)
        # compute_loss returns a mean, which Trainer divides by the accumulation steps itself.
        self.model_accepts_loss_kwargs = False
        rows = self.train_dataset.rows
        self.embeddings = torch.from_numpy(all_vectors(rows, "speaker_embedding"))
        self.speakers = speaker_numbers(rows)
        self.clips_of = positions_by_number(self.speakers)
        self.loss_log = LossLog(model.config.lm_config.num_codes)
        self.step_batches: list[dict] = []  # what the current optimizer step has been made of so far
        refuse_sharded(recipe, self.is_fsdp_enabled or self.is_deepspeed_enabled)
        self.averages = WeightAverages({name: getattr(self.composite, name) for name in recipe.ema}, recipe.ema)
        if recipe.ema:
            self.add_callback(UpdateAverages(self.averages))
        self.add_callback(StepsAsAsked)
        self.add_callback(CollapseAlarm(recipe.safety))
        if recipe.samples.every:
            if self.eval_dataset is None:
                raise RecipeError("samples.every needs held-out rows: give data.eval_rows, or set samples.every=0.")
            self.add_callback(
                SpeechSamples(
                    recipe.samples,
                    self.eval_dataset,
                    self.data_collator,
                    model=lambda: self.composite,
                    weights=self.averages.applied,
                )
            )

    @property
    def composite(self) -> E2ETTSModel:
        """The model itself, without what processes, compilation or adapters wrap around it."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model.get_base_model() if isinstance(model, PeftModel) else model

    # ---------------------------------------------------------------- data

    def get_train_dataloader(self) -> DataLoader:
        data = self.recipe.data
        try:
            batches = MixtureBatches(
                self.train_dataset.rows,
                data.weights or source_counts(self.train_dataset.rows, data.max_seconds),
                self.args.max_steps * self.args.gradient_accumulation_steps * self.args.world_size,
                self.args.seed,
                data.seconds_per_batch,
                data.max_rows,
                data.max_seconds,
            )
        except ValueError as error:
            raise RecipeError(f"data: {error}") from error
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            # Pinned memory is for copies to a GPU, and only workers persist and prefetch.
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            persistent_workers=self.args.dataloader_persistent_workers and self.args.dataloader_num_workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        # accelerate deals whole batches out to the processes only where it need not even out their sizes.
        self.accelerator.even_batches = False
        return self.accelerator.prepare(loader)

    def seeds(self, utterances: torch.Tensor, step: int) -> torch.Tensor:
        """One seed an utterance from (run seed, step, utterance)."""
        largest = 2**31 - 1
        of_step = (self.args.seed * 1_000_003 + step) * SEED_STRIDE % largest
        return (of_step + utterances.long() * 97) % largest

    def draw_inputs(self, inputs: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
        """Adds seeds and the voice, of another clip of the speaker if any; jitters rates, hides text, sound, styles."""
        inputs = dict(inputs)
        utterances = inputs.pop("utterance").cpu()
        inputs["seeds"] = self.seeds(utterances, step)
        voices = []
        for utterance, seed in zip(utterances.tolist(), inputs["seeds"].tolist(), strict=True):
            random = np.random.default_rng((seed, OTHER_CLIP))
            others = self.clips_of[self.speakers[utterance]]
            if len(others) > 1:
                others = others[others != utterance]
            voices.append(self.embeddings[random.choice(others)])
        inputs["speaker_embedding"] = torch.stack(voices).to(inputs["input_features"].device)
        if self.recipe.rate_jitter:
            noise = [np.random.default_rng((seed, RATE)).standard_normal() for seed in inputs["seeds"].tolist()]
            jitter = torch.tensor(noise, dtype=torch.float32).mul(self.recipe.rate_jitter).exp()
            inputs["tokens_per_symbol"] = inputs["tokens_per_symbol"] * jitter.to(inputs["tokens_per_symbol"].device)
        if self.recipe.text_dropout:
            draws = [np.random.default_rng((seed, NO_TEXT)).random() for seed in inputs["seeds"].tolist()]
            seen = torch.tensor(draws) >= self.recipe.text_dropout
            inputs["text_mask"] = inputs["text_mask"].bool() & seen[:, None].to(inputs["text_mask"].device)
        if self.recipe.feature_masks:
            heard = inputs["input_features"]
            sources = [np.random.default_rng((seed, MASKS)) for seed in inputs["seeds"].tolist()]
            inputs["mel"] = inputs.get("mel", heard)
            inputs["input_features"] = self.recipe.feature_masks.apply(heard, inputs["feature_mask"], sources)
        if "style_levels" in inputs:
            levels = inputs["style_levels"]
            sources = [np.random.default_rng((seed, NO_STYLE)) for seed in inputs["seeds"].tolist()]
            draws = torch.from_numpy(np.stack([source.random(1 + levels.shape[1]) for source in sources]))
            kept = draws >= self.recipe.style_dropout
            inputs["style_levels"] = levels * (kept[:, :1] & kept[:, 1:]).to(levels.device)
        return inputs

    def with_draws(self, inputs: dict[str, torch.Tensor], drawn: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Adds what the model draws itself to the inputs of a step, `inputs` being the collator's. Here nothing."""
        return drawn

    # ---------------------------------------------------------------- losses

    def full_weights(self) -> dict[str, float]:
        """Weight of every named loss once its ramp is over."""
        return {loss_key(name): value for name, value in asdict(self.recipe.losses).items() if value}

    def weights(self, step: int) -> dict[str, float]:
        """Weight of every named loss at a step."""
        weights = self.full_weights()
        for name, steps in self.recipe.ramp_steps.items():
            if steps and loss_key(name) in weights:
                weights[loss_key(name)] *= min(1.0, (step + 1) / steps)
        return weights

    def model_options(self, step: int) -> dict:
        """Which losses the model computes."""
        return self.recipe.forward_options() | {"history_dropout": self.recipe.history_dropout}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        step = self.state.global_step
        drawn = self.with_draws(inputs, self.draw_inputs(inputs, step))
        # Accelerate puts a model into half precision by itself under DDP, but not under FSDP.
        with self.accelerator.autocast():
            output = model(**drawn, **self.model_options(step))
        loss = self.weighted_sum(output, self.weights(step))
        named = named_losses(output)
        if self.step_batches and self.step_batches[0]["step"] != step:
            self.step_batches.clear()
        self.step_batches.append({"step": step, "inputs": inputs, "seeds": drawn["seeds"], "losses": named})
        problem = divergence(float(loss.detach()), self.state.log_history, self.recipe.safety.divergence_factor)
        if problem:
            self.stop(f"The loss {problem} at step {step}: {named}.")
        self.loss_log.add(named, inputs, output)
        return (loss, output) if return_outputs else loss

    def stop(self, problem: str) -> None:
        """Saves the batches of the current step to output_dir/bad_batch and raises FloatingPointError."""
        folder = save_bad_batch(
            self.args.output_dir,
            problem,
            self.state.global_step,
            self.args.process_index,
            self.step_batches,
            self.train_dataset.rows,
        )
        utterances = [row for batch in self.step_batches for row in batch["inputs"]["utterance"].tolist()]
        raise FloatingPointError(
            f"{problem} Lower the learning rate, or look at utterances {utterances}: their losses, seeds and inputs "
            f"are in {folder}."
        )

    @staticmethod
    def weighted_sum(output: E2ETTSOutput, weights: dict[str, float]) -> torch.Tensor:
        """Raises RecipeError for a loss with a weight that the model does not give."""
        if missing := [name for name in weights if output.get(name) is None]:
            raise RecipeError(
                f"The model gives no {', '.join(missing)}, which the recipe has a weight for: a head, labels or a "
                "prior may be missing. Set the weight to 0, or see e2e_tts.trainers.doctor."
            )
        return sum(weight * output[name] for name, weight in weights.items())

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs = logs | self.loss_log.take(self.accelerator)
        super().log(logs, *args, **kwargs)

    # ---------------------------------------------------------------- optimisation

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor | float | None:
        """Clips each module of max_grad_norms by itself and the others together; returns the norm before clipping."""
        if self.recipe.max_grad_norms:
            self.accelerator.unscale_gradients()
            members = {name: list(getattr(self.composite, name).parameters()) for name in self.recipe.max_grad_norms}
            own = {parameter for parameters in members.values() for parameter in parameters}
            members[None] = [parameter for parameter in self.composite.parameters() if parameter not in own]
            norms = [
                nn.utils.clip_grad_norm_(parameters, self.recipe.max_grad_norms.get(name, self.args.max_grad_norm))
                for name, parameters in members.items()
                # The norm of no gradients would be a tensor of the CPU.
                if any(parameter.grad is not None for parameter in parameters)
            ]
            norm = torch.linalg.vector_norm(torch.stack(norms))
        else:
            norm = super()._clip_grad_norm(model)
        if not is_finite_norm(norm, self.accelerator):
            self.stop(f"The gradient is not finite at step {self.state.global_step}.")
        return norm

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            groups = []
            decayed = set(self.get_decay_parameter_names(self.composite))
            for module in self.recipe.train:
                rate = self.recipe.learning_rates.get(module, self.args.learning_rate)
                named = [(f"{module}.{n}", p) for n, p in getattr(self.composite, module).named_parameters()]
                for decay in (True, False):
                    members = [p for n, p in named if (n in decayed) is decay and p.requires_grad]
                    if members:
                        weight_decay = self.args.weight_decay if decay else 0.0
                        groups.append({"params": members, "lr": rate, "weight_decay": weight_decay})
            cls, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = cls(groups, **settings)
        return self.optimizer

    # ---------------------------------------------------------------- saving

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        with self.averages.applied():
            super()._save(output_dir, state_dict)
        if self.recipe.lora is not None and self.args.should_save:
            save_voices(self.composite, output_dir or self.args.output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.recipe.ema and self.args.should_save:
            self.averages.save_learning(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.averages.resume(checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        # The checkpoint's weights are its averages; those of the last step would take their place in what is saved.
        self.averages.resume(self.state.best_model_checkpoint)

    def save_final(self, folder: str | Path) -> None:
        """Saves the result of the run, averages in their modules' place: a checkpoint, or an adapter folder with LoRA.

        To be called by every process.
        """
        model, lora = self.accelerator.unwrap_model(self.model, keep_torch_compile=False), self.recipe.lora
        with self.averages.applied():
            sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
            state = self.accelerator.get_state_dict(self.model_wrapped) if sharded else None
            if not self.args.should_save:
                return
            if lora is None:
                model.save_pretrained(folder, state_dict=state)
            elif not lora.merged:
                model.save_pretrained(folder)
                save_voices(self.composite, folder)
            else:
                save_merged(copy.deepcopy(model), folder)

    # ---------------------------------------------------------------- evaluation

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Named losses on held-out rows with fixed draws, `loss`, their sum by the recipe's weights, and the reward
        model's label error rate (greedy CTC).

        The rows are data.eval_rows of all sources in turn; LM and decoder get the row's own voice embedding. With
        own_history predicted_loss_asr and predicted_loss_spk are, as in training, those of what the LM draws for these
        texts; the comparison of draws, predicted_loss_policy, is near 0 however good they are.
        """
        with self.averages.applied():
            measured = self.measure(eval_dataset or self.eval_dataset)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        self.log(metrics)
        return metrics

    @torch.no_grad()
    def measure(self, dataset: SpeechDataset) -> dict[str, float]:
        """What `evaluate` logs, with the weights that the model has."""
        model = self.composite.eval()
        sums, rows, edits, symbols = defaultdict(float), defaultdict(int), 0, 0
        size = self.args.per_device_eval_batch_size
        chosen = sorted(rows_of_all_sources(dataset.rows, self.recipe.data.eval_rows))
        for start in range(0, len(chosen), size):
            items = [dataset[i] for i in chosen[start : start + size]]
            inputs = {k: v.to(self.args.device) for k, v in self.data_collator(items).items()}
            utterances = inputs.pop("utterance").cpu()
            inputs["seeds"] = self.seeds(utterances, 0)
            inputs["speaker_embedding"] = inputs["speaker_target"]
            inputs = self.with_draws(inputs, inputs)
            with self.accelerator.autocast():
                output = model(**inputs, **self.model_options(0))
            for name, value in named_losses(output).items():
                count = rows_of_loss(name, inputs)
                sums[name] += value * count
                rows[name] += count
            if self.recipe.losses.asr:
                with self.accelerator.autocast(), gathered(model):
                    encoded = model.encoder(inputs["input_features"], inputs["feature_mask"])
                    labels = model.reward.transcribe(encoded.codes, encoded.mask)
                for heard, said in zip(labels, inputs["ctc_labels"].tolist(), strict=True):
                    said = [label for label in said if label != -100]
                    edits += edit_distance(heard, said)
                    symbols += len(said)
        measured = {name: value / rows[name] for name, value in sums.items() if rows[name]}
        measured["loss"] = sum(weight * measured.get(name, 0.0) for name, weight in self.full_weights().items())
        return measured | ({"label_error_rate": edits / symbols} if symbols else {})


class JointTrainer(SpeechTrainer):
    """Stage 1: L1 = 0.1 L_LM + 1.0 L_RM + 1.0 L_FM through the tokenizer (PAPER section 3)."""


class ComponentTrainer(SpeechTrainer):
    """Stage 2: modules train on the frozen tokenizer; with disjoint losses several can share a run."""

    def __init__(self, model: E2ETTSModel, recipe: Recipe, *args, **kwargs) -> None:
        if "encoder" in recipe.train:
            raise ValueError("Stage 2 keeps the tokenizer frozen: take encoder out of the recipe's train list.")
        super().__init__(model, recipe, *args, **kwargs)


class EndToEndTrainer(SpeechTrainer):
    """Stage 3: second-order losses on codes that the LM predicts, with an anchor to the LM it started from."""

    def __init__(self, model: E2ETTSModel, recipe: Recipe, *args, reference_lm=None, **kwargs) -> None:
        frozen = {"encoder", "reward"} & set(recipe.train)
        if frozen:
            raise ValueError(f"Stage 3 keeps tokenizer and reward model frozen: take {sorted(frozen)} out of train.")
        if recipe.kl and reference_lm is None:
            reference_lm = copy.deepcopy(model.lm)  # before it gets adapters
        check_voices(model.config.voices, recipe)
        super().__init__(model, recipe, *args, **kwargs)
        self.has_drawn = False
        self.reference_lm = None
        if recipe.kl:
            self.reference_lm = reference_lm.requires_grad_(False).eval().to(self.args.device)

    def with_draws(self, inputs: dict[str, torch.Tensor], drawn: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.recipe.own_history is None:
            return drawn
        is_first = self.is_fsdp_enabled and not self.has_drawn
        self.has_drawn = True
        return drawn | {"own_history": draw_history(self.composite, self.recipe, inputs, drawn, is_first)}

    def full_weights(self) -> dict[str, float]:
        predicted = asdict(self.recipe.predicted_losses)
        weights = super().full_weights() | {f"predicted_loss_{n}": v for n, v in predicted.items() if v}
        if self.recipe.kl:
            weights["loss_kl"] = self.recipe.kl
        return weights

    def temperature(self, step: int) -> float:
        """Gumbel temperature, linear from start to end over the run."""
        schedule = self.recipe.gumbel
        return schedule.start + (schedule.end - schedule.start) * min(1.0, step / max(1, self.args.max_steps))

    def model_options(self, step: int) -> dict:
        return super().model_options(step) | {
            "gumbel_temperature": self.temperature(step),
            "reference_lm": self.reference_lm,
        }


def edit_distance(first: list[int], second: list[int]) -> int:
    """Levenshtein distance of two label sequences."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


TRAINERS = {"joint": JointTrainer, "component": ComponentTrainer, "end_to_end": EndToEndTrainer}
