"""The LM can say every code, stops, samples as documented, and a batch is decoded like its rows."""

import pytest
import torch
from factories import SPEAKER_DIM, lm_settings, make_composite, make_lm, random_ids, random_tensor, text_settings
from transformers.generation import LogitsProcessorList

from e2e_tts.modeling import SpeechGenerationError, SpeechLM, SpeechLMConfig
from e2e_tts.modeling.modeling_speech_lm import LengthLimits, TextGuidance
from e2e_tts.modeling.repetition_aware_sampling import RepetitionAwareSampling

NEVER = torch.finfo(torch.float32).min


def overfitted(levels: list[int], ids: torch.Tensor, text: torch.Tensor, mask: torch.Tensor, **changes) -> SpeechLM:
    torch.manual_seed(0)
    text_config = text_settings(num_hidden_layers=1)
    settings = lm_settings(levels=levels, speaker_dim=0, text_config=text_config, output_adapter_size=64, **changes)
    lm = SpeechLM(SpeechLMConfig(**settings)).train()
    optimizer = torch.optim.Adam(lm.parameters(), lr=1e-2)
    codes = lm.quantizer.indices_to_codes(ids) * mask[..., None]
    rate = mask.sum(dim=1) / text.shape[1]
    for _ in range(300):
        loss = lm(text, None, codes, mask, ids, tokens_per_symbol=rate).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.03:
            return lm.eval()
    raise AssertionError(f"The LM did not overfit: {loss}")


@pytest.mark.parametrize("adapter, positions", [("linear", "sequential"), ("linear", "aligned"), ("mlp", "aligned")])
def test_every_kind_of_code_can_win(adapter, positions):
    """The code of all zeros (3280) is inner in every dimension: with linear output keys it could never win."""
    ids = torch.tensor([[3280, 0, 6560, 3280, 3280, 17, 4000], [5, 3280, 3281, 2187, 3280, 0, 0]])
    mask = torch.tensor([[True] * 7, [True] * 5 + [False] * 2])
    text = torch.tensor([[1, 2, 3], [4, 5, 6]])
    lm = overfitted([3] * 8, ids, text, mask, input_adapter=adapter, text_positions=positions)
    assert not lm.quantizer.codebook[3280].any()
    generated = lm.generate_codes(text, tokens_per_symbol=mask.sum(dim=1) / 3, temperature=0)
    assert generated.finished.all()
    assert torch.equal(generated.mask, mask)
    assert torch.equal(generated.ids, ids * mask)


def test_control_tokens_never_win():
    lm = make_lm()
    hidden_states = 100 * random_tensor(4, 50, 32)
    logits = lm.score(hidden_states)
    assert logits.dtype == torch.float32 and torch.isfinite(logits).all()
    assert (logits[..., 36:39] == NEVER).all()
    assert (logits[..., 39] > NEVER).all() and lm.end_token_id == 39
    assert not logits.softmax(dim=-1)[..., 36:39].any()
    ids = lm.generate_codes(random_ids(8, 5, low=1, high=20), top_k=40, top_p=1.0, temperature=5.0).ids
    assert ids.max() < 36
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(lm.score(hidden_states)).all()


@pytest.mark.parametrize("end_scale", [3, 60])
@pytest.mark.parametrize("positions", ["sequential", "aligned"])
def test_batch_of_texts_is_decoded_like_its_rows(positions, end_scale):
    lm = make_lm(text_positions=positions)
    with torch.no_grad():
        lm.end_head.weight.mul_(end_scale)  # ends come early and late, before and after other rows' limits
    lengths = [6, 2, 4, 1, 5, 3]
    text = random_ids(6, 6, low=1, high=20)
    mask = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    voice, rate = random_tensor(6, SPEAKER_DIM), torch.linspace(1.0, 3.0, 6)
    limits = {"temperature": 0, "min_tokens_per_symbol": 1.0, "max_tokens_per_symbol": 3.0}
    together = lm.generate_codes(text, mask, voice, rate, **limits)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        alone = lm.generate_codes(text[one, :length], None, voice[one], rate[one], **limits)
        assert torch.equal(alone.ids[0][alone.mask[0]], together.ids[row][together.mask[row]])
        assert alone.finished[0] == together.finished[row]
        assert length <= together.mask[row].sum() <= 3 * length
    assert len(set(together.mask.sum(dim=1).tolist())) > 2


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_length_limit_is_not_an_end(temperature):
    lm = make_lm()
    with torch.no_grad():
        lm.end_head.bias.fill_(-100.0)
    text = random_ids(2, 3, low=1, high=20)
    mask = torch.tensor([[True] * 3, [True] * 2 + [False]])
    generated = lm.generate_codes(text, mask, temperature=temperature, max_tokens_per_symbol=4)
    assert generated.mask.sum(dim=1).tolist() == [12, 8]
    assert not generated.finished.any()
    with torch.no_grad():
        lm.end_head.bias.fill_(100.0)
    generated = lm.generate_codes(text, mask, temperature=temperature, min_tokens_per_symbol=2)
    assert generated.mask.sum(dim=1).tolist() == [6, 4]
    assert generated.finished.all()


