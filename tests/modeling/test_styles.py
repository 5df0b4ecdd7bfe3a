"""Style control of the LM: nothing until it has learned, then the level decides; what is asked for is checked."""

import pytest
import torch
from factories import (
    SPEAKER_DIM,
    composite_settings,
    decoder_settings,
    lm_settings,
    make_composite,
    make_decoder,
    make_lm,
    random_ids,
    random_mel,
    random_tensor,
    shaken,
    training_batch,
)
from transformers import AutoModel

from e2e_tts.modeling import FlowDecoderModel, SpeechLM, SpeechLMConfig
from e2e_tts.modeling.styles import describe_styles, parse_level, resolve_styles

STYLES = {"pitch": 5, "emotion": ["calm", "sad"]}  # in the model's order: emotion, pitch
TEXT = random_ids(3, 4, low=1, high=20)
VOICE = random_tensor(3, SPEAKER_DIM)


def codes_of(lm: SpeechLM, rows: int = 3, length: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    ids = random_ids(rows, length)
    return lm.quantizer.indices_to_codes(ids), ids


def logits(lm: SpeechLM, style_levels: list[list[int]] | None = None) -> torch.Tensor:
    levels = None if style_levels is None else torch.tensor(style_levels)
    with torch.no_grad():
        return lm(TEXT, codes=codes_of(lm)[0], speaker_embedding=VOICE, style_levels=levels).logits


def test_added_styles_change_nothing_until_they_have_learned():
    lm = make_lm()
    before = logits(lm)
    lm.add_styles(STYLES)
    assert list(lm.config.styles) == ["emotion", "pitch"]
    assert torch.equal(logits(lm, [[1, 5], [2, 1], [0, 3]]), before)


def test_unspecified_is_no_style():
    lm = make_lm(styles=STYLES)
    for embedding in lm.style_embeddings.values():
        embedding.weight.data[1:] = random_tensor(*embedding.weight[1:].shape)
    assert torch.equal(logits(lm, [[0, 0]] * 3), logits(lm))
    asked = logits(lm, [[0, 0], [0, 5], [2, 0]])
    assert torch.equal(asked[0], logits(lm)[0])
    assert (asked[1:] - logits(lm)[1:]).abs().amax(dim=(1, 2)).min() > 1e-3


def test_gradients_reach_the_levels_that_were_used():
    lm = make_lm(styles=STYLES).train()
    codes, ids = codes_of(lm)
    levels = torch.tensor([[0, 2], [0, 4], [2, 0]])
    lm(TEXT, codes=codes, labels=ids, speaker_embedding=VOICE, style_levels=levels).loss.backward()
    used = {name: embedding.weight.grad.abs().sum(dim=1) > 0 for name, embedding in lm.style_embeddings.items()}
    assert used["pitch"].nonzero()[:, 0].tolist() == [2, 4]
    assert used["emotion"].nonzero()[:, 0].tolist() == [2]


def test_the_level_decides_what_is_said():
    """One text, two ways to say it: only the level tells which; without a level both stay possible."""
    torch.manual_seed(0)
    lm = SpeechLM(SpeechLMConfig(**lm_settings(speaker_dim=0, text_positions="aligned")))
    lm.add_styles({"pitch": 3})
    text = torch.tensor([[1, 2, 3]])
    said = torch.tensor([[30, 7, 12, 5, 0], [4, 22, 9, 17, 35]])
    codes, rate = lm.quantizer.indices_to_codes(said), torch.full((2,), 5 / 3)
    levels = torch.tensor([[1], [3]])
    optimizer = torch.optim.Adam(lm.parameters(), lr=1e-2)
    for step in range(200):
        asked = levels if step % 4 else torch.zeros_like(levels)
        loss = lm(text.expand(2, -1), codes=codes, labels=said, tokens_per_symbol=rate, style_levels=asked).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    lm.eval()
    for row in (0, 1):
        one = lm.generate_codes(text, tokens_per_symbol=rate[:1], style_levels=levels[row : row + 1], temperature=0)
        assert one.finished.all() and one.ids.tolist() == said[row : row + 1].tolist()
    both = lm.generate_codes(text.expand(2, -1), tokens_per_symbol=rate, style_levels=levels, temperature=0)
    assert both.ids.tolist() == said.tolist()
    # With text guidance each text has a second row, which must speak in the same style.
    guided = lm.generate_codes(
        text.expand(2, -1), tokens_per_symbol=rate, style_levels=levels, temperature=0, text_guidance=1.5
    )
    assert guided.ids.tolist() == said.tolist()
    with torch.no_grad():
        first = lm(text.expand(2, -1), codes=codes, tokens_per_symbol=rate).logits[0, 0].softmax(dim=-1)
    assert first[said[:, 0]].min() > 0.2


def test_styles_are_saved_and_grow(tmp_path):
    model = make_composite(lm_config=lm_settings(styles={"pitch": 5}))
    shaken(model.lm)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.lm_config.styles == {"pitch": 5} and loaded.lm.config is loaded.config.lm_config
    levels = torch.tensor([[2], [5], [0]])
    codes = codes_of(model.lm)[0]
    expected = model.lm(TEXT, codes=codes, speaker_embedding=VOICE, style_levels=levels).logits
    # Not to the last digit: on some processors that depends on where the weights lie in memory.
    logits = loaded.lm(TEXT, codes=codes, speaker_embedding=VOICE, style_levels=levels).logits
    torch.testing.assert_close(logits, expected)
    loaded.lm.add_styles({"emotion": ["calm", "sad"], "pitch": 5})
    more = torch.cat([torch.tensor([[1], [2], [0]]), levels], dim=1)
    logits = loaded.lm(TEXT, codes=codes, speaker_embedding=VOICE, style_levels=more).logits
    torch.testing.assert_close(logits, expected)
    loaded.lm.style_embeddings["emotion"].weight.data[1:] += 1.0
    loaded.save_pretrained(tmp_path / "more")
    again = AutoModel.from_pretrained(tmp_path / "more" / "lm")
    assert again.config.styles == {"emotion": ["calm", "sad"], "pitch": 5}
    for name, value in loaded.lm.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    with pytest.raises(ValueError, match="style 'pitch' with the levels 5, not 3"):
        again.add_styles({"pitch": 3})


def test_a_model_without_styles_saves_as_before():
    assert not any("style" in name for name in make_composite().state_dict())
    assert make_composite(**composite_settings()).config.lm_config.styles == {}


def test_levels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"2 styles \(emotion, pitch\), but style_levels has 1"):
        make_lm(styles=STYLES).embed_prefix(TEXT, style_levels=torch.zeros(3, 1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"0 styles \(none\)"):
        make_lm().embed_prefix(TEXT, style_levels=torch.zeros(3, 1, dtype=torch.long))


@pytest.mark.parametrize(
    "styles, message",
    [
        ({"pitch": 1}, "at least 2 levels"),
        ({"pitch": True}, "at least 2 levels"),
        ({"pitch.x": 3}, r"letters, digits and underscores, got 'pitch\.x'"),
        ({"emotion": ["sad", "sad"]}, "list of different names"),
        ({"emotion": "sad"}, "list of different names"),
        ({"emotion": []}, "names of its classes"),
    ],
)
def test_styles_that_no_model_can_have(styles, message):
    with pytest.raises(ValueError, match=message):
        SpeechLMConfig(**lm_settings(styles=styles))


def test_the_rate_is_a_style_only_where_nothing_sets_it():
    assert SpeechLMConfig(**lm_settings(styles={"rate": 3})).styles == {"rate": 3}
    with pytest.raises(ValueError, match=r"aligned.*take 'rate' out of styles"):
        make_lm(text_positions="aligned").add_styles({"rate": 3})


# ---------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(
    "name, level, levels, expected",
    [
        ("pitch", "very low", 5, 1),
        ("pitch", "high", 5, 4),
        ("pitch", "high", 3, 3),
        ("pitch", "high", 2, 2),
        ("pitch", 7, 9, 7),
        ("pitch", " 3 ", 5, 3),
        ("pitch", 0, 5, 0),
        ("rate", "fast", 3, 3),
        ("emotion", "sad", ["calm", "sad"], 2),
    ],
)
def test_words_and_numbers(name, level, levels, expected):
    assert parse_level(name, level, levels) == expected


