"""Tracking through Trainer's own integrations: off unless asked for, and every named loss is followed."""

from importlib.util import find_spec

import pytest
from stages import make_folders, stage_recipe, trainer_losses

from e2e_tts.trainers.recipe import RecipeError
from e2e_tts.trainers.train import build_trainer

QUICK = {"max_steps": 2, "save_strategy": "no"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    return make_folders(tmp_path_factory.mktemp("tracking"))


def test_tensorboard_follows_every_loss(folders, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = build_trainer(
        stage_recipe("joint", folders, arguments={**QUICK, "report_to": "tensorboard"}), str(tmp_path)
    )
    trainer.train()
    (folder,) = {file.parent for file in tmp_path.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder)).Reload()
    for name in ("loss", "loss_lm", "loss_asr", "loss_flow"):
        followed = {event.step: event.value for event in events.Scalars(f"train/{name}")}
        assert followed == pytest.approx({step: losses[name] for step, losses in trainer_losses(trainer).items()})
    assert len(events.Scalars("train/token_entropy")) == 2


def test_nothing_is_tracked_by_default(folders, tmp_path):
    trainer = build_trainer(stage_recipe("joint", folders, arguments=QUICK), str(tmp_path))
    assert trainer.args.report_to == []


def test_a_tracker_that_is_not_installed_is_named(folders, tmp_path):
    assert find_spec("neptune") is None
    with pytest.raises(RecipeError, match=r"neptune is not installed.*e2e-tts\[track\]"):
        build_trainer(stage_recipe("joint", folders, arguments={"report_to": "neptune"}), str(tmp_path))
