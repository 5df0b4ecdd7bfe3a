"""The table of an ablation: every row's figures with intervals, and its paired difference from the reference row.

python -m e2e_tts.pipelines.evaluation.ablation_table --cells runs/ablation/cells.json --output runs/ablation

e2e_tts.trainers.ablation writes cells.json and calls this. Lower is better in every column but speaker similarity.
Intervals are 95 %, bootstrap over sentences and seeds; a sentence counts once, however often it was spoken. Differences
are taken on the same sentences and seeds. The p values of a column are
adjusted for its number of rows (Holm): a star marks those below 0.05. A star says that chance seldom makes such a
difference; no star says that these sentences and seeds do not decide it.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from e2e_tts.trainers.command_line import CommandParser

from .markdown import markdown_table
from .paired_bootstrap import Interval, Measurements, holm, interval, paired_difference

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Column:
    """A measure: its heading, and what its ratio is multiplied with to be shown."""

    heading: str
    scale: float = 1.0
    digits: int = 3


COLUMNS = {
    "speech": Column("WER of speech, %", 100, 1),
    "reconstruction": Column("WER of reconstruction, %", 100, 1),
    "speech_similarity": Column("speaker similarity of speech"),
    "reconstruction_similarity": Column("speaker similarity of reconstruction"),
    "label_error_rate": Column("RM label error, %", 100, 1),
    "mel_distance_prior": Column("mel distance, regressed, dB"),
    "mel_distance_sampled": Column("mel distance, sampled, dB"),
    "lm_loss": Column("L_LM, nats a token"),
}


@dataclass
class TableRow:
    """A row's figures by measure; `differences` from the reference (None there), p values adjusted by Holm."""

    name: str
    label: str
    seeds: list[int]
    updates: dict[str, int]
    figures: dict[str, Interval]
    by_seed: dict[str, dict[int, float]]
    differences: dict[str, Interval] | None = None


def read_cell(cell: dict[str, Any]) -> dict[str, list[tuple[int, str, float, float]]]:
    """A cell's records (seed, sentence, numerator, denominator) by measure, from the files that it names."""
    records: dict[str, list] = {}
    table = json.loads(Path(cell["reward_table"]).read_text(encoding="utf-8"))
    for utterance in table["utterances"]:
        for measure, (numerator, denominator) in utterance["measures"].items():
            records.setdefault(measure, []).append((cell["seed"], utterance["sentence"], numerator, denominator))
    for judged in cell["judged"]:
        for row in json.loads(Path(judged["file"]).read_text(encoding="utf-8"))["rows"]:
            ratio = (row["similarity"], 1.0) if "similarity" in row else (row["edits"], row["words"])
            records.setdefault(judged["measure"], []).append((cell["seed"], row["reference"], *ratio))
    return records


def make_rows(cells: dict[str, Any], resamples: int = 2000, seed: int = 0) -> list[TableRow]:
    """The rows of a cells.json, in its order; rows without a cell are left out.

    Raises ValueError where cells were measured on different sentences.
    """
    measured: dict[str, dict[str, Measurements]] = {}
    rows = []
    for name, label in cells["rows"].items():
        own = [cell for cell in cells["cells"] if cell["row"] == name]
        if not own:
            continue
        records: dict[str, list] = {}
        for cell in own:
            for measure, values in read_cell(cell).items():
                records.setdefault(measure, []).extend(values)
        measured[name] = {measure: Measurements.collect(records[measure]) for measure in COLUMNS if measure in records}
        figures = {
            measure: interval(values, resamples=resamples, seed=seed) for measure, values in measured[name].items()
        }
        by_seed = {
            measure: {number: values.restrict([number]).ratio for number in values.seeds}
            for measure, values in measured[name].items()
        }
        rows.append(TableRow(name, label, sorted(cell["seed"] for cell in own), own[0]["updates"], figures, by_seed))
    _compare(rows, measured, cells["reference"], resamples, seed)
    return rows


def _compare(
    rows: Sequence[TableRow],
    measured: dict[str, dict[str, Measurements]],
    reference: str,
    resamples: int,
    seed: int,
) -> None:
    """Fills in the differences from the reference, where it is measured."""
    others = [row for row in rows if row.name != reference]
    if reference not in measured:
        return
    for row in others:
        row.differences = {}
    for measure, base in measured[reference].items():
        comparable = [
            row
            for row in others
            if measure in measured[row.name] and set(measured[row.name][measure].seeds) & set(base.seeds)
        ]
        found = [
            paired_difference(measured[row.name][measure], base, resamples=resamples, seed=seed) for row in comparable
        ]
        adjusted = holm([difference.p_value for difference in found])
        for row, difference, p_value in zip(comparable, found, adjusted, strict=True):
            row.differences[measure] = Interval(difference.value, difference.low, difference.high, p_value)


def to_markdown(rows: Sequence[TableRow], cells: dict[str, Any]) -> str:
    """Two tables, figures and differences, and what is missing."""
    shown = {name: column for name, column in COLUMNS.items() if any(name in row.figures for row in rows)}

    def cell(figure: Interval | None, column: Column, sign: str = "") -> str:
        if figure is None:
            return ""
        value, low, high = (
            format(column.scale * number, f"{sign}.{column.digits}f")
            for number in (figure.value, figure.low, figure.high)
        )
        if figure.p_value is None:
            return f"{value} [{low}, {high}]"
        star = " *" if figure.p_value < SIGNIFICANT else ""
        return f"{value} [{low}, {high}], p {figure.p_value:.3f}{star}"

    headings = [column.heading for column in shown.values()]
    table = []
    for row in rows:
        steps = ", ".join(str(row.updates[name]) for name in ("encoder", "reward", "lm", "decoder"))
        figures = [cell(row.figures.get(name), column) for name, column in shown.items()]
        table.append([row.label, str(len(row.seeds)), steps, *figures])
    lines = markdown_table(["row", "seeds", "steps learnt (tokenizer, RM, LM, FM)", *headings], table)
    compared = [row for row in rows if row.differences is not None]
    if compared:
        differences = [
            [row.label, *(cell(row.differences.get(name), column, "+") for name, column in shown.items())]
            for row in compared
        ]
        label = cells["rows"][cells["reference"]]
        lines += ["", *markdown_table([f"difference from: {label}", *headings], differences)]
    if any(len(row.seeds) == 1 for row in rows):
        lines += [
            "",
            "Rows of one seed: their intervals and stars speak of these weights and say nothing of another training.",
        ]
    done = {(cell["row"], cell["seed"]) for cell in cells["cells"]}
    missing = [f"{name}, seed {seed}" for name in cells["rows"] for seed in cells["seeds"] if (name, seed) not in done]
    if missing:
        lines += ["", f"Not finished: {'; '.join(missing)}."]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(
        prog="python -m e2e_tts.pipelines.evaluation.ablation_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cells", type=Path, required=True, help="cells.json of an ablation")
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--output", type=Path, required=True, help="folder for table.json and table.md")
    options = parser.parse_args(arguments)
    try:
        cells = json.loads(options.cells.read_text(encoding="utf-8"))
        rows = make_rows(cells, options.resamples, options.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    options.output.mkdir(parents=True, exist_ok=True)
    text = to_markdown(rows, cells)
    (options.output / "table.md").write_text(text, encoding="utf-8")
    values = {"reference": cells["reference"], "rows": [asdict(row) for row in rows]}
    (options.output / "table.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
