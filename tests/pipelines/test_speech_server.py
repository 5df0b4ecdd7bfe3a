"""The speech server with the shipped checkpoint, asked by OpenAI's own client library over a real connection."""

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import openai
import pytest
import soundfile
import uvicorn

from e2e_tts.pipelines.long_text import speak_long
from e2e_tts.pipelines.speech_server import PCM_RATE, ServerLimits, SpeechService, create_app

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "model_cards" / "small-en"
CLIP = ROOT / "tests" / "fixtures" / "clips" / "LJ001-0170.opus"
TEXT = "The birds sang in the morning."
QUICK = {"seed": 0, "num_steps": 2, "guidance": 0.0}
PATIENCE = 120.0  # seconds before a test that hangs fails


class Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """The address of a server, its app and its pipeline; it offers the clip's voice as "reader"."""
    voices = tmp_path_factory.mktemp("voices")
    app = create_app(MODEL, aliases=["tts-1", "owner/model"], limits=ServerLimits(characters=400, waiting=2))
    service = app.state.service
    service.pipe.save_voice(service.pipe.clone(CLIP, prompt=False), voices / "reader.safetensors")
    service.voices["reader"] = service.pipe.load_voice(voices / "reader.safetensors")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        assert server.up.wait(PATIENCE)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        yield SimpleNamespace(address=address, app=app, pipe=service.pipe, voices=voices)
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def client(served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.address}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(served) -> Iterator[None]:
    yield
    wait_for_requests(served, 0)


def wait_for_requests(served: SimpleNamespace, count: int) -> None:
    end = time.monotonic() + PATIENCE
    while len(served.app.state.queue) != count:
        assert time.monotonic() < end, f"{len(served.app.state.queue)} requests, not {count}"
        time.sleep(0.01)


def ask(client: openai.OpenAI, text: str = TEXT, extra: dict | None = None, **settings: object) -> bytes:
    settings = {"model": "small-en", "voice": "lj", "response_format": "wav", **settings}
    return client.audio.speech.create(input=text, extra_body={**QUICK, **(extra or {})}, **settings).content


def samples(wav: bytes) -> np.ndarray:
    audio, rate = soundfile.read(io.BytesIO(wav), dtype="int16")
    assert rate == 16000
    return audio


def pcm(audio: np.ndarray) -> np.ndarray:
    return (audio.clip(-1.0, 1.0) * 32767).astype(np.int16)


def streamed_by_pipe(served: SimpleNamespace, **settings: object) -> np.ndarray:
    chunks = served.pipe.stream(TEXT, **{"voice": "lj", **QUICK, **settings})
    return pcm(np.concatenate([chunk["audio"] for chunk in chunks]))


