"""The ablation runner on a miniature: trained, resumed, shared, skipped and measured."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from factories import WIDTH, composite_settings, make_dataset
from transformers import AutoModel

from e2e_tts.pipelines.evaluation import held_out_similarity
from e2e_tts.trainers import ablation
from e2e_tts.trainers.ablation import Ablation, CommandError, call
from e2e_tts.trainers.ablation_plan import parse_plan

STEPS = 2


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
    file.write_text(yaml.safe_dump({"stages": recipes, "rows": {"full": {"label": "full"}}, "reference": "full"}))
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
