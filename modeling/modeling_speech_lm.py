"""The speech language model: Qwen3 over text and FSQ codes in one sequence (PAPER section 2, LM)."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import Cache, GenerationMixin, PreTrainedModel, Qwen3Model
from transformers import initialization as init
from transformers.generation import LogitsProcessor, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.utils import ModelOutput

from .auto_classes import register
from .configuration_e2e_tts import END_OF_SPEECH, NUM_CONTROL_TOKENS, SPEAKER, START, TASK, SpeechLMConfig
from .fsq import FiniteScalarQuantizer
from .repetition_aware_sampling import RepetitionAwareSampling
from .step_decoding import StepDecoder, generate_ids
from .style_embeddings import StyleEmbeddings, StyleMixin

# Finite, so that a token can still be forced, and far enough from overflow to be divided by a temperature.
UNLIKELY = -1e9
# Speech that follows its text ends before this many times what the rate says and these codes, for a short word.
OVERRUN, OVERRUN_CODES = 1.05, 5


@dataclass
class SpeechLMOutput(ModelOutput):
    """
    loss (`torch.Tensor`, scalar): mean over utterances of each one's mean cross-entropy in nats a token.
    logits (`torch.Tensor` of shape (B, T + 1, vocab_size)): position t predicts code t, the last END_OF_SPEECH
        (teacher forcing), or (B, L, vocab_size), or fewer by logits_to_keep, for the generic call.
    hidden_states (`torch.Tensor` of shape (B, T + 1, d)): the states behind the logits.
    past_key_values (`Cache`, *optional*).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: torch.Tensor | None = None
    past_key_values: Cache | None = None


@dataclass
class GeneratedCodes(ModelOutput):
    """
    ids (`torch.LongTensor` of shape (B, T)): code indices, 0 in padding.
    mask (`torch.BoolTensor` of shape (B, T)): true on generated codes.
    finished (`torch.BoolTensor` of shape (B,)): whether END_OF_SPEECH came before the length limit.
    """

    ids: torch.LongTensor | None = None
    mask: torch.BoolTensor | None = None
    finished: torch.BoolTensor | None = None


class CodeKeys(nn.Module):
    """Output keys: a non-linear map of the whole codebook, (C, D) -> (C, d).

    With a linear map the scores would factorise over dimensions and an inner level could never win.
    """

    def __init__(self, code_size: int, inner_size: int, hidden_size: int) -> None:
        super().__init__()
        self.inner = nn.Linear(code_size, inner_size)
        self.outer = nn.Linear(inner_size, hidden_size)

    def forward(self, codebook: torch.Tensor) -> torch.Tensor:
        return self.outer(nn.functional.gelu(self.inner(codebook.to(self.inner.weight.dtype))))


class LengthLimits(LogitsProcessor):
    """Each row's own shortest and longest (B,) number of codes: the end is impossible before, and forced after.

    due (B,): the number of codes behind which the end grows likelier with each of them, by `pull` nats.
    """

    def __init__(
        self,
        shortest: torch.Tensor,
        longest: torch.Tensor,
        end_token_id: int,
        due: torch.Tensor | None = None,
        pull: float = 0.0,
    ) -> None:
        self.shortest, self.longest, self.end_token_id = shortest, longest, end_token_id
        self.due, self.pull = due, pull
        self.first_due = math.inf if due is None else float(due.min())

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        step = input_ids.shape[1]
        is_end = torch.arange(scores.shape[1], device=scores.device) == self.end_token_id
        if step > self.first_due:
            scores = scores + is_end * (self.pull * (step - self.due).clamp_min(0))[:, None]
        impossible = torch.where(is_end, step < self.shortest[:, None], step >= self.longest[:, None])
        return scores.masked_fill(impossible, -torch.inf)


