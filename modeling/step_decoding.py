"""Generation of the LM, token by token: one position of its transformer a step, and the loop around it."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import Qwen3Model
from transformers.generation import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer


class StepDecoder:
    """The states of a Qwen3 transformer behind a prefix, then one position a call.

    Computes what `Qwen3Model.forward` computes with a cache, in a quarter of the time where matrices are small: keys
    and values go into memory of the final size, rotary tables are made once, and the attention of a single query is
    two matrix products without parallel overhead. The linear layers are called as the modules that they are, so
    adapters (peft) on them apply.
    """

    def __init__(
        self,
        model: Qwen3Model,
        embeds: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        first: torch.Tensor,
        steps: int,
    ) -> None:
        """Reads the prefix: embeds (B, N, d), mask (B, N) and positions (B, N). Steps follow at the positions first
        (B,), first + 1, ...; `steps` is the most there can be. `state` (B, d) is the prefix's last state.

        Raises ValueError for a transformer whose layers do not all attend to everything before.
        """
        if set(model.config.layer_types) != {"full_attention"}:
            raise ValueError(
                f"Codes are generated with full attention in every layer, but text_config.layer_types is "
                f"{model.config.layer_types}."
            )
        self.model = model
        # Dropout is off in every step, and gradient checkpointing would keep no states.
        training = model.training
        model.eval()
        try:
            output = model(inputs_embeds=embeds, attention_mask=mask.long(), position_ids=positions, use_cache=True)
        finally:
            model.train(training)
        self.state = output.last_hidden_state[:, -1]
        self.length = embeds.shape[1]
        self.keys, self.values = [], []
        for layer in output.past_key_values.layers:
            for cache, filled in ((self.keys, layer.keys), (self.values, layer.values)):
                memory = filled.new_empty(*filled.shape[:2], self.length + steps, filled.shape[3])
                memory[:, :, : self.length] = filled
                cache.append(memory)
        # Added to scores (B, H, G, length); nothing to add where no row has padding.
        self.bias: torch.Tensor | None = None
        if not bool(mask.all()):
            self.bias = self.state.new_zeros(len(mask), 1, 1, self.length + steps)
            self.bias[..., : self.length].masked_fill_(~mask.bool()[:, None, None], torch.finfo(self.bias.dtype).min)
        later = first[:, None] + torch.arange(steps, device=first.device)
        cos, sin = model.rotary_emb(embeds, later)
        # rotate_half(x) * sin is roll(x) * sin with the first half of sin negated.
        lower, upper = sin.chunk(2, dim=-1)
        self.cos, self.sin = cos[:, :, None], torch.cat([-lower, upper], dim=-1)[:, :, None]
        self.taken = 0

    def step(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The embedding (B, d) of the next position -> its state (B, d)."""
        cos, sin = self.cos[:, self.taken], self.sin[:, self.taken]
        end = self.length + 1
        bias = None if self.bias is None else self.bias[..., :end]
        for layer, keys, values in zip(self.model.layers, self.keys, self.values, strict=True):
            attention = layer.self_attn
            normed = _rms_norm(layer.input_layernorm, hidden_states)
            batch, groups, size = len(normed), keys.shape[1], attention.head_dim
            query = _rms_norm(attention.q_norm, attention.q_proj(normed).view(batch, -1, size))
            key = _rms_norm(attention.k_norm, attention.k_proj(normed).view(batch, groups, size))
            both = torch.cat([query, key], dim=1)
            both = both * cos + both.roll(size // 2, dims=-1) * sin
            keys[:, :, self.length] = both[:, -groups:]
            values[:, :, self.length] = attention.v_proj(normed).view(batch, groups, size)
            query = (both[:, :-groups] * attention.scaling).view(batch, groups, -1, size)
            scores = query @ keys[:, :, :end].transpose(2, 3)
            if bias is not None:
                scores = scores + bias
            weights = scores.softmax(dim=-1, dtype=torch.float32).to(scores.dtype)
            attended = (weights @ values[:, :, :end]).reshape(batch, -1)
            hidden_states = hidden_states + attention.o_proj(attended)
            hidden_states = hidden_states + layer.mlp(_rms_norm(layer.post_attention_layernorm, hidden_states))
        self.length, self.taken = end, self.taken + 1
        return _rms_norm(self.model.norm, hidden_states)


def _rms_norm(norm: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    return nn.functional.rms_norm(hidden_states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def generate_ids(
    decoder: StepDecoder,
    score: Callable[[torch.Tensor], torch.Tensor],
    embeddings: torch.Tensor,
    steps: int,
    end_token_id: int,
    processors: LogitsProcessorList,
    streamer: BaseStreamer | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
) -> torch.LongTensor:
    """Ids (B, L) with L <= steps, the highest score at each step; behind END_OF_SPEECH a row repeats it.

    The loop of `GenerationMixin.generate` for the best token, with the same processors, streamers and criteria.

    score: states (B, d) -> scores (B, vocabulary). embeddings (vocabulary, d) of the ids.
    """
    state = decoder.state
    ids = torch.full((len(state), steps), end_token_id, dtype=torch.long, device=state.device)
    going = torch.ones(len(state), dtype=torch.bool, device=state.device)
    if streamer is not None:
        streamer.put(ids[:, :0].cpu())
    for count in range(1, steps + 1):
        scores = processors(ids[:, : count - 1], score(state))
        tokens = torch.where(going, scores.argmax(dim=-1), end_token_id)
        ids[:, count - 1] = tokens
        if streamer is not None:
            streamer.put(tokens.cpu())
        going = going & (tokens != end_token_id)
        if stopping_criteria is not None:
            going = going & ~stopping_criteria(ids[:, :count], scores)
        if count == steps or not bool(going.any()):
            break
        state = decoder.step(embeddings[tokens])
    if streamer is not None:
        streamer.end()
    return ids[:, :count]
