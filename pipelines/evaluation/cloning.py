"""How well voices are cloned: whether a clone sounds like its own speaker rather than like anybody.

python -m e2e_tts.pipelines.evaluation.cloning --model model_cards/small-en --clips runs/data/annotated --output DIR

Of each speaker one clip (the longest) is the reference, and sentences of other clips are spoken in its voice. A speaker
judge compares every clone with all references: similarity to the own one less the mean similarity to the others', and
how often the own one is the most similar. The same for the recordings of the same sentences says what can be reached.
With --texts, voices speak other sentences than their speakers: cloning across languages. With --recogniser, word error
rates of clones and recordings as well.
Intervals are 95 %, bootstrap over speakers, since clones of one speaker share a reference.

--clips is anything that e2e_tts.trainers.data.prepare reads: a folder with a metadata.csv (file, text, speaker), a
prepared data set, a corpus on the Hub. Where it has splits, speakers that are in other splits than --split too are left
out: the model may have heard them. Speech is measured without watermark. A killed study goes on with the same command.
Writes the wavs, report.json and report.md.
"""

import argparse
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from e2e_tts.trainers.command_line import CommandParser
from e2e_tts.trainers.data.corpora import CorpusOptions, open_corpora
from e2e_tts.trainers.data.corpus_files import read_sentences
from e2e_tts.trainers.data.row_checks import RawRow
from e2e_tts.trainers.data.speech_signal import read_recording as read_part

from .audio_files import read_recording
from .failures import FailureLimits
from .harness import fingerprint_utterances, model_version, spoken_clip
from .judge_interface import Recogniser, SpeakerJudge
from .judges import AUTO, load_normaliser, load_recogniser, load_speaker_judge
from .judging import RECORDING, SPEECH, JudgedClip, Judges, SpeakerReferences, judge_clips
from .markdown import markdown_table
from .normalisers import Normaliser
from .options import NONE, STUDY_NORMALISERS, add_language_options, choose_normaliser, parse_settings
from .paired_bootstrap import Interval, Measurements, interval, paired_difference
from .report import error_rate_unit
from .results_folder import ResultsFolder, write_text
from .scoring import score_transcripts
from .speaker_judges import cosine
from .synthesis import Speaker, SynthesisSettings, synthesise
from .utterances import Clip, Utterance

MEASURES = {
    "own": "to own reference",
    "others": "to others' references",
    "difference": "own less others'",
    "identified": "own the most similar, share",
}
LABELS = {SPEECH: "clones", RECORDING: "recordings of the same sentences"}


@dataclass(frozen=True)
class ClonedSentence:
    """A sentence of a speaker, with what one rendering of it (clone or recording) is like, by measure."""

    name: str
    speaker: str
    measures: dict[str, float]


def read_speakers(
    source: str, split: str, speakers: int, sentences: int, texts: Sequence[str] = ()
) -> dict[str, list[Utterance]]:
    """What to speak, by speaker: `sentences` utterances each, with the speaker's longest clip as their prompt and the
    recording of the sentence as their reference. Speakers and sentences in the order of their names.

    texts: to be spoken in turn instead of what the recordings say.

    Raises ValueError, saying how many there are, for fewer than two speakers or fewer than asked for, and OSError or
    ValueError for a source that cannot be read.
    """
    if speakers < 2 or sentences < 1:
        raise ValueError(f"At least 2 speakers and 1 sentence are needed, got {speakers} and {sentences}.")
    wanted: dict[str, list[RawRow]] = {}
    elsewhere: set[str] = set()
    for corpus in open_corpora(source, CorpusOptions()):
        for row in corpus:
            if not row.speaker:
                continue
            if row.split not in (None, split):
                elsewhere.add(row.speaker)
            elif row.audio is not None and not row.unaccepted and any(character.isalnum() for character in row.text):
                wanted.setdefault(row.speaker, []).append(row)
    fitting = {name: rows for name, rows in sorted(wanted.items()) if name not in elsewhere and len(rows) > sentences}
    if len(fitting) < speakers:
        raise ValueError(
            f"{source} has {len(fitting)} speakers with {sentences + 1} clips or more who are in the split {split!r} "
            f"alone, not the {speakers} asked for; ask for fewer speakers or sentences."
        )
    chosen = {name: _utterances(name, fitting[name], sentences) for name in list(fitting)[:speakers]}
    if not texts:
        return chosen
    turn = cycle(texts)
    return {name: [replace(item, text=next(turn)) for item in items] for name, items in chosen.items()}


