from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.utils import reparameterize_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import convattn
from convattn import GLMix, GLMixBlock, ops
from convattn.models.official import rename
from convattn.ops.reference import glmix as reference
from tests.compare import assert_close
from tests.golden import Fixture, relative_error
from tests.layers.properties import LayerProperties, randomise

BLOCKS: dict[str, dict[str, Any]] = {
    "glmix_block_pooled": {
        "dim": 48,
        "num_heads": 3,
        "slots": 16,
        "mlp_ratio": 3,
        "mlp_dwconv": True,
    },
    "glmix_block_param": {"dim": 32, "slots": 25, "slot_init": "learned", "pos_embed": False},
    "glmix_block_layerscale": {
        "dim": 32,
        "num_heads": 2,
        "slots": 9,
        "mlp_ratio": 3,
        "mlp_dwconv": True,
        "layer_scale": 1e-4,
    },
}


class TestGLMix(LayerProperties):
    def build(self, backend: str = "auto") -> nn.Module:
        return GLMix(16, head_dim=8, slots=(2, 3), backend=backend)


class TestGLMixWithLearnedSlotsAndMoreChannels(LayerProperties):
    out_channels = 24

    def build(self, backend: str = "auto") -> nn.Module:
        return GLMix(16, 24, num_heads=4, slots=5, slot_init="learned", backend=backend)


class TestGLMixInSequenceWithStaticClusters(LayerProperties):
    def build(self, backend: str = "auto") -> nn.Module:
        return GLMix(
            16, head_dim=8, slots=4, branches="sequential", clustering="static", backend=backend
        )


class TestGLMixInSequenceWithStride(LayerProperties):
    stride = 2

    def build(self, backend: str = "auto") -> nn.Module:
        return GLMix(16, slots=4, branches="sequential", stride=2, dilation=2, backend=backend)


class TestGLMixBlock(LayerProperties):
    def build(self, backend: str = "auto") -> nn.Module:
        return GLMixBlock(
            16, head_dim=8, slots=4, mlp_ratio=2, mlp_dwconv=True, layer_scale=0.5, backend=backend
        )


class TestGLMixBlockWithKmeans(LayerProperties):
    continuous = False

    def build(self, backend: str = "auto") -> nn.Module:
        return GLMixBlock(16, head_dim=8, slots=4, clustering="kmeans", backend=backend)


def _loaded(name: str, dtype: torch.dtype, backend: str) -> GLMixBlock:
    block = GLMixBlock(**BLOCKS[name], backend=backend).to(dtype).eval()
    convattn.load_official(block, Fixture(name).state(dtype))
    return block


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", BLOCKS)
def test_computes_what_the_published_code_computes(name, dtype, bound, backend):
    fixture = Fixture(name)
    y = _loaded(name, dtype, backend)(fixture.images(dtype))
    assert relative_error(y, fixture.output()) < bound


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
def test_has_the_gradients_of_the_published_code(dtype, bound, backend):
    fixture = Fixture("glmix_block_pooled")
    block = _loaded(fixture.name, dtype, backend)
    x = fixture.images(dtype).requires_grad_()
    (block(x) * fixture.probe(dtype)).sum().backward()
    expected = fixture.gradients()
    assert x.grad is not None
    assert relative_error(x.grad, expected.pop("input")) < bound
    ours = dict(block.named_parameters())
    for name, gradient in rename(block, expected).items():
        actual = ours[name].grad
        assert actual is not None, name
        spread = gradient.std() if gradient.numel() > 1 else gradient.abs()
        assert ((actual.double() - gradient).abs().max() / spread).item() < bound, name


def test_the_names_of_the_state_dict_are_frozen():
    block = GLMixBlock(32, slots=4, mlp_dwconv=True, layer_scale=1e-4)
    modules = ["norm1", "norm2", "pos_embed", "mixer.slot_attn.qkv", "mixer.slot_attn.proj"]
    modules += [f"mixer.local.{i}" for i in range(3)] + ["mlp.fc1", "mlp.dwconv", "mlp.fc2"]
    names = {f"{m}.{leaf}" for m in modules for leaf in ("weight", "bias")}
    assert set(block.state_dict()) == names | {"mixer.slot_scale", "ls1.gamma", "ls2.gamma"}
    learned = GLMix(32, 16, slots=4, slot_init="learned").state_dict()
    assert {"slots", "proj.weight", "proj.bias"} <= set(learned)


