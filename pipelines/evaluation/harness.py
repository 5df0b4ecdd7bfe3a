"""The evaluation harness: `python -m e2e_tts.pipelines.evaluation --help`.

Reads a test set, has a checkpoint speak it (or takes any system's wavs), has judges listen, and writes report.json,
report.md and report.html. A killed evaluation continues when it is started again.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .audio_files import AUDIO_SUFFIXES, find_recording, list_recordings
from .failures import FailureLimits
from .html_report import Sources, write_html
from .judge_interface import Judge
from .judges import AUTO, hub_has, load_normaliser, load_quality_judge, load_recogniser, load_speaker_judge
from .judging import RECORDING, SPEECH, JudgedClip, Judges, SpeakerReferences, judge_clips
from .options import NONE, EvaluationOptions, parse_pairs, parse_settings
from .report import EvaluationReport
from .results_folder import (
    ResultsFolder,
    fingerprint,
    fingerprint_checkpoint,
    fingerprint_clip,
    fingerprint_files,
    write_text,
)
from .summary import Statistics, summarise
from .synthesis import Speaker, SynthesisSettings, synthesise
from .utterances import Columns, Utterance, UtteranceSet, read_dataset, read_list

logger = logging.getLogger(__name__)


def run_evaluation(
    options: EvaluationOptions, *, judges: Judges | None = None, load_speaker: Callable[[], Speaker] | None = None
) -> EvaluationReport:
    """Evaluates, writes the reports to `options.output_dir`, and returns what they say.

    `judges` and `load_speaker` replace what the options name: judges of your own, and another pipeline.

    Raises ValueError, ImportError or OSError, saying what to do, for options, test sets, judges and checkpoints that
    cannot be used, and for an output folder that holds an evaluation with other settings; RuntimeError if the
    recogniser refuses everything.
    """
    options.check()
    normalise = load_normaliser(options.normaliser_name)
    test_set = read_test_set(options)
    utterances = test_set.utterances
    if options.audio is not None and not Path(options.audio).is_dir():
        raise ValueError(f"--audio {options.audio} is not a folder of recordings.")
    judges = judges or load_judges(options)
    settings = {**options.settings(), "judges": judges.describe(), "test_set": fingerprint_utterances(utterances)}
    if options.model is not None and load_speaker is None:
        settings["model_version"] = model_version(options.model)
    if options.speaker_recordings is not None:
        settings["speaker_recordings_version"] = fingerprint_files(list_recordings(Path(options.speaker_recordings)))
    folder = ResultsFolder(options.output_dir, settings)

    limits = FailureLimits()
    references = None
    if judges.speaker is not None:
        recordings = None if options.speaker_recordings is None else Path(options.speaker_recordings)
        references = SpeakerReferences(judges.speaker, folder, recordings)
    spoken: dict[str, dict[str, Any]] = {}
    if options.model is not None:
        synthesis = SynthesisSettings(
            options.voice,
            options.continue_prompt,
            options.batch_size,
            options.seed,
            parse_settings(options.sampling, "sampling"),
        )
        load_speaker = load_speaker or (lambda: _load_speaker(options, synthesis))
        spoken = synthesise(utterances, folder, load_speaker, synthesis)
        clips = {SPEECH: [spoken_clip(folder, spoken[item.name]) for item in utterances]}
    else:
        clips = {SPEECH: [_folder_clip(Path(options.audio), item.name) for item in utterances]}
    if options.judge_recordings and any(item.reference for item in utterances):
        clips[RECORDING] = [JudgedClip(item.name, item.reference.source) for item in utterances if item.reference]

    by_name = {item.name: item for item in utterances}
    records = {
        condition: judge_clips(members, by_name, condition, folder, judges, references, limits)
        for condition, members in clips.items()
    }
    statistics = Statistics(options.normaliser_name, normalise, limits, options.resamples, options.bootstrap_seed)
    vectors = references.vectors if references else {}
    report = EvaluationReport(
        system=options.model or options.audio,
        settings=settings,
        judges=judges.describe(),
        judge_remarks=judges.remarks,
        conditions={
            condition: summarise(
                utterances,
                found,
                spoken if condition == SPEECH else {},
                vectors,
                test_set.reference_seconds if condition == SPEECH else {},
                statistics,
            )
            for condition, found in records.items()
        },
        refused=test_set.refused,
        remarked=test_set.remarks,
    )
    sources: Sources = {
        condition: {clip.name: clip.source for clip in members if clip.source is not None}
        for condition, members in clips.items()
    }
    report.write_json(folder.path / "report.json")
    write_text(folder.path / "report.md", report.to_markdown())
    write_html(report, sources, folder.path / "report.html", options.samples)
    return report


def read_test_set(options: EvaluationOptions) -> UtteranceSet:
    """The test set that the options name, read up to their limit. Raises ValueError if no row of it can be used."""
    if options.test_list is not None:
        result, place = read_list(options.test_list, options.limit), options.test_list
    else:
        columns = parse_pairs(options.columns, "columns")
        if unknown := sorted(columns.keys() - Columns.__dataclass_fields__.keys()):
            known = ", ".join(Columns.__dataclass_fields__)
            raise ValueError(f"--columns knows {known}, not {', '.join(unknown)}.")
        place = str(options.dataset)
        filters = parse_pairs(options.filters, "filters")
        result = read_dataset(place, options.split, Columns(**columns), filters, options.limit)
    if not result.utterances:
        reasons = "; ".join(f"{row.place}: {row.reason}" for row in result.refused[:3])
        raise ValueError(f"{place} has no row that can be used{': ' + reasons if reasons else ''}.")
    return result


def load_judges(options: EvaluationOptions) -> Judges:
    """The judges that the options name. An "auto" judge of similarity or quality whose package is missing is left out
    with a remark; everything else that is missing raises ImportError or OSError."""
    judges = Judges()
    if options.recogniser != NONE:
        extra = parse_settings(options.recogniser_options, "recogniser_options")
        judges.recogniser = load_recogniser(options.recogniser, language=options.language, **extra)
    roles: tuple[tuple[str, str, Callable[[str], Judge]], ...] = (
        ("speaker", options.speaker_judge, load_speaker_judge),
        ("quality", options.quality_judge, load_quality_judge),
    )
    for role, name, load in roles:
        if name == NONE:
            continue
        try:
            setattr(judges, role, load(name))
        except ImportError as error:
            if name != AUTO:
                raise
            judges.remarks.append(f"No {role} judge: {error}")
    return judges


def model_version(model: str) -> str:
    """Tells two states of a checkpoint apart: a hash of its configuration and weights, or its commit on the Hub.

    Raises ValueError for what is neither a folder with a config.json nor a model that the Hub gives.
    """
    if (Path(model) / "config.json").is_file():
        return fingerprint_checkpoint(model)
    if Path(model).exists() or not hub_has(model):
        raise ValueError(f"{model} is not a checkpoint: no folder with a config.json, and the Hub does not give it.")
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model, "config.json")).parent.name


def fingerprint_utterances(utterances: Sequence[Utterance]) -> str:
    """A hash of what is to be said: names, texts, and the contents of prompts and references."""
    parts = []
    for item in utterances:
        clips = [fingerprint_clip(clip.source) if clip else None for clip in (item.prompt, item.reference)]
        parts += [item.name, item.text, *(part or "" for part in (item.prompt_text, *clips))]
    return fingerprint(parts)


def _load_speaker(options: EvaluationOptions, settings: SynthesisSettings) -> Speaker:
    from e2e_tts.pipelines import load_pipeline

    # Given to the constructor, a voice or setting that the model does not have is refused before anything is spoken.
    # Figures are the model's, without the mark of cloned speech, unless --sampling watermark=true asks for it.
    chosen = {"watermark": False} | settings.sampling | ({"voice": settings.voice} if settings.voice else {})
    try:
        return load_pipeline(options.model, device=options.device, **chosen)
    except TypeError as error:
        raise ValueError(f"--sampling: {error}") from error


def spoken_clip(folder: ResultsFolder, record: dict[str, Any]) -> JudgedClip:
    """What `synthesise` made of an utterance, for the judges."""
    source = folder.path / record["file"] if record["file"] else None
    return JudgedClip(record["name"], source, record["error"])


def _folder_clip(folder: Path, name: str) -> JudgedClip:
    path = find_recording(folder, name)
    return JudgedClip(name, path, f"{folder} has no file {name} ({', '.join(AUDIO_SUFFIXES)} tried)")


def main(arguments: Sequence[str] | None = None, prog: str = "python -m e2e_tts.pipelines.evaluation") -> int:
    """The command line. Returns the exit code: 0, or 1 after a one-line error."""
    from transformers import HfArgumentParser

    parser = HfArgumentParser(EvaluationOptions, prog=prog, description=EvaluationOptions.__doc__)
    (options,) = parser.parse_args_into_dataclasses(None if arguments is None else list(arguments))
    try:
        report = run_evaluation(options)
    except (ValueError, RuntimeError, ImportError, OSError, TypeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    print(report.to_markdown())
    print(f"reports: {Path(options.output_dir) / 'report.html'}, report.md, report.json", file=sys.stderr)
    return 0
