"""An utterance gives the same answer alone and padded in a batch, in evaluation and in training, in any order."""

import pytest
import torch
from factories import (
    LEVELS,
    lengths_mask,
    make_composite,
    make_decoder,
    make_encoder,
    make_lm,
    make_reward,
    make_speaker,
    random_ids,
    random_mel,
    random_tensor,
    take_rows,
    training_batch,
)

MODES = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
POSITIONS = pytest.mark.parametrize("positions", ["sequential", "aligned"])
LENGTHS = (12, 5, 9)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def poisoned(batch: dict) -> dict:
    """The batch with garbage where nothing may look: in the padding."""
    batch = dict(batch)
    batch["input_features"] = batch["input_features"].masked_fill(~batch["feature_mask"][..., None], 7.0)
    batch["text_ids"] = batch["text_ids"].masked_fill(~batch["text_mask"], 3)
    return batch


@MODES
def test_encoder(training):
    encoder = make_encoder().train(training)
    batch = poisoned(training_batch(LENGTHS, (5, 3, 4)))
    together = encoder(batch["input_features"], batch["feature_mask"])
    for row, length in enumerate(LENGTHS):
        alone = encoder(batch["input_features"][row : row + 1, : 2 * length])
        assert torch.equal(alone.ids[0], together.ids[row, :length])
        torch.testing.assert_close(alone.codes[0], together.codes[row, :length])
        assert together.mask[row].sum() == length
        assert not together.codes[row, length:].any() and not together.ids[row, length:].any()
    assert len(together.ids.unique()) > 5


def test_encoder_hidden_states_not_only_codes():
    encoder = make_encoder().train()
    batch = poisoned(training_batch(LENGTHS, (5, 3, 4)))
    seen = []
    encoder.to_code.register_forward_hook(lambda module, inputs, output: seen.append(output))
    encoder(batch["input_features"], batch["feature_mask"])
    encoder(batch["input_features"][1:2, :10])
    torch.testing.assert_close(seen[1][0], seen[0][1, :5], **CLOSE)


def test_encoder_on_waveforms():
    encoder = make_encoder()
    audio = 0.1 * random_tensor(2, 6400)
    lengths = torch.tensor([6400, 2000])
    together = encoder.encode(audio, lengths)
    alone = encoder.encode(audio[1:, :2000])
    assert together.mask.sum(dim=1).tolist() == [10, 4]
    assert torch.equal(alone.ids[0], together.ids[1, :4])


@MODES
def test_reward(training):
    reward = make_reward().train(training)
    mask = lengths_mask(list(LENGTHS))
    codes = random_tensor(3, 12, len(LEVELS)).masked_fill(~mask[..., None], 5.0)
    batch = training_batch(LENGTHS, (5, 3, 4))
    targets = (batch["ctc_labels"], batch["speaker_target"], batch["emotion_labels"])
    together = reward(codes, mask, *targets)
    losses = []
    for row, length in enumerate(LENGTHS):
        alone = reward(codes[row : row + 1, :length], None, *(target[row : row + 1] for target in targets))
        torch.testing.assert_close(alone.ctc_logits[0], together.ctc_logits[row, : 2 * length], **CLOSE)
        torch.testing.assert_close(alone.speaker_embedding[0], together.speaker_embedding[row], **CLOSE)
        torch.testing.assert_close(alone.emotion_logits[0], together.emotion_logits[row], **CLOSE)
        losses.append(torch.stack([alone.loss_asr, alone.loss_spk, alone.loss_ser]))
    means = torch.stack(losses).mean(dim=0)
    torch.testing.assert_close(torch.stack([together.loss_asr, together.loss_spk, together.loss_ser]), means, **CLOSE)


@MODES
@POSITIONS
def test_lm_loss(positions, training):
    lm = make_lm(text_positions=positions).train(training)
    batch = poisoned(training_batch(LENGTHS, (5, 3, 4)))
    mask = lengths_mask(list(LENGTHS))
    ids = random_ids(3, 12)
    codes = lm.quantizer.indices_to_codes(ids)

    def run(rows, length, symbols):
        return lm(
            batch["text_ids"][rows, :symbols],
            batch["text_mask"][rows, :symbols],
            codes[rows, :length],
            mask[rows, :length],
            ids[rows, :length],
            batch["speaker_embedding"][rows],
            batch["tokens_per_symbol"][rows],
        )

    together = run(slice(None), 12, 5)
    losses = []
    for row, (length, symbols) in enumerate(zip(LENGTHS, (5, 3, 4), strict=True)):
        alone = run(slice(row, row + 1), length, symbols)
        torch.testing.assert_close(alone.logits[0], together.logits[row, : length + 1], **CLOSE)
        losses.append(alone.loss)
    torch.testing.assert_close(together.loss, torch.stack(losses).mean(), **CLOSE)


