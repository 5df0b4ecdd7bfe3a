"""Share of utterances that failed, for each kind of failure."""

from dataclasses import asdict
from typing import Any

import evaluate
from datasets import Features, Sequence, Value

from e2e_tts.pipelines.evaluation.failures import FAILURES
from e2e_tts.pipelines.evaluation.figures import mean_figure

_INPUTS = """
Args:
    predictions: for each utterance the list of its failures, empty if there is none, as `FailureLimits` finds them:
        error, silence, empty_transcript, over_long, cut_off, repetition.
    resamples, seed: of the bootstrap.
Returns:
    Under each kind the share of utterances, and under `failed` the share of those with any. `counts`: the numbers.
"""


class SpeechFailures(evaluate.Metric):
    """Shares of failed utterances."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Shares of failed utterances with bootstrap intervals.",
            citation="",
            inputs_description=_INPUTS,
            features=Features({"predictions": Sequence(Value("string"))}),
        )

    def _compute(self, predictions: list[list[str]], resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
        unknown = sorted({flag for flags in predictions for flag in flags} - set(FAILURES))
        if unknown:
            raise ValueError(f"Unknown failures {unknown}; the known ones are {', '.join(FAILURES)}.")
        marks = {kind: [float(kind in flags) for flags in predictions] for kind in FAILURES}
        marks["failed"] = [float(bool(flags)) for flags in predictions]
        shares = {kind: mean_figure(values, resamples=resamples, seed=seed) for kind, values in marks.items()}
        counts = {kind: int(sum(values)) for kind, values in marks.items()}
        return {**{kind: asdict(figure) for kind, figure in shares.items()}, "counts": counts}
