"""Layer norm, directions, similarities and factors of rows in C, against the formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.kernels.native import library, rows
from convattn.ops.reference.glmix import MIN_NORM
from tests.compare import assert_close
from tests.ops.kernels.native.test_sliding import build as build

pytestmark = pytest.mark.skipif(not library.available(), reason="no C compiler")

both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# whole vectors that stay in registers, others, and what is left over
WIDTHS = [1, 3, 7, 8, 16, 17, 40, 64, 96, 100, 128, 192, 256, 384, 512, 700]


@pytest.fixture(autouse=True)
def _unwritten(build: None) -> object:
    """Memory that nobody wrote is no number."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def _normed(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    x, weight, bias = (t.double() for t in (x, weight, bias))
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def _rows(
    dtype: torch.dtype, count: int = 5, width: int = 100, mean: float = 0.3, spread: float = 1
) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(count, width) * spread + mean
    return x.to(dtype), torch.randn(width).to(dtype), torch.randn(width).to(dtype)


@both_types
@pytest.mark.parametrize("count", [1, 5, 300])
@pytest.mark.parametrize("width", WIDTHS)
def test_rows_are_normed(dtype, width, count):
    tensors = _rows(dtype, count, width)
    y = rows.layer_norm(*tensors, 1e-3)  # two or three numbers that are nearly equal lose digits
    assert y.dtype == dtype
    assert_close(y.double(), _normed(*tensors, 1e-3), dtype)


@pytest.mark.parametrize("width", [64, 100, 256])
@pytest.mark.parametrize(("mean", "spread"), [(1e3, 1.0), (-1e4, 1e-1), (0.0, 1e-4), (0.0, 1e15)])
def test_errors_are_no_larger_than_those_of_pytorch(width, mean, spread):
    tensors = _rows(torch.float32, 200, width, mean, spread)
    expected = _normed(*tensors)
    x, weight, bias = tensors
    ours, theirs = rows.layer_norm(*tensors, 1e-6), F.layer_norm(x, (width,), weight, bias, 1e-6)
    wrong = [(y.double() - expected).abs().max() for y in (ours, theirs)]
    assert wrong[0] <= 2 * wrong[1] + 1e-6


