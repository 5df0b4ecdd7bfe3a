"""Mean opinion score, predicted by a quality judge."""

from dataclasses import asdict
from typing import Any

import evaluate
from datasets import Features, Value

from e2e_tts.pipelines.evaluation.figures import mean_figure

_INPUTS = """
Args:
    predictions: scores on one scale, one an utterance, as a quality judge's `score` gives them.
    resamples, seed: of the bootstrap.
Returns:
    opinion_score: their mean.
"""


class MeanOpinionScore(evaluate.Metric):
    """Mean of predicted opinion scores on one scale."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean predicted opinion score with a bootstrap interval over utterances.",
            citation="",
            inputs_description=_INPUTS,
            features=Features({"predictions": Value("float64")}),
        )

    def _compute(self, predictions: list[float], resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
        return {"opinion_score": asdict(mean_figure(predictions, resamples=resamples, seed=seed))}