@pytest.mark.parametrize("level", ["hihg", "6", 6, -1, "-1", 2.5, True, None, "\u00b2"])
def test_levels_that_a_style_does_not_have(level):
    with pytest.raises(ValueError, match=r"pitch \(1 to 5: very low, low, medium, high, very high\)"):
        parse_level("pitch", level, 5)


def test_requests_become_levels_and_speeds():
    styles = {"emotion": ["calm", "sad"], "pitch": 5}
    levels, speeds = resolve_styles({"pitch": "low", "rate": "fast"}, styles, 2, rate_is_set=True)
    assert levels.tolist() == [[0, 2], [0, 2]] and speeds.tolist() == pytest.approx([1.2, 1.2])
    levels, speeds = resolve_styles([{"emotion": "sad"}, {}], styles, 2, rate_is_set=True)
    assert levels.tolist() == [[2, 0], [0, 0]] and speeds.tolist() == [1.0, 1.0]
    levels, speeds = resolve_styles({"rate": "slow"}, {"rate": 3}, 1, rate_is_set=False)
    assert levels.tolist() == [[1]] and speeds.tolist() == [1.0]
    assert describe_styles(styles) == (
        "emotion (1 to 2: calm, sad) and pitch (1 to 5: very low, low, medium, high, very high)"
    )
    assert resolve_styles(" pitch = very high, emotion=1,", styles, 1, False)[0].tolist() == [[1, 5]]
    for wanted, message in (
        ("pitch high", "are written"),
        ("pitch=high, pitch=low", "each once"),
        (3, "a mapping"),
        ({"pich": "high"}, r"no style 'pich': it has emotion .* and pitch .* and rate \(1 to 5: very slow"),
        ({"pitch": "loud"}, "no such level; 0 asks for nothing"),
        ([{}], "2 texts but 1 styles"),
        ([3, {}], "mapping"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve_styles(wanted, styles, 2, rate_is_set=True)
    with pytest.raises(ValueError, match="trained without any"):
        resolve_styles({"pitch": "high"}, {}, 1, rate_is_set=False)


# ---------------------------------------------------------------- the decoder and the composite


def test_a_decoder_is_told_the_style_with_the_voice():
    """Added styles change nothing, then only the rows that ask for one; the loss reaches the levels that were used."""
    decoder = make_decoder()
    codes, mask = random_tensor(3, 4, 3), torch.ones(3, 4, dtype=torch.bool)

    def mel(levels: list[int] | None) -> torch.Tensor:
        style_levels = None if levels is None else torch.tensor(levels)[:, None]
        return decoder.sample(codes, mask, decoder.styled(VOICE, style_levels), num_steps=2)

    before = mel(None)
    decoder.add_styles({"pitch": 3})
    assert torch.equal(mel([1, 2, 3]), before)
    decoder.style_embeddings["pitch"].weight.data[1:] = random_tensor(3, SPEAKER_DIM)
    after = mel([0, 2, 0])
    assert torch.equal(after[[0, 2]], before[[0, 2]]) and (after[1] - before[1]).abs().max() > 1e-2
    voice = decoder.styled(VOICE, torch.tensor([[0], [3], [3]]))
    decoder(codes, mask, random_mel(3, 8, 80), torch.arange(3), voice).loss_flow.backward()
    gradients = decoder.style_embeddings["pitch"].weight.grad.abs().sum(dim=1)
    assert (gradients > 0).tolist() == [False, False, False, True]


def test_lm_and_decoder_have_styles_of_their_own(tmp_path):
    model = make_composite()
    model.add_styles({"emotion": ["calm", "sad"], "pitch": 3}, ["lm"])
    model.add_styles({"pitch": 3, "breath": 2}, ["decoder"])
    assert list(model.config.styles) == ["breath", "emotion", "pitch"]
    levels = torch.tensor([[1, 2, 3]])
    assert model.style_columns(levels, "lm").tolist() == [[2, 3]]
    assert model.style_columns(levels, "decoder").tolist() == [[1, 3]]
    shaken(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    batch = training_batch()
    given = {"style_levels": torch.tensor([[1, 2, 3], [2, 1, 0]])}
    whole, again = model(**batch, **given), loaded(**batch, **given)
    torch.testing.assert_close((whole.loss_lm, whole.loss_flow), (again.loss_lm, again.loss_flow))
    for column, reached in enumerate([{"loss_flow"}, {"loss_lm"}, {"loss_lm", "loss_flow"}]):
        changed = given["style_levels"].clone()
        changed[0, column] = 0
        other = model(**batch, style_levels=changed)
        assert {name for name in ("loss_lm", "loss_flow") if not torch.equal(other[name], whole[name])} == reached
    with pytest.raises(ValueError, match="levels 3, not 5"):
        model.add_styles({"pitch": 5}, ["decoder"])
    with pytest.raises(ValueError, match="Levels of the style 'pitch' differ: lm_config has 3, decoder_config has 5"):
        make_composite(lm_config=lm_settings(styles={"pitch": 3}), decoder_config=decoder_settings(styles={"pitch": 5}))
    with pytest.raises(ValueError, match="columns, but the styles are"):
        model(**batch, style_levels=levels[:, :1].expand(2, -1))


@pytest.mark.parametrize(
    "changes, message",
    [({"styles": {"rate": 3}}, "keeps to the time"), ({"styles": {"pitch": 3}, "speaker_dim": 0}, "with the voice")],
)
def test_styles_that_a_decoder_cannot_have(changes, message):
    with pytest.raises(ValueError, match=message):
        make_decoder(**changes)


def test_the_rate_is_the_business_of_the_lm():
    model = make_composite()
    model.add_styles({"rate": 3, "pitch": 3})
    assert list(model.lm.config.styles) == ["pitch", "rate"] and list(model.decoder.config.styles) == ["pitch"]


def test_a_style_of_the_decoder_changes_the_sound_of_the_same_codes():
    model = make_composite(decoder_config=decoder_settings(styles={"pitch": 3}))
    model.decoder.style_embeddings["pitch"].weight.data[1:] = random_tensor(3, SPEAKER_DIM)
    model.lm.end_head.bias.data.fill_(100.0)
    common = {"speaker_embedding": VOICE[:1], "num_steps": 2, "seed": 0, "min_tokens_per_symbol": 3.0}
    plain, high = (model.generate(TEXT[:1], style=style, **common) for style in (None, "pitch=high"))
    assert torch.equal(plain["ids"], high["ids"]) and not torch.allclose(plain["mel"], high["mel"], atol=1e-3)
    chunks = list(model.generate_stream(TEXT[:1], style="pitch=high", chunking={"first": 6}, **common))
    whole = model.generate(TEXT[:1], style="pitch=high", chunking={"first": 6}, **common)["audio"]
    assert torch.equal(torch.cat([chunk["audio"] for chunk in chunks], dim=1), whole)


# ---------------------------------------------------------------- the LM in generate


def test_speech_in_a_style():
    """The greedy LM says other things in another style, in a batch and in a stream as alone."""
    settings = lm_settings(styles={"pitch": 5}, text_positions="aligned")
    model = make_composite(lm_config=settings)
    model.lm.style_embeddings["pitch"].weight.data[1:] = 3 * random_tensor(5, 32)
    model.lm.end_head.bias.data.fill_(100.0)  # ends as soon as it may
    common = {"temperature": 0.0, "num_steps": 1, "seed": 0, "min_tokens_per_symbol": 3.0}
    one = {"speaker_embedding": VOICE[:1], **common}

    def ids(style, **changes) -> list[int]:
        return model.generate(TEXT[:1], style=style, **{**one, **changes})["ids"][0].tolist()

    plain, high = ids(None), ids({"pitch": "very high"})
    assert plain == ids({}) == ids({"pitch": 0}) != high == ids({"pitch": 5})
    batch = model.generate(TEXT[:1].expand(2, -1), style=[{}, {"pitch": 5}], speaker_embedding=VOICE[0], **common)
    rows = [row[mask].tolist() for row, mask in zip(batch["ids"], batch["mask"], strict=True)]
    assert rows == [plain, high]
    chunks = model.generate_stream(TEXT[:1], style={"pitch": 5}, speaker_embedding=VOICE[0], **common)
    assert torch.cat([chunk["ids"] for chunk in chunks], dim=1)[0].tolist() == high
    # The rate is set by positions: the same as giving it as a speed, exactly.
    assert ids({"rate": "fast"}) == ids(None, speed=1.2)
    with pytest.raises(ValueError, match="give one of them"):
        ids({"rate": "fast"}, speed=0.9)
    with pytest.raises(ValueError, match=r"no style 'energy': it has pitch \(1 to 5.* and rate"):
        ids({"energy": 2})


def test_a_decoder_that_reads_states_gets_those_of_the_style():
    decoder = decoder_settings(hidden_condition_size=32)
    model = make_composite(lm_config=lm_settings(styles={"pitch": 2}), decoder_config=decoder)
    model.lm.style_embeddings["pitch"].weight.data[2] = 3.0
    codes, ids = codes_of(model.lm, 1)
    arguments = (codes, torch.ones_like(ids, dtype=torch.bool), TEXT[:1], None, VOICE[:1], None)
    plain, styled = (model.decoder_source(*arguments, torch.tensor([[level]])) for level in (0, 2))
    torch.testing.assert_close(plain, model.decoder_source(*arguments))
    assert not torch.allclose(plain, styled, atol=1e-3)


@pytest.mark.parametrize("module", ["lm", "decoder"])
def test_styles_of_a_configuration_begin_at_zero(module, tmp_path):
    settings = {"lm": lm_settings, "decoder": decoder_settings}[module]
    kind = {"lm": SpeechLM, "decoder": FlowDecoderModel}[module]
    fresh = kind(kind.config_class(**settings(styles={"pitch": 5})))
    kind(kind.config_class(**settings())).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, styles={"pitch": 5})
    for model in (fresh, loaded):
        assert not model.style_embeddings["pitch"].weight.any()