def _utterances(speaker: str, rows: Sequence[RawRow], sentences: int) -> list[Utterance]:
    sources = {row.id: _source(row) for row in rows}
    longest = max(sources, key=lambda name: (_seconds(sources[name]), name))
    prompt = Clip(f"the reference of {speaker}", sources[longest])
    chosen = sorted((row for row in rows if row.id != longest), key=lambda row: row.id)[:sentences]
    return [
        Utterance(row.id, row.text, prompt, reference=Clip(f"the recording {row.id}", sources[row.id]))
        for row in chosen
    ]


def _source(row: RawRow) -> Path | bytes:
    """The utterance's own file, or its bytes; where it is a part of a longer recording, the bytes of that part."""
    if isinstance(row.audio, str) and "://" in row.audio:
        raise ValueError(f"{row.id} lies at {row.audio}: prepare the corpus first (e2e_tts.trainers.data.prepare).")
    if not row.start_seconds and row.seconds is None:
        return row.audio if isinstance(row.audio, bytes) else Path(row.audio)
    try:
        samples, rate = read_part(row.audio, row.start_seconds, row.seconds)
    except (OSError, RuntimeError) as error:  # soundfile's errors are RuntimeErrors
        raise ValueError(f"{row.id} cannot be read as audio: {error}") from error
    part = io.BytesIO()
    soundfile.write(part, samples, rate, format="FLAC")
    return part.getvalue()


def _seconds(source: Path | bytes) -> float:
    waveform, rate = read_recording(source)
    return len(waveform) / rate


def compare(
    speakers: dict[str, list[Utterance]], records: dict[str, dict[str, Any]], references: dict[str, np.ndarray]
) -> list[ClonedSentence]:
    """The sentences that the judge could score. records: of `judge_clips`; references: vectors by clip label.

    A speaker whose reference the judge could not use is in no comparison, neither as the own one nor as another.
    """
    labels = {speaker: items[0].prompt.label for speaker, items in speakers.items()}
    own_labels = {speaker: label for speaker, label in labels.items() if label in references}
    if len(own_labels) < 2:
        return []
    scored = []
    for speaker in own_labels:
        for item in speakers[speaker]:
            vector = records[item.name]["speaker_vector"]
            if vector is None:
                continue
            cosines = {other: cosine(np.array(vector), references[label]) for other, label in own_labels.items()}
            own = cosines.pop(speaker)
            others = float(np.mean(list(cosines.values())))
            measures = {"own": own, "others": others, "difference": own - others}
            measures["identified"] = float(own > max(cosines.values()))
            scored.append(ClonedSentence(item.name, speaker, measures))
    return scored


def _measurements(sentences: Sequence[ClonedSentence], measure: str) -> Measurements:
    """A mean over sentences whose unit of resampling is the speaker."""
    return Measurements.collect((0, item.speaker, item.measures[measure], 1.0) for item in sentences)


