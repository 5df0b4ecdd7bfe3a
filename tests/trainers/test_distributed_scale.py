"""The paper's recipes, narrowed: every stage takes a step, and processes, sharded or not, do the work of one.

Losses of two processes equal those of one at the same global batch to 1e-4 of a loss: sums run in another order, which
later steps amplify; nothing else differs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from paper import STAGES, make_paper_folders, narrowed_recipe
from safetensors.torch import load_file
from sharded_run import speak
from stages import logged_losses
from transformers import AutoModel

from e2e_tts.trainers import sharding
from e2e_tts.trainers.recipe import RecipeError, parse_recipe
from e2e_tts.trainers.train import build_trainer

CONFIGS = Path(sharding.__file__).parent / "accelerate_configs"
TWO_STEPS = {"max_steps": 2, "save_steps": 1}
TOLERANCE = {"rel": 1e-4, "abs": 2e-5}


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> Path:
    """Folders in which every stage of the narrowed paper recipes has run for one step, each on the one before."""
    root = tmp_path_factory.mktemp("paper")
    make_paper_folders(root)
    for stage in STAGES:
        trainer = build_trainer(parse_recipe(narrowed_recipe(stage, root)), str(root / stage))
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        unused = []

        def look(*_: object, trainer=trainer, unused=unused) -> None:
            unused += [n for n, p in trainer.model.named_parameters() if p.requires_grad and p.grad is None]

        trainer.optimizer = trainer.create_optimizer()
        trainer.optimizer.register_step_pre_hook(look)
        trainer.train()
        # DDP is told not to look for parameters without a gradient, and would wait for them forever.
        assert trainer.args.ddp_find_unused_parameters is False and unused == [], stage
        changed = {name.split(".")[0] for name, value in trainer.model.state_dict().items()
                   if not value.equal(before[name])}  # fmt: skip
        assert changed == set(trainer.recipe.train), stage
        trainer.save_final(root / stage / "final")
    return root


def test_every_stage_of_the_paper_takes_a_step(stages):
    norms = {}
    for stage in STAGES:
        model = AutoModel.from_pretrained(stages / stage / "final")
        for name, buffer in model.named_buffers():
            if "running" in name:
                norms.setdefault(name, buffer)
                assert buffer.equal(norms[name]), "the pretrained batch statistics moved"
    assert any(name.startswith("encoder") for name in norms) and any(name.startswith("reward") for name in norms)


def two_steps(name: str, stages: Path, **arguments: object) -> dict:
    """The recipe of a stage; stage 3 on the LM's own draws, which are compared, beside its other losses."""
    values = narrowed_recipe(name, stages, **TWO_STEPS, **arguments)
    if name == "end_to_end":
        values["own_history"] = {"draws": 2, "text_guidance": 1.5}
        values["predicted_losses"] |= {"policy": 1.0}
    return values


