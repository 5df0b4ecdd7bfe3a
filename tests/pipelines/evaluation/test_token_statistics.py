"""Entropy and mutual information against closed forms, what the corrections gain, equal counts, and the command."""

import json

import numpy as np
import pytest
from factories import LEVELS, make_dataset, make_encoder

from e2e_tts.pipelines.evaluation import token_statistics as statistics
from e2e_tts.pipelines.evaluation.token_statistics import (
    centred_interval,
    chao_shen_entropy,
    compare,
    cut,
    estimate,
    half_samples,
    miller_madow_entropy,
    mutual_information,
    plugin_entropy,
    shuffled_information,
    split_levels,
)


class MarkovChain:
    """A chain with closed-form entropy and information: H(pi), and H(pi) less the mean entropy of the rows."""

    def __init__(self, codes: int, concentration: float, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.transition = self.random.dirichlet(np.full(codes, concentration), codes)
        stationary = np.full(codes, 1 / codes)
        for _ in range(2000):
            stationary = stationary @ self.transition
        self.stationary = stationary / stationary.sum()
        rows = np.array([plugin_entropy(row) for row in self.transition])
        self.entropy = plugin_entropy(self.stationary)
        self.information = self.entropy - float(self.stationary @ rows)

    def sample(self, utterances: int, length: int = 50) -> list[np.ndarray]:
        cumulative = self.transition.cumsum(axis=1)
        state = self.random.choice(len(self.stationary), utterances, p=self.stationary)
        states = [state]
        for _ in range(length - 1):
            draws = self.random.random(utterances)[:, None]
            state = (cumulative[state] < draws).sum(axis=1).clip(max=len(self.stationary) - 1)
            states.append(state)
        return list(np.stack(states, axis=1))


def test_many_tokens_give_the_closed_form():
    chain = MarkovChain(codes=16, concentration=0.3, seed=0)
    got = estimate(chain.sample(utterances=2000), 16)
    assert got["entropy"] == pytest.approx(chain.entropy, abs=0.01)
    assert got["mutual_information"] == pytest.approx(chain.information, abs=0.02)
    assert got["code_use"] == 1.0


def test_known_limits():
    random = np.random.default_rng(0)
    independent = list(random.integers(0, 8, (400, 100)))
    assert mutual_information(independent, 8, chao_shen_entropy) == pytest.approx(0.0, abs=0.01)
    # A cycle says everything about what comes next: information equals entropy.
    cycle = [np.arange(start, start + 80) % 8 for start in range(8)]
    assert mutual_information(cycle, 8, chao_shen_entropy) == pytest.approx(3.0, abs=1e-6)
    assert estimate(cycle, 8)["entropy"] == pytest.approx(3.0, abs=0.01)
    constant = [np.zeros(10, dtype=int)] * 3
    assert estimate(constant, 8) == {"entropy": 0.0, "mutual_information": 0.0, "code_use": 1 / 8}
    with pytest.raises(ValueError, match="two tokens or more"):
        mutual_information([np.array([1])], 8, plugin_entropy)


@pytest.mark.parametrize("concentration", [0.05, 0.3, 1.0])
def test_corrections_help_when_tokens_are_few(concentration):
    errors = {name: [] for name in ("plugin", "miller_madow", "chao_shen")}
    entropy_errors = {"plugin": [], "miller_madow": []}
    for seed in range(5):
        chain = MarkovChain(codes=128, concentration=concentration, seed=seed)
        sequences = chain.sample(utterances=60)
        counts = np.bincount(np.concatenate(sequences), minlength=128)
        for name, entropy in (
            ("plugin", plugin_entropy),
            ("miller_madow", miller_madow_entropy),
            ("chao_shen", chao_shen_entropy),
        ):
            errors[name].append(mutual_information(sequences, 128, entropy) - chain.information)
            if name in entropy_errors:
                entropy_errors[name].append(entropy(counts) - chain.entropy)
        # The two uncorrected ends enclose the truth.
        upper = mutual_information(sequences, 128, plugin_entropy)
        assert upper - shuffled_information(sequences, 128) < chain.information < upper
    means = {name: abs(np.mean(values)) for name, values in errors.items()}
    assert means["chao_shen"] < 0.6 * means["plugin"] and means["chao_shen"] < means["miller_madow"]
    assert abs(np.mean(entropy_errors["miller_madow"])) < 0.7 * abs(np.mean(entropy_errors["plugin"]))


def test_neighbours_do_not_reach_across_utterances():
    apart = [np.array([0, 0, 0]), np.array([1, 1, 1])]
    assert mutual_information(apart, 2, plugin_entropy) == pytest.approx(1.0)


def test_intervals_cover_the_value_of_the_whole():
    chain = MarkovChain(codes=32, concentration=0.2, seed=1)
    truth = estimate(chain.sample(utterances=4000), 32)
    covered = {"entropy": 0, "mutual_information": 0}
    for trial in range(20):
        sequences = chain.sample(utterances=80)
        draws = half_samples(sequences, 32, 80, resamples=60, seed=trial)
        values = estimate(sequences, 32)
        for name in covered:
            low, high = centred_interval(values[name], draws[name])
            covered[name] += low <= truth[name] <= high
            assert low < values[name] < high
    assert min(covered.values()) >= 14


def test_tokenizers_are_compared_at_equal_counts_on_the_same_halves():
    chain = MarkovChain(codes=36, concentration=0.2, seed=2)
    sequences = chain.sample(utterances=30)
    # The second has twice the token rate; cut to the same number of tokens, it is the first one again.
    twice = [np.concatenate([a, b]) for a, b in zip(sequences[::2], sequences[1::2], strict=True)] * 2
    reports, differences = compare({"a": sequences, "b": twice}, {"a": LEVELS, "b": LEVELS}, resamples=20)
    assert [report.tokens for report in reports] == [1500, 1500]
    assert differences[0]["entropy"]["value"] == pytest.approx(0.0)
    (same, again), (difference,) = compare({"a": sequences, "b": sequences}, {"a": LEVELS, "b": LEVELS}, resamples=20)
    assert same.intervals == again.intervals
    assert difference["mutual_information"] == {"value": 0.0, "interval": (0.0, 0.0)}
    assert same.mutual_information_less_shuffled < same.mutual_information < same.mutual_information_plugin
    assert sum(same.ranked_counts) == 1500 and same.ranked_counts == sorted(same.ranked_counts, reverse=True)
    for shares, level in zip(same.levels, LEVELS, strict=True):
        assert len(shares) == level and sum(shares) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="same utterances"):
        compare({"a": sequences, "b": sequences[1:]}, {"a": LEVELS, "b": LEVELS})
    with pytest.raises(ValueError, match="No utterance of a has two tokens"):
        compare({"a": [ids[:1] for ids in sequences]}, {"a": LEVELS})
    with pytest.raises(ValueError, match="resamples must be at least 1"):
        compare({"a": sequences}, {"a": LEVELS}, resamples=0)


