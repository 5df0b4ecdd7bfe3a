"""Adds what training reads to prepared speech.

python -m e2e_tts.trainers.data.annotate --data data/prepared --speaker_encoder runs/speaker/final \\
    --output data/annotated

Columns added: text_ids (text tokens for the LM), ctc_labels (what a recogniser should find) and speaker_embedding (of a
frozen speaker encoder); with --emotion_model also pseudo labels in the column emotion where the corpus has none. Rows
whose text cannot be spoken are listed in refused.csv and left out. A run that was stopped goes on when it is started
again.
"""

import argparse
import csv
import io
import json
import logging
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets, disable_progress_bars, load_from_disk

from e2e_tts.modeling.processing_e2e_tts import TextToSpeechProcessor

from ..command_line import CommandParser
from .part_store import Pace, PartStore
from .provenance import ANNOTATION, KEY, SPEAKER_ENCODER, TEXT_TOKENIZER, tokenizer_fingerprint, weights_fingerprint
from .speech_data import load_folder
from .teacher_labels import EmotionTeacher, SpeakerTeacher
from .text_tokens import PHONEMES, TOKENIZER_HELP, load_processor, text_tokens
from .vocoder_data import read_audio

logger = logging.getLogger(__name__)

ROWS_PER_PART = 200
FEATURES = {
    "text_ids": List(Value("int64")),
    "ctc_labels": List(Value("int64")),
    "speaker_embedding": List(Value("float64")),
    "emotion": Value("string"),
    "refused": Value("string"),
}


class Annotator:
    """Row of a prepared data set -> the added columns, and in `refused` why the row is of no use, if it is not.

    speaker_teacher: None takes the embeddings that the data set brings. emotion_teacher: None keeps its emotions.
    """

    def __init__(
        self,
        processor: TextToSpeechProcessor,
        speaker_teacher: SpeakerTeacher | None = None,
        emotion_teacher: EmotionTeacher | None = None,
    ) -> None:
        self.processor, self.speaker_teacher, self.emotion_teacher = processor, speaker_teacher, emotion_teacher

    def __call__(self, row: dict) -> dict:
        emotion = row.get("emotion") or ""
        refused = {"text_ids": [], "ctc_labels": [], "speaker_embedding": [], "emotion": emotion}
        hearing = [self.speaker_teacher] if self.speaker_teacher else []
        if self.emotion_teacher and not emotion:
            hearing.append(self.emotion_teacher)
        try:
            text_ids, ctc_labels = text_tokens(self.processor, row["text"])
            own = None if self.speaker_teacher else self.own_embedding(row)
            samples = {rate: read_audio(row["audio"], rate) for rate in {teacher.sampling_rate for teacher in hearing}}
        # A decoder's complaint is a RuntimeError.
        except (ValueError, RuntimeError) as error:
            return refused | {"refused": str(error)}
        # A teacher that fails is no fault of the row's, so it stops the run.
        heard = {teacher: teacher(samples[teacher.sampling_rate]) for teacher in hearing}
        return {
            "text_ids": text_ids,
            "ctc_labels": ctc_labels,
            "speaker_embedding": heard.get(self.speaker_teacher, own),
            "emotion": heard.get(self.emotion_teacher, emotion),
            "refused": "",
        }

    def fingerprints(self) -> dict[str, str | None]:
        """Of what makes tokens and embeddings; None for embeddings that the corpus brings."""
        teacher = self.speaker_teacher
        return {
            TEXT_TOKENIZER: tokenizer_fingerprint(self.processor),
            SPEAKER_ENCODER: None if teacher is None else weights_fingerprint(teacher.model),
        }

    @staticmethod
    def own_embedding(row: dict) -> list[float]:
        """The embedding that the corpus brings, of unit length. Raises ValueError if there is none."""
        vector = np.asarray(row["speaker_embedding"] or [], dtype=np.float64)
        length = np.linalg.norm(vector)
        if not 0 < length < np.inf:
            raise ValueError("The row has no speaker embedding; --speaker_encoder computes one.")
        return (vector / length).tolist()


