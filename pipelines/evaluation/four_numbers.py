"""Where intelligibility is lost: recordings, vocoder, reconstruction, speech.

python -m e2e_tts.pipelines.evaluation.four_numbers --model DIR --data runs/data/annotated --source NAME --output DIR

Word error rate (Mandarin: of characters), by one recogniser, of (1) the recordings, (2) the vocoder on their true mels,
(3) reconstruction from their true tokens and (4) speech from their text alone, on held-out sentences in a built-in
voice, with bootstrap 95 % intervals. Writes one folder of wavs for each, report.json, and sentences.lst, a test list
for e2e_tts.pipelines.evaluation. A killed run goes on with the same command.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from datasets import Dataset
from transformers import AutoProcessor

from e2e_tts.trainers.command_line import CommandParser
from e2e_tts.trainers.data.devices import add_device_option

from .held_out import Voices, composite_version, load_composite, select_rows
from .held_out_speech import CONDITIONS, HeldOutSpeaker, add_rendering_options, rendering_settings
from .judges import load_normaliser, load_recogniser
from .options import STUDY_NORMALISERS, add_language_options, check_language, choose_normaliser
from .report import error_rate_unit
from .results_folder import write_text
from .scoring import score_folder


def one_take_each(rows: Dataset, limit: int) -> Dataset:
    """The first row of each text, at most `limit`, in data-set order. Raises ValueError for a limit below 1."""
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}.")
    first: dict[str, int] = {}
    for index, text in enumerate(rows["text"][:]):
        first.setdefault(text, index)
    return rows.select(list(first.values())[:limit])


def write_test_list(rows: Dataset, folder: Path, conditions: Sequence[str]) -> None:
    """Writes sentences.lst; the recordings, where they were written too, are the references."""
    lines = []
    for index, text in enumerate(rows["text"][:]):
        reference = [f"recording/{index:04d}.wav"] if "recording" in conditions else []
        lines.append("|".join([f"{index:04d}", "", "", " ".join(text.replace("|", " ").split()), *reference]) + "\n")
    write_text(folder / "sentences.lst", "".join(lines))


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(
        prog="python -m e2e_tts.pipelines.evaluation.four_numbers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="folder of a complete model with built-in voices")
    parser.add_argument("--data", nargs="+", required=True, help="folders of annotated speech")
    parser.add_argument("--split", default="dev", choices=("dev", "test"))
    parser.add_argument("--source", required=True, help="the held-out rows to read")
    parser.add_argument("--voice", help="built-in voice; by default the one named like the source")
    parser.add_argument("--limit", type=int, default=40, help="number of sentences")
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=CONDITIONS)
    parser.add_argument("--judge", default="whisper-base-offline", help="a name, owner/model, or a local folder")
    add_language_options(parser)
    add_rendering_options(parser)
    add_device_option(parser)
    parser.add_argument("--output", type=Path, help="folder for all that is written; by default nothing is kept")
    options = parser.parse_args(arguments)
    try:
        options.normaliser = choose_normaliser(options.language, options.normaliser, STUDY_NORMALISERS)
        load_normaliser(options.normaliser)  # a name that is unknown is told before anything is spoken
        rows = one_take_each(select_rows(options.data, options.split, [options.source]), options.limit)
        model = load_composite(options.model, device=options.device)
        if (Path(options.model) / "processor_config.json").is_file():  # what training leaves has none
            check_language(AutoProcessor.from_pretrained(options.model), options.language)
        voices = Voices.built_in(model, options.voice or options.source, len(rows))
        judge = load_recogniser(options.judge, language=options.language)
        speaker = HeldOutSpeaker(model, **rendering_settings(options))
        version, unit = composite_version(options.model), error_rate_unit(options.normaliser)
        report = {"settings": vars(options) | {"output": str(options.output or "")}, "conditions": {}}
        with tempfile.TemporaryDirectory() if options.output is None else nullcontext(options.output) as place:
            folder = Path(place)
            for condition in options.conditions:
                speaker.write(rows, voices, folder, version, [condition])
                scores = score_folder(folder / condition, folder / "texts.tsv", judge, normaliser=options.normaliser)
                report["conditions"][condition] = scores.to_dict()
                print(
                    f"{condition:15s} {unit} {100 * scores.wer:6.1f} % [{100 * scores.wer_low:.1f}, "
                    f"{100 * scores.wer_high:.1f}] on {len(rows)} utterances",
                    flush=True,
                )
            write_test_list(rows, folder, options.conditions)
            write_text(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
