"""What the judges say of every clip: transcript, speaker vector, opinion scores; clip by clip, so that it continues."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from .audio_files import AUDIO_SUFFIXES, list_recordings, read_recording
from .failures import FailureLimits, loudness
from .judge_interface import Judge, NoSpeechError, QualityJudge, Recogniser, SpeakerJudge
from .results_folder import ResultsFolder, fingerprint_clip
from .utterances import Clip, Utterance

logger = logging.getLogger(__name__)

SPEECH, RECORDING = "speech", "recording"
CONDITIONS = (SPEECH, RECORDING)
"""What is judged: the speech of the system, and, for the judges' own error, the recordings of the same texts."""
NO_VOICE = "no voice heard"
RECORDS = {SPEECH: "judged_speech", RECORDING: "judged_recordings"}
VECTORS = "speakers"


@dataclass
class Judges:
    """The judges of an evaluation. A missing one leaves its figures out; `remarks` says why it is missing."""

    recogniser: Recogniser | None = None
    speaker: SpeakerJudge | None = None
    quality: QualityJudge | None = None
    remarks: list[str] = field(default_factory=list)

    def describe(self) -> dict[str, dict[str, str]]:
        """Name and version of each judge by its role."""
        roles: dict[str, Judge | None] = {
            "recogniser": self.recogniser,
            "speaker": self.speaker,
            "quality": self.quality,
        }
        return {role: {"name": judge.name, "version": judge.version} for role, judge in roles.items() if judge}


@dataclass(frozen=True)
class JudgedClip:
    """A clip of one utterance: where it is, or why there is none."""

    name: str
    source: Path | bytes | None
    problem: str | None = None


class SpeakerReferences:
    """Vectors of the speakers that the speech should sound like, each computed once and kept in the results folder.

    An utterance's speaker is the one of `recordings` (a folder) if given, else of its prompt, else of its reference
    recording; that last is no fair question for the recordings themselves, so they are then not compared.
    """

    def __init__(self, judge: SpeakerJudge, folder: ResultsFolder, recordings: Path | None = None) -> None:
        self.judge, self.folder = judge, folder
        self.vectors = {name: np.array(record["vector"]) for name, record in folder.records(VECTORS).items()}
        self.common = None if recordings is None else f"recordings in {recordings}"
        if self.common and self.common not in self.vectors:
            self._add(self.common, self._mean(recordings))

    def label(self, utterance: Utterance, condition: str) -> str | None:
        """Names the vector to compare with, computing it if needed; None if there is nothing to compare with.

        Raises ValueError if the speaker judge refuses the clip.
        """
        if self.common:
            return self.common
        clip = self._clip(utterance, condition)
        if clip is None:
            return None
        if clip.label not in self.vectors:
            self._add(clip.label, self.judge.embed(*read_recording(clip.source)))
        return clip.label

    def has(self, utterance: Utterance, condition: str) -> bool:
        """Whether there is a speaker to compare with."""
        return self.common is not None or self._clip(utterance, condition) is not None

    @staticmethod
    def _clip(utterance: Utterance, condition: str) -> Clip | None:
        return utterance.prompt or (utterance.reference if condition == SPEECH else None)

    def _add(self, label: str, vector: np.ndarray) -> None:
        record = {"name": label, "vector": _rounded(vector)}
        self.folder.append(VECTORS, [record])
        self.vectors[label] = np.array(record["vector"])  # as a continued run will read it

    def _mean(self, recordings: Path) -> np.ndarray:
        """The direction of the mean vector of a folder's recordings. Raises ValueError if none of them has speech."""
        vectors = []
        for path in list_recordings(recordings):
            try:
                vectors.append(self.judge.embed(*read_recording(path)))
            except ValueError as error:
                logger.warning("Left out of the speaker's recordings: %s: %s", path.name, error)
        if not vectors:
            raise ValueError(f"{recordings} has no recording of the speaker ({', '.join(AUDIO_SUFFIXES)}).")
        mean = np.mean(vectors, axis=0)
        return mean / np.linalg.norm(mean)


