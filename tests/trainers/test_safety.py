"""Safety nets on constructed series and broken runs: divergence, saved batches, collapse alarms, clipping by module."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from stages import make_folders, recipe_values, stage_recipe
from transformers import TrainerCallback

from e2e_tts.trainers.recipe import RecipeError, SafetyRecipe, parse_recipe
from e2e_tts.trainers.safety import collapse_signs, divergence
from e2e_tts.trainers.stage_trainers import SpeechTrainer
from e2e_tts.trainers.train import build_trainer, main

FALLING = [{"loss": 4.0 - 0.1 * step} for step in range(30)]
SETTINGS = SafetyRecipe(alarm_logs=5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    return make_folders(tmp_path_factory.mktemp("safety"))


def history(count: int = 40, **series) -> list[dict]:
    """A log whose entries are functions of their number; the others stay as they are in a healthy run."""
    healthy = {
        "token_entropy": lambda k: 9.0 - 4.0 * math.exp(-k / 5),
        "code_use": lambda k: 0.9,
        "loss_lm": lambda k: 5.0 - 0.01 * k,
        "loss_prior": lambda k: 0.1 + 0.5 * math.exp(-k / 10),
        "loss_flow": lambda k: 0.2 + math.exp(-k / 10),
    }
    return [{"loss": 1.0, **{name: f(k) for name, f in (healthy | series).items()}} for k in range(count)]


def test_divergence():
    assert divergence(3.0, FALLING, 10.0) is None
    assert divergence(21.0, FALLING, 10.0).startswith("is 21, above 10 times its running median 2.0")
    # The median of the last 20 logs, 2.05, not of all and not of the last one.
    assert divergence(20.4, FALLING, 10.0) is None and divergence(20.6, FALLING, 10.0) is not None
    assert "not finite" in divergence(math.nan, [], 0.0) and "not finite" in divergence(math.inf, [], 0.0)
    assert divergence(1e9, FALLING[:4], 10.0) is None and divergence(1e9, FALLING, 0.0) is None


def test_a_single_spike_in_the_log_does_not_hide_divergence():
    spiky = [dict(entry) for entry in FALLING]
    spiky[-1]["loss"] = 1e6
    assert divergence(50.0, spiky, 10.0) is not None


def test_a_healthy_run_rings_no_alarm():
    for count in range(1, 60):
        assert collapse_signs(history(count), SETTINGS) == {}


def test_collapse_of_the_tokens_rings_an_alarm():
    falling = history(token_entropy=lambda k: 9.0 if k < 20 else 9.0 - 0.1 * (k - 20))
    signs = collapse_signs(falling, SETTINGS)
    assert set(signs) == {"token_entropy"} and "from 9 to 7.3" in signs["token_entropy"]
    signs = collapse_signs(history(code_use=lambda k: 0.9 if k < 20 else 0.5), SETTINGS)
    assert set(signs) == {"code_use"} and "from 0.9 to 0.5" in signs["code_use"]


def test_predictability_at_the_cost_of_reconstruction_rings_an_alarm():
    worse = {"loss_prior": lambda k: 0.16 if k < 15 else 0.16 + 0.005 * (k - 15)}
    easier = {"loss_lm": lambda k: 5.0 - 0.06 * k}
    assert set(collapse_signs(history(**worse, **easier), SETTINGS)) == {"loss_prior"}
    # Either of them alone is none: losses wander, and the LM is meant to learn.
    assert collapse_signs(history(**worse), SETTINGS) == {}
    assert collapse_signs(history(**easier), SETTINGS) == {}


def test_a_passing_dip_rings_no_alarm():
    dip = history(token_entropy=lambda k: 7.0 if k == 38 else 9.0, code_use=lambda k: 0.5 if k == 38 else 0.9)
    assert collapse_signs(dip, SETTINGS) == {}


class Break(TrainerCallback):
    """Spoils a weight of the decoder after a step, so that the next batch meets a broken model."""

    def __init__(self, trainer: SpeechTrainer, step: int, value: float) -> None:
        self.trainer, self.step, self.value = trainer, step, value

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                self.trainer.composite.decoder.project_out.bias.fill_(self.value)


@pytest.mark.parametrize("value, reason", [(float("nan"), "is not finite"), (1e3, "above 10 times its running median")])
def test_a_diverging_run_stops_and_saves_the_batch(value, reason, folders, tmp_path):
    settings = {"max_steps": 12, "save_strategy": "no", "gradient_accumulation_steps": 2}
    trainer = build_trainer(stage_recipe("joint", folders, arguments=settings), str(tmp_path))
    trainer.add_callback(Break(trainer, 7, value))
    with pytest.raises(FloatingPointError, match=reason):
        trainer.train()
    folder = tmp_path / "bad_batch" / "step-7"
    report = json.loads((folder / "report.json").read_text())
    assert reason in report["reason"] and report["step"] == 7
    (batch,) = report["batches"]  # the first of the step's two was already too much
    assert {"loss_lm", "loss_flow", "loss_prior"} <= set(batch["losses"])
    tensors = load_file(folder / "batch-0.safetensors")
    rows = [utterance["row"] for utterance in batch["utterances"]]
    assert tensors["utterance"].tolist() == rows and len(tensors["input_features"]) == len(rows)
    assert [utterance["id"] for utterance in batch["utterances"]] == [f"train-{row}" for row in rows]
    seeds = trainer.seeds(torch.tensor(rows), 7).tolist()
    assert [utterance["seed"] for utterance in batch["utterances"]] == seeds


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_spoilt(folders, tmp_path):
    trainer = build_trainer(stage_recipe("joint", folders), str(tmp_path))
    trainer.composite.lm.end_head.bias.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match="gradient is not finite at step 0"):
        trainer.train()
    assert all(bool(torch.isfinite(parameter).all()) for parameter in trainer.composite.parameters())
    assert (tmp_path / "bad_batch" / "step-0" / "report.json").is_file()


def test_the_command_ends_with_the_reason(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(SpeechTrainer, "weighted_sum", staticmethod(lambda output, weights: output.loss_lm * math.nan))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(recipe_values("joint", folders)))
    with pytest.raises(SystemExit, match=r"not finite at step 0.*bad_batch"):
        main(["--recipe", str(recipe), "--output_dir", str(tmp_path / "run")])


def test_alarms_are_told_once_and_can_stop_the_run(folders, tmp_path, caplog):
    for stop in (False, True):
        safety = {"alarm_logs": 1, "tradeoff": 0.0, "entropy_drop": -10.0, "stop_on_alarm": stop}
        recipe = stage_recipe("joint", folders, safety=safety, arguments={"save_strategy": "no"})
        trainer = build_trainer(recipe, str(tmp_path / str(stop)))
        caplog.clear()
        trainer.train()
        alarms = [record.message for record in caplog.records if "entropy of the tokens" in record.message]
        assert len(alarms) == 1 and "Collapse alarm at step 2" in alarms[0]
        assert trainer.state.global_step == (2 if stop else 6)
        assert (tmp_path / str(stop) / "checkpoint-2").is_dir() is stop


def test_a_run_that_an_alarm_stopped_leaves_no_final_model(folders, tmp_path):
    safety = {"alarm_logs": 1, "tradeoff": 0.0, "entropy_drop": -10.0, "stop_on_alarm": True}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(recipe_values("joint", folders, safety=safety)))
    command = ["--recipe", str(recipe), "--output_dir", str(tmp_path / "run")]
    main([*command, "--max_steps", "1"])
    # That of a shorter run is not taken for its own.
    with pytest.raises(SystemExit, match="stopped at step 2 of 6 by a collapse alarm"):
        main(command)
    assert (tmp_path / "run" / "checkpoint-2").is_dir() and not (tmp_path / "run" / "final").exists()
    assert (tmp_path / "run" / "earlier-1" / "final" / "config.json").is_file()


def test_each_module_is_clipped_by_itself(folders, tmp_path):
    limits = {"encoder": 0.01, "decoder": 0.5}
    recipe = stage_recipe("joint", folders, max_grad_norms=limits, arguments={"max_grad_norm": 0.2})
    trainer = build_trainer(recipe, str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    for parameter in trainer.composite.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) if parameter.requires_grad else None

    def norm(*modules: str) -> float:
        parameters = [p for name in modules for p in getattr(trainer.composite, name).parameters() if p.requires_grad]
        return float(torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in parameters])))

    before = norm("encoder", "reward", "lm", "decoder")
    assert float(trainer._clip_grad_norm(trainer.model)) == pytest.approx(before, rel=1e-5)
    assert norm("encoder") == pytest.approx(0.01, rel=1e-3) and norm("decoder") == pytest.approx(0.5, rel=1e-3)
    assert norm("reward", "lm") == pytest.approx(0.2, rel=1e-3)


def test_ramps(folders, tmp_path):
    values = {"losses": {"lm": 0.5, "flow": 2.0}, "ramp_steps": {"flow": 4, "kl": 10, "predicted_asr": 5}}
    trainer = build_trainer(stage_recipe("end_to_end", folders, **values), str(tmp_path))
    weights = trainer.weights(0)
    assert weights["loss_lm"] == 0.5 and weights["loss_flow"] == 0.5
    assert weights["loss_kl"] == pytest.approx(0.01) and weights["predicted_loss_asr"] == pytest.approx(0.2)
    assert trainer.weights(100) == trainer.full_weights()
    minimal = {"train": ["lm"], "init": "somewhere"}
    with pytest.raises(RecipeError, match=r"'flwo' in ramp_steps.*flow"):
        parse_recipe({**minimal, "ramp_steps": {"flwo": 3}})