class Gate:
    """Lets `pipe.stream` give its first chunk, and the others once it is opened; notes when it was closed early."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pipe: object) -> None:
        self.opened, self.left = threading.Event(), threading.Event()
        self.stream = pipe.stream
        monkeypatch.setattr(pipe, "stream", self)

    def __call__(self, *arguments: object, **settings: object) -> Iterator[dict]:
        chunks = self.stream(*arguments, **settings)
        try:
            yield next(chunks)
            assert self.opened.wait(PATIENCE)
            yield from chunks
        finally:
            self.left.set()


def test_what_there_is(served, client):
    assert {model.id for model in client.models.list()} == {"small-en", "tts-1", "owner/model"}
    for name in ("small-en", "owner/model"):
        assert client.models.retrieve(name).id == name
        assert httpx.get(f"{served.address}/v1/models/{name}").json()["id"] == name
    with pytest.raises(openai.NotFoundError, match="small-en"):
        client.models.retrieve("other")
    voices = [voice["id"] for voice in httpx.get(f"{served.address}/v1/audio/voices").json()["voices"]]
    assert voices == [*served.pipe.model.config.voices, "reader"]
    assert httpx.get(f"{served.address}/health").json() == {"status": "ok", "model": "small-en", "requests": 0}


def test_streamed_speech_is_the_pipelines(served, client):
    assert np.abs(samples(ask(client)).astype(int) - streamed_by_pipe(served)).max() <= 1


def test_the_first_chunk_comes_before_the_others_are_made(served, client, monkeypatch):
    gate = Gate(monkeypatch, served.pipe)
    create = client.audio.speech.with_streaming_response.create
    with create(
        model="small-en", voice="lj", input=TEXT, response_format="wav", stream_format="audio", extra_body=QUICK
    ) as answer:
        parts = answer.iter_bytes()
        first = next(parts)
        while len(first) <= 44:  # the header
            first += next(parts)
        assert not gate.left.is_set()
        gate.opened.set()
        whole = first + b"".join(parts)
    assert 0 < len(samples(first)) < len(samples(whole))


def test_whole_speech_has_its_length(served, client):
    settings = {"model": "small-en", "voice": "lj", "response_format": "wav"}
    answer = client.audio.speech.with_raw_response.create(input=TEXT, extra_body={**QUICK, "stream": False}, **settings)
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.headers["content-type"] == "audio/wav"
    expected = speak_long(served.pipe, TEXT, voice="lj", **QUICK)["audio"]
    audio = samples(answer.content)
    # The header says how many samples follow, and no more do.
    assert len(answer.content) == 44 + 2 * len(audio) == 44 + 2 * len(expected)
    # libsndfile rounds, to another full scale by one.
    assert np.abs(audio.astype(int) - pcm(expected)).max() <= 2


@pytest.mark.parametrize("stream", [True, False])
def test_formats(served, client, stream):
    seconds = len(samples(ask(client, extra={"stream": stream}))) / 16000
    raw = ask(client, extra={"stream": stream}, response_format="pcm")
    assert len(raw) / 2 / PCM_RATE == pytest.approx(seconds, abs=0.001)
    for name in ("flac", "mp3", "opus"):
        audio, rate = soundfile.read(io.BytesIO(ask(client, extra={"stream": stream}, response_format=name)))
        # A streamed MP3 has its frames of padding too: nothing in it says what to cut.
        assert len(audio) / rate == pytest.approx(seconds, abs=0.15 if name == "mp3" else 0.001), name
        assert np.abs(audio).max() > 0.01


def test_events(served, client):
    create = client.audio.speech.with_streaming_response.create
    with create(
        model="tts-1", voice="lj", input=TEXT, response_format="wav", stream_format="sse", extra_body=QUICK
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]
    *deltas, done = events
    assert {event["type"] for event in deltas} == {"speech.audio.delta"} and len(deltas) > 1
    audio = samples(b"".join(base64.b64decode(event["audio"]) for event in deltas))
    assert np.abs(audio.astype(int) - streamed_by_pipe(served)).max() <= 1
    tokens = served.pipe.preprocess(TEXT)["text_ids"].shape[-1]
    rate = served.pipe.model.config.encoder_config.token_rate
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["input_tokens"] == tokens
    assert done["usage"]["output_tokens"] == round(len(audio) / 16000 * rate)


@pytest.mark.parametrize("stream", [True, False])
def test_repeated_sentences_count_as_often_as_they_are_spoken(served, client, stream):
    text = " ".join([TEXT] * 3)
    last = ask(client, text, {"stream": stream}, stream_format="sse").decode().strip().split("\n\n")[-1]
    tokens = served.pipe.preprocess(TEXT)["text_ids"].shape[-1]
    assert json.loads(last.removeprefix("data: "))["usage"]["input_tokens"] == 3 * tokens


def test_voices_and_speed_matter(served, client):
    default = ask(client, voice=next(iter(served.pipe.model.config.voices)))
    unnamed = httpx.post(
        f"{served.address}/v1/audio/speech",
        json={"model": "small-en", "input": TEXT, "response_format": "wav", **QUICK},
        timeout=PATIENCE,
    ).content
    assert unnamed == default
    reader = ask(client, voice="reader")
    assert reader != default and ask(client, voice={"id": "reader"}) == reader
    # A cloned voice: what the client hears is marked, and it cannot ask for anything else.
    marked = streamed_by_pipe(served, voice=served.app.state.service.voices["reader"])
    plain = streamed_by_pipe(served, voice=served.app.state.service.voices["reader"], watermark=False)
    assert np.abs(samples(reader).astype(int) - marked).max() <= 2 < np.abs(marked.astype(int) - plain).max()
    with pytest.raises(openai.BadRequestError, match="watermark"):
        ask(client, voice="reader", extra={"watermark": False})
    assert len(ask(client, speed=2.0)) < 0.8 * len(ask(client, speed=0.5))


@pytest.mark.parametrize(
    ("change", "parameter", "message"),
    [
        ({"text": ""}, "input", "empty"),
        ({"text": "!!!"}, None, "can be spoken"),
        ({"text": "a" * 401}, "input", "401 characters, more than the 400"),
        ({"voice": "alloy"}, "voice", "alloy.*reader"),
        ({"speed": 9.0}, "speed", "speed"),
        ({"response_format": "aac"}, "response_format", "flac"),
        ({"instructions": "Whisper."}, "instructions", "no instructions"),
        ({"extra": {"sped": 1.0}}, "sped", "sped"),
        ({"extra": {"seed": -1}}, "seed", "seed"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_requests_that_cannot_be_answered(client, change, parameter, message, stream):
    change = {**change, "extra": {"stream": stream, **change.get("extra", {})}}
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        ask(client, **change)
    assert caught.value.param == parameter and caught.value.type == "invalid_request_error"


def test_a_voice_is_never_a_path(served, client):
    with pytest.raises(openai.BadRequestError, match="Unknown voice"):
        ask(client, voice=str(served.voices / "reader.safetensors"))


def test_other_errors_have_the_same_shape(served, client):
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, model="gpt-9")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    speech = f"{served.address}/v1/audio/speech"
    is_json = {"Content-Type": "application/json"}
    broken = httpx.post(speech, content=b'{"model": "small-en", "input" "Hi."}', headers=is_json).json()["error"]
    assert broken["param"] is None and broken["message"] == "The body is not JSON (character 30)."
    for status, answer in (
        (400, httpx.post(speech, content=b"{", headers=is_json)),
        (404, httpx.get(f"{served.address}/v1/nothing")),
        (405, httpx.get(speech)),
        (413, httpx.post(speech, json={"model": "small-en", "input": "a" * 100_000})),
    ):
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["message"] and answer.json()["error"]["type"] == "invalid_request_error"


def test_waiting_requests_are_answered_and_more_are_refused(served, client, monkeypatch):
    alone = ask(client)
    gate = Gate(monkeypatch, served.pipe)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, client) for _ in range(3)]
        wait_for_requests(served, 3)
        with pytest.raises(openai.RateLimitError, match="waiting") as caught:
            ask(client)
        assert caught.value.type == "rate_limit_error" and "retry-after" in caught.value.response.headers
        gate.opened.set()
        assert [future.result(PATIENCE) for future in asked] == [alone] * 3


def test_a_client_that_leaves_stops_the_speech(served, client, monkeypatch):
    text = " ".join([TEXT] * 3)
    gate = Gate(monkeypatch, served.pipe)
    create = client.audio.speech.with_streaming_response.create
    with create(model="small-en", voice="lj", input=text, response_format="pcm", extra_body=QUICK) as answer:
        next(answer.iter_bytes())
    wait_for_requests(served, 0)
    gate.opened.set()
    assert gate.left.wait(PATIENCE)
    monkeypatch.undo()
    assert len(samples(ask(client))) > 0


def test_speech_that_fails(served, client, monkeypatch):
    def failing(*arguments: object, good: int, **settings: object) -> Iterator[dict]:
        for _ in range(good):
            yield {"audio": np.full(4000, 0.1, np.float32), "sampling_rate": 16000, "text": "Hello."}
        raise RuntimeError("Speech found no end.")

    monkeypatch.setattr(served.pipe, "stream", lambda *a, **settings: failing(*a, good=0, **settings))
    for stream_format in ("audio", "sse"):
        with pytest.raises(openai.InternalServerError, match="found no end") as caught:
            ask(client, stream_format=stream_format)
        assert caught.value.type == "server_error"
    monkeypatch.setattr(served.pipe, "stream", lambda *a, **settings: failing(*a, good=2, **settings))
    # What has been sent cannot be taken back, but nobody takes it for the whole.
    with pytest.raises((openai.APIError, httpx.HTTPError)):
        ask(client)
    last = ask(client, stream_format="sse").decode().strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "Speech found no end."


def test_servers_that_cannot_start(tmp_path, served):
    limits = ServerLimits()
    assert "reader" in SpeechService(served.pipe, served.voices, limits).voices
    with pytest.raises(ValueError, match="no folder of voices"):
        SpeechService(served.pipe, tmp_path / "missing", limits)
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken\.safetensors"):
        SpeechService(served.pipe, tmp_path, limits)
    (tmp_path / "broken.safetensors").rename(tmp_path / "lj.safetensors")
    with pytest.raises(ValueError, match=r"built-in"):
        SpeechService(served.pipe, tmp_path, limits)
    with pytest.raises(ValueError, match="characters"):
        ServerLimits(characters=0)
    with pytest.raises(ValueError, match="waiting"):
        create_app(MODEL, limits=ServerLimits(waiting=-1))
