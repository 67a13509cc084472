from __future__ import annotations

from pathlib import Path

import pytest
import torch

from convattn.models import create_model
from convattn.tasks.classification import load_config
from convattn.training.optimizer import (
    build_optimizer,
    build_schedule,
    check_optimizer,
    rate_factor,
)


@pytest.mark.parametrize(
    ("recipe", "images", "rate"),
    [
        ("glnet", 2048, 2e-3),
        ("glnet", 128, 2e-3 / 16),
        ("acmix_resnet", 256, 0.1),
        ("acmix_resnet", 1024, 0.4),
        ("acmix_swin", 1024, 1e-3),
        ("acmix_pvt", 1024, 1e-3),
        ("nano", 512, 4e-3),  # the square root of four
        ("digits", 999, 3e-3),  # not scaled
    ],
)
def test_the_learning_rate_is_scaled_to_the_batch_by_the_recipe(
    recipe: str, images: int, rate: float
) -> None:
    config = load_config(recipe)
    assert config.lr * rate_factor(config, images) == pytest.approx(rate)


def test_biases_and_norms_have_no_weight_decay() -> None:
    model = create_model("test_vit", num_classes=2)
    optimizer = build_optimizer(load_config("digits"), model, 1.0)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        excluded = parameter.ndim < 2 or name in ("pos_embed", "cls_token")
        assert decays[id(parameter)] == (0 if excluded else 0.05), name


def test_layer_decay_lowers_the_rate_towards_the_input() -> None:
    config = load_config("finetune", {"pretrained": True})
    model = create_model("glnet_nano", num_classes=2)
    optimizer = build_optimizer(config, model, 1.0)
    scales = {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    names = dict(model.named_parameters())
    head = next(p for n, p in names.items() if n.startswith("head"))
    stem = next(p for n, p in names.items() if n.startswith("stem"))
    assert scales[id(head)] == 1.0
    assert scales[id(stem)] < 0.75


def test_sgd_of_the_papers_has_no_nesterov_momentum() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(load_config("acmix_resnet"), model, 1.0)
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.9, False)


def test_betas_are_passed_to_the_optimiser() -> None:
    config = load_config("digits", {"opt_betas": (0.8, 0.9)})
    optimizer = build_optimizer(config, torch.nn.Linear(2, 2), 1.0)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


def test_the_schedule_warms_up_falls_and_cools_down() -> None:
    changes = {"epochs": 10, "warmup_epochs": 2, "cooldown_epochs": 2, "min_lr": 1e-4, "lr": 1.0}
    config = load_config("digits", changes)
    optimizer = build_optimizer(config, torch.nn.Linear(2, 2), 1.0)
    schedule = build_schedule(config, optimizer, 5, 1.0)
    rates = [optimizer.param_groups[0]["lr"]]
    for update in range(1, 51):
        schedule.step_update(update)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(config.warmup_lr)
    assert rates[9] == max(rates)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[40:] == [pytest.approx(1e-4)] * 11


def test_an_unknown_optimiser_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown optimiser 'adamww'; did you mean 'adamw'\?"):
        check_optimizer(load_config("digits", {"opt": "adamww"}))


def test_an_optimiser_that_needs_second_derivatives_is_refused() -> None:
    with pytest.raises(ValueError, match=r"opt=adahessian needs second derivatives.* opt=adamw"):
        check_optimizer(load_config("digits", {"opt": "adahessian"}))


@pytest.mark.parametrize("opt", ["kron", "kronc", "kronw"])
def test_an_optimiser_that_compiles_is_announced(opt: str) -> None:
    [note] = check_optimizer(load_config("digits", {"opt": opt}))
    assert note == f"opt={opt} compiles its update in the first batches: minutes"


@pytest.mark.parametrize("opt", ["sgd", "rmsprop", "adan"])
def test_betas_that_an_optimiser_does_not_have_are_an_error_where_the_user_gave_them(
    opt: str, tmp_path: Path
) -> None:
    betas = {"opt_betas": (0.8, 0.9)}
    with pytest.raises(ValueError, match=rf"opt={opt} does not have two betas, which opt_betas=\["):
        check_optimizer(load_config("digits", {"opt": opt, **betas}))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("opt_betas: [0.8, 0.9]\n")
    config = load_config(recipe, {"opt": opt})
    assert check_optimizer(config) == [
        f"opt_betas=[0.8, 0.9] is left out: opt={opt} does not have two betas"
    ]
    build_optimizer(config, torch.nn.Linear(2, 2), 1.0)


@pytest.mark.parametrize("opt", ["adamw", "lion", "momentum", "muon"])
def test_an_optimiser_that_fits_has_no_note(opt: str) -> None:
    assert check_optimizer(load_config("digits", {"opt": opt})) == []
