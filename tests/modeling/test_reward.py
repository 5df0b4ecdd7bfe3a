"""The reward model: labels that are missing, too long, or absent; soft codes; greedy decoding."""

import pytest
import torch
from factories import make_encoder, make_reward, random_ids, random_tensor

MASK = torch.ones(4, 8, dtype=torch.bool)
CODES = random_tensor(4, 8, 3)
LABELS = random_ids(4, 5, low=1, high=12)
TARGET = random_tensor(4, 16)
EMOTIONS = torch.arange(4)


def test_unlabelled_rows_are_masked_not_dropped():
    reward = make_reward()
    labels, target, emotions = LABELS.clone(), TARGET.clone(), EMOTIONS.clone()
    labels[1] = -100
    labels[3] = -100
    target[0] = float("nan")
    emotions[2:] = -100
    codes = CODES.clone().requires_grad_()
    output = reward(codes, MASK, labels, target, emotions)
    assert output.ctc_logits.shape[0] == 4
    torch.testing.assert_close(output.loss_asr, reward(CODES[[0, 2]], None, LABELS[[0, 2]]).loss_asr)
    torch.testing.assert_close(output.loss_spk, reward(CODES[1:], None, speaker_target=TARGET[1:]).loss_spk)
    torch.testing.assert_close(output.loss_ser, reward(CODES[:2], None, emotion_labels=EMOTIONS[:2]).loss_ser)
    for loss, silent in ((output.loss_asr, [1, 3]), (output.loss_spk, [0]), (output.loss_ser, [2, 3])):
        (gradient,) = torch.autograd.grad(loss, codes, retain_graph=True)
        assert torch.isfinite(gradient).all()
        assert not gradient[silent].any()
        assert all(row.any() for index, row in enumerate(gradient) if index not in silent)


def test_no_labelled_row_gives_zero_with_a_graph():
    reward = make_reward()
    nothing = torch.full((4, 5), -100), torch.full((4, 16), float("nan")), torch.full((4,), -100)
    output = reward(CODES, MASK, *nothing)
    losses = (output.loss_asr, output.loss_spk, output.loss_ser)
    assert all(loss == 0 and loss.requires_grad for loss in losses)
    sum(losses).backward()
    assert all(torch.isfinite(p.grad).all() and not p.grad.any() for p in reward.parameters() if p.grad is not None)


def test_a_row_without_labels_has_no_recognition_loss():
    labels = torch.tensor([[1, 2], [-100, -100]])
    losses = make_reward().recognition_losses(CODES[:2], None, labels)
    assert losses[0] > 0 and losses[1] == 0


def test_rows_too_short_for_their_labels_are_listed():
    reward = make_reward()
    mask = torch.arange(8)[None] < torch.tensor([8, 2, 2, 2])[:, None]
    labels = torch.full((4, 5), -100)
    labels[0] = torch.tensor([1, 2, 3, 4, 5])
    labels[1] = torch.tensor([1, 2, 3, 4, 5])  # five labels in four frames
    labels[2, :4] = torch.tensor([1, 2, 3, 4])  # fits exactly
    labels[3, :4] = torch.tensor([1, 1, 2, 3])  # the blank between equal labels needs a fifth frame
    output = reward(CODES, mask, labels)
    assert output.too_short.tolist() == [False, True, False, True]
    fitting = [reward(CODES[:1], mask[:1], labels[:1]), reward(CODES[2:3, :2], None, labels[2:3])]
    torch.testing.assert_close(output.loss_asr, torch.stack([one.loss_asr for one in fitting]).mean())
    assert torch.isfinite(output.loss_asr) and output.loss_asr > 0


@pytest.mark.parametrize("absent", ["ctc_vocab_size", "speaker_dim", "num_emotions"])
def test_absent_heads(absent):
    reward = make_reward(**{absent: 0})
    output = reward(CODES, MASK, LABELS, TARGET, EMOTIONS)
    values = {
        "ctc_vocab_size": (output.loss_asr, output.ctc_logits, output.too_short),
        "speaker_dim": (output.loss_spk, output.speaker_embedding),
        "num_emotions": (output.loss_ser, output.emotion_logits),
    }
    for name, entries in values.items():
        assert all((entry is None) is (name == absent) for entry in entries)


def test_no_pooled_head_at_all():
    reward = make_reward(speaker_dim=0, num_emotions=0)
    assert reward.pooling is None
    assert reward(CODES, MASK, LABELS, TARGET, EMOTIONS).loss_asr > 0
    with pytest.raises(ValueError, match="no CTC head"):
        make_reward(ctc_vocab_size=0).transcribe(CODES)


def test_losses_without_labels_are_none():
    output = make_reward()(CODES)
    assert output.loss_asr is None and output.loss_spk is None and output.loss_ser is None


def test_transcription_collapses_repeats_and_blanks(monkeypatch):
    reward = make_reward()
    path = torch.tensor([[0, 3, 3, 0, 3, 5, 5, 7], [1, 1, 2, 0, 0, 2, 9, 9]])
    logits = torch.nn.functional.one_hot(path, 12).float()
    monkeypatch.setattr(reward, "forward", lambda codes, mask: type("Output", (), {"ctc_logits": logits}))
    assert reward.transcribe(CODES[:2, :4]) == [[3, 3, 5, 7], [1, 2, 2, 9]]
    mask = torch.tensor([[True] * 4, [True] * 3 + [False]])
    assert reward.transcribe(CODES[:2, :4], mask)[1] == [1, 2, 2]  # six of the eight frames


def test_reward_learns_to_transcribe():
    torch.manual_seed(0)
    reward = make_reward(speaker_dim=0, num_emotions=0).train()
    optimizer = torch.optim.AdamW(reward.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss = reward(CODES, MASK, LABELS).loss_asr
        loss.backward()
        optimizer.step()
    reward.eval()
    assert reward.transcribe(CODES) == LABELS.tolist()


def test_soft_codes_are_accepted_and_get_gradients():
    reward = make_reward()
    codebook = make_encoder().quantizer.codebook
    weights = random_tensor(4, 8, len(codebook)).requires_grad_()
    output = reward(weights.softmax(dim=-1) @ codebook, MASK, LABELS, TARGET, EMOTIONS)
    (output.loss_asr + output.loss_spk + output.loss_ser).backward()
    assert torch.isfinite(weights.grad).all() and weights.grad.any()
    hard = torch.full_like(weights.detach(), -1e4).scatter(-1, random_ids(4, 8)[..., None], 0.0)
    soft = reward(hard.softmax(dim=-1) @ codebook, MASK, LABELS).loss_asr
    torch.testing.assert_close(soft, reward(codebook[random_ids(4, 8)], MASK, LABELS).loss_asr)


def test_speaker_loss_is_the_cosine_distance():
    reward = make_reward()
    embedding = reward(CODES).speaker_embedding.detach()
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(4))
    torch.testing.assert_close(
        reward(CODES, speaker_target=3 * embedding).loss_spk, torch.tensor(0.0), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(reward(CODES, speaker_target=-embedding).loss_spk, torch.tensor(2.0))
