"""Voices: cloned, kept in files that know their model, continued without being heard."""

import json
import shutil

import pytest
import torch
from factories import SPEAKER_DIM, decoder_settings, make_composite, random_mel, vocoder_settings
from safetensors.torch import load_file, save_file

from e2e_tts.modeling import E2ETTSModel, Voice
from e2e_tts.pipelines import TextToSpeechPipeline

TEXT = torch.tensor([[5, 9, 14, 20, 33, 41]])
CLIP_TEXT = torch.tensor([[3, 4, 6, 8]])
FEATURES = random_mel(1, 24, 80, seed=4)
SETTINGS = {"seed": 1, "num_steps": 2, "min_tokens_per_symbol": 2.0}


@pytest.fixture(scope="module")
def model(tiny_model) -> E2ETTSModel:
    return tiny_model()


@pytest.fixture(scope="module")
def voice(model) -> Voice:
    return model.make_voice(FEATURES, text_ids=CLIP_TEXT, symbols="a b c d", metadata={"name": "eve"})


def same(first: dict, second: dict) -> bool:
    return first["audio"].shape == second["audio"].shape and torch.equal(first["audio"], second["audio"])


# ---- making and using


@torch.no_grad()
def test_what_a_voice_holds(model, voice):
    encoded = model.encoder(FEATURES)
    torch.testing.assert_close(voice.embedding, model.embed_speaker(FEATURES)[0])
    assert torch.equal(voice.prompt_ids, encoded.ids[0]) and torch.equal(voice.prompt_mel, FEATURES[0])
    assert voice.tokens_per_symbol == 3.0 and torch.equal(voice.prompt_text_ids, CLIP_TEXT[0])
    unread = model.make_voice(FEATURES)
    assert unread.prompt_text_ids is None and unread.tokens_per_symbol == model.config.default_tokens_per_symbol
    assert list(model.make_voice(FEATURES, prompt=False).tensors()) == ["embedding"]
    # Padding of a clip is not part of it.
    padded = torch.nn.functional.pad(FEATURES, (0, 0, 0, 8))
    mask = torch.arange(32)[None] < 24
    assert torch.equal(model.make_voice(padded, mask).prompt_ids, voice.prompt_ids)


def test_a_voice_speaks_as_its_clip(model, voice):
    expected = model.generate(TEXT, reference_features=FEATURES, prompt_text_ids=CLIP_TEXT, **SETTINGS)
    assert same(model.generate(TEXT, voice=voice, **SETTINGS), expected)
    timbre = model.make_voice(FEATURES, prompt=False)
    expected = model.generate(TEXT, reference_features=FEATURES, **SETTINGS)
    assert same(model.generate(TEXT, voice=timbre, **SETTINGS), expected)
    # Without the text the LM does not read the clip, but the decoder continues its sound.
    sound = model.generate(TEXT, voice=model.make_voice(FEATURES), **SETTINGS)
    assert torch.equal(sound["ids"], expected["ids"]) and not torch.equal(sound["mel"], expected["mel"])
    assert not torch.equal(model.generate(TEXT, voice=voice, **SETTINGS)["ids"], expected["ids"])


def test_speed_moves_what_is_spoken_and_not_the_prompt(model, voice, monkeypatch):
    """The prompt's symbols stay beside its codes; behind them symbols lie as far apart as the speed says."""
    seen = []
    embed_prefix = model.lm.embed_prefix
    monkeypatch.setattr(model.lm, "embed_prefix", lambda *args: seen.append(embed_prefix(*args)) or seen[-1])
    for speed in (1.0, 2.0):
        model.generate(TEXT, voice=voice, speed=speed, **SETTINGS)
    prompt, tokens = CLIP_TEXT.shape[1], len(voice.prompt_ids)
    for (_, _, positions, _), rate in zip(seen, (3.0, 1.5), strict=True):
        expected = [*(3.0 * (index + 0.5) for index in range(prompt))]
        expected += [tokens + rate * (index + 0.5) for index in range(TEXT.shape[1])]
        assert positions[0, 2:-1].tolist() == pytest.approx(expected)


def test_one_voice_for_a_batch(model, voice):
    texts, mask = torch.cat([TEXT, TEXT.flip(1)]), torch.tensor([[1] * 6, [1] * 5 + [0]], dtype=torch.bool)
    spoken = model.generate(texts, mask, voice=voice, **SETTINGS)
    assert spoken["audio_lengths"].tolist() == (640 * spoken["mask"].sum(dim=1)).tolist()
    names = model.generate(texts, mask, voice=["anna", "ben"], **SETTINGS)
    assert names["audio"].shape[0] == 2
    with pytest.raises(ValueError, match="3 voices for 2 texts"):
        model.generate(texts, mask, voice=["anna"] * 3)
    with pytest.raises(ValueError, match="got int"):
        model.generate(texts, mask, voice=3)


