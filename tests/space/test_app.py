"""The Space over a tiny random model, called as a program would call it."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from PIL import Image

gradio = pytest.importorskip("gradio")
client_library = pytest.importorskip("gradio_client")

REPOSITORY = Path(__file__).resolve().parents[2]
SPACE = REPOSITORY / "space"
RATE = 16000
TOKEN = 640  # samples
PAUSE = 8 * TOKEN
SENTENCE = "Hello there, how are you today?"


@pytest.fixture(scope="module")
def client(launch, folder, tmp_path_factory) -> Iterator[client_library.Client]:
    with launch(str(folder)) as url:
        yield client_library.Client(url, download_files=tmp_path_factory.mktemp("client"), verbose=False)


@pytest.fixture
def clip(tmp_path) -> Path:
    time = np.arange(RATE) / RATE
    path = tmp_path / "clip.wav"
    soundfile.write(path, 0.1 * np.sin(2 * np.pi * 200 * time), RATE)
    return path


def read(audio: str) -> np.ndarray:
    samples, rate = soundfile.read(audio)
    assert rate == RATE and samples.ndim == 1
    return samples


def speak(client: client_library.Client, text: str, **settings) -> tuple[np.ndarray, Image.Image]:
    audio, picture = client.predict(text, **({"steps": 2} | settings), api_name="/speak")
    return read(audio), Image.open(picture)


def test_speaks_and_draws(client):
    samples, picture = speak(client, "Hello there.", voice="ben", seed=3)
    assert len(samples) % TOKEN == 0 and np.abs(samples).max() > 1e-3
    # More than the axes: the colours of the palette are on it.
    assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    again, _ = speak(client, "Hello there.", voice="ben", seed=3)
    assert np.array_equal(again, samples)
    other, _ = speak(client, "Hello there.", voice="ben", seed=4)
    assert not np.array_equal(other, samples)


def test_every_control_counts(client):
    settings = {"seed": 0, "speed": 1.0, "guidance": 0.7, "steps": 2, "temperature": 1.0, "top_k": 25, "top_p": 0.8}
    samples, _ = speak(client, SENTENCE, **settings)
    changes = {"voice": "ben", "speed": 1.5, "guidance": 2.0, "steps": 3, "temperature": 0.0, "top_k": 1, "top_p": 0.1}
    changes |= {"text_guidance": 4.0, "candidates": 4}
    for name, value in changes.items():
        other, _ = speak(client, SENTENCE, **(settings | {name: value}))
        assert not np.array_equal(other, samples), f"{name} changes nothing"


def test_voice_of_a_clip(client, clip):
    reference = client_library.handle_file(clip)
    built_in, _ = speak(client, "Hello.", seed=0)
    cloned, _ = speak(client, "Hello.", seed=0, reference=reference)
    continued, _ = speak(client, "Hello.", seed=0, reference=reference, transcript="A tone.")
    assert not np.array_equal(built_in, cloned)
    assert not np.array_equal(cloned, continued)


def test_says_that_cloned_speech_is_marked(app, folder, clip):
    demo = app.Demo([str(folder)])

    def note(**settings) -> str:
        *_, last = demo.play("Hello there.", seed=0, steps=1, **settings)
        return last[-1]

    assert note(voice="ben") == ""
    assert note(reference=str(clip)) == app.MARKED and "watermark" in app.MARKED
    assert note(reference=str(clip), watermark=False) == app.UNMARKED


def test_streams_chunks_with_pauses_between_sentences(client):
    text = "One long sentence is spoken here, in chunks. And then there is another one, after a pause."
    chunks = [read(chunk) for chunk in client.submit(text, seed=1, steps=2, api_name="/stream")]
    whole, _ = speak(client, text, seed=1)
    assert len(chunks) > 2
    assert sum(len(chunk) == PAUSE and not chunk.any() for chunk in chunks) == 1
    # The LM draws the same tokens however they are decoded.
    assert sum(map(len, chunks)) == len(whole)


def test_text_of_too_many_tokens_is_spoken_in_parts(client):
    text = "sixty phonemes and more " * 5
    chunks = [read(chunk) for chunk in client.submit(text, seed=1, steps=2, api_name="/stream")]
    assert sum(len(chunk) == PAUSE and not chunk.any() for chunk in chunks) >= 1


def test_only_streams_of_programs_draw_once_by_default(app, folder, tmp_path):
    """The first sound of a stream would wait for all candidates; a page's words are clearer with them."""
    several = shutil.copytree(folder, tmp_path / "several")
    config = json.loads((several / "config.json").read_text())
    (several / "config.json").write_text(json.dumps(config | {"candidates": 3}))
    endpoints = app.build_demo(str(several)).get_api_info()["named_endpoints"]
    candidates = {
        name: [field["parameter_default"] for field in about["parameters"] if field["parameter_name"] == "candidates"]
        for name, about in endpoints.items()
    }
    assert candidates == {"/speak": [3], "/stream": [1]}


