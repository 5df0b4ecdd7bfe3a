"""Which of a corpus's own splits are read, and whether they are for training or held out, by their names."""

import logging
import re
from collections.abc import Sequence

logger = logging.getLogger(__name__)

TRAIN = "train"
# The first word of a name -> what it is for.
NAMES = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("dev", "development", "val", "valid", "validation"), "dev"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
# Common Voice: everything that listeners have accepted, the clips of its train, dev and test among it.
VALIDATED = "validated"
# Common Voice: what listeners have rejected, and what nobody has judged.
UNACCEPTED = ("invalidated", "other")


def first_word(name: str) -> str:
    """The letters that a split's or a shard's name begins with: "train" of train.clean.100, train-0001.tar, train_1."""
    return re.match(r"[a-z]*", name.lower()).group()


def standard_split(name: str) -> str | None:
    """train, dev or test for the name of a split or of its shards; None for any other name."""
    word = first_word(name)
    return TRAIN if word == VALIDATED else NAMES.get(word)


def is_unaccepted(name: str) -> bool:
    """Whether a split holds recordings that its corpus does not vouch for."""
    return first_word(name) in UNACCEPTED


def choose_splits(
    source: str, names: Sequence[str], asked: Sequence[str] = (), may_be_nameless: bool = False
) -> dict[str, str]:
    """Names of the splits that are read -> train, dev or test. Several may be for the same.

    asked: read these, whatever they are called; other names than those of `standard_split` are for training. Without
    it splits of other names are left out with a warning, but where no name is one of a split: then the only one is
    read, or all if `may_be_nameless`, which tar shards are.
    Raises ValueError if there is no such split, or none that can be chosen without being asked for.
    """
    if unknown := [name for name in asked if name not in names]:
        raise ValueError(f"{source} has no splits {unknown}; it has {list(names)}.")
    chosen = {name: standard_split(name) or TRAIN for name in asked}
    if not asked:
        named = [name for name in names if standard_split(name)]
        if any(first_word(name) != VALIDATED for name in named):
            # Beside splits of its own, its clips would bring held-out speakers into training.
            named = [name for name in named if first_word(name) != VALIDATED]
        nameless = [name for name in names if not is_unaccepted(name)]
        if not named and (may_be_nameless or len(nameless) == 1):
            named = nameless
        if not named:
            raise ValueError(
                f"{source} has the splits {list(names)}, none of which is called train, dev or test: name those to "
                "read with --split, which makes training data of them."
            )
        chosen = {name: standard_split(name) or TRAIN for name in named}
        if left := [name for name in names if name not in chosen]:
            logger.warning("%s: the splits %s are not read; --split reads any by name.", source, left)
    if any(first_word(name) == VALIDATED for name in chosen):
        # What comes first keeps a clip that is in several.
        chosen = dict(sorted(chosen.items(), key=lambda item: item[1] == TRAIN))
    return chosen
