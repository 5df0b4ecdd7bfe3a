"""What the plans of the ablation resolve to: rows, the runs that they share, overrides, refused mistakes."""

import pytest

from e2e_tts.trainers.ablation_plan import PlanError, load_plan, parse_plan
from e2e_tts.trainers.recipe import RecipeError


@pytest.fixture(scope="module")
def shipped():
    return load_plan("small", ["joint:arguments.max_steps=40", "refine_lm:arguments.max_steps=20"])


def test_rows_share_what_they_have_in_common(shipped):
    runs = {row: {run.stage: run.key for run in shipped.cell(row, 0).runs} for row in shipped.rows}
    full = runs["full"]
    assert list(full) == list(shipped.stages)
    for row in ("stage_1", "stages_1_2", "stage_2_continued", "end_to_end_without_speaker_loss"):
        assert all(full[stage] == key for stage, key in runs[row].items() if stage != "end_to_end")
        assert runs[row].get("end_to_end") != full["end_to_end"]
    # Another tokenizer is another start for everything; the decoder on hidden states is not for the LM.
    assert not set(runs["without_lm_loss"].values()) & set(full.values())
    hidden = runs["end_to_end_on_hidden_states"]
    assert {stage for stage in full if hidden[stage] != full[stage]} == {"refine_decoder", "end_to_end"}
    other_seed = {run.key for run in shipped.cell("full", 1).runs}
    assert not other_seed & set(full.values())


def test_rows_of_three_stages_learn_for_equally_many_steps(shipped):
    full = shipped.cell("full", 0).updates()
    assert full["lm"] == 40 + 20 + 300 and full["encoder"] == 40
    for row in set(shipped.rows) - {"stage_1", "stages_1_2", "stage_1_lm_weight_raised"}:
        assert shipped.cell(row, 0).updates() == full, row


def test_stages_start_from_the_newest_weights_that_they_use(shipped):
    *_, decoder, reward, end_to_end = shipped.cell("full", 0).runs
    assert decoder.starts == {} and decoder.base.stage == "joint" and reward.starts == {}
    assert {name: run.stage for name, run in end_to_end.starts.items()} == {
        "lm": "refine_lm",
        "decoder": "refine_decoder",
        "reward": "refine_reward",
    }
    assert "init" not in end_to_end.recipe and end_to_end.recipe["init_modules"] == {}
    hidden = {run.stage: run for run in shipped.cell("end_to_end_on_hidden_states", 0).runs}["refine_decoder"]
    assert {name: run.stage for name, run in hidden.starts.items()} == {"lm": "refine_lm", "decoder": "joint"}
    width = hidden.base.recipe["model"]["lm_config"]["text_config"]["hidden_size"]
    assert hidden.rebuild == {"decoder": {"hidden_condition_size": width}}
    assert {name: run.stage for name, run in shipped.cell("stages_1_2", 0).modules.items()} == {
        "lm": "refine_lm",
        "decoder": "refine_decoder",
        "reward": "refine_reward",
    }
    assert shipped.cell("stage_1", 0).modules == {}
    draws = shipped.cell("end_to_end_on_draws", 0).runs[-1]
    assert draws.starts["reward"].stage == "refine_reward"  # who compares the draws
    seeds = [run.recipe["arguments"].get("seed") for run in shipped.cell("full", 2).runs]
    assert seeds == [2000, 2001, 2002, 2003, 2004]


MINIMAL = {
    "stages": {"joint": {"recipe": "small_joint"}, "refine_lm": {"recipe": "small_refine_lm"}},
    "rows": {"full": {"label": "full"}},
    "reference": "full",
}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rows": {}}, "needs stages and rows"),
        ({"reference": "ful"}, "reference names no row: 'ful'"),
        ({"seeds": [1, 1]}, "different numbers"),
        ({"stage": {}}, r"Unknown entries \['stage'\] in the plan"),
        ({"rows": {"full": {}}}, r"rows\.full lacks \['label'\]"),
        ({"rows": {"full": {"label": "x", "stages": ["jiont"]}}}, r"unknown stages \['jiont'\]"),
        (
            {"rows": {"full": {"label": "x", "stages": ["joint"], "changes": {"refine_lm": {}}}}},
            r"changes the stages \['refine_lm'\], which it does not run",
        ),
        ({"stages": ["joint"]}, r"stages in the plan must be a mapping, got \['joint'\]"),
        ({"seeds": 3}, "seeds in the plan must be a list, got 3"),
        ({"rows": {"full": {"label": "x", "stages": "joint"}}}, r"stages in rows\.full must be a list, got 'joint'"),
        (
            {"rows": {"full": {"label": "x", "changes": {"joint": {"steps": 5}}}}},
            r"steps in rows\.full\.changes\.joint must be a list, got 5",
        ),
        ({"measure": {"steps": "x"}}, "measure.steps must be a number, got 'x'"),
        ({"measure": {"limit": 0}}, "at least 1, got 0"),
        ({"measure": {"takes": 0}}, "takes must be a whole number, at least 1, got 0"),
        (
            {"rows": {"full": {"label": "x", "changes": {"joint": {"sett": {}}}}}},
            r"\['sett'\] in rows\.full\.changes\.joint",
        ),
    ],
)
def test_mistakes_in_plans_are_refused(change, message):
    with pytest.raises(PlanError, match=message):
        parse_plan(MINIMAL | change)


