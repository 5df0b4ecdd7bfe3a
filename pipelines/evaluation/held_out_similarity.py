"""Speaker similarity of held-out sentences that e2e_tts.pipelines.evaluation.held_out_speech has spoken.

python -m e2e_tts.pipelines.evaluation.held_out_similarity --audio DIR/speech --data runs/data/annotated --split dev \\
    --judge resemblyzer --output DIR/speech_similarity.json

Each wav is compared with the mean vector of other clips of its speaker (of any split, at most five); where the speaker
has no other clip, with the sentence's own recording. Give the same data options as to held_out_speech. A clip that is
missing, or in which the judge hears no speech, counts as 0: leaving it out would reward failure. --references is a
folder that keeps the vectors of the recordings for the next folder of wavs.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets, load_from_disk

from e2e_tts.trainers.command_line import CommandParser

from .audio_files import read_recording
from .figures import ratio_figure
from .held_out import select_rows, speakers_of
from .judge_interface import SpeakerJudge
from .judges import AUTO, load_speaker_judge
from .results_folder import ResultsFolder, fingerprint, write_text
from .scoring import read_clip
from .speaker_judges import cosine

logger = logging.getLogger(__name__)

REFERENCE_CLIPS = 5
VECTORS = "vectors"


class SpeakerVectors:
    """Vectors of the recordings of annotated data sets, each computed once and kept in a folder.

    Raises ValueError for a folder with vectors of another judge or other data.
    """

    def __init__(self, judge: SpeakerJudge, data: Sequence[str], folder: Path) -> None:
        self.judge = judge
        self.pool = concatenate_datasets(
            [load_from_disk(place).select_columns(["id", "source", "speaker", "audio"]) for place in data]
        )
        ids = self.pool["id"][:]
        self.rows = {name: index for index, name in enumerate(ids)}
        # Equal names in two sources are two speakers.
        self.clips: dict[tuple[str, str], list[str]] = {}
        for name, speaker in zip(ids, speakers_of(self.pool), strict=True):
            self.clips.setdefault(speaker, []).append(name)
        described = {"name": judge.name, "version": judge.version}
        self.folder = ResultsFolder(folder, {"judge": described, "clips": fingerprint(ids)})
        self.known = {name: np.array(record["vector"]) for name, record in self.folder.records(VECTORS).items()}

    def vector(self, name: str) -> np.ndarray | None:
        """Of the recording with this id; None, with a warning, if the judge refuses it."""
        if name not in self.known:
            try:
                source = self.pool[self.rows[name]]["audio"]
                self.known[name] = embed(self.judge, *read_recording(source["bytes"] or source["path"]))
            except ValueError as error:
                logger.warning("%s cannot be compared with: %s", name, error)
                return None
            self.folder.append(VECTORS, [{"name": name, "vector": [float(value) for value in self.known[name]]}])
        return self.known[name]

    def reference(self, name: str, speaker: tuple[str, str]) -> np.ndarray:
        """What speech of a row is compared with. speaker: source and name, as `speakers_of` gives them.

        Raises ValueError if none of the speaker's clips can be used.
        """
        others = sorted(clip for clip in self.clips[speaker] if clip != name)[:REFERENCE_CLIPS]
        for chosen in (others, [name]):
            vectors = [vector for clip in chosen if (vector := self.vector(clip)) is not None]
            if vectors:
                return np.mean(vectors, axis=0)
        raise ValueError(f"The judge {self.judge.name} can use none of the clips of {'/'.join(speaker)}.")


def embed(judge: SpeakerJudge, waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """The judge's vector. Raises ValueError if the judge refuses the clip or gives no finite numbers."""
    vector = judge.embed(waveform, sampling_rate)
    if not np.isfinite(vector).all():
        raise ValueError(f"the judge {judge.name} gives a vector that is not finite")
    return vector


def similarity(judge: SpeakerJudge, folder: Path, name: str, reference: np.ndarray) -> float:
    """Of a wav, 0 for one that cannot be read or has no speech in it."""
    try:
        return cosine(embed(judge, *read_clip(folder, name)), reference)
    except ValueError as error:
        logger.warning("%s counts as 0: %s", name, error)
        return 0.0


def score_similarity(rows: Dataset, audio: Path, judge: SpeakerJudge, vectors: SpeakerVectors) -> dict[str, Any]:
    """The report: judge, mean with its 95 % interval over sentences, and one entry a row.

    Raises NotADirectoryError if `audio` is no folder.
    """
    if not audio.is_dir():
        raise NotADirectoryError(f"{audio} is not a folder of speech; run held_out_speech first.")
    columns = zip(rows["id"][:], speakers_of(rows), rows["text"][:], strict=True)
    scored = [
        {
            "name": f"{index:04d}",
            "reference": " ".join(text.split()),
            "similarity": similarity(judge, audio, f"{index:04d}", vectors.reference(name, speaker)),
        }
        for index, (name, speaker, text) in enumerate(columns)
    ]
    takes: dict[str, list[float]] = {}
    for row in scored:
        takes.setdefault(row["reference"], []).append(row["similarity"])
    figure = ratio_figure([sum(values) for values in takes.values()], [len(values) for values in takes.values()])
    described = {"name": judge.name, "version": judge.version}
    return {"judge": described, "similarity": figure.value, "low": figure.low, "high": figure.high, "rows": scored}


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(
        prog="python -m e2e_tts.pipelines.evaluation.held_out_similarity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--audio", type=Path, required=True, help="folder of 0000.wav, 0001.wav and so on")
    parser.add_argument("--data", nargs="+", required=True, help="folders of annotated speech")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--sources", nargs="*", default=[], help="by default all")
    parser.add_argument("--limit", type=int, help="as for held_out_speech")
    parser.add_argument("--judge", default=AUTO, help="a name, owner/model, a local folder or auto")
    parser.add_argument("--references", type=Path, help="folder that keeps the recordings' vectors; by default none")
    parser.add_argument("--output", type=Path, required=True, help="where the JSON report goes")
    options = parser.parse_args(arguments)
    try:
        rows = select_rows(options.data, options.split, options.sources, options.limit)
        judge = load_speaker_judge(options.judge)
        keep = tempfile.TemporaryDirectory() if options.references is None else nullcontext(options.references)
        with keep as folder:
            report = score_similarity(rows, options.audio, judge, SpeakerVectors(judge, options.data, Path(folder)))
        write_text(options.output, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    print(f"similarity {report['similarity']:.3f} [{report['low']:.3f}, {report['high']:.3f}] on {len(rows)} sentences")


if __name__ == "__main__":
    main()
