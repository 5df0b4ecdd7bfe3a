"""Audio files and streams: the same sound in every format, whole or chunk by chunk."""

import io

import numpy as np
import pytest
import soundfile

from e2e_tts.pipelines.audio_writer import FORMATS, AudioWriter, encode


@pytest.mark.parametrize("name", list(FORMATS))
def test_written_audio_is_what_was_said(name):
    """Written chunk by chunk or whole, to where one can seek or not: the same sound at its place."""
    time = np.arange(24000) / 16000
    tone = (0.3 * np.sin(2 * np.pi * 220 * time) * (time < 1.0)).astype(np.float32)
    grown = io.BytesIO()
    with AudioWriter(grown, name, 16000, grows=True) as writer:
        for start in range(0, len(tone), 1000):
            writer.write(tone[start : start + 1000])
            # Nothing that is in the file already is changed later.
            assert grown.tell() == len(grown.getvalue())
    for data in (grown.getvalue(), encode(tone, 16000, name)):
        if name == "raw":
            audio, rate = np.frombuffer(data, "<i2") / 32768, 16000
        else:
            audio, rate = soundfile.read(io.BytesIO(data))
        assert rate == 16000 and len(audio) == pytest.approx(len(tone), abs=2400 if name == "mp3" else 0)
        assert np.abs(audio[4000:12000]).max() == pytest.approx(0.3, abs=0.03)
        assert np.abs(audio[20000:]).max() < 0.01


def test_writing_at_another_rate_keeps_pitch_and_length():
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    audio = np.frombuffer(encode(tone, 16000, "raw", output_rate=24000), "<i2") / 32767
    expected = 0.3 * np.sin(2 * np.pi * 440 * np.arange(24000) / 24000)
    assert len(audio) == 24000
    assert np.abs(audio - expected)[500:-500].max() < 0.005
    loud = np.frombuffer(encode(10 * tone, 16000, "raw"), "<i2")
    assert loud.max() == 32767 and loud.min() == -32767


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_reader_that_leaves_stops_the_writer(name, capfd):
    class Left(io.RawIOBase):
        taken = 0

        def write(self, data: bytes) -> int:
            self.taken += len(data)
            if self.taken > 3000:
                raise BrokenPipeError("the reader has left")
            return len(data)

    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000).astype(np.float32)
    written = 0
    with pytest.raises(BrokenPipeError), AudioWriter(Left(), name, 16000, grows=True) as writer:
        for _ in range(100):
            writer.write(noise)
            written += 1
    # At once, but for FLAC: that is kept until its length is known.
    assert written == 100 if name == "flac" else written < 20
    assert capfd.readouterr().err == ""


def test_unknown_formats_are_refused():
    with pytest.raises(ValueError, match=r"aac.*wav"):
        AudioWriter(io.BytesIO(), "aac", 16000)
