"""Released checkpoints: valid cards, self-contained folders within their size, and speech from what ships."""

from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from e2e_tts.pipelines import load_pipeline

CARDS = Path(__file__).parents[1] / "model_cards"
RELEASES = sorted(path.parent for path in CARDS.glob("*/config.json"))
LICENCES = {"apache-2.0", "mit", "cc0-1.0", "cc-by-4.0"}
MODULES = ("encoder", "reward", "lm", "decoder", "speaker", "vocoder")
MAX_MEGABYTES = {"small-en": 60, "small-zh": 60}
SENTENCES = {"en": "The birds sang in the morning.", "zh": "小鸟在早晨唱歌。"}


def test_something_is_released():
    assert [path.name for path in RELEASES]


@pytest.mark.parametrize("folder", RELEASES, ids=lambda path: path.name)
def test_card_is_valid(folder):
    card = ModelCard.load(folder / "README.md")
    assert card.data.license in LICENCES
    assert card.data.pipeline_tag == "text-to-speech"
    assert card.data.library_name == "transformers"
    assert card.data.language
    # Figures in the model index are the ones of the text.
    for result in card.data.eval_results or []:
        assert f"{result.metric_value}" in card.text, result.metric_name


@pytest.mark.parametrize("folder", RELEASES, ids=lambda path: path.name)
def test_folder_is_whole_and_small(folder):
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert size <= MAX_MEGABYTES[folder.name] * 1e6
    for module in MODULES:
        assert (folder / module / "model.safetensors").is_file() and (folder / module / "config.json").is_file()
    assert not list(folder.rglob("*.bin")) and not list(folder.rglob("*.pt"))


@pytest.mark.parametrize("folder", RELEASES, ids=lambda path: path.name)
def test_every_voice_speaks(folder):
    pipe = load_pipeline(str(folder))
    sentence = SENTENCES[ModelCard.load(folder / "README.md").data.language]
    for voice in pipe.model.config.voices:
        speech = pipe(sentence, voice=voice, seed=0)
        seconds = len(speech["audio"]) / speech["sampling_rate"]
        assert np.isfinite(speech["audio"]).all() and 0.8 < seconds < 6.0
        assert 0.01 < np.sqrt(np.mean(speech["audio"] ** 2)) < 0.5
