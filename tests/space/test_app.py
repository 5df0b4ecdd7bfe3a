"""The Space over a tiny random model, called as a program would call it."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import yaml
from PIL import Image

from e2e_tts.pipelines import TextToSpeechPipeline

gradio = pytest.importorskip("gradio")
client_library = pytest.importorskip("gradio_client")

REPOSITORY = Path(__file__).resolve().parents[2]
SPACE = REPOSITORY / "space"
RATE = 16000
LONGEST_TEXT = 60  # tokens of the tiny model's processor, so that its own limit comes before the demo's


@pytest.fixture(scope="module")
def app() -> ModuleType:
    specification = importlib.util.spec_from_file_location("space_app", SPACE / "app.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model, processor) -> Path:
    """A released model, as the Hub would hold it."""
    path = tmp_path_factory.mktemp("space") / "model"
    pipe = TextToSpeechPipeline(model=tiny_model(), processor=processor)
    longest, processor.max_text_tokens = processor.max_text_tokens, LONGEST_TEXT
    try:
        pipe.save_pretrained(path)
    finally:
        processor.max_text_tokens = longest
    return path


@pytest.fixture(scope="module")
def client(app, folder, tmp_path_factory) -> Iterator[client_library.Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        demo = app.build_demo(str(folder))
        _, url, _ = demo.launch(prevent_thread_lock=True, server_name="127.0.0.1", quiet=True, inbrowser=False)
        try:
            yield client_library.Client(url, download_files=tmp_path_factory.mktemp("client"), verbose=False)
        finally:
            demo.close()


@pytest.fixture
def clip(tmp_path) -> Path:
    time = np.arange(RATE) / RATE
    path = tmp_path / "clip.wav"
    soundfile.write(path, 0.1 * np.sin(2 * np.pi * 200 * time), RATE)
    return path


def speak(client: client_library.Client, text: str, **settings) -> tuple[np.ndarray, Image.Image]:
    audio, picture = client.predict(text, **({"steps": 2} | settings), api_name="/speak")
    samples, rate = soundfile.read(audio)
    assert rate == RATE and samples.ndim == 1
    return samples, Image.open(picture)


SENTENCE = "Hello there, how are you today?"


def test_speaks_and_draws(client, app):
    samples, picture = speak(client, "Hello there.", voice="ben", seed=3)
    assert len(samples) % 640 == 0 and np.abs(samples).max() > 1e-3
    # More than the axes: the colours of the palette are on it.
    assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    again, _ = speak(client, "Hello there.", voice="ben", seed=3)
    assert np.array_equal(again, samples)
    other, _ = speak(client, "Hello there.", voice="ben", seed=4)
    assert not np.array_equal(other, samples)


def test_every_control_counts(client):
    settings = {"seed": 0, "speed": 1.0, "guidance": 0.7, "steps": 2, "temperature": 1.0}
    samples, _ = speak(client, SENTENCE, **settings)
    for name, value in {"voice": "ben", "speed": 1.5, "guidance": 2.0, "steps": 3, "temperature": 0.0}.items():
        other, _ = speak(client, SENTENCE, **(settings | {name: value}))
        assert not np.array_equal(other, samples), f"{name} changes nothing"


def test_voice_of_a_clip(client, clip):
    reference = client_library.handle_file(clip)
    built_in, _ = speak(client, "Hello.", seed=0)
    cloned, _ = speak(client, "Hello.", seed=0, reference=reference)
    continued, _ = speak(client, "Hello.", seed=0, reference=reference, transcript="A tone.")
    assert not np.array_equal(built_in, cloned)
    assert not np.array_equal(cloned, continued)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("", {}, "The text is empty"),
        ("  \n", {}, "The text is empty"),
        ("???", {}, "can be spoken"),
        ("sixty phonemes and more " * 5, {}, "more than the 60 allowed"),
        ("word " * 100, {}, "500 characters, more than the 160 allowed"),
        ("Hello.", {"transcript": "No clip."}, "no reference clip"),
        ("Hello.", {"voice": "nobody"}, "nobody"),
        ("Hello.", {"speed": 9}, "maximum"),
        ("Hello.", {"steps": 1000}, "maximum"),
    ],
)
def test_refusals_reach_the_user(client, text, settings, message):
    with pytest.raises(client_library.exceptions.AppError, match=message):
        client.predict(text, **settings, api_name="/speak")


def test_bad_clips_are_refused(client, tmp_path):
    silent, broken = tmp_path / "silent.wav", tmp_path / "broken.wav"
    soundfile.write(silent, np.zeros(RATE), RATE)
    broken.write_bytes(b"not audio at all")
    for path, message in ((silent, "silent"), (broken, "cannot be read as audio")):
        with pytest.raises(client_library.exceptions.AppError, match=message):
            client.predict("Hello.", reference=client_library.handle_file(path), api_name="/speak")


def test_only_speak_is_offered(client):
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/speak"]


def test_names_what_is_left_out(app, monkeypatch, processor):
    shown = []
    monkeypatch.setattr(app.gr, "Warning", shown.append)
    speaker = type("Speaker", (), {"processor": processor})
    app.report_left_out(speaker, "Hello 世界.")
    assert len(shown) == 1 and "世界" in shown[0]


@pytest.mark.parametrize("tokens", [1, 7, 400])
def test_picture_of_any_length(app, tiny_model, tokens):
    random = np.random.default_rng(0)
    picture = app.draw_speech(
        tiny_model(), random.normal(-5, 2, (2 * tokens, 80)), random.choice([-1, 0, 1], (tokens, 3))
    )
    assert picture.size[0] > picture.size[1] > 300


def test_missing_model_says_what_to_do(app, monkeypatch, tmp_path):
    monkeypatch.setattr(app, "DEFAULT_MODELS", (tmp_path / "none", tmp_path / "neither"))
    with pytest.raises(FileNotFoundError, match="--model"):
        app.build_demo()


def test_front_matter_is_what_the_hub_reads():
    card = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert set(card) >= {"title", "emoji", "colorFrom", "colorTo", "models"}
    assert (card["sdk"], card["license"]) == ("gradio", "apache-2.0")
    assert (SPACE / card["app_file"]).is_file()
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {card["colorFrom"], card["colorTo"]} <= colours
    assert f"gradio=={card['sdk_version']}" in (REPOSITORY / "constraints.txt").read_text().split()
