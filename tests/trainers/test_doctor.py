"""The doctor passes a recipe that trains, and names the mistakes of one that would not, with what to do."""

import json
import re
from pathlib import Path

import pytest
from datasets import Dataset
from factories import composite_settings, make_composite, make_rows, vocoder_settings
from stages import LORA, make_folders, recipe_values

from e2e_tts.trainers import doctor


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    return make_folders(tmp_path_factory.mktemp("doctor"))


def examine(values: dict, folder: Path, *options: str) -> int:
    """Writes the recipe and runs the command; returns its exit code."""
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(values))
    try:
        doctor.main(["--recipe", str(file), *options])
    except SystemExit as error:
        assert "the run would fail" in str(error)
        return 1
    return 0


def test_a_recipe_that_trains(folders, tmp_path, capsys):
    changes = {"ema": {"decoder": 0.9}, "samples": {"every": 1}, "arguments": {"max_steps": 720}}
    assert examine(recipe_values("joint", folders, **changes), tmp_path, "--steps", "3") == 0
    text = capsys.readouterr().out
    assert "[problem]" not in text and "[warning]" not in text and text.endswith("ready\n")
    assert "720 steps on cpu" in text and "levels [4, 3, 3] and 25 tokens a second" in text
    assert re.search(r"first: 6 rows, 0.00 h, share 0.67, read \d+\.\d times", text)
    assert re.search(r"share of padding \d+\.\d%", text) and "3 steps, loss" in text
    seconds, *clock = re.search(r"([\d.]+) s a step, (\d+):(\d+):(\d+) \(h:mm:ss\) for 720", text).groups()
    estimate = sum(int(part) * unit for part, unit in zip(clock, (3600, 60, 1), strict=True))
    assert estimate == pytest.approx(float(seconds) * 720, abs=0.005 * 720 + 1)
    assert not list(tmp_path.glob("*/")), "nothing is left behind"


def test_lora_needs_less_memory(folders, tmp_path, capsys):
    learning = []
    for changes in (LORA, {**LORA, "lora": None}):
        assert examine(recipe_values("component", folders, **changes), tmp_path, "--steps", "0") == 0
        learning.append(float(re.search(r"([\d.]+) M learn", capsys.readouterr().out).group(1)))
    assert learning[0] < learning[1]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"losses": {"flwo": 1.0}}, r"recipe .*did you mean flow"),
        ({"init": "/nowhere"}, r"model .*/nowhere"),
        ({"arguments": {"bf16": True}}, r"arguments .*bf16=false"),
        ({"arguments": {"max_steps": 0}}, r"arguments .*max_steps must be set"),
        ({"arguments": {"lr_scheduler_type": "cosin"}}, r"arguments .*cosin"),
        ({"data": {"folders": ["/nowhere"]}}, r"data .*/nowhere"),
        ({"data": {"weights": {"third": 1.0}}}, r"data .*'third'"),
        ({"data": {"max_seconds": 0.1}}, r"data .*no rows"),
        ({"lora": {"targets": {"lm": ["nothing"]}}}, r"no linear layer ends in 'nothing'"),
        ({"losses": {"flow": 1.0}}, r"train names reward, but no loss reaches it"),
    ],
)
def test_mistakes_are_problems(changes, message, folders, tmp_path, capsys):
    values = recipe_values("joint", folders, **{key: value for key, value in changes.items() if key != "data"})
    values["data"] = values["data"] | changes.get("data", {})
    assert examine(values, tmp_path, "--steps", "2") == 1
    assert re.search(rf"\[problem\] +.*{message}", capsys.readouterr().out)


@pytest.mark.parametrize("changes", [{"init": "runs/jiont/final"}, {"init_modules": {"lm": "runs/jiont/final"}}])
def test_a_stage_before_that_is_not_there_hides_nothing_else(changes, folders, tmp_path, capsys):
    values = recipe_values("joint", folders, voices={"mine": "third:nobody"}, **changes)
    assert examine(values, tmp_path) == 1
    text = capsys.readouterr().out
    assert re.search(r"problem\] model +init: runs/jiont/final cannot be loaded\. Is the stage before this one", text)
    assert re.search(r"problem\] voices +voices\.mine: no training rows of 'third:nobody'; there are \['first:", text)
    assert re.search(r"ok\] +data +first: 6 rows", text) and re.search(r"ok\] +held out", text)


def test_voices_are_looked_for_without_steps(folders, tmp_path, capsys):
    spoken = {"predicted_losses": {"policy": 1.0}, "own_history": {"draws": 2, "voices": {"mine": 1.0}}}
    assert examine(recipe_values("end_to_end", folders, **spoken), tmp_path, "--steps", "0") == 1
    assert re.search(r"problem\] voices +own_history\.voices: \['mine'\] are not built in", capsys.readouterr().out)
    # A voice that the run itself stores is there when it draws.
    assert (
        examine(recipe_values("end_to_end", folders, voices={"mine": "first"}, **spoken), tmp_path, "--steps", "0") == 0
    )


