"""What a release stores beside weights: how it samples by default."""

import copy
import json

import pytest
import torch
from transformers import AutoModel

from e2e_tts.pipelines.release import load_average, main, parse_sampling


def test_a_checkpoint_samples_as_it_says_unless_the_call_says_otherwise(tiny_model, tmp_path, monkeypatch):
    model = tiny_model()
    model.config.sampling = parse_sampling(["temperature=0.6", "top_k=10"])
    model.save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path)
    taken = []

    def generate_codes(self, **arguments):
        taken.append(arguments)
        raise StopIteration

    monkeypatch.setattr(type(model.lm), "generate_codes", generate_codes)
    embedding = torch.zeros(1, model.config.speaker_config.embedding_size)
    for given in ({}, {"temperature": 0.9}):
        with pytest.raises(StopIteration):
            model.generate(torch.ones(1, 4, dtype=torch.long), speaker_embedding=embedding, **given)
    assert [(arguments["temperature"], arguments["top_k"]) for arguments in taken] == [(0.6, 10), (0.9, 10)]


@pytest.mark.parametrize(
    "entry", ["heat=1", "temperature", "top_k=many", "temperature=-1", "top_k=0", "top_p=2", "text_guidance=nan"]
)
def test_sampling_that_means_nothing_is_refused(entry):
    with pytest.raises(ValueError):
        parse_sampling([entry])


def test_a_checkpoint_draws_as_often_as_its_release_says(tiny_model, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "trained")
    main(["--model", str(tmp_path / "trained"), "--output", str(tmp_path / "release"), "--candidates", "3"])
    assert AutoModel.from_pretrained(tmp_path / "release").config.candidates == 3
    for number in ("0", "65"):
        with pytest.raises(SystemExit, match=f"candidates must lie between 1 and 64, got {number}"):
            main(["--model", str(tmp_path / "trained"), "--output", str(tmp_path / "no"), "--candidates", number])
    config = copy.deepcopy(model.config)
    config.reward_config.ctc_vocab_size = 0
    type(model)(config).save_pretrained(tmp_path / "deaf")
    with pytest.raises(SystemExit, match="--candidates needs a reward model with a CTC head"):
        main(["--model", str(tmp_path / "deaf"), "--output", str(tmp_path / "no"), "--candidates", "3"])


def test_clones_speak_at_the_rate_that_the_release_says(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "trained")
    arguments = ["--model", str(tmp_path / "trained"), "--output", str(tmp_path / "release"), "--clone-rate"]
    main([*arguments, "1.7"])
    model = AutoModel.from_pretrained(tmp_path / "release")
    voice = model.make_voice(torch.randn(1, 24, 80))
    assert voice.tokens_per_symbol == 1.7
    for rate in ("0", "nan"):
        with pytest.raises(SystemExit, match=f"--clone-rate is a rate above 0, got {float(rate)}"):
            main([*arguments, rate])


def test_voices_speak_at_the_rate_that_the_release_says(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "trained")
    arguments = ["--model", str(tmp_path / "trained"), "--output", str(tmp_path / "release"), "--voice-rate"]
    main([*arguments, "ben=1.5"])
    model = AutoModel.from_pretrained(tmp_path / "release")
    assert model.config.voices == {"anna": 2.0, "ben": 1.5}
    for entry, message in (
        ("eve=1.5", "takes anna, ben, got 'eve=1.5'"),
        ("ben", "above 0, got ''"),
        ("ben=-1", "got '-1'"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([*arguments, entry])


def test_the_decoder_s_temperature_is_released(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "trained")
    arguments = ["--model", str(tmp_path / "trained"), "--output", str(tmp_path / "release"), "--decoder-temperature"]
    main([*arguments, "0.6"])
    model = AutoModel.from_pretrained(tmp_path / "release")
    assert model.config.decoder_config.noise_temperature == model.decoder.config.noise_temperature == 0.6
    assert AutoModel.from_pretrained(tmp_path / "release" / "decoder").config.noise_temperature == 0.6
    # A release of a release says nothing of the place where the first one lay.
    main(["--model", str(tmp_path / "release"), "--output", str(tmp_path / "again")])
    assert AutoModel.from_pretrained(tmp_path / "again").config.decoder_config.noise_temperature == 0.6
    files = [tmp_path / name / "tokenizer_config.json" for name in ("release", "again")]
    first, again = (json.loads(file.read_text()) for file in files)
    assert first == again and "is_local" not in again
    with pytest.raises(SystemExit, match=r"decoder_temperature must lie between 0\.0 and 100\.0, got -1\.0"):
        main([*arguments, "-1"])


def test_a_module_can_be_the_mean_of_several(tiny_model, tmp_path):
    start = tiny_model()
    start.save_pretrained(tmp_path / "start")
    for name, shift in (("a", 0.25), ("b", -0.75)):
        other = copy.deepcopy(start.lm)
        with torch.no_grad():
            other.end_head.weight += shift
        other.save_pretrained(tmp_path / name)
    mean = load_average([str(tmp_path / "a"), str(tmp_path / "b")])
    torch.testing.assert_close(mean.end_head.weight, start.lm.end_head.weight - 0.25)
    assert torch.equal(mean.end_head.bias, start.lm.end_head.bias)
    modules = ["--module", f"lm={tmp_path / 'a'},{tmp_path / 'b'}", "--dtype", "float32"]
    main(["--model", str(tmp_path / "start"), "--output", str(tmp_path / "release"), *modules])
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "release").lm.end_head.weight, mean.end_head.weight)
    with pytest.raises(ValueError, match="different sizes"):
        load_average([str(tmp_path / "a"), str(tmp_path / "start" / "vocoder")])
    with pytest.raises(SystemExit, match=r"no_such.*"):
        main(["--model", str(tmp_path / "start"), "--output", str(tmp_path / "no"), "--module", "lm=no_such"])