@MODES
def test_flow_decoder_loss(training):
    decoder = make_decoder(condition_dropout=0.5).train(training)
    mask = lengths_mask(list(LENGTHS))
    codes = random_tensor(3, 12, len(LEVELS))
    mel = random_mel(3, 24, 80).masked_fill(~mask.repeat_interleave(2, dim=1)[..., None], 9.0)
    voice, seeds = random_tensor(3, 16), torch.tensor([4, 5, 6])
    together = decoder(codes, mask, mel, seeds, voice)
    flow, prior = [], []
    for row, length in enumerate(LENGTHS):
        one = slice(row, row + 1)
        alone = decoder(codes[one, :length], mask[one, :length], mel[one, : 2 * length], seeds[one], voice[one])
        flow.append(alone.loss_flow)
        prior.append(alone.loss_prior)
    torch.testing.assert_close(together.loss_flow, torch.stack(flow).mean(), **CLOSE)
    torch.testing.assert_close(together.loss_prior, torch.stack(prior).mean(), **CLOSE)
    other = decoder(codes, mask, mel, seeds + 10, voice)
    assert (other.loss_flow - together.loss_flow).abs() > 1e-3


@pytest.mark.parametrize("guidance", [0.0, 0.7])
def test_flow_decoder_sample(guidance):
    decoder = make_decoder()
    mask = lengths_mask(list(LENGTHS))
    codes, voice, seeds = random_tensor(3, 12, len(LEVELS)), random_tensor(3, 16), torch.tensor([4, 5, 6])
    settings = {"num_steps": 3, "guidance": guidance}
    together = decoder.sample(codes, mask, voice, seeds=seeds, **settings)
    for row, length in enumerate(LENGTHS):
        one = slice(row, row + 1)
        alone = decoder.sample(codes[one, :length], None, voice[one], seeds=seeds[one], **settings)
        torch.testing.assert_close(alone[0], together[row, : 2 * length], rtol=1e-3, atol=1e-4)


@MODES
def test_speaker_encoder(training):
    speaker = make_speaker(num_speakers=3).train(training)
    batch = poisoned(training_batch(LENGTHS, (5, 3, 4)))
    labels = torch.arange(3)
    together = speaker(batch["input_features"], batch["feature_mask"], labels)
    losses = []
    for row, length in enumerate(LENGTHS):
        alone = speaker(batch["input_features"][row : row + 1, : 2 * length], labels=labels[row : row + 1])
        torch.testing.assert_close(alone.embedding[0], together.embedding[row], **CLOSE)
        losses.append(alone.loss)
    torch.testing.assert_close(together.loss, torch.stack(losses).mean(), **CLOSE)


def losses_of(model, batch) -> dict[str, torch.Tensor]:
    reference = make_lm(text_positions="aligned", output_adapter_size=16)
    output = model(**batch, predicted_losses=("reward", "flow"), gumbel_temperature=0.7, reference_lm=reference)
    return {name: value for name, value in output.items() if "loss" in name}


@MODES
@POSITIONS
def test_every_loss_of_the_composite(positions, training):
    lm_config = {**make_lm().config.to_dict(), "text_positions": positions}
    model = make_composite(lm_config=lm_config).train(training)
    batch = training_batch(LENGTHS, (5, 3, 4))
    with torch.no_grad():
        together = losses_of(model, batch)
        alone = [losses_of(model, take_rows(batch, [row])) for row in range(3)]
        turned = losses_of(model, take_rows(batch, [2, 0, 1]))
    assert len(together) == 12
    for name, value in together.items():
        torch.testing.assert_close(value, torch.stack([losses[name] for losses in alone]).mean(), msg=name, **CLOSE)
        torch.testing.assert_close(value, turned[name], msg=name, **CLOSE)


@POSITIONS
def test_lm_cached_decoding_equals_uncached(positions):
    lm = make_lm(text_positions=positions)
    text, rate, voice = random_ids(2, 4, low=1, high=20), torch.tensor([2.0, 3.0]), random_tensor(2, 16)
    text_mask = torch.tensor([[True] * 4, [True] * 3 + [False]])
    ids = random_ids(2, 7)
    with torch.no_grad():
        full = lm(text, text_mask, lm.quantizer.indices_to_codes(ids), None, None, voice, rate).logits
        embeds, mask, places, first = lm.embed_prefix(text, text_mask, voice, rate)
        output = lm(inputs_embeds=embeds, attention_mask=mask.long(), position_ids=places, use_cache=True)
        steps = [output.logits[:, -1]]
        for step in range(7):
            mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
            output = lm(
                input_ids=ids[:, step : step + 1],
                attention_mask=mask.long(),
                position_ids=first[:, None] + step,
                past_key_values=output.past_key_values,
                use_cache=True,
            )
            steps.append(output.logits[:, -1])
    torch.testing.assert_close(torch.stack(steps, dim=1), full, **CLOSE)
