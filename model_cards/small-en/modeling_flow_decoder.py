"""The flow-matching decoder: a diffusion transformer from FSQ codes to mel (PAPER section 2, FM)."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .auto_classes import register
from .configuration_e2e_tts import FlowDecoderConfig
from .diffusion_transformer import DiTBlock, MaskedConvBlock, TimeEmbedding, rotary_tables
from .randomness import seeded_noise, seeded_uniform
from .style_embeddings import StyleEmbeddings, StyleMixin

TIME, NOISE, PROMPT, DROP = range(1, 5)  # salts of the random streams of one utterance
# With the small checkpoint six steps end 0.10 from the exact log-mel (root mean square), ten of Euler's method 0.15.
SOLVER_STEPS = 6


@dataclass
class FlowDecoderOutput(ModelOutput):
    """
    loss_flow (`torch.Tensor`, scalar): L_FM, mean over utterances of each one's mean over frames that are not prompt.
    loss_prior (`torch.Tensor`, scalar): mean squared error of the regressed mel; None without a prior.
    """

    loss_flow: torch.Tensor | None = None
    loss_prior: torch.Tensor | None = None


class FlowDecoderModel(StyleMixin, PreTrainedModel):
    """Codes (B, T, D), hard or soft -> mel (B, T * frames_per_token, n_mels)."""

    config_class = FlowDecoderConfig
    base_model_prefix = "decoder"
    main_input_name = "codes"
    _no_split_modules = ("DiTBlock",)
    supports_gradient_checkpointing = True

    def __init__(self, config: FlowDecoderConfig) -> None:
        super().__init__(config)
        size, mels = config.hidden_size, config.mel["num_mel_bins"]
        source_size = config.hidden_condition_size or len(config.levels)
        self.from_code = nn.Sequential(nn.Linear(source_size, size), nn.GELU(), nn.Linear(size, size))
        self.speaker_projection = nn.Linear(config.speaker_dim, size) if config.speaker_dim else None
        self.style_embeddings = StyleEmbeddings(config.styles, config.speaker_dim)
        self.token_blocks = nn.ModuleList(
            MaskedConvBlock(size, config.conv_kernel_size) for _ in range(config.condition_layers)
        )
        self.frame_offset = nn.Parameter(torch.zeros(config.frames_per_token, size))
        self.frame_block = MaskedConvBlock(size, config.conv_kernel_size)
        self.prior_head = nn.Linear(size, mels) if config.use_prior else None
        self.project_in = nn.Linear(size + (3 if config.use_prior else 2) * mels, size)
        self.time_embedding = TimeEmbedding(size)
        self.blocks = nn.ModuleList(
            DiTBlock(
                size, config.num_attention_heads, config.intermediate_size, config.conv_kernel_size, config.dropout
            )
            for _ in range(config.num_hidden_layers)
        )
        self.final_modulation = nn.Linear(size, 2 * size)
        self.final_norm = nn.LayerNorm(size, elementwise_affine=False)
        self.project_out = nn.Linear(size, mels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=module.in_features**-0.5)
        if any(module is block.modulation for block in self.blocks):
            # Each block starts as the identity (adaptive layer normalisation, zero gates). Asked of the layer, not of
            # DiTBlock: transformers passes over custom modules that hold no parameter of their own.
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif self.style_embeddings.holds(module):
            init.zeros_(module.weight)
        elif module is self:
            init.zeros_(self.final_modulation.weight)
            init.zeros_(self.project_out.weight)
            init.normal_(self.frame_offset, mean=0.0, std=0.5)

    def normalise(self, mel: torch.Tensor) -> torch.Tensor:
        return (mel - self.config.mel_mean) / self.config.mel_std

    def styled(self, speaker_embedding: torch.Tensor, style_levels: torch.LongTensor | None) -> torch.Tensor:
        """A voice (B, speaker_dim) in a style, levels (B, S) of `config.styles`; None leaves it as it is."""
        if style_levels is None or not self.style_embeddings:
            return speaker_embedding
        return speaker_embedding + self.style_embeddings(style_levels).to(speaker_embedding.dtype)

    def condition(
        self, codes: torch.Tensor, mask: torch.Tensor, speaker_embedding: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Codes (B, T, D) -> condition (B, T_mel, d), the regressed mel (normalised), the projected voice."""
        # Codes are float32 whatever the weights are; the first layer sets the type of what follows.
        hidden_states = self.from_code(codes.to(self.from_code[0].weight.dtype))
        voice = None
        if self.speaker_projection is not None:
            if speaker_embedding is None:
                raise ValueError("The decoder needs a speaker embedding (B, speaker_dim): give a reference or a voice.")
            voice = self.speaker_projection(speaker_embedding.to(hidden_states.dtype))
            hidden_states = hidden_states + voice[:, None]
        for block in self.token_blocks:
            hidden_states = block(hidden_states, mask)
        frames = self.config.frames_per_token
        hidden_states = hidden_states.repeat_interleave(frames, dim=1)
        hidden_states = hidden_states + self.frame_offset.repeat(codes.shape[1], 1)
        frame_mask = mask.repeat_interleave(frames, dim=1)
        hidden_states = self.frame_block(hidden_states, frame_mask)
        prior = self.prior_head(hidden_states) if self.prior_head is not None else None
        return hidden_states, prior, voice

    def velocity(
        self,
        x: torch.Tensor,
        time: torch.Tensor,
        condition: torch.Tensor,
        prior: torch.Tensor | None,
        voice: torch.Tensor | None,
        prompt: torch.Tensor,
        keep: torch.Tensor,
        frame_mask: torch.Tensor,
    ) -> torch.Tensor:
        """v(x_t, t): x and prompt (B, T_mel, n_mels), time (B,), keep (B,) 0 where the whole condition is dropped."""
        # Noise and flow time are float32 whatever the weights are.
        x, prompt = x.to(condition.dtype), prompt.to(condition.dtype)
        scale = keep.to(x.dtype)[:, None, None]
        inputs = [x, prompt * scale, condition * scale]
        if prior is not None:
            inputs.append(prior * scale)
        hidden_states = self.project_in(torch.cat(inputs, dim=-1))
        embedding = self.time_embedding(time)
        if voice is not None:
            embedding = embedding + voice * scale[:, 0]
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        tables = rotary_tables(x.shape[1], head_dim, self.config.rope_theta, x.device)
        # Padded queries attend everywhere: their result is dropped, and a row without any key would be NaN.
        attention_mask = (frame_mask[:, None, :] | ~frame_mask[:, :, None])[:, None]
        for block in self.blocks:
            hidden_states = block(hidden_states, embedding, frame_mask, attention_mask, tables)
        shift, scale_out = self.final_modulation(nn.functional.silu(embedding))[:, None].chunk(2, dim=-1)
        hidden_states = self.final_norm(hidden_states) * (1 + scale_out) + shift
        return self.project_out(hidden_states) * frame_mask[..., None]

    def forward(
        self,
        codes: torch.Tensor,
        mask: torch.Tensor,
        mel: torch.Tensor,
        seeds: torch.LongTensor,
        speaker_embedding: torch.Tensor | None = None,
        only_prior: bool = False,
    ) -> FlowDecoderOutput:
        """The conditional flow-matching loss on x_t = (1 - t) n + t x with target x - n.

        codes (B, T, D), mask (B, T), mel (B, T * frames_per_token, n_mels) natural-log; seeds (B,) key time, noise,
        prompt length and condition dropout of every utterance, so the loss does not depend on the batch. only_prior
        regresses the mel without running the transformer, at a tenth of the cost.
        """
        config = self.config
        mask = mask.bool()
        frame_mask = mask.repeat_interleave(config.frames_per_token, dim=1)
        if mel.shape[1] != frame_mask.shape[1]:
            raise ValueError(
                f"{mask.shape[1]} tokens are {frame_mask.shape[1]} mel frames, but the mel has {mel.shape[1]}: "
                "tokens and mel come from different audio or different mel settings."
            )
        condition, prior, voice = self.condition(codes, mask, speaker_embedding)
        target = self.normalise(mel) * frame_mask[..., None]
        lengths = frame_mask.sum(dim=1)
        output = FlowDecoderOutput()
        if prior is not None:
            error = (prior - target).square().mean(dim=-1) * frame_mask
            output.loss_prior = (error.sum(dim=1) / lengths.clamp_min(1)).mean()
        if only_prior:
            if prior is None:
                raise ValueError("only_prior needs a decoder that regresses the mel: set use_prior in its config.")
            return output
        time = seeded_uniform(seeds, TIME, mel.device)
        if config.time_sampling == "logit_normal":
            time = torch.special.ndtri(time.clamp(1e-4, 1 - 1e-4)).sigmoid()
        noise = seeded_noise(seeds, NOISE, target.shape[1:], mel.device).to(target.dtype)
        x = (1 - time)[:, None, None] * noise + time[:, None, None] * target
        draw = seeded_uniform(seeds, PROMPT, mel.device)
        # One draw gives both decisions: below prompt_probability there is a prompt, its place in the range the length.
        fraction = (draw / max(config.prompt_probability, 1e-6)).clamp_max(1.0) * config.max_prompt_fraction
        prompt_frames = torch.where(draw < config.prompt_probability, (fraction * lengths).long(), 0)
        is_prompt = torch.arange(mel.shape[1], device=mel.device)[None] < prompt_frames[:, None]
        keep = seeded_uniform(seeds, DROP, mel.device) >= config.condition_dropout
        prompt = target * is_prompt[..., None]
        velocity = self.velocity(x, time, condition, prior, voice, prompt, keep, frame_mask)
        in_loss = (frame_mask & ~is_prompt).to(target.dtype)
        error = (velocity - (target - noise)).square().mean(dim=-1)
        output.loss_flow = ((error * in_loss).sum(dim=1) / in_loss.sum(dim=1).clamp_min(1)).mean()
        return output

    @torch.no_grad()
    def sample(
        self,
        codes: torch.Tensor,
        mask: torch.Tensor | None = None,
        speaker_embedding: torch.Tensor | None = None,
        prompt_mel: torch.Tensor | None = None,
        seeds: torch.LongTensor | None = None,
        num_steps: int = SOLVER_STEPS,
        guidance: float = 0.7,
        temperature: float | None = None,
        schedule: str = "linear",
        noise: torch.Tensor | None = None,
        start_mel: torch.Tensor | None = None,
        start_time: float = 0.0,
    ) -> torch.Tensor:
        """Integration from noise to natural-log mel (B, T * frames_per_token, n_mels), second order in num_steps.

        The two-step Adams-Bashforth method: a step also uses the velocity of the step before, which costs nothing.

        prompt_mel (B, P, n_mels): the true mel of the first P frames, which `codes` must cover; they come back as they
        are. v = (1 + guidance) v_cond - guidance v_uncond. schedule: "linear" takes equal steps, "cosine"
        smaller ones near the noise. noise (B, T * frames_per_token, n_mels): by default drawn for each row from seeds
        (B,); a part that is decoded by itself is given what it has in the whole utterance. temperature: what the noise
        is multiplied with, by default as the configuration says. start_mel (B, T * frames_per_token, n_mels): a mel to
        start from, x_t = (1 - t) n + t x with t = start_time in [0, 1), in place of noise alone (SDEdit, arXiv
        2108.01073); the later, the more of it stays.
        """
        if num_steps < 1:
            raise ValueError(f"The solver needs at least one step, got num_steps={num_steps}.")
        if not 0 <= start_time < 1 or (start_mel is None and start_time):
            raise ValueError(f"start_time must be in [0, 1), and 0 without start_mel, got {start_time}.")
        batch, tokens = codes.shape[:2]
        mask = codes.new_ones((batch, tokens), dtype=torch.bool) if mask is None else mask.bool()
        frame_mask = mask.repeat_interleave(self.config.frames_per_token, dim=1)
        condition, prior, voice = self.condition(codes, mask, speaker_embedding)
        shape = (frame_mask.shape[1], self.config.mel["num_mel_bins"])
        if noise is None:
            seeds = torch.zeros(batch, dtype=torch.long) if seeds is None else seeds
            noise = seeded_noise(seeds, NOISE, shape)
        x = noise.to(condition) * (self.config.noise_temperature if temperature is None else temperature)
        if start_mel is not None:
            x = (1 - start_time) * x + start_time * self.normalise(start_mel).to(x)
        prompt = torch.zeros_like(x)
        if prompt_mel is not None:
            if prompt_mel.shape[1] > shape[0]:
                raise ValueError(
                    f"prompt_mel has {prompt_mel.shape[1]} frames, but the codes cover {shape[0]}: they must begin "
                    "with the prompt's own codes."
                )
            prompt[:, : prompt_mel.shape[1]] = self.normalise(prompt_mel)
        keep = codes.new_ones(batch)
        inputs = (condition, prior, voice, prompt, keep, frame_mask)
        if guidance:
            # Conditional and unconditional velocity in one batch of twice the size.
            inputs = tuple(None if item is None else torch.cat([item, item]) for item in inputs)
            inputs[4][batch:] = 0
        grid = torch.linspace(0, 1, num_steps + 1)
        if schedule == "cosine":
            grid = 1 - torch.cos(0.5 * math.pi * grid)
        elif schedule != "linear":
            raise ValueError(f"Unknown time schedule {schedule!r}; use 'cosine' or 'linear'.")
        grid = start_time + (1 - start_time) * grid
        before: tuple[float, torch.Tensor] | None = None
        for start, end in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
            points = torch.cat([x, x]) if guidance else x
            time = points.new_full((points.shape[0],), start)
            velocity = self.velocity(points, time, *inputs)
            if guidance:
                conditional, unconditional = velocity.chunk(2)
                velocity = conditional + guidance * (conditional - unconditional)
            step, slope = end - start, velocity
            if before is not None:
                # The line through both velocities, in the middle of the step; the first step is Euler's.
                slope = velocity + step / (2 * before[0]) * (velocity - before[1])
            x = x + step * slope
            before = step, velocity
        mel = x * self.config.mel_std + self.config.mel_mean
        if prompt_mel is not None:
            mel = torch.cat([prompt_mel.to(mel), mel[:, prompt_mel.shape[1] :]], dim=1)
        return mel


register(FlowDecoderConfig, AutoModel=FlowDecoderModel)
