"""Quality judges: predicted mean opinion scores."""

import numpy as np

from .judge_interface import JUDGE_SAMPLING_RATE, package_versions, prepare_waveform, require

_SCALES = {"overall": "ovrl_mos", "signal": "sig_mos", "background": "bak_mos", "p808": "p808_mos"}


class DnsmosJudge:
    """DNSMOS as the package speechmos ships it: scores from 1 to 5.

    "overall", "signal" and "background" follow ITU-T P.835, "p808" is the single score of P.808. It was trained on
    noise and its suppression: it hears noise and distortion, and is nearly deaf to unnatural speech.
    """

    name = "dnsmos"

    def __init__(self) -> None:
        self._run = require("speechmos.dnsmos", "speechmos", "The quality judge dnsmos").run
        self.version = package_versions("speechmos", "onnxruntime")

    def score(self, waveform: np.ndarray, sampling_rate: int) -> dict[str, float]:
        """Scores a mono waveform of shape (samples,). Raises ValueError for an empty or silent one."""
        waveform = prepare_waveform(waveform, sampling_rate)
        # The package repeats a clip up to 9 s (an empty one for ever) and divides by its loudest value.
        if not waveform.any():
            raise ValueError("The clip is silent: it has no quality to score.")
        scores = self._run(waveform.clip(-1.0, 1.0), JUDGE_SAMPLING_RATE)
        return {scale: float(scores[key]) for scale, key in _SCALES.items()}