@pytest.mark.parametrize("chunking", [None, {"first": 3, "size": 5, "look_ahead": 2, "context": 4}])
@pytest.mark.parametrize("text_ids", [None, CLIP_TEXT])
def test_the_prompt_is_not_heard(model, monkeypatch, chunking, text_ids):
    # A prompt that stands out: whatever of it reaches the vocoder, or comes back, is found.
    voice = model.make_voice(FEATURES, text_ids=text_ids)
    marked = torch.full_like(FEATURES[0], 7.0) + 0.1 * torch.arange(24)[:, None]
    voice.prompt_mel = marked
    vocoded = []
    forward = model.vocoder.forward
    monkeypatch.setattr(model.vocoder, "forward", lambda mel, *a, **k: (vocoded.append(mel), forward(mel, *a, **k))[1])
    spoken = model.generate(TEXT, voice=voice, chunking=chunking, **SETTINGS)
    if text_ids is None:
        decoded = model.decode(spoken["ids"], voice=voice, num_steps=2, chunking=chunking)
        assert decoded["mel"].shape == spoken["mel"].shape
    assert vocoded
    for mel in (spoken["mel"], *vocoded):
        difference = (mel[0][:, None] - marked[None]).abs().amax(dim=-1)
        assert difference.min() > 1e-3
    assert spoken["mel"].shape[1] == 2 * spoken["ids"].shape[1]
    assert spoken["audio"].shape[1] == 640 * spoken["ids"].shape[1] == int(spoken["audio_lengths"])


def test_the_decoder_continues_the_last_seconds_only(model):
    # Random rows: the end of a long clip conditions the decoder, its beginning does not.
    clip = random_mel(1, 240, 80, seed=9)
    voice = model.make_voice(clip)
    ids = torch.arange(12)[None]
    expected = model.decode(ids, voice=voice, num_steps=2)["mel"]
    voice.prompt_mel = voice.prompt_mel.clone()
    voice.prompt_mel[: 240 - 150] += 1.0
    assert torch.equal(model.decode(ids, voice=voice, num_steps=2)["mel"], expected)
    voice.prompt_mel[-150:] += 1.0
    assert not torch.equal(model.decode(ids, voice=voice, num_steps=2)["mel"], expected)


def test_a_decoder_with_a_mel_of_its_own():
    mel = {"sampling_rate": 24000, "hop_length": 480, "num_mel_bins": 100, "f_max": 12000.0}
    model = make_composite(
        decoder_config=decoder_settings(mel=mel), vocoder_config=vocoder_settings(mel=mel, istft_n_fft=960)
    )
    with pytest.raises(ValueError, match=r"num_mel_bins: 100 vs 80.*pass mel"):
        model.make_voice(FEATURES)
    with pytest.raises(ValueError, match=r"\(1, 24, 100\), got \(1, 20, 100\)"):
        model.make_voice(FEATURES, mel=random_mel(1, 20, 100))
    voice = model.make_voice(FEATURES, mel=random_mel(1, 24, 100))
    decoded = model.decode(torch.arange(10)[None], voice=voice, num_steps=1)
    assert decoded["mel"].shape == (1, 20, 100) and decoded["audio"].shape == (1, 20 * 480)
    assert model.make_voice(FEATURES, prompt=False).embedding.shape == (SPEAKER_DIM,)


# ---- files


def test_saved_and_reloaded(model, voice, tmp_path):
    path = tmp_path / "eve.safetensors"
    model.save_voice(voice, path)
    assert path.stat().st_size < 20_000
    again = model.load_voice(path)
    assert again.tokens_per_symbol == voice.tokens_per_symbol
    assert again.symbols == "a b c d" and again.metadata == {"name": "eve"}
    assert again.tensors().keys() == voice.tensors().keys()
    assert all(torch.equal(value, again.tensors()[name]) for name, value in voice.tensors().items())
    expected = model.generate(TEXT, voice=voice, **SETTINGS)
    assert same(model.generate(TEXT, voice=str(path), **SETTINGS), expected)
    chunks = model.generate_stream(TEXT, voice=path, **SETTINGS)
    assert torch.equal(torch.cat([chunk["ids"] for chunk in chunks], dim=1), expected["ids"])


def test_the_model_is_recognised(tiny_model, model, voice, tmp_path):
    path, timbre = tmp_path / "eve.safetensors", tmp_path / "timbre.safetensors"
    model.save_voice(voice, path)
    model.save_voice(model.make_voice(FEATURES, prompt=False), timbre)
    assert tiny_model().to(torch.bfloat16).load_voice(path).tokens_per_symbol == 3.0
    other = tiny_model()
    torch.nn.init.normal_(other.encoder.to_code.weight, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="another speech tokenizer"):
        other.load_voice(path)
    # A voice without a prompt holds no tokens: the tokenizer does not matter.
    assert torch.equal(other.load_voice(timbre).embedding, model.load_voice(timbre).embedding)
    other = tiny_model()
    torch.nn.init.normal_(other.speaker.project_out.weight, generator=torch.Generator().manual_seed(1))
    for file in (path, timbre):
        with pytest.raises(ValueError, match="another speaker encoder"):
            other.load_voice(file)
    with pytest.raises(ValueError, match=r"\(32,\), here \(16,\)"):
        make_composite().load_voice(timbre)
    with pytest.raises(ValueError, match=r"embedding has shape \(32,\), this model needs \(16,\)"):
        make_composite().generate(TEXT % 20, voice=voice)


