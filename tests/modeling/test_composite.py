"""The composite's folder: complete, without repetition, loadable whole and in parts, with and without this package."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoModelForTextToWaveform, AutoProcessor, pipeline

from e2e_tts.modeling import E2ETTSModel, SpeechGenerationError, VocoderModel
from e2e_tts.modeling.modeling_e2e_tts import MODULES
from e2e_tts.pipelines.release import save_release

TEXTS = ["Hello, world!", "A longer sentence follows here."]


@pytest.fixture(scope="module")
def model(tiny_model) -> E2ETTSModel:
    return tiny_model()


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def release(model, processor, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("release")
    save_release(model, processor, path)
    return path


def stored(folder: Path) -> list[tuple[str, str, torch.dtype]]:
    """(file, weight, dtype) of everything in safetensors files."""
    found = []
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found += [(str(path.relative_to(folder)), name, file.get_tensor(name).dtype) for name in file.keys()]  # noqa: SIM118
    return found


def test_loads_whole_and_speaks_the_same(model, processor, folder):
    again = AutoModel.from_pretrained(folder)
    assert type(again) is E2ETTSModel and again.config.voices == model.config.voices
    assert type(AutoModelForTextToWaveform.from_pretrained(folder)) is E2ETTSModel
    inputs = processor(text=TEXTS)
    expected = model.generate(**inputs, seed=0)
    # Not to the last digit: on some processors that depends on where the weights lie in memory.
    torch.testing.assert_close(again.generate(**inputs, seed=0)["audio"], expected["audio"], rtol=1e-4, atol=1e-4)
    lengths = expected["audio_lengths"].tolist()
    assert lengths[0] != lengths[1] and max(lengths) == expected["audio"].shape[1]


@pytest.mark.parametrize("name", MODULES)
def test_loads_each_module_alone(model, folder, name):
    module = AutoModel.from_pretrained(folder / name)
    assert type(module) is type(getattr(model, name))
    expected = getattr(model, name).state_dict()
    assert module.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in module.state_dict().items())


def test_each_weight_is_stored_once(model, folder):
    weights = stored(folder)
    assert sorted(name for _, name, _ in weights) == sorted(model.state_dict())
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: file for file, name, _ in weights}
    assert not list(folder.rglob("*.bin")) and not list(folder.rglob("*.pt"))


def test_every_folder_carries_its_code_and_little_else(folder):
    for name in ("", *MODULES):
        auto_map = json.loads((folder / name / "config.json").read_text())["auto_map"]
        assert {"AutoConfig", "AutoModel"} <= auto_map.keys()
        assert all((folder / name / f"{reference.split('.')[0]}.py").is_file() for reference in auto_map.values())
    assert "AutoModelForTextToWaveform" in json.loads((folder / "config.json").read_text())["auto_map"]
    assert sum(path.stat().st_size for path in folder.rglob("*.py")) < 1e6


def test_release_is_half_precision_and_computes_in_single(model, processor, release):
    weights = stored(release)
    assert {dtype for _, _, dtype in weights} == {torch.float16}
    assert not any("speaker.classes" in name for _, name, _ in weights)
    assert model.config.speaker_config.num_speakers == 5 and model.dtype == torch.float32
    again = AutoModel.from_pretrained(release)
    assert {value.dtype for value in again.state_dict().values() if value.is_floating_point()} == {torch.float32}
    for name in MODULES:
        assert AutoModel.from_pretrained(release / name).dtype == torch.float32
    half = {name: value.half().float() for name, value in model.state_dict().items()}
    assert all(torch.equal(value, half[name]) for name, value in again.state_dict().items())
    # A model trained on from a release saves no reference to a pipeline file that is not there.
    assert "custom_pipelines" in AutoConfig.from_pretrained(release).to_dict()


def test_saving_again_drops_the_pipeline_entry(release, tmp_path):
    AutoModel.from_pretrained(release).save_pretrained(tmp_path)
    assert "custom_pipelines" not in json.loads((tmp_path / "config.json").read_text())


def test_transformers_own_pipeline_speaks(folder):
    speech = pipeline("text-to-speech", model=str(folder), device="cpu")("Hello, world!")
    assert speech["sampling_rate"] == 16000 and speech["audio"].ndim == 1 and speech["audio"].size % 640 == 0


@pytest.mark.parametrize(
    ("changes", "first", "second"),
    [
        ({"reward_config": {"levels": [5, 5]}}, "[3, 3, 3]", "[5, 5]"),
        ({"lm_config": {"levels": [4, 4, 4]}}, "[3, 3, 3]", "[4, 4, 4]"),
        ({"lm_config": {"token_rate": 12.5}}, "25.0", "12.5"),
        ({"decoder_config": {"frames_per_token": 4}}, "25.0", "12.5"),
        ({"decoder_config": {"speaker_dim": 64}}, "32", "64"),
        ({"vocoder_config": {"mel": {"num_mel_bins": 100}}}, "80", "100"),
    ],
)
def test_modules_that_disagree_are_refused(tiny_config, changes, first, second):
    with pytest.raises(ValueError) as error:
        tiny_config(**changes)
    assert first in str(error.value) and second in str(error.value)


def test_replacing_a_module(tiny_model):
    model = tiny_model()
    vocoder = VocoderModel(model.config.vocoder_config)
    model.replace_module("vocoder", vocoder)
    assert model.vocoder is vocoder
    with pytest.raises(ValueError, match="No module"):
        model.replace_module("voice", vocoder)
    with pytest.raises(ValueError, match="speech_lm, not a e2e_tts_vocoder"):
        model.replace_module("lm", vocoder)
    other = VocoderModel(type(vocoder.config)(mel={"num_mel_bins": 100}, hidden_size=16, num_layers=1))
    with pytest.raises(ValueError, match=r"80.*100"):
        model.replace_module("vocoder", other)
    assert model.vocoder is vocoder and model.config.vocoder_config is vocoder.config


def test_what_is_no_checkpoint_is_said(folder, tmp_path):
    with pytest.raises(OSError, match=r"config\.json"):
        E2ETTSModel.from_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"e2e_tts_speech_lm.*AutoModel"):
        E2ETTSModel.from_pretrained(folder / "lm")


def test_slow_speech_may_be_long(tiny_model, processor, monkeypatch):
    model, limits = tiny_model(), []
    generate = model.lm.generate_codes

    def spy(**arguments):
        limits.append(arguments["max_tokens_per_symbol"])
        return generate(**arguments | {"max_tokens_per_symbol": 2.0})

    monkeypatch.setattr(model.lm, "generate_codes", spy)
    model.lm.end_head.bias.data.fill_(1e4)
    for settings in ({}, {"speed": 0.25}, {"speed": 0.25, "max_tokens_per_symbol": 3.0}):
        model.generate(**processor(text="Hello, world!"), tokens_per_symbol=2.0, seed=0, num_steps=1, **settings)
    # Twice the 2 tokens asked for lie below the usual limit, twice the 8 tokens above it; a given limit holds.
    assert limits == [8.0, 16.0, 3.0]


def test_generation_errors(tiny_model, processor):
    model = tiny_model()
    inputs = processor(text="Hello, world!")
    with pytest.raises(ValueError, match="Nothing to speak"):
        model.generate()
    with pytest.raises(ValueError, match=r"speed must lie between 0\.25 and 4"):
        model.generate(**inputs, speed=9.0)
    with pytest.raises(ValueError, match=r"carl.*anna.*ben"):
        model.generate(**inputs, voice="carl")
    features = torch.zeros(1, 24, 80)
    with pytest.raises(ValueError, match="voice and reference_features each say who speaks"):
        model.generate(**inputs, voice="anna", reference_features=features)
    with pytest.raises(ValueError, match="give reference_features too"):
        model.generate(**inputs, prompt_text_ids=torch.tensor([[9, 10]]))
    with pytest.raises(ValueError, match="Neither push_to_hub nor variant"):
        model.save_pretrained("unused", push_to_hub=True)
    model.lm.end_head.bias.data.fill_(-1e4)
    with pytest.raises(SpeechGenerationError, match="did not end"):
        model.generate(**inputs, seed=0)
    paced_by_itself = tiny_model(lm_config={"text_positions": "sequential"})
    with pytest.raises(ValueError, match="decides itself how fast it speaks"):
        paced_by_itself.generate(**inputs, speed=1.5)


def test_loads_without_this_package(model, processor, folder, release, tmp_path):
    """One process for everything, because starting one takes seconds."""
    script = textwrap.dedent(
        """
        import json, sys

        class Hidden:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("e2e_tts", "modeling", "pipelines"):
                    raise ModuleNotFoundError(f"No module named {name!r}")

        sys.meta_path.insert(0, Hidden())
        import torch
        from transformers import AutoModel, AutoModelForTextToWaveform, AutoProcessor, pipeline

        folder, release, again = sys.argv[1:]
        texts = json.loads(sys.stdin.read())
        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules.")
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        torch.save(model.generate(**processor(text=texts), seed=0)["audio"], again + ".audio")
        for name in ("encoder", "reward", "lm", "decoder", "speaker", "vocoder"):
            module = AutoModel.from_pretrained(folder + "/" + name, trust_remote_code=True)
            assert type(module).__module__.startswith("transformers_modules."), name
            expected = getattr(model, name).state_dict()
            assert all(torch.equal(value, expected[key]) for key, value in module.state_dict().items()), name
        pipe = pipeline("text-to-speech", model=release, trust_remote_code=True, device="cpu")
        assert type(pipe).__name__ == "TextToSpeechPipeline", type(pipe)
        assert next(pipe.model.parameters()).dtype == torch.float32
        speech = pipe(texts, seed=0, voice="ben", batch_size=2)
        torch.save([torch.from_numpy(one["audio"]) for one in speech], again + ".speech")
        clip = torch.sin(torch.arange(12000) / 20) * torch.sin(torch.arange(12000) / 2000)
        pipe.save_voice(pipe.clone(clip, 16000, text=texts[0]), again + ".safetensors")
        chunking = {"first": 2, "size": 3, "look_ahead": 1}
        chunks = list(pipe.stream(texts[1], voice=again + ".safetensors", seed=0, chunking=chunking, watermark=False))
        torch.save(torch.cat([torch.from_numpy(chunk["audio"]) for chunk in chunks]), again + ".stream")
        assert len(pipe.detokenize(pipe.tokenize(clip, 16000), voice="ben")["audio"]) == len(clip) // 640 * 640 + 640
        # What remote code has saved is as complete as what it was loaded from.
        pipe.save_pretrained(again)
        other = AutoModelForTextToWaveform.from_pretrained(again, trust_remote_code=True)
        assert all(torch.equal(value, pipe.model.state_dict()[key]) for key, value in other.state_dict().items())
        assert pipeline("text-to-speech", model=again, trust_remote_code=True, device="cpu")(texts[0], seed=0)
        """
    )
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "PYTHONPATH": "",
        "OMP_NUM_THREADS": "1",
    }
    again = tmp_path / "again"
    run = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(release), str(again)],
        input=json.dumps(TEXTS),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    inputs = processor(text=TEXTS)
    here = model.generate(**inputs, seed=0)["audio"]
    torch.testing.assert_close(torch.load(f"{again}.audio"), here, atol=1e-5, rtol=1e-5)
    released = AutoModel.from_pretrained(release)
    spoken = released.generate(**inputs, seed=0, voice="ben")
    for there, audio, length in zip(
        torch.load(f"{again}.speech"), spoken["audio"], spoken["audio_lengths"].tolist(), strict=True
    ):
        torch.testing.assert_close(there, audio[:length], atol=1e-5, rtol=1e-5)
    # A voice file made by the code of the folder is one for this package, too.
    inputs, chunking = processor(text=TEXTS[1]), {"first": 2, "size": 3, "look_ahead": 1}
    streamed = released.generate(**inputs, voice=f"{again}.safetensors", seed=0, chunking=chunking)
    torch.testing.assert_close(torch.load(f"{again}.stream"), streamed["audio"][0], atol=1e-5, rtol=1e-5)
    assert (
        json.loads((again / "config.json").read_text())["auto_map"]
        == json.loads((release / "config.json").read_text())["auto_map"]
    )
    assert type(AutoProcessor.from_pretrained(again)).__module__ == "e2e_tts.modeling.processing_e2e_tts"


def test_a_prompt_conditions_the_speech_but_is_not_spoken(model, monkeypatch):
    features = torch.randn(1, 24, 80, generator=torch.Generator().manual_seed(3)) - 5.0
    prompt_text, text = torch.tensor([[9, 10, 11, 12, 13]]), torch.tensor([[14, 15, 16, 17], [18, 19, 20, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]], dtype=torch.bool)
    seen = {}
    sample = model.decoder.sample

    def spy(codes, mask, voice, prompt_mel, *arguments, **solver):
        mel = sample(codes, mask, voice, prompt_mel, *arguments, **solver)
        seen.update(codes=codes, prompt_mel=prompt_mel, mel=mel)
        return seen["mel"]

    monkeypatch.setattr(model.decoder, "sample", spy)
    with torch.no_grad():
        prompt = model.encoder(features)
    spoken = model.generate(text, mask, reference_features=features, prompt_text_ids=prompt_text, seed=0, num_steps=2)
    # The decoder continues the clip: its first 12 tokens and 24 frames are the clip's own, in every row ...
    for row in range(2):
        assert torch.equal(seen["codes"][row, :12], prompt.codes[0])
        assert torch.equal(seen["prompt_mel"][row], features[0])
        assert torch.equal(seen["mel"][row, :24], features[0])
    # ... and what comes back is only what follows it.
    assert torch.equal(spoken["mel"], seen["mel"][:, 24:])
    assert spoken["ids"].shape[1] == seen["codes"].shape[1] - 12
    assert spoken["audio"].shape[1] == 640 * spoken["ids"].shape[1]
    assert spoken["audio_lengths"].tolist() == (640 * spoken["mask"].sum(dim=1)).tolist()


def test_a_model_with_an_adapter_saves_the_adapter(tiny_model, tmp_path):
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.add_adapter(LoraConfig(target_modules=r"lm\.model\..*q_proj", init_lora_weights=False))
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {"adapter_model.safetensors"}
    again = tiny_model()
    again.load_state_dict(before)
    again.load_adapter(str(tmp_path))
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_settings_given_while_loading_are_checked_like_others(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Token rates differ"):
        AutoModel.from_pretrained(tmp_path, lm_config={"token_rate": 12.5})
    with pytest.raises(ValueError, match="refine_n_fft 80"):
        AutoModel.from_pretrained(tmp_path / "vocoder", refine_layers=1, refine_n_fft=80)


def test_a_model_spread_over_devices_says_so(tiny_model):
    model = tiny_model()
    model.hf_device_map = {"lm": 0, "decoder": 1}
    with pytest.raises(ValueError, match=r"spread over 0, 1.*device_map="):
        model.generate(torch.tensor([[5, 9]]))
