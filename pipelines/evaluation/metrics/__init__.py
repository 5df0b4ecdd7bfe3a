"""The figures of the evaluation as `evaluate.Metric` classes, one a file, so that `evaluate.load(file)` needs no Hub.

Each turns what judges measured on single utterances into {name: {"value", "low", "high", "utterances"}}: the value, the
ends of its 95 % bootstrap interval over utterances, and their number. `compute` takes `resamples` and `seed`.
"""

from .duration_ratio import DurationRatio
from .mean_opinion_score import MeanOpinionScore
from .real_time_factor import RealTimeFactor
from .speaker_similarity import SpeakerSimilarity
from .speech_failures import SpeechFailures
from .word_error_rate import WordErrorRate

__all__ = [
    "DurationRatio",
    "MeanOpinionScore",
    "RealTimeFactor",
    "SpeakerSimilarity",
    "SpeechFailures",
    "WordErrorRate",
]
