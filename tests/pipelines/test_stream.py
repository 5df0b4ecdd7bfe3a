"""The pipeline's stream: what a call would say, in chunks, from text that may still be on its way."""

import numpy as np
import pytest
import torch

from e2e_tts.pipelines import TextToSpeechPipeline
from e2e_tts.pipelines.long_text import speak_long

TEXT = "The first sentence is this one. The second sentence comes after it!"
CHUNKING = {"first": 3, "size": 6, "look_ahead": 2, "context": 4}
SETTINGS = {"seed": 1, "num_steps": 2, "voice": "ben"}


@pytest.fixture(scope="module")
def pipe(tiny_model, processor) -> TextToSpeechPipeline:
    return TextToSpeechPipeline(model=tiny_model(), processor=processor, device="cpu")


def audio(chunks) -> np.ndarray:
    return np.concatenate([chunk["audio"] for chunk in chunks])


def test_a_stream_says_what_long_text_says(pipe):
    chunks = list(pipe.stream(TEXT, chunking=CHUNKING, pause_seconds=0.1, **SETTINGS))
    parts = ["The first sentence is this one.", "The second sentence comes after it!"]
    assert list(dict.fromkeys(chunk["text"] for chunk in chunks)) == parts
    assert {chunk["sampling_rate"] for chunk in chunks} == {16000}
    for part in parts:
        spoken = [chunk for chunk in chunks if chunk["text"] == part and "ids" in chunk]
        inputs = pipe.processor(text=part)
        expected = pipe.model.generate(**inputs, chunking=CHUNKING, **SETTINGS)
        assert len(spoken) > 1 and np.array_equal(audio(spoken), expected["audio"][0].numpy())
        for name in ("ids", "mel"):
            assert np.array_equal(np.concatenate([chunk[name] for chunk in spoken]), expected[name][0].numpy())
    # As long as what a call gives, pauses included: the tokens are the same.
    whole = speak_long(pipe, TEXT, pause_seconds=0.1, **SETTINGS)
    assert audio(chunks).shape == whole["audio"].shape
    assert np.array_equal(audio(pipe.stream(TEXT, CHUNKING, 0.1, **SETTINGS)), audio(chunks))


def test_text_that_is_still_on_its_way(pipe):
    taken = []

    def pieces():
        for character in "Once upon a time in a far country, there lived a small bird. It sang every day.":
            taken.append(character)
            yield character

    seen = []
    stream = pipe.stream(pieces(), CHUNKING, progress=lambda *step: seen.append(step), **SETTINGS)
    first = next(stream)
    assert first["text"] == "Once upon a time in a far country," and len(taken) == len(first["text"]) + 2
    chunks = [first, *stream]
    assert [step[:2] for step in seen] == [(1, None), (2, None), (3, None)]
    again = pipe.stream(["".join(taken)], CHUNKING, **SETTINGS)
    assert np.array_equal(audio(chunks), audio(again))


def test_settings_of_construction_and_of_the_call(tiny_model, processor, pipe):
    other = TextToSpeechPipeline(model=tiny_model(), processor=processor, device="cpu", voice="ben", seed=1)
    expected = audio(pipe.stream(TEXT, **SETTINGS))
    assert np.array_equal(audio(other.stream(TEXT, num_steps=2)), expected)
    assert not np.array_equal(audio(other.stream(TEXT, num_steps=2, voice="anna")), expected)


@pytest.mark.parametrize(
    ("text", "settings", "error", "message"),
    [
        ("", {}, ValueError, "empty"),
        ("?!", {}, ValueError, "can be spoken"),
        ("Hello.", {"voice": "carl"}, ValueError, "anna.*ben"),
        ("Hello.", {"speed": 9}, ValueError, "speed"),
        ("Hello.", {"pitch": 2}, TypeError, "pitch"),
    ],
)
def test_what_cannot_be_spoken_is_said_at_once(pipe, text, settings, error, message):
    with pytest.raises(error, match=message):
        pipe.stream(text, **settings)


def test_what_does_not_fit_into_a_part(pipe):
    seen = []
    text = f"東京東京東京 東京東京東京 東京東京。 The first sentence is this one. It is {'4815162342 ' * 14}"
    with pytest.warns(UserWarning, match="東京"):
        chunks = list(pipe.stream(text, progress=lambda *step: seen.append(step), **SETTINGS))
    parts = list(dict.fromkeys(chunk["text"] for chunk in chunks))
    assert parts == [part for _, _, part in seen] and parts[0] == "The first sentence is this one."
    assert len(parts) > 2 and " ".join(parts[1:]) == f"It is {'4815162342 ' * 14}".strip()


def test_what_goes_wrong_later(tiny_model, processor, pipe):
    with pytest.raises(ValueError, match="nothing to speak"):
        list(pipe.stream([" ", "\n"]))
    with pytest.raises(ValueError, match=r"OWW1.*In part 2 of 2"):
        list(pipe.stream("The first sentence is this one. The second one is {HH AH0 L OWW1} there.", **SETTINGS))
    model = tiny_model()
    endless = TextToSpeechPipeline(model=model, processor=processor, device="cpu")
    model.lm.end_head.bias.data.fill_(-1e4)
    stream = endless.stream(iter([TEXT]), CHUNKING, **SETTINGS)
    assert next(stream)["audio"].size
    with pytest.raises(RuntimeError, match=r"did not end.*In part 1"):
        list(stream)
    torch.nn.init.zeros_(model.vocoder.vocoder.head.weight)
    torch.nn.init.constant_(model.vocoder.vocoder.head.bias, float("nan"))
    with pytest.raises(RuntimeError, match="not finite"):
        next(endless.stream("Hello.", CHUNKING, **SETTINGS))


@pytest.mark.parametrize("settings", [{"chunking": {"frist": 3}}, {"temperature": -1.0}, {"style": {"mood": "sad"}}])
def test_what_cannot_be_used_is_said_before_the_first_chunk(pipe, settings):
    with pytest.raises(ValueError):
        pipe.stream(TEXT, **settings)
