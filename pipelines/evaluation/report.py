"""The result of an evaluation for machines (JSON) and people (Markdown; `html_report` makes the page with sound)."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .failures import FAILURES
from .judging import CONDITIONS
from .markdown import markdown_table
from .results_folder import write_text
from .summary import Condition, EvaluatedRow
from .utterances import RefusedRow

CHARACTER_NORMALISERS = ("characters", "seed-tts-zh")
INTERVAL_NOTE = (
    "Intervals: 95 %, bootstrap over utterances; they say how far a figure would move with other utterances of the "
    "same kind, not with another judge. They are too narrow below some twenty utterances."
)


def error_rate_unit(normaliser: str) -> str:
    """ "WER" or "CER", by what the normaliser makes of a text."""
    return "CER" if normaliser in CHARACTER_NORMALISERS else "WER"


@dataclass
class EvaluationReport:
    """Everything that an evaluation found. Rates are fractions in JSON and per cent in tables.

    `conditions` holds "speech" and, where recordings of the texts were given, "recording": the same judges on real
    speech, which is the judges' own error. `refused` rows of the test set were not used; `remarked` ones were, with
    something missing.
    """

    system: str
    settings: dict[str, Any]
    judges: dict[str, dict[str, str]]
    judge_remarks: list[str]
    conditions: dict[str, Condition]
    refused: list[RefusedRow]
    remarked: list[RefusedRow]

    @property
    def unit(self) -> str:
        return error_rate_unit(self.settings["normaliser"])

    def worst_rows(self, condition: str) -> list[EvaluatedRow]:
        """All rows of a condition, the worst first."""
        return sorted(self.conditions[condition].rows, key=lambda row: row.badness)

    def refusals(self) -> list[tuple[str, str, str, str]]:
        """What judges could not score: condition, utterance, role of the judge, reason."""
        return [
            (name, row.name, role, reason)
            for name, condition in self.conditions.items()
            for row in condition.rows
            for role, reason in row.refusals.items()
        ]

    def voice_note(self) -> str:
        """Says which speech has no voice, as the speaker judge hears it; empty where all has one."""
        names = [row.name for condition in self.conditions.values() for row in condition.rows if row.voice is not None]
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        return f"No voice heard, a similarity of 0: {len(names)} ({shown})." if names else ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "system": self.system,
            "error_rate_unit": self.unit,
            "settings": self.settings,
            "judges": self.judges,
            "judge_remarks": self.judge_remarks,
            "conditions": {
                name: {
                    "figures": condition.figures,
                    "failure_counts": condition.failure_counts,
                    "word_counts": condition.word_counts,
                    "failed_left_out": condition.failed_left_out,
                    "rows": [row.to_dict() for row in condition.rows],
                }
                for name, condition in self.conditions.items()
            },
            "refused": [asdict(row) for row in self.refused],
            "remarked": [asdict(row) for row in self.remarked],
        }

    def write_json(self, path: str | Path) -> None:
        write_text(Path(path), json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def figure_table(self) -> list[list[str]]:
        """The table of figures as cells: a row a figure, for each condition value, interval and utterances."""
        conditions = self._shown_conditions()
        names = dict.fromkeys(name for condition in conditions for name in condition.figures)
        table = []
        for name in names:
            label, percent = self._label(name)
            if label is not None:
                cells = [
                    _cells(condition.figures.get(name), percent, condition.failed_left_out.get(name, 0))
                    for condition in conditions
                ]
                table.append([label, *(cell for group in cells for cell in group)])
        return table

    def figure_header(self) -> list[str]:
        return ["figure", *(cell for name in self.shown_names() for cell in (name, "95 % interval", "utterances"))]

    def failure_table(self) -> list[list[str]]:
        """A row a kind of failure: its count and share with interval in each condition, and the first names."""
        table = []
        for kind in FAILURES:
            cells = []
            for condition in self._shown_conditions():
                share = _cells(condition.figures[f"failures_{kind}"], percent=True)
                cells += [str(condition.failure_counts[kind]), f"{share[0]} ({share[1]})"]
            names = [row.name for row in self._shown_conditions()[0].rows if kind in row.failures]
            table.append([kind.replace("_", " "), *cells, ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")])
        return table

    def failure_header(self) -> list[str]:
        names = self.shown_names()
        return ["failure", *(cell for name in names for cell in (name, "share % (95 %)")), f"names ({names[0]})"]

    def shown_names(self) -> list[str]:
        return [name for name in CONDITIONS if name in self.conditions]

    def _shown_conditions(self) -> list[Condition]:
        return [self.conditions[name] for name in self.shown_names()]

    def _label(self, name: str) -> tuple[str | None, bool]:
        """How a figure is called in tables (None: not shown there), and whether it is a percentage."""
        if name.startswith("quality_"):
            return f"{self.judges['quality']['name']} {name.removeprefix('quality_')}", False
        counted = "characters" if self.unit == "CER" else "words"
        labels: dict[str, tuple[str, bool]] = {
            "error_rate": (f"{self.unit} %, all edits over all {counted}", True),
            "error_rate_by_utterance": (f"{self.unit} %, mean over utterances (as Seed-TTS-Eval)", True),
            "similarity": ("speaker similarity", False),
            "duration_ratio": ("duration / recording's", False),
            "real_time_factor": ("real-time factor", False),
            "failures_failed": ("failed utterances %", True),
        }
        return labels.get(name, (None, False))

    def to_markdown(self, worst: int = 10) -> str:
        """Figures, failures, judges, the `worst` utterances, and all that was left out."""
        speech = self.shown_names()[0]
        note = f"Normaliser: {self.settings['normaliser']}. {INTERVAL_NOTE}"
        lines = [f"# Evaluation of {self.system}", "", note, ""]
        lines += markdown_table(self.figure_header(), self.figure_table())
        lines += ["", "## Judges", ""]
        lines += markdown_table(
            ["role", "judge", "version"],
            [[role, judge["name"], judge["version"]] for role, judge in self.judges.items()],
        )
        lines += [f"\n{remark}" for remark in self.judge_remarks]
        lines += ["", "## Failures", "", *markdown_table(self.failure_header(), self.failure_table())]
        if note := self.voice_note():
            lines += ["", note]
        wrong = [row for row in self.worst_rows(speech) if row.edits or row.failures][:worst]
        if wrong:
            lines += ["", f"## Worst of the {speech}", ""]
            lines += markdown_table(
                ["name", f"{self.unit} %", "failures", "text", "heard"],
                [
                    [
                        row.name,
                        "" if row.error_rate is None else f"{100 * row.error_rate:.0f}",
                        ", ".join(row.failures),
                        row.text,
                        row.error or row.transcript or "",
                    ]
                    for row in wrong
                ],
            )
        for title, rows in (("Refused rows, not used", self.refused), ("Rows used in part", self.remarked)):
            if rows:
                cells = [[row.place, row.reason, row.content] for row in rows]
                lines += ["", f"## {title}", "", *markdown_table(["where", "why", "row"], cells)]
        if refusals := self.refusals():
            header = ["condition", "utterance", "judge", "reason"]
            lines += ["", "## Not scored by a judge", "", *markdown_table(header, [list(row) for row in refusals])]
        return "\n".join(lines) + "\n"


def _cells(figure: dict[str, float] | None, percent: bool, left_out: int = 0) -> list[str]:
    if figure is None:
        return ["", "", ""]
    scale, digits = (100, 1) if percent else (1, 3)
    value, low, high = (f"{scale * figure[key]:.{digits}f}" for key in ("value", "low", "high"))
    utterances = str(figure["utterances"]) + (f", {left_out} failed left out" if left_out else "")
    return [value, f"{low} to {high}", utterances]
