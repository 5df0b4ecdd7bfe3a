"""Duration of speech relative to a recording of the same text."""

from dataclasses import asdict
from typing import Any

import evaluate
from datasets import Features, Value

from e2e_tts.pipelines.evaluation.figures import mean_figure

_INPUTS = """
Args:
    predictions: durations of the speech in seconds, one an utterance.
    references: durations of the recordings in seconds, above 0.
    resamples, seed: of the bootstrap.
Returns:
    duration_ratio: the mean of one over the other; above 1 the speech is slower.
"""


class DurationRatio(evaluate.Metric):
    """Mean ratio of the durations of speech and recording."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean duration ratio with a bootstrap interval over utterances.",
            citation="",
            inputs_description=_INPUTS,
            features=Features({"predictions": Value("float64"), "references": Value("float64")}),
        )

    def _compute(
        self, predictions: list[float], references: list[float], resamples: int = 2000, seed: int = 0
    ) -> dict[str, Any]:
        if any(seconds <= 0 for seconds in references):
            raise ValueError("A recording without any duration has no ratio; leave it out.")
        ratios = [first / second for first, second in zip(predictions, references, strict=True)]
        return {"duration_ratio": asdict(mean_figure(ratios, resamples=resamples, seed=seed))}
