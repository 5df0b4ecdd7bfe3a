"""The watermark: written, read, streamed, compressed, on by default for cloned voices; where it is missing, told of."""

import io
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from e2e_tts.pipelines import TextToSpeechPipeline, cli, watermark
from e2e_tts.pipelines.long_text import speak_long
from e2e_tts.pipelines.watermark import Watermark, WatermarkMissingError, load_watermark

CLIPS = sorted((Path(__file__).resolve().parents[1] / "fixtures" / "clips").glob("*.opus"))
CLIP = CLIPS[1]
RATE = 16000
TEXT = "Hello there, how are you today?"


@pytest.fixture(scope="module")
def mark() -> Watermark:
    pytest.importorskip("soxr")
    return load_watermark()


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    """Real clips at 16 kHz."""
    import soxr

    return [soxr.resample(*read(path), RATE) for path in CLIPS[:6]]


@pytest.fixture(scope="module")
def pipe(tiny_model, processor) -> TextToSpeechPipeline:
    return TextToSpeechPipeline(model=tiny_model(), processor=processor, device="cpu", num_steps=1, seed=0)


def read(file: object) -> tuple[np.ndarray, int]:
    return soundfile.read(file, dtype="float32")


def confidence(mark: Watermark, samples: np.ndarray, rate: int = RATE) -> float:
    return mark.detect(samples, rate).confidence


# ---- the mark itself


def test_marked_and_unmarked_speech_are_told_apart(mark, speech):
    for clip in speech:
        marked = mark.apply(clip, RATE)
        assert marked.shape == clip.shape and marked.dtype == np.float32
        assert confidence(mark, clip) < 0.3 and confidence(mark, marked) > 0.95
        # The mark lies below 2 kHz and well below the speech.
        spectrum = np.abs(np.fft.rfft(marked - clip)) ** 2
        assert spectrum[int(len(spectrum) * 2200 / (RATE / 2)) :].sum() < 0.01 * spectrum.sum()
        assert (clip**2).sum() / ((marked - clip) ** 2).sum() > 10**1.2


@pytest.mark.parametrize("seconds", [0.13, 0.24, 1.0])
def test_a_stream_is_marked_chunk_by_chunk(mark, speech, seconds):
    size = round(seconds * RATE)
    for clip in speech[:3]:
        stream = mark.stream(RATE)
        chunks = [clip[start : start + size] for start in range(0, len(clip), size)]
        marked = [stream.push(chunk) for chunk in chunks]
        assert [len(chunk) for chunk in marked] == [len(chunk) for chunk in chunks]
        whole = np.concatenate(marked)
        assert confidence(mark, whole) > 0.9
        # No click: what is added starts and ends at nothing in every chunk, and steps no wider than inside of them.
        added = np.abs(np.diff(whole - clip))
        edges = np.arange(size, len(clip), size) - 1
        assert added[edges].max() <= np.quantile(added, 0.99)


def test_silence_stays_silent_and_short_chunks_keep_their_length(mark):
    for length in (0, 1, 100, 3000):
        assert np.array_equal(mark.apply(np.zeros(length, np.float32), RATE), np.zeros(length))
        assert len(mark.stream(RATE).push(np.full(length, 0.1, np.float32))) == length


@pytest.mark.parametrize("container, subtype", [("MP3", "MPEG_LAYER_III"), ("OGG", "OPUS"), ("OGG", "VORBIS")])
def test_the_mark_survives_compression(mark, speech, container, subtype):
    if subtype not in soundfile.available_subtypes(container):
        pytest.skip(f"this libsndfile has no {subtype}")
    for clip in speech[:3]:
        for samples, low, high in ((clip, 0.0, 0.4), (mark.apply(clip, RATE), 0.9, 1.0)):
            file = io.BytesIO()
            soundfile.write(file, samples, RATE, format=container, subtype=subtype)
            file.seek(0)
            assert low <= confidence(mark, *read(file)) <= high


def test_the_mark_survives_other_rates_noise_and_level(mark, speech):
    import soxr

    marked = mark.apply(speech[0], RATE)
    noise = np.random.default_rng(0).normal(0, 0.003, len(marked)).astype(np.float32)
    for samples, rate in (
        (soxr.resample(marked, RATE, 44100), 44100),
        (soxr.resample(marked, RATE, 8000), 8000),
        (0.3 * marked, RATE),
        (marked + noise, RATE),
        (marked[5000:-5000], RATE),
    ):
        assert confidence(mark, samples, rate) > 0.9
    # Written at one rate, read at another.
    assert confidence(mark, mark.apply(soxr.resample(speech[0], RATE, 22050), 22050), 22050) > 0.95


def test_a_marked_part_of_a_long_recording_is_found(mark, speech):
    plain = np.concatenate(speech * 3)[: 40 * RATE]
    mixed = plain.copy()
    mixed[20 * RATE : 30 * RATE] = mark.apply(plain[20 * RATE : 30 * RATE], RATE)
    assert not mark.detect(plain, RATE).is_marked
    found = mark.detect(mixed, RATE)
    assert found.is_marked and 10 <= found.start <= 20 and 30 <= found.end <= 40


