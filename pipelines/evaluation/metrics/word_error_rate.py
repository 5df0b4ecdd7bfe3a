"""Word error rate, or character error rate, of transcripts."""

from dataclasses import asdict
from typing import Any

import evaluate
from datasets import Features, Value

from e2e_tts.pipelines.evaluation.figures import mean_figure, ratio_figure
from e2e_tts.pipelines.evaluation.judges import load_normaliser
from e2e_tts.pipelines.evaluation.scoring import score_transcripts

_INPUTS = """
Args:
    predictions: transcripts, one an utterance.
    references: the texts that should have been said.
    normaliser: what both go through, by name (default "english"); "characters" and "seed-tts-zh" count characters.
    resamples, seed: of the bootstrap.
Returns:
    error_rate: all edits over all words of the texts. error_rate_by_utterance: the mean over utterances of edits over
    words, which is what Seed-TTS-Eval publishes. words, substitutions, deletions, insertions: counts.
"""


class WordErrorRate(evaluate.Metric):
    """Edits over words, once over all words and once averaged over utterances."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Word or character error rate with a bootstrap interval over utterances.",
            citation="",
            inputs_description=_INPUTS,
            features=Features({"predictions": Value("string"), "references": Value("string")}),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str],
        normaliser: str = "english",
        resamples: int = 2000,
        seed: int = 0,
    ) -> dict[str, Any]:
        rows = score_transcripts(references, predictions, normalise=load_normaliser(normaliser))
        draw = {"resamples": resamples, "seed": seed}
        edits, words = [row.edits for row in rows], [row.words for row in rows]
        rates = [row.edits / row.words for row in rows if row.words]
        return {
            "error_rate": asdict(ratio_figure(edits, words, **draw)),
            "error_rate_by_utterance": asdict(mean_figure(rates, **draw)),
            "words": sum(words),
            **{kind: sum(getattr(row, kind) for row in rows) for kind in ("substitutions", "deletions", "insertions")},
        }