def test_mistakes_in_what_plans_name_are_refused(tmp_path):
    for changes, message in (
        ({"joint": {"rebuild": {"lm": {}}}}, "nothing to rebuild"),
        ({"refine_lm": {"rebuild": {"decoder": {}}}}, r"rebuilds \['decoder'\], which it does not use"),
    ):
        plan = parse_plan(MINIMAL | {"rows": {"full": {"label": "x", "changes": changes}}})
        with pytest.raises(PlanError, match=message):
            plan.cells()
    with pytest.raises(PlanError, match=r"no rows \['half'\]"):
        parse_plan(MINIMAL).cells(["half"])
    with pytest.raises(PlanError, match="Overrides look like"):
        parse_plan(MINIMAL, ["jiont:kl=1"])
    with pytest.raises(RecipeError, match="did you mean lm"):
        parse_plan(MINIMAL, ["joint:losses.lmm=1"]).cells()
    with pytest.raises(PlanError, match="vocoder"):
        parse_plan(MINIMAL | {"stages": {"joint": {"recipe": "small_vocoder"}}}).cells()
    with pytest.raises(PlanError, match="one of: closed_vocabulary, small"):
        load_plan("smal")
    (tmp_path / "broken.yaml").write_text("rows: [")
    with pytest.raises(PlanError, match="is not YAML"):
        load_plan(str(tmp_path / "broken.yaml"))


def test_a_plan_extends_another(tmp_path, shipped):
    small, closed = load_plan("small"), load_plan("closed_vocabulary")
    assert list(closed.stages) == list(small.stages) and closed.rows["cascade"] == small.rows["cascade"]
    assert set(closed.rows) < set(small.rows)
    assert closed.measure.takes == 3 and closed.measure.steps == small.measure.steps
    joint = closed.cell("full", 0).runs[0].recipe
    assert joint["model"]["lm_config"]["text_config"]["hidden_size"] == 192
    assert joint["model"]["lm_config"]["text_config"]["vocab_size"] == 79
    assert len(closed.cells()) == len(closed.rows) * len(closed.seeds)
    folder = tmp_path / "plan.yaml"
    folder.write_text("extends: small\nrows: [full, stage_9]")
    with pytest.raises(PlanError, match=r"rows that there are not: \['stage_9'\]"):
        load_plan(str(folder))
    folder.write_text(f"extends: {folder}")
    with pytest.raises(PlanError, match="extends itself"):
        load_plan(str(folder))
    folder.write_text("extends: nowhere")
    with pytest.raises(PlanError, match="No plan 'nowhere'"):
        load_plan(str(folder))


def test_overrides_reach_their_stage_and_rows_win():
    rows = {"full": {"label": "x"}, "other": {"label": "y", "changes": {"joint": {"set": {"losses.lm": 5}}}}}
    overrides = ["data.max_rows=3", "joint:losses.lm=0.7", "measure:limit=4", "measure:sources=[a, b]"]
    plan = parse_plan(MINIMAL | {"rows": rows}, overrides)
    first, second = plan.cell("full", 0).runs
    assert first.recipe["data"]["max_rows"] == second.recipe["data"]["max_rows"] == 3
    assert first.recipe["losses"]["lm"] == 0.7 and second.recipe["losses"]["lm"] == 1.0
    assert plan.cell("other", 0).runs[0].recipe["losses"]["lm"] == 5.0
    assert plan.measure.limit == 4 and plan.measure.sources == ["a", "b"]
    with pytest.raises(PlanError, match=r"'measure:sources=\[a,' has no YAML value: quote"):
        parse_plan(MINIMAL | {"rows": rows}, ["measure:sources=[a,", "b]"])
