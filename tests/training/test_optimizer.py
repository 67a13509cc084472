from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from convattn.models import create_model
from convattn.tasks.classification import load_config
from convattn.training.optimizer import (
    Plan,
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
    schedule = build_schedule(config, optimizer, Plan.of(config, 5), 1.0)
    rates = [optimizer.param_groups[0]["lr"]]
    for update in range(1, 51):
        schedule.step_update(update)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(config.warmup_lr)
    assert rates[9] == max(rates)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[40:] == [pytest.approx(1e-4)] * 11


@pytest.mark.parametrize(
    ("steps", "batches", "accumulate", "epochs", "per_epoch"),
    [
        (1000, 20, 1, 50, 20),
        (10, 4, 1, 3, 4),
        (5, 100, 1, 1, 5),
        (6, 10, 4, 2, 10),
        (3, 10, 4, 1, 10),
    ],
)
def test_updates_are_divided_into_equal_epochs_of_at_most_one_pass(
    steps: int, batches: int, accumulate: int, epochs: int, per_epoch: int
) -> None:
    config = load_config("digits", {"steps": steps, "accumulate": accumulate})
    plan = Plan.of(config, batches)
    assert (plan.epochs, plan.batches_per_epoch) == (epochs, per_epoch)
    assert steps <= plan.epochs * plan.updates_per_epoch < steps + epochs


def rates_of(changes: dict[str, Any], batches: int) -> list[float]:
    """Return the learning rate before each update, and after the last one."""
    config = load_config("nano", {"data": "folder:any", "lr": 1.0, "lr_batch": None, **changes})
    optimizer = build_optimizer(config, torch.nn.Linear(2, 2), 1.0)
    plan = Plan.of(config, batches)
    schedule = build_schedule(config, optimizer, plan, 1.0)
    rates = [optimizer.param_groups[0]["lr"]]
    for update in range(1, plan.epochs * plan.updates_per_epoch + 1):
        schedule.step_update(update)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_warm_up_and_milestones_are_counted_in_updates() -> None:
    changes = {"steps": 40, "warmup_steps": 4, "decay_steps": (20, 30), "sched": "multistep"}
    rates = rates_of(changes, 8)
    assert rates[0] == pytest.approx(1e-6)
    assert rates[1] == pytest.approx(0.25, rel=1e-3)
    assert rates[4:20] == [1.0] * 16
    assert rates[20:30] == pytest.approx([0.1] * 10)
    assert rates[30:] == pytest.approx([0.01] * 11)


def test_milestones_in_epochs_go_with_a_warm_up_in_updates() -> None:
    changes = {"epochs": 4, "decay_milestones": (2, 3), "sched": "multistep", "warmup_steps": 3}
    rates = rates_of(changes, 10)
    assert rates[1] == pytest.approx(1 / 3, rel=1e-3)
    assert rates[3:20] == [1.0] * 17
    assert rates[20:30] == pytest.approx([0.1] * 10)


def test_a_polynomial_schedule_in_updates_ends_at_the_lowest_rate() -> None:
    rates = rates_of({"steps": 50, "sched": "poly", "decay_rate": 0.9, "min_lr": 0.0}, 25)
    assert rates[25] == pytest.approx(0.5**0.9)
    assert rates[50] == pytest.approx(0.0)


def test_a_warm_up_is_at_most_a_fifth_of_the_training_and_a_note_says_so() -> None:
    config = load_config("nano", {"data": "folder:any", "steps": 20, "warmup_steps": 500})
    plan = Plan.of(config, 10)
    assert plan.warmup_steps == 4
    (note,) = plan.notes(config)
    assert note.startswith("warmup_steps=500 is shortened to 4, a fifth of the 20 updates")


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
