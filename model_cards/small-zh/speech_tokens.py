"""Speech tokens in files: .npy (ids alone), .json, or .safetensors. The file travels with checkpoints."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FORMAT = "e2e_tts_tokens"
SUFFIXES = (".npy", ".json", ".safetensors")


@dataclass
class SpeechTokens:
    """
    ids (`np.ndarray` of shape (T,), int64): indices of the speech codes.
    levels (`list[int]`, *optional*): levels of the tokenizer's dimensions.
    token_rate (`float`, *optional*): tokens a second.
    probe (`np.ndarray` of shape (N,), *optional*): the ids of an artificial clip, by which the tokenizer is recognised.

    `.npy` files hold the ids alone, the others everything.
    """

    ids: np.ndarray
    levels: list[int] | None = None
    token_rate: float | None = None
    probe: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.ids = _whole_numbers(self.ids, "ids")
        if self.ids.size == 0:
            raise ValueError("There are no speech tokens.")
        if self.probe is not None:
            self.probe = _whole_numbers(self.probe, "probe")

    def save(self, path: str | Path) -> None:
        """Writes a file in the format that its suffix names. Raises ValueError for another suffix or no folder."""
        path = _checked(path)
        if not path.parent.is_dir():
            raise ValueError(f"There is no folder {path.parent}; make it first.")
        if path.suffix == ".npy":
            np.save(path, self.ids, allow_pickle=False)
        elif path.suffix == ".json":
            path.write_text(self.to_json() + "\n", encoding="utf-8")
        else:
            from safetensors.numpy import save_file

            save_file(self._arrays(), path, metadata={"format": FORMAT, "about": json.dumps(self._about())})

    def to_json(self) -> str:
        """What a `.json` file holds, on one line."""
        lists = {name: value.tolist() for name, value in self._arrays().items()}
        return json.dumps({"format": FORMAT, **self._about(), **lists})

    @classmethod
    def from_json(cls, text: str) -> "SpeechTokens":
        """Reads what `to_json` gave. Raises ValueError for anything else."""
        values = json.loads(text)
        _check_format(values.pop("format", None) if isinstance(values, dict) else None)
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"entries are missing or unknown: {error}") from error

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: value for name in ("ids", "probe") if (value := getattr(self, name)) is not None}

    def _about(self) -> dict[str, object]:
        return {name: value for name in ("levels", "token_rate") if (value := getattr(self, name)) is not None}

    @classmethod
    def load(cls, path: str | Path) -> "SpeechTokens":
        """Reads what `save` wrote. Raises ValueError for a file that is missing or holds something else."""
        path = _checked(path)
        if not path.is_file():
            raise ValueError(f"There is no token file {path}.")
        try:
            if path.suffix == ".npy":
                return cls(np.load(path, allow_pickle=False))
            if path.suffix == ".json":
                return cls.from_json(path.read_text(encoding="utf-8"))
            from safetensors import safe_open

            with safe_open(path, framework="numpy") as file:
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
                metadata = file.metadata() or {}
            _check_format(metadata.get("format"))
            return cls(**values, **json.loads(metadata.get("about", "{}")))
        except Exception as error:  # each reader has errors of its own for a broken file
            raise ValueError(f"{path} cannot be read as speech tokens: {error}") from error


def _checked(path: str | Path) -> Path:
    if Path(path).suffix not in SUFFIXES:
        raise ValueError(f"Speech tokens are kept in {', '.join(SUFFIXES)} files, got {path}.")
    return Path(path)


def _check_format(found: object) -> None:
    if found != FORMAT:
        raise ValueError(f"its format is {found!r}, not {FORMAT!r}")


def _whole_numbers(values: object, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or array.size == 0):
        raise ValueError(f"{name} must be whole numbers of shape (T,), got {array.dtype} of shape {array.shape}.")
    return array.astype(np.int64)
