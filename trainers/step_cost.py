"""What a training step computes and keeps, measured on tensors that have shapes but no memory."""

import copy
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from e2e_tts.modeling import E2ETTSModel
from e2e_tts.modeling.configuration_e2e_tts import E2ETTSConfig

from .recipe import Recipe


@dataclass(frozen=True)
class StepCost:
    """A step on `rows` utterances of `seconds`: floating-point operations and the most bytes of activations.

    recomputed: whether blocks that learn are computed again in the backward pass.
    """

    rows: int
    seconds: float
    flops: float
    activations: float
    recomputed: bool


def flop_counter() -> FlopCounterMode:
    """Counts the operations of what runs inside. torch's own counter passes over attention on the CPU."""
    operators = torch.ops.aten
    attention = {
        operators._scaled_dot_product_flash_attention_for_cpu: (
            lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
        ),
        operators._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(gradient, query, key, value)
        ),
    }
    return FlopCounterMode(display=False, custom_mapping=attention)


class Kept(saved_tensors_hooks):
    """Inside, counts the bytes that autograd keeps for the backward pass, each memory once and weights never.

    `total` is that of everything, `of_block` that of each module of `blocks` by itself.
    """

    def __init__(self, model: nn.Module, blocks: list[nn.Module]) -> None:
        super().__init__(self._pack, lambda tensor: tensor)
        self.weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self.storages: dict[int, torch.UntypedStorage] = {}
        self.of_block: dict[nn.Module, int] = defaultdict(int)
        self.inside: list[nn.Module] = []
        self.handles = [block.register_forward_pre_hook(self._enter) for block in blocks]
        self.handles += [block.register_forward_hook(self._leave) for block in blocks]

    def _enter(self, module: nn.Module, _: object) -> None:
        self.inside.append(module)

    def _leave(self, *_: object) -> None:
        self.inside.pop()

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights and storage._cdata not in self.storages:
            self.storages[storage._cdata] = storage  # held, or its address could be another's later
            if self.inside:
                self.of_block[self.inside[-1]] += storage.nbytes()
        return tensor

    def __enter__(self) -> "Kept":
        super().__enter__()
        return self

    @property
    def total(self) -> int:
        return sum(storage.nbytes() for storage in self.storages.values())

    def __exit__(self, *args: object) -> None:
        super().__exit__(*args)
        for handle in self.handles:
            handle.remove()


def example_batch(config: E2ETTSConfig, rows: int, seconds: float, text_rate: float) -> dict:
    """Inputs of the composite for utterances without padding; seeds are real numbers, for they draw real noise."""
    encoder, decoder = config.encoder_config, config.decoder_config
    tokens = max(1, round(seconds * encoder.token_rate))
    text = max(1, round(seconds * text_rate))
    width = config.speaker_config.embedding_size
    frames = tokens * encoder.frames_per_token
    return {
        "input_features": torch.zeros(rows, frames, encoder.mel["num_mel_bins"]),
        "feature_mask": torch.ones(rows, frames, dtype=torch.bool),
        "text_ids": torch.zeros(rows, text, dtype=torch.long),
        "text_mask": torch.ones(rows, text, dtype=torch.bool),
        "mel": torch.zeros(rows, tokens * decoder.frames_per_token, decoder.mel["num_mel_bins"]),
        "speaker_target": torch.zeros(rows, width),
        "speaker_embedding": torch.zeros(rows, width),
        "emotion_labels": torch.zeros(rows, dtype=torch.long),
        "tokens_per_symbol": torch.full((rows,), tokens / text),
        "seeds": list(range(rows)),
    }


def measure_step(model: E2ETTSModel, recipe: Recipe, seconds: float = 10.0, text_rate: float = 4.0) -> StepCost:
    """The cost of a step of data.seconds_per_batch on one device, without the optimizer's own.

    model: the recipe's, frozen as it says, on the meta device; it is changed. seconds: length of an utterance;
    text_rate: text tokens a second. The CTC loss itself, whose cost depends on its labels, is left out: its logits
    count.
    """
    rows = max(1, min(recipe.data.max_rows, int(recipe.data.seconds_per_batch / seconds)))
    checkpointing = bool(
        recipe.arguments.get("gradient_checkpointing") or recipe.arguments.get("activation_checkpointing")
    )
    half = bool(recipe.arguments.get("bf16"))
    blocks = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
    options = recipe.forward_options()
    anchored = recipe.trainer == "end_to_end" and bool(recipe.kl)
    anchor = copy.deepcopy(model.lm).requires_grad_(False).eval() if anchored else None
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu").train()
        if anchor is not None:
            options["reference_lm"] = anchor.to_empty(device="cpu")
        batch = example_batch(model.config, rows, seconds, text_rate)

        def step(backward: bool) -> tuple[Kept, float]:
            with flop_counter() as counter, ExitStack() as stack:
                kept = stack.enter_context(Kept(model, blocks))
                stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=half))
                output = model(**batch, **options)
                losses = [v for k, v in output.items() if "loss" in k and v is not None and v.requires_grad]
                stack.close()
                if backward:
                    sum(losses).backward()
            return kept, counter.get_total_flops()

        kept, flops = step(backward=not checkpointing)
        activations = kept.total
        if checkpointing:
            # Of the blocks that are computed again, one at a time has all that it keeps.
            largest = max((kept.of_block[block] for block in blocks if block.training), default=0)
            model.activation_checkpointing_enable()
            kept, flops = step(backward=True)
            activations = kept.total + largest
    return StepCost(rows, seconds, flops, activations, checkpointing)
