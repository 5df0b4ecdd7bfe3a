"""Real-time factor: seconds spent for a second of speech."""

from dataclasses import asdict
from typing import Any

import evaluate
from datasets import Features, Value

from e2e_tts.pipelines.evaluation.figures import ratio_figure

_INPUTS = """
Args:
    predictions: seconds spent on synthesis, one an utterance.
    references: seconds of speech that came out.
    resamples, seed: of the bootstrap.
Returns:
    real_time_factor: all seconds spent over all seconds of speech; below 1 is faster than real time.
"""


class RealTimeFactor(evaluate.Metric):
    """Time spent over duration of the speech."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Real-time factor with a bootstrap interval over utterances.",
            citation="",
            inputs_description=_INPUTS,
            features=Features({"predictions": Value("float64"), "references": Value("float64")}),
        )

    def _compute(
        self, predictions: list[float], references: list[float], resamples: int = 2000, seed: int = 0
    ) -> dict[str, Any]:
        figure = ratio_figure(predictions, references, resamples=resamples, seed=seed)
        return {"real_time_factor": asdict(figure)}
