"""One page to listen to systems side by side: a row a sentence, a column a system.

python -m e2e_tts.pipelines.evaluation.listening_page --texts DIR/texts.tsv --limit 10 \\
    --system recording=DIR/recording reconstruction=DIR/reconstruction "stage 2"=STAGE2/speech --output listen.html

A system is a folder with a recording for each of the texts, as held_out_speech, four_numbers or any other program
write them, or the output folder of the harness. The texts are lines "NAME<tab>SENTENCE" or a test list of the harness,
everyday_en say. The page carries its sound (Ogg Opus) and needs no network. Sentences are spread evenly over the list,
not chosen; a recording that is missing or cannot be read leaves its cell empty.
"""

import argparse
import base64
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jinja2 import Environment, PackageLoader

from e2e_tts.trainers.command_line import CommandParser

from .audio_files import find_recording, read_recording
from .results_folder import read_records, write_text
from .scoring import read_texts
from .synthesis import RECORDS
from .utterances import read_list

# Opus knows 8, 12, 16, 24 and 48 kHz.
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)


def opus_uri(waveform: np.ndarray, sampling_rate: int) -> str:
    """A waveform (samples,) as a data URI of Ogg Opus, about 4 kB a second; at a rate that Opus lacks, resampled up."""
    rate = next((rate for rate in OPUS_RATES if rate >= sampling_rate), OPUS_RATES[-1])
    if rate != sampling_rate:
        waveform = soxr.resample(waveform, sampling_rate, rate)
    file = io.BytesIO()
    soundfile.write(file, waveform.clip(-1.0, 1.0), rate, format="OGG", subtype="OPUS")
    return "data:audio/ogg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def spread(names: Sequence[str], limit: int) -> list[str]:
    """At most `limit` names at even distances, the first and the last among them."""
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}.")
    indices = np.linspace(0, len(names) - 1, min(limit, len(names))).round().astype(int)
    return [names[index] for index in indices]


def read_sentences(source: Path) -> dict[str, str]:
    """Sentences by name, of lines "NAME<tab>SENTENCE" or of a test list. Raises ValueError where there is neither."""
    if source.is_file() and b"\t" in source.read_bytes():
        return read_texts(source)
    return {item.name: item.text for item in read_list(source).utterances}


def find_clip(folder: Path, name: str) -> Path | None:
    """The recording of a sentence, by its name or as the harness's records in the folder say; None if there is none."""
    records = folder / f"{RECORDS}.jsonl"
    if not records.is_file():
        return find_recording(folder, name)
    file = read_records(records.read_bytes()).get(name, {}).get("file")
    return folder / file if file else None


def listening_page(
    texts: Mapping[str, str], systems: Mapping[str, Path], limit: int = 10, title: str = "Samples"
) -> tuple[str, list[str]]:
    """Sentences by name and folders by system -> the page's HTML and what could not be read.

    Raises ValueError where there is nothing to hear: no sentence, no system, or a system without any recording.
    """
    if not texts or not systems:
        raise ValueError("A listening page needs at least one sentence and one system.")
    rows, problems = [], []
    heard = dict.fromkeys(systems, 0)
    for name in spread(list(texts), limit):
        clips = []
        for system, folder in systems.items():
            path, clip = find_clip(folder, name), None
            try:
                if path is None:
                    raise ValueError(f"there is no recording {name} in {folder}")
                waveform, sampling_rate = read_recording(path)
                if not waveform.size:
                    raise ValueError(f"{path} holds no sound")
                clip = opus_uri(waveform, sampling_rate)
                heard[system] += 1
            except ValueError as error:
                problems.append(f"{system}: {error}")
            clips.append(clip)
        rows.append({"text": texts[name], "clips": clips})
    silent = [system for system, count in heard.items() if not count]
    if silent:
        raise ValueError(f"Nothing to hear of {', '.join(silent)}: {problems[0]}.")
    environment = Environment(loader=PackageLoader(__package__), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("listening.html.j2").render(title=title, systems=list(systems), rows=rows)
    return page, problems


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(
        prog="python -m e2e_tts.pipelines.evaluation.listening_page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--texts", type=Path, required=True, help='lines of "NAME<tab>SENTENCE", or a test list')
    parser.add_argument("--system", nargs="+", required=True, metavar="NAME=FOLDER", help="a column each, in order")
    parser.add_argument("--limit", type=int, default=10, help="number of sentences")
    parser.add_argument("--title", default="Samples")
    parser.add_argument("--output", type=Path, required=True, help="the page, an .html file")
    options = parser.parse_args(arguments)
    try:
        systems = {}
        for entry in options.system:
            name, separator, folder = entry.partition("=")
            if not (name and separator and folder) or name in systems:
                raise ValueError(f"Systems are given as NAME=FOLDER, each name once; got {entry!r}.")
            systems[name] = Path(folder)
        page, problems = listening_page(read_sentences(options.texts), systems, options.limit, options.title)
        write_text(options.output, page)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for problem in problems:
        print(f"left empty: {problem}", file=sys.stderr)
    print(f"{options.output}: {min(options.limit, page.count('<tr>') - 1)} sentences, {len(systems)} systems")


if __name__ == "__main__":
    main()