@pytest.mark.parametrize(
    ("branches", "absent"),
    [("local", ("slot", "slots")), ("global", ("local",))],
)
def test_a_branch_alone_owns_no_parameter_of_the_other(branches, absent):
    names = list(GLMix(32, branches=branches).state_dict())
    assert names
    assert not [n for n in names if n.startswith(absent)]


def test_branches_in_parallel_are_the_sum_of_both():
    x = torch.randn(2, 16, 7, 5)
    both = randomise(GLMix(16, head_dim=8, slots=4))
    state = both.state_dict()
    parts = []
    for branches in ("local", "global"):
        part = GLMix(16, head_dim=8, slots=4, branches=branches)
        part.load_state_dict({k: state[k] for k in part.state_dict()})
        parts.append(part)
    local, global_ = parts
    assert_close(both(x), local(x) + global_(x), torch.float32)
    chained = GLMix(16, head_dim=8, slots=4, branches="sequential")
    chained.load_state_dict(state)
    assert_close(chained(x), global_(local(x), context=x), torch.float32)


@pytest.mark.parametrize("clustering", ["soft", "kmeans", "static"])
def test_the_global_branch_clusters_attends_and_dispatches(clustering):
    mixer = GLMix(16, head_dim=8, slots=(2, 3), clustering=clustering, branches="global")
    mixer, scale = randomise(mixer), mixer.slot_scale
    u, context = torch.randn(2, 16, 7, 5), torch.randn(2, 16, 7, 5)
    prototypes = reference.pool_slots(context, (2, 3))
    if clustering == "soft":
        slots = reference.soft_clustering(prototypes, u, scale)
    elif clustering == "kmeans":
        slots = prototypes = reference.kmeans_clustering(prototypes, u, 3)
    else:
        slots = reference.pool_slots(u, (2, 3))
    expected = reference.dispatch(prototypes, mixer.slot_attn(slots), u, scale)
    assert_close(mixer(u, context), expected, torch.float32)


def test_slots_are_pooled_from_the_context():
    mixer = randomise(GLMix(16, head_dim=8, slots=4, branches="global"))
    x, context = torch.randn(1, 16, 6, 6), torch.randn(1, 16, 10, 3)
    assert not torch.allclose(mixer(x), mixer(x, context))
    # What pooling cannot see of the context changes nothing.
    pooled = ops.pool_slots(context, (2, 2)).transpose(1, 2).unflatten(2, (2, 2))
    assert_close(mixer(x, context), mixer(x, pooled), torch.float32)


def test_a_context_of_other_channels_is_refused():
    with pytest.raises(ValueError, match="context must have 16 channels"):
        GLMix(16, head_dim=8)(torch.randn(1, 16, 6, 6), torch.randn(1, 8, 6, 6))


@pytest.mark.parametrize("grid", [(1, 1), (3, 7), (2, 1), 9])
def test_a_trained_model_takes_another_grid(grid):
    x = torch.randn(1, 16, 6, 6)
    trained = randomise(GLMix(16, head_dim=8, slots=(4, 4)))
    trained.slot_grid = grid
    built = GLMix(16, head_dim=8, slots=grid)
    built.load_state_dict(trained.state_dict())
    assert trained.slot_grid == built.slot_grid
    assert_close(trained(x), built(x), torch.float32)


@pytest.mark.parametrize("grid", [(0, 3), (3,), 7])
def test_a_grid_is_checked_when_it_is_set(grid):
    mixer = GLMix(32, slots=4)
    with pytest.raises(ValueError, match=r"grid|square"):
        mixer.slot_grid = grid
    assert mixer.slot_grid == (2, 2)


def test_learned_slots_have_no_grid():
    mixer = GLMix(32, slots=(2, 3), slot_init="learned")
    assert mixer.slots.shape == (1, 6, 32)
    assert mixer.slot_grid is None
    with pytest.raises(ValueError, match=r"slot_grid=\(2, 2\) needs pooled slots.* learned slots"):
        mixer.slot_grid = (2, 2)


def test_the_scale_starts_at_one_over_the_root_of_the_width():
    torch.testing.assert_close(GLMix(64).slot_scale.data, torch.tensor([1 / 8]))


