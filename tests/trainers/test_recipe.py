"""Recipes: a typo fails and names the near misses, overrides, and what the package ships can be read."""

import pytest
import yaml

from e2e_tts.modeling import E2ETTSConfig
from e2e_tts.trainers import ablation, convert_pretrained, doctor, memory_budget, train
from e2e_tts.trainers.learning import unreached_heads
from e2e_tts.trainers.recipe import RECIPE_FOLDER, RecipeError, VocoderRecipe, load_recipe, parse_recipe

MINIMAL = {"train": ["lm"], "init": "somewhere", "losses": {"lm": 1.0}}
SHIPPED = sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_parse(name):
    recipe = load_recipe(name)
    if isinstance(recipe, VocoderRecipe):
        assert recipe.arguments["max_steps"] > 0
        return
    assert recipe.train
    if recipe.model is not None:
        E2ETTSConfig(**recipe.model)


def test_defaults():
    recipe = parse_recipe(MINIMAL)
    assert recipe.trainer == "joint" and recipe.losses.asr == 0.0 and recipe.gumbel.end == 0.3


@pytest.mark.parametrize(
    "change, message",
    [
        ({"learning_rate": 1}, "'learning_rate' in recipe.*learning_rates"),
        ({"losses": {"flwo": 1.0}}, r"'flwo' in recipe\.losses.*did you mean flow"),
        ({"data": {"folder": []}}, r"'folder' in recipe\.data.*folders"),
        ({"gumbel": {"stop": 1}}, r"recipe\.gumbel.*start"),
        ({"train": ["encodr"]}, "'encodr' in modules.*encoder"),
        ({"learning_rates": {"deocder": 1.0}}, "'deocder' in learning_rates.*decoder"),
        ({"init_modules": {"vocodr": "x"}}, "'vocodr' in modules.*vocoder"),
        ({"arguments": {"learning_rat": 1}}, "'learning_rat' in arguments.*learning_rate"),
        ({"model": {"decodr_config": {}}}, "'decodr_config' in model.*decoder_config"),
        ({"model": {"lm_config": {"text_position": "x"}}}, r"model\.lm_config.*text_positions"),
        ({"model": {"lm_config": {"text_config": {"hiden_size": 1}}}}, r"text_config.*hidden_size"),
        ({"losses": {"zzzzzz": 1.0}}, "known: asr, flow, lm"),
        ({"losses": 3}, r"recipe\.losses must be a mapping"),
        ({"trainer": "jiont"}, "joint, component, end_to_end or vocoder, got 'jiont'"),
        ({"train": []}, "train is empty"),
        ({"init": None}, "either init .* or model"),
        ({"kl": 0.1}, "trainer joint has no losses on predicted codes.*end_to_end"),
        ({"predicted_losses": {"asr": 1.0}}, "trainer joint has no losses on predicted codes"),
        ({"losses": {}}, "No loss has a weight"),
        ({"learning_rates": {"vocoder": 1.0}}, "'vocoder', which does not learn"),
        ({"learning_rates": 1e-4}, r"recipe\.learning_rates must be a mapping, got 0\.0001"),
        ({"learning_rates": {"lm": "fast"}}, r"learning_rates\.lm must be a number, got 'fast'"),
        ({"train": "lm"}, r"recipe\.train must be a list, got 'lm'"),
        ({"data": {"seconds_per_batch": None}}, r"data\.seconds_per_batch must be a number, got None"),
        ({"data": {"max_rows": True}}, r"data\.max_rows must be a whole number, got True"),
        ({"init": 5}, r"recipe\.init must be a text, got 5"),
        ({"predict_from": "hiden"}, "predict_from must be codes or hidden"),
        ({"max_grad_norms": {"lm": 1.0}, "arguments": {"max_grad_norm": 0}}, r"needs arguments\.max_grad_norm above 0"),
        ({"max_grad_norms": {"lm": 0}}, r"max_grad_norms\.lm must be above 0, got 0.*1e9"),
        ({"arguments": {"per_device_train_batch_size": 4}}, r"_batch_size says nothing .*data\.seconds_per_"),
        ({"arguments": {"num_train_epochs": 2}}, r"num_train_epochs says nothing.*arguments\.max_steps"),
        ({"arguments": {"data_seed": 3}}, r"data_seed says nothing.*arguments\.seed"),
        ({"arguments": {"max_steps": "many"}}, r"arguments\.max_steps must be a whole number, got 'many'"),
        ({"arguments": {"max_steps": 1.5}}, r"arguments\.max_steps must be a whole number, got 1\.5"),
        ({"arguments": {"learning_rate": "fast"}}, r"arguments\.learning_rate must be a number, got 'fast'"),
        ({"arguments": {"lr_scheduler_type": 3}}, r"arguments\.lr_scheduler_type must be .*a text, got 3"),
        ({"arguments": {"gradient_accumulation_steps": 0}}, r"gradient_accumulation_steps must be at least 1, got 0"),
        ({"arguments": {"max_grad_norm": "none"}, "max_grad_norms": {"lm": 1.0}}, r"max_grad_norm must be a number"),
        ({"arguments": {"save_only_model": True}}, "save_only_model would have a stopped run go on otherwise"),
        ({"losses": {1: 2.0}}, "entry 1 in recipe.losses; known: asr"),
        ({"init": None, "model": {}, "text_vocab_size": 141}, r"without init set model\.lm_config"),
    ],
)
def test_mistakes_are_refused(change, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe({**MINIMAL, **change})


def test_overrides(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**MINIMAL, "arguments": {"max_steps": 5, "seed": 1}, "losses": {"lm": 0.1}}))
    overrides = ["arguments.max_steps=9", "losses.lm=1e-2", "train=[lm, decoder]", "data.weights.new=2", "kl=0.1"]
    overrides += ["trainer=end_to_end", "arguments.lr_scheduler_type=cosine", "arguments.report_to=[tensorboard]"]
    overrides += ["arguments.save_steps=1e3", "arguments.eval_steps=null", "arguments.gradient_accumulation_steps=2e0"]
    recipe = load_recipe(str(file), [*overrides, "arguments.save_only_model=false"])
    expected = {"max_steps": 9, "seed": 1, "save_steps": 1000, "gradient_accumulation_steps": 2, "eval_steps": None}
    expected |= {"lr_scheduler_type": "cosine", "report_to": ["tensorboard"], "save_only_model": False}
    assert recipe.arguments == expected
    assert isinstance(recipe.arguments["gradient_accumulation_steps"], int)
    assert recipe.losses.lm == 0.01 and recipe.kl == 0.1
    assert recipe.train == ["lm", "decoder"]
    assert recipe.data.weights == {"new": 2}
    with pytest.raises(RecipeError, match=r"key\.sub=value, got 'kl'"):
        load_recipe(str(file), ["kl"])
    with pytest.raises(RecipeError, match=r"sets a part of init, which is .* and has no parts"):
        load_recipe(str(file), ["init.x=1"])
    with pytest.raises(RecipeError, match=r"'lmm' in .*mine\.yaml\.losses"):
        load_recipe(str(file), ["losses.lmm=1"])


