"""Stage 3 on what the LM itself has drawn: the noise behind draws, and losses of speech without a recording."""

import math
from unittest.mock import patch

import pytest
import torch
from factories import SPEAKER_DIM, make_composite, random_tensor, training_batch

from e2e_tts.modeling.gumbel_softmax import gumbel_noise, straight_through_codes
from e2e_tts.modeling.own_history import OwnHistory, advantages, policy_loss


def drawn_speech(model, lengths: tuple[int, ...], texts: torch.Tensor) -> OwnHistory:
    """Random tokens of given lengths for a batch of texts."""
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    ids = torch.randint(0, model.lm.config.num_codes, mask.shape, generator=torch.Generator().manual_seed(5)) * mask
    voice = torch.nn.functional.normalize(random_tensor(len(lengths), SPEAKER_DIM, seed=6), dim=-1)
    finished, rates = torch.ones(len(lengths), dtype=torch.bool), torch.full((len(lengths),), 2.0)
    return OwnHistory(ids, mask, finished, texts, voice, rates, voice, temperature=0.7)


def test_noise_behind_draws_is_what_noise_before_draws_is():
    logits = (2 * random_tensor(1, 1, 6)).expand(1, 40_000, 6).contiguous()
    ids = (logits + gumbel_noise(logits, torch.tensor([3]))).argmax(dim=-1)
    behind = gumbel_noise(logits, torch.tensor([4]), ids)
    assert torch.equal((logits + behind).argmax(dim=-1), ids)
    # Over samples of the distribution it is the standard Gumbel's, every component by itself.
    assert (behind.mean(dim=(0, 1)) - 0.5772).abs().max() < 0.03
    assert (behind.std(dim=(0, 1)) - math.pi / math.sqrt(6)).abs().max() < 0.03
    assert (torch.corrcoef(behind[0].T) - torch.eye(6)).abs().max() < 0.03


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_drawn_codes_are_kept_however_unlikely(temperature):
    codebook = make_composite().lm.quantizer.codebook
    logits = torch.zeros(1, 3, len(codebook))
    logits[..., 0] = 80.0
    logits.requires_grad_()
    ids = torch.tensor([[5, 0, 17]])
    codes = straight_through_codes(logits, codebook, torch.tensor([1]), temperature, ids)
    assert torch.equal(codes, codebook[ids])
    (codes * torch.arange(1, 4)).sum().backward()
    assert torch.isfinite(logits.grad).all() and logits.grad[0, 0].any()


def test_losses_are_those_of_the_drawn_speech_and_teach_the_lm_alone():
    model = make_composite().train()
    model.freeze(("encoder", "reward"))
    batch = training_batch()
    own = drawn_speech(model, (7, 11), batch["text_mask"])
    options = {"true_losses": (), "predicted_losses": ("reward",), "reference_lm": make_composite().lm}
    output = model(**batch, **options, own_history=own)
    codes = model.lm.quantizer.indices_to_codes(own.ids) * own.mask[..., None]
    heard = model.reward(codes, own.mask, batch["ctc_labels"], own.speaker_target, batch["emotion_labels"])
    torch.testing.assert_close(output.predicted_loss_asr, heard.loss_asr)
    torch.testing.assert_close(output.predicted_loss_spk, heard.loss_spk)
    torch.testing.assert_close(output.loss_kl, torch.tensor(0.0), atol=1e-5, rtol=0)
    output.predicted_loss_asr.backward()
    taught = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert taught == {"lm"}


def test_gradient_makes_drawn_speech_better_understood():
    # One step along the gradient, then the expected codes are nearer to what the reward model wants to hear.
    model = make_composite()
    batch = training_batch()
    own = drawn_speech(model, (12, 12), batch["text_mask"])
    logits = torch.zeros(2, 13, model.lm.config.vocab_size, requires_grad=True)
    codes = model.predict_codes(logits, own.mask, batch["seeds"], 1.0, own.ids)
    before = model.reward(codes, own.mask, batch["ctc_labels"]).loss_asr
    (gradient,) = torch.autograd.grad(before, logits)
    step = 0.3 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None]
    codebook, size = model.lm.quantizer.codebook, model.lm.config.num_codes
    moved = (-40 * step[:, :-1, :size]).softmax(dim=-1) @ codebook - codebook.mean(dim=0)
    after = model.reward(codes.detach() + moved, own.mask, batch["ctc_labels"]).loss_asr
    assert after < before


def test_an_utterance_alone_and_in_a_batch():
    model = make_composite()
    batch = training_batch()
    own = drawn_speech(model, (7, 11), batch["text_mask"])
    options = {"true_losses": (), "predicted_losses": ("reward",), "reference_lm": make_composite().lm}
    together = model(**batch, **options, own_history=own)
    alone = []
    for row, length in enumerate((7, 11)):
        single = {name: value[row : row + 1] for name, value in batch.items()}
        fields = {name: value[row : row + 1] for name, value in vars(own).items() if isinstance(value, torch.Tensor)}
        fields |= {"ids": fields["ids"][:, :length], "mask": fields["mask"][:, :length]}
        alone.append(model(**single, **options, own_history=OwnHistory(**fields, temperature=own.temperature)))
    for name in ("predicted_loss_asr", "predicted_loss_spk", "loss_kl"):
        mean = sum(getattr(output, name) for output in alone) / 2
        torch.testing.assert_close(getattr(together, name), mean, atol=1e-5, rtol=1e-5)


