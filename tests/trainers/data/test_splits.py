"""What is held out: the same text across spellings, explicit lists, seeded draws and fractions."""

from collections import Counter
from pathlib import Path

import pytest
from recordings import write_metadata

from e2e_tts.trainers.data import make_splits
from e2e_tts.trainers.data.corpus_files import read_metadata
from e2e_tts.trainers.data.splits import SplitFractions, Splits, normalise_text


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Don't go!", "dont go"),
        ("“Eh?” said Tom", "eh said tom"),
        ("well-known", "Well known"),
        ("ﬁne Café", "FINE café"),
    ],
)
def test_a_text_matches_across_spellings(first, second):
    assert normalise_text(first) == normalise_text(second)


def test_test_wins_over_dev_and_dev_over_train():
    splits = Splits(dev_texts={"a b"}, test_texts={"a b", "c d"}, dev_speakers={"dora"}, test_speakers={"tess"})
    assert splits.assign("A b.", "anna") == "test"
    assert splits.assign("C d.", "dora") == "test"
    assert splits.assign("E f.", "tess") == "test"
    assert splits.assign("E f.", "dora") == "dev"
    assert splits.assign("E f.", "anna") == "train"


@pytest.fixture
def corpora(tmp_path) -> tuple[Path, Path]:
    """Metadata of one reader with two takes of each of 30 sentences, and of ten speakers with three clips each."""
    reader = [
        (f"{i}_{take}.wav", f"Sentence number {i} has six words{'!' * take}", "anna")
        for i in range(30)
        for take in (0, 1)
    ]
    crowd = [
        (f"{s}_{i}.wav", f"Sentence number {3 * s + i} has six words", f"s{s}") for s in range(10) for i in range(3)
    ]
    return write_metadata(tmp_path / "reader", reader), write_metadata(tmp_path / "crowd", crowd)


def run_make_splits(corpora: tuple[Path, Path], output: Path, *extra: str) -> Splits:
    requests = ["--by-sentence", f"{corpora[0]}:4:3", "--by-speaker", f"{corpora[1]}:2:1"]
    make_splits.main([*requests, *extra, "--output", str(output)])
    return Splits.load(output)


def test_splits_are_the_same_for_the_same_seed(corpora, tmp_path):
    first, again = tmp_path / "first.json", tmp_path / "again.json"
    splits = run_make_splits(corpora, first)
    run_make_splits(corpora, again)
    assert first.read_bytes() == again.read_bytes()
    assert run_make_splits(corpora, again, "--seed", "1") != splits
    # A folder's choice does not depend on the other folders.
    make_splits.main(["--by-sentence", f"{corpora[0]}:4:3", "--output", str(again)])
    assert Splits.load(again).test_texts <= splits.test_texts


def test_splits_share_nothing(corpora, tmp_path):
    splits = run_make_splits(corpora, tmp_path / "splits.json", "--exclude-speakers", "s9")
    assert len(splits.test_speakers) == 2 and len(splits.dev_speakers) == 1 and splits.excluded_speakers == {"s9"}
    assert not splits.test_speakers & splits.dev_speakers and not splits.test_texts & splits.dev_texts
    assert 4 <= len(splits.test_texts) <= 4 + 2 * 3
    by_split: dict[str, set] = {"train": set(), "dev": set(), "test": set()}
    for folder in corpora:
        for row in read_metadata(folder):
            if row["speaker"] != "s9":
                by_split[splits.assign(row["text"], row["speaker"])].add(normalise_text(row["text"]))
    assert not by_split["train"] & (splits.test_texts | splits.dev_texts)
    assert splits.test_texts == by_split["test"]


def test_splits_say_what_cannot_be_done(corpora, tmp_path, capsys):
    for arguments, message in (
        (["--by-sentence", f"{corpora[0]}:29:29"], "only 30 have at least 6 words"),
        (["--by-speaker", f"{corpora[1]}:9:9"], "only 10 have 2 to 10 clips"),
        (["--by-speaker", f"{corpora[1]}:1:1", "--exclude-speakers", "s"], "expected one speaker"),
        (["--by-sentence", str(corpora[0])], "expected FOLDER:n_test:n_dev"),
    ):
        with pytest.raises(SystemExit):
            make_splits.main([*arguments, "--output", str(tmp_path / "splits.json")])
        assert message in capsys.readouterr().err


def test_unknown_entries_of_a_split_file_are_refused(tmp_path):
    (tmp_path / "splits.json").write_text('{"dev_text": []}', encoding="utf-8")
    with pytest.raises(ValueError, match="unknown keys"):
        Splits.load(tmp_path / "splits.json")


# ---------------------------------------------------------------- fractions


def test_fractions_are_met_and_depend_on_seed_and_key_alone():
    texts = [f"Sentence {number}" for number in range(4000)]
    fractions = SplitFractions(dev=0.1, test=0.2)
    splits = [fractions.assign(text, f"speaker{index % 7}") for index, text in enumerate(texts)]
    shares = Counter(splits)
    # Four standard deviations of a binomial draw.
    assert shares["dev"] / 4000 == pytest.approx(0.1, abs=0.02)
    assert shares["test"] / 4000 == pytest.approx(0.2, abs=0.026)
    assert splits == [fractions.assign(text.upper() + "!", "someone else") for text in texts]
    assert splits != [SplitFractions(dev=0.1, test=0.2, seed=1).assign(text, "") for text in texts]
    # A larger fraction keeps what was held out before.
    larger = SplitFractions(dev=0.1, test=0.4)
    assert all(larger.assign(text, "") == "test" for text, split in zip(texts, splits, strict=True) if split == "test")


def test_speakers_are_held_out_as_a_whole():
    fractions = SplitFractions(dev=0.2, test=0.2, by="speaker")
    splits = {}
    for speaker in map(str, range(60)):
        splits[speaker] = {fractions.assign(f"Text {number}", speaker) for number in range(5)}
    assert all(len(parts) == 1 for parts in splits.values())
    assert {"train", "dev", "test"} == set().union(*splits.values())


@pytest.mark.parametrize("settings", [{"dev": 0.5, "test": 0.5}, {"dev": -0.1}, {"by": "emotion"}])
def test_impossible_fractions_are_refused(settings):
    with pytest.raises(ValueError, match="held"):
        SplitFractions(**settings)
