"""Files of answers. Gradio names its own after their content and writes such a file again for each answer with the same
content, also while it sends that file to somebody else, who then gets a broken one. Here each answer has its own."""

import os
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image


def save_audio(rate: int, samples: np.ndarray) -> str:
    """Writes 16-bit samples (samples,) at a rate in Hz to a wav file of their own; returns its path."""
    path = new_file(".wav")
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path


def save_picture(picture: Image.Image) -> str:
    """Writes a picture to a png file of its own; returns its path."""
    path = new_file(".png")
    picture.save(path)
    return path


def new_file(suffix: str) -> str:
    """An empty file in the folder from which Gradio serves files and where it deletes old ones."""
    folder = Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / "gradio").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, path = tempfile.mkstemp(suffix, "speech-", folder)
    os.close(descriptor)
    return path
