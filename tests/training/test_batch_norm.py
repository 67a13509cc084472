from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from convattn.models import create_model
from convattn.tasks.classification import load_checkpoint, train
from convattn.training.batch_norm import set_batch_norm
from convattn.training.trainer import make_trainer, sync_left_out
from tests.tasks.classification.runs import silent, tiny, write_colors


@pytest.fixture
def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))


@pytest.mark.parametrize("mode", ["train", "sync"])
def test_norms_are_left_as_they_are(network: nn.Sequential, mode: str) -> None:
    assert set_batch_norm(network, mode) == []
    assert all(norm.training and norm.weight.requires_grad for norm in (network[1], network[3]))


@pytest.mark.parametrize(("mode", "trained"), [("eval", True), ("frozen", False)])
def test_norms_in_evaluation_mode_are_returned(
    network: nn.Sequential, mode: str, trained: bool
) -> None:
    assert set_batch_norm(network, mode) == [network[1], network[3]]
    assert not network[1].training
    assert network[1].weight.requires_grad is trained
    assert network[0].weight.requires_grad


def test_a_model_that_knows_its_norms_is_asked() -> None:
    class Detector(nn.Module):
        modes: tuple[str, ...] = ()

        def set_batch_norm(self, mode: str) -> None:
            self.modes += (mode,)

    detector = Detector()
    for mode in ("frozen", "sync"):
        assert set_batch_norm(detector, mode) == []
    assert detector.modes == ("frozen", "train")


@pytest.mark.parametrize(("mode", "moves"), [("train", True), ("frozen", False)])
def test_statistics_change_only_in_training_mode(tmp_path: Path, mode: str, moves: bool) -> None:
    write_colors(tmp_path, 8)
    config = tiny(tmp_path, model="test_resnet", batch_norm=mode, epochs=2)
    state = load_checkpoint(train(config, console=silent()).run_dir).model.state_dict()
    means = [value for name, value in state.items() if name.endswith("running_mean")]
    assert means
    assert all((mean != 0).any().item() is moves for mean in means)
    norms = [v for k, v in state.items() if k.endswith("bn1.weight")]
    assert norms
    assert all(torch.equal(weight, torch.ones_like(weight)) is not moves for weight in norms)


def test_synchronised_norms_keep_their_activations(tmp_path: Path) -> None:
    config = tiny(tmp_path, batch_norm="sync", accelerator="cpu", devices=2, strategy="ddp")
    sync = vars(make_trainer(config, tmp_path).strategy)["_layer_sync"]
    model = create_model("test_efficientnet").eval()
    assert any(isinstance(module, BatchNormAct2d) for module in model.modules())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        synchronised = sync.apply(model)
        assert any(isinstance(m, nn.SyncBatchNorm) for m in synchronised.modules())
        torch.testing.assert_close(synchronised(x), expected)
        torch.testing.assert_close(sync.revert(synchronised)(x), expected)


def test_norms_are_not_synchronised_without_the_setting(tmp_path: Path) -> None:
    config = tiny(tmp_path, accelerator="cpu", devices=2, strategy="ddp")
    assert vars(make_trainer(config, tmp_path).strategy)["_layer_sync"] is None


def test_norms_are_not_synchronised_on_several_processors(tmp_path: Path) -> None:
    write_colors(tmp_path, 8)
    settings = {"batch_norm": "sync", "accelerator": "cpu", "devices": 2, "strategy": "ddp_fork"}
    config = tiny(tmp_path, **settings)
    with pytest.raises(ValueError, match=r"sync: PyTorch .* GPUs only.*batch_norm=train"):
        train(config, console=silent())
    of_recipe = type(config).model_construct({"devices"}, **dict(config))
    note = sync_left_out(of_recipe, make_trainer(config, tmp_path))
    assert note.startswith("batch_norm=sync is left out: ")
    alone = tiny(tmp_path, **{**settings, "devices": 1})
    assert sync_left_out(alone, make_trainer(alone, tmp_path)) == ""
