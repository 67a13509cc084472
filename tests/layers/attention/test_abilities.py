"""What attention parts declare that they can, and what a subclass inherits of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convattn.layers import (
    ACmix,
    AttentionPart,
    GlobalAttention,
    PatchwiseAttention,
    SlidingWindowAttention,
    SpatialReductionAttention,
    WindowAttention,
)
from tests.compare import assert_close
from tests.layers.properties import randomise

ABILITIES = (
    "one_map",
    "attends_map",
    "skips_queries",
    "supports_tokens",
    "linear_in_values",
    "weights_sum_to_one",
)
BUILT_IN: dict[str, Any] = {
    "sliding_window": lambda: SlidingWindowAttention(16, window_size=3, stride=2),
    "window": lambda: WindowAttention(16, window_size=3),
    "shifted_window": lambda: WindowAttention(16, window_size=3, shifted=True),
    "global": lambda: GlobalAttention(16, stride=2, proj=True),
    "spatial_reduction": lambda: SpatialReductionAttention(16, stride=2),
    "patchwise": lambda: PatchwiseAttention(16, window_size=3, stride=2),
}


def built(name: str) -> Any:
    return randomise(BUILT_IN[name]()).double().eval()


def maps(part: AttentionPart, *size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    d = 16 // part.groups[2]
    shapes = [(2, n * d, *(size or (7, 6))) for n in part.groups]
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def is_declared(part: AttentionPart) -> dict[str, bool]:
    return {name: getattr(part, name) for name in ABILITIES}


@pytest.mark.parametrize("name", BUILT_IN)
def test_one_map_means_that_the_map_stays_as_it_is(name):
    part = built(name)
    x = maps(part)[2]
    same = torch.equal(part.context(x), x) and torch.equal(part.spread(x, (7, 6)), x)
    assert part.one_map == same == (name != "spatial_reduction")


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_values_are_summed_linearly(name):
    part = built(name)
    q, k, v = maps(part)
    zero, other = torch.zeros_like(v), v.roll(1, 0).square()
    total = part(q, k, v) + part(q, k, other) - part(q, k, zero)
    assert part.linear_in_values
    assert_close(part(q, k, v + other), total, torch.float64)


@pytest.mark.parametrize("name", BUILT_IN)
def test_weights_that_sum_to_one_keep_what_is_the_same_everywhere(name):
    part = built(name)
    q, k, v = maps(part)
    v = v[:, :, :1, :1].expand_as(v)
    proj = getattr(part, "proj", nn.Identity())
    difference = (part(q, k, v) - proj(v)[:, :, :: part.stride, :: part.stride]).abs().max()
    assert part.weights_sum_to_one == (difference < 1e-12) == (name != "patchwise")


@pytest.mark.parametrize("name", BUILT_IN)
def test_some_parts_support_the_queries_of_their_stride_alone(name):
    part = built(name)
    q, k, v = maps(part)
    assert part.skips_queries == (name == "sliding_window")
    if part.skips_queries:
        alone = part(q[:, :, :: part.stride, :: part.stride], k, v)
        assert_close(alone, part(q, k, v), torch.float64)


@pytest.mark.parametrize("name", BUILT_IN)
def test_some_parts_attend_from_the_map(name):
    part = built(name)
    projections = randomise(nn.ModuleList(nn.Conv2d(8, 16, 1) for _ in range(3))).double()
    x = torch.randn(2, 8, 7, 6, dtype=torch.float64)
    weights, biases = ([getattr(p, n) for p in projections] for n in ("weight", "bias"))
    assert part.attends_map == name.endswith("window") - (name == "sliding_window")
    if part.attends_map:
        expected = part(*(p(x) for p in projections))
        assert_close(part.forward_map(x, weights, biases), expected, torch.float64)
    else:
        with pytest.raises(NotImplementedError):
            part.forward_map(x, weights, biases)


@pytest.mark.parametrize("name", BUILT_IN)
def test_some_parts_support_tokens(name):
    part = built(name)
    tokens = [x[:, :, :2, :1] for x in maps(part)]
    assert part.supports_tokens == (name in ("global", "spatial_reduction"))
    if part.supports_tokens:
        assert part.forward_tokens(*maps(part), *tokens)[1].shape == (2, 16, 2, 1)
    else:
        with pytest.raises(NotImplementedError, match="does not support tokens"):
            part.forward_tokens(*maps(part), *tokens)


class Own(AttentionPart):
    def forward(self, q, k, v):
        return v


class OwnWithMap(Own):
    def forward_map(self, x, weights, biases):
        return self(x, x, x)


class OwnWithTokens(Own):
    def forward_tokens(self, q, k, v, q_tokens, k_tokens, v_tokens):
        return v, v_tokens


class OwnWithContext(Own):
    def context(self, x):
        return x[:, :, :1]


class OwnOnOneMapAgain(OwnWithContext):
    one_map = True

    def context(self, x):
        return x


class Declared(Own):
    linear_in_values = weights_sum_to_one = True


@pytest.mark.parametrize(
    ("kind", "abilities"),
    [
        (Own, {"one_map"}),
        (OwnWithMap, {"one_map", "attends_map"}),
        (OwnWithTokens, {"one_map", "supports_tokens"}),
        (OwnWithContext, set()),
        (OwnOnOneMapAgain, {"one_map"}),
        (Declared, {"one_map", "linear_in_values", "weights_sum_to_one"}),
    ],
)
def test_a_part_has_the_abilities_of_the_methods_that_it_defines(kind, abilities):
    assert is_declared(kind((1, 1, 1))) == {name: name in abilities for name in ABILITIES}


BASES: list[Any] = [
    SlidingWindowAttention,
    WindowAttention,
    GlobalAttention,
    SpatialReductionAttention,
    PatchwiseAttention,
]


@pytest.mark.parametrize("base", BASES)
def test_a_subclass_inherits_the_abilities_of_what_it_does_not_override(base):
    kind = type("Wide", (base,), {"__init__": lambda self, dim: base.__init__(self, 2 * dim)})
    assert is_declared(kind(16)) == is_declared(base(32))


def squared(self: Any, *qkv: Tensor) -> Tensor:
    return qkv[2].square()


MixedIn = type("MixedIn", (), {"forward": squared})  # no part itself
WAYS = {
    "written": lambda base: type("Written", (base,), {"forward": squared}),
    "mixed in": lambda base: type("Squares", (MixedIn, base), {}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("base", BASES)
def test_a_subclass_with_its_own_forward_inherits_no_ability(base, way):
    kind = WAYS[way](base)
    expected = dict.fromkeys(ABILITIES, False) | {"one_map": base.one_map}
    for part in (kind(16), type("Further", (kind,), {})(16)):
        assert is_declared(part) == expected


def test_an_overridden_method_resets_the_linear_abilities():
    class Sharpened(GlobalAttention):
        def restore(self, y: Tensor) -> Tensor:
            return y.square()

    part = Sharpened(16)
    assert part.supports_tokens
    assert not part.linear_in_values
    assert not part.weights_sum_to_one


def test_a_subclass_with_its_own_forward_may_declare_abilities():
    class Halved(SlidingWindowAttention):
        skips_queries = linear_in_values = True

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return super().forward(q, k, v) / 2

    layer = randomise(ACmix(16, attention=Halved(16, window_size=3))).double().eval()
    x = torch.randn(1, 16, 6, 5, dtype=torch.float64)
    expected = layer(x)
    layer.reparameterize()
    assert layer.alpha == 1
    assert_close(layer(x), expected, torch.float64)


def test_linear_values_whose_weights_do_not_sum_to_one_take_no_shift_beside_tokens():
    class Halved(GlobalAttention):
        linear_in_values = supports_tokens = True

        def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return super()._attend(q, k, v) / 2

    layer: Any = randomise(ACmix(16, attention=Halved(16))).double().eval()
    x, scale, shift = (torch.randn(s, dtype=torch.float64) for s in ((1, 16, 6, 5), 16, 16))
    expected = layer(x)
    assert not layer.absorb_affine(scale, shift)
    assert_close(layer(x), expected, torch.float64)


def test_tokens_need_a_forward_of_tokens_as_new_as_the_forward():
    class Written(GlobalAttention):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return super().forward(q, k, v).square()

    layer = ACmix(16, attention=Written(16))
    with pytest.raises(NotImplementedError, match="Written does not define forward_tokens"):
        layer.forward_tokens(torch.zeros(1, 16, 4, 4), torch.zeros(1, 1, 16))
