"""LoRA: only adapters learn; saved, loaded and merged they compute the same; the new voice is part of the result."""

import json
import shutil

import numpy as np
import pytest
import torch
from factories import make_rows, training_batch
from safetensors.torch import load_file
from stages import LORA, make_folders, stage_recipe
from transformers import AutoModel

from e2e_tts.modeling import E2ETTSModel
from e2e_tts.trainers import adapters
from e2e_tts.trainers.recipe import RecipeError
from e2e_tts.trainers.stage_trainers import SpeechTrainer
from e2e_tts.trainers.train import build_trainer

VOICES = {"voices": {"mine": "second:speaker1"}}
FAST = {"max_steps": 3, "learning_rate": 3e-2, "warmup_steps": 0, "save_steps": 3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    return make_folders(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def tuned(folders, tmp_path_factory) -> SpeechTrainer:
    """A finished fine-tuning run; its output_dir holds final/ and checkpoint-3/."""
    output = tmp_path_factory.mktemp("tuned")
    trainer = build_trainer(stage_recipe("component", folders, **LORA, **VOICES, arguments=FAST), str(output))
    trainer.train()
    trainer.save_final(output / "final")
    return trainer


def outputs(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The LM's logits and the decoder's losses on a fixed batch, in evaluation."""
    batch = training_batch(lengths=(12, 9), texts=(5, 3))
    with torch.no_grad():
        output = model.eval()(**batch)
    return {"logits": output.lm_logits, "flow": output.loss_flow, "prior": output.loss_prior}


def test_only_adapters_learn(tuned, folders):
    start = AutoModel.from_pretrained(folders["start"]).state_dict()
    now = {name.replace("base_layer.", ""): value for name, value in tuned.composite.state_dict().items()}
    assert all(torch.equal(now[name], value) for name, value in start.items() if name != "voice_embeddings")
    learning = {name for name, parameter in tuned.composite.named_parameters() if parameter.requires_grad}
    assert learning and all("lora_" in name for name in learning)
    assert {name.split(".")[0] for name in learning} == {"lm", "decoder"}
    assert sum(len(group["params"]) for group in tuned.optimizer.param_groups) == len(learning)
    before = outputs(AutoModel.from_pretrained(folders["start"]))
    assert (outputs(tuned.composite)["logits"] - before["logits"]).abs().max() > 1e-3


@pytest.mark.parametrize("folder", ["final", "checkpoint-3"])
def test_a_saved_adapter_gives_the_same_speech_model(tuned, folder):
    path = f"{tuned.args.output_dir}/{folder}"
    expected = outputs(tuned.composite)
    adapted = adapters.load_adapted(path)
    by_transformers = AutoModel.from_pretrained(path)
    assert isinstance(by_transformers, E2ETTSModel)
    for model in (adapted, by_transformers):
        for name, value in outputs(model).items():
            # Where weights lie in memory changes the last digit on some processors.
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5, msg=name)
    # peft's own format, and of the adapted layers alone.
    weights = load_file(f"{path}/adapter_model.safetensors")
    assert weights and all("lora_" in name for name in weights)


def test_merged_is_adapted(tuned, tmp_path):
    expected = outputs(tuned.composite)
    adapters.main(["--adapter", f"{tuned.args.output_dir}/final", "--output", str(tmp_path / "merged")])
    merged = AutoModel.from_pretrained(tmp_path / "merged")
    assert not any("lora" in name or "base_layer" in name for name in merged.state_dict())
    for name, value in outputs(merged).items():
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-4)
    assert merged.config.voices == tuned.composite.config.voices
    assert torch.equal(merged.voice_embeddings, tuned.composite.voice_embeddings)


def test_the_final_model_can_be_merged_by_the_recipe(folders, tmp_path):
    lora = {**LORA, "lora": {"rank": 4, "merged": True}}
    trainer = build_trainer(stage_recipe("component", folders, **lora, **VOICES, arguments=FAST), str(tmp_path))
    trainer.train()
    trainer.save_final(tmp_path / "final")
    merged = AutoModel.from_pretrained(tmp_path / "final")
    for name, value in outputs(trainer.composite).items():
        torch.testing.assert_close(outputs(merged)[name], value, atol=1e-4, rtol=1e-4)
    assert list(merged.config.voices) == ["mine"]


def test_the_new_voice_is_the_mean_of_its_rows(tuned):
    rows = [row for row in make_rows(12) if row["source"] == "second" and row["speaker"] == "speaker1"]
    mean = np.mean([row["speaker_embedding"] for row in rows], axis=0)
    rate = np.mean([row["seconds"] * 25 / len(row["text_ids"]) for row in rows])
    model = adapters.load_adapted(f"{tuned.args.output_dir}/final").get_base_model()
    assert model.config.voices == {"mine": pytest.approx(rate)}
    np.testing.assert_allclose(model.voice_embeddings[0].numpy(), mean / np.linalg.norm(mean), atol=1e-6)


def test_voices_of_the_base_are_kept_behind_the_new_one(folders, tmp_path):
    base = AutoModel.from_pretrained(folders["start"])
    zoe, anna = torch.eye(2, 16)
    base.set_voices({"zoe": zoe, "anna": anna, "mine": zoe}, {"zoe": 2.0, "anna": 2.5, "mine": 3.0})
    base.save_pretrained(tmp_path / "base")
    recipe = stage_recipe("component", folders, **LORA, voices={"mine": "*"}, init=str(tmp_path / "base"))
    trainer = build_trainer(recipe, str(tmp_path / "run"))
    trainer.save_final(tmp_path / "final")
    adapters.main(["--adapter", str(tmp_path / "final"), "--output", str(tmp_path / "merged")])
    adapted = adapters.load_adapted(tmp_path / "final").get_base_model()
    mine = trainer.composite.voice_embeddings[list(trainer.composite.config.voices).index("mine")]
    assert not torch.allclose(mine, zoe)
    for model in (trainer.composite, adapted, AutoModel.from_pretrained(tmp_path / "merged")):
        # The names in alphabetical order, as in config.json, each still with its own numbers.
        assert list(model.config.voices) == ["anna", "mine", "zoe"]
        assert model.config.voices["zoe"] == 2.0 and model.config.voices["anna"] == 2.5
        torch.testing.assert_close(model.voice_embeddings, torch.stack([anna, mine, zoe]))
        assert model.config.voice_names[0] == "mine"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"voices": {"mine": "third"}}, r"voices\.mine: no training rows of 'third'.*first:speaker0"),
        ({"lora": {"targets": {"lm": ["q_prj"]}}}, r"lora\.targets\.lm: no linear layer ends in 'q_prj'.*q_proj"),
        ({"lora": {"targets": {"reward": ["q_proj"]}}}, "lora.targets names 'reward', which does not learn"),
        ({"init_modules": {"lm": "START/lm"}}, "set lora.merged=true"),
        ({"train": ["vocoder"]}, "no default layers for vocoder"),
    ],
)
def test_mistakes_are_refused(change, message, folders, tmp_path):
    change = json.loads(json.dumps(change).replace("START", folders["start"]))
    with pytest.raises(RecipeError, match=message):
        build_trainer(stage_recipe("component", folders, **{**LORA, **change}), str(tmp_path))


def test_a_folder_that_is_no_adapter_is_refused(folders, tmp_path):
    with pytest.raises(SystemExit, match="not an adapter folder"):
        adapters.main(["--adapter", folders["start"], "--output", str(tmp_path)])


def test_a_base_that_has_moved_is_asked_for(tuned, folders, tmp_path):
    final = shutil.copytree(f"{tuned.args.output_dir}/final", tmp_path / "final")
    config = json.loads((final / "adapter_config.json").read_text())
    (final / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(SystemExit, match=r"gone cannot be loaded.*--base"):
        adapters.main(["--adapter", str(final), "--output", str(tmp_path / "merged")])
    adapters.main(["--adapter", str(final), "--base", folders["start"], "--output", str(tmp_path / "merged")])
    torch.testing.assert_close(
        outputs(AutoModel.from_pretrained(tmp_path / "merged"))["logits"],
        outputs(tuned.composite)["logits"],
        atol=1e-5,
        rtol=1e-5,
    )
