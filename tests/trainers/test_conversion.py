"""Pretrained models become modules without a change in what they compute; what does not fit is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
import yaml
from factories import composite_settings, conformer_settings, text_settings
from transformers import (
    AutoModel,
    ParakeetCTCConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from e2e_tts.modeling import E2ETTSConfig, SpeechEncoderConfig, SpeechEncoderModel
from e2e_tts.modeling.audio_features import MelSpec, MelSpectrogram
from e2e_tts.trainers import convert_pretrained
from e2e_tts.trainers.recipe import load_recipe, parse_recipe
from e2e_tts.trainers.train import build_model

LABELS, BLANK = 12, 11
CONFORMER = conformer_settings(num_hidden_layers=5, subsampling_factor=8, num_mel_bins=80)
# 100 mel frames a second, as at the paper's scale: 25 tokens a second with two strided convolutions of the three.
MEL = {"sampling_rate": 16000, "n_fft": 512, "win_length": 400, "hop_length": 160, "num_mel_bins": 80}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, str]:
    """Folders of a tiny random CTC Conformer with batch statistics of its own, and of a tiny random Qwen3."""
    root = tmp_path_factory.mktemp("sources")
    torch.manual_seed(0)
    recogniser = ParakeetForCTC(ParakeetCTCConfig(vocab_size=LABELS, pad_token_id=BLANK, encoder_config=CONFORMER))
    for name, buffer in recogniser.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape) + 0.5)
    recogniser.save_pretrained(root / "ctc")
    Qwen3ForCausalLM(Qwen3Config(**text_settings(), tie_word_embeddings=True)).save_pretrained(root / "lm")
    return {"ctc": str(root / "ctc"), "lm": str(root / "lm")}


def recipe_settings(strides: tuple[int, ...] = (2, 2, 2), labels: int = LABELS) -> dict:
    """A recipe that wants the tiny models: two layers below FSQ, three above."""
    settings = composite_settings()
    common = {"conv_norm": "batch", "encoder_config": {**CONFORMER, "num_hidden_layers": 2}}
    settings["encoder_config"] |= common | {"mel": MEL, "subsampling_time_strides": list(strides)}
    settings["reward_config"] |= {
        **common,
        "encoder_config": {**CONFORMER, "num_hidden_layers": 3},
        "ctc_vocab_size": labels,
        "ctc_upsampling": 2,
    }
    frames = int(np.prod(strides))
    settings["lm_config"]["token_rate"] = 100 / frames
    settings["decoder_config"] |= {"mel": {"hop_length": 160, "n_fft": 1024}, "frames_per_token": frames}
    settings["vocoder_config"] |= {"mel": {"hop_length": 160, "n_fft": 1024}}
    settings["speaker_config"]["mel"] = MEL
    return settings


@pytest.fixture
def converted(sources, tmp_path) -> Callable[..., Path]:
    """Converts by the command; returns the folder of the modules. Options replace command-line arguments."""

    def run(settings: dict, **options: str | None) -> Path:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump({"train": ["lm"], "losses": {"lm": 1.0}, "model": settings}))
        values = {**sources, "recipe": str(recipe), "output": str(tmp_path / "out"), **options}
        convert_pretrained.main([part for key, value in values.items() if value for part in (f"--{key}", value)])
        return tmp_path / "out"

    return run


def features(frames: tuple[int, ...] = (96, 64), seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.arange(max(frames))[None] < torch.tensor(frames)[:, None]
    return torch.randn((*mask.shape, 80), generator=torch.Generator().manual_seed(seed)) * mask[..., None], mask


@torch.no_grad()
def test_lower_and_upper_layers_are_the_pretrained_conformer(sources, converted):
    """At the source's own rate, with FSQ left out, hidden states and CTC logits are the source's."""
    folder = converted(recipe_settings())
    source = ParakeetForCTC.from_pretrained(sources["ctc"]).eval()
    encoder, reward = (AutoModel.from_pretrained(f"{folder}/{name}").eval() for name in ("encoder", "reward"))
    inputs, mask = features()
    expected = source.encoder(inputs, mask, output_hidden_states=True)
    tokens = mask[:, :: encoder.config.frames_per_token]
    middle = encoder.conformer(encoder.subsampling(inputs, mask) * encoder.input_scale, tokens)
    top = reward.conformer(middle, tokens)
    valid = expected.attention_mask.bool()
    assert valid.equal(tokens)
    torch.testing.assert_close(middle[valid], expected.hidden_states[2][valid], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(top[valid], expected.last_hidden_state[valid], rtol=1e-5, atol=1e-5)
    # The blank, the source's last label, is label 0 here; both CTC frames of a token say the same.
    logits = source.ctc_head(expected.last_hidden_state).roll(1, dims=-1)
    mine = reward.ctc_head(top).unflatten(-1, (2, LABELS))
    for frame in range(2):
        torch.testing.assert_close(mine[..., frame, :][valid], logits[valid], rtol=1e-5, atol=1e-5)


def test_batch_statistics_are_kept_and_stay_frozen(sources, converted):
    folder = converted(recipe_settings())
    source = ParakeetForCTC.from_pretrained(sources["ctc"])
    encoder = AutoModel.from_pretrained(f"{folder}/encoder").train()
    for layer, original in zip(encoder.conformer.layers, source.encoder.layers[:2], strict=True):
        assert layer.conv.norm.running_var.equal(original.conv.norm.running_var)
        assert not layer.conv.norm.running_mean.equal(torch.zeros(32))
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    alone, mask = features((96,))
    together = encoder(*features()).codes[:1]
    torch.testing.assert_close(encoder(alone, mask).codes, together)
    for name, value in encoder.named_buffers():
        assert value.equal(before[name]), name


@torch.no_grad()
def test_a_stride_of_one_doubles_the_rate_with_the_same_weights(sources, converted):
    folder = converted(recipe_settings(strides=(2, 2, 1)))
    encoder = AutoModel.from_pretrained(f"{folder}/encoder").eval()
    source = ParakeetForCTC.from_pretrained(sources["ctc"]).eval()
    assert encoder.config.token_rate == 25.0
    inputs, mask = features()
    assert encoder(inputs, mask).ids.shape == (2, 24)
    # Every other position of the finer subsampling is a position of the source's.
    fine, coarse = encoder.subsampling(inputs, mask), source.encoder.subsampling(inputs, mask)
    torch.testing.assert_close(fine[0, ::2], coarse[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_lm_reads_text_as_the_pretrained_one(sources, converted):
    folder = converted(recipe_settings())
    source, lm = Qwen3ForCausalLM.from_pretrained(sources["lm"]).eval(), AutoModel.from_pretrained(f"{folder}/lm")
    ids = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 0, 0, 0]])
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    expected = source.model(ids, attention_mask=mask).last_hidden_state
    mine = lm.eval()(inputs_embeds=lm.get_input_embeddings()(ids), attention_mask=mask).hidden_states
    torch.testing.assert_close(mine[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=1e-5)
    assert lm.get_input_embeddings().num_embeddings == source.config.vocab_size
    assert lm.quantizer.codebook.equal(lm.quantizer.codebook.clamp(-1, 1)) and lm.quantizer.codebook.any()


def test_a_recipe_starts_from_the_modules(converted):
    settings = recipe_settings(strides=(2, 2, 1))
    folder = converted(settings)
    report = json.loads((folder / "conversion.json").read_text())
    assert report["ctc_head_taken"] and set(report["parameters"]) == {"encoder", "reward", "lm"}
    modules = {name: str(folder / name) for name in report["parameters"]}
    recipe = {"train": ["lm"], "losses": {"lm": 1.0}, "model": settings, "init_modules": modules}
    model = build_model(parse_recipe(recipe))
    for name in ("encoder", "reward", "lm"):
        stored = AutoModel.from_pretrained(f"{folder}/{name}")
        assert getattr(model, name).num_parameters() == report["parameters"][name]
        for key, value in stored.state_dict().items():
            assert getattr(model, name).state_dict()[key].equal(value), key


def test_another_alphabet_leaves_the_ctc_head_at_its_start(sources, converted, capsys):
    folder = converted(recipe_settings(labels=257), lm=None)
    assert "257 labels, the pretrained one 12" in capsys.readouterr().out
    reward = AutoModel.from_pretrained(f"{folder}/reward")
    assert reward.ctc_head.out_features == 2 * 257
    assert json.loads((folder / "conversion.json").read_text())["ctc_head_taken"] is False


@pytest.mark.parametrize(
    "module, change, message",
    [
        ("encoder_config", {"encoder_config": {**CONFORMER, "num_hidden_layers": 3}}, r"has 5 layers.* 3 \+ 3"),
        ("encoder_config", {"conv_norm": "layer"}, "encoder_config.conv_norm=batch, not layer"),
        ("reward_config", {"encoder_config": {**CONFORMER, "intermediate_size": 48}},
         "intermediate_size is 64, the recipe says 48.*--set model.reward_config.encoder_config.intermediate_size=64"),
        ("lm_config", {"text_config": text_settings(vocab_size=30, rms_norm_eps=1e-5)},
         "vocab_size is 20, the recipe says 30; rms_norm_eps is 1e-06"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(module, change, message, converted):
    settings = recipe_settings()
    settings[module] |= change
    with pytest.raises(SystemExit, match=message):
        converted(settings)


def test_other_models_are_refused(sources, converted):
    with pytest.raises(SystemExit, match="is no ParakeetForCTC"):
        converted(recipe_settings(), ctc=sources["lm"])
    with pytest.raises(SystemExit, match="needs a Qwen3Model"):
        converted(recipe_settings(), lm=sources["ctc"])
    with pytest.raises(SystemExit, match="small_vocoder describes no model of speech tokens"):
        converted(recipe_settings(), recipe="small_vocoder")


def test_a_pretrained_conformer_hears_what_it_has_learned_on(clips):
    """Normalised by utterance, the paper recipe's features are those of Parakeet, but for an affine map."""
    model = load_recipe("paper_joint").model["encoder_config"]
    assert model["mel_normalization"] == "utterance"
    spec = MelSpec.from_dict(model["mel"])
    tiny = {"num_mel_bins": 80, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    correlations = {}
    for kind in ("utterance", "fixed"):
        encoder = SpeechEncoderModel(SpeechEncoderConfig(mel=model["mel"], mel_normalization=kind, encoder_config=tiny))
        values = []
        for clip in clips:
            samples = clip[: len(clip) // 640 * 640]
            wanted = ParakeetFeatureExtractor()(samples, sampling_rate=16000, return_tensors="pt").input_features[0]
            mine = MelSpectrogram(spec)(torch.from_numpy(samples)[None])
            mine = encoder.normalise(mine, torch.ones(*mine.shape[:2], 1, dtype=torch.bool))[0]
            # Frames are centred in their hop here, at its ends there.
            wanted = (wanted[: len(mine)] + wanted[1 : len(mine) + 1]) / 2
            values.append(torch.corrcoef(torch.stack([mine.flatten(), wanted.flatten()]))[0, 1])
        correlations[kind] = float(torch.stack(values).mean())
    assert correlations["utterance"] > 0.95 > 0.85 > correlations["fixed"]


@pytest.fixture(scope="module")
def clips(request) -> list[np.ndarray]:
    folder = request.config.rootpath / "tests" / "fixtures" / "clips"
    clips = []
    for path in sorted(folder.glob("*.opus"))[:6:2]:
        samples, rate = soundfile.read(path, dtype="float32")
        clips.append(soxr.resample(samples, rate, 16000))
    return clips


def test_normalisation_by_utterance_ignores_padding():
    config = SpeechEncoderConfig(**recipe_settings()["encoder_config"], mel_normalization="utterance")
    torch.manual_seed(0)
    encoder = SpeechEncoderModel(config).eval()
    inputs, mask = features()
    normalised = encoder.normalise(inputs * 3 - 7, mask[..., None])
    torch.testing.assert_close(normalised[1, :64].mean(dim=0), torch.zeros(80), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised[1, :64].std(dim=0), torch.ones(80), atol=1e-4, rtol=0)
    assert not normalised[1, 64:].any()
    alone = encoder(inputs[1:, :64], mask[1:, :64])
    assert encoder(inputs, mask).ids[1, :8].equal(alone.ids[0])
    silence = encoder.normalise(torch.full((1, 4, 80), -11.5), torch.ones(1, 4, 1, dtype=torch.bool))
    assert not silence.isnan().any()
    assert E2ETTSConfig(**recipe_settings()).encoder_config.mel_normalization == "fixed"
