"""The demo's fields for styles, without a server."""

from pathlib import Path

import pytest
import soundfile
import torch

from e2e_tts.pipelines import TextToSpeechPipeline


@pytest.fixture(scope="module")
def styled(tmp_path_factory, tiny_model, processor) -> Path:
    model = tiny_model(lm_config={"styles": {"pitch": 3, "pitch_range": 12}})
    weight = model.lm.style_embeddings["pitch"].weight
    weight.data[1:] = 5 * torch.randn(weight[1:].shape, generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("space") / "styled"
    TextToSpeechPipeline(model=model, processor=processor).save_pretrained(path)
    return path


def test_fields_of_the_styles_count(app, styled, folder):
    demo = app.Demo([f"styled={styled}", f"plain={folder}"])
    # Twelve levels have no words.
    assert demo.styles == {"pitch": ("low", "medium", "high"), "pitch_range": tuple(map(str, range(1, 13)))}
    with app.gr.Blocks():
        fields = app.lay_out_inputs(demo)
    assert fields["style_pitch"].value == "" and fields["style_pitch"].choices[0] == ("as usual", "")
    assert fields["style_pitch"].choices[-1] == ("high", "high")

    def heard(**settings) -> list[int]:
        recording, _ = demo.speak("Hello there.", seed=0, steps=2, **settings)
        return soundfile.read(recording)[0].tolist()

    assert heard(style_pitch="") == heard() != heard(style_pitch="high") == heard(style_pitch="3")
    with pytest.raises(app.gr.Error, match="no style 'pitch'"):
        heard(style_pitch="high", checkpoint="plain")
    with app.gr.Blocks():
        assert not any(name.startswith("style_") for name in app.lay_out_inputs(app.Demo([str(folder)])))