def test_prompt_is_continued():
    ids = torch.tensor([[7, 1, 30, 12, 5, 22]])
    text = torch.tensor([[1, 2, 3, 4]])
    lm = overfitted([4, 3, 3], ids, text, torch.ones(1, 6, dtype=torch.bool))
    generated = lm.generate_codes(text, prompt_ids=ids[:, :4], prompt_symbols=3, temperature=0)
    assert generated.ids[generated.mask].tolist() == [5, 22]
    assert generated.finished.all()
    # What the prompt says and how long it took are no part of the limits.
    short = lm.generate_codes(text, prompt_ids=ids[:, :4], prompt_symbols=3, temperature=0, max_tokens_per_symbol=1)
    assert (short.ids.shape[1], short.finished.tolist()) == (2, [False])
    long = lm.generate_codes(text, prompt_ids=ids[:, :4], prompt_symbols=3, temperature=0, min_tokens_per_symbol=5)
    assert long.ids.shape[1] >= 5
    with pytest.raises(ValueError, match="belong together"):
        lm.generate_codes(text, prompt_ids=ids[:, :4])


def greedy_with_guidance(lm: SpeechLM, text: torch.Tensor, rate: torch.Tensor, scale: float, steps: int) -> list[int]:
    """The guided sequence of one text (1, N), by whole forward passes with and without it."""
    ids: list[int] = []
    unseen = torch.zeros_like(text, dtype=torch.bool)
    while len(ids) < steps:
        codes = lm.quantizer.indices_to_codes(torch.tensor([ids], dtype=torch.long))
        given, without = (
            lm(text, seen, codes, tokens_per_symbol=rate).logits[0, -1].log_softmax(-1) for seen in (~unseen, unseen)
        )
        scores = without + scale * (given - without)
        if not ids:
            scores[lm.end_token_id] = -torch.inf
        best = int(scores.argmax())
        if best == lm.end_token_id:
            break
        ids.append(best)
    return ids


@pytest.mark.parametrize("positions", ["sequential", "aligned"])
def test_text_guidance_moves_away_from_speech_without_text(positions):
    lm = make_lm(text_positions=positions)
    text, rate = random_ids(3, 4, low=1, high=20), torch.tensor([2.0, 1.5, 3.0])
    limits = {"temperature": 0, "max_tokens_per_symbol": 3, "min_tokens_per_symbol": 0}
    with torch.no_grad():
        generated = lm.generate_codes(text, None, None, rate, text_guidance=3.0, top_k=40, **limits)
        for row in range(3):
            expected = greedy_with_guidance(lm, text[row : row + 1], rate[row : row + 1], 3.0, 12)
            assert generated.ids[row][generated.mask[row]].tolist() == expected
    plain = lm.generate_codes(text, None, None, rate, **limits)
    assert plain.ids.shape != generated.ids.shape or not torch.equal(plain.ids, generated.ids)


def test_guided_scores_and_their_limits():
    given, without = torch.tensor([[3.0, 1.0, 0.0, -4.0]]), torch.tensor([[2.9, -2.0, 0.0, -14.0]])
    history = torch.zeros(2, 3, dtype=torch.long)
    scores = torch.cat([given, without])
    free = LengthLimits(torch.tensor([0]), torch.tensor([9]), end_token_id=3)
    guided = TextGuidance(2.0, free, LogitsProcessorList())(history, scores)
    expected = 2 * given.log_softmax(-1) - without.log_softmax(-1)
    torch.testing.assert_close(guided, expected.repeat(2, 1))
    # The last token wins by its ratio alone, and is left out where it is not among the likely ones.
    assert TextGuidance(3.0, free, LogitsProcessorList())(history, scores).argmax() == 3
    assert TextGuidance(3.0, free, LogitsProcessorList(), top_k=2)(history, scores)[0].argmax() == 1
    # The end is forced at the limit, however unlikely it is.
    limits = LengthLimits(torch.tensor([1]), torch.tensor([3]), end_token_id=3)
    forced = TextGuidance(3.0, limits, LogitsProcessorList(), top_k=1)(history, scores)
    assert (forced / 0.1).softmax(dim=-1)[:, 3].tolist() == [1.0, 1.0]