def judge_clips(
    clips: Sequence[JudgedClip],
    utterances: dict[str, Utterance],
    condition: str,
    folder: ResultsFolder,
    judges: Judges,
    references: SpeakerReferences | None,
    limits: FailureLimits,
) -> dict[str, dict[str, Any]]:
    """Judges what is not judged yet, was refused, or is another recording now; returns a record a clip by the name of
    its utterance.

    A record has name, clip (a hash of the recording), seconds, peak, rms, transcript, speaker_vector, speaker (the
    vector to compare with, by label), quality, error (why there is nothing to judge), voice (`NO_VOICE` of speech in
    which the speaker judge hears none) and refusals (what a judge could not score, by role). A silent clip is not shown
    to the recogniser, which would invent words for it: its transcript is empty, as is that of a clip that is missing or
    cannot be read: leaving it out would reward failure. For the same reason such a clip, and speech without a voice,
    has a speaker to be compared with, though no vector. A recording without a voice is refused: that is no fault of a
    system. Raises RuntimeError if the recogniser refuses every clip, since that is no fault of the speech.
    """
    done = folder.records(RECORDS[condition])
    hashes = {clip.name: fingerprint_clip(clip.source) for clip in clips}

    def is_judged(clip: JudgedClip) -> bool:
        record = done.get(clip.name)
        if record is None or record["refusals"] or record["clip"] != hashes[clip.name]:
            return False
        # Records of an earlier version do not say whom failed speech should have resembled.
        return record["speaker"] is not None or not (references and references.has(utterances[clip.name], condition))

    waiting = [clip for clip in clips if not is_judged(clip)]
    for clip in tqdm(waiting, desc=f"judging {condition}s" if condition == RECORDING else "judging speech"):
        record = _judge(clip, utterances[clip.name], condition, judges, references, limits)
        record["clip"] = hashes[clip.name]
        folder.append(RECORDS[condition], [record])
        done[clip.name] = record
    if clips and judges.recogniser and all("recogniser" in done[clip.name]["refusals"] for clip in clips):
        reason = done[clips[0].name]["refusals"]["recogniser"]
        raise RuntimeError(f"The recogniser {judges.recogniser.name} could score no {condition} at all: {reason}")
    return done


def _judge(
    clip: JudgedClip,
    utterance: Utterance,
    condition: str,
    judges: Judges,
    references: SpeakerReferences | None,
    limits: FailureLimits,
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "name": clip.name,
        **dict.fromkeys(("seconds", "peak", "rms", "transcript", "speaker_vector", "speaker", "quality")),
        **dict.fromkeys(("error", "voice")),
        "refusals": {},
    }

    def ask(role: str, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except Exception as error:  # judges are models of others: whatever one raises is its answer for this clip
            logger.warning("The %s could not score %s: %s", role, clip.name, error)
            record["refusals"][role] = " ".join(f"{type(error).__name__}: {error}".split())
            return None

    if judges.speaker and references:
        record["speaker"] = ask("speaker", lambda: references.label(utterance, condition))
    try:
        if clip.source is None:
            raise ValueError(clip.problem)
        waveform, sampling_rate = read_recording(clip.source)
    except ValueError as error:
        return record | {"error": str(error), "transcript": "" if judges.recogniser else None}
    record["seconds"] = waveform.size / sampling_rate
    record["peak"], record["rms"] = loudness(waveform)
    silent = limits.is_silent(record["peak"], record["rms"])
    if judges.recogniser:
        transcribe = judges.recogniser.transcribe
        record["transcript"] = "" if silent else ask("recogniser", lambda: transcribe(waveform, sampling_rate))
    if judges.quality and not silent:
        score = judges.quality.score
        record["quality"] = ask("quality", lambda: _finite(score(waveform, sampling_rate)))

    def embed() -> list[float] | None:
        try:
            return _rounded(judges.speaker.embed(waveform, sampling_rate))
        except NoSpeechError:
            if condition != SPEECH:
                raise
            record["voice"] = NO_VOICE
            return None

    if record["speaker"] is not None and not silent:
        record["speaker_vector"] = ask("speaker", embed)
    return record


def _finite(scores: dict[str, float]) -> dict[str, float]:
    if odd := [scale for scale, value in scores.items() if not math.isfinite(value)]:
        raise ValueError(f"the scores {', '.join(odd)} are not finite")
    return scores


def _rounded(vector: Iterable[float]) -> list[float]:
    values = [round(float(value), 5) for value in vector]
    if not np.isfinite(values).all():
        raise ValueError("the speaker vector is not finite")
    return values
