"""Feature extractor and processor."""

import os
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoProcessor, PreTrainedTokenizerFast

from e2e_tts.modeling.audio_features import MelSpec, MelSpectrogram
from e2e_tts.modeling.feature_extraction_e2e_tts import TextToSpeechFeatureExtractor
from e2e_tts.modeling.processing_e2e_tts import TextToSpeechProcessor


@pytest.fixture(scope="module")
def processor() -> TextToSpeechProcessor:
    return TextToSpeechProcessor.build()


def noise(seconds: float, rate: int = 16000, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (0.1 * generator.standard_normal(round(seconds * rate))).astype(np.float32)


# ---- feature extractor


def test_lengths_and_values_are_exact():
    extractor = TextToSpeechFeatureExtractor()
    waveform = noise(0.5)[:7777]
    features = extractor(waveform, sampling_rate=16000)["input_features"]
    assert features.shape == (1, 2 * -(-7777 // 640), 80)
    padded = torch.nn.functional.pad(torch.from_numpy(waveform), (0, 640 * 13 - 7777))
    assert torch.equal(features, MelSpectrogram(MelSpec())(padded[None]))


def test_batch_invariance():
    extractor = TextToSpeechFeatureExtractor()
    clips = [noise(0.5), noise(1.23, seed=1), noise(0.9, seed=2)]
    batch = extractor(clips, sampling_rate=16000)
    for index, clip in enumerate(clips):
        alone = extractor(clip, sampling_rate=16000)["input_features"][0]
        mask = batch["feature_mask"][index]
        assert int(mask.sum()) == len(alone)
        assert torch.equal(batch["input_features"][index, mask], alone)
        assert not batch["input_features"][index, ~mask].any()


def test_forms_of_one_clip_agree():
    extractor = TextToSpeechFeatureExtractor()
    clip = noise(0.5)
    expected = extractor(clip, sampling_rate=16000)["input_features"]
    for form in (torch.from_numpy(clip), clip.tolist(), np.stack([clip, clip]), np.stack([clip, clip], axis=1), [clip]):
        assert torch.allclose(extractor(form, sampling_rate=16000)["input_features"], expected, atol=1e-5)
    assert torch.allclose(extractor(np.stack([clip * 2, clip * 0]), 16000)["input_features"], expected, atol=1e-5)
    pcm = np.round(clip * 32768).astype(np.int16)
    assert torch.allclose(extractor(pcm, 16000)["input_features"], expected, atol=0.2)
    assert isinstance(extractor(clip, 16000, return_tensors="np")["input_features"], np.ndarray)


def test_resampling_keeps_duration_and_pitch():
    extractor = TextToSpeechFeatureExtractor()
    peaks = []
    for rate in (8000, 16000, 22050, 44100):
        tone = 0.3 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
        features = extractor(tone, sampling_rate=rate)["input_features"]
        assert features.shape[1] == 50
        peaks.append(int(features[0, 25].argmax()))
    assert len(set(peaks)) == 1


@pytest.mark.parametrize(
    ("audio", "rate", "message"),
    [
        (noise(1), None, "sampling_rate"),
        (noise(1), 0, "positive"),
        (np.append(noise(1), np.nan), 16000, "not finite"),
        (np.full(16000, 1e-6), 16000, "silent"),
        (noise(0.3), 16000, "too short"),
        (noise(1), 48000, "too short"),
        (noise(30.5), 16000, "too long"),
        (np.zeros((20, 16000)), 16000, "list of arrays"),
        (np.zeros(0), 16000, "empty"),
        ([], 16000, "empty list"),
        (np.zeros(16000, dtype=np.uint8), 16000, "uint8"),
    ],
)
def test_bad_audio_is_refused(audio, rate, message):
    with pytest.raises(ValueError, match=message):
        TextToSpeechFeatureExtractor()(audio, sampling_rate=rate)


def test_extractor_settings(tmp_path):
    extractor = TextToSpeechFeatureExtractor(mel={"num_mel_bins": 40}, frames_per_token=4, max_seconds=5.0)
    extractor(noise(1), sampling_rate=16000)
    extractor.save_pretrained(tmp_path)
    again = TextToSpeechFeatureExtractor.from_pretrained(tmp_path)
    assert again.to_dict() == extractor.to_dict()
    assert (again.spec.num_mel_bins, again.samples_per_token, again.max_seconds) == (40, 1280, 5.0)
    for wrong in ({"mel": {"bins": 3}}, {"sampling_rate": 8000}, {"min_seconds": 9, "max_seconds": 1}):
        with pytest.raises(ValueError):
            TextToSpeechFeatureExtractor(**wrong)


# ---- processor


def test_text_ids(processor):
    batch = processor(text=["Hello world.", "Hi."], return_tensors="pt")
    same = processor(text=["Hello world.", "Hi."], return_tensors="pt", padding=True)
    assert torch.equal(same["text_ids"], batch["text_ids"])
    with pytest.raises(ValueError, match="longest"):
        processor(text=["Hello world.", "Hi."], padding="max_length")
    assert batch["text_ids"].shape == (2, 10) and batch["text_mask"].dtype == torch.bool
    assert batch["text_mask"].sum(1).tolist() == [10, 3]
    assert not batch["text_ids"][1, 3:].any()
    symbols = [processor.text_frontend(text) for text in ("Hello world.", "Hi.")]
    assert torch.equal(processor(text=symbols, is_symbols=True)["text_ids"], batch["text_ids"])
    assert torch.equal(processor(text="Hi.")["text_ids"][0], batch["text_ids"][1, :3])


def test_reference_audio(processor):
    batch = processor(text=["Hello.", "Bye."], audio=[noise(1), noise(0.5)], sampling_rate=16000)
    assert set(batch) == {"text_ids", "text_mask", "ctc_labels", "reference_features", "reference_mask"}
    assert batch["reference_mask"].sum(1).tolist() == [50, 26]
    shared = processor(text=["Hello.", "Bye."], audio=noise(1), sampling_rate=16000)
    assert shared["reference_features"].shape == (2, 50, 80) and shared["reference_mask"].all()
    with pytest.raises(ValueError, match="1 texts and 2 clips"):
        processor(text="Hello.", audio=[noise(1), noise(1)], sampling_rate=16000)
    with pytest.raises(ValueError, match="sampling_rate"):
        processor(text="Hello.", audio=noise(1))
    with pytest.raises(ValueError, match="text, audio or both"):
        processor()


def test_limits_and_unknown_symbols(processor):
    with pytest.raises(ValueError, match="split it"):
        processor(text=["Fine.", "This goes on and on. " * 50])
    with pytest.raises(ValueError, match="ʘ"):
        processor(text="h ʘ", is_symbols=True)
    with pytest.raises(ValueError, match="empty list"):
        processor(text=[])


def test_ctc_labels(processor):
    labels, lengths = processor.ctc_labels(["Hello, world!", "Hi."])
    assert lengths.tolist() == [9, 2] and labels.shape == (2, 9)
    assert labels[1].tolist()[2:] == [-100] * 7
    assert not (labels == 0).any() and int(labels.max()) < processor.ctc_vocab_size == 79
    # A best path repeats labels and separates them by blanks.
    path = torch.stack([labels[0], labels[0], torch.zeros_like(labels[0])], dim=1).flatten()[None]
    assert processor.ctc_decode(path) == ["h ɛ l oʊ | w ɚ l d"]


def subword_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"[U]": 0, "Hello": 1, "world!": 2, "<end>": 3}, unk_token="[U]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[U]", pad_token="<end>", padding_side="left")


def test_text_passed_through_for_subword_vocabularies(tmp_path):
    processor = TextToSpeechProcessor(TextToSpeechFeatureExtractor(), subword_tokenizer(), frontend="none")
    batch = processor(text=["Hello  world!", "Hello"])
    assert batch["text_ids"].tolist() == [[1, 2], [1, 3]]
    assert batch["text_mask"].tolist() == [[True, True], [True, False]]
    labels, lengths = processor.ctc_labels(["Hello, 東京!", "a"])
    assert processor.ctc_vocab_size == 257 and lengths.tolist() == [12, 1] and int(labels.max()) < 257
    assert processor.ctc_decode(torch.repeat_interleave(labels[1:, :1], 3, 1)) == ["a"]
    processor.save_pretrained(tmp_path)
    assert TextToSpeechProcessor.from_pretrained(tmp_path).frontend == "none"


def test_round_trip_and_pickling(processor, tmp_path):
    custom = TextToSpeechProcessor.build(mel={"num_mel_bins": 40}, max_text_tokens=123)
    custom.save_pretrained(tmp_path)
    for again in (TextToSpeechProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(again) is TextToSpeechProcessor
        assert type(again.feature_extractor) is TextToSpeechFeatureExtractor
        # Saving has added auto_map to the original.
        assert again.to_dict().items() <= custom.to_dict().items()
        assert again.max_text_tokens == 123 and again.feature_extractor.spec.num_mel_bins == 40
    copy = pickle.loads(pickle.dumps(processor))
    assert torch.equal(copy(text="Hello.")["text_ids"], processor(text="Hello.")["text_ids"])


def test_loads_without_this_package(tmp_path):
    processor = TextToSpeechProcessor.build(language="zh")
    folder = tmp_path / "checkpoint"
    processor.save_pretrained(folder)
    script = textwrap.dedent(
        """
        import sys

        class Hidden:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("e2e_tts", "modeling"):
                    raise ModuleNotFoundError(f"No module named {name!r}")

        sys.meta_path.insert(0, Hidden())
        import numpy
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
        audio = numpy.sin(numpy.arange(24000) / 9)
        batch = processor(text="Hello, 世界!", audio=audio, sampling_rate=24000)
        assert type(processor).__module__.startswith("transformers_modules.")
        assert type(processor.feature_extractor).__module__.startswith("transformers_modules.")
        assert batch["reference_features"].shape == (1, 50, 80)
        processor.save_pretrained(sys.argv[2])
        again = AutoProcessor.from_pretrained(sys.argv[2], trust_remote_code=True)
        assert (again(text="Hello, 世界!")["text_ids"] == batch["text_ids"]).all()
        print(batch["text_ids"][0].tolist())
        """
    )
    work = tmp_path / "elsewhere"
    work.mkdir()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    run = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(tmp_path / "again")],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(processor(text="Hello, 世界!")["text_ids"][0].tolist())