def test_long_speech_is_marked_in_parts(mark, speech, monkeypatch):
    whole = mark.apply(speech[0], RATE)
    monkeypatch.setattr(watermark, "WHOLE_SECONDS", 1.0)
    parts = mark.apply(speech[0], RATE)
    assert parts.shape == whole.shape and confidence(mark, parts) > 0.95
    # Not just the same mark: a second ago is too far back to count.
    assert 0 < np.abs(parts - whole).mean() < 0.5 * np.abs(whole - speech[0]).mean()


def test_what_cannot_be_told_is_refused(mark, speech):
    with pytest.raises(ValueError, match="too short"):
        mark.detect(speech[0][:8000], RATE)
    with pytest.raises(ValueError, match="silent"):
        mark.detect(np.zeros(2 * RATE), RATE)


def test_it_is_the_mark_of_perth(mark, speech, monkeypatch):
    """Against the package's own code, which needs parts of torchaudio: here, what they are in torch."""
    pytest.importorskip("librosa")
    pytest.importorskip("pkg_resources")
    monkeypatch.setitem(sys.modules, "torchaudio", _torchaudio())
    monkeypatch.setitem(sys.modules, "torchaudio.transforms", _torchaudio().transforms)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        perth = pytest.importorskip("perth")
        theirs = perth.PerthImplicitWatermarker()
    rate = mark.settings.sample_rate
    import soxr

    clip = soxr.resample(speech[0], RATE, rate)
    clip = clip[: len(clip) // mark.settings.hop_size * mark.settings.hop_size]
    own, other = mark.apply(clip, rate), theirs.apply_watermark(clip, sample_rate=rate)
    assert np.abs(own[: len(other)] - other).max() < 1e-4
    for samples in (clip, own):
        assert float(theirs.get_watermark(samples, sample_rate=rate, round=False)) == pytest.approx(
            confidence(mark, samples, rate), abs=1e-3
        )


def _torchaudio():
    from types import SimpleNamespace

    class Transform(torch.nn.Module):
        def __init__(self, n_fft, win_length, hop_length, window_fn, **_):
            super().__init__()
            self.sizes = n_fft, hop_length, win_length
            self.register_buffer("window", window_fn(win_length))

    class Spectrogram(Transform):
        def forward(self, waveform):
            return torch.stft(waveform, *self.sizes, self.window, return_complex=True)

    class InverseSpectrogram(Transform):
        def forward(self, spectrum):
            return torch.istft(spectrum, *self.sizes, self.window)

    class TimeStretch(torch.nn.Module):
        def __init__(self, n_freq, hop_length):
            super().__init__()
            self.register_buffer("phase_advance", torch.linspace(0, torch.pi * hop_length, n_freq)[..., None])

    kinds = {kind.__name__: kind for kind in (Spectrogram, InverseSpectrogram, TimeStretch)}
    return SimpleNamespace(transforms=SimpleNamespace(**kinds))


# ---- in the pipeline


def test_cloned_speech_is_marked_by_default_and_built_in_voices_are_not(pipe, mark, tmp_path):
    built_in = pipe(TEXT, voice="ben")
    assert not built_in["watermarked"]
    pipe.save_voice(pipe.clone(CLIP), tmp_path / "me.safetensors")
    for voice in ({"reference_audio": CLIP}, {"voice": tmp_path / "me.safetensors"}):
        plain, marked = pipe(TEXT, **voice, watermark=False), pipe(TEXT, **voice)
        assert marked["watermarked"] and not plain["watermarked"]
        np.testing.assert_array_equal(marked["audio"], mark.apply(plain["audio"], RATE))
        assert not np.array_equal(marked["audio"], plain["audio"])
    assert pipe(TEXT, voice="ben", watermark=True)["watermarked"]
    assert speak_long(pipe, f"{TEXT} {TEXT}", reference_audio=CLIP)["watermarked"]
    batch = pipe([TEXT, "Hello."], voice=pipe.clone(CLIP), batch_size=2)
    assert [item["watermarked"] for item in batch] == [True, True]


def test_converted_recordings_are_marked_whatever_the_voice(pipe):
    for voice in (None, "ben", pipe.clone(CLIP)):
        assert pipe.convert(CLIP, voice=voice)["watermarked"]
        assert not pipe.convert(CLIP, voice=voice, watermark=False)["watermarked"]
    assert pipe.detokenize(pipe.tokenize(CLIP))["watermarked"]


def test_streamed_speech_is_marked_without_waiting(pipe, mark):
    voice = pipe.clone(CLIP)
    plain = list(pipe.stream(TEXT, voice=voice, watermark=False))
    marked = list(pipe.stream(TEXT, voice=voice))
    assert [len(chunk["audio"]) for chunk in marked] == [len(chunk["audio"]) for chunk in plain]
    assert all(chunk["watermarked"] for chunk in marked) and not any(chunk["watermarked"] for chunk in plain)
    stream = mark.stream(RATE)
    for first, second in zip(plain, marked, strict=True):
        np.testing.assert_array_equal(stream.push(first["audio"]), second["audio"])


def test_the_constructors_setting_holds_until_a_call_says_otherwise(pipe):
    parts = {"model": pipe.model, "processor": pipe.processor}
    silent = TextToSpeechPipeline(**parts, device="cpu", num_steps=1, watermark=False)
    assert not silent(TEXT, reference_audio=CLIP)["watermarked"] and not silent.convert(CLIP)["watermarked"]
    assert not next(silent.stream(TEXT, reference_audio=CLIP))["watermarked"]
    assert silent(TEXT, reference_audio=CLIP, watermark=True)["watermarked"]
    with pytest.raises(ValueError, match="True, False or None"):
        pipe(TEXT, watermark="yes")


# ---- where the package is missing


@pytest.fixture
def missing(monkeypatch) -> None:
    monkeypatch.setattr(watermark, "PACKAGE", "a_package_that_nobody_has")
    load_watermark.cache_clear()
    yield
    load_watermark.cache_clear()


def test_the_user_is_told_once_how_to_get_it(pipe, missing):
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("default")
        for _ in range(2):
            assert not pipe(TEXT, reference_audio=CLIP)["watermarked"]
        pipe.convert(CLIP)
    (note,) = notes
    assert "pip install resemble-perth" in str(note.message) and "--no-watermark" in str(note.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe(TEXT, reference_audio=CLIP, watermark=False)
        pipe(TEXT, voice="ben")
    with pytest.raises(WatermarkMissingError, match="pip install resemble-perth"):
        pipe(TEXT, voice="ben", watermark=True)


def test_other_weights_are_refused(tmp_path, monkeypatch):
    with pytest.raises(WatermarkMissingError, match="install it again"):
        Watermark.from_folder(tmp_path)
    settings = dict(sample_rate=32000, n_fft=64, hop_size=16, window_size=64, max_wmark_freq=2000, hidden_size=4)
    lines = [f"{name}: {value}" for name, value in (settings | {"stft_magnitude_min": "1.0e-09"}).items()]
    (tmp_path / "hparams.yaml").write_text("\n".join(lines))
    torch.save({"model": {"encoder.weight": torch.zeros(1)}}, tmp_path / "perth_net_1.pth.tar")
    with pytest.raises(WatermarkMissingError, match="install it again"):
        Watermark.from_folder(tmp_path)


# ---- the command


def test_detect(mark, speech, tmp_path, capsys):
    plain, marked = tmp_path / "plain.wav", tmp_path / "marked.mp3"
    soundfile.write(plain, np.stack([speech[0]] * 2, axis=1), RATE)
    soundfile.write(marked, mark.apply(speech[0], RATE), RATE)
    assert cli.main(["detect", str(marked)]) == 0
    assert capsys.readouterr().out.startswith("marked\t1.00\t")
    assert cli.main(["detect", "-q", str(plain), str(marked)]) == 3
    first, second = capsys.readouterr().out.splitlines()
    assert first.split("\t")[0] == "not marked" and first.endswith("plain.wav")
    assert second.split("\t")[0] == "marked" and second.endswith(" s")
    (tmp_path / "text.wav").write_text("no audio")
    assert cli.main(["detect", str(tmp_path / "text.wav")]) == 1
    assert "cannot be read as audio" in capsys.readouterr().err


def test_detect_without_the_package(missing, capsys):
    assert cli.main(["detect", str(CLIP)]) == 1
    assert "pip install resemble-perth" in capsys.readouterr().err


def test_the_mark_travels_with_checkpoints(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "watermark.py").is_file()


def test_the_study_counts_what_is_found(mark, tmp_path, monkeypatch, capsys):
    from e2e_tts.pipelines.evaluation import watermark_study

    monkeypatch.setattr(watermark_study, "load_quality_judge", lambda: Peak())
    watermark_study.main(["--clips", str(CLIPS[0].parent), "--limit", "2", "--output", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "mp3 (MPEG_LAYER_III)" in report["confidences"] and "8000 Hz" in report["confidences"]
    for found in report["confidences"].values():
        assert max(found["unmarked"]) < 0.5 <= min(found["marked"] + found["marked as a stream"])
    assert 10 < report["changes"]["speech over mark, dB"]["value"] < 25
    assert report["changes"]["DNSMOS peak, marked less unmarked"]["value"] != 0
    assert "| as it is | 0 of 2 (" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no recordings"):
        watermark_study.main(["--clips", str(tmp_path), "--output", str(tmp_path / "out")])


class Peak:
    """A judge that says how loud a clip gets."""

    name, version = "peak", "1"

    def score(self, waveform: np.ndarray, sampling_rate: int) -> dict[str, float]:
        return {"peak": float(np.abs(waveform).max())}
