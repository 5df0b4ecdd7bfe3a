"""Styles as users ask for them: the pipeline, the command line, the server's requests."""

from pathlib import Path

import numpy as np
import pytest
import torch

from e2e_tts.modeling import E2ETTSModel
from e2e_tts.pipelines import TextToSpeechPipeline, cli, load_pipeline
from e2e_tts.pipelines import release as releasing

TEXT = "A longer sentence follows here."
WORDS = "pitch (1 to 3: low, medium, high)"


@pytest.fixture(scope="module")
def model(tiny_model) -> E2ETTSModel:
    """A model whose styles have "learned": their levels say different things."""
    model = tiny_model(lm_config={"styles": {"pitch": 3, "emotion": ["calm", "sad"]}})
    for embedding in model.lm.style_embeddings.values():
        shape = embedding.weight[1:].shape
        embedding.weight.data[1:] = 5 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("release")
    releasing.save_release(model, processor, path)
    return path


@pytest.fixture(scope="module")
def pipe(folder) -> TextToSpeechPipeline:
    return load_pipeline(str(folder), device="cpu")


def spoken(pipe: TextToSpeechPipeline, **settings) -> list[float]:
    return pipe(TEXT, **{"seed": 0, "num_steps": 2, **settings})["audio"].tolist()


def test_a_style_changes_the_speech(pipe, folder):
    assert (folder / "styles.py").is_file()  # the checkpoint's own code
    plain, high = spoken(pipe), spoken(pipe, style={"pitch": "high"})
    assert high != plain == spoken(pipe, style={"pitch": 0}) == spoken(pipe, style={})
    assert high == spoken(pipe, style={"pitch": 3}) == spoken(pipe, style="pitch=high")
    assert high not in (spoken(pipe, style="pitch=low"), spoken(pipe, style="pitch=high, emotion=sad"))
    assert spoken(pipe, style={"rate": "slow"}) == spoken(pipe, speed=0.85)


def test_lists_and_streams_speak_in_the_style(pipe):
    settings = {"seed": 0, "num_steps": 2, "style": "pitch=low"}
    several = pipe([TEXT, TEXT], **settings)
    assert [speech["audio"].tolist() for speech in several] == [spoken(pipe, style="pitch=low")] * 2
    ids = [
        np.concatenate([chunk["ids"] for chunk in pipe.stream(TEXT, seed=0, num_steps=2, style=style)]).tolist()
        for style in ({"pitch": 1}, {"pitch": 3}, None)
    ]
    assert ids[0] != ids[1] and ids[2] not in ids[:2]


@pytest.mark.parametrize(
    "style, message",
    [
        ({"pich": "high"}, r"no style 'pich': it has emotion \(1 to 2: calm, sad\) and pitch .* and rate"),
        ({"pitch": "higher"}, r"pitch \(1 to 3: low, medium, high\) has no such level"),
        ({"pitch": 4}, "no such level"),
        ("pitch", "written"),
        (["pitch"], "1 texts|written|mapping"),
        (7, "mapping"),
    ],
)
def test_what_the_model_does_not_have_is_refused_at_once(pipe, style, message):
    for call in (pipe, pipe.stream):
        with pytest.raises(ValueError, match=message):
            call(TEXT, style=style)


def test_a_model_without_styles_says_so(tiny_model, processor):
    plain = TextToSpeechPipeline(model=tiny_model(), processor=processor)
    with pytest.raises(ValueError, match="no style 'pitch': it has rate"):
        plain(TEXT, style={"pitch": "high"})


def test_command_line(folder, tmp_path, capsys):
    common = ["--model", str(folder), "--seed", "0", "--steps", "2", "-q"]
    for name, extra in (("plain", []), ("high", ["--style", "pitch=high", "--style", "emotion=sad"])):
        assert cli.main(["speak", TEXT, *common, "-o", str(tmp_path / f"{name}.wav"), *extra]) == 0
    assert (tmp_path / "plain.wav").read_bytes() != (tmp_path / "high.wav").read_bytes()
    assert cli.main(["speak", "--list-styles", *common]) == 0
    lines = capsys.readouterr().out.strip().split("\n")
    assert lines[:2] == ["emotion (1 to 2: calm, sad)", WORDS] and lines[2].startswith("rate (1 to 5: very slow")
    for wrong in ("pitch=loud", "loud", "loudness=high"):
        assert cli.main(["speak", TEXT, *common, "-o", str(tmp_path / "no.wav"), "--style", wrong]) == 1
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ") and "\n" not in error
    assert not (tmp_path / "no.wav").exists()


def test_requests_to_the_server():
    pydantic = pytest.importorskip("pydantic")
    from e2e_tts.pipelines.speech_requests import SpeechRequest

    body = {"model": "m", "input": "Hello."}
    style = {"pitch": "high", "effort": 2}
    assert SpeechRequest(**body, style=style).settings()["style"] == style
    assert SpeechRequest(**body, style="pitch=high").settings()["style"] == "pitch=high"
    assert "style" not in SpeechRequest(**body).settings()
    with pytest.raises(pydantic.ValidationError):
        SpeechRequest(**body, style=["pitch"])
