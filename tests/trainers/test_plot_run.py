"""Curves of runs: panels of what was logged, and nothing where nothing was."""

import json

import pytest

from e2e_tts.trainers.plot_run import curves, main, names_of

LM = [{"step": 1, "loss_lm": 3.0}, {"step": 2, "loss_lm": "2.5", "loss_kl": 0.1}, {"step": 2, "eval_loss": 1.0}]


def test_panels_are_those_that_were_logged():
    panels = curves({"first": LM, "second": [{"step": 5, "loss_lm": 2.0}]})
    assert panels == {
        "L_LM, nats a token": {"first: loss_lm": [(1, 3.0), (2, 2.5)], "second: loss_lm": [(5, 2.0)]},
        "anchor, nats a token": {"first: loss_kl": [(2, 0.1)]},
    }


def test_runs_of_one_name_are_told_apart():
    assert names_of(["runs/a/joint", "runs/b/joint"]) == ["a/joint", "b/joint"]
    assert names_of(["runs/joint/"]) == ["joint"] and names_of(["x/joint", "x/joint/more"]) == [".", "more"]


def test_a_picture_of_a_run_and_none_of_an_empty_one(tmp_path):
    for name, history in {"run": LM, "empty": []}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    main([str(tmp_path / "run"), "--output", str(tmp_path / "run.png")])
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="is this the folder of a run"):
        main([str(tmp_path / "absent"), "--output", str(tmp_path / "absent.png")])
    with pytest.raises(SystemExit, match="nothing of what is plotted has been logged yet"):
        main([str(tmp_path / "empty"), "--output", str(tmp_path / "empty.png")])
