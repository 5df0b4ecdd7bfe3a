"""Voices from recordings, voice conversion and speech tokens through the pipeline."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from e2e_tts.modeling import E2ETTSModel, TextToSpeechProcessor
from e2e_tts.pipelines import TextToSpeechPipeline, load_pipeline
from e2e_tts.pipelines.speech_tokens import SpeechTokens

ROOT = Path(__file__).parents[2]
CLIPS = ROOT / "tests" / "fixtures" / "clips"
CLIP, CLIP_TEXT = CLIPS / "arctic_b0354_1592531080.opus", "It's that much junk."
SETTINGS = {"seed": 1, "num_steps": 2}


@pytest.fixture(scope="module")
def pipe(tiny_model, processor) -> TextToSpeechPipeline:
    return TextToSpeechPipeline(model=tiny_model(), processor=processor, device="cpu")


@pytest.fixture(scope="module")
def released() -> TextToSpeechPipeline:
    return load_pipeline(str(ROOT / "model_cards" / "small-en"), device="cpu")


def same(first: dict, second: dict) -> bool:
    return np.array_equal(first["audio"], second["audio"])


# ---- voices


def test_a_cloned_voice_speaks_as_the_reference(pipe, tmp_path):
    samples, rate = soundfile.read(CLIP, dtype="float32")
    voice = pipe.clone({"array": samples, "sampling_rate": rate}, text=CLIP_TEXT, metadata={"name": "k"})
    assert voice.symbols == pipe.processor.text_frontend(CLIP_TEXT)
    path = tmp_path / "k.safetensors"
    pipe.save_voice(voice, path)
    expected = pipe("Hello.", reference_audio=CLIP, reference_text=CLIP_TEXT, **SETTINGS)
    for given in (voice, path, str(path), pipe.load_voice(path)):
        assert same(pipe("Hello.", voice=given, **SETTINGS), expected)
    assert pipe.load_voice(path).metadata == {"name": "k"}
    assert not same(pipe("Hello.", voice=pipe.clone(CLIP), **SETTINGS), expected)
    # A voice given to one call takes the place of that given to the constructor, however each was given.
    other = TextToSpeechPipeline(model=pipe.model, processor=pipe.processor, device="cpu", reference_audio=CLIP)
    assert same(other("Hello.", voice="ben", **SETTINGS), pipe("Hello.", voice="ben", **SETTINGS))


def test_symbols_outlive_a_change_of_the_vocabulary(pipe, tmp_path):
    path = tmp_path / "k.safetensors"
    voice = pipe.clone(CLIP, text=CLIP_TEXT)
    expected = voice.prompt_text_ids.clone()
    voice.prompt_text_ids = (voice.prompt_text_ids + 3) % 70
    pipe.save_voice(voice, path)
    assert torch.equal(pipe.load_voice(path).prompt_text_ids, expected)


def test_a_recording_is_transcribed_by_the_models_own_recogniser(released, tmp_path):
    voice = released.clone(CLIPS / "LJ001-0170.opus", transcribe=True)
    recognised = voice.symbols.split()
    true = released.processor.text_frontend.recognition_symbols(
        released.processor.text_frontend("being thin, tough, and opaque.")
    ).split()
    # Most sounds are right; none of them is outside of the vocabulary.
    assert len(set(recognised) & set(true)) >= 0.5 * len(set(true)) and 0.5 < len(recognised) / len(true) < 1.5
    assert voice.prompt_text_ids.shape[0] == len(recognised)
    released.save_voice(voice, tmp_path / "lj.safetensors")
    assert released.load_voice(tmp_path / "lj.safetensors").symbols == voice.symbols


def test_recordings_that_give_no_voice(tiny_model, processor, pipe, tmp_path):
    with pytest.raises(ValueError, match="not both"):
        pipe.clone(CLIP, text="Hello.", transcribe=True)
    with pytest.raises(ValueError, match="not given"):
        pipe("Hello.", transcribe=True)
    with pytest.raises(ValueError, match="silent"):
        pipe.clone(np.zeros(16000, np.float32), sampling_rate=16000)
    for name in ("bare.raw", "bare.PCM"):
        (tmp_path / name).write_bytes(np.zeros(16000, "<i2").tobytes())
        with pytest.raises(ValueError, match=rf"{name} has no header: make a wav of it first\."):
            pipe.clone(tmp_path / name)
    with pytest.raises(ValueError, match="one recording"):
        pipe.clone([np.ones(16000, np.float32)] * 2, sampling_rate=16000)
    with pytest.raises(ValueError, match="made by clone"):
        pipe.save_voice("anna", tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="There is no voice file"):
        pipe("Hello.", voice="eve.safetensors")
    with pytest.raises(ValueError, match="got int"):
        pipe("Hello.", voice=3)
    model = tiny_model()
    other = TextToSpeechPipeline(model=model, processor=processor, device="cpu")
    model.reward.ctc_head.bias.data.copy_(1e4 * torch.nn.functional.one_hot(torch.tensor(0), 79).repeat(2))
    with pytest.raises(ValueError, match="Nothing was recognised"):
        other.clone(CLIP, transcribe=True)
    model.reward.ctc_head = None
    with pytest.raises(ValueError, match="no recogniser"):
        other.clone(CLIP, transcribe=True)


def test_what_is_not_one_recording_is_refused_by_what_would_be(pipe, tmp_path):
    content = CLIP.read_bytes()
    forms = [[str(CLIP), str(CLIP)], (CLIP,), content, bytearray(content), io.BytesIO(content), [{"array": [0.1]}]]
    for form in forms:
        with pytest.raises(
            ValueError, match=r"a path, an array or \{array, sampling_rate\}; one reference a call\. Got"
        ):
            pipe("Hello.", reference_audio=form)
    for form in (str(CLIP), [CLIP], content, io.BytesIO(content), {"array": [0.1]}):
        with pytest.raises(ValueError, match=r"Expected samples .* read files first"):
            pipe.processor(audio=form)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    with pytest.raises(ValueError, match="The audio is empty"):
        pipe.clone(tmp_path / "empty.wav")
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    with pytest.raises(ValueError, match=r"Readable are wav, flac, .*: ffmpeg -i \S+a\.m4a a\.wav"):
        pipe.clone(tmp_path / "a.m4a")
    (tmp_path / "broken.wav").write_bytes(b"RIFF" + bytes(100))
    with pytest.raises(ValueError, match=r"broken\.wav cannot be read as audio") as refusal:
        pipe.clone(tmp_path / "broken.wav")
    assert "ffmpeg" not in str(refusal.value)


def test_a_prompt_for_a_decoder_with_a_mel_of_its_own(tiny_config):
    mel = {"sampling_rate": 24000, "hop_length": 480, "num_mel_bins": 100, "f_max": 12000.0}
    config = tiny_config(decoder_config={"mel": mel}, vocoder_config={"mel": mel, "istft_n_fft": 960})
    torch.manual_seed(0)
    pipe = TextToSpeechPipeline(model=E2ETTSModel(config).eval(), processor=TextToSpeechProcessor.build(), device="cpu")
    samples, rate = soundfile.read(CLIP, dtype="float32")
    voice = pipe.clone(samples, rate)
    assert voice.prompt_mel.shape == (2 * len(voice.prompt_ids), 100)
    # The clip was made at 24 kHz: its upper third is there for the decoder, not for the tokenizer.
    assert voice.prompt_mel[:, 90:].std() > 0.3
    assert pipe.convert(samples, voice, rate, num_steps=1)["audio"].size == 960 * len(voice.prompt_ids)


# ---- conversion and tokens


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_conversion_keeps_the_length_at_any_rate(pipe, rate):
    time = np.arange(int(0.9 * rate)) / rate
    samples = (0.3 * np.sin(2 * np.pi * 150 * time) * np.sin(2 * np.pi * 3 * time)).astype(np.float32)
    speech = pipe.convert(samples, "ben", rate, **SETTINGS)
    assert speech["sampling_rate"] == 16000 and speech["audio"].shape == (640 * 23,)
    assert same(pipe.convert({"array": samples, "sampling_rate": rate}, "ben", **SETTINGS), speech)
    assert not same(pipe.convert(samples, "anna", rate, **SETTINGS), speech)
    assert not same(pipe.convert(samples, "ben", rate, **SETTINGS, decoder_temperature=0.0), speech)


def test_conversion_moves_a_real_voice(released):
    def embedding(speech: dict | str) -> torch.Tensor:
        return released.clone(speech, prompt=False).embedding

    def clip(speech: dict) -> dict:
        return {"array": speech["audio"], "sampling_rate": speech["sampling_rate"]}

    for source, target in (("LJ001-0179", "arctic_b0510_1592525948"), ("arctic_b0352_1592531120", "LJ001-0160")):
        before, voice = CLIPS / f"{source}.opus", released.clone(CLIPS / f"{target}.opus")
        source_voice = embedding(before)
        converted = embedding(clip(released.convert(before, voice)))
        own, other = float(converted @ voice.embedding), float(converted @ source_voice)
        # Nearer to the target than to the source, and much nearer than the source was.
        assert own > other and own > float(source_voice @ voice.embedding) + 0.2


@pytest.mark.parametrize("suffix", [".npy", ".json", ".safetensors"])
def test_tokens_there_and_back(pipe, tmp_path, suffix):
    tokens = pipe.tokenize(CLIP)
    assert tokens.ids.ndim == 1 and tokens.levels == [3, 3, 3] and tokens.token_rate == 25.0
    path = tmp_path / f"tokens{suffix}"
    tokens.save(path)
    again = SpeechTokens.load(path)
    assert again.ids.dtype == np.int64 and np.array_equal(again.ids, tokens.ids)
    assert (again.levels, again.token_rate) == (([3, 3, 3], 25.0) if suffix != ".npy" else (None, None))
    expected = pipe.convert(CLIP, "ben", **SETTINGS)
    for given in (path, str(path), again, again.ids, torch.from_numpy(again.ids), again.ids.tolist()):
        assert same(pipe.detokenize(given, "ben", **SETTINGS), expected)


def test_long_token_sequences_are_decoded_in_chunks(pipe):
    ids = np.arange(760) % 27
    speech = pipe.detokenize(ids, "ben", num_steps=1, watermark=False)
    expected = pipe.model.decode(torch.from_numpy(ids)[None], voice="ben", num_steps=1, chunking={})
    assert np.array_equal(speech["audio"], expected["audio"][0].numpy())


def test_tokens_of_another_model(tiny_model, processor, pipe, tmp_path):
    tokens = pipe.tokenize(CLIP)
    for change, message in (({"levels": [8, 5]}, r"\[8, 5\].*\[3, 3, 3\]"), ({"token_rate": 12.5}, "12.5.*25.0")):
        with pytest.raises(ValueError, match=message):
            pipe.detokenize(SpeechTokens(tokens.ids, **change))
    with pytest.raises(ValueError, match=r"0\.\.26"):
        pipe.detokenize([1, 27])
    model = tiny_model()
    torch.nn.init.normal_(model.encoder.to_code.weight, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="another tokenizer"):
        TextToSpeechPipeline(model=model, processor=processor, device="cpu").detokenize(tokens)


def test_files_that_hold_no_tokens(pipe, tmp_path):
    for tokens, message in (([], "no speech tokens"), ([[1, 2]], "whole numbers"), ([0.5], "whole numbers")):
        with pytest.raises(ValueError, match=message):
            pipe.detokenize(tokens)
    with pytest.raises(ValueError, match="no token file"):
        pipe.detokenize(tmp_path / "none.npy")
    with pytest.raises(ValueError, match=r"\.npy, \.json, \.safetensors"):
        pipe.detokenize("tokens.txt")
    with pytest.raises(ValueError, match="no folder"):
        SpeechTokens([1]).save(tmp_path / "missing" / "tokens.npy")
    np.save(tmp_path / "floats.npy", np.ones(3))
    (tmp_path / "other.json").write_text('{"ids": [1, 2]}')
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    for name in ("floats.npy", "other.json", "list.json", "broken.safetensors"):
        with pytest.raises(ValueError, match=f"{name}.*cannot be read"):
            pipe.detokenize(tmp_path / name)