def _summands(dtype: torch.dtype, count: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, weight, bias = _rows(dtype, count, width)
    return x, torch.randn(count, width).to(dtype), weight, bias


@both_types
@pytest.mark.parametrize("count", [1, 5, 300])
@pytest.mark.parametrize("width", WIDTHS)
def test_sums_and_their_rows_are_normed(dtype, width, count):
    x, more, weight, bias = _summands(dtype, count, width)
    given = x.clone(), more.clone()
    total, y = rows.add_layer_norm(x, more, weight, bias, 1e-3)
    assert torch.equal(total, x + more)
    assert torch.equal(y, rows.layer_norm(x + more, weight, bias, 1e-3))
    assert torch.equal(x, given[0])
    assert torch.equal(more, given[1])


@both_types
@pytest.mark.parametrize("width", [40, 64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_no_number_stays_in_the_row_of_the_sum(which, value, width, dtype):
    x, more, weight, bias = _summands(dtype, 5, width)
    expected = rows.add_layer_norm(x, more, weight, bias, 1e-6)
    (x, more)[which][2, width - 1] = value
    results = rows.add_layer_norm(x, more, weight, bias, 1e-6)
    assert results[1][2].isnan().all()
    assert not results[0][2, width - 1].isfinite()
    assert results[0][2, :-1].isfinite().all()
    others = [0, 1, 3, 4]
    assert all(torch.equal(a[others], b[others]) for a, b in zip(results, expected, strict=True))


@both_types
@pytest.mark.parametrize("width", [40, 64])
def test_equal_numbers_become_the_bias(dtype, width):
    _, weight, bias = _rows(dtype, width=width)
    x = torch.full((3, width), 2.0, dtype=dtype)
    assert torch.equal(rows.layer_norm(x, weight, bias, 1e-6), bias.expand(3, -1))


def test_eps_is_added_to_the_variance():
    x = torch.tensor([[1.0, 3.0]])
    y = rows.layer_norm(x, torch.ones(2), torch.zeros(2), 3.0)
    assert_close(y, torch.tensor([[-0.5, 0.5]]), torch.float32)


@both_types
@pytest.mark.parametrize("width", [40, 64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_stays_in_its_row(value, width, dtype):
    x, weight, bias = _rows(dtype, width=width)
    expected = rows.layer_norm(x, weight, bias, 1e-6)
    x[2, width - 1] = value
    y = rows.layer_norm(x, weight, bias, 1e-6)
    assert y[2].isnan().all()
    others = [0, 1, 3, 4]
    assert torch.equal(y[others], expected[others])


@both_types
def test_threads_change_no_bit(dtype, monkeypatch):
    x, weight, bias = _rows(dtype, 1000, 64)
    products, u = torch.randn(2, 300, 40).to(dtype), torch.randn(2, 300, 24).to(dtype)

    def results() -> list[Tensor]:
        e = products.clone()
        shares, totals = rows.similarities_(e, u, MIN_NORM)
        scaled = rows.scale_(e.clone(), shares)
        normed = rows.layer_norm(x, weight, bias, 1e-6)
        sums = rows.add_layer_norm(x, x.flip(0), weight, bias, 1e-6)
        return [e, shares, totals, scaled, normed, *sums, rows.directions(x, MIN_NORM, 1.0)]

    alone = results()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert all(torch.equal(a, b) for a, b in zip(results(), alone, strict=True))


@both_types
@pytest.mark.parametrize("width", [1, 3, 8, 16, 17, 40, 256])
def test_directions_have_the_length_of_the_factor(dtype, width):
    x = torch.randn(2, 7, width).to(dtype)
    x[1, 3] = 0
    expected = -2.5 * F.normalize(x.double(), dim=2)
    y = rows.directions(x, MIN_NORM, -2.5)
    assert y.dtype == dtype
    assert_close(y.double(), expected, dtype)
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(rows.directions(turned, MIN_NORM, -2.5), y)


def _similar(products: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    lengths = u.double().norm(dim=2, keepdim=True)
    inverse = torch.where(lengths > MIN_NORM, 1 / lengths, 0)
    e = (products.double() * inverse).exp()
    return e, 1 / e.sum(2), e.sum(1)


@both_types
@pytest.mark.parametrize("slots", [1, 5, 16, 49, 64])
@pytest.mark.parametrize(("images", "pixels", "channels"), [(1, 1, 1), (3, 9, 20), (2, 300, 32)])
def test_similarities_and_their_sums(dtype, slots, images, pixels, channels):
    u = torch.randn(images, pixels, channels).to(dtype)
    u[0, 0] = 0
    keys = F.normalize(torch.randn(images, channels, slots), dim=1) * 5
    products = (u.float() @ keys).to(dtype)
    expected = _similar(products, u)
    e = products.clone()
    shares, totals = rows.similarities_(e, u, MIN_NORM)
    assert e.dtype == dtype
    assert shares.dtype == totals.dtype == torch.float32
    assert_close([t.double() for t in (e, shares, totals)], list(expected), dtype)
    assert torch.equal(e[0, 0], torch.ones(slots, dtype=dtype))


@both_types
def test_runs_of_pixels_are_read_in_place(dtype):
    u = torch.randn(3, 50, 20).to(dtype)
    products = torch.randn(3, 7, 9).to(dtype)
    results = []
    for run in (u[:, 11:18], u[:, 11:18].contiguous()):
        e = products.clone()
        results.append([e, *rows.similarities_(e, run, MIN_NORM)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("product", "limit"), [(-500.0, -87), (500.0, 87)])
def test_similarities_stay_within_float32(product, limit):
    e = torch.full((1, 1, 3), product)
    rows.similarities_(e, torch.ones(1, 1, 1), MIN_NORM)
    torch.testing.assert_close(e.log(), torch.full((1, 1, 3), float(limit)))


@both_types
def test_a_pixel_that_is_no_number_spoils_its_row_and_the_sums_of_slots(dtype):
    u, e = torch.randn(2, 9, 20).to(dtype), torch.randn(2, 9, 5).to(dtype)
    u[0, 4, 19] = torch.nan
    shares, totals = rows.similarities_(e, u, MIN_NORM)
    assert shares.isnan().sum() == 1
    assert shares[0, 4].isnan()
    assert e.isnan().sum() == 5
    assert e[0, 4].isnan().all()
    assert totals[0].isnan().all()
    assert totals[1].isfinite().all()


@both_types
@pytest.mark.parametrize("width", [1, 5, 16, 49])
def test_rows_are_multiplied(dtype, width):
    x, by = torch.randn(2, 9, width).to(dtype), torch.randn(2, 9)
    expected = (x.float() * by[..., None]).to(dtype)
    assert rows.scale_(x, by) is x
    assert torch.equal(x, expected)