def test_files_that_are_no_voices(model, voice, tmp_path):
    def refused(path, message):
        with pytest.raises(ValueError, match=message):
            model.load_voice(path)

    refused(tmp_path / "none.safetensors", "There is no voice file")
    path = tmp_path / "eve.safetensors"
    path.write_bytes(b"RIFF of something else")
    refused(path, "cannot be read as a voice")
    save_file({"weight": torch.ones(3)}, path)
    refused(path, "not a voice")
    model.save_voice(voice, path)
    tensors = load_file(path)
    about = {"format": "e2e_tts_voice", "version": "1", "tokens_per_symbol": "2.0"}
    for change, without, message in (
        ({"version": "2"}, (), "version 2; this code reads version 1"),
        ({"tokens_per_symbol": "fast"}, (), "damaged.*fast"),
        ({"tokens_per_symbol": "-1"}, (), "damaged.*positive"),
        ({}, ("embedding",), "damaged.*embedding"),
        ({}, ("prompt_mel",), "damaged.*both"),
        ({}, ("probe_embedding",), "another model|of another"),
    ):
        save_file({name: value for name, value in tensors.items() if name not in without}, path, about | change)
        refused(path, message)
    path.write_bytes(path.read_bytes()[:200])
    refused(path, "cannot be read")


def test_voices_that_cannot_be_made_or_saved(model, voice, tmp_path):
    with pytest.raises(ValueError, match="one clip, got a batch of 2"):
        model.make_voice(FEATURES.repeat(2, 1, 1))
    with pytest.raises(ValueError, match=r"\.safetensors file"):
        model.save_voice(voice, tmp_path / "eve.wav")
    with pytest.raises(ValueError, match="no folder"):
        model.save_voice(voice, tmp_path / "missing" / "eve.safetensors")
    with pytest.raises(ValueError, match=r"names \['format'\]"):
        model.save_voice(model.make_voice(FEATURES, metadata={"format": "x"}), tmp_path / "eve.safetensors")
    broken = model.make_voice(FEATURES)
    broken.prompt_ids = broken.prompt_ids + 100
    with pytest.raises(ValueError, match="prompt_ids must be some ids below 27"):
        model.generate(TEXT, voice=broken)
    broken.prompt_ids = broken.prompt_ids[:3]
    with pytest.raises(ValueError, match=r"prompt_mel has shape \(24, 80\), this model needs \(6, 80\)"):
        model.generate(TEXT, voice=broken)
    with pytest.raises(ValueError, match="both"):
        Voice(torch.ones(32), 2.0, prompt_ids=torch.arange(3))
    with pytest.raises(ValueError, match="not there"):
        Voice(torch.ones(32), 2.0, prompt_text_ids=torch.arange(3))


# ---- built-in voices


EMBEDDINGS = dict(zip(("zoe", "anna", "mia"), torch.eye(3, 32)))


@pytest.fixture(scope="module")
def voiced(tiny_model) -> E2ETTSModel:
    model = tiny_model()
    model.set_voices(EMBEDDINGS, {"mia": 3.0, "anna": 2.0, "zoe": 1.0})
    return model


@pytest.fixture(scope="module", params=["model", "pipeline"])
def saved(request, voiced, processor, tmp_path_factory):
    """A folder with three voices, written by either of the two writers of config.json."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "model":
        voiced.save_pretrained(folder)
    else:
        TextToSpeechPipeline(model=voiced, processor=processor, device="cpu").save_pretrained(folder)
    return folder


def test_built_in_voices_keep_their_names_through_a_file(voiced, saved):
    """config.json sorts names; the rows of the embeddings must not stay behind."""
    for model in (voiced, E2ETTSModel.from_pretrained(saved)):
        assert model.config.voices == {"anna": 2.0, "mia": 3.0, "zoe": 1.0}
        for name, embedding in EMBEDDINGS.items():
            condition = model._condition(name, 1)
            assert torch.equal(condition.embedding[0], embedding)
            assert condition.tokens_per_symbol.tolist() == [model.config.voices[name]]
        # The first that was given speaks by default.
        assert torch.equal(model._condition(None, 2).embedding, EMBEDDINGS["zoe"].expand(2, -1))
        assert model.config.voice_names == ["zoe", "anna", "mia"]


def test_a_default_voice_is_one_of_the_voices_and_may_be_missing(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"default_voice": "carl"}))
    with pytest.raises(ValueError, match=r"'carl'.*anna.*mia.*zoe"):
        E2ETTSModel.from_pretrained(folder)
    # Checkpoints from before there was the field: the first by name.
    assert config.pop("default_voice") == "zoe"
    (folder / "config.json").write_text(json.dumps(config))
    model = E2ETTSModel.from_pretrained(folder)
    assert torch.equal(model._condition(None, 1).embedding[0], EMBEDDINGS["anna"])
