"""Saves what was made from a checkpoint as a checkpoint."""

from pathlib import Path

from transformers import AutoProcessor

from e2e_tts.modeling import E2ETTSModel
from e2e_tts.pipelines import TextToSpeechPipeline


def save_checkpoint(model: E2ETTSModel, source: str | Path, folder: str | Path) -> None:
    """Saves a model to a folder, with the processor and the pipeline of the folder that it was made from.

    A source without a processor, as training leaves it, gives a folder without one.
    """
    if (Path(source) / "processor_config.json").is_file():
        processor = AutoProcessor.from_pretrained(source)
        TextToSpeechPipeline(model=model, processor=processor, device=model.device).save_pretrained(folder)
    else:
        model.save_pretrained(folder)
