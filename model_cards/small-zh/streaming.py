"""Streaming: speech tokens as the LM finds them, and audio from tokens chunk by chunk."""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers.generation import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .fsq import FiniteScalarQuantizer
from .modeling_flow_decoder import NOISE, FlowDecoderModel
from .modeling_vocoder import VocoderModel
from .randomness import NoiseWindow


@dataclass(frozen=True)
class Chunking:
    """How an utterance is cut for streaming. All lengths are in speech tokens.

    first (`int`): the first chunk; short, for the first sound to come soon.
    size (`int`): every later chunk.
    look_ahead (`int`): tokens decoded beyond a chunk, so that its end knows what follows; their mel is thrown away and
        made again with the next chunk. Sound begins once the LM has found `first + look_ahead` tokens.
    context (`int`): tokens before a chunk whose finished mel is given to the decoder as prompt and to the vocoder.
    """

    first: int = 10
    size: int = 25
    look_ahead: int = 6
    context: int = 12

    def __post_init__(self) -> None:
        for name, lowest in (("first", 1), ("size", 1), ("look_ahead", 1), ("context", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
                raise ValueError(f"chunking.{name} must be a whole number, at least {lowest}, got {value!r}.")

    @classmethod
    def of(cls, value: "ChunkingLike") -> "Chunking":
        """A chunking as it is or of its fields, None for the default. Raises ValueError for anything else."""
        if value is None:
            return cls()
        if isinstance(value, Mapping):
            known = [field.name for field in fields(cls)]
            if unknown := sorted(set(map(str, value)) - set(known)):
                raise ValueError(f"chunking has no {', '.join(unknown)}; it has {', '.join(known)}.")
            return cls(**value)
        # Not asked by class: it may come from another copy of this file, that of a checkpoint say.
        if all(hasattr(value, field.name) for field in fields(cls)):
            return value
        raise ValueError(f"chunking is a Chunking or a mapping of its fields, got {value!r}.")


ChunkingLike = Chunking | Mapping[str, int] | None


class CoreSharing:
    """Gives LM and decoder half of the CPU threads each while they run at the same time.

    Two threads of Python that each spread their small operations over all cores wait for each other at every one: on
    two cores the first sound then takes twice as long. The number of threads is a thread's own, but a new thread gets
    the last one that was set, so what to go back to is kept until the last one leaves.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._threads = threading.Lock(), 0, 1

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._threads = torch.get_num_threads()
            self._inside += 1
            threads = self._threads
            torch.set_num_threads(max(1, threads // 2))
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                torch.set_num_threads(threads)


half_of_the_cores = CoreSharing()


class _Stop(StoppingCriteria):
    """Ends every row once the event is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


class TokenStream(BaseStreamer):
    """Iterates over the tokens of one sequence while `generate` finds them in a thread of its own.

    generate is called with streamer=... and stopping_criteria=...; after the iteration `result()` is what it returned.
    An error in the thread is raised by the iteration. Leaving the `with` block early stops the generation. Autocast,
    which belongs to a thread, holds there as where the block was entered.
    """

    _END = object()

    def __init__(self, generate: Callable[..., Any]) -> None:
        self._generate = generate
        self._tokens: queue.SimpleQueue = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="speech-tokens")
        self._future: Future | None = None
        self._autocast: dict[str, torch.dtype] = {}
        self._has_prompt = False

    def __enter__(self) -> "TokenStream":
        criteria = StoppingCriteriaList([_Stop(self._stopped)])
        kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
        self._autocast = {kind: torch.get_autocast_dtype(kind) for kind in kinds}
        self._future = self._thread.submit(self._run, streamer=self, stopping_criteria=criteria)
        # Runs after the last token was put, also where an error ended the thread.
        self._future.add_done_callback(lambda _: self._tokens.put(self._END))
        return self

    def _run(self, **arguments: Any) -> Any:
        with half_of_the_cores(), ExitStack() as stack:
            for kind, dtype in self._autocast.items():
                stack.enter_context(torch.autocast(kind, dtype))
            return self._generate(**arguments)

    def __exit__(self, *exception: Any) -> None:
        self._stopped.set()
        self._thread.shutdown(wait=True)

    def put(self, value: torch.Tensor) -> None:
        """Called by `generate`: first with the prompt, then with each token."""
        if self._has_prompt:
            self._tokens.put(int(value.reshape(-1)[0]))
        self._has_prompt = True

    def end(self) -> None:
        """Called by `generate` after the last token; the end is known from the thread itself."""

    def __iter__(self) -> Iterator[int]:
        while (token := self._tokens.get()) is not self._END:
            yield token
        self.result()

    def result(self) -> Any:
        """What generate returned, once it is done. Raises what it raised."""
        return self._future.result()


class ChunkDecoder:
    """Speech tokens of one utterance -> audio, chunk by chunk, in memory that does not grow with the utterance.

    A chunk is decoded in a window [context | chunk | look-ahead]. The decoder gets the finished mel of the context as
    prompt, as in training, and every frame starts from the noise that it has in the whole utterance. The vocoder runs
    over the window too; at a seam the end of the last window fades into the new one within half a hop.

    Chunks depend on the tokens before them alone and never on when these arrive: pushed one by one or all at once, the
    audio is the same to the bit.
    """

    def __init__(
        self,
        decoder: FlowDecoderModel,
        vocoder: VocoderModel,
        quantizer: FiniteScalarQuantizer,
        speaker_embedding: torch.Tensor,
        seed: torch.LongTensor,
        prompt_codes: torch.Tensor | None = None,
        prompt_mel: torch.Tensor | None = None,
        chunking: ChunkingLike = None,
        **solver: Any,
    ) -> None:
        """speaker_embedding (1, S); seed (1,) keys the noise; prompt_codes (1, P, D) and prompt_mel (1, P *
        frames_per_token, n_mels): speech that is continued but not spoken. solver: further arguments of
        `FlowDecoderModel.sample`."""
        self.decoder, self.vocoder, self.quantizer = decoder, vocoder, quantizer
        self.speaker_embedding, self.solver = speaker_embedding, solver
        self.noise = NoiseWindow(seed, NOISE, decoder.config.mel["num_mel_bins"])
        self.chunking = Chunking.of(chunking)
        self.frames = decoder.config.frames_per_token
        self.hop = vocoder.config.hop_length
        device = speaker_embedding.device
        if prompt_codes is None:
            prompt_codes = torch.zeros(1, 0, len(decoder.config.levels), device=device)
            prompt_mel = torch.zeros(1, 0, decoder.config.mel["num_mel_bins"], device=device)
        self.position = prompt_codes.shape[1]  # tokens before the next chunk, the prompt's among them
        self.spoken = 0  # frames that have been spoken
        self.pending = torch.zeros(1, 0, dtype=torch.long, device=device)
        self._remember(prompt_codes, prompt_mel)
        self.tail: torch.Tensor | None = None

    def push(self, ids: torch.LongTensor) -> Iterator[dict[str, torch.Tensor]]:
        """Takes further tokens (T,) and yields every chunk that can now be made: audio (1, L), mel (1, frames, n_mels)
        and ids (1, T')."""
        self.pending = torch.cat([self.pending, ids.to(self.pending)[None]], dim=1)
        while self.pending.shape[1] >= (count := self._next_count()) + self.chunking.look_ahead:
            yield self._decode(count)

    def finish(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yields what is left once no more tokens come: one chunk, or none after no token at all."""
        if self.pending.shape[1]:
            yield self._decode(self.pending.shape[1])

    def _next_count(self) -> int:
        return self.chunking.size if self.spoken else self.chunking.first

    def _remember(self, codes: torch.Tensor, mel: torch.Tensor) -> None:
        """Keeps the last `context` tokens of (1, T, D) and (1, T * frames_per_token, n_mels)."""
        kept = min(self.chunking.context, codes.shape[1])
        self.codes = codes[:, codes.shape[1] - kept :]
        self.mel = mel[:, mel.shape[1] - kept * self.frames :]

    @torch.no_grad()
    def _decode(self, count: int) -> dict[str, torch.Tensor]:
        """Speaks the first `count` pending tokens; of the others at most the look-ahead is seen."""
        context = self.codes.shape[1]
        ids = self.pending[:, : count + self.chunking.look_ahead]
        codes = torch.cat([self.codes, self.quantizer.indices_to_codes(ids).to(self.codes)], dim=1)
        with half_of_the_cores():
            mel = self.decoder.sample(
                codes,
                speaker_embedding=self.speaker_embedding,
                prompt_mel=self.mel if context else None,
                noise=self.noise.take((self.position - context) * self.frames, codes.shape[1] * self.frames),
                **self.solver,
            )
            audio = self._synthesise(mel, context * self.frames, count * self.frames)
        start, end = context * self.frames, (context + count) * self.frames
        chunk = {"audio": audio, "mel": mel[:, start:end], "ids": self.pending[:, :count]}
        self._remember(codes[:, : context + count], mel[:, :end])
        self.pending = self.pending[:, count:]
        self.position += count
        self.spoken += count * self.frames
        return chunk

    def _synthesise(self, mel: torch.Tensor, start: int, count: int) -> torch.Tensor:
        """The waveform (1, count * hop) of `count` frames of a window (1, T, n_mels) from frame `start` on."""
        # Of the context only frames that were spoken: a prompt must not be heard, not even at the edge.
        heard = min(start, self.spoken)
        waveform = self.vocoder(mel[:, start - heard :], first_frame=self.spoken - heard)[:, heard * self.hop :]
        audio, rest = waveform.split([count * self.hop, waveform.shape[1] - count * self.hop], dim=1)
        if self.tail is not None:
            length = self.tail.shape[1]
            ramp = (torch.arange(length, device=audio.device) + 0.5) / length
            faded = self.tail * (1 - ramp) + audio[:, :length] * ramp
            audio = torch.cat([faded, audio[:, length:]], dim=1)
        self.tail = rest[:, : self.hop // 2] if rest.shape[1] else None
        return audio
