"""The flow decoder against closed forms: exact velocity, prompts, guidance, lengths."""

import math

import pytest
import torch
from factories import make_decoder, random_mel, random_tensor

from e2e_tts.modeling.modeling_flow_decoder import NOISE, PROMPT
from e2e_tts.modeling.randomness import seeded_noise, seeded_uniform

SEEDS = torch.tensor([3, 8])


def inputs(tokens: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    mask = torch.ones(2, tokens, dtype=torch.bool)
    return random_tensor(2, tokens, 3), mask, random_mel(2, 2 * tokens, 80), random_tensor(2, 16, seed=1)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_true_velocity_leads_to_the_target(monkeypatch, num_steps, schedule):
    decoder = make_decoder()
    codes, mask, mel, voice = inputs()
    target = decoder.normalise(mel)

    def velocity(x, time, *rest):
        wanted = target.repeat(x.shape[0] // 2, 1, 1)
        return (wanted - x) / (1 - time)[:, None, None]

    monkeypatch.setattr(decoder, "velocity", velocity)
    for guidance in (0.0, 0.7):
        sampled = decoder.sample(
            codes, mask, voice, seeds=SEEDS, num_steps=num_steps, guidance=guidance, schedule=schedule
        )
        torch.testing.assert_close(sampled, mel, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_solver_is_of_second_order(monkeypatch, schedule):
    """dx/dt = -2 x has the solution x exp(-2); twice the steps leave a quarter of the error, Euler's leave half."""
    decoder = make_decoder()
    codes, mask, mel, voice = inputs()
    monkeypatch.setattr(decoder, "velocity", lambda x, time, *rest: -2 * x)
    noise = seeded_noise(SEEDS, NOISE, mel.shape[1:])
    settings = {"seeds": SEEDS, "guidance": 0.0, "schedule": schedule}
    errors = [
        (decoder.normalise(decoder.sample(codes, mask, voice, num_steps=steps, **settings)) - noise * math.exp(-2))
        .norm()
        .item()
        for steps in (1, 16, 32)
    ]
    assert errors[0] > 20 * errors[1] and errors[1] > 3.2 * errors[2]


def test_true_velocity_has_no_loss(monkeypatch):
    decoder = make_decoder()
    codes, mask, mel, voice = inputs()
    target = decoder.normalise(mel)
    noise = seeded_noise(SEEDS, NOISE, target.shape[1:])
    monkeypatch.setattr(decoder, "velocity", lambda *args: target - noise)
    assert decoder(codes, mask, mel, SEEDS, voice).loss_flow < 1e-8
    monkeypatch.setattr(decoder, "velocity", lambda *args: target - noise + 0.5)
    torch.testing.assert_close(decoder(codes, mask, mel, SEEDS, voice).loss_flow, torch.tensor(0.25))


def test_points_lie_on_the_straight_line(monkeypatch):
    decoder = make_decoder()
    codes, mask, mel, voice = inputs()
    target, noise = decoder.normalise(mel), seeded_noise(SEEDS, NOISE, (12, 80))
    seen = {}

    def velocity(x, time, *rest):
        seen.update(x=x, time=time)
        return torch.zeros_like(x)

    monkeypatch.setattr(decoder, "velocity", velocity)
    loss = decoder(codes, mask, mel, SEEDS, voice).loss_flow
    time = seen["time"][:, None, None]
    torch.testing.assert_close(seen["x"], (1 - time) * noise + time * target)
    assert loss > 1 and (seen["time"] > 0).all() and (seen["time"] < 1).all()


def test_prompt_frames_are_given_and_not_in_the_loss(monkeypatch):
    decoder = make_decoder(prompt_probability=1.0, max_prompt_fraction=0.9)
    codes, mask, mel, voice = inputs(10)
    target, noise = decoder.normalise(mel), seeded_noise(SEEDS, NOISE, (20, 80))
    frames = (seeded_uniform(SEEDS, PROMPT) * 0.9 * 20).long()
    assert (frames > 0).all()
    is_prompt = torch.arange(20)[None] < frames[:, None]

    def velocity(x, time, condition, prior, voice, prompt, keep, frame_mask):
        torch.testing.assert_close(prompt, target * is_prompt[..., None])
        return torch.where(is_prompt[..., None], 1e3, target - noise)

    monkeypatch.setattr(decoder, "velocity", velocity)
    assert decoder(codes, mask, mel, SEEDS, voice).loss_flow < 1e-8


def test_sampled_prompt_comes_back_unchanged():
    decoder = make_decoder()
    codes, mask, mel, voice = inputs()
    sampled = decoder.sample(codes, mask, voice, prompt_mel=mel[:, :4], seeds=SEEDS, num_steps=2)
    assert torch.equal(sampled[:, :4], mel[:, :4])
    assert sampled.shape == mel.shape
    without = decoder.sample(codes, mask, voice, seeds=SEEDS, num_steps=2)
    assert (sampled[:, 4:] - without[:, 4:]).abs().max() > 1e-4


def test_guidance_is_the_documented_combination():
    decoder = make_decoder()
    codes, mask, _, voice = inputs()
    settings = {"seeds": SEEDS, "num_steps": 1}
    noise = seeded_noise(SEEDS, NOISE, (12, 80))
    plain = decoder.normalise(decoder.sample(codes, mask, voice, guidance=0.0, **settings)) - noise
    guided = decoder.normalise(decoder.sample(codes, mask, voice, guidance=0.7, **settings)) - noise
    with torch.no_grad():
        condition, prior, projected = decoder.condition(codes, mask, voice)
        frame_mask = mask.repeat_interleave(2, dim=1)
        free = decoder.velocity(
            noise, torch.zeros(2), condition, prior, projected, torch.zeros_like(noise), torch.zeros(2), frame_mask
        )
        # With everything dropped the answer does not depend on the condition.
        other = decoder.velocity(
            noise,
            torch.zeros(2),
            condition + 1,
            prior - 1,
            projected * 2,
            torch.ones_like(noise),
            torch.zeros(2),
            frame_mask,
        )
    torch.testing.assert_close(free, other)
    torch.testing.assert_close(guided, 1.7 * plain - 0.7 * free, rtol=1e-3, atol=1e-4)
    tiny = decoder.normalise(decoder.sample(codes, mask, voice, guidance=1e-9, **settings)) - noise
    torch.testing.assert_close(tiny, plain, rtol=1e-3, atol=1e-4)


def test_seeds_and_temperature():
    decoder = make_decoder()
    codes, mask, _, voice = inputs()
    first = decoder.sample(codes, mask, voice, seeds=SEEDS, num_steps=2)
    assert torch.equal(first, decoder.sample(codes, mask, voice, seeds=SEEDS, num_steps=2))
    assert not torch.allclose(first, decoder.sample(codes, mask, voice, seeds=SEEDS + 1, num_steps=2))
    still = decoder.sample(codes, mask, voice, seeds=SEEDS, num_steps=2, temperature=0.0)
    torch.testing.assert_close(still, decoder.sample(codes, mask, voice, seeds=SEEDS + 1, num_steps=2, temperature=0.0))
    calm = decoder.sample(codes, mask, voice, seeds=SEEDS, num_steps=2, temperature=0.6)
    decoder.config.noise_temperature = 0.6
    assert torch.equal(calm, decoder.sample(codes, mask, voice, seeds=SEEDS, num_steps=2))


@pytest.mark.parametrize("start_time", [0.0, 0.4])
def test_sampling_starts_from_a_mel(monkeypatch, start_time):
    """A velocity of zero leaves the point where it starts; from time 0 nothing of the mel is in it."""
    decoder = make_decoder()
    codes, mask, mel, voice = inputs()
    settings = {"seeds": SEEDS, "num_steps": 2, "start_mel": mel, "start_time": start_time}
    if not start_time:
        started = decoder.sample(codes, mask, voice, **settings)
        assert torch.equal(started, decoder.sample(codes, mask, voice, seeds=SEEDS, num_steps=2))
    times = []

    def velocity(x, time, *rest):
        times.append(float(time[0]))
        return torch.zeros_like(x)

    monkeypatch.setattr(decoder, "velocity", velocity)
    noise = seeded_noise(SEEDS, NOISE, mel.shape[1:])
    point = decoder.normalise(decoder.sample(codes, mask, voice, temperature=0.5, **settings))
    torch.testing.assert_close(point, (1 - start_time) * 0.5 * noise + start_time * decoder.normalise(mel))
    assert times == pytest.approx([start_time, (1 + start_time) / 2])


def test_without_prior_and_speaker():
    decoder = make_decoder(use_prior=False, speaker_dim=0)
    codes, mask, mel, _ = inputs()
    output = decoder(codes, mask, mel, SEEDS)
    assert output.loss_prior is None and torch.isfinite(output.loss_flow)
    assert decoder.sample(codes, mask, num_steps=1).shape == mel.shape


def test_the_regression_alone_is_the_same_loss_without_the_transformer(monkeypatch):
    decoder = make_decoder()
    codes, mask, mel, voice = inputs()
    whole = decoder(codes, mask, mel, SEEDS, voice)
    monkeypatch.setattr(decoder, "velocity", None)
    alone = decoder(codes, mask, mel, SEEDS, voice, only_prior=True)
    assert alone.loss_flow is None
    torch.testing.assert_close(alone.loss_prior, whole.loss_prior)
    with pytest.raises(ValueError, match="use_prior"):
        make_decoder(use_prior=False)(codes, mask, mel, SEEDS, voice, only_prior=True)


def test_lengths_that_do_not_fit_are_refused():
    decoder = make_decoder()
    codes, mask, mel, voice = inputs()
    with pytest.raises(ValueError, match=r"6 tokens are 12 mel frames, but the mel has 11"):
        decoder(codes, mask, mel[:, :11], SEEDS, voice)
    with pytest.raises(ValueError, match=r"prompt_mel has 14 frames.*12"):
        decoder.sample(codes, mask, voice, prompt_mel=random_mel(2, 14, 80))


def test_bad_settings_are_refused():
    decoder = make_decoder()
    codes, mask, mel, voice = inputs()
    with pytest.raises(ValueError, match="num_steps=0"):
        decoder.sample(codes, mask, voice, num_steps=0)
    with pytest.raises(ValueError, match="Unknown time schedule 'cubic'"):
        decoder.sample(codes, mask, voice, schedule="cubic")
    for settings in ({"start_time": 0.5}, {"start_time": 1.0, "start_mel": mel}):
        with pytest.raises(ValueError, match="start_time"):
            decoder.sample(codes, mask, voice, **settings)
    with pytest.raises(ValueError, match="needs a speaker embedding"):
        decoder.sample(codes, mask)


def test_seeded_noise_is_standard_and_does_not_depend_on_length():
    long, short = seeded_noise(SEEDS, NOISE, (900, 7)), seeded_noise(SEEDS[1:], NOISE, (13, 7))
    assert torch.equal(long[1, :13], short[0])
    assert abs(float(long.mean())) < 0.03 and abs(float(long.std()) - 1) < 0.03
    gumbel = seeded_noise(SEEDS, NOISE, (900, 7), kind="gumbel")
    assert abs(float(gumbel.mean()) - 0.5772) < 0.05 and torch.isfinite(gumbel).all()
    assert torch.equal(gumbel[:, :13], seeded_noise(SEEDS, NOISE, (13, 7), kind="gumbel"))
    with pytest.raises(ValueError, match="Unknown kind of noise"):
        seeded_noise(SEEDS, NOISE, (2, 2), kind="pink")
