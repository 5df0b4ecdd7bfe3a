"""A speech server that speaks OpenAI's protocol: `e2e-tts serve --help`, or any ASGI server with `create_app`."""

import asyncio
import base64
import io
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import load_pipeline
from .audio_writer import FORMATS, AudioWriter, writable_formats
from .long_text import speak_parts
from .speech_queue import QueueFullError, SpeechJob, SpeechQueue
from .speech_requests import RESPONSE_FORMATS, ApiError, SpeechRequest
from .text_to_speech import VOICE_SUFFIX, TextToSpeechPipeline

logger = logging.getLogger(__name__)

PCM_RATE = 24000  # the format has no header; OpenAI's clients take it for this rate
CLIENT_GONE = 499
RETRY_SECONDS = 1
Result = TypeVar("Result")


@dataclass(frozen=True)
class ServerLimits:
    """characters: of the text of a request. waiting: requests beside the one that is being spoken."""

    characters: int = 4096
    waiting: int = 16

    def __post_init__(self) -> None:
        if self.characters < 1:
            raise ValueError(f"The limit of characters must be at least 1, got {self.characters}.")

    @property
    def body_bytes(self) -> int:
        """The largest body: every character as an escaped surrogate pair, and room for the other fields."""
        return 12 * self.characters + 16384


class SpeechService:
    """Turns requests into bytes with one pipeline. voices_folder: NAME.safetensors is offered as NAME; read once.

    Raises ValueError for a folder that is missing, for voices of another model, and for names that are built in.
    """

    def __init__(self, pipe: TextToSpeechPipeline, voices_folder: str | Path | None, limits: ServerLimits) -> None:
        self.pipe, self.limits = pipe, limits
        self.voices: dict[str, Any] = {name: name for name in pipe.model.config.voice_names}
        if voices_folder is not None:
            if not Path(voices_folder).is_dir():
                raise ValueError(f"There is no folder of voices {voices_folder}.")
            for path in sorted(Path(voices_folder).glob(f"*{VOICE_SUFFIX}")):
                if path.stem in self.voices:
                    raise ValueError(f"{path} has the name of a built-in voice; rename it.")
                self.voices[path.stem] = pipe.load_voice(path)
        # Whether their speech is marked is said now, in the log of the server's start, and not at some request.
        for voice in self.voices.values():
            pipe.find_watermark(voice)

    def check(self, request: SpeechRequest) -> None:
        """Raises ApiError for what can be told without speaking."""
        if not request.input.strip():
            raise ApiError(400, "The input is empty.", "input")
        if len(request.input) > self.limits.characters:
            message = f"The input has {len(request.input)} characters, more than the {self.limits.characters} allowed."
            raise ApiError(400, message, "input", "string_above_max_length")
        if request.instructions:
            raise ApiError(400, "This model takes no instructions.", "instructions")
        if RESPONSE_FORMATS[request.response_format] not in writable_formats():
            raise ApiError(400, f"This server cannot write {request.response_format}.", "response_format")
        self.find_voice(request)

    def find_voice(self, request: SpeechRequest) -> Any:
        """The voice by name, None for the default. Never a path: clients must not make the server read files."""
        if request.voice is None:
            return None
        name = request.voice if isinstance(request.voice, str) else request.voice.id
        if name not in self.voices:
            raise ApiError(400, f"Unknown voice {name!r}; there are {', '.join(self.voices)}.", "voice")
        return self.voices[name]

    def speak(self, request: SpeechRequest) -> Iterator[bytes]:
        """The body of the answer, piece by piece."""
        return self._events(request) if request.stream_format == "sse" else self._audio(request, self._chunks(request))

    def _chunks(
        self, request: SpeechRequest, progress: Callable[[int, int | None, str], None] | None = None
    ) -> Iterator[dict[str, Any]]:
        settings = {**request.settings(), "voice": self.find_voice(request), "progress": progress}
        if request.stream:
            return self.pipe.stream(request.input, **settings)
        return speak_parts(self.pipe, request.input, **settings)

    def _audio(self, request: SpeechRequest, chunks: Iterator[dict[str, Any]]) -> Iterator[bytes]:
        file = io.BytesIO()
        audio_format = RESPONSE_FORMATS[request.response_format]
        output_rate = PCM_RATE if FORMATS[audio_format].container == "RAW" else None
        rate = self.pipe.model.config.sampling_rate
        with closing(chunks), AudioWriter(file, audio_format, rate, request.stream, output_rate) as writer:
            for chunk in chunks:
                writer.write(chunk["audio"])
                # A whole file is kept until its end is known; the empty piece lets the queue stop in between.
                yield _take(file) if request.stream else b""
        yield _take(file)

    def _events(self, request: SpeechRequest) -> Iterator[bytes]:
        """Server-sent events: speech.audio.delta with audio in base64, at last speech.audio.done with the usage."""
        usage = {"input_tokens": 0, "output_tokens": 0}
        started = False
        try:
            for piece in self._audio(request, self._counted(request, usage)):
                if piece:
                    started = True
                    yield _event({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode("ascii")})
        except (ValueError, RuntimeError) as error:
            if not started:
                raise  # the answer can still be an error of HTTP
            yield _event({"type": "error", **ApiError.of(error).body()})
            return
        usage["total_tokens"] = sum(usage.values())
        yield _event({"type": "speech.audio.done", "usage": usage})

    def _counted(self, request: SpeechRequest, usage: dict[str, int]) -> Iterator[dict[str, Any]]:
        """Adds up tokens: of every text part as the LM reads it, and of the speech by its length."""
        parts: list[str] = []  # begun and not counted: two that are equal cannot be told apart by their chunks
        samples, config = 0, self.pipe.model.config
        with closing(self._chunks(request, lambda number, count, part: parts.append(part))) as chunks:
            for chunk in chunks:
                while parts:
                    usage["input_tokens"] += self.pipe.preprocess(parts.pop())["text_ids"].shape[-1]
                samples += len(chunk["audio"])
                usage["output_tokens"] = round(samples / config.sampling_rate * config.encoder_config.token_rate)
                yield chunk