def test_a_scale_without_dimension_loads():
    block = GLMixBlock(32, slots=4)
    state = block.state_dict()
    state["mixer.slot_scale"] = torch.tensor(7.0)
    block.load_state_dict(state)
    torch.testing.assert_close(block.mixer.slot_scale.data, torch.tensor([7.0]))
    assert state["mixer.slot_scale"].dim() == 0


def test_no_parameter_is_without_dimension():
    assert all(p.dim() > 0 for p in GLMixBlock(32, layer_scale=1e-4).parameters())


def test_drop_path_drops_branches_in_training_alone():
    block = randomise(GLMixBlock(16, head_dim=8, slots=4, pos_embed=False, drop_path=0.5))
    x = torch.randn(64, 16, 3, 3)
    kept = (block.train()(x) - x).abs().sum(dim=(1, 2, 3)) > 1e-3
    assert 0 < kept.sum() < 64
    assert torch.equal(block.eval()(x), block(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_keeps_the_dtype_of_what_a_block_adds_to(dtype):
    block = GLMixBlock(16, head_dim=8, slots=4, layer_scale=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert block(torch.randn(2, 16, 6, 5).to(dtype)).dtype == dtype


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_the_local_kernel_can_be_chosen(kernel_size):
    mixer = GLMix(16, head_dim=8, slots=4, kernel_size=kernel_size)
    assert mixer.local[1].weight.shape == (16, 1, kernel_size, kernel_size)
    assert mixer(torch.randn(1, 16, 5, 4)).shape == (1, 16, 5, 4)


@pytest.mark.parametrize("branches", ["parallel", "local", "global"])
@pytest.mark.parametrize("clustering", ["soft", "kmeans", "static"])
def test_a_stride_gives_the_pixels_that_are_kept(branches, clustering):
    options: dict[str, Any] = {"slots": 4, "branches": branches, "clustering": clustering}
    full = randomise(GLMix(16, **options))
    strided = GLMix(16, stride=3, **options)
    strided.load_state_dict(full.state_dict())
    x, context = torch.randn(2, 16, 10, 8), torch.randn(2, 16, 5, 5)
    assert_close(strided(x, context), full(x, context)[:, :, ::3, ::3], torch.float32)


def test_a_stride_dispatches_slots_to_the_kept_pixels_alone():
    counts = []
    for stride in (1, 2):
        mixer = GLMix(16, slots=4, stride=stride, branches="global")
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad(), ops.use_backend("reference"):
            mixer(torch.randn(1, 16, 8, 6))
        counts.append(counter.get_total_flops())
    products = 2 * 2 * 4 * 16  # similarities and mixtures of each pixel, four slots, 16 channels
    assert counts[0] - counts[1] == products * (8 * 6 - 4 * 3)


@pytest.mark.parametrize("backend", ["native", "shared"])
def test_a_path_without_gradients_raises_in_training(backend):
    mixer, x = GLMix(16, slots=4, backend=backend), torch.randn(1, 16, 8, 6)
    with pytest.raises(ValueError, match=f"{backend!r} cannot .* gradient.*; use backend='auto'"):
        mixer(x)


def test_a_layer_computes_on_the_path_that_it_names():
    mixer, x = GLMix(16, slots=4, backend="shared"), torch.randn(1, 16, 8, 6)
    with torch.no_grad(), ops.record_paths() as taken:
        y = mixer(x)
        mixer.backend = "reference"
        assert_close(y, mixer(x), torch.float32)
    steps = [choice.path for choice in taken if choice.operator == "cluster_and_dispatch"]
    assert steps == ["shared", "reference"]


def test_the_local_branch_is_dilated():
    mixer = randomise(GLMix(16, slots=4, kernel_size=3, dilation=3, branches="local"))
    x = torch.randn(1, 16, 13, 13, requires_grad=True)
    mixer(x)[0, :, 6, 6].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten().tolist() == [3, 6, 9]


@pytest.mark.parametrize(
    ("channels", "heads"), [(16, 1), (32, 1), (37, 1), (48, 1), (80, 2), (96, 3), (128, 4)]
)
def test_heads_have_about_32_channels_by_default(channels, heads):
    assert GLMix(channels).slot_attn.num_heads == heads


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"stride": 2}, "16, 16, kernel_size=5, stride=2, dilation=1, slots=(8, 8)"),
        ({"slots": 9, "slot_init": "learned"}, "slots=learned, clustering=soft"),
        ({"branches": "local"}, "slots=none, clustering=soft, branches=local"),
    ],
)
def test_repr_shows_the_arguments(arguments, text):
    assert text in GLMix(16, **arguments).extra_repr()


