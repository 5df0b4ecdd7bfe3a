"""Speech from text: the pipeline, the release of checkpoints, command line and server; in `evaluation`, measurement."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .text_to_speech import TextToSpeechPipeline

__all__ = ["TextToSpeechPipeline", "load_pipeline"]


def load_pipeline(model: Any, **kwargs: Any) -> "TextToSpeechPipeline":
    """`transformers.pipeline` for a folder or a Hub name with this package's classes: no code of the folder is run."""
    from transformers import pipeline

    import e2e_tts.modeling  # noqa: F401 - makes the models known to the Auto classes

    from .text_to_speech import TASK, TextToSpeechPipeline

    return pipeline(TASK, model=model, pipeline_class=TextToSpeechPipeline, **kwargs)


def __getattr__(name: str) -> Any:
    # Scoring works where neither torch nor transformers is wanted, so the pipeline is imported when asked for.
    if name == "TextToSpeechPipeline":
        from .text_to_speech import TextToSpeechPipeline

        return TextToSpeechPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
