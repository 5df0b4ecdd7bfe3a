"""Speaker similarity: how close the vectors of two recordings' speakers are."""

from dataclasses import asdict
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Sequence, Value

from e2e_tts.pipelines.evaluation.figures import mean_figure
from e2e_tts.pipelines.evaluation.speaker_judges import cosine

_INPUTS = """
Args:
    predictions: speaker vectors of the speech, one an utterance, as a speaker judge's `embed` gives them; an empty one
        for speech that failed, which counts as 0.
    references: those of the speaker that it should sound like, of the same judge.
    resamples, seed: of the bootstrap.
Returns:
    similarity: the mean cosine, from -1 to 1.
"""


class SpeakerSimilarity(evaluate.Metric):
    """Mean cosine of pairs of speaker vectors, 0 where speech failed."""

    def _info(self) -> evaluate.MetricInfo:
        vectors = Sequence(Value("float32"))
        return evaluate.MetricInfo(
            description="Mean cosine of speaker vectors with a bootstrap interval over utterances.",
            citation="",
            inputs_description=_INPUTS,
            features=Features({"predictions": vectors, "references": vectors}),
        )

    def _compute(
        self, predictions: list[list[float]], references: list[list[float]], resamples: int = 2000, seed: int = 0
    ) -> dict[str, Any]:
        pairs = zip(predictions, references, strict=True)
        # An empty vector stands for failed speech, which may not be left out: that would reward failure.
        cosines = [cosine(np.asarray(first), np.asarray(second)) if len(first) else 0.0 for first, second in pairs]
        return {"similarity": asdict(mean_figure(cosines, resamples=resamples, seed=seed))}