@dataclass
class CloningReport:
    """figures: by rendering (speech, recording) and measure; gap: speech less recording, paired, by measure.

    failed: why a clone is in no figure, by name of its sentence; its recording is then in none either. words: error
    rates by rendering, where a recogniser was asked; clones that failed count with all their words.
    """

    model: str
    settings: dict[str, Any]
    speakers: list[str]
    figures: dict[str, dict[str, Interval]]
    gap: dict[str, Interval]
    by_speaker: dict[str, dict[str, float]]
    failed: dict[str, str]
    words: dict[str, Interval] = field(default_factory=dict)

    def to_markdown(self) -> str:
        def cell(figure: Interval, sign: str = "") -> str:
            return f"{figure.value:{sign}.3f} [{figure.low:{sign}.3f}, {figure.high:{sign}.3f}]"

        rows = [
            [label, *(cell(self.figures[condition][measure]) for measure in MEASURES)]
            for condition, label in LABELS.items()
        ]
        rows.append(["clones less recordings", *(cell(self.gap[measure], "+") for measure in MEASURES)])
        judge = self.settings["judge"]
        lines = [
            f"{self.model}: {len(self.speakers)} speakers, judge {judge['name']} ({judge['version']}).",
            "",
            *markdown_table(["similarity", *MEASURES.values()], rows),
            "",
            "Intervals: 95 %, bootstrap over speakers.",
            "",
            *markdown_table(
                ["speaker", "clones: own less others'", "recordings: own less others'"],
                [[name, *(f"{values[kind]:.3f}" for kind in (SPEECH, RECORDING))] for name, values in self._rows()],
            ),
        ]
        if self.words:
            unit, heard = error_rate_unit(self.settings["normaliser"]), self.settings["recogniser"]
            rates = [
                [label, f"{100 * rate.value:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"]
                for condition, label in LABELS.items()
                if (rate := self.words.get(condition))
            ]
            lines += ["", *markdown_table([f"{heard['name']} ({heard['version']})", f"{unit} %"], rates)]
        if self.failed:
            lines += ["", "In no figure:", "", *(f"- {name}: {reason}" for name, reason in self.failed.items())]
        return "\n".join(lines) + "\n"

    def _rows(self) -> list[tuple[str, dict[str, float]]]:
        return sorted(self.by_speaker.items(), key=lambda item: item[1][SPEECH])


def make_report(
    model: str,
    settings: dict[str, Any],
    speakers: dict[str, list[Utterance]],
    sentences: dict[str, list[ClonedSentence]],
    failed: dict[str, str],
    resamples: int = 2000,
    seed: int = 0,
    words: dict[str, Measurements] | None = None,
) -> CloningReport:
    """Sums scored sentences up, those that have both a clone and a recording. Raises ValueError if none has."""
    both = {item.name for item in sentences[SPEECH]} & {item.name for item in sentences[RECORDING]}
    if not both:
        raise ValueError(f"Nothing could be compared: {'; '.join(list(failed.values())[:3])}.")
    draw = {"resamples": resamples, "seed": seed}
    measured = {
        condition: {
            measure: _measurements([item for item in members if item.name in both], measure) for measure in MEASURES
        }
        for condition, members in sentences.items()
    }
    differences = {condition: members["difference"] for condition, members in measured.items()}
    names = differences[SPEECH].sentences
    means = {condition: table.numerators[0] / table.denominators[0] for condition, table in differences.items()}
    return CloningReport(
        model,
        settings,
        list(speakers),
        {
            condition: {measure: interval(values, **draw) for measure, values in members.items()}
            for condition, members in measured.items()
        },
        {
            measure: paired_difference(measured[SPEECH][measure], measured[RECORDING][measure], **draw)
            for measure in MEASURES
        },
        {
            name: {condition: float(values[index]) for condition, values in means.items()}
            for index, name in enumerate(names)
        },
        failed,
        {condition: interval(values, **draw) for condition, values in (words or {}).items()},
    )


def word_errors(
    speakers: dict[str, list[Utterance]], records: dict[str, dict[str, Any]], normalise: Normaliser
) -> Measurements:
    """Edits over words, of all renderings that the recogniser did not refuse; the unit of resampling is the speaker."""
    counted = []
    for speaker, items in speakers.items():
        heard = [item for item in items if records[item.name]["transcript"] is not None]
        transcripts = [records[item.name]["transcript"] for item in heard]
        scores = score_transcripts([item.text for item in heard], transcripts, normalise=normalise)
        counted += [(0, speaker, float(score.edits), float(score.words)) for score in scores]
    return Measurements.collect(counted)


