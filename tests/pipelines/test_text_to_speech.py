"""The pipeline, long texts, and releases with voices."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from transformers import AutoModel, pipeline

from e2e_tts.modeling import TextToSpeechProcessor
from e2e_tts.pipelines import TextToSpeechPipeline, load_pipeline
from e2e_tts.pipelines import release as releasing
from e2e_tts.pipelines.long_text import MAX_CHARACTERS, speak_long, split_text

TEXTS = ["Hello, world!", "A longer sentence follows here.", "Yes."]


@pytest.fixture(scope="module")
def folder(tiny_model, processor, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("release")
    releasing.save_release(tiny_model(), processor, path)
    return path


@pytest.fixture(scope="module")
def pipe(folder) -> TextToSpeechPipeline:
    return load_pipeline(str(folder), device="cpu")


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    time = np.arange(12000) / 16000
    return (0.3 * np.sin(2 * np.pi * 150 * time) * (1 + np.sin(2 * np.pi * 3 * time))).astype(np.float32)


def same(first: dict, second: dict) -> bool:
    return np.array_equal(first["audio"], second["audio"])


# ---- the pipeline


def test_output_and_seeds(pipe):
    speech = pipe(TEXTS[0], seed=0)
    assert "E2ETTSModel" in repr(pipe)
    assert speech.keys() == {"audio", "sampling_rate", "watermarked"} and speech["sampling_rate"] == 16000
    audio = speech["audio"]
    assert audio.dtype == np.float32 and audio.ndim == 1 and audio.size % 640 == 0 and np.isfinite(audio).all()
    # Trimmed to its own length: the last token sounds.
    assert np.abs(audio[-640:]).max() > 0
    assert same(pipe(TEXTS[0], seed=0), speech) and not same(pipe(TEXTS[0], seed=1), speech)
    assert same(pipe(TEXTS[0], seed=0, voice="anna"), speech) and not same(pipe(TEXTS[0], seed=0, voice="ben"), speech)


def test_what_training_leaves_is_sent_to_the_release(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "final")
    with pytest.raises(ValueError, match=r"without its processor.*e2e_tts\.pipelines\.release --model .*final"):
        load_pipeline(str(tmp_path / "final"))
    with pytest.raises(ValueError, match="give the folder above it"):
        load_pipeline(str(tmp_path / "final" / "lm"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_device_that_is_not_there_is_said(folder):
    with pytest.raises(ValueError, match="cuda"):
        load_pipeline(str(folder), device="cuda")


def test_lists_and_batches(pipe):
    one_by_one = pipe(TEXTS, seed=0)
    assert same(one_by_one[0], pipe(TEXTS[0], seed=0)) and len(one_by_one) == 3
    batch = pipe(TEXTS, seed=0, batch_size=2, voice="ben")
    assert len(batch) == 3 and all(speech["audio"].ndim == 1 for speech in batch)
    assert len({speech["audio"].size for speech in batch}) > 1
    assert len(list(pipe(text for text in TEXTS[:2]))) == 2


class Texts(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return len(TEXTS)

    def __getitem__(self, index: int) -> str:
        return TEXTS[index]


def test_iterables_of_texts(pipe):
    expected = pipe(TEXTS, seed=0)
    column = Dataset.from_dict({"text": TEXTS})["text"]
    for texts in (column, tuple(TEXTS), map(str, TEXTS), np.array(TEXTS), dict.fromkeys(TEXTS).keys(), Texts()):
        spoken = list(pipe(texts, seed=0))
        assert len(spoken) == 3 and all(map(same, spoken, expected)), type(texts)
    taken = []

    def endless():
        while True:
            taken.append(TEXTS[len(taken) % 3])
            yield taken[-1]

    # A generator is not read to its end first.
    assert same(next(iter(pipe(endless(), seed=0))), expected[0]) and len(taken) < 3


def test_sampling_and_decoder_settings_matter(pipe):
    base = pipe(TEXTS[1], seed=0)
    changes = {"num_steps": 2, "guidance": 0.0, "speed": 2.0, "temperature": 0.2, "top_k": 2, "candidates": 3}
    for settings in ({name: value} for name, value in changes.items()):
        assert not same(pipe(TEXTS[1], seed=0, **settings), base), settings
    assert same(pipe(TEXTS[1], seed=0, top_p=0.8, top_k=25, temperature=1.0, num_steps=6, speed=1.0), base)


def test_reference_in_every_form(pipe, clip, tmp_path):
    path = tmp_path / "me.wav"
    soundfile.write(path, clip, 16000, subtype="FLOAT")
    base = pipe(TEXTS[0], seed=0, reference_audio=clip, sampling_rate=16000)
    assert same(base, pipe(TEXTS[0], seed=0, reference_audio=str(path)))
    assert same(base, pipe(TEXTS[0], seed=0, reference_audio={"array": clip, "sampling_rate": 16000}))
    assert not same(base, pipe(TEXTS[0], seed=0))
    continued = pipe(TEXTS[:2], seed=0, reference_audio=path, reference_text="Say hello.", batch_size=2)
    assert len(continued) == 2 and not same(continued[0], base)


def test_pushing_is_not_half_done(pipe, tmp_path):
    with pytest.raises(ValueError, match=r"call push_to_hub\(name\) of the pipeline"):
        pipe.save_pretrained(tmp_path / "out", push_to_hub=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"voice": "carl"}, r"carl.*anna.*ben"),
        ({"speed": 9}, r"speed must lie between 0\.25 and 4\.0, got 9"),
        ({"speed": "fast"}, "speed is a number, got 'fast'"),
        ({"top_k": 10.5}, r"top_k is a whole number, got 10\.5"),
        ({"top_k": True}, "top_k is a whole number, got True"),
        ({"candidates": float("nan")}, "candidates is a whole number, got nan"),
        ({"seed": 2**70}, "seed must lie between 0 and"),
        ({"num_steps": 0}, "num_steps"),
        ({"temperature": -1}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 1.5}, "top_p"),
        ({"guidance": float("nan")}, "guidance"),
        ({"reference_text": "Hello."}, "not given"),
        ({"reference_audio": "missing.wav"}, r"missing\.wav"),
        ({"reference_audio": __file__}, "cannot be read"),
        ({"reference_audio": np.ones(16000, dtype=np.float32)}, "sampling_rate"),
        ({"reference_audio": {"array": [0.0]}}, r"lacks \['sampling_rate'\]"),
        ({"reference_audio": np.zeros(16000, dtype=np.float32), "sampling_rate": 16000}, "silent"),
        ({"reference_audio": np.ones(16000, dtype=np.float32), "voice": "anna"}, "not both"),
    ],
)
def test_settings_that_cannot_be_used(pipe, settings, message):
    with pytest.raises(ValueError, match=message):
        pipe("Hello.", **settings)


def test_unknown_settings_are_refused(pipe, folder):
    with pytest.raises(TypeError, match=r"'pitch'.*voice"):
        pipe("Hello.", pitch=2)
    with pytest.raises(TypeError, match="pitch"):
        load_pipeline(str(folder), device="cpu", pitch=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("!!!", "can be spoken"),
        ([], "empty list"),
        (map(str, ()), "empty list"),
        (None, "NoneType"),
        (3, "int"),
        (b"Hello.", "bytes"),
        ({"text": "Hello."}, "dict"),
        (["Hello.", None], "NoneType"),
    ],
)
def test_texts_that_cannot_be_spoken(pipe, text, message):
    with pytest.raises(ValueError, match=message):
        pipe(text)
    if isinstance(text, str):
        with pytest.raises(ValueError, match=message):
            pipe(["Hello.", text])


def test_silence_and_broken_samples_are_errors(pipe, monkeypatch):
    length = torch.tensor([640])
    for value, message in ((0.0, "silence"), (float("nan"), "not finite")):
        output = {"audio": torch.full((1, 640), value), "audio_lengths": length}
        monkeypatch.setattr(pipe.model, "generate", lambda output=output, **_: output)
        with pytest.raises(RuntimeError, match=message):
            pipe("Hello.")


def test_settings_at_construction_hold_for_calls(folder, pipe):
    again = load_pipeline(str(folder), device="cpu", voice="ben", seed=3)
    assert same(again(TEXTS[0]), pipe(TEXTS[0], voice="ben", seed=3))
    assert same(again(TEXTS[0], voice="anna"), pipe(TEXTS[0], voice="anna", seed=3))


def test_ways_to_load(folder, pipe):
    trusting = pipeline("text-to-speech", model=str(folder), trust_remote_code=True, device="cpu")
    # Model and processor are this package's, only the pipeline's own file runs from the folder.
    assert type(trusting.model) is type(pipe.model)
    assert same(trusting(TEXTS[0], seed=0), pipe(TEXTS[0], seed=0))
    with pytest.raises(ValueError, match="folder above"):
        TextToSpeechPipeline(model=AutoModel.from_pretrained(folder / "lm"), processor=pipe.processor, device="cpu")


# ---- long texts


def test_split_text():
    assert split_text('Dr. Smith paid $3.50 at 7:45 on Monday. "Really, is that so?" she asked him twice. Yes!') == [
        "Dr. Smith paid $3.50 at 7:45 on Monday.",
        '"Really, is that so?" she asked him twice.',
        "Yes!",
    ]
    assert split_text("Yes. No. It may be so, who knows.") == ["Yes. No. It may be so, who knows."]
    assert split_text("One paragraph that has no mark\n\nanother paragraph") == [
        "One paragraph that has no mark",
        "another paragraph",
    ]
    assert split_text(" \n ... !! ") == [] == split_text("")
    long = "a clause of some words, " * 40 + "unbroken " * 60
    parts = split_text(long)
    assert all(len(part) <= MAX_CHARACTERS for part in parts)
    assert " ".join(parts).split() == long.split()


def test_a_long_text_in_one_go_is_warned_of(pipe):
    text = "This is a sentence of some words that is long enough. " * 4
    with pytest.warns(UserWarning, match="speak_long"):
        pipe.preprocess(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.preprocess(text[:MAX_CHARACTERS])
        speech = pipe.speak_long(text[:108], seed=0, num_steps=1, pause_seconds=0.5)
    assert np.array_equal(
        speech["audio"], speak_long(pipe, text[:108], seed=0, num_steps=1, pause_seconds=0.5)["audio"]
    )


def test_long_text_is_joined_with_pauses(pipe):
    seen = []
    text = "The first sentence is this one. The second sentence comes after it."
    speech = speak_long(pipe, text, lambda *step: seen.append(step), pause_seconds=0.1, seed=0)
    first, second = (pipe(part, seed=0)["audio"] for part in split_text(text))
    assert np.array_equal(speech["audio"], np.concatenate([first, np.zeros(1600, np.float32), second]))
    assert [step[:2] for step in seen] == [(1, 2), (2, 2)]
    with pytest.raises(ValueError, match="can be spoken"):
        speak_long(pipe, "?!")
    with pytest.raises(ValueError, match="part 2 of 2"):
        speak_long(pipe, "The first sentence is this one. The second one is {HH AH0 L OWW1} there.")


# ---- releases


@pytest.fixture(scope="module")
def annotated(tmp_path_factory) -> Path:
    embeddings = torch.nn.functional.normalize(torch.randn(4, 32, generator=torch.Generator().manual_seed(1)), dim=-1)
    rows = {
        "source": ["corpus"] * 4,
        "speaker": ["x", "x", "y", "x"],
        "split": ["train", "train", "train", "dev"],
        "seconds": [2.0, 4.0, 3.0, 9.0],
        "text_ids": [[5] * 25, [5] * 40, [5] * 30, [5] * 9],
        "speaker_embedding": embeddings.tolist(),
    }
    path = tmp_path_factory.mktemp("data")
    Dataset.from_dict(rows).save_to_disk(path)
    return path


def test_release_command(tiny_model, annotated, tmp_path, capsys):
    tiny_model().save_pretrained(tmp_path / "trained")
    vocoder = tmp_path / "trained" / "vocoder"
    arguments = ["--model", f"{tmp_path}/trained", "--output", f"{tmp_path}/out", "--module", f"vocoder={vocoder}"]
    releasing.main([*arguments, "--voice", f"eve={annotated}:corpus:x", "--voice", f"all={annotated}:corpus"])
    assert "eve" in capsys.readouterr().out
    pipe = load_pipeline(str(tmp_path / "out"), device="cpu")
    rates = pipe.model.config.voices
    assert rates["eve"] == pytest.approx(2.25) and rates["all"] == pytest.approx((2.0 + 2.5 + 2.5) / 3)
    rows = Dataset.load_from_disk(annotated)["speaker_embedding"][:]
    mean = torch.nn.functional.normalize(torch.tensor(rows[:2]).mean(dim=0), dim=-1)
    # The first --voice is the default, wherever its name stands in the alphabet.
    assert list(rates) == ["all", "eve"] and pipe.model.config.default_voice == "eve"
    torch.testing.assert_close(pipe.model.voice_embeddings[1], mean, atol=1e-3, rtol=0)
    assert pipe("Hello.", seed=0)["audio"].size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--voice", "eve=nowhere"], "NAME=DATASET_FOLDER:SOURCE"),
        (["--voice", "eve=DATA:other"], "corpus"),
        (["--voice", "eve=DATA:corpus:z"], r"\['x', 'y'\]"),
        (["--module", "vocoder=nowhere"], "NAME=FOLDER"),
        (["--module", "vocoder=MODEL/lm"], "must be a e2e_tts_vocoder"),
        (["--model", "MODEL/lm"], "e2e_tts_speech_lm"),
        (["--model", "nowhere"], r"no config\.json"),
    ],
)
def test_release_command_errors(folder, annotated, tmp_path, arguments, message):
    arguments = [value.replace("DATA", str(annotated)).replace("MODEL", str(folder)) for value in arguments]
    with pytest.raises(SystemExit, match=message):
        releasing.main(["--model", str(folder), "--output", f"{tmp_path}/out", *arguments])


def test_release_refuses_another_vocabulary_or_mel(tiny_model, tmp_path):
    model = tiny_model()
    with pytest.raises(ValueError, match="40"):
        releasing.save_release(model, TextToSpeechProcessor.build(mel={"num_mel_bins": 40}), tmp_path)
    model.config.lm_config.text_config.vocab_size = 50
    with pytest.raises(ValueError, match=r"79 tokens.*knows 50"):
        releasing.save_release(model, TextToSpeechProcessor.build(), tmp_path)


def test_release_refuses_weights_that_overflow(tiny_model, processor, tmp_path):
    model = tiny_model()
    model.lm.end_head.bias.data.fill_(1e6)
    with pytest.raises(ValueError, match=r"lm\.end_head\.bias"):
        releasing.save_release(model, processor, tmp_path)