def test_a_fresh_page_shows_the_default_voice(app, folder, tmp_path):
    changed = shutil.copytree(folder, tmp_path / "changed")
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"default_voice": "ben"}))
    demo = app.Demo([str(folder), f"other={changed}"])
    assert demo.voices == {"model": ["anna", "ben"], "other": ["ben", "anna"]}
    with app.gr.Blocks():
        assert app.lay_out_inputs(demo)["voice"].value == "anna"
        assert app.lay_out_inputs(app.Demo([str(changed)]))["voice"].value == "ben"


def test_equal_answers_have_files_of_their_own(client):
    """One file for both would be written again while the first request fetches it."""
    first, second = (client.predict(SENTENCE, seed=0, steps=2, api_name="/speak") for _ in range(2))
    assert all(own != other for own, other in zip(first, second, strict=True))
    assert all(Path(own).read_bytes() == Path(other).read_bytes() for own, other in zip(first, second, strict=True))


def test_20_requests_at_once_are_all_answered(client):
    # One before, so that what is made once is in memory.
    expected = {seed: speak(client, SENTENCE, seed=seed)[0] for seed in range(4)}
    before = resident_bytes()
    jobs = [client.submit(SENTENCE, seed=index % 4, steps=2, api_name="/speak") for index in range(20)]
    for index, job in enumerate(jobs):
        audio, _ = job.result(timeout=900)
        assert np.array_equal(read(audio), expected[index % 4]), "a request got the answer of another"
    assert resident_bytes() - before < 200e6


def resident_bytes() -> int:
    """Memory of this process, in which the server runs too; 0 where the system does not tell."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


@pytest.mark.parametrize("endpoint", ["/speak", "/stream"])
@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("", {}, "The text is empty"),
        ("  \n", {}, "The text is empty"),
        ("???", {}, "can be spoken"),
        ("word " * 100, {}, "500 characters, more than the 400 allowed"),
        ("Hello.", {"transcript": "No clip."}, "no reference clip"),
        ("Hello.", {"voice": "nobody"}, "no voice 'nobody'; it has anna, ben"),
        ("Hello.", {"voice": "/etc/voice.safetensors"}, "no voice"),
        ("Hello.", {"checkpoint": "another"}, "not in the list"),
        ("Hello.", {"speed": 9}, "maximum"),
        ("Hello.", {"steps": 1000}, "maximum"),
        ("Hello.", {"top_k": 0}, "minimum"),
    ],
)
def test_refusals_reach_the_user(client, endpoint, text, settings, message):
    with pytest.raises(client_library.exceptions.AppError, match=message) as refusal:
        client.predict(text, **settings, api_name=endpoint)
    assert "Traceback" not in str(refusal.value)


def test_bad_clips_are_refused(client, tmp_path):
    silent, broken, long = (tmp_path / f"{name}.wav" for name in ("silent", "broken", "long"))
    soundfile.write(silent, np.zeros(RATE), RATE)
    broken.write_bytes(b"not audio at all")
    soundfile.write(long, np.random.default_rng(0).uniform(-0.1, 0.1, 40 * RATE), RATE)
    for path, message in ((silent, "silent"), (broken, "cannot be read as audio"), (long, "too long")):
        with pytest.raises(client_library.exceptions.AppError, match=message):
            client.predict("Hello.", reference=client_library.handle_file(path), api_name="/speak")


def test_large_uploads_are_refused(client, tmp_path):
    large = tmp_path / "large.wav"
    soundfile.write(large, np.zeros(6_000_000), RATE)
    with pytest.raises(Exception, match=r"413|too large|exceeds|maximum"):
        client.predict("Hello.", reference=client_library.handle_file(large), api_name="/speak")


def test_one_checkpoint_is_not_compared(client):
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/speak", "/stream"}


def test_names_what_is_left_out(app, processor):
    notes = app.left_out(type("Pipe", (), {"processor": processor}), "Hello 世界.")
    assert len(notes) == 1 and "世界" in notes[0]


@pytest.mark.parametrize("tokens", [1, 7, 400])
def test_picture_of_any_length(app, tiny_model, tokens):
    random = np.random.default_rng(0)
    mel, codes = random.normal(-5, 2, (2 * tokens, 80)), random.choice([-1.0, 0, 1], (tokens, 3))
    mel[-1], codes[tokens // 2 :] = np.nan, np.nan
    picture = app.Speech(np.zeros(0), mel, codes, tiny_model().config.decoder_config.mel).picture()
    with Image.open(picture) as image:
        assert image.size[0] > image.size[1] > 300


def test_missing_model_says_what_to_do(app, monkeypatch, tmp_path):
    monkeypatch.setattr("checkpoints.DEFAULT_MODELS", (tmp_path / "none", tmp_path / "neither"))
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
