"""The ablation runner: what plans resolve to; a miniature trained, resumed, shared, skipped and measured; the table."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from factories import WIDTH, composite_settings, make_dataset
from transformers import AutoModel

from e2e_tts.pipelines.evaluation import ablation_table, held_out_similarity
from e2e_tts.pipelines.evaluation.paired_bootstrap import holm
from e2e_tts.trainers import ablation
from e2e_tts.trainers.ablation import Ablation, CommandError, call
from e2e_tts.trainers.ablation_plan import PlanError, load_plan, parse_plan
from e2e_tts.trainers.recipe import RecipeError

STEPS = 2


# --- plans -------------------------------------------------------------------------------------------------------


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


# --- a miniature -------------------------------------------------------------------------------------------------


class Commands:
    """Runs commands in this process and keeps a list of them. Stands in for the recogniser, which tests do not have."""

    def __init__(self) -> None:
        self.given: list[tuple[str, list[str]]] = []

    def __call__(self, module: str, arguments: list[str]) -> None:
        self.given.append((module.rpartition(".")[2], arguments))
        if not module.endswith("scoring"):
            return call(module, arguments)
        options = dict(zip(arguments[::2], arguments[1::2], strict=True))
        texts = [line.split("\t") for line in Path(options["--texts"]).read_text().splitlines()]
        assert all((Path(options["--audio"]) / f"{name}.wav").is_file() for name, _ in texts)
        rows = [{"reference": f"{text} {name}", "edits": 1, "words": 2} for name, text in texts]
        return Path(options["--output"]).write_text(json.dumps({"rows": rows})) and None

    def count(self, module: str) -> int:
        return sum(name == module for name, _ in self.given)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    arguments = {"max_steps": STEPS, "save_steps": 1, "logging_steps": 1, "use_cpu": True, "disable_tqdm": True}
    shared = {
        "data": {
            "folders": [make_dataset(str(folder / "data"))],
            "weights": {"first": 1.0, "second": 1.0},
            "seconds_per_batch": 2.0,
            "max_rows": 2,
            "eval_rows": 2,
        },
        "arguments": arguments,
    }
    recipes = {
        "joint": {
            "train": ["encoder", "reward", "lm", "decoder"],
            "losses": {"lm": 0.1, "asr": 1.0, "flow": 1.0},
            "model": composite_settings(),
        },
        "refine": {"trainer": "component", "init": "x", "train": ["lm", "decoder"], "losses": {"lm": 1, "flow": 1}},
        "end_to_end": {
            "trainer": "end_to_end",
            "init": "x",
            "init_modules": {"lm": "elsewhere"},
            "train": ["lm", "decoder"],
            "losses": {"lm": 0.5},
            "predicted_losses": {"asr": 1.0, "flow": 1.0},
            "kl": 0.1,
        },
    }
    for name, recipe in recipes.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(shared | recipe))
    on_states = {
        "refine": {"rebuild": {"decoder": {"hidden_condition_size": WIDTH}}, "set": {"predict_from": "hidden"}},
        "end_to_end": {"set": {"predict_from": "hidden"}},
    }
    return parse_plan(
        {
            "seeds": [3],
            "reference": "full",
            "stages": {name: {"recipe": str(folder / f"{name}.yaml")} for name in recipes},
            "measure": {"steps": 1, "guidance": 0.0},
            "rows": {"full": {"label": "full"}, "on_states": {"label": "FM on LM states", "changes": on_states}},
        }
    )


@pytest.fixture(scope="module")
def finished(plan, tmp_path_factory) -> tuple[Ablation, Commands]:
    """Both rows, after the runner was killed in the first row's second stage and started again."""
    commands = Commands()
    work = Ablation(plan, tmp_path_factory.mktemp("ablation"), commands, commands)
    second = plan.cell("full", 3).runs[1]

    def killed(module: str, arguments: list[str]) -> None:
        if second.name not in arguments[1]:
            return commands(module, arguments)
        call(module, [*arguments, "--max_steps", "1"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace(work, train=killed).work(plan.cells())
    assert commands.count("train") == 1
    state = work.run_folder(second) / "checkpoint-1" / "trainer_state.json"
    values = json.loads(state.read_text())
    values["log_history"].append({"first_sitting": True, "step": 1})
    state.write_text(json.dumps(values))
    description = work.describe(plan.cells())
    assert f"{second.name}: 2 steps, to do, at step 1" in description and "5 runs, 7 steps to train" in description
    assert work.work(plan.cells()) == []
    return work, commands


def test_every_run_is_trained_once_and_goes_on_where_it_stopped(plan, finished):
    work, commands = finished
    full, states = plan.cells()
    assert full.runs[0] == states.runs[0]
    assert commands.count("train") == 5 == len(list((work.folder / "runs").iterdir()))
    for run in (*full.runs, *states.runs):
        state = json.loads((work.run_folder(run) / "trainer_state.json").read_text())
        assert state["global_step"] == STEPS
        resumed = any("first_sitting" in entry for entry in state["log_history"])
        assert resumed == (run is full.runs[1])
        assert not list(work.run_folder(run).glob("checkpoint-*")) and work.is_trained(run)


def test_modules_come_from_the_runs_that_trained_them(plan, finished):
    work, _ = finished
    joint, refine, end_to_end = (AutoModel.from_pretrained(work._final(run)) for run in plan.cell("full", 3).runs)
    start = yaml.safe_load((work.run_folder(plan.cell("full", 3).runs[2]) / "recipe.yaml").read_text())
    assert start["init"].endswith(f"{plan.cell('full', 3).runs[0].name}/final")
    assert start["init_modules"].keys() == {"lm", "decoder"}
    assert torch.equal(joint.encoder.to_code.weight, end_to_end.encoder.to_code.weight)
    assert not torch.equal(joint.lm.end_head.weight, refine.lm.end_head.weight)
    states = AutoModel.from_pretrained(work._final(plan.cell("on_states", 3).runs[2]))
    assert states.decoder.config.hidden_condition_size == WIDTH and end_to_end.decoder.config.hidden_condition_size == 0


def test_the_table_has_both_rows(finished):
    work, _ = finished
    full, states = json.loads((work.folder / "table.json").read_text())["rows"]
    measures = {"label_error_rate", "mel_distance_prior", "mel_distance_sampled", "lm_loss"}
    assert full["figures"].keys() == states["figures"].keys() == measures
    assert full["differences"] is None and states["differences"].keys() == measures
    for measure, difference in states["differences"].items():
        value = states["figures"][measure]["value"] - full["figures"][measure]["value"]
        assert difference["value"] == pytest.approx(value)
    # Both rows have the tokenizer and the reward model of the same run.
    assert states["differences"]["label_error_rate"]["p_value"] == 1.0
    assert "| FM on LM states | 1 | 2, 2, 6, 6 |" in (work.folder / "table.md").read_text()


def test_what_is_finished_is_passed_over(plan, finished, capsys):
    work, commands = finished
    before = len(commands.given)
    assert work.work(plan.cells()) == []
    assert [name for name, _ in commands.given[before:]] == ["ablation_table"]
    assert "done before" in capsys.readouterr().out
    assert "0 steps to train" in work.describe(plan.cells())
    # Other sentences are other figures of the same weights.
    fewer = replace(work, plan=replace(plan, measure=replace(plan.measure, limit=2)))
    assert not any(fewer.is_measured(cell) for cell in plan.cells())
    assert all(fewer.is_trained(run) for cell in plan.cells() for run in cell.runs)


def test_a_judge_adds_error_rates_to_finished_cells(plan, finished):
    work, commands = finished
    before = len(commands.given)
    judged = replace(work, judge="some/judge")
    (cell,) = plan.cells(["on_states"])
    assert judged.work([cell]) == []
    names = [name for name, _ in commands.given[before:]]
    assert names == ["held_out_speech", "scoring", "scoring", "ablation_table"]
    assert "similarity" not in (work.folder / "table.md").read_text()
    (row,) = json.loads((work.folder / "table.json").read_text())["rows"]
    assert row["figures"]["speech"]["value"] == row["figures"]["reconstruction"]["value"] == 0.5
    text = (work.folder / "table.md").read_text()
    assert "WER of speech, %" in text and "Not finished: full, seed 3." in text


class PitchJudge:
    """Takes the loudest tenth of the spectrum for the speaker."""

    name, version = "pitch", "1"

    def embed(self, waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
        if not waveform.any():
            raise ValueError("It is silent.")
        bands = np.abs(np.fft.rfft(waveform, 4000))[:2000].reshape(10, 200).sum(axis=1)
        return (bands / np.linalg.norm(bands)).astype(np.float32)


def test_takes_and_a_speaker_judge_are_added_to_finished_cells(plan, finished, monkeypatch):
    monkeypatch.setattr(held_out_similarity, "load_speaker_judge", lambda name: PitchJudge())
    work, commands = finished
    cells = plan.cells()
    first = replace(work, judge="other/judge", plan=replace(plan, measure=replace(plan.measure, takes=2)))
    assert first.work(cells) == []
    seeds = {
        arguments[arguments.index("--seed") + 1]: arguments[arguments.index("--conditions") + 1 :]
        for name, arguments in commands.given
        if name == "held_out_speech"
    }
    assert seeds == {"0": ["speech", "reconstruction"], str(ablation.TAKE_SEED_STEP): ["speech"]}
    wavs = [rendering.wavs / "0000.wav" for rendering in first.renderings(cells[0]) if rendering.condition == "speech"]
    assert len({path.read_bytes() for path in wavs}) == 2

    before = len(commands.given)
    judged = replace(first, speaker_judge="pitch")
    assert not any(judged.is_measured(cell) for cell in cells)
    assert judged.work(cells) == []
    names = [name for name, _ in commands.given[before:]]
    assert names.count("held_out_similarity") == 2 * 3 and "scoring" not in names and "reward_table" not in names
    before = len(commands.given)
    assert judged.work(cells) == []
    assert [name for name, _ in commands.given[before:]] == ["ablation_table"]

    full, states = json.loads((work.folder / "table.json").read_text())["rows"]
    for measure in ("speech_similarity", "reconstruction_similarity"):
        figures = [row["figures"][measure] for row in (full, states)]
        assert all(0 < figure["low"] <= figure["value"] <= figure["high"] <= 1 for figure in figures)
        difference = states["differences"][measure]
        assert difference["value"] == pytest.approx(figures[1]["value"] - figures[0]["value"])
        assert difference["low"] <= difference["value"] <= difference["high"]
    both = [json.loads((path.parent.parent / "speech_similarity_pitch.json").read_text()) for path in wavs]
    means = [np.mean([row["similarity"] for row in report["rows"]]) for report in both]
    assert full["figures"]["speech_similarity"]["value"] == pytest.approx(np.mean(means))
    # The recordings are judged once for all cells.
    vectors = (work.folder / "references" / "vectors.jsonl").read_text().splitlines()
    assert len(vectors) == len({json.loads(line)["name"] for line in vectors})
    assert "speaker similarity of speech" in (work.folder / "table.md").read_text()


def test_a_failed_run_does_not_keep_other_rows_back(plan, tmp_path):
    tried = []

    def train(module: str, arguments: list[str]) -> None:
        tried.append(Path(arguments[3]).name.split("-")[0])
        if tried[-1] == "end_to_end":
            raise CommandError("out of memory")
        (Path(arguments[3]) / "final").mkdir()

    plan = replace(plan, rows=plan.rows | {"joint_alone": replace(plan.rows["full"], label="x", stages=["joint"])})
    measured = []
    work = Ablation(plan, tmp_path, train, lambda module, _: measured.append(module))
    failed = work.work(plan.cells(["full", "joint_alone"]))
    assert tried == ["joint", "refine", "end_to_end"]
    assert [entry.rpartition(": ")[2] for entry in failed] == ["out of memory"] * 2
    assert len(measured) == 1 and measured[0].endswith("reward_table")


def test_command(plan, tmp_path, capsys):
    file = tmp_path / "plan.yaml"
    recipes = {name: {"recipe": stage.recipe} for name, stage in plan.stages.items()}
    file.write_text(yaml.safe_dump(MINIMAL | {"stages": recipes}))
    common = ["--plan", str(file), "--output", str(tmp_path / "out"), "--dry-run"]
    ablation.main([*common, "--set", "joint:arguments.max_steps=7"])
    assert "11 steps to train; judges: none, none" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit, match=r"no rows \['half'\]"):
        ablation.main([*common, "--rows", "half"])
    with pytest.raises(CommandError, match="No recipe"):
        call("e2e_tts.trainers.train", ["--recipe", "no_such", "--output_dir", str(tmp_path)])
    with pytest.raises(CommandError, match="exit code 3"):
        ablation.launch(["sh", "-c"])("exit 3", [])


# --- the table on constructed numbers ----------------------------------------------------------------------------


@pytest.fixture
def constructed(tmp_path) -> dict:
    return construct(tmp_path)


def construct(tmp_path, takes: int = 1) -> dict:
    """Three rows, two seeds, 60 sentences: `worse` adds an edit to every second sentence, `even` moves edits around."""
    edits = {
        "full": lambda sentence, seed: (sentence * 7 + seed) % 3,
        "worse": lambda sentence, seed: (sentence * 7 + seed) % 3 + sentence % 2,
        "even": lambda sentence, seed: (sentence * 7 + seed + 1) % 3,
    }
    cells = []
    for row, count in edits.items():
        for seed in (0, 1):
            utterances = [
                {"sentence": f"s{index:02d}", "measures": {"label_error_rate": [count(index, seed), 10]}}
                for index in range(60)
            ]
            rows = [{"reference": f"s{index:02d}", "edits": count(index, seed), "words": 5} for index in range(60)]
            table, score = tmp_path / f"{row}{seed}.json", tmp_path / f"{row}{seed}_speech.json"
            table.write_text(json.dumps({"utterances": utterances}))
            score.write_text(json.dumps({"rows": rows}))
            updates = dict.fromkeys(("encoder", "reward", "lm", "decoder"), 9)
            cells.append(
                {"row": row, "seed": seed, "updates": updates, "reward_table": str(table),
                 "judged": [{"measure": "speech", "file": str(score)}] * takes}
            )
    rows = {"full": "full", "worse": "a worse one", "even": "another", "absent": "never run"}
    return {"reference": "full", "seeds": [0, 1], "rows": rows, "cells": cells}


def test_table_of_known_differences(constructed):
    full, worse, even = ablation_table.make_rows(constructed)
    assert full.figures["speech"].value == pytest.approx(0.2) and full.differences is None
    assert full.by_seed["label_error_rate"] == pytest.approx({0: 0.1, 1: 0.1})
    assert worse.differences["speech"].value == pytest.approx(0.1)
    assert worse.differences["speech"].low > 0.05 and worse.differences["speech"].p_value < 0.01
    assert abs(even.differences["speech"].value) < 1e-9 and even.differences["speech"].p_value > 0.3
    alone = {**constructed, "cells": [cell for cell in constructed["cells"] if cell["row"] != "even"]}
    (_, unadjusted) = ablation_table.make_rows(alone)
    assert worse.differences["speech"].p_value == pytest.approx(2 * unadjusted.differences["speech"].p_value)
    assert holm([unadjusted.differences["speech"].p_value])[0] == unadjusted.differences["speech"].p_value


def test_saying_a_sentence_again_alike_makes_nothing_surer(tmp_path):
    once, thrice = (ablation_table.make_rows(construct(tmp_path, takes)) for takes in (1, 3))
    for first, second in zip(once, thrice, strict=True):
        assert first.figures["speech"] == second.figures["speech"]
        assert first.differences == second.differences


def test_table_says_what_is_significant_and_what_is_missing(constructed, tmp_path, capsys):
    file = tmp_path / "cells.json"
    file.write_text(json.dumps(constructed))
    ablation_table.main(["--cells", str(file), "--output", str(tmp_path / "out"), "--resamples", "500"])
    text = (tmp_path / "out" / "table.md").read_text()
    assert text in capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0].startswith("| row | seeds | steps learnt")
    assert "| full | 2 | 9, 9, 9, 9 | 20.0 [" in text
    (worse,) = [line for line in lines if line.startswith("| a worse one | +10.0 [")]
    (even,) = [line for line in lines if line.startswith("| another | ") and "[-" in line and ", p " in line]
    assert worse.count(" *") == 2 and even.count(" *") == 0
    assert "Not finished: absent, seed 0; absent, seed 1." in text and "Rows of one seed" not in text
    one_seed = {**constructed, "cells": [cell for cell in constructed["cells"] if cell["seed"] == 1]}
    assert "Rows of one seed" in ablation_table.to_markdown(ablation_table.make_rows(one_seed, resamples=10), one_seed)
    no_reference = {**constructed, "cells": constructed["cells"][2:]}
    assert all(row.differences is None for row in ablation_table.make_rows(no_reference, resamples=10))
    (tmp_path / "full0.json").write_text(json.dumps({"utterances": [{"sentence": "x", "measures": {}}]}))
    (tmp_path / "full0_speech.json").write_text(
        json.dumps({"rows": [{"reference": "x", "edits": 0, "words": 1}]})
    )
    with pytest.raises(SystemExit, match="same sentences"):
        ablation_table.main(["--cells", str(file), "--output", str(tmp_path / "out")])
