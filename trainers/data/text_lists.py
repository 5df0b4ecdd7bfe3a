"""Lists of recordings and texts whose columns are parted by "|": LJSpeech's, and those that also name the speaker.

What the columns hold is said by a first line of names, by `--columns`, or else by what is in them.
"""

import logging
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path

from .corpus_files import AUDIO_SUFFIXES, PROBLEM, find_recording

logger = logging.getLogger(__name__)

# Names in a first line; where a list has a text twice, the first of these is what is spoken.
HEADER = {
    "audio": ("audio_file", "audio", "file", "file_name", "filename", "path", "wav", "wav_file", "audio_path", "id"),
    "text": ("normalized_text", "normalised_text", "text", "sentence", "transcription", "transcript", "txt"),
    "speaker": ("speaker_name", "speaker", "speaker_id", "client_id"),
    "emotion": ("emotion_name", "emotion"),
}
COMPARED_ROWS = 100
# Mean over rows of the letters that a text and its normalised form share: half where numbers are many, else all.
# Phonemes share half of a text's, translations and other sentences less.
RESEMBLANCE = 0.6
MOST_WORDS_OF_A_NAME = 3
KINDS = "id|text, id|text|normalised text, id|speaker|text or id|text|speaker"


def ljspeech_rows(path: Path, asked: Mapping[str, str] | None = None) -> list[dict[str, str | None]]:
    """Rows of a list of `KINDS`, or of columns that its first line names; `path` is the file, or a folder with
    metadata.csv. Every column is there under its name too, or under its number from "1" on.

    asked: contract name -> such a column, as in `CorpusOptions`; it decides before what the columns hold.
    Raises ValueError where more than two columns do not show which is the text and which the speaker.
    """
    path = path / "metadata.csv" if path.is_dir() else path
    asked = asked or {}
    lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    table = [[part.strip() for part in line.split("|")] for line in lines]
    if not table:
        return []
    places = named_columns(table[0], asked)
    if places:
        names = table.pop(0)
    else:
        widths = [len(cells) for cells in table]
        names = [str(number + 1) for number in range(max(set(widths), key=widths.count))]
        told = {contract: names.index(name) for contract, name in asked.items() if name in names}
        found = choose_places([cells for cells in table if len(cells) == len(names)], told)
        if found is None:
            raise ValueError(
                f"{path}: it cannot be told which of its columns, {len(names)}, is the text and which the speaker. The "
                f"first line is {lines[0]!r}; expected is {KINDS}, or a first line of names, such as "
                "audio_file|text|speaker_name. Or say it: --columns text=2 speaker=3 counts the columns from 1."
            )
        places = {"audio": 0} | told | found
    if "speaker" in places:
        text, speaker = (names[places[contract]] for contract in ("text", "speaker"))
        logger.info("%s: the text is column %s, the speaker column %s", path, text, speaker)
    return [list_row(path.parent, cells, names, places) for cells in table]


def named_columns(cells: Sequence[str], asked: Mapping[str, str]) -> dict[str, int]:
    """Contract name -> place, of a line of names; empty for any other line."""
    found = [cell.lower() for cell in cells]
    places = {}
    for contract, names in HEADER.items():
        known = [name for name in (asked.get(contract, "").lower(), *names) if name and name in found]
        if known:
            places[contract] = found.index(known[0])
    return places if {"audio", "text"} <= places.keys() else {}


def choose_places(table: Sequence[Sequence[str]], told: Mapping[str, int]) -> dict[str, int] | None:
    """The places of text and speaker by what columns after the first hold, but for those in `told`; None where that is
    open."""
    others = [place for place in range(1, len(table[0])) if place not in told.values()]
    if "text" not in told and len(others) == 2 and resemble(table, others):
        return {"text": others[-1]}
    is_choice = "speaker" not in told and len(others) + ("text" in told) > 1
    labels = [place for place in others if is_choice and is_label([cells[place] for cells in table])]
    texts = [told["text"]] if "text" in told else [place for place in others if place not in labels]
    if len(labels) > 1 or not texts or not resemble(table, texts):
        return None
    return {"text": texts[-1]} | dict(zip(["speaker"], labels, strict=False))


def is_label(values: Sequence[str]) -> bool:
    """Whether a column names speakers, say: short values that come again and again."""
    is_repeated = len(values) > 1 and 2 * len(set(values)) <= len(values) + 1
    return is_repeated and max(len(value.split()) for value in values) <= MOST_WORDS_OF_A_NAME


def resemble(table: Sequence[Sequence[str]], places: Sequence[int]) -> bool:
    """Whether columns hold one text in several forms; one column does."""
    if len(places) < 2:
        return True
    *others, last = places
    some = table[:: max(1, len(table) // COMPARED_ROWS)]
    for place in others:
        pairs = [(cells[place].lower(), cells[last].lower()) for cells in some]
        shared = [SequenceMatcher(None, *pair, autojunk=False).ratio() for pair in pairs]
        if sum(shared) < RESEMBLANCE * len(shared):
            return False
    return True


def list_row(folder: Path, cells: Sequence[str], names: Sequence[str], places: Mapping[str, int]) -> dict:
    """One line as a row; what is wrong with it is its problem."""
    # LJSpeech's second form of a text may be missing, which says nothing where other columns follow or come before.
    may_be_short = places.keys() == {"audio", "text"} and names[0] == "1"
    is_whole = len(cells) == len(names) or (may_be_short and len(cells) < len(names))
    texts = cells[1 : places["text"] + 1] if may_be_short else [cells[places["text"]]] if is_whole else []
    columns = dict(zip(names, [*cells, *[""] * len(names)], strict=False))
    name = columns[names[places["audio"]]]
    recording = find_recording(folder, name) if name and is_whole else None
    problem = f"no recording called {name!r} in {folder} or its wavs/"
    if not is_whole:
        problem = f"the line has {len(cells)} columns, the list {len(names)}"
    return {
        **columns,
        "id": Path(name).with_suffix("").as_posix() if Path(name).suffix.lower() in AUDIO_SUFFIXES else name,
        "audio": recording,
        "text": texts[-1] if texts else "",
        "original_text": texts[0] if texts else "",
        PROBLEM: "" if recording else problem,
        **{contract: columns[names[place]] for contract, place in places.items() if contract in ("speaker", "emotion")},
    }