def test_the_end_grows_likelier_behind_what_the_rate_says():
    limits = LengthLimits(torch.tensor([1, 1]), torch.tensor([30, 30]), 3, torch.tensor([5.5, 7.0]), pull=2.0)
    scores = random_tensor(2, 4)
    assert torch.equal(limits(torch.zeros(2, 5, dtype=torch.long), scores), scores)
    torch.testing.assert_close(
        limits(torch.zeros(2, 8, dtype=torch.long), scores) - scores, torch.tensor([[0, 0, 0, 5.0], [0, 0, 0, 2.0]])
    )
    # An LM that never ends by itself: at 2 codes a symbol, 10 symbols last 20 codes and as many as are tolerated.
    lm = make_lm(text_positions="aligned")
    lm.end_head.weight.data.zero_()
    lm.end_head.bias.data.fill_(-15.0)
    text, rate = random_ids(2, 10, high=20), torch.tensor([2.0, 3.0])
    settings = {"max_tokens_per_symbol": 9.0, "generator": torch.Generator().manual_seed(0)}
    drawn = lm.generate_codes(text, tokens_per_symbol=rate, **settings)
    assert drawn.finished.all()
    for row, due in enumerate((26, 36.5)):
        assert due < int(drawn.mask[row].sum()) < due + 20
    assert not lm.generate_codes(text, tokens_per_symbol=rate, end_pull=0.0, **settings).finished.any()
    # What a prompt says does not count.
    rates = torch.cat([torch.full((2, 6), 4.0), rate[:, None].expand(2, 4)], dim=1)
    continued = lm.generate_codes(
        text, tokens_per_symbol=rates, prompt_ids=random_ids(2, 24, high=36), prompt_symbols=6, **settings
    )
    for row, due in enumerate((13.4, 17.6)):
        assert due < int(continued.mask[row].sum()) < due + 20


def test_an_end_that_is_too_early_takes_no_place_among_the_likely():
    # The end, 2, is the likeliest but impossible yet; 3 and 4 are control tokens, which `score` never gives.
    never = torch.finfo(torch.float32).min
    scores = torch.tensor([[1.0, 0.0, 9.0, never, never]]).repeat(2, 1)
    limits = LengthLimits(torch.tensor([8]), torch.tensor([9]), end_token_id=2)
    guided = TextGuidance(2.0, limits, LogitsProcessorList(), top_k=1)(torch.zeros(2, 3, dtype=torch.long), scores)
    assert guided.argmax(dim=-1).tolist() == [0, 0]
    assert guided.softmax(dim=-1)[0].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_composite_refuses_speech_that_does_not_end():
    model = make_composite()
    with torch.no_grad():
        model.lm.end_head.bias.fill_(-100.0)
    settings = {"speaker_embedding": random_tensor(1, SPEAKER_DIM), "seed": 0, "max_tokens_per_symbol": 2}
    with pytest.raises(SpeechGenerationError, match=r"rows \[0\].*6 tokens"):
        model.generate(torch.tensor([[1, 2, 3]]), **settings)


def test_seed_repeats_and_changes_the_sample():
    model = make_composite()
    with torch.no_grad():
        model.lm.end_head.bias.fill_(2.0)
    settings = {"speaker_embedding": random_tensor(1, SPEAKER_DIM), "num_steps": 1, "vocoder": False}
    ids = [model.generate(torch.tensor([[1, 2, 3, 4, 5, 6]]), seed=seed, **settings)["ids"] for seed in (1, 1, 2)]
    assert torch.equal(ids[0], ids[1])
    assert not torch.equal(ids[0], ids[2])


# ---------------------------------------------------------------- repetition-aware sampling


def drawn(processor: RepetitionAwareSampling, history: list[int], probabilities: list[float], times: int) -> dict:
    """Token -> share of draws; the processor must leave exactly one token possible."""
    torch.manual_seed(0)
    scores = torch.tensor([probabilities]).log().expand(times, -1)
    result = processor(torch.tensor([history] * times).long().reshape(times, -1), scores)
    assert (torch.isfinite(result).sum(dim=1) == 1).all()
    tokens, counts = result.argmax(dim=1).unique(return_counts=True)
    return dict(zip(tokens.tolist(), (counts / times).tolist(), strict=True))


