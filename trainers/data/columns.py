"""Columns of large data sets as numpy arrays, read through Arrow piece by piece: Python lists of numbers take many
times the memory."""

from collections.abc import Iterator

import numpy as np
import pyarrow
import pyarrow.compute as pc
from datasets import Dataset

ROWS_PER_PIECE = 10_000


def pieces(rows: Dataset, column: str) -> Iterator[pyarrow.Array]:
    """A column in the order of the rows, as Arrow has it."""
    alone = rows.select_columns([column]).with_format("arrow")
    for start in range(0, len(alone), ROWS_PER_PIECE):
        yield alone[start : start + ROWS_PER_PIECE][column].combine_chunks()


def list_lengths(rows: Dataset, column: str) -> np.ndarray:
    """How long the list of each row is (rows,); 0 where there is none."""
    lengths = (pc.list_value_length(piece).fill_null(0) for piece in pieces(rows, column))
    return np.concatenate([np.zeros(0, dtype=np.int64), *(piece.to_numpy(zero_copy_only=False) for piece in lengths)])


def vectors(rows: Dataset, column: str) -> Iterator[np.ndarray]:
    """A column of vectors in pieces (some rows, S), float32. Raises ValueError for vectors of several sizes."""
    sizes: set[int] = set()
    for piece in pieces(rows, column):
        sizes |= set(pc.list_value_length(piece).fill_null(0).unique().to_pylist())
        if len(sizes) > 1:
            raise ValueError(f"The rows have {column} of several sizes, {sorted(sizes)}: annotate them again, alike.")
        yield piece.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(piece), -1)


def all_vectors(rows: Dataset, column: str) -> np.ndarray:
    """A column of vectors as one array (rows, S), float32. Raises ValueError as `vectors` does, and for no rows."""
    return np.concatenate(list(vectors(rows, column)))


def positions_by_number(numbers: np.ndarray) -> list[np.ndarray]:
    """Where each number from 0 on stands among `numbers` (rows,), in ascending order; one pass for all of them."""
    order = np.argsort(numbers, kind="stable")
    ends = np.bincount(numbers).cumsum() if len(numbers) else np.zeros(0, dtype=np.int64)
    return np.split(order, ends[:-1])