def test_advantages_compare_the_draws_of_one_text():
    losses = torch.tensor([1.0, 2.0, 3.0, 0.1, 0.1, 0.1, 0.5, torch.inf, 0.5])
    better = advantages(losses, 3).view(3, 3)
    torch.testing.assert_close(better.sum(dim=1), torch.zeros(3), atol=1e-6, rtol=0)
    assert better[0, 0] > 0 > better[0, 2] and not better[1].any()
    assert torch.isfinite(better).all() and better[2, 1] < -1 and better[2, 0] == better[2, 2] > 0
    # Nearly as a text of other difficulty: the scale of the losses counts for little.
    torch.testing.assert_close(advantages(10 * losses[:3].clamp_max(0.5), 3), torch.zeros(3))


def test_policy_loss_is_the_gradient_of_the_expected_reward():
    # All pairs of two tokens and an end, weighed by their probabilities: the expectation is known in closed form.
    scores = random_tensor(3, 4, seed=8).requires_grad_()
    reward = random_tensor(3, 3, seed=9)
    first, second = torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij")
    ids = torch.stack([first.flatten(), second.flatten()], dim=1)
    mask, ended = torch.ones(9, 2, dtype=torch.bool), torch.ones(9, dtype=torch.bool)
    log_probabilities = scores.log_softmax(dim=-1)
    joint = (log_probabilities[0, ids[:, 0]] + log_probabilities[1, ids[:, 1]] + log_probabilities[2, 3]).exp()
    expected = (joint * reward.flatten()).sum()
    (wanted,) = torch.autograd.grad(expected, scores)
    # A draw's mean log probability is a third of its sum, and the mean over rows a ninth of theirs.
    loss = policy_loss(scores.expand(9, 3, 4), ids, mask, ended, 27 * joint.detach() * reward.flatten(), 3, 9)
    (got,) = torch.autograd.grad(-loss, scores)
    torch.testing.assert_close(got, wanted)


def test_an_end_that_was_forced_is_no_choice_of_the_lm():
    logits = random_tensor(2, 4, 6, seed=3).requires_grad_()
    ids, mask = torch.tensor([[1, 2, 0], [3, 4, 2]]), torch.tensor([[True, True, False], [True, True, True]])
    policy_loss(logits, ids, mask, torch.tensor([True, False]), torch.tensor([1.0, 1.0]), 5, 2).backward()
    taught = logits.grad.abs().sum(dim=-1) > 0
    assert taught.tolist() == [[True, True, True, False], [True, True, True, False]]


def test_every_token_of_a_long_draw_counts_as_much_as_one_of_a_short_draw():
    ids, lengths = torch.zeros(3, 8, dtype=torch.long), torch.tensor([8, 4, 2])
    mask, ended = torch.arange(8) < lengths[:, None], torch.zeros(3, dtype=torch.bool)
    for draws, expected in ((3, (3 / 14, 3 / 14, 3 / 14)), (1, (1 / 8, 1 / 4, 1 / 2))):
        logits = torch.zeros(3, 9, 4).requires_grad_()
        policy_loss(logits, ids, mask, ended, torch.ones(3), 3, draws).backward()
        of_tokens = -logits.grad[:, 0, 0] * 3 / 0.75  # d log p / d logit is 1 - p, and the rows' mean divides by 3
        torch.testing.assert_close(of_tokens, torch.tensor(expected))


def test_a_draw_that_never_ends_is_the_worst_of_its_text():
    model = make_composite().train()
    batch = training_batch()
    own = drawn_speech(model, (7, 11, 5, 9, 8, 12), batch["text_mask"].repeat_interleave(3, dim=0))
    own.draws = 3
    seen = []
    for finished in (True, False):
        own.finished[2] = finished
        model.zero_grad()
        with patch("e2e_tts.modeling.modeling_e2e_tts.advantages", wraps=advantages) as spy:
            model(**batch, true_losses=(), predicted_losses=("policy",), own_history=own)
        seen.append(advantages(*spy.call_args.args).view(2, 3))
    # It would be the best if it ended; others of this untrained model are as bad as can be too.
    assert seen[0][0].argmax() == 2 and seen[1][0, 2] == seen[1][0].min() < 0
    torch.testing.assert_close(seen[0][1], seen[1][1])


def test_whole_draws_teach_the_lm_alone():
    model = make_composite().train()
    model.freeze(("encoder", "reward"))
    batch = training_batch()
    texts = batch["text_mask"].repeat_interleave(3, dim=0)
    own = drawn_speech(model, (7, 11, 5, 9, 8, 12), texts)
    own.draws, own.reward = 3, {"asr": 1.0, "spk": 0.5}
    output = model(**batch, true_losses=(), predicted_losses=("policy",), own_history=own)
    codes = model.lm.quantizer.indices_to_codes(own.ids) * own.mask[..., None]
    labels = batch["ctc_labels"].repeat_interleave(3, dim=0)
    losses = model.reward.compare(codes, own.mask, labels, own.speaker_target, own.reward)
    torch.testing.assert_close(losses["asr"], model.reward.recognition_losses(codes, own.mask, labels))
    torch.testing.assert_close(losses["all"], losses["asr"] + 0.5 * losses["spk"])
    torch.testing.assert_close(output.predicted_loss_asr, losses["asr"].mean())
    torch.testing.assert_close(output.predicted_loss_spk, losses["spk"].mean())
    output.predicted_loss_policy.backward()
    taught = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert taught == {"lm"}