def create_app(
    model: str | Path,
    *,
    voices_folder: str | Path | None = None,
    aliases: Sequence[str] = (),
    limits: ServerLimits | None = None,
    device: str = "cpu",
    watermark: bool | None = None,
) -> FastAPI:
    """The server of one checkpoint, loaded here: a folder or owner/model.

    voices_folder: voice files to offer beside the built-in voices. aliases: other names that clients may ask for, such
    as "tts-1" where a program cannot be told another one. watermark: the pipeline's setting, which no request changes.

    Raises ImportError for watermark=True where the package is missing, and ValueError or OSError for checkpoints,
    voices and limits that cannot be used.
    """
    limits = limits or ServerLimits()
    queue = SpeechQueue(limits.waiting)
    service = SpeechService(load_pipeline(str(model), device=device, watermark=watermark), voices_folder, limits)
    name = Path(model).resolve().name if Path(model).is_dir() else str(model)
    names = (name, *aliases)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        queue.close()

    # The pages of the documentation would load scripts from elsewhere; /openapi.json is complete without them.
    app = FastAPI(title="e2e-tts", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service, app.state.queue = service, queue
    app.add_middleware(BodyLimit, limit=limits.body_bytes)
    for kind, handler in ERROR_HANDLERS.items():
        app.add_exception_handler(kind, handler)
    models = [{"id": known, "object": "model", "created": int(time.time()), "owned_by": "e2e-tts"} for known in names]

    @app.post("/v1/audio/speech", response_class=Response)
    async def create_speech(body: SpeechRequest, request: Request) -> Response:
        if body.model not in names:
            message = f"There is no model {body.model!r}, only {', '.join(names)}."
            raise ApiError(404, message, "model", "model_not_found")
        service.check(body)
        return await answer(queue, partial(service.speak, body), body, request)

    @app.get("/v1/audio/voices")
    async def list_voices() -> dict[str, Any]:
        return {"voices": [{"id": voice, "name": voice, "object": "audio.voice"} for voice in service.voices]}

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": models}

    @app.get("/v1/models/{wanted:path}")
    async def get_model(wanted: str) -> dict[str, Any]:
        for entry in models:
            if entry["id"] == wanted:
                return entry
        raise ApiError(404, f"There is no model {wanted!r}, only {', '.join(names)}.", "model", "model_not_found")

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": name, "requests": len(queue)}

    return app


async def answer(
    queue: SpeechQueue, make_pieces: Callable[[], Iterator[bytes]], body: SpeechRequest, request: Request
) -> Response:
    """Waits for the first piece, so that what is wrong with the request is an error of HTTP, and sends the rest as it
    comes. Raises ApiError."""
    try:
        job = queue.submit(make_pieces)
    except QueueFullError:
        message = "Too many requests are waiting; try again in a moment."
        raise ApiError(429, message, code="rate_limit_exceeded", **{"Retry-After": str(RETRY_SECONDS)}) from None
    handed_over = False
    try:
        pieces = aiter(job)
        whole = not body.stream and body.stream_format == "audio"
        first = await while_connected(request, join(pieces) if whole else anext(pieces))
        media_type = FORMATS[RESPONSE_FORMATS[body.response_format]].media_type
        if first is None:
            return Response(status_code=CLIENT_GONE)
        if whole:
            return Response(first, media_type=media_type)
        handed_over = True
        media_type = "text/event-stream" if body.stream_format == "sse" else media_type
        return JobResponse(queue, job, first, pieces, media_type=media_type, headers={"Cache-Control": "no-cache"})
    except Exception as error:
        if not isinstance(error, ValueError | ApiError):
            logger.exception("Speech failed")
        raise ApiError.of(error) from error
    finally:
        if not handed_over:
            queue.release(job)


class JobResponse(StreamingResponse):
    """Streams a job and releases it, however the connection ends, also before the first byte was sent."""

    def __init__(
        self, queue: SpeechQueue, job: SpeechJob, first: bytes, rest: AsyncIterator[bytes], **settings: Any
    ) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield first
            # An error ends the connection without the last chunk: the client sees that the speech is not whole.
            async for piece in rest:
                yield piece

        super().__init__(pieces(), **settings)
        self._release = partial(queue.release, job)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._release()


class BodyLimit:
    """ASGI middleware that refuses bodies of more than `limit` bytes without keeping them."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.limit:
                raise HTTPException(413, f"The request is larger than the {self.limit} bytes allowed.")
            return message

        await self.app(scope, counted if scope["type"] == "http" else receive, send)


async def join(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def while_connected(request: Request, wanted: Coroutine[Any, Any, Result]) -> Result | None:
    """What `wanted` returns, or None if the client leaves before."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    result, gone = asyncio.ensure_future(wanted), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait((result, gone), return_when=asyncio.FIRST_COMPLETED)
        return result.result() if result.done() else None
    finally:
        result.cancel()
        gone.cancel()


def _take(file: io.BytesIO) -> bytes:
    data = file.getvalue()
    file.seek(0)
    file.truncate()
    return data


def _event(content: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()


async def _api_error(request: Request, error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, headers=error.headers)


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return await _api_error(request, ApiError(400, f"The body is not JSON (character {first['loc'][-1]})."))
    parameter = ".".join(str(place) for place in first["loc"] if place != "body") or None
    message = first["msg"] if parameter is None else f"{parameter}: {first['msg']}"
    return await _api_error(request, ApiError(400, message, parameter))


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    return await _api_error(request, ApiError(error.status_code, f"{request.url.path}: {error.detail}"))


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    return await _api_error(request, ApiError.of(error))


ERROR_HANDLERS: dict[Any, Callable[..., Coroutine[Any, Any, JSONResponse]]] = {
    ApiError: _api_error,
    RequestValidationError: _invalid,
    HTTPException: _http_error,
    Exception: _unexpected,
}