def test_parts_that_do_not_fit_are_problems(folders, tmp_path, capsys):
    mel = {"sampling_rate": 16000, "hop_length": 320, "num_mel_bins": 64}
    model = composite_settings(vocoder_config=vocoder_settings(mel=mel))
    assert examine(recipe_values("joint", folders, init=None, model=model), tmp_path) == 1
    assert "decoder's and the vocoder's mel differ (num_mel_bins: 80 vs 64" in capsys.readouterr().out
    other = make_composite(**{key: {**value, "levels": [5, 3]} if "levels" in value else value
                              for key, value in composite_settings().items()})  # fmt: skip
    other.lm.save_pretrained(tmp_path / "lm")
    assert examine(recipe_values("joint", folders, init_modules={"lm": str(tmp_path / "lm")}), tmp_path) == 1
    assert "FSQ levels differ: encoder_config has [4, 3, 3], lm_config has [5, 3]" in capsys.readouterr().out


def test_data_of_another_model_is_a_problem(folders, tmp_path, capsys):
    rows = make_rows(6, sampling_rate=24000) + make_rows(2, split="dev", seed=1, sampling_rate=24000)
    rows = [row | {"text_ids": [99], "speaker_embedding": [0.0] * 8} for row in rows]
    Dataset.from_list(rows).save_to_disk(tmp_path / "data")
    values = recipe_values("joint", folders)
    values["data"]["folders"] = [str(tmp_path / "data")]
    assert examine(values, tmp_path) == 1
    text = capsys.readouterr().out
    assert "24000 Hz" in text and "text_ids go up to 99, but the LM's vocab_size is 20" in text
    assert "speaker_embedding has 8 values, the model's are 16" in text
    assert "s a step" not in text, "a run that would fail is not begun"


def test_a_weighted_loss_that_is_not_there_is_told(folders, tmp_path, capsys):
    values = recipe_values("joint", folders, losses={"lm": 0.1, "asr": 1.0, "flow": 1.0, "ser": 1.0})
    assert examine(values, tmp_path, "--steps", "2") == 0
    assert re.search(r"\[warning\] losses +ser ", capsys.readouterr().out)


@pytest.mark.parametrize("look, code, kind", [(False, 1, "problem"), (True, 0, "warning")])
def test_weights_that_no_loss_reaches_are_told(look, code, kind, folders, tmp_path, capsys):
    changes = {"train": ["decoder"], "losses": {"prior": 1.0}, "arguments": {"ddp_find_unused_parameters": look}}
    assert examine(recipe_values("component", folders, **changes), tmp_path, "--steps", "2") == code
    text = capsys.readouterr().out
    assert re.search(rf"\[{kind}\] +losses +no loss reaches \d+ of the weights of decoder that learn, \S+ among", text)


def test_a_model_too_large_for_the_machine_is_not_built(folders, tmp_path, capsys, monkeypatch):
    class Little:
        available = 1000

    monkeypatch.setattr(doctor.psutil, "virtual_memory", Little)
    assert examine(recipe_values("joint", folders), tmp_path) == 1
    text = capsys.readouterr().out
    assert re.search(r"\[problem\] memory .*Use lora", text) and "s a step" not in text


def test_a_vocoder_recipe(folders, tmp_path, capsys):
    values = {
        "trainer": "vocoder",
        "folders": [folders["data"]],
        "model": vocoder_settings(),
        "crops": {"crop_seconds": 0.2, "source_weights": {"first": 1.0}, "eval_crops": 2},
        "arguments": {"max_steps": 50, "per_device_train_batch_size": 2, "use_cpu": True},
    }
    assert examine(values, tmp_path, "--steps", "2") == 0
    assert "for 50 steps" in capsys.readouterr().out
    assert examine(values | {"folders": ["/nowhere"]}, tmp_path) == 1
    for changes, message in (
        ({"discriminator": {"kind": "wgan"}}, r"discriminator\.kind must be lsgan or hinge, got 'wgan'"),
        ({"discriminator": {"samples": 0}}, r"discriminator\.samples must be above 0"),
        ({"crops": {"crop_seconds": -1}}, r"crops\.crop_seconds must be above 0, got -1"),
        ({"model": vocoder_settings(mel={"sampling_rate": 24000})}, r"'first' was prepared at 16000 Hz and is to be"),
    ):
        assert examine(values | changes, tmp_path) == 1
        assert re.search(message, capsys.readouterr().out), message
