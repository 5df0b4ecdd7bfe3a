"""The command that trains the speaker encoder: what it refuses, and that a run goes on with its own data alone."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from factories import make_dataset, make_rows
from transformers import AutoModel

from e2e_tts.trainers import train_speaker


@pytest.fixture
def command(tmp_path) -> list[str]:
    sizes = ["--batch_size", "2", "--crop_seconds", "0.4", "--max_steps", "2"]
    return ["--data", make_dataset(str(tmp_path / "data")), "--output_dir", str(tmp_path / "run"), *sizes]


def refusal(command: list[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        train_speaker.main(command)
    assert stopped.value.code not in (0, None)
    return str(stopped.value.code)


def test_one_speaker_is_refused(tmp_path, command):
    rows = [{**row, "source": "mine", "speaker": "anna"} for row in make_rows(3)]
    Dataset.from_list(rows).save_to_disk(tmp_path / "alone")
    message = refusal(["--data", str(tmp_path / "alone"), *command[2:]])
    assert "all of one speaker" in message and "--speaker_encoder" in message
    assert not (tmp_path / "run").exists()
    # Two sources with a speaker of the same name are two.
    Dataset.from_list([*rows, {**rows[0], "source": "other"}]).save_to_disk(tmp_path / "two")
    train_speaker.main(["--data", str(tmp_path / "two"), *command[2:]])
    assert AutoModel.from_pretrained(tmp_path / "run" / "final").config.num_speakers == 0


def test_data_of_a_lower_rate_and_a_broken_loss_are_refused(tmp_path, command):
    Dataset.from_list(make_rows(3, sampling_rate=8000)).save_to_disk(tmp_path / "narrow")
    assert "was prepared at 8000 Hz and is to be learned at 16000 Hz" in refusal(
        ["--data", str(tmp_path / "narrow"), *command[2:]]
    )
    assert "The loss is not finite at step" in refusal([*command, "--learning_rate", "1e38", "--max_steps", "9"])
    assert not (tmp_path / "run" / "final").exists()


def test_recipes_that_are_none_are_said_in_words(tmp_path, command):
    assert refusal([*command, "--recipe", "small_jiont"]).startswith("error: ")
    (tmp_path / "mine.yaml").write_text("trainer: [joint\n")
    assert "mine.yaml" in refusal([*command, "--recipe", str(tmp_path / "mine.yaml")])
    assert "no speaker encoder" in refusal([*command, "--recipe", "small_vocoder"])


def test_a_run_goes_on_with_its_own_data_and_settings_alone(tmp_path, command, monkeypatch):
    arguments = train_speaker.TrainingArguments
    monkeypatch.setattr(train_speaker, "TrainingArguments", lambda *a, **k: arguments(*a, **{**k, "save_steps": 1}))
    train_speaker.main(command)
    assert (tmp_path / "run" / "checkpoint-2").is_dir()
    other = Dataset.from_list(make_rows(5))
    other.save_to_disk(tmp_path / "other")
    for change, message in (
        (["--learning_rate", "0.1"], "learning_rate is 0.1, was 0.002"),
        (["--data", str(tmp_path / "other")], r"data is 5 rows of 5 speakers"),
    ):
        refused = refusal([*command, *change])
        assert message in refused and "name another --output_dir" in refused
    # A longer run is the same run, wherever its data lie now; and an older one has no record to compare with.
    Path(command[1]).rename(tmp_path / "moved")
    longer = [*command, "--data", str(tmp_path / "moved"), "--max_steps", "3"]
    train_speaker.main(longer)
    state = json.loads((tmp_path / "run" / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3
    (tmp_path / "run" / train_speaker.SETTINGS_FILE).unlink()
    train_speaker.main([*longer, "--seed", "1"])
