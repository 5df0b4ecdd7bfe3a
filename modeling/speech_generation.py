"""Inference of the composite: text to speech at once or as a stream, and tokens to speech."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .audio_features import length_mask
from .modeling_flow_decoder import SOLVER_STEPS
from .modeling_speech_lm import GeneratedCodes, SpeechLM
from .reranking import check_candidates, generate_ended
from .streaming import ChunkDecoder, ChunkingLike, TokenStream
from .styles import RATE, Style, level_words, resolve_styles
from .voices import Condition, Voice, VoiceMixin

# What transformers' own text-to-audio pipeline adds for models that generate one flat sequence; means nothing here.
STOCK_PIPELINE_SETTINGS = ("return_dict_in_generate", "max_new_tokens", "pad_token_id")
# What a call may say of how the LM draws; of the other arguments of `SpeechLM.generate_codes` the request takes care.
SAMPLING = inspect.signature(SpeechLM.generate_codes).parameters.keys() - {
    "self",
    "text_ids",
    "text_mask",
    "speaker_embedding",
    "tokens_per_symbol",
    "style_levels",
    "prompt_ids",
    "prompt_symbols",
    "generator",
}
# The decoder learns with prompts up to half of an utterance of a few seconds; more only costs time.
MAX_DECODER_PROMPT_SECONDS = 3.0
# Speech of more tokens for each symbol of its text than this, or than twice what was asked for, has lost its way.
LONGEST_SYMBOL = 8.0


class SpeechGenerationError(RuntimeError):
    """Speech that would be noise or cut off is refused with this error instead of being returned."""


@dataclass
class Request:
    """One call of generate, checked: arguments of `SpeechLM.generate_codes`, the voice, seeds (B,) of the noise, how
    many times the LM draws, and what should be heard then."""

    lm_arguments: dict[str, Any]
    condition: Condition
    seeds: torch.LongTensor
    candidates: int = 1
    ctc_labels: torch.LongTensor | None = None


class SpeechGenerationMixin(VoiceMixin):
    """The methods of `E2ETTSModel` that make speech; it needs the modules and the configuration of that class."""

    # ---------------------------------------------------------------- text to speech

    @torch.no_grad()
    def generate(
        self,
        text_ids: torch.LongTensor | None = None,
        text_mask: torch.Tensor | None = None,
        voice: str | Path | Voice | Sequence[str] | None = None,
        reference_features: torch.Tensor | None = None,
        reference_mask: torch.Tensor | None = None,
        speaker_embedding: torch.Tensor | None = None,
        prompt_text_ids: torch.LongTensor | None = None,
        tokens_per_symbol: torch.Tensor | float | None = None,
        speed: float = 1.0,
        style: Style | Sequence[Style] | None = None,
        seed: int | None = None,
        num_steps: int = SOLVER_STEPS,
        guidance: float = 0.7,
        decoder_temperature: float | None = None,
        vocoder: bool = True,
        chunking: ChunkingLike = None,
        candidates: int | None = None,
        ctc_labels: torch.LongTensor | None = None,
        **sampling: Any,
    ) -> dict[str, torch.Tensor]:
        """Text (B, N) -> {"audio": (B, L), "audio_lengths": (B,), "mel": (B, T_mel, n_mels), "ids", "mask": (B, T)}.

        The voice is a built-in one by name (or a name a row), a `Voice` of `make_voice` or the path of a saved one, a
        reference (features of one clip for all rows, or one a row), or an embedding; by default the default
        voice. With prompt_text_ids (1, P), the transcript of the single reference clip, LM and decoder continue that
        clip and its frames are cut from the output. `speed` divides the length; `seed` makes the result repeatable.
        style: {"pitch": "high"} or "pitch=high" for instance, a level by name or number of what `config.styles`
        lists, or one such style a row; "rate" works with every checkpoint whose text positions are "aligned".
        chunking (a `Chunking` or its fields): decode as `generate_stream` does, one text only. candidates: how many
        times the LM draws, for the reward model to keep what it understands best by ctc_labels (B, N), which the
        processor gives; by default as many as the configuration says, or 1 without labels. decoder_temperature: scale
        of the decoder's noise, by default that of its configuration. sampling goes to `SpeechLM.generate_codes`.

        Texts whose speech does not end within the length limit are drawn again, up to twice, the others of the batch
        stay as they are. Raises SpeechGenerationError where that does not help either.
        """
        request = self._request(
            text_ids,
            text_mask,
            self._speaker(voice, reference_features, reference_mask, speaker_embedding, prompt_text_ids),
            tokens_per_symbol,
            speed,
            seed,
            sampling,
            style,
            (1 if ctc_labels is None else self.config.candidates) if candidates is None else candidates,
            ctc_labels,
        )
        generated = self._draw(request)
        solver = {"num_steps": num_steps, "guidance": guidance, "temperature": decoder_temperature}
        return self._decode(
            generated.ids, generated.mask, request.condition, request.seeds, vocoder, chunking, solver, request
        )

    def generate_stream(
        self,
        text_ids: torch.LongTensor,
        text_mask: torch.Tensor | None = None,
        voice: str | Path | Voice | None = None,
        reference_features: torch.Tensor | None = None,
        reference_mask: torch.Tensor | None = None,
        speaker_embedding: torch.Tensor | None = None,
        prompt_text_ids: torch.LongTensor | None = None,
        tokens_per_symbol: torch.Tensor | float | None = None,
        speed: float = 1.0,
        style: Style | Sequence[Style] | None = None,
        seed: int | None = None,
        num_steps: int = SOLVER_STEPS,
        guidance: float = 0.7,
        decoder_temperature: float | None = None,
        chunking: ChunkingLike = None,
        candidates: int = 1,
        ctc_labels: torch.LongTensor | None = None,
        **sampling: Any,
    ) -> Iterator[dict[str, torch.Tensor]]:
        """One text (1, N) -> an iterator of chunks {"audio": (1, L), "mel": (1, T_mel, n_mels), "ids": (1, T)}.

        The LM runs in a thread, and a chunk comes as soon as its tokens and the look-ahead are there. The chunks, put
        together, are exactly what `generate` gives with the same `chunking`, `candidates` and `seed`. Arguments as
        there, but more than one of the candidates are for patient listeners: the first chunk waits for all of them.

        Raises ValueError at once for arguments that cannot be used. The iterator raises SpeechGenerationError after the
        chunks if speech did not end within the length limit: what has been heard cannot be drawn again. Leaving the
        iterator stops the LM.
        """
        if text_ids is not None and text_ids.shape[0] != 1:
            raise ValueError(f"One text is streamed at a time, got a batch of {text_ids.shape[0]}.")
        speaker = self._speaker(voice, reference_features, reference_mask, speaker_embedding, prompt_text_ids)
        request = self._request(
            text_ids, text_mask, speaker, tokens_per_symbol, speed, seed, sampling, style, candidates, ctc_labels
        )
        solver = {"num_steps": num_steps, "guidance": guidance, "temperature": decoder_temperature}
        return self._stream(request, self._chunk_decoder(request.condition, request.seeds, chunking, solver))

    @torch.no_grad()
    def _stream(self, request: Request, decoder: ChunkDecoder) -> Iterator[dict[str, torch.Tensor]]:
        if request.candidates > 1:
            generated = self._draw(request)
            yield from decoder.push(generated.ids[0])
            yield from decoder.finish()
            return
        with TokenStream(partial(self.lm.generate_codes, **request.lm_arguments)) as tokens:
            for token in tokens:
                if token != self.lm.end_token_id:
                    yield from decoder.push(torch.tensor([token]))
            yield from decoder.finish()
            self._check_ended(tokens.result())

    def _speaker(
        self,
        voice: Any,
        reference_features: torch.Tensor | None,
        reference_mask: torch.Tensor | None,
        speaker_embedding: torch.Tensor | None,
        prompt_text_ids: torch.LongTensor | None,
    ) -> Any:
        """The one thing that says who speaks, of the several that generate takes."""
        given = {"voice": voice, "reference_features": reference_features, "speaker_embedding": speaker_embedding}
        if len(names := [name for name, value in given.items() if value is not None]) > 1:
            raise ValueError(f"{' and '.join(names)} each say who speaks: give one of them.")
        if reference_features is None:
            if prompt_text_ids is not None:
                raise ValueError("prompt_text_ids is the transcript of a reference clip: give reference_features too.")
            return voice if speaker_embedding is None else speaker_embedding
        if prompt_text_ids is None:
            return self.embed_speaker(reference_features, reference_mask)
        return self.make_voice(reference_features, reference_mask, prompt_text_ids)

    def _request(
        self,
        text_ids: torch.LongTensor | None,
        text_mask: torch.Tensor | None,
        voice: Any,
        tokens_per_symbol: torch.Tensor | float | None,
        speed: float,
        seed: int | None,
        sampling: dict[str, Any],
        style: Style | Sequence[Style] | None = None,
        candidates: int = 1,
        ctc_labels: torch.LongTensor | None = None,
    ) -> Request:
        if text_ids is None or text_ids.numel() == 0:
            raise ValueError("Nothing to speak: give text_ids (batch, length) from the processor.")
        self._check_in_one_place()
        if not 0.25 <= speed <= 4.0:
            raise ValueError(f"speed must lie between 0.25 and 4, got {speed}.")
        if speed != 1.0 and self.lm.config.text_positions != "aligned":
            raise ValueError(
                "This checkpoint decides itself how fast it speaks: speed needs an LM with text_positions='aligned'."
            )
        check_candidates(candidates, ctc_labels, self.reward)
        given = {name: value for name, value in sampling.items() if name not in STOCK_PIPELINE_SETTINGS}
        if unknown := sorted(given.keys() - SAMPLING):
            raise ValueError(f"Unknown settings {unknown}; of sampling there are {sorted(SAMPLING)}.")
        batch = text_ids.shape[0]
        text_mask = torch.ones_like(text_ids, dtype=torch.bool) if text_mask is None else text_mask.bool()
        condition = self._condition(voice, batch)
        style_levels = None
        if style:
            style_levels, speeds = self.resolve_style(style, batch)
            if speed != 1.0 and bool((speeds != 1.0).any()):
                raise ValueError(f"speed and the style {RATE!r} set the same thing: give one of them.")
            style_levels, speed = style_levels.to(self.device), speed * speeds.to(self.device)
        rate = condition.tokens_per_symbol
        if tokens_per_symbol is not None:
            rate = torch.as_tensor(tokens_per_symbol, device=self.device).float().expand(batch)
            if not bool((rate.isfinite() & (rate > 0)).all()):
                raise ValueError(f"tokens_per_symbol is a rate above 0, got {tokens_per_symbol}.")
        rate = rate / speed
        # Slow speech is long.
        limit = max(LONGEST_SYMBOL, 2.0 * float(rate.max()))
        prompt_ids = prompt_symbols = None
        if condition.prompt is not None and condition.prompt.prompt_text_ids is not None:
            prompt_text_ids = condition.prompt.prompt_text_ids.to(text_ids).expand(batch, -1)
            prompt_ids = condition.prompt.prompt_ids.to(text_ids).expand(batch, -1)
            prompt_symbols = prompt_text_ids.shape[1]
            # The prompt lasts as long as it does, whatever the speed of what follows.
            prompt_rate = rate.new_full((batch, prompt_symbols), prompt_ids.shape[1] / prompt_symbols)
            rate = torch.cat([prompt_rate, rate[:, None].expand(text_ids.shape)], dim=1)
            text_ids = torch.cat([prompt_text_ids, text_ids], dim=1)
            text_mask = nn.functional.pad(text_mask, (prompt_symbols, 0), value=True)
        # A generator of its own, so that other threads that draw numbers do not disturb a seeded call. Its state comes
        # from the process's generator where no seed is given. The noise is keyed before the LM draws: a stream needs
        # it then.
        generator = torch.Generator(device=self.device)
        generator.manual_seed(int(torch.randint(0, 2**62, ())) if seed is None else seed)
        seeds = torch.randint(0, 2**31, (batch,), generator=generator, device=self.device)
        lm_arguments = {
            "text_ids": text_ids,
            "text_mask": text_mask,
            "speaker_embedding": condition.embedding,
            "tokens_per_symbol": rate,
            "style_levels": self.style_columns(style_levels, "lm"),
            "prompt_ids": prompt_ids,
            "prompt_symbols": prompt_symbols,
            "generator": generator,
            "max_tokens_per_symbol": limit,
            **self.config.sampling,
            **given,
        }
        embedding = self.decoder.styled(condition.embedding, self.style_columns(style_levels, "decoder"))
        return Request(lm_arguments, replace(condition, embedding=embedding), seeds, candidates, ctc_labels)

    def _draw(self, request: Request) -> GeneratedCodes:
        """The LM's answer to a request. Raises SpeechGenerationError for speech without an end."""
        generated = generate_ended(self.lm, self.reward, request.lm_arguments, request.ctc_labels, request.candidates)
        self._check_ended(generated)
        return generated

    def resolve_style(self, style: Style | Sequence[Style], batch: int = 1) -> tuple[torch.LongTensor, torch.Tensor]:
        """What `generate` makes of a style: levels (batch, styles) and factors of the speed (batch,).

        Raises ValueError, naming what there is, for a style or level that the checkpoint does not have.
        """
        rate_is_set = self.lm.config.text_positions == "aligned"
        return resolve_styles(style, self.config.styles, batch, rate_is_set)

    def style_words(self) -> dict[str, tuple[str, ...]]:
        """The styles that the model has learned, and the words for their levels; numbers where those are too many."""
        return {
            name: level_words(name, levels) or tuple(str(level) for level in range(1, levels + 1))
            for name, levels in self.config.styles.items()
        }

    def _check_in_one_place(self) -> None:
        """Raises ValueError for a model that accelerate has spread over devices: a step of the LM reads its weights
        directly, past what would bring them together."""
        places = sorted({str(place) for place in (getattr(self, "hf_device_map", None) or {}).values()})
        if len(places) > 1:
            raise ValueError(
                f"The model is spread over {', '.join(places)}, but speaks on one device only: load it with "
                'device_map={"": 0}, or without device_map.'
            )

    @staticmethod
    def _check_ended(generated: GeneratedCodes) -> None:
        if not bool(generated.finished.all()):
            rows = (~generated.finished).nonzero()[:, 0].tolist()
            raise SpeechGenerationError(
                f"Speech of rows {rows} did not end within the length limit of {generated.ids.shape[1]} tokens; try "
                "another seed, a lower temperature or shorter text, or raise max_tokens_per_symbol."
            )
        if not bool(generated.mask.any(dim=1).all()):
            raise SpeechGenerationError("No speech came out for some text; try another seed.")

    # ---------------------------------------------------------------- tokens to speech

    @torch.no_grad()
    def decode(
        self,
        ids: torch.LongTensor,
        mask: torch.Tensor | None = None,
        voice: str | Path | Voice | torch.Tensor | Sequence[str] | None = None,
        seed: int = 0,
        num_steps: int = SOLVER_STEPS,
        guidance: float = 0.7,
        decoder_temperature: float | None = None,
        vocoder: bool = True,
        chunking: ChunkingLike = None,
    ) -> dict[str, torch.Tensor]:
        """Speech tokens (B, T), of the tokenizer say, and their mask (B, T) -> what `generate` returns, in any voice.

        The tokens of a recording and another's voice: voice conversion. chunking: in chunks, one row only; memory then
        does not grow with the length.
        """
        if ids.dim() != 2 or ids.shape[1] == 0:
            raise ValueError(f"Nothing to decode: ids must be (batch, length), got shape {tuple(ids.shape)}.")
        self._check_in_one_place()
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        ids = ids * mask  # whatever padding holds, -100 say
        # Rows get noise of their own, as in generate.
        seeds = torch.randint(0, 2**31, (ids.shape[0],), generator=torch.Generator().manual_seed(seed))
        solver = {"num_steps": num_steps, "guidance": guidance, "temperature": decoder_temperature}
        return self._decode(ids, mask, self._condition(voice, ids.shape[0]), seeds, vocoder, chunking, solver)

    def _decoder_prompt(self, condition: Condition) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The end of the prompt: codes (1, P, D) and mel (1, P * frames_per_token, n_mels), or nothing."""
        if condition.prompt is None:
            return None, None
        ids, mel = condition.prompt.prompt_ids, condition.prompt.prompt_mel
        kept = min(ids.shape[0], round(MAX_DECODER_PROMPT_SECONDS * self.config.encoder_config.token_rate))
        mel = mel[mel.shape[0] - kept * self.config.decoder_config.frames_per_token :]
        codes = self.lm.quantizer.indices_to_codes(ids[ids.shape[0] - kept :].to(self.device))
        return codes[None], mel[None].to(self.device, self.voice_embeddings.dtype)

    def decoder_source(
        self,
        codes: torch.Tensor,
        mask: torch.Tensor,
        text_ids: torch.LongTensor,
        text_mask: torch.Tensor,
        speaker_embedding: torch.Tensor,
        tokens_per_symbol: torch.Tensor,
        style_levels: torch.LongTensor | None = None,
    ) -> torch.Tensor:
        """What the decoder reads for codes (B, T, D): the codes or, if it was built so, the LM's states behind them."""
        if not self.decoder.config.hidden_condition_size:
            return codes
        condition = (speaker_embedding, tokens_per_symbol, style_levels)
        return self.lm(text_ids, text_mask, codes, mask, None, *condition).hidden_states[:, :-1]

    def _check_reads_codes(self) -> None:
        if self.decoder.config.hidden_condition_size:
            raise ValueError("This decoder reads the LM's states, which need a text: use generate, without chunking.")

    def _decoder_input(
        self, ids: torch.LongTensor, mask: torch.Tensor, condition: Condition, request: Request | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The decoder's source (B, P + T, D) and mask, and the mel (B, P * frames_per_token, n_mels) of a prompt."""
        batch = ids.shape[0]
        codes = self.lm.quantizer.indices_to_codes(ids) * mask[..., None]
        prompt_codes, prompt_mel = self._decoder_prompt(condition)
        length = 0 if prompt_codes is None else prompt_codes.shape[1]
        if self.decoder.config.hidden_condition_size:
            if request is None:
                self._check_reads_codes()
            arguments = request.lm_arguments
            lm_codes, lm_mask = codes, mask
            if arguments["prompt_ids"] is None:
                # The LM has not read the clip, so there are no states of it.
                length, prompt_mel = 0, None
            else:
                prompt_ids = arguments["prompt_ids"]
                lm_codes = torch.cat([self.lm.quantizer.indices_to_codes(prompt_ids), codes], dim=1)
                lm_mask = nn.functional.pad(mask, (prompt_ids.shape[1], 0), value=True)
            names = ("text_ids", "text_mask", "speaker_embedding", "tokens_per_symbol", "style_levels")
            source = self.decoder_source(lm_codes, lm_mask, *(arguments[name] for name in names))
            source = source[:, source.shape[1] - length - ids.shape[1] :]
        else:
            source = codes if length == 0 else torch.cat([prompt_codes.expand(batch, -1, -1), codes], dim=1)
        if prompt_mel is not None:
            prompt_mel = prompt_mel.expand(batch, -1, -1)
        return source, nn.functional.pad(mask, (length, 0), value=True), prompt_mel

    def _chunk_decoder(
        self, condition: Condition, seeds: torch.LongTensor, chunking: ChunkingLike, solver: dict[str, Any]
    ) -> ChunkDecoder:
        self._check_reads_codes()
        codes, mel = self._decoder_prompt(condition)
        parts = (self.decoder, self.vocoder, self.lm.quantizer)
        return ChunkDecoder(*parts, condition.embedding, seeds, codes, mel, chunking, **solver)

    def _decode(
        self,
        ids: torch.LongTensor,
        mask: torch.Tensor,
        condition: Condition,
        seeds: torch.LongTensor,
        vocoder: bool,
        chunking: ChunkingLike,
        solver: dict[str, Any],
        request: Request | None = None,
    ) -> dict[str, torch.Tensor]:
        """Tokens (B, T) -> what generate returns. request: the call that the LM answered with these tokens."""
        batch = ids.shape[0]
        lengths = mask.sum(dim=1) * self.decoder.config.frames_per_token
        result = {"ids": ids, "mask": mask}
        if chunking is not None:
            if batch != 1:
                raise ValueError(f"One utterance is decoded in chunks at a time, got a batch of {batch}.")
            decoder = self._chunk_decoder(condition, seeds, chunking, solver)
            chunks = [*decoder.push(ids[0][mask[0]]), *decoder.finish()]
            names = ("mel", "audio") if vocoder else ("mel",)
            result |= {name: torch.cat([chunk[name] for chunk in chunks], dim=1) for name in names}
        else:
            source, decoder_mask, prompt_mel = self._decoder_input(ids, mask, condition, request)
            mel = self.decoder.sample(source, decoder_mask, condition.embedding, prompt_mel, seeds, **solver)
            # Prompt frames are not spoken.
            result["mel"] = mel if prompt_mel is None else mel[:, prompt_mel.shape[1] :]
            if vocoder:
                result["audio"] = self.vocoder(result["mel"], length_mask(lengths, result["mel"].shape[1]))
        if vocoder:
            result["audio_lengths"] = lengths * self.decoder.config.mel["hop_length"]
        return result
