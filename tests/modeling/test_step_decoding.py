"""A step at a time gives what the whole transformer gives, and the loop what transformers' own generate gives."""

import pytest
import torch
from factories import SPEAKER_DIM, make_lm, random_ids, random_tensor, shaken, text_settings
from peft import LoraConfig, inject_adapter_in_model
from transformers.generation import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from e2e_tts.modeling import SpeechLM
from e2e_tts.modeling.modeling_speech_lm import LengthLimits
from e2e_tts.modeling.repetition_aware_sampling import RepetitionAwareSampling
from e2e_tts.modeling.step_decoding import StepDecoder

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}  # two queries share a key


def build(**changes) -> SpeechLM:
    return shaken(make_lm(text_config=text_settings(**{**HEADS, **changes}), text_positions="aligned"), scale=0.05)


def prefix(lm: SpeechLM, padded: bool) -> tuple[torch.Tensor, ...]:
    """Text of two rows, the second padded: embeds, mask, positions and the first code's position."""
    text = random_ids(2, 6, low=1, high=20)
    mask = torch.tensor([[True] * 6, [True] * (3 if padded else 6) + [False] * (3 if padded else 0)])
    return lm.embed_prefix(text, mask, random_tensor(2, SPEAKER_DIM), torch.tensor([2.0, 2.6]))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_steps_give_the_states_of_the_whole_sequence(padded, bias):
    lm = build(attention_bias=bias)
    embeds, mask, positions, first = prefix(lm, padded)
    codes = random_tensor(2, 7, 32, seed=5)
    whole = lm.model(
        inputs_embeds=torch.cat([embeds, codes], dim=1),
        attention_mask=torch.cat([mask, mask.new_ones(2, 7)], dim=1).long(),
        position_ids=torch.cat([positions, first[:, None] + torch.arange(7)], dim=1),
        use_cache=False,
    ).last_hidden_state[:, embeds.shape[1] - 1 :]
    decoder = StepDecoder(lm.model, embeds, mask, positions, first, 7)
    states = [decoder.state, *(decoder.step(codes[:, step]) for step in range(7))]
    torch.testing.assert_close(torch.stack(states, dim=1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [0, 1.0])
@torch.no_grad()
def test_codes_are_those_of_the_generate_of_transformers(temperature):
    lm = build()
    lm.end_head.weight.mul_(20)  # rows end at different steps
    text, rate, voice = random_ids(3, 5, low=1, high=20), torch.tensor([2.0, 1.5, 3.0]), random_tensor(3, SPEAKER_DIM)
    mask = torch.arange(5)[None] < torch.tensor([[5], [2], [4]])
    generator = torch.Generator().manual_seed(3)
    limits = {"min_tokens_per_symbol": 1.0, "max_tokens_per_symbol": 4.0, "temperature": temperature}
    ours = lm.generate_codes(text, mask, voice, rate, top_k=25, top_p=0.8, generator=generator, **limits)

    embeds, whole_mask, positions, _ = lm.embed_prefix(text, mask, voice, rate)
    count = mask.sum(dim=1)
    processors = LogitsProcessorList([LengthLimits(count, 4 * count, lm.end_token_id)])
    if temperature:
        draws = torch.Generator().manual_seed(3)
        processors.append(
            RepetitionAwareSampling(25, 0.8, temperature, 10, 3, exempt=(lm.end_token_id,), generator=draws)
        )
    sequences = lm.generate(
        inputs_embeds=embeds,
        attention_mask=whole_mask.long(),
        position_ids=positions,
        max_new_tokens=20,
        do_sample=False,
        logits_processor=processors,
        eos_token_id=lm.end_token_id,
        pad_token_id=lm.end_token_id,
    )
    code_mask = (sequences == lm.end_token_id).cumsum(dim=1) == 0
    assert ours.ids.tolist() == (sequences * code_mask)[:, : ours.ids.shape[1]].tolist()
    assert torch.equal(ours.mask.sum(dim=1), code_mask.sum(dim=1))
    assert len(set(ours.mask.sum(dim=1).tolist())) > 1


class Recorder(BaseStreamer):
    def __init__(self) -> None:
        self.values: list[list[int]] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.values.append(value.reshape(-1).tolist())

    def end(self) -> None:
        self.ended = True


def test_streamer_and_criteria_are_served_as_by_transformers():
    """First the prompt, then every token; a criterion that is met ends the row after that token."""
    lm, streamer = build(), Recorder()
    with torch.no_grad():
        lm.end_head.bias.fill_(-100.0)
    text = random_ids(1, 4, low=1, high=20)
    rate = torch.tensor([2.0])

    def third(ids: torch.LongTensor, scores: torch.Tensor, **_: object) -> torch.BoolTensor:
        return torch.full((len(ids),), ids.shape[1] >= 3)

    criteria = StoppingCriteriaList([third])
    generated = lm.generate_codes(text, None, None, rate, temperature=0, streamer=streamer, stopping_criteria=criteria)
    assert streamer.values == [[], *([token] for token in generated.ids[0].tolist())]
    assert streamer.ended and generated.ids.shape == (1, 3) and not generated.finished.any()


@torch.no_grad()
def test_adapters_on_the_layers_take_part():
    """LoRA layers put in the place of projections are called, not passed by: states stay those of the whole model."""
    lm = build()
    adapter = LoraConfig(target_modules=["q_proj", "v_proj", "o_proj", "up_proj"], init_lora_weights=False)
    adapted = inject_adapter_in_model(adapter, lm.model).eval()
    embeds, mask, positions, first = prefix(lm, padded=True)
    step = random_tensor(2, 32, seed=5)
    whole = adapted(
        inputs_embeds=torch.cat([embeds, step[:, None]], dim=1),
        attention_mask=torch.cat([mask, mask.new_ones(2, 1)], dim=1).long(),
        position_ids=torch.cat([positions, first[:, None]], dim=1),
    ).last_hidden_state[:, -1]
    torch.testing.assert_close(
        StepDecoder(adapted, embeds, mask, positions, first, 1).step(step), whole, rtol=1e-4, atol=1e-5
    )
    plain = build().model
    assert not torch.allclose(StepDecoder(plain, embeds, mask, positions, first, 1).step(step), whole, atol=1e-2)


def test_sliding_attention_is_refused():
    lm = build()
    lm.model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="sliding_attention"):
        lm.generate_codes(random_ids(1, 3, low=1, high=20), None, None, torch.tensor([2.0]))


def test_speaking_during_training_with_gradient_checkpointing():
    lm = build()
    text, voice, rate = random_ids(1, 5, low=1, high=20), random_tensor(1, SPEAKER_DIM), torch.tensor([2.0])
    expected = lm.generate_codes(text, None, voice, rate, temperature=0.0).ids
    lm.train()
    lm.gradient_checkpointing_enable()
    assert torch.equal(lm.generate_codes(text, None, voice, rate, temperature=0.0).ids, expected)
    assert lm.model.training
