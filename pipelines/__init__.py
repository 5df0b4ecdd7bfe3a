"""Speech from text: the pipeline, the release of checkpoints, command line and server; in `evaluation`, measurement."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .text_to_speech import TextToSpeechPipeline

__all__ = ["TextToSpeechPipeline", "load_pipeline"]


def load_pipeline(model: Any, **kwargs: Any) -> "TextToSpeechPipeline":
    """`transformers.pipeline` for a folder or a Hub name with this package's classes: no code of the folder is run.

    Raises ValueError, saying what to do, for a folder that is not there, a folder without a processor and a device that
    is not there.
    """
    import torch
    from transformers import pipeline

    import e2e_tts.modeling  # noqa: F401 - makes the models known to the Auto classes

    from .text_to_speech import TASK, TextToSpeechPipeline

    folder = Path(str(model))
    has_processor = "processor" in kwargs or (folder / "processor_config.json").is_file()
    if (folder / "config.json").is_file() and not has_processor:
        raise ValueError(
            f"{folder} holds a model without its processor, as training leaves it. Make a folder that speaks of it: "
            f"python -m e2e_tts.pipelines.release --model {folder} --output RELEASE. If it is the folder of one "
            "module, give the folder above it."
        )
    if isinstance(device := kwargs.get("device"), str):
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # the latter from a PyTorch that was built without it
            raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    with missing_folders_named(model):
        return pipeline(TASK, model=model, pipeline_class=TextToSpeechPipeline, **kwargs)


@contextmanager
def missing_folders_named(model: Any) -> Iterator[None]:
    """Raises ValueError for an OSError about a model that is no folder: a path with a mistake in it looks like a name
    on the Hub, and transformers speaks of that alone."""
    try:
        yield
    except OSError as error:
        if Path(str(model)).exists():
            raise
        reason = str(error).strip().splitlines()[0]
        message = f"There is no folder {model}, and the Hub does not give a model of this name: {reason}"
        raise ValueError(message) from error


def __getattr__(name: str) -> Any:
    # Scoring works where neither torch nor transformers is wanted, so the pipeline is imported when asked for.
    if name == "TextToSpeechPipeline":
        from .text_to_speech import TextToSpeechPipeline

        return TextToSpeechPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