def annotate(
    rows: Dataset, annotator: Annotator, output: Path, settings: dict[str, object], overwrite: bool = False
) -> tuple[Dataset, list[tuple[str, str]]]:
    """Writes the annotated rows to `output`, with refused.csv and annotation.json (the settings and fingerprints).

    Returns the rows, and the refused ones as (id, reason). Raises FileExistsError (see `PartStore`), ValueError if no
    row is left or embeddings differ in size.
    """
    settings = {**settings, KEY: annotator.fingerprints()}
    store = PartStore(output, {**settings, "rows": len(rows)}, Features(FEATURES), overwrite)
    done = sum(note["rows"] for note in store.notes)
    pace = Pace(done, len(rows))
    for start in range(done, len(rows), ROWS_PER_PART):
        part = rows.select(range(start, min(start + ROWS_PER_PART, len(rows))))
        store.add([annotator(row) for row in part], {})
        logger.info("%s", pace(start + len(part)))
    added = store.rows()
    if added is None:
        raise ValueError("The data set has no rows.")
    reasons = added["refused"][:]
    refused = [(row_id, reason) for row_id, reason in zip(rows["id"][:], reasons, strict=True) if reason]
    kept = [index for index, reason in enumerate(reasons) if not reason]
    if not kept:
        store.discard()
        raise ValueError(f"No row can be used; the first is refused because: {refused[0][1]}")
    sizes = {len(vector) for vector in added.select(kept)["speaker_embedding"]}
    if len(sizes) > 1:
        store.discard()
        raise ValueError(f"The speaker embeddings have different sizes, {sorted(sizes)}: they are of several encoders.")
    own = rows.remove_columns([name for name in FEATURES if name in rows.column_names])
    annotated = concatenate_datasets([own, added.remove_columns("refused")], axis=1).select(kept)
    listed = io.StringIO()
    csv.writer(listed).writerows([("id", "reason"), *refused])
    store.finish(annotated, {"refused.csv": listed.getvalue(), ANNOTATION: json.dumps(settings, indent=1)})
    return load_from_disk(str(output)), refused


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder written by e2e_tts.trainers.data.prepare")
    parser.add_argument(
        "--speaker_encoder",
        help="folder of a trained speaker encoder, or of a transformers model with an x-vector head, by folder or Hub "
        "name; not needed where the corpus brings speaker_embedding",
    )
    parser.add_argument("--emotion_model", help="a transformers audio-classification model, by folder or Hub name")
    parser.add_argument("--emotion_threshold", type=float, default=0.5, help="least probability of a pseudo label")
    parser.add_argument(
        "--tokenizer", default=PHONEMES,
        help=f"{TOKENIZER_HELP}, or a released model or the LM's tokenizer, by folder or Hub name",
    )  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of the teachers")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output, or begin anew")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    disable_progress_bars()
    try:
        rows = load_folder(options.data)
        if options.speaker_encoder is None and "speaker_embedding" not in rows.column_names:
            parser.error(f"{options.data} has no speaker_embedding, so --speaker_encoder is needed")
        annotator = Annotator(
            load_processor(options.tokenizer),
            options.speaker_encoder and SpeakerTeacher.from_pretrained(options.speaker_encoder, options.device),
            options.emotion_model and EmotionTeacher(options.emotion_model, options.emotion_threshold, options.device),
        )
        names = ("data", "speaker_encoder", "emotion_model", "emotion_threshold", "tokenizer")
        settings = {name: getattr(options, name) for name in names}
        annotated, refused = annotate(rows, annotator, options.output, settings, options.overwrite)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{len(annotated)} rows annotated, {len(refused)} refused (see refused.csv) -> {options.output}")


if __name__ == "__main__":
    main()
