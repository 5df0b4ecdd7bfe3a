"""Speech as the bytes of an audio file, whole or chunk by chunk while it is being spoken.

The command line reads FORMATS before anything else, so packages are imported where they are needed.
"""

import io
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import numpy as np

FULL_SCALE = 32767
# The length of a file whose end is not known yet; players then read on to the end.
UNKNOWN_LENGTH = 0xFFFFFFFF


@dataclass(frozen=True)
class AudioFormat:
    """
    container, subtype (`str`): names in libsndfile; RAW is written without it.
    media_type (`str`): for HTTP.
    suffixes (`tuple[str, ...]`): of files.
    grows (`bool`): readers take a file whose length was not known at its beginning.
    """

    container: str
    subtype: str
    media_type: str
    suffixes: tuple[str, ...]
    grows: bool = True


FORMATS = {
    "wav": AudioFormat("WAV", "PCM_16", "audio/wav", (".wav",)),
    "flac": AudioFormat("FLAC", "PCM_16", "audio/flac", (".flac",), grows=False),
    "mp3": AudioFormat("MP3", "MPEG_LAYER_III", "audio/mpeg", (".mp3",)),
    "opus": AudioFormat("OGG", "OPUS", "audio/ogg", (".opus",)),
    "ogg": AudioFormat("OGG", "VORBIS", "audio/ogg", (".ogg",)),
    "raw": AudioFormat("RAW", "PCM_16", "audio/pcm", (".raw", ".pcm")),
}
"""What can be written. raw: 16-bit little-endian samples without a header."""


def format_of(path: str | os.PathLike) -> str:
    """The format that a file's suffix names. Raises ValueError for any other."""
    suffix = os.path.splitext(path)[1].lower()
    for name, audio_format in FORMATS.items():
        if suffix in audio_format.suffixes:
            return name
    known = ", ".join(suffix for audio_format in FORMATS.values() for suffix in audio_format.suffixes)
    raise ValueError(f"Audio is written to {known} files, got {os.fspath(path)}.")


def writable_formats() -> list[str]:
    """The formats that the installed libsndfile can write: old ones lack MP3."""
    import soundfile

    return [
        name
        for name, found in FORMATS.items()
        if found.container == "RAW" or found.subtype in soundfile.available_subtypes(found.container)
    ]


class AudioWriter:
    """Writes mono speech to a binary file, 16-bit where the format is uncompressed; a context manager.

    file: takes bytes; with `grows` it is only ever appended to (a pipe, a socket), else it must be able to seek.
    sampling_rate: Hz of what is written to it; output_rate: Hz of the file, by default the same.

    Raises ValueError for a format that is unknown, or that the installed libsndfile cannot write.
    """

    def __init__(
        self, file: BinaryIO, audio_format: str, sampling_rate: int, grows: bool = False, output_rate: int | None = None
    ) -> None:
        if audio_format not in writable_formats():
            raise ValueError(f"Cannot write {audio_format!r} here; use one of {', '.join(writable_formats())}.")
        self._file, self._format = file, FORMATS[audio_format]
        self._resampler = None
        rate = output_rate or sampling_rate
        if rate != sampling_rate:
            import soxr

            self._resampler = soxr.ResampleStream(sampling_rate, rate, 1, dtype="float32")
        self._encoder: Any = None
        self._appended: _Appended | None = None
        self._held: io.BytesIO | None = None
        if self._format.container == "RAW":
            return
        if self._format.container == "WAV" and grows:
            # libsndfile would leave a length of 0 in a header that it cannot return to.
            file.write(_wav_header(rate))
            return
        target: Any = file
        if grows and self._format.grows:
            target = self._appended = _Appended()
        elif grows:
            target = self._held = io.BytesIO()
        self._encoder = self._open_encoder(target, rate)

    def _open_encoder(self, target: Any, rate: int) -> Any:
        import soundfile

        # A stream of MP3 has no table of contents; players can tell its length only if all frames are of one size.
        container = self._format.container
        settings = {"bitrate_mode": "CONSTANT", "compression_level": 0.5} if container == "MP3" else {}
        return soundfile.SoundFile(target, "w", rate, 1, self._format.subtype, format=container, **settings)

    def write(self, samples: "np.ndarray") -> None:
        """Takes float samples (samples,) between -1 and 1; what is beyond is clipped."""
        self._write(samples, last=False)

    def _write(self, samples: Any, last: bool) -> None:
        import numpy as np

        samples = np.ascontiguousarray(samples, dtype=np.float32)
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples, last=last)
        samples = samples.clip(-1.0, 1.0)
        if self._encoder is not None:
            # In pieces: libvorbis keeps all of a call on its stack.
            for start in range(0, len(samples), self._encoder.samplerate):
                self._encoder.write(samples[start : start + self._encoder.samplerate])
                self._pass_on()
        elif len(samples):
            self._file.write((samples * FULL_SCALE).astype("<i2").tobytes())

    def _pass_on(self) -> None:
        """Writes what the encoder has appended. Not done where libsndfile calls: errors raised there are lost."""
        if self._appended is not None and (data := self._appended.take()):
            self._file.write(data)

    def close(self) -> None:
        """Writes what is still held back; the file itself stays open."""
        if self._resampler is not None:
            self._write([], last=True)
        if self._encoder is not None:
            self._encoder.close()
            self._pass_on()
        if self._held is not None:
            self._file.write(self._held.getvalue())

    def __enter__(self) -> "AudioWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def encode(samples: "np.ndarray", sampling_rate: int, audio_format: str, output_rate: int | None = None) -> bytes:
    """Samples (samples,) as a whole file."""
    file = io.BytesIO()
    with AudioWriter(file, audio_format, sampling_rate, output_rate=output_rate) as writer:
        writer.write(samples)
    return file.getvalue()


class _Appended:
    """A file for libsndfile that keeps what is appended; what it would correct at the beginning is dropped."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._position = self._length = 0

    def take(self) -> bytes:
        """What was appended since the last time."""
        data = bytes(self._data)
        self._data.clear()
        return data

    def write(self, data: bytes) -> int:
        data = bytes(data)
        if self._position == self._length:
            self._data += data
            self._length += len(data)
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        """libsndfile asks whether it exists."""
        return b""


def _wav_header(rate: int) -> bytes:
    chunk = struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
    length = struct.pack("<I", UNKNOWN_LENGTH)
    return b"RIFF" + length + b"WAVEfmt " + chunk + b"data" + length
