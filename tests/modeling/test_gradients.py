"""Which loss teaches which module, and that frozen modules learn nothing while gradients flow through them."""

import pytest
import torch
from factories import make_composite, make_lm, training_batch

TRUE = {
    "loss_asr": "reward",
    "loss_spk": "reward",
    "loss_ser": "reward",
    "loss_lm": "lm",
    "loss_flow": "decoder",
    "loss_prior": "decoder",
}
MODULES = ("encoder", "reward", "lm", "decoder", "speaker", "vocoder")


def touched(model, loss: torch.Tensor) -> set[str]:
    """Modules whose parameters get a gradient that is not zero; all gradients must be finite."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    found = set()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name
            if parameter.grad.any():
                found.add(name.split(".")[0])
    return found


@pytest.fixture(scope="module")
def trained():
    model = make_composite().train()
    output = model(**training_batch(), predicted_losses=("reward", "flow"), gumbel_temperature=0.8)
    return model, output


@pytest.mark.parametrize("name", TRUE)
def test_every_true_loss_alone_teaches_the_tokenizer(trained, name):
    model, output = trained
    assert touched(model, output[name]) == {"encoder", TRUE[name]}


def test_every_encoder_layer_learns(trained):
    model, output = trained
    model.zero_grad()
    (output.loss_asr + output.loss_flow).backward(retain_graph=True)
    assert all(
        parameter.grad is not None and parameter.grad.any()
        for parameter in model.encoder.conformer.parameters()
        if parameter.dim() > 1
    )


@pytest.mark.parametrize("name", ["predicted_loss_asr", "predicted_loss_spk", "predicted_loss_ser"])
def test_predicted_reward_teaches_the_lm(trained, name):
    model, output = trained
    assert touched(model, output[name]) == {"lm", "reward", "encoder"}


@pytest.mark.parametrize("name", ["predicted_loss_flow", "predicted_loss_prior"])
def test_predicted_flow_teaches_the_lm(trained, name):
    model, output = trained
    assert touched(model, output[name]) == {"lm", "decoder", "encoder"}


def test_lm_targets_carry_no_gradient():
    lm = make_lm()
    ids = torch.tensor([[1, 5, 9, 2]])
    text = torch.tensor([[3, 4]])
    codes = lm.quantizer.indices_to_codes(ids).requires_grad_()
    loss = lm(text, None, codes, None, ids, torch.zeros(1, 16)).loss
    loss.backward()
    assert codes.grad[:, :-1].any()
    # The last code is an input of the prediction of the end alone; a target has no other way back.
    model = make_composite()
    seen = {}
    forward = model.lm.forward

    def without_input_side(text_ids, text_mask, codes, code_mask, labels, *rest):
        seen["labels"] = labels
        return forward(text_ids, text_mask, codes.detach(), code_mask, labels, *rest)

    model.lm.forward = without_input_side
    output = model(**training_batch(), true_losses=("lm",))
    assert not seen["labels"].requires_grad and not seen["labels"].is_floating_point()
    assert touched(model, output.loss_lm) == {"lm"}


@pytest.mark.parametrize("frozen", [("encoder", "reward", "speaker", "vocoder"), ("encoder", "reward", "decoder")])
def test_frozen_modules(frozen):
    model = make_composite()
    model.freeze(frozen)
    model.train()
    for name in MODULES:
        module = getattr(model, name)
        assert all(part.training is (name not in frozen) for part in module.modules()), name
        assert all(parameter.requires_grad is (name not in frozen) for parameter in module.parameters()), name
    output = model(**training_batch(), predicted_losses=("reward", "flow"))
    loss = output.predicted_loss_asr + output.predicted_loss_flow + output.loss_flow
    # Through the frozen modules the gradient still reaches the LM.
    assert touched(model, loss) == {"lm", "decoder"} - set(frozen)
    assert touched(model, output.predicted_loss_asr) == {"lm"}
    model.freeze(())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.encoder.modules())


@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.05])
def test_gumbel_softmax_is_hard_forward_and_soft_backward(temperature):
    model = make_composite()
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, 7, 40, generator=generator)).requires_grad_()
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    codes = model.predict_codes(logits, mask, torch.tensor([1, 2]), temperature)
    indices = model.lm.quantizer.codes_to_indices(codes)
    assert torch.equal(codes[mask], model.lm.quantizer.codebook[indices[mask]])
    assert not codes[~mask].any()
    (codes * torch.arange(1, 4)).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[:, :-1, :36][mask].any()
    # No gradient for padding, for the position after the last code, and for control tokens.
    assert not logits.grad[:, -1].any() and not logits.grad[..., 36:].any() and not logits.grad[1, 4:].any()


def test_gumbel_noise_samples_the_distribution():
    model = make_composite()
    logits = torch.zeros(4000, 2, 40)
    logits[..., 7], logits[..., 11] = 4.0, 5.0
    codes = model.predict_codes(logits, torch.ones(4000, 1, dtype=torch.bool), torch.arange(4000), 0.5)
    ids = model.lm.quantizer.codes_to_indices(codes)
    expected = logits[0, 0, :36].softmax(dim=-1)
    for token in (7, 11):
        assert abs(float((ids == token).float().mean()) - float(expected[token])) < 0.03


def test_anchor_alone_and_hidden_states_alone_run_the_lm():
    model = make_composite()
    reference = make_composite().lm
    output = model(**training_batch(), true_losses=(), reference_lm=reference)
    torch.testing.assert_close(output.loss_kl, torch.tensor(0.0), atol=1e-5, rtol=0)
    decoder_config = {**model.config.decoder_config.to_dict(), "hidden_condition_size": 32}
    model = make_composite(decoder_config=decoder_config)
    output = model(**training_batch(), true_losses=("flow",), predict_from="hidden")
    assert {"lm", "decoder"} <= touched(model, output.loss_flow)


def test_losses_are_finite_in_bfloat16():
    model = make_composite().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**training_batch(), predicted_losses=("reward", "flow"), reference_lm=make_composite().lm)
    losses = {name: value for name, value in output.items() if "loss" in name}
    assert len(losses) == 12
    for name, value in losses.items():
        assert torch.isfinite(value), name
    assert touched(model, sum(losses.values())) == {"encoder", "reward", "lm", "decoder"}
