"""Pictures of what the model made on the way: the mel spectrogram and the speech tokens."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Dark to light; the colours between are interpolated.
PALETTE = np.array([(13, 8, 35), (84, 20, 108), (183, 55, 98), (244, 125, 60), (252, 233, 170)], dtype=np.float64)
PAPER, INK = (255, 255, 255), (70, 70, 80)
# What lies so many nepers below the loudest is black: silence would take most of the colours otherwise.
MEL_RANGE = 10.0


def draw_speech(mel: np.ndarray, codes: np.ndarray, spec: dict) -> Image.Image:
    """Mel (T_mel, n_mels) above codes (T, D) in -1 .. 1, one row a dimension of the code, over an axis in seconds.

    Rows that are NaN, the pauses between sentences, stay empty. spec: fields of the mel (`MelSpec`).
    """
    seconds = len(mel) * spec["hop_length"] / spec["sampling_rate"]
    left, top, width, mel_height, row, gap = 64, 28, 920, 280, 24, 32
    code_top = top + mel_height + gap
    bottom = code_top + row * codes.shape[1]
    image = Image.new("RGB", (left + width + 24, bottom + 28), PAPER)
    panels = (
        (((mel.T - np.nanmax(mel)) / MEL_RANGE + 1.0)[::-1], top, mel_height),
        ((codes.T + 1.0) / 2.0, code_top, bottom - code_top),
    )
    for values, y, height in panels:
        image.paste(Image.fromarray(colour(values)).resize((width, height), Image.Resampling.NEAREST), (left, y))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=14)

    def write(x: float, y: float, label: str, anchor: str) -> None:
        draw.text((x, y), label, fill=INK, font=font, anchor=anchor)

    frames, tokens = (int((~np.isnan(values).any(axis=1)).sum()) for values in (mel, codes))
    rate = len(codes) / seconds
    write(left, top - 6, f"mel: {frames} frames, {mel.shape[1]} bands", "ls")
    write(left, code_top - 6, f"speech tokens: {tokens}, {rate:g} a second", "ls")
    write(left - 8, top, f"{spec['f_max'] / 1000:g} kHz", "rt")
    write(left - 8, top + mel_height, f"{spec['f_min'] / 1000:g}", "rb")
    for index in range(codes.shape[1]):
        write(left - 8, code_top + row * (index + 0.5), f"code {index + 1}", "rm")
    step = next((step for step in (0.1, 0.2, 0.5, 1.0, 2.0) if seconds / step <= 12), 5.0)
    for tick in range(int(seconds / step) + 1):
        x = left + width * tick * step / seconds
        draw.line([(x, bottom), (x, bottom + 5)], fill=INK)
        write(x, bottom + 8, f"{tick * step:g}{' s' if tick == 0 else ''}", "ma")
    return image


def colour(values: np.ndarray) -> np.ndarray:
    """Values (H, W), cut to 0 .. 1, as uint8 colours (H, W, 3); NaN is paper."""
    points = np.linspace(0.0, 1.0, len(PALETTE))
    channels = [np.interp(np.nan_to_num(values), points, PALETTE[:, channel]) for channel in range(3)]
    colours = np.stack(channels, axis=-1).round().astype(np.uint8)
    colours[np.isnan(values)] = PAPER
    return colours