def run_study(
    model: str,
    clips: str,
    output: str | Path,
    *,
    split: str = "test",
    speakers: int = 10,
    sentences: int = 2,
    texts: Sequence[str] = (),
    judge: str | SpeakerJudge = AUTO,
    recogniser: str | Recogniser = NONE,
    language: str = "en",
    normaliser: str | None = None,
    sampling: dict[str, Any] | None = None,
    seed: int = 0,
    device: str = "cpu",
    load_speaker: Callable[[], Speaker] | None = None,
    resamples: int = 2000,
) -> CloningReport:
    """Speaks, judges and writes the reports. load_speaker: another pipeline than the checkpoint's.

    recogniser, language, normaliser: for word error rates; of recordings where they say the sentences themselves.

    Raises what `read_speakers`, `load_speaker_judge`, `load_recogniser`, `ResultsFolder` and the pipeline raise.
    """
    people = read_speakers(clips, split, speakers, sentences, texts)
    version = None if load_speaker else model_version(model)  # before a judge is loaded: a wrong folder is told at once
    judge = load_speaker_judge(judge) if isinstance(judge, str) else judge
    judges = Judges(speaker=judge)
    if recogniser != NONE:
        normaliser = choose_normaliser(language, normaliser, STUDY_NORMALISERS)
        normalise = load_normaliser(normaliser)
        named = isinstance(recogniser, str)
        judges.recogniser = load_recogniser(recogniser, language=language) if named else recogniser
    utterances = [item for items in people.values() for item in items]
    synthesis = SynthesisSettings(batch_size=1, seed=seed, sampling=sampling or {})
    settings = {
        "model": model,
        "model_version": version,
        "test_set": fingerprint_utterances(utterances),
        "judge": {"name": judge.name, "version": judge.version},
        "seed": seed,
        "sampling": synthesis.sampling,
    }
    if judges.recogniser:
        settings |= {"recogniser": judges.describe()["recogniser"], "normaliser": normaliser}
    folder = ResultsFolder(output, settings)
    spoken = synthesise(utterances, folder, load_speaker or (lambda: _load(model, device, synthesis)), synthesis)
    renderings = {
        SPEECH: [spoken_clip(folder, spoken[item.name]) for item in utterances],
        RECORDING: [JudgedClip(item.name, item.reference.source) for item in utterances],
    }
    references = SpeakerReferences(judge, folder)
    by_name = {item.name: item for item in utterances}
    records = {
        condition: judge_clips(members, by_name, condition, folder, judges, references, FailureLimits())
        for condition, members in renderings.items()
    }
    compared = {condition: compare(people, found, references.vectors) for condition, found in records.items()}
    failed = {
        f"{name}, {condition}": record["error"]
        or record["refusals"].get("speaker")
        or record.get("voice")
        or "it is silent"
        for condition, found in records.items()
        for name, record in found.items()
        if record["speaker_vector"] is None
    }
    for items in people.values():
        if (label := items[0].prompt.label) not in references.vectors:
            failed[label] = "the judge cannot use this clip, so nothing of its speaker is compared"
    said = [] if not judges.recogniser else [SPEECH] if texts else [SPEECH, RECORDING]
    words = {condition: word_errors(people, records[condition], normalise) for condition in said}
    report = make_report(model, settings, people, compared, failed, resamples, words=words)
    write_text(folder.path / "report.json", json.dumps(asdict(report), indent=1, ensure_ascii=False) + "\n")
    write_text(folder.path / "report.md", report.to_markdown())
    return report


def _load(model: str, device: str, settings: SynthesisSettings) -> Speaker:
    from e2e_tts.pipelines import load_pipeline

    return load_pipeline(model, device=device, **{"watermark": False} | settings.sampling)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        prog="python -m e2e_tts.pipelines.evaluation.cloning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a complete checkpoint: a folder or owner/model")
    parser.add_argument("--clips", required=True, help="recordings with texts and speakers, see above")
    parser.add_argument("--split", default="test")
    parser.add_argument("--speakers", type=int, default=10)
    parser.add_argument("--sentences", type=int, default=2, help="of each speaker")
    parser.add_argument(
        "--texts", type=Path, help="file of sentences, one a line, to speak instead: for clips in another language"
    )
    parser.add_argument("--judge", default=AUTO, help="speaker judge: a name, owner/model, a local folder or auto")
    parser.add_argument("--recogniser", default=NONE, help="for word error rates: a name, owner/model, a local folder")
    add_language_options(parser)
    parser.add_argument(
        "--sampling", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the pipeline: num_steps=16"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the synthesis")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resamples", type=int, default=2000, help="of the bootstrap")
    parser.add_argument("--output", type=Path, required=True, help="folder for all that is written")
    options = vars(parser.parse_args(arguments))
    try:
        options["texts"] = read_sentences(options["texts"]) if options["texts"] else ()
        options["sampling"] = parse_settings(options["sampling"], "sampling")
        report = run_study(options.pop("model"), options.pop("clips"), options.pop("output"), **options)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    print(report.to_markdown())


if __name__ == "__main__":
    main()