def test_nucleus():
    probabilities = [0.5, 0.25, 0.15, 0.1]
    assert drawn(RepetitionAwareSampling(4, 0.5), [], probabilities, 200) == {0: 1.0}
    shares = drawn(RepetitionAwareSampling(4, 0.7), [], probabilities, 4000)
    assert set(shares) == {0, 1} and abs(shares[0] - 2 / 3) < 0.03
    shares = drawn(RepetitionAwareSampling(3, 1.0), [], probabilities, 4000)
    assert set(shares) == {0, 1, 2} and abs(shares[2] - 0.15 / 0.9) < 0.03


def test_repeated_token_is_drawn_again_from_all_others():
    probabilities = [0.5, 0.25, 0.15, 0.1]
    shares = drawn(RepetitionAwareSampling(1, 1.0, window=4, limit=2), [0, 3, 0, 3], probabilities, 4000)
    assert set(shares) == {1, 2, 3} and abs(shares[1] - 0.5) < 0.03 and abs(shares[3] - 0.2) < 0.03


@pytest.mark.parametrize(
    "settings, history",
    [
        ({"limit": 3}, [0, 0]),
        ({"window": 2, "limit": 2}, [0, 0, 0, 1]),
        ({"window": 0}, [0, 0]),
        ({"exempt": (0,)}, [0]),
    ],
    ids=["below the limit", "outside the window", "no window", "exempt"],
)
def test_no_redraw(settings, history):
    assert drawn(RepetitionAwareSampling(1, 1.0, **settings), history, [0.5, 0.3, 0.2], 50) == {0: 1.0}


def test_a_token_without_alternative_stays():
    assert drawn(RepetitionAwareSampling(2, 1.0), [1, 1], [0.0, 1.0, 0.0], 20) == {1: 1.0}


def test_temperature_sharpens():
    shares = drawn(RepetitionAwareSampling(2, 1.0, temperature=0.5), [], [0.6, 0.4], 4000)
    assert abs(shares[0] - 0.36 / (0.36 + 0.16)) < 0.03


@pytest.mark.parametrize("settings", [{"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"temperature": 0.0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="top_k >= 1"):
        RepetitionAwareSampling(**settings)


@pytest.mark.parametrize("positions", ["sequential", "aligned"])
def test_padding_of_a_text_may_be_on_either_side(positions):
    lm = make_lm(text_positions=positions)
    text, voice = random_ids(1, 5, low=1, high=20), random_tensor(1, SPEAKER_DIM)
    codes = lm.quantizer.indices_to_codes(random_ids(1, 7, high=20))
    whole = lm(text, None, codes, speaker_embedding=voice, tokens_per_symbol=torch.tensor([1.5])).logits
    for rate in (torch.tensor([1.5]), torch.full((1, 8), 1.5)):
        for side in ((3, 0), (0, 3)):
            padded, mask = (torch.nn.functional.pad(row, side) for row in (text, torch.ones_like(text)))
            logits = lm(padded, mask, codes, speaker_embedding=voice, tokens_per_symbol=rate).logits
            torch.testing.assert_close(logits, whole, atol=1e-5, rtol=1e-4)


def test_loss_is_a_mean_over_the_codes_that_have_labels():
    lm = make_lm()
    text, ids = random_ids(1, 5, low=1, high=20), random_ids(1, 8, high=20)
    inputs = (text, None, lm.quantizer.indices_to_codes(ids), None)
    output = lm(*inputs, ids.masked_fill(torch.arange(8) >= 3, -100))
    predicted = output.logits.log_softmax(dim=-1)[0]
    losses = [-predicted[place, ids[0, place]] for place in range(3)] + [-predicted[8, lm.end_token_id]]
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())


def test_only_the_positions_that_are_asked_for_are_scored():
    lm = make_lm()
    ids = random_ids(1, 6, high=20)
    logits = lm(input_ids=ids).logits
    assert logits.shape[1] == 6
    torch.testing.assert_close(lm(input_ids=ids, logits_to_keep=2).logits, logits[:, -2:])
    torch.testing.assert_close(lm(input_ids=ids, logits_to_keep=torch.tensor([1, 4])).logits, logits[:, [1, 4]])