@pytest.mark.parametrize("branches", ["parallel", "sequential", "local", "global"])
@pytest.mark.parametrize("clustering", ["soft", "kmeans", "static"])
def test_a_scaled_mixer_gives_scaled_outputs(branches, clustering):
    options: dict[str, Any] = {"slots": 4, "branches": branches, "clustering": clustering}
    for out_chans in (16, 12):
        mixer = randomise(GLMix(16, out_chans, **options)).double()
        scale, x = torch.randn(out_chans).double(), torch.randn(2, 16, 9, 7).double()
        expected = scale[:, None, None] * mixer(x)
        mixer.scale_outputs(scale)
        assert relative_error(mixer(x), expected) < 1e-10


@pytest.mark.parametrize("options", [{}, {"pos_embed": False}, {"mlp_dwconv": False}])
def test_the_deployed_block_computes_the_same_with_fewer_steps(options):
    options = {"slots": 4, "layer_scale": 0.1, "mlp_dwconv": True, **options}
    block = randomise(GLMixBlock(16, head_dim=8, **options)).double().eval()
    deployed: Any = reparameterize_model(nn.ModuleList([block]))
    again: Any = reparameterize_model(deployed)
    deployed, again = deployed[0], again[0]
    x = torch.randn(2, 16, 9, 7).double()
    for other in (deployed, again):
        assert relative_error(other(x), block(x)) < 1e-10
    gone = {n for n, _ in block.named_parameters()} - {n for n, _ in deployed.named_parameters()}
    assert gone == {"ls1.gamma", "ls2.gamma"}
    with torch.autocast("cpu", torch.bfloat16):
        assert deployed.float()(x.float()).dtype == torch.float32


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"head_dim": 20}, "got dim=32, head_dim=20; the nearest head_dim that fits is 16"),
    ({"num_heads": 5}, "got dim=32, num_heads=5; the nearest num_heads that fits is 4"),
    ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
    ({"slots": 50}, "must be a square, got slots=50; use 49, 64, or a grid"),
    ({"slots": 0}, "slots must be at least 1, got 0"),
    ({"slots": (8, 0)}, "columns of the grid must be at least 1, got 0"),
    ({"slots": (8, 8, 8)}, r"grid must be \(rows, columns\), got"),
    ({"slot_init": "pool"}, "unknown slot_init 'pool'; did you mean 'pooled'"),
    ({"clustering": "k-means"}, "unknown clustering 'k-means'; did you mean 'kmeans'"),
    ({"branches": "paralel"}, "unknown branches 'paralel'; did you mean 'parallel'"),
    ({"backend": "spda"}, "unknown backend 'spda'; did you mean 'sdpa'"),
    ({"backend": "shared", "clustering": "kmeans"}, "'shared' needs clustering 'soft', got "),
    ({"backend": "native", "clustering": "static"}, "'native' needs clustering 'soft', got "),
    ({"kernel_size": 4}, "kernel_size must be odd, got 4; use 3 or 5"),
    ({"kmeans_iterations": 0}, "kmeans_iterations must be at least 1, got 0"),
    ({"slot_init": "learned", "clustering": "kmeans"}, "'kmeans' leaves learned slots without"),
    ({"slot_init": "learned", "clustering": "static"}, "'static' leaves learned slots without"),
]


@pytest.mark.parametrize("layer", [GLMix, GLMixBlock])
@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_rejects(layer, arguments, message):
    with pytest.raises(ValueError, match=message):
        layer(32, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mlp_ratio": 0}, "mlp_ratio must be positive, got 0"),
        ({"drop_path": 1.0}, "drop_path must be at least 0 and less than 1, got 1.0"),
    ],
)
def test_a_block_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        GLMixBlock(32, **arguments)


@pytest.mark.parametrize("layer", [GLMix, GLMixBlock])
def test_unknown_keywords_are_refused(layer):
    with pytest.raises(TypeError, match="slot_number"):
        layer(32, slot_number=4)


@pytest.mark.parametrize("chans", [0, -4])
def test_channels_must_be_positive(chans):
    with pytest.raises(ValueError, match=f"must be at least 1, got {chans}"):
        GLMix(chans)
    with pytest.raises(ValueError, match=f"must be at least 1, got {chans}"):
        GLMix(32, chans)