def test_an_override_reaches_no_other_module():
    """Modules share what they have in common by YAML's anchors, as long as nobody changes it for one of them."""
    layers = "encoder_config.num_hidden_layers"
    plain = load_recipe("small_joint").model
    deeper = load_recipe("small_joint", [f"model.encoder_config.{layers}=6"]).model
    assert deeper["encoder_config"]["encoder_config"]["num_hidden_layers"] == 6
    assert deeper["reward_config"] == plain["reward_config"]
    finer = load_recipe("paper_joint", ["model.encoder_config.mel.num_mel_bins=128"]).model
    assert finer["speaker_config"]["mel"]["num_mel_bins"] == 80


def test_a_change_of_a_model_that_comes_from_init_is_refused():
    change = "model.decoder_config.num_hidden_layers=8"
    with pytest.raises(RecipeError, match=rf"{change}.* would change nothing.*\(runs/mine\)\. Drop it"):
        load_recipe("small_joint", [change, "init=runs/mine"])
    assert load_recipe("small_joint", [change]).model["decoder_config"]["num_hidden_layers"] == 8


def test_draws_are_judged_by_what_compares_them():
    draws = load_recipe("small_end_to_end_draws")
    assert draws.judged_by() == {"asr", "spk"}
    assert load_recipe("small_end_to_end_draws", ["own_history.reward={asr: 1}"]).judged_by() == {"asr"}
    assert load_recipe("small_refine_decoder").judged_by() == set()
    # Where nothing else teaches the LM when to end, the likelihood of whole draws does.
    alone = load_recipe("small_end_to_end_draws", ["losses.lm=0", "kl=0"])
    assert "lm.end_head" not in unreached_heads(alone)
    with pytest.raises(RecipeError, match="own draws"):
        memory_budget.report("draws", draws, [8], ["ddp"], None)


def test_what_is_no_yaml_or_no_mapping_is_refused(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    # What a shell makes of --set data.folders=[a, b], and a value with a colon.
    for override in ("data.folders=[a,", "init=a: b: c"):
        with pytest.raises(RecipeError, match=r'has no YAML value.*Quote.*--set "data\.folders=\[a, b\]"'):
            load_recipe(str(file), [override, "b]"])
    with pytest.raises(RecipeError, match=r"got 'b\]'\. Quote one that has spaces"):
        load_recipe(str(file), ["b]"])
    broken = {"- train": r"must hold a mapping .*got \['train'\]", "train: [lm": "mine.yaml is not YAML"}
    for text, message in broken.items():
        file.write_text(text)
        for overrides in ([], ["kl=0.1"]):
            with pytest.raises(RecipeError, match=message):
                load_recipe(str(file), overrides)
    with pytest.raises(RecipeError, match="recipe must be a mapping"):
        parse_recipe(["train"])


@pytest.mark.parametrize("command", [train, doctor, memory_budget, convert_pretrained, ablation])
def test_set_may_be_given_more_than_once(command, monkeypatch, tmp_path):
    seen = []

    def look(name: str, overrides: list[str]) -> None:
        seen.append((name, overrides))
        raise RecipeError("seen")

    monkeypatch.setattr(command, "load_plan" if command is ablation else "load_recipe", look)
    options = {train: ["--output_dir", str(tmp_path)], convert_pretrained: ["--lm", "x", "--output", str(tmp_path)]}
    options[ablation] = ["--output", str(tmp_path)]
    name = ["--plan" if command is ablation else "--recipe", "small"]
    for _ in range(2):  # the defaults are not written to
        with pytest.raises(SystemExit):
            command.main([*name, *options.get(command, []), "--set", "a=1", "b=2", "--set", "c=3"])
    assert seen == [("small", ["a=1", "b=2", "c=3"])] * 2


def test_unknown_recipe_names_the_near_ones():
    with pytest.raises(RecipeError, match=r"No recipe 'small_jont'.*small_joint"):
        load_recipe("small_jont")