def test_cut_and_levels_follow_the_codes():
    assert [ids.tolist() for ids in cut([np.arange(3), np.arange(4), np.arange(5)], 5)] == [[0, 1, 2], [0, 1]]
    encoder = make_encoder()
    ids = np.arange(encoder.quantizer.num_codes)
    codes = encoder.quantizer.codebook.numpy().T
    for digits, values, level in zip(split_levels(ids, LEVELS), codes, LEVELS, strict=True):
        np.testing.assert_allclose(digits * 2 / (level - 1) - 1, values, atol=1e-6)


def test_command(tmp_path, capsys):
    data = make_dataset(str(tmp_path / "data"))
    make_encoder().save_pretrained(tmp_path / "encoder")
    arguments = ["--data", data, "--split", "train", "--output", str(tmp_path / "out"), "--resamples", "10"]
    models = ["--model", f"a={tmp_path}/encoder", "--model", f"b={tmp_path}/encoder"]
    statistics.main([*arguments, *models, "--device", "cpu"])
    assert "| a | " in capsys.readouterr().out
    values = json.loads((tmp_path / "out" / "token_statistics.json").read_text())
    first, second = values["tokenizers"]
    assert first["utterances"] == 12 and first["entropy"] == second["entropy"]
    assert (tmp_path / "out" / "token_statistics.md").read_text().count("| b | ") == 1 + len(LEVELS)
    for name in ("rank_frequency.png", "levels.png"):
        assert (tmp_path / "out" / name).stat().st_size > 1000
    for wrong, message in (
        (["--model", "nameless"], "NAME=FOLDER"),
        (["--model", f"a={tmp_path}"], "not a checkpoint"),
        ([*models, "--device", "nowhere"], "--device nowhere cannot be used"),
        ([*models, "--sources", "third"], "there are .*first.*second"),
        ([*models, "--limit", "0"], "at least 1"),
    ):
        with pytest.raises(SystemExit, match=message):
            statistics.main([*arguments, *wrong])
