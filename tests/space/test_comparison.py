"""Several checkpoints side by side."""

import numpy as np
import pytest
import soundfile
from PIL import Image

from e2e_tts.pipelines import TextToSpeechPipeline

gradio = pytest.importorskip("gradio")
client_library = pytest.importorskip("gradio_client")

TEXT = "Hello there."


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory, tiny_model, processor):
    """A checkpoint with other weights, in the vocoder too, and one voice less."""
    model = tiny_model()
    for part in (model.lm, model.decoder, model.vocoder):
        for parameter in part.parameters():
            parameter.data.mul_(1.2)
    voice = model.voice_embeddings[0]
    model.set_voices({"anna": voice}, {"anna": 2.0})
    path = tmp_path_factory.mktemp("other") / "stage2"
    TextToSpeechPipeline(model=model, processor=processor).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def demo(app, folder, other_folder):
    return app.Demo([f"stage 1={folder}", str(other_folder)])


def test_they_share_the_first_vocoder(demo):
    first, second = (pipe.model for pipe in demo.checkpoints.values())
    assert list(demo.checkpoints) == ["stage 1", "stage2"]
    assert second.vocoder is first.vocoder and second.decoder is not first.decoder
    assert demo.own_vocoder == [] and demo.voices == {"stage 1": ["anna", "ben"], "stage2": ["anna"]}


def test_a_vocoder_that_does_not_fit_is_not_shared(app, folder, tmp_path, tiny_config, tiny_model, processor):
    mel = tiny_config().decoder_config.mel | {"f_max": 7000.0}
    model = tiny_model(decoder_config={"mel": mel}, vocoder_config={"mel": mel})
    TextToSpeechPipeline(model=model, processor=processor).save_pretrained(tmp_path / "own")
    demo = app.Demo([str(folder), str(tmp_path / "own")])
    assert demo.own_vocoder == ["own"]
    first, second = (pipe.model.vocoder.config.mel["f_max"] for pipe in demo.checkpoints.values())
    assert (first, second) == (8000.0, 7000.0)


def test_every_checkpoint_speaks(launch, folder, other_folder, tmp_path):
    with launch(f"stage 1={folder}", str(other_folder)) as url:
        client = client_library.Client(url, download_files=tmp_path, verbose=False)
        first, first_picture, second, second_picture = client.predict(TEXT, steps=2, seed=5, api_name="/compare")
        alone, _ = client.predict(TEXT, steps=2, seed=5, checkpoint="stage2", api_name="/speak")
        ben, _, stand_in, _ = client.predict(TEXT, steps=2, seed=5, voice="ben", api_name="/compare")
        with pytest.raises(client_library.exceptions.AppError, match="has a voice 'nobody'; there are anna, ben"):
            client.predict(TEXT, voice="nobody", api_name="/compare")
        with pytest.raises(client_library.exceptions.AppError, match="The text is empty"):
            client.predict("", api_name="/compare")
    samples = {path: soundfile.read(path)[0] for path in (first, second, alone, ben, stand_in)}
    assert not np.array_equal(samples[first], samples[second])
    assert np.array_equal(samples[second], samples[alone])
    # Where a checkpoint lacks the voice, its default one speaks.
    assert np.array_equal(samples[stand_in], samples[second]) and not np.array_equal(samples[ben], samples[first])
    assert all(Image.open(picture).size[0] > 500 for picture in (first_picture, second_picture))


@pytest.mark.parametrize(
    ("part", "error"),
    [
        ("stream", RuntimeError("Speech did not end.")),
        ("text_frontend", ValueError("Nothing in it is English.")),
        ("text_frontend", ImportError("Install pypinyin.")),
    ],
)
def test_one_that_fails_leaves_the_others(demo, monkeypatch, part, error):
    def fail(*_, **__):
        raise error

    def break_part(name):
        pipe = demo.checkpoints[name]
        monkeypatch.setattr(pipe if part == "stream" else pipe.processor, part, fail)

    break_part("stage 1")
    with pytest.warns(UserWarning, match=f"stage 1: {error}"):
        *_, results = demo.compare(TEXT, steps=2, seed=0)
    assert results[:2] == [None, None] and soundfile.read(results[2])[0].any()
    with pytest.raises(gradio.Error, match=str(error)):
        demo.speak(TEXT, checkpoint="stage 1")
    break_part("stage2")
    with pytest.warns(UserWarning), pytest.raises(gradio.Error, match=str(error)):
        list(demo.compare(TEXT, steps=2, seed=0))


def test_a_voice_that_is_missing_is_said(demo, capsys):
    *_, results = demo.compare(TEXT, voice="ben", steps=2, seed=0)
    assert all(results)
    assert capsys.readouterr().out == "stage2 has no voice 'ben' and speaks in its own 'anna'.\n"


def test_the_page_offers_the_voices_of_the_checkpoint(app, folder, other_folder):
    page = app.build_demo(f"stage 1={folder}", str(other_folder))
    (event,) = (event for event in page.fns.values() if any(name == "change" for _, name in event.targets))
    assert [field.label for field in (*event.inputs, *event.outputs)] == ["Checkpoint", "Built-in voice"]
    offered = [event.fn(name) for name in ("stage2", "stage 1")]
    assert [(field.value, [name for name, _ in field.choices]) for field in offered] == [
        ("anna", ["anna"]),
        ("anna", ["anna", "ben"]),
    ]


def test_names_from_the_environment(app, monkeypatch, folder):
    monkeypatch.setenv("E2E_TTS_CHECKPOINTS", f"first={folder}, second = {folder} ,")
    from checkpoints import find_sources

    assert list(app.Demo(find_sources()).checkpoints) == ["first", "second"]


@pytest.mark.parametrize(
    ("sources", "message"), [(["{0}", "{0}"], "Two checkpoints"), (["={0}"], "NAME=FOLDER"), (["one="], "NAME=FOLDER")]
)
def test_unclear_names_are_refused(app, folder, sources, message):
    with pytest.raises(ValueError, match=message):
        app.Demo([source.format(folder) for source in sources])