@pytest.fixture(scope="module")
def runs(stages, tmp_path_factory) -> Path:
    """Two processes, started by `accelerate launch` with the shipped FSDP configuration: see the plan."""
    root = tmp_path_factory.mktemp("runs")
    joint, last = (two_steps(name, stages) for name in ("joint", "end_to_end"))
    stopped = root / "resumed" / "checkpoint-1"
    plan = [
        {"recipe": joint, "output": str(root / "ddp"), "sharded": False},
        {"recipe": joint, "output": str(root / "fsdp"), "sharded": True, "speak": True},
        {"recipe": joint, "output": str(root / "resumed"), "sharded": True, "speak": True, "resume": str(stopped)},
        {"recipe": joint, "output": str(root / "half"), "sharded": True, "precision": "bf16"},
        {"recipe": last, "output": str(root / "ddp_end_to_end"), "sharded": False},
        {"recipe": last, "output": str(root / "fsdp_end_to_end"), "sharded": True},
    ]
    stopped.parent.mkdir()
    stopped.symlink_to(root / "fsdp" / "checkpoint-1")
    (root / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "fsdp.yaml")]
    script = [str(Path(__file__).with_name("sharded_run.py")), str(root / "plan.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [*command, "--num_processes", "2", "--main_process_port", "0", *script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return root


def result(runs: Path, name: str) -> dict:
    return json.loads((runs / name / "result.json").read_text())


@pytest.mark.parametrize(
    "stage, names", [("joint", ("ddp", "fsdp")), ("end_to_end", ("ddp_end_to_end", "fsdp_end_to_end"))]
)
def test_two_processes_do_the_work_of_one(stage, names, stages, runs, tmp_path):
    values = two_steps(stage, stages, gradient_accumulation_steps=2)
    trainer = build_trainer(parse_recipe(values), str(tmp_path))
    trainer.train()
    alone = logged_losses(trainer.state.log_history)
    metrics = {name: value for name, value in trainer.evaluate().items() if "loss" in name}
    for name in names:
        shared = result(runs, name)
        losses = logged_losses(shared["history"])
        assert list(losses) == list(alone) == [1, 2]
        for step in alone:
            assert losses[step] == pytest.approx(alone[step], **TOLERANCE), (name, step)
        assert {key: shared["metrics"][key] for key in metrics} == pytest.approx(metrics, **TOLERANCE), name
        assert bool(shared["sharded"]) is name.startswith("fsdp")


def test_a_sharded_run_is_saved_and_speaks_the_same(runs):
    """The model inside the processes, its whole checkpoint, and the run resumed from shards say the same."""
    spoken = load_file(runs / "fsdp" / "speech.safetensors")
    model = AutoModel.from_pretrained(runs / "fsdp" / "final")
    assert (runs / "fsdp" / "checkpoint-1" / "pytorch_model_fsdp_0").is_dir()
    again = speak(model, model.config.speaker_config.embedding_size)
    assert spoken["ids"].equal(again["ids"]) and spoken["ids"].shape[1] > 1
    torch.testing.assert_close(again["audio"], spoken["audio"], rtol=1e-4, atol=1e-6)
    resumed = load_file(runs / "resumed" / "speech.safetensors")
    assert resumed["ids"].equal(spoken["ids"])
    torch.testing.assert_close(resumed["audio"], spoken["audio"], rtol=1e-4, atol=1e-6)
    whole, second = (logged_losses(result(runs, name)["history"]) for name in ("fsdp", "resumed"))
    assert second == whole


def test_half_precision_shards_compute_the_same_within_its_rounding(runs):
    single, half = (logged_losses(result(runs, name)["history"])[1] for name in ("fsdp", "half"))
    assert half == pytest.approx(single, rel=0.03, abs=0.02) and half != single


def test_shipped_launch_configurations_load():
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    assert names == ["cpu_two_processes", "ddp", "deepspeed_zero2", "deepspeed_zero3", "fsdp"]
    blocks = load_config_from_file(str(CONFIGS / "fsdp.yaml")).fsdp_config["fsdp_transformer_layer_cls_to_wrap"]
    from e2e_tts.modeling import E2ETTSModel

    assert blocks.split(",") == list(E2ETTSModel._no_split_modules)
    for stage in (2, 3):
        file = load_config_from_file(str(CONFIGS / f"deepspeed_zero{stage}.yaml")).deepspeed_config[
            "deepspeed_config_file"
        ]
        assert (CONFIGS.parent.parent / file).samefile(CONFIGS / f"deepspeed_zero{stage}.json")
        assert json.loads((CONFIGS / f"deepspeed_zero{stage}.json").read_text())["zero_optimization"]["stage"] == stage


def test_fsdp_without_gpus_is_refused_instead_of_passed_over(stages, monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(RecipeError, match=r"asks for FSDP, which needs GPUs.*cpu_two_processes"):
        build_trainer(parse_recipe(narrowed_recipe("joint", stages)), str(tmp_path))
