"""Requests for speech and errors in the shapes of OpenAI's interface, with a few settings of our own beside them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

# Names in requests -> names of `audio_writer`.
RESPONSE_FORMATS = {"mp3": "mp3", "opus": "opus", "flac": "flac", "wav": "wav", "pcm": "raw"}


class VoiceId(BaseModel):
    """A voice as an object, as newer clients send it."""

    model_config = ConfigDict(extra="forbid")

    id: str


class SpeechRequest(BaseModel):
    """The body of /v1/audio/speech. The fields from `stream` on are ours: clients send them as extra body."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str
    input: str
    voice: str | VoiceId | None = Field(None, description="by default the model's default voice")
    response_format: Literal["mp3", "opus", "flac", "wav", "pcm"] = Field(
        "mp3", description="pcm is 16-bit little-endian at 24 kHz, as with OpenAI"
    )
    speed: float = Field(1.0, ge=0.25, le=4.0)
    stream_format: Literal["audio", "sse"] = "audio"
    instructions: str | None = None
    stream: bool = Field(True, description="false sends the speech when all of it is there, its length in its header")
    seed: int | None = Field(None, ge=0, lt=2**63)
    # Of steps and candidates fewer than the pipeline takes: one request must not hold the server for minutes.
    num_steps: int | None = Field(None, ge=1, le=100)
    guidance: float | None = Field(None, ge=0.0, le=100.0)
    decoder_temperature: float | None = Field(None, ge=0.0, le=100.0)
    temperature: float | None = Field(None, ge=0.0, le=100.0)
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    text_guidance: float | None = Field(None, ge=0.0, le=100.0)
    candidates: int | None = Field(
        None, ge=1, le=16, description="tries, the best is kept; by default 1, without a stream the checkpoint's"
    )
    style: dict[str, str | int] | str | None = Field(None, description='{"pitch": "high"}, where the model has styles')

    def settings(self) -> dict[str, Any]:
        """What the pipeline is called with, beside the text and the voice."""
        sampling = ("temperature", "top_k", "top_p", "text_guidance", "candidates")
        names = ("speed", "style", "seed", "num_steps", "guidance", "decoder_temperature", *sampling)
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class ApiError(Exception):
    """An error as OpenAI's clients understand it. status: of HTTP; parameter: the field of the request at fault."""

    def __init__(
        self, status: int, message: str, parameter: str | None = None, code: str | None = None, **headers: str
    ) -> None:
        super().__init__(message)
        self.status, self.parameter, self.code, self.headers = status, parameter, code, headers

    @classmethod
    def of(cls, error: Exception) -> "ApiError":
        """The pipeline's errors: a ValueError is about the request, a RuntimeError about speech that failed, and of
        any other only the server's log tells more."""
        if isinstance(error, cls):
            return error
        if isinstance(error, ValueError):
            return cls(400, str(error))
        message = str(error) if isinstance(error, RuntimeError) else "The server failed; its log says why."
        return cls(500, message)

    def body(self) -> dict[str, Any]:
        kinds = {429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.parameter, "code": self.code}}
