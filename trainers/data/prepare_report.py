"""What a preparation kept and refused: refused.csv, summary.json and summary.md."""

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset

REFUSED_COLUMNS = ("source", "id", "file", "text", "check", "reason")
HISTOGRAM_BINS = 20
BAR = 40  # characters of the longest bar


def refused_csv(refused: Sequence[Mapping[str, str]]) -> str:
    """The refused rows as a table, in the order of the corpora."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, REFUSED_COLUMNS)
    writer.writeheader()
    writer.writerows(refused)
    return buffer.getvalue()


def histogram(values: np.ndarray) -> dict[str, list[float]]:
    """Counts of `HISTOGRAM_BINS` bins of equal width, and their edges."""
    counts, edges = np.histogram(values, HISTOGRAM_BINS)
    return {"edges": [round(float(edge), 3) for edge in edges], "counts": counts.tolist()}


def summarise(rows: Dataset, refused: Sequence[Mapping[str, str]], settings: Mapping[str, object]) -> dict:
    """Totals, refusals by check, clips and hours by source, split and speaker, and two histograms."""
    seconds = np.asarray(rows["seconds"][:], dtype=np.float64)
    characters = np.array([len(text) for text in rows["text"][:]])
    clips: Counter = Counter()
    hours: defaultdict = defaultdict(float)
    for key, duration in zip(
        zip(rows["source"][:], rows["split"][:], rows["speaker"][:], strict=True), seconds / 3600, strict=True
    ):
        clips[key] += 1
        hours[key] += duration
    return {
        "rows": len(rows) + len(refused),
        "kept": len(rows),
        "refused": len(refused),
        "hours": round(float(seconds.sum()) / 3600, 4),
        "speakers": len({speaker for _, _, speaker in clips}),
        "refused_by_check": dict(Counter(row["check"] for row in refused).most_common()),
        "groups": [
            {"source": s, "split": p, "speaker": k, "clips": n, "hours": round(hours[s, p, k], 4)}
            for (s, p, k), n in sorted(clips.items())
        ],
        "histograms": {"seconds": histogram(seconds), "characters_per_second": histogram(characters / seconds)},
        "settings": dict(settings),
    }


def totals(summary: Mapping) -> list[tuple[str, str, int, float, int]]:
    """Source, split, clips, hours and speakers, over the speakers of the groups."""
    sums: defaultdict = defaultdict(lambda: [0, 0.0, 0])
    for group in summary["groups"]:
        entry = sums[group["source"], group["split"]]
        entry[0] += group["clips"]
        entry[1] += group["hours"]
        entry[2] += 1
    return [(source, split, *entry) for (source, split), entry in sorted(sums.items())]


def markdown(summary: Mapping) -> str:
    """The summary for a reader."""
    lines = [
        "# Prepared speech",
        "",
        f"{summary['kept']} of {summary['rows']} rows kept: {summary['hours']:.2f} hours of {summary['speakers']} "
        "speakers.",
        "",
        "| source | split | clips | hours | speakers |",
        "|---|---|---:|---:|---:|",
        *(f"| {s} | {p} | {clips} | {hours:.2f} | {n} |" for s, p, clips, hours, n in totals(summary)),
        "",
        f"## Refused: {summary['refused']}",
        "",
    ]
    if summary["refused"]:
        lines += ["Every row with its reason is in `refused.csv`.", "", "| check | rows |", "|---|---:|"]
        lines += [f"| {check} | {count} |" for check, count in summary["refused_by_check"].items()]
        lines.append("")
    for name, title in (("seconds", "Seconds of a clip"), ("characters_per_second", "Characters a second")):
        edges, counts = summary["histograms"][name]["edges"], summary["histograms"][name]["counts"]
        lines += [f"## {title}", "", "```text"]
        lines += [
            f"{low:8.2f} {count:8d} {'#' * round(BAR * count / max(counts))}".rstrip()
            for low, count in zip(edges, counts, strict=False)
        ]
        lines += ["```", ""]
    lines += ["## Settings", "", "```json", json.dumps(summary["settings"], indent=1, ensure_ascii=False), "```", ""]
    return "\n".join(lines)
