"""Which rows are held out: by explicit lists, or by seeded fractions of the texts or speakers."""

import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass, field, fields
from pathlib import Path


def normalise_text(text: str) -> str:
    """Lower-case words only, so that the same sentence matches across punctuation, case and apostrophes."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"['\u2019`\u00b4]", "", text)
    return " ".join(re.findall(r"[^\W_]+", text))


@dataclass
class Splits:
    """Explicit held-out material. Texts are normalised with `normalise_text`, speakers are matched exactly."""

    dev_texts: set[str] = field(default_factory=set)
    test_texts: set[str] = field(default_factory=set)
    dev_speakers: set[str] = field(default_factory=set)
    test_speakers: set[str] = field(default_factory=set)
    excluded_speakers: set[str] = field(default_factory=set)

    @classmethod
    def load(cls, path: str | Path | None) -> "Splits":
        """Reads a JSON file of lists; None gives empty splits. Raises ValueError for unknown keys."""
        if path is None:
            return cls()
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(set(content) - known):
            raise ValueError(f"{path} has unknown keys {unknown}; the known ones are {sorted(known)}.")
        values = {key: set(value) for key, value in content.items()}
        for key in ("dev_texts", "test_texts"):
            values[key] = {normalise_text(text) for text in values.get(key, ())}
        return cls(**values)

    def save(self, path: str | Path) -> None:
        content = {entry.name: sorted(getattr(self, entry.name)) for entry in fields(self)}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def assign(self, text: str, speaker: str) -> str:
        """The split of a row. Test wins over dev, dev over train."""
        key = normalise_text(text)
        if key in self.test_texts or speaker in self.test_speakers:
            return "test"
        return "dev" if key in self.dev_texts or speaker in self.dev_speakers else "train"


@dataclass(frozen=True)
class SplitFractions:
    """Held-out fractions for a corpus that has no splits of its own.

    dev, test: fractions of the texts or speakers. by: "text" holds out a sentence with all its takes, "speaker" a
    voice with all its clips (its sentences may be spoken by others). seed: another draw.

    The split follows from (seed, text or speaker) alone: it needs no look at the whole corpus, so it works on a
    stream, and stays as it is when the corpus grows. The fractions are met on average, not exactly.
    """

    dev: float = 0.0
    test: float = 0.0
    by: str = "text"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.by not in ("text", "speaker"):
            raise ValueError(f"Rows can be held out by text or by speaker, not by {self.by!r}.")
        if min(self.dev, self.test) < 0 or self.dev + self.test >= 1:
            raise ValueError(f"The held-out fractions must lie in [0, 1) in sum, got {self.dev} and {self.test}.")

    def assign(self, text: str, speaker: str) -> str:
        """The split of a row."""
        key = speaker if self.by == "speaker" else normalise_text(text)
        digest = hashlib.sha256(f"{self.seed}/{self.by}/{key}".encode()).digest()
        position = int.from_bytes(digest[:8], "big") / 2**64
        if position < self.test:
            return "test"
        return "dev" if position < self.test + self.dev else "train"
