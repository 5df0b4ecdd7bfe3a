"""Trainers of the three stages: losses live in the model, their weights here, their values in recipes."""

import copy
from collections import defaultdict
from dataclasses import asdict

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import Trainer

from e2e_tts.modeling.modeling_e2e_tts import E2ETTSModel, E2ETTSOutput

from .recipe import Recipe
from .speech_data import SEED_STRIDE, MixtureBatches, SpeechDataset

OTHER_CLIP, RATE = 21, 22  # salts of the trainer's own draws


def token_statistics(counts: torch.Tensor) -> dict[str, float]:
    """Code counts (C,) -> entropy in bits and the share of codes that occur."""
    probabilities = counts.double() / counts.sum().clamp_min(1)
    entropy = -(probabilities * probabilities.clamp_min(1e-30).log2()).sum()
    return {"token_entropy": float(entropy), "code_use": float((counts > 0).double().mean())}


class SpeechTrainer(Trainer):
    """What the stages share: seeded draws, voices from other clips, per-module learning rates, named losses.

    Every loss is a mean over utterances of per-utterance means, so equal shares of a batch give the same gradient
    however it is cut over processes and accumulation steps.
    """

    def __init__(self, model: E2ETTSModel, recipe: Recipe, *args, **kwargs) -> None:
        self.recipe = recipe
        model.freeze([name for name in ("encoder", "reward", "lm", "decoder", "speaker", "vocoder")
                      if name not in recipe.train])
        super().__init__(model, *args, **kwargs)
        # compute_loss returns a mean, which Trainer divides by the accumulation steps itself.
        self.model_accepts_loss_kwargs = False
        rows = self.train_dataset.rows
        self.embeddings = torch.from_numpy(np.asarray(rows["speaker_embedding"][:], dtype=np.float32))
        speakers = np.asarray(rows["speaker"][:])
        self.clips_of = {name: np.flatnonzero(speakers == name) for name in np.unique(speakers)}
        self.speakers = speakers
        self.sums: dict[str, float] = defaultdict(float)
        self.logged = 0
        self.code_counts = torch.zeros(model.config.lm_config.num_codes, dtype=torch.long)

    # ---------------------------------------------------------------- data

    def get_train_dataloader(self) -> DataLoader:
        data = self.recipe.data
        batches = MixtureBatches(
            self.train_dataset.rows,
            data.weights,
            self.args.max_steps * self.args.gradient_accumulation_steps * self.args.world_size,
            self.args.seed,
            data.seconds_per_batch,
            data.max_rows,
            data.max_seconds,
        )
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )
        # accelerate deals whole batches out to the processes only where it need not even out their sizes.
        self.accelerator.even_batches = False
        return self.accelerator.prepare(loader)

    def seeds(self, utterances: torch.Tensor, step: int) -> torch.Tensor:
        """One seed an utterance from (run seed, step, utterance)."""
        values = (self.args.seed * 1_000_003 + step) * SEED_STRIDE + utterances.long() * 97
        return values % (2**31 - 1)

    def draw_inputs(self, inputs: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
        """Adds seeds, the voice (another clip of the speaker where there is one) and jitter of the speaking rate."""
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
        return inputs

    # ---------------------------------------------------------------- losses

    def weights(self, step: int) -> dict[str, float]:
        """Weight of every named loss at a step."""
        weights = {f"loss_{name}": value for name, value in asdict(self.recipe.losses).items() if value}
        if self.recipe.lm_ramp_steps and "loss_lm" in weights:
            weights["loss_lm"] *= min(1.0, (step + 1) / self.recipe.lm_ramp_steps)
        return weights

    def model_options(self, step: int) -> dict:
        """Which losses the model computes."""
        losses = self.recipe.losses
        wanted = {
            "lm": losses.lm,
            "reward": losses.asr or losses.spk or losses.ser,
            "flow": losses.flow,
            "prior": losses.prior,
        }
        return {"true_losses": tuple(name for name, weight in wanted.items() if weight)}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        step = self.state.global_step
        output = model(**self.draw_inputs(inputs, step), **self.model_options(step))
        loss = self.weighted_sum(output, self.weights(step))
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss is not finite at step {step}: {self.named_losses(output)}. Lower the learning rate, or look "
                f"at utterances {inputs['utterance'].tolist()}."
            )
        for name, value in self.named_losses(output).items():
            self.sums[name] += value
        self.logged += 1
        self.code_counts += torch.bincount(output.ids[output.mask].cpu(), minlength=len(self.code_counts))
        return (loss, output) if return_outputs else loss

    @staticmethod
    def weighted_sum(output: E2ETTSOutput, weights: dict[str, float]) -> torch.Tensor:
        return sum(weight * output[name] for name, weight in weights.items() if output.get(name) is not None)

    @staticmethod
    def named_losses(output: E2ETTSOutput) -> dict[str, float]:
        return {name: float(value.detach()) for name, value in output.items() if "loss" in name and value is not None}

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if self.logged and "loss" in logs:
            sums = torch.tensor([*self.sums.values(), float(self.logged)], device=self.args.device)
            counts = self.code_counts.to(self.args.device)
            sums, counts = self.accelerator.reduce(sums), self.accelerator.reduce(counts)
            means = (sums[:-1] / sums[-1]).tolist()
            logs = {**logs, **dict(zip(self.sums, (round(mean, 5) for mean in means), strict=True))}
            logs |= {name: round(value, 4) for name, value in token_statistics(counts).items()}
            self.sums.clear()
            self.logged = 0
            self.code_counts.zero_()
        super().log(logs, *args, **kwargs)

    # ---------------------------------------------------------------- optimisation

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            groups = []
            decayed = set(self.get_decay_parameter_names(self.model))
            for module in self.recipe.train:
                rate = self.recipe.learning_rates.get(module, self.args.learning_rate)
                named = [(f"{module}.{n}", p) for n, p in getattr(self.model, module).named_parameters()]
                for decay in (True, False):
                    members = [p for n, p in named if (n in decayed) is decay and p.requires_grad]
                    if members:
                        weight_decay = self.args.weight_decay if decay else 0.0
                        groups.append({"params": members, "lr": rate, "weight_decay": weight_decay})
            cls, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = cls(groups, **settings)
        return self.optimizer

    # ---------------------------------------------------------------- evaluation

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Named losses on held-out rows with fixed draws, and the reward model's label error rate (greedy CTC)."""
        dataset: SpeechDataset = eval_dataset or self.eval_dataset
        model: E2ETTSModel = self.accelerator.unwrap_model(self.model)
        model.eval()
        sums, rows, edits, symbols = defaultdict(float), 0, 0, 0
        size = 8
        for start in range(0, min(len(dataset), self.recipe.data.eval_rows), size):
            items = [dataset[i] for i in range(start, min(start + size, len(dataset)))]
            inputs = {k: v.to(self.args.device) for k, v in self.data_collator(items).items()}
            utterances = inputs.pop("utterance").cpu()
            inputs["seeds"] = self.seeds(utterances, 0)
            inputs["speaker_embedding"] = inputs["speaker_target"]
            output = model(**inputs, **self.model_options(0))
            rows += len(items)
            for name, value in self.named_losses(output).items():
                sums[name] += value * len(items)
            if self.recipe.losses.asr:
                encoded = model.encoder(inputs["input_features"], inputs["feature_mask"])
                for heard, said in zip(
                    model.reward.transcribe(encoded.codes, encoded.mask), inputs["ctc_labels"].tolist(), strict=True
                ):
                    said = [label for label in said if label != -100]
                    edits += edit_distance(heard, said)
                    symbols += len(said)
        metrics = {f"{metric_key_prefix}_{name}": value / rows for name, value in sums.items()}
        if symbols:
            metrics[f"{metric_key_prefix}_label_error_rate"] = edits / symbols
        self.log(metrics)
        return metrics


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
        super().__init__(model, recipe, *args, **kwargs)
        self.reference_lm = None
        if recipe.kl:
            self.reference_lm = copy.deepcopy(model.lm) if reference_lm is None else reference_lm
            self.reference_lm.requires_grad_(False).eval().to(self.args.device)

    def weights(self, step: int) -> dict[str, float]:
        predicted = asdict(self.recipe.predicted_losses)
        weights = super().weights(step) | {f"predicted_loss_{n}": v for n, v in predicted.items() if v}
        if self.recipe.kl:
            weights["loss_kl"] = self.recipe.kl
        return weights

    def temperature(self, step: int) -> float:
        """Gumbel temperature, linear from start to end over the run."""
        schedule = self.recipe.gumbel
        return schedule.start + (schedule.end - schedule.start) * min(1.0, step / max(1, self.args.max_steps))

    def model_options(self, step: int) -> dict:
        predicted = self.recipe.predicted_losses
        wanted = {
            "reward": predicted.asr or predicted.spk or predicted.ser,
            "flow": predicted.flow or predicted.prior,
        }
        return super().model_options(step) | {
            "predicted_losses": tuple(name for name, weight in wanted.items() if weight),
            "gumbel_temperature": self.temperature(step),
            "predict_from": self.recipe.predict_from,
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
