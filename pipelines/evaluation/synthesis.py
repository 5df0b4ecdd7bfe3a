"""Speech for a test set: batch by batch through the text-to-speech pipeline, continuing where a killed run stopped."""

import itertools
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from .audio_files import read_recording, write_speech
from .results_folder import ResultsFolder
from .utterances import Utterance

logger = logging.getLogger(__name__)

RECORDS = "synthesis"
AUDIO_FOLDER = "audio"

Speaker = Callable[..., list[dict[str, Any]]]
"""The text-to-speech pipeline, or anything that is called like it."""


@dataclass(frozen=True)
class SynthesisSettings:
    """How speech is made. A named `voice` speaks everything; without one the prompt of each utterance does.

    With `continue_prompt` the transcript of the prompt is given too, and the speech continues it. `sampling` holds
    further settings of the pipeline, such as temperature.
    """

    voice: str | None = None
    continue_prompt: bool = False
    batch_size: int = 4
    seed: int = 0
    sampling: dict[str, float | int] = field(default_factory=dict)


def batches(utterances: Sequence[Utterance], settings: SynthesisSettings) -> Iterator[list[tuple[int, Utterance]]]:
    """Utterances with their positions, neighbours that share a voice together, at most `batch_size` of them."""

    def voice(numbered: tuple[int, Utterance]) -> tuple[str | None, str | None]:
        if settings.voice is not None or numbered[1].prompt is None:
            return None, None
        return numbered[1].prompt.label, numbered[1].prompt_text if settings.continue_prompt else None

    for _, group in itertools.groupby(enumerate(utterances), key=voice):
        members = list(group)
        for start in range(0, len(members), settings.batch_size):
            yield members[start : start + settings.batch_size]


def synthesise(
    utterances: Sequence[Utterance],
    folder: ResultsFolder,
    load_speaker: Callable[[], Speaker],
    settings: SynthesisSettings,
) -> dict[str, dict[str, Any]]:
    """Speaks what is not spoken yet, and returns a record an utterance.

    A record has name, file (relative to the folder), seconds, spent (seconds of synthesis), and error. Speech that
    fails is an error of that utterance. A batch of which a part is missing is spoken anew as a whole, since speech
    depends on the batch: a continued run gives what an uninterrupted one gives. The pipeline is loaded if needed.
    """
    done = folder.records(RECORDS)
    waiting = [batch for batch in batches(utterances, settings) if any(item.name not in done for _, item in batch)]
    if not waiting:
        return done
    (folder.path / AUDIO_FOLDER).mkdir(exist_ok=True)
    speaker = load_speaker()
    with tqdm(desc="synthesis", total=len(utterances), initial=len(utterances) - sum(map(len, waiting))) as progress:
        for batch in waiting:
            records = _speak(batch, folder.path, speaker, settings)
            folder.append(RECORDS, records)
            done |= {record["name"]: record for record in records}
            progress.update(len(batch))
    return done


def _speak(
    batch: list[tuple[int, Utterance]], folder: Path, speaker: Speaker, settings: SynthesisSettings
) -> list[dict[str, Any]]:
    arguments = {"seed": settings.seed + batch[0][0], **settings.sampling, **_voice_arguments(batch[0][1], settings)}
    start = time.perf_counter()
    try:
        speeches = speaker([item.text for _, item in batch], batch_size=len(batch), **arguments)
    except (ValueError, RuntimeError) as error:
        if len(batch) > 1:  # one text that cannot be spoken must not take the others with it
            return [record for single in batch for record in _speak([single], folder, speaker, settings)]
        logger.warning("%s was not spoken: %s", batch[0][1].name, error)
        return [_record(batch[0][1], error=" ".join(str(error).split()))]
    spent = time.perf_counter() - start
    total = sum(len(speech["audio"]) / speech["sampling_rate"] for speech in speeches)
    records = []
    for (position, item), speech in zip(batch, speeches, strict=True):
        file = f"{AUDIO_FOLDER}/{position:05d}-{re.sub(r'[^0-9A-Za-z._-]+', '_', item.name)[:80]}.wav"
        write_speech(folder / file, np.asarray(speech["audio"]), speech["sampling_rate"])
        seconds = len(speech["audio"]) / speech["sampling_rate"]
        records.append(_record(item, file=file, seconds=seconds, spent=spent * seconds / total))
    return records


def _voice_arguments(utterance: Utterance, settings: SynthesisSettings) -> dict[str, Any]:
    if settings.voice is not None:
        return {"voice": settings.voice}
    if utterance.prompt is None:
        return {}
    waveform, sampling_rate = read_recording(utterance.prompt.source)
    arguments: dict[str, Any] = {"reference_audio": {"array": waveform, "sampling_rate": sampling_rate}}
    if settings.continue_prompt and utterance.prompt_text:
        arguments["reference_text"] = utterance.prompt_text
    return arguments


def _record(
    utterance: Utterance,
    file: str | None = None,
    seconds: float | None = None,
    spent: float | None = None,
    error: str | None = None,
) -> dict[str, Any]:
    return {"name": utterance.name, "file": file, "seconds": seconds, "spent": spent, "error": error}