class TextGuidance(LogitsProcessor):
    """Classifier-free guidance: the first half of the rows has read the text, the second half has not.

    Moves the scores away from those without the text, without + scale * (with - without), lets `limits` and then
    `processors` decide on them, and gives both halves the same decision. Only tokens that are among the `top_k` of the
    scores with the text, of those within the limits, stay possible (0 keeps all), lest what is unlikely either way
    should win by its ratio.
    """

    def __init__(self, scale: float, limits: LogitsProcessor, processors: LogitsProcessorList, top_k: int = 0) -> None:
        self.scale, self.limits, self.processors, self.top_k = scale, limits, processors, top_k

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        given, without = scores.log_softmax(dim=-1).chunk(2)
        guided = without + self.scale * (given - without)
        input_ids = input_ids[: len(guided)]
        if self.top_k:
            possible = self.limits(input_ids, given)
            least = possible.topk(min(self.top_k, given.shape[-1]), dim=-1).values[:, -1:]
            # What was less likely than this, a control token, stays so.
            guided = torch.where(possible < least, guided.clamp_max(UNLIKELY), guided)
        return self.processors(input_ids, self.limits(input_ids, guided)).repeat(2, 1)


class SpeechLM(StyleMixin, PreTrainedModel, GenerationMixin):
    """p(c_t | c_<t, text, speaker).

    One sequence holds [speaker, start, text ..., task, codes ...]. There is no table of speech tokens: a code's
    embedding is an adapter of its FSQ vector, its score the similarity of the hidden state with another adapter's
    output for it. Output ids are code indices followed by the control tokens, so they can be fed back as input_ids.
    """

    config_class = SpeechLMConfig
    base_model_prefix = "lm"
    main_input_name = "input_ids"
    _no_split_modules = ("Qwen3DecoderLayer",)
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    _supports_attention_backend = True

    def __init__(self, config: SpeechLMConfig) -> None:
        super().__init__(config)
        text = config.text_config
        size = text.hidden_size
        self.model = Qwen3Model(text)
        self.control_embedding = nn.Embedding(NUM_CONTROL_TOKENS, size)
        self.quantizer = FiniteScalarQuantizer(config.levels)
        code_size = len(config.levels)
        if config.input_adapter == "linear":
            self.code_embedding = nn.Linear(code_size, size)
        else:
            self.code_embedding = nn.Sequential(nn.Linear(code_size, size), nn.GELU(), nn.Linear(size, size))
        self.code_keys = CodeKeys(code_size, config.output_adapter_size, size)
        self.end_head = nn.Linear(size, 1)
        self.speaker_projection = nn.Linear(config.speaker_dim, size) if config.speaker_dim else None
        self.style_embeddings = StyleEmbeddings(config.styles, size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FiniteScalarQuantizer):
            module.fill_buffers()
        # Distinct keys from the start: unit-variance features of the grid, then scores of unit variance. Asked of the
        # layers, not of CodeKeys: transformers passes over custom modules that hold no parameter of their own.
        elif module is self.code_keys.inner:
            init.normal_(module.weight, mean=0.0, std=1.0)
        elif module is self.code_keys.outer:
            init.normal_(module.weight, mean=0.0, std=module.in_features**-0.5)
        elif self.style_embeddings.holds(module):
            init.zeros_(module.weight)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value

    @property
    def end_token_id(self) -> int:
        return self.config.num_codes + END_OF_SPEECH

    def embed_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Hard or soft codes (B, T, D) -> embeddings (B, T, d)."""
        return self.code_embedding(codes.to(self.control_embedding.weight.dtype))

    def embed_ids(self, ids: torch.LongTensor) -> torch.Tensor:
        """Output ids (codes, then controls) (B, T) -> embeddings (B, T, d)."""
        is_code = ids < self.config.num_codes
        codes = self.quantizer.codebook[ids.clamp_max(self.config.num_codes - 1)]
        controls = self.control_embedding((ids - self.config.num_codes).clamp_min(0))
        return torch.where(is_code[..., None], self.embed_codes(codes), controls)

    def score(self, hidden_states: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states (..., d) -> logits (..., vocab_size) in float32; only codes and END_OF_SPEECH can win.

        keys (num_codes, d): `code_keys` of the codebook, where a caller needs them more than once.
        """
        if keys is None:
            keys = self.code_keys(self.quantizer.codebook)
        codes = hidden_states @ keys.T * hidden_states.shape[-1] ** -0.5
        end = self.end_head(hidden_states).float()
        # Finite, and so made in float32: in bfloat16 it would be -inf, and a divergence of two -inf is NaN.
        controls = end.new_full((*end.shape[:-1], NUM_CONTROL_TOKENS), torch.finfo(torch.float32).min)
        logits = torch.cat([codes.float(), controls], dim=-1)
        logits[..., self.end_token_id] = end[..., 0]
        return logits

    def embed_prefix(
        self,
        text_ids: torch.LongTensor,
        text_mask: torch.Tensor | None = None,
        speaker_embedding: torch.Tensor | None = None,
        tokens_per_symbol: torch.Tensor | None = None,
        style_levels: torch.LongTensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """[speaker, start, text ..., task] -> embeddings (B, N + 3, d), mask, positions, and the first code's position.

        Text padding stays where it is and is masked; positions are those of the unpadded sequence, so that an utterance
        is the same alone and in a batch. tokens_per_symbol is the speaking rate that "aligned" positions need, in
        speech tokens per text token: one a row (B,), or one a text token (B, N). style_levels (B, S) are added at the
        speaker's place, so that a model without styles can be given some without moving any position.
        """
        batch, length = text_ids.shape
        text_mask = text_ids.new_ones((batch, length), dtype=torch.bool) if text_mask is None else text_mask.bool()
        controls = self.control_embedding.weight
        speaker = controls[SPEAKER].expand(batch, -1)
        if self.speaker_projection is not None and speaker_embedding is not None:
            speaker = speaker + self.speaker_projection(speaker_embedding.to(controls.dtype))
        if style_levels is not None:
            speaker = speaker + self.style_embeddings(style_levels).to(controls.dtype)
        embeds = torch.cat(
            [
                speaker[:, None],
                controls[START].expand(batch, 1, -1),
                self.model.embed_tokens(text_ids),
                controls[TASK].expand(batch, 1, -1),
            ],
            dim=1,
        )
        ones = text_mask.new_ones((batch, 1))
        mask = torch.cat([ones, ones, text_mask, ones], dim=1)
        # Padding, on whichever side, does not count.
        index = (text_mask.cumsum(dim=1) - 1).clamp_min(0).float()
        if self.config.text_positions == "aligned":
            if tokens_per_symbol is None:
                raise ValueError('text_positions="aligned" needs tokens_per_symbol (B,): speech tokens per text token.')
            zero = index.new_zeros((batch, 1))
            rate = tokens_per_symbol.to(index)
            if rate.dim() == 1:
                text_positions = (index + 0.5) * rate[:, None]
            else:
                text_positions = (rate * text_mask).cumsum(dim=1) - 0.5 * rate
            positions = torch.cat([zero, zero, text_positions, zero], dim=1)
            first = index.new_ones((batch,))
        else:
            count = text_mask.sum(dim=1, keepdim=True).float()
            positions = torch.cat([torch.zeros_like(count), torch.ones_like(count), index + 2, count + 2], dim=1)
            first = count[:, 0] + 3
        return embeds, mask, positions, first

    def forward(
        self,
        text_ids: torch.LongTensor | None = None,
        text_mask: torch.Tensor | None = None,
        codes: torch.Tensor | None = None,
        code_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        speaker_embedding: torch.Tensor | None = None,
        tokens_per_symbol: torch.Tensor | None = None,
        style_levels: torch.LongTensor | None = None,
        history_mask: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> SpeechLMOutput:
        """Teacher forcing when `codes` (B, T, D) is given, else the generic call that `generate` makes, where
        logits_to_keep is how many of the last positions are scored (0: all).

        labels (B, T): the code indices to predict. They carry no gradient to the tokenizer; `codes` does.
        history_mask (B, T): false on codes that predictions may not look back on; their embeddings are zero.

        Raises ValueError where there is nothing to read, or labels but no codes.
        """
        if codes is None:
            if labels is not None:
                raise ValueError("labels are predicted behind codes (B, T, D): give codes too, those of the labels.")
            if input_ids is None and inputs_embeds is None:
                raise ValueError("Nothing to read: give text_ids and codes, or input_ids, or inputs_embeds.")
            if inputs_embeds is None:
                inputs_embeds = self.embed_ids(input_ids)
            output = self.model(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
            )
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            hidden_states = output.last_hidden_state[:, kept]
            return SpeechLMOutput(
                logits=self.score(hidden_states), hidden_states=hidden_states, past_key_values=output.past_key_values
            )
        batch, length = codes.shape[:2]
        code_mask = codes.new_ones((batch, length), dtype=torch.bool) if code_mask is None else code_mask.bool()
        prefix, mask, positions, first = self.embed_prefix(
            text_ids, text_mask, speaker_embedding, tokens_per_symbol, style_levels
        )
        steps = torch.arange(length, device=codes.device, dtype=torch.float32)
        history = self.embed_codes(codes)
        if history_mask is not None:
            history = history * history_mask[..., None].to(history)
        output = self.model(
            inputs_embeds=torch.cat([prefix, history], dim=1),
            attention_mask=torch.cat([mask, code_mask], dim=1),
            position_ids=torch.cat([positions, first[:, None] + steps], dim=1),
            use_cache=False,
        )
        hidden_states = output.last_hidden_state[:, prefix.shape[1] - 1 :]
        logits = self.score(hidden_states)
        loss = None
        if labels is not None:
            loss = self.loss(logits, labels, code_mask)
        return SpeechLMOutput(loss=loss, logits=logits, hidden_states=hidden_states)

    def loss(self, logits: torch.Tensor, labels: torch.LongTensor, code_mask: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of codes (those that are not -100) and END_OF_SPEECH: a mean per utterance, then over
        utterances."""
        lengths = code_mask.sum(dim=1)
        targets = nn.functional.pad(labels.masked_fill(~code_mask, -100), (0, 1), value=-100)
        targets = targets.scatter(1, lengths[:, None], self.end_token_id)
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100, reduction="none")
        return (losses.sum(dim=1) / (targets != -100).sum(dim=1)).mean()

    def due_lengths(
        self, text_mask: torch.Tensor, tokens_per_symbol: torch.Tensor | None, prompt_symbols: int = 0
    ) -> torch.Tensor:
        """How many codes (B,) a text (B, N) behind the first prompt_symbols lasts at most if it follows its rate, (B,)
        or (B, N); infinite for an LM that does not know the rate."""
        if self.config.text_positions != "aligned" or tokens_per_symbol is None:
            return torch.full((len(text_mask),), math.inf, device=text_mask.device)
        rates = tokens_per_symbol if tokens_per_symbol.dim() == 2 else tokens_per_symbol[:, None]
        is_new = text_mask & (text_mask.cumsum(dim=1) > prompt_symbols)
        return OVERRUN * (rates * is_new).sum(dim=1) + OVERRUN_CODES

    @torch.no_grad()
    def generate_codes(
        self,
        text_ids: torch.LongTensor,
        text_mask: torch.Tensor | None = None,
        speaker_embedding: torch.Tensor | None = None,
        tokens_per_symbol: torch.Tensor | None = None,
        style_levels: torch.LongTensor | None = None,
        prompt_ids: torch.LongTensor | None = None,
        prompt_symbols: int | None = None,
        top_k: int = 25,
        top_p: float = 0.8,
        temperature: float = 1.0,
        repetition_window: int = 10,
        repetition_limit: int = 3,
        min_tokens_per_symbol: float = 0.5,
        max_tokens_per_symbol: float = 8.0,
        text_guidance: float = 1.0,
        end_pull: float = 1.0,
        generator: torch.Generator | None = None,
        streamer: BaseStreamer | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
    ) -> GeneratedCodes:
        """Samples codes for text (B, N), optionally continuing prompt_ids (B, P), which say the first prompt_symbols of
        `text_ids`. Raises ValueError for one of the two without the other.

        The length lies between min and max_tokens_per_symbol times the number of the row's other text tokens;
        END_OF_SPEECH is impossible before, and a row that reached the limit is not `finished`.
        `temperature` 0 is greedy. `generator` draws the codes; by default the process's own does. text_guidance above 1
        makes the codes follow the text more closely, for an LM that has also learned without text (`text_dropout` of
        the recipes), at the cost of a second row for each; 1 is off.
        end_pull: by how many nats a code the end grows likelier once speech has gone on for longer than the text at
        tokens_per_symbol, by a twentieth and a fifth of a second; 0 is off, as it is without such a rate. Draws that
        lose their way past the last word end there.
        streamer and stopping_criteria are those of `GenerationMixin.generate`.
        """
        batch, length = text_ids.shape
        text_mask = text_ids.new_ones((batch, length), dtype=torch.bool) if text_mask is None else text_mask.bool()
        if temperature < 0:
            raise ValueError(f"temperature must be at least 0, where the likeliest token is taken; got {temperature}.")
        if (prompt_ids is None) != (prompt_symbols is None):
            raise ValueError("prompt_ids and prompt_symbols (how much of text_ids they say) belong together.")
        symbols = text_mask.sum(dim=1) - (prompt_symbols or 0)
        due = self.due_lengths(text_mask, tokens_per_symbol, prompt_symbols or 0)
        if text_guidance != 1.0:
            text_ids, speaker_embedding, tokens_per_symbol, style_levels, prompt_ids = (
                None if value is None else torch.cat([value, value])
                for value in (text_ids, speaker_embedding, tokens_per_symbol, style_levels, prompt_ids)
            )
            text_mask = torch.cat([text_mask, torch.zeros_like(text_mask)])
        embeds, mask, positions, first = self.embed_prefix(
            text_ids, text_mask, speaker_embedding, tokens_per_symbol, style_levels
        )
        prompt_length = 0
        if prompt_ids is not None:
            prompt_length = prompt_ids.shape[1]
            embeds = torch.cat([embeds, self.embed_codes(self.quantizer.indices_to_codes(prompt_ids))], dim=1)
            mask = torch.cat([mask, mask.new_ones(prompt_ids.shape)], dim=1)
            steps = torch.arange(prompt_length, device=first.device)
            positions = torch.cat([positions, first[:, None] + steps], dim=1)
        shortest = (symbols * min_tokens_per_symbol).long().clamp_min(1)
        longest = torch.maximum(shortest + 1, (symbols * max_tokens_per_symbol).long())
        limits = LengthLimits(shortest, longest, self.end_token_id, due, end_pull)
        processors = LogitsProcessorList([] if text_guidance != 1.0 else [limits])
        if temperature > 0:
            processors.append(
                RepetitionAwareSampling(
                    top_k,
                    top_p,
                    temperature,
                    repetition_window,
                    repetition_limit,
                    exempt=(self.end_token_id,),
                    generator=generator,
                )
            )
        if text_guidance != 1.0:
            processors = LogitsProcessorList([TextGuidance(text_guidance, limits, processors, top_k)])
        steps = int(longest.max())
        keys = self.code_keys(self.quantizer.codebook)
        sequences = generate_ids(
            StepDecoder(self.model, embeds, mask, positions, first + prompt_length, steps),
            partial(self.score, keys=keys),
            self.embed_ids(torch.arange(self.config.vocab_size, device=self.device)[None])[0],
            steps,
            self.end_token_id,
            processors,
            streamer,
            stopping_criteria,
        )
        ended = sequences[:batch] == self.end_token_id
        code_mask = ended.cumsum(dim=1) == 0
        lengths = code_mask.sum(dim=1)
        # The column in which the longest row ended holds no code.
        ids, code_mask = (sequences[:batch] * code_mask)[:, : lengths.max()], code_mask[:, : lengths.max()]
        return GeneratedCodes(ids=ids, mask=code_mask, finished=ended.any(dim=1) & (lengths < longest))


register(SpeechLMConfig, AutoModel=SpeechLM)
