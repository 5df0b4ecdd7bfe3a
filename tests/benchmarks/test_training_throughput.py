"""Ratios of a training step that do not depend on the machine: counted operations, and generous ones of time."""

import numpy as np
import pytest
import torch
from factories import composite_settings, lm_settings
from training_throughput import (
    LEARNING,
    Cost,
    Workload,
    main,
    padding_waste,
    ratios,
    share_of_peak,
    speech_lengths,
    table,
)

from e2e_tts.trainers.recipe import Recipe, load_recipe, parse_recipe
from e2e_tts.trainers.step_cost import flop_counter


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return parse_recipe(
        {
            "trainer": "joint",
            "model": composite_settings(lm_config=lm_settings(text_positions="aligned")),
            "train": list(LEARNING),
            "losses": {"lm": 0.1, "asr": 1.0, "spk": 1.0, "flow": 1.0, "prior": 1.0},
            "data": {"seconds_per_batch": 4.0},
        }
    )


@pytest.fixture(scope="module")
def costs(recipe) -> dict[str, Cost]:
    return Workload(recipe, 1.0, matrix=128).time(rounds=3)


def test_the_joint_step_costs_what_its_modules_cost_and_less_than_a_cascade(costs):
    values = ratios(costs)
    # Each module's own pass has the gradient of its codes, as in the joint step: nothing comes on top.
    assert values["joint / modules, operations"] == pytest.approx(1.0, abs=0.02)
    assert values["joint / cascade, operations"] < 1.0
    assert values["joint / modules"] < 2.0  # about 1 without other load


def test_cost_is_linear_in_batch_frames(costs):
    counts = {int(name.split()[1]): cost.flops for name, cost in costs.items() if name.startswith("batch")}
    smallest = min(counts)
    assert len(counts) == 3
    for frames, flops in counts.items():
        # Only the LM's keys of the codebook are made once a step.
        assert flops / counts[smallest] == pytest.approx(frames / smallest, rel=0.03)
    assert ratios(costs)["exponent of batch frames, operations"] == pytest.approx(1.0, abs=0.02)
    assert ratios(costs)["exponent of batch frames"] < 1.5


def test_the_table_names_every_part(recipe, costs):
    text = table("tiny", costs, 0.05)
    for name in (*LEARNING, "joint", "optimizer", "cascade tokenizer", "padding in batches"):
        assert f"| {name}" in text


def test_share_of_peak_is_a_ratio_inside_rounds():
    """Twice the operations in twice the time is the same rate, whatever the load of a round."""
    costs = {"matrix": Cost([1.0, 10.0, 2.0], 100), "work": Cost([4.0, 40.0, 8.0], 200)}
    assert share_of_peak(costs, ["work"]) == pytest.approx(0.5)


def test_attention_is_counted():
    query = torch.randn(2, 4, 50, 64, requires_grad=True)
    with flop_counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()
    product = 2 * 2 * 4 * 50 * 50 * 64  # one of queries with keys; two forward, five backward
    assert counter.get_total_flops() == 7 * product


@pytest.mark.parametrize("name", ["small_joint", "small_refine_lm", "paper_joint"])
def test_batches_of_shipped_recipes_hold_little_padding(name):
    recipe = load_recipe(name)
    lengths = speech_lengths(4000, recipe.data.max_seconds)
    assert padding_waste(recipe, lengths) < 0.1
    shuffled = np.random.default_rng(0).permutation(lengths)[:3960].reshape(-1, 6)
    assert 1 - shuffled.sum() / (shuffled.max(axis=1) * 6).sum() > 0.2  # what batches as they come would waste


def test_help_and_a_recipe_of_another_stage(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0 and "--recipe" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--recipe", "small_refine_lm"])
    assert "no stage-1 recipe" in capsys.readouterr().err
