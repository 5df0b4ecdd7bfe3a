"""The quantiser: one index for one code and back, straight-through gradients, every code reachable."""

import pytest
import torch

from e2e_tts.modeling.fsq import FiniteScalarQuantizer, build_codebook

GRIDS = [[3] * 8, [8, 5, 5, 5], [4] * 5]
BOUNDINGS = ["sigmoid", "tanh"]


def unbound(quantizer: FiniteScalarQuantizer, codes: torch.Tensor) -> torch.Tensor:
    """Projections that the bounding maps onto the given codes (close to them at the ends, which it never reaches)."""
    unit = ((codes + 1) / 2).clamp(1e-3, 1 - 1e-3)
    return unit.logit() / 1.6 if quantizer.bounding == "sigmoid" else torch.atanh((2 * unit - 1) / 0.9991)


@pytest.mark.parametrize("levels", GRIDS, ids=str)
def test_index_code_index(levels):
    quantizer = FiniteScalarQuantizer(levels)
    indices = torch.arange(quantizer.num_codes)
    codes = quantizer.indices_to_codes(indices)
    assert quantizer.num_codes == torch.tensor(levels).prod()
    assert torch.equal(quantizer.codes_to_indices(codes), indices)
    assert len(torch.unique(codes, dim=0)) == quantizer.num_codes
    assert codes.min() == -1 and codes.max() == 1


def test_three_levels_follow_the_formula():
    codes = build_codebook([3] * 8)
    assert set(codes.unique().tolist()) == {-1.0, 0.0, 1.0}
    index = ((codes + 1) * 3 ** torch.arange(8)).sum(dim=-1).long()
    assert torch.equal(index, torch.arange(6561))
    assert torch.equal(codes[3280], torch.zeros(8))


@pytest.mark.parametrize("bounding", BOUNDINGS)
@pytest.mark.parametrize("levels", GRIDS, ids=str)
def test_every_code_is_reached(levels, bounding):
    quantizer = FiniteScalarQuantizer(levels, bounding)
    codes, indices = quantizer(unbound(quantizer, quantizer.codebook)[None])
    assert torch.equal(indices[0], torch.arange(quantizer.num_codes))
    # Exactly on the grid: what the tokenizer gives is what a lookup of its index gives.
    assert torch.equal(codes[0], quantizer.codebook)


@pytest.mark.parametrize("bounding", BOUNDINGS)
@pytest.mark.parametrize("levels", GRIDS, ids=str)
def test_codes_are_codebook_entries_to_the_last_bit(levels, bounding):
    quantizer = FiniteScalarQuantizer(levels, bounding)
    codes, indices = quantizer(torch.randn(1, 2000, len(levels), generator=torch.Generator().manual_seed(0)))
    assert torch.equal(codes, quantizer.codebook[indices])


@pytest.mark.parametrize("bounding", BOUNDINGS)
def test_large_inputs_stay_on_the_grid(bounding):
    quantizer = FiniteScalarQuantizer([8, 5, 5, 5], bounding)
    z = torch.tensor([-1e4, 1e4])[:, None].expand(2, 4)[None]
    codes, indices = quantizer(z)
    assert indices.tolist() == [[0, 999]]
    assert torch.equal(codes[0], torch.tensor([-1.0, 1.0])[:, None].expand(2, 4))


@pytest.mark.parametrize("bounding", BOUNDINGS)
@pytest.mark.parametrize("levels", GRIDS, ids=str)
def test_straight_through_gradient(levels, bounding):
    quantizer = FiniteScalarQuantizer(levels, bounding)
    z = torch.randn(2, 50, len(levels), generator=torch.Generator().manual_seed(0)).requires_grad_()
    codes, _ = quantizer(z)
    codes.sum().backward()
    assert torch.isfinite(z.grad).all() and (z.grad > 0).all()
    # The gradient is that of the bounding alone, as if nothing were rounded.
    smooth = z.detach().clone().requires_grad_()
    (quantizer.bound(smooth) * 2 / quantizer.steps).sum().backward()
    torch.testing.assert_close(z.grad, smooth.grad)


@pytest.mark.parametrize("bounding", BOUNDINGS)
def test_normal_inputs_use_every_level(bounding):
    quantizer = FiniteScalarQuantizer([3] * 8, bounding)
    codes, indices = quantizer(torch.randn(1, 4000, 8, generator=torch.Generator().manual_seed(0)))
    shares = torch.stack([(codes[0].round() == level).float().mean(dim=0) for level in (-1, 0, 1)])
    assert (shares > 0.15).all()
    assert len(indices.unique()) > 1500


@pytest.mark.parametrize("index", [-1, 1000])
def test_index_out_of_range_is_refused(index):
    with pytest.raises(ValueError, match=r"0\.\.999.*different tokenizer"):
        FiniteScalarQuantizer([8, 5, 5, 5]).indices_to_codes(torch.tensor([3, index]))


def test_half_precision_inputs_give_the_same_codes():
    quantizer = FiniteScalarQuantizer([3] * 8)
    z = torch.randn(1, 20, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(quantizer(z)[1], quantizer(z.float())[1])
