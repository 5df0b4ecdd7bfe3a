"""Columns read through Arrow: the same numbers as from Python lists, in pieces, of chosen rows."""

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from factories import make_rows

from e2e_tts.trainers.built_in_voices import mean_voice
from e2e_tts.trainers.data import columns
from e2e_tts.trainers.data.columns import all_vectors, list_lengths, positions_by_number, vectors


@pytest.fixture
def rows(monkeypatch) -> Dataset:
    """Two data sets put together, of which some rows are chosen out of order."""
    monkeypatch.setattr(columns, "ROWS_PER_PIECE", 3)
    random = np.random.default_rng(0)
    parts = [
        Dataset.from_list(
            [{"vector": random.standard_normal(4).tolist(), "ids": [1] * (index % 4)} for index in range(count)]
        )
        for count in (5, 8)
    ]
    return concatenate_datasets(parts).select([12, 0, 7, 3, 4, 9, 11])


def test_columns_are_those_of_python(rows):
    expected = np.asarray(rows["vector"][:], dtype=np.float32)
    np.testing.assert_array_equal(all_vectors(rows, "vector"), expected)
    assert [len(piece) for piece in vectors(rows, "vector")] == [3, 3, 1]
    assert list_lengths(rows, "ids").tolist() == [len(ids) for ids in rows["ids"][:]]
    uneven = Dataset.from_list([{"vector": [1.0]}, {"vector": [1.0, 2.0]}])
    with pytest.raises(ValueError, match=r"vector of several sizes, \[1, 2\]"):
        all_vectors(uneven, "vector")


def test_positions_by_number():
    numbers = np.array([2, 0, 2, 1, 0, 4])
    expected = [np.flatnonzero(numbers == number) for number in range(5)]
    for found, wanted in zip(positions_by_number(numbers), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_built_in_voice_is_the_mean_of_its_rows(monkeypatch):
    monkeypatch.setattr(columns, "ROWS_PER_PIECE", 3)
    rows = make_rows(7)
    expected = torch.tensor([row["speaker_embedding"] for row in rows]).mean(dim=0)
    embedding, rate = mean_voice(Dataset.from_list(rows), token_rate=25.0)
    torch.testing.assert_close(embedding, torch.nn.functional.normalize(expected, dim=0))
    assert rate == pytest.approx(np.mean([25 * row["seconds"] / len(row["text_ids"]) for row in rows]))
