from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from convattn import Predictor
from convattn.cli import main
from convattn.data import READABLE, Batch, Sample, open_dataset
from convattn.models import create_model
from convattn.tasks.detection.models import METHODS
from convattn.tasks.detection.task import Detection
from convattn.tasks.table import evaluate, load_checkpoint, load_config, resume, train
from convattn.training.config import data_options
from convattn.training.evaluate import evaluate as engine_evaluate
from convattn.training.run import TrainResult
from convattn.training.trained import Checkpoint
from tests.tasks.classification.runs import rows, silent, timeless, weights, written
from tests.tasks.detection.scenes import TINY, tiny, write_scenes

BACKBONES = (
    "glnet_nano",
    "acmix_resnet_nano",
    "acmix_pvt_nano",
    "acmix_swin_nano",
    "acmix_san_nano",
    "xvolution_resnet_nano",
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def finished(scenes: Path) -> tuple[TrainResult, str]:
    """A finished run of a detector with masks, and what it printed."""
    console = silent()
    config = tiny(scenes, "mask_rcnn", epochs=2, name="finished", score=0.01)
    return train(config, console=console), written(console)


def built(folder: Path, method: str, **changes: Any) -> tuple[Detection, Checkpoint]:
    """Return a task with its data, and its new model."""
    config = tiny(folder, method, **changes)
    torch.manual_seed(0)
    task = Detection(config, open_dataset(config.data, **data_options(config)))
    found = task.build()
    return task, Checkpoint(found.model, found.card, Path("test"))


def training_batch(task: Detection, loaded: Checkpoint, *indices: int) -> Batch:
    transform, images = task.train_transform(loaded.card.preprocess), task.source.train
    samples = []
    for index in indices:
        image, target = transform(images.image(index), images.target(index))
        sample = Sample(image=image, target=target, index=index, status=READABLE, size=(48, 64))
        samples.append(sample)
    return task.collate(samples)


@pytest.mark.parametrize("model", BACKBONES)
@pytest.mark.parametrize("method", METHODS)
def test_one_training_step_and_one_evaluation(method: str, model: str, scenes: Path) -> None:
    task, loaded = built(scenes, method, model=model, score=0.001)
    network = loaded.model.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    step = task.losses(network, training_batch(task, loaded, 0, 1, 7), 0)  # 7 has no objects
    step.loss.backward()
    optimizer.step()
    assert step.loss.isfinite()
    columns = [column.name for column in task.columns(method)]
    assert {f"train_{name}" for name in step.losses} < {*columns}
    found: Any = engine_evaluate(
        Detection, loaded, task.source, batch_size=3, workers=0, device="cpu"
    )
    assert (found.images, found.method) == (4, method)
    assert 0 <= found.map <= 1
    assert found.has_masks == (method in ("mask_rcnn", "cascade_mask_rcnn"))


def test_a_run_has_columns_files_and_a_report(finished: tuple[TrainResult, str]) -> None:
    result, text = finished
    names = "train_loss train_rpn_cls train_rpn_box train_cls train_box train_mask val_map"
    assert set(names.split()) < {*rows(result.run_dir)[0]}
    assert "model     mask_rcnn with glnet_nano" in text
    assert "3 classes, 8 images for training, 4 held out (the data set's own part)" in text
    for name in ("report.html", "evaluation.json", "predictions.csv", "detections.json"):
        assert (result.run_dir / name).stat().st_size > 0
    best = float(rows(result.run_dir)[result.best_epoch - 1]["val_map"])
    assert result.evaluation.map == pytest.approx(best, abs=1e-6)


def test_found_objects_have_the_ids_of_the_annotation_file(
    finished: tuple[TrainResult, str], scenes: Path
) -> None:
    run = finished[0].run_dir
    results = str(run / "detections.json")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(scenes / "annotations" / "instances_val2017.json")
        coco = COCOeval(truth, truth.loadRes(results), "bbox")
        coco.evaluate()
        coco.accumulate()
        coco.summarize()
    assert {entry["category_id"] for entry in json.loads(Path(results).read_text())} <= {3, 7, 18}
    assert coco.stats[0] == pytest.approx(finished[0].evaluation.map, abs=0.01)


def test_a_run_opens_its_data_again(finished: tuple[TrainResult, str]) -> None:
    result, _ = finished
    loaded = load_checkpoint(result.run_dir)
    assert loaded.card.method == "mask_rcnn"
    assert loaded.card.data_options["targets"] == "instances"
    again = evaluate(loaded, workers=0, device="cpu", batch_size=1)
    assert again.map == pytest.approx(result.evaluation.map, abs=1e-6)
    assert again.mask_map == pytest.approx(result.evaluation.mask_map, abs=1e-6)


def test_classes_of_other_data_are_matched_by_name(
    finished: tuple[TrainResult, str], tmp_path: Path
) -> None:
    root = write_scenes(tmp_path)
    other = {3: 30, 7: 20, 18: 10}  # the order of the ids is reversed
    for part in ("train2017", "val2017"):
        file = root / "annotations" / f"instances_{part}.json"
        content = json.loads(file.read_text())
        for entry in content["categories"]:
            entry["id"] = other[entry["id"]]
        for entry in content["annotations"]:
            entry["category_id"] = other[entry["category_id"]]
        file.write_text(json.dumps(content))
    data = open_dataset(f"coco:{root}", targets="instances")
    assert data.class_names == ("owl", "dog", "cat")
    found = evaluate(finished[0].run_dir, f"coco:{root}", workers=0, device="cpu")
    assert found.class_names == ["cat", "dog", "owl"]
    assert found.map == pytest.approx(finished[0].evaluation.map, abs=1e-6)


@pytest.mark.slow
def test_a_stopped_run_continues_to_the_same_result(
    finished: tuple[TrainResult, str], scenes: Path
) -> None:
    class Stop(Callback):
        def on_train_batch_start(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            if (trainer.current_epoch, batch_idx) == (1, 1):
                signal.raise_signal(signal.SIGINT)

    config = tiny(scenes, "mask_rcnn", epochs=2, name="stopped", score=0.01)
    stopped = train(config, callbacks=[Stop()], console=silent())
    assert stopped.stopped
    again = resume(stopped.run_dir, console=silent())
    whole = finished[0].run_dir
    assert timeless(again.run_dir) == timeless(whole)
    for name, value in weights(whole).items():
        assert torch.equal(weights(again.run_dir)[name], value), name
    with pytest.raises(ValueError, match="method cannot change in a resumed run"):
        resume(stopped.run_dir, overrides={"method": "retinanet"}, console=silent())


@pytest.mark.slow
def test_a_run_continues_where_its_data_was_moved(tmp_path: Path) -> None:
    root = write_scenes(tmp_path / "before")
    config = tiny(root, "retinanet", runs=str(tmp_path / "runs"), name="moved")
    run = train(config, console=silent()).run_dir
    root.rename(tmp_path / "after")
    changes = {"data": f"coco:{tmp_path / 'after'}", "epochs": 2}
    result = resume(run, overrides=changes, console=silent())
    assert (result.epochs_done, len(rows(run))) == (2, 2)
    assert evaluate(run, workers=0, device="cpu").images == 4


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the processes are forked")
def test_two_processes_measure_all_images(scenes: Path, tmp_path: Path) -> None:
    config = tiny(scenes, "mask_rcnn", batch_size=2, score=0.01)
    recipe = tmp_path / "config.yaml"
    recipe.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    words = [f"runs={tmp_path / 'runs'}", "name=two", "devices=2", "strategy=ddp_fork"]
    command = [sys.executable, "-m", "convattn", "train", "--recipe", str(recipe), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "two"
    found = json.loads((run / "evaluation.json").read_text())
    assert found["images"] == 4
    (row,) = rows(run)
    assert float(row["val_map"]) == pytest.approx(found["map"], abs=1e-4)


def test_predictions_are_in_pixels_of_the_image(
    finished: tuple[TrainResult, str], scenes: Path
) -> None:
    predictor = Predictor.load(finished[0].run_dir, device="cpu")
    path = scenes / "val2017" / "0100.png"
    (small,) = predictor(path)
    assert small.size == (64, 48)
    assert small.objects
    scores = [item.score for item in small.objects]
    assert scores == sorted(scores, reverse=True)
    for item in small.objects:
        left, top, right, bottom = item.box
        assert 0 <= left < right <= 64
        assert 0 <= top < bottom <= 48
        assert item.mask["size"] == [48, 64]
        assert item.name in ("cat", "dog", "owl")
    least = scores[len(scores) // 2]
    (fewer,) = predictor(path, score=least)
    assert [item.score for item in fewer.objects] == [s for s in scores if s >= least]
    assert len(predictor(path, nms=0.01)[0].objects) < len(small.objects)
    assert small.draw().size[0] > 0


def test_an_image_for_which_the_model_computes_nan_is_an_error(scenes: Path) -> None:
    for method in METHODS:
        _, loaded = built(scenes, method)
        images = torch.rand(2, 3, 64, 64)
        images[1] = torch.nan
        with torch.inference_mode():
            found = Detection.predict(loaded.model.eval(), images, [(64, 48)] * 2, loaded.card)
        assert [f.error for f in found] == ["", "the model computed NaN for this image"]


def test_few_large_images_are_computed_at_a_time(
    finished: tuple[TrainResult, str], scenes: Path
) -> None:
    predictor, sizes = Predictor.load(finished[0].run_dir, device="cpu"), []
    handle = predictor.model.register_forward_hook(
        lambda module, inputs, output: sizes.append(len(inputs[0]))
    )
    predictor([scenes / "train2017" / f"{number:04}.png" for number in range(1, 7)])
    handle.remove()
    assert sizes == [4, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": 0.001}, "score=0.001 is less than that of the training, score=0.01"),
        ({"nms": 0.9}, "nms=0.9 must be above 0 and at most that of the training, nms=0.5"),
        ({"nms": 0}, "nms=0 must be above 0"),
        ({"top_k": 3}, "unknown option of detection 'top_k'"),
    ],
)
def test_a_limit_that_the_model_cannot_keep_is_an_error(
    options: dict[str, Any], message: str, finished: tuple[TrainResult, str], scenes: Path
) -> None:
    predictor = Predictor.load(finished[0].run_dir, device="cpu")
    with pytest.raises(ValueError, match=message):
        predictor(scenes / "val2017" / "0100.png", **options)


def test_images_of_several_sizes_are_predicted_together_as_alone(
    finished: tuple[TrainResult, str], scenes: Path
) -> None:
    predictor = Predictor.load(finished[0].run_dir, device="cpu")
    image = Image.open(scenes / "val2017" / "0100.png")
    several = [image, image.resize((32, 96)), image.rotate(90, expand=True)]
    together = predictor(several)
    for picture, found in zip(several, together, strict=True):
        (alone,) = predictor(picture)
        assert found.size == picture.size
        assert [item.score for item in found.objects] == pytest.approx(
            [item.score for item in alone.objects], abs=1e-4
        )


def test_a_method_with_the_settings_of_another_is_an_error(scenes: Path) -> None:
    with pytest.raises(ValueError, match="retinanet has no setting head_width, which head_width=8"):
        built(scenes, "retinanet", head_width=8)


def test_a_recipe_leaves_out_the_settings_that_a_method_does_not_have(scenes: Path) -> None:
    config: Any = load_config(
        "detection", "small", {"data": f"coco:{scenes}", "method": "retinanet"}
    )
    source = open_dataset(config.data, **data_options(config))
    arguments = Detection(config, source).build().card.model_args
    assert arguments["channels"] == 96
    assert "head_width" not in arguments


def test_a_backbone_of_one_stride_is_an_error(scenes: Path) -> None:
    with pytest.raises(ValueError, match="strides must increase"):
        built(scenes, "retinanet", model="acmix_deit_nano")


def test_masks_are_not_needed_for_boxes_and_are_asked_for_by_methods_with_masks(
    tmp_path: Path,
) -> None:
    root = write_scenes(tmp_path)
    for part in ("train2017", "val2017"):
        file = root / "annotations" / f"instances_{part}.json"
        content = json.loads(file.read_text())
        for entry in content["annotations"]:
            del entry["segmentation"]
        file.write_text(json.dumps(content))
    assert built(root, "retinanet")[0].source.num_classes == 3
    with pytest.raises(ValueError, match="no masks"):
        built(root, "mask_rcnn")


def test_all_weights_are_loaded_from_a_run_of_the_same_method(
    finished: tuple[TrainResult, str], scenes: Path
) -> None:
    run = finished[0].run_dir
    task, loaded = built(scenes, "mask_rcnn", init=str(run))
    saved = weights(run, "best")
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, saved[name]), name
    (note,) = task.build().start
    assert f"{len(saved)} of {len(saved)} tensors" in note
    assert "the 3 classes are the same" in note


def test_only_tensors_of_other_classes_are_new(
    finished: tuple[TrainResult, str], scenes: Path, tmp_path: Path
) -> None:
    root = write_scenes(tmp_path)
    for part in ("train2017", "val2017"):
        file = root / "annotations" / f"instances_{part}.json"
        content = json.loads(file.read_text())
        content["categories"].append({"id": 40, "name": "yak"})
        file.write_text(json.dumps(content))
    run = finished[0].run_dir
    _, loaded = built(root, "mask_rcnn", init=str(run))
    saved, own = weights(run, "best"), loaded.model.state_dict()
    new = {name for name, value in own.items() if value.shape != saved[name].shape}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in new} == {
        "cls_score", "bbox_pred", "mask_fcn_logits",
    }  # fmt: skip
    assert all(torch.equal(own[name], saved[name]) for name in own if name not in new)


def test_the_backbone_is_loaded_from_another_method_and_from_a_file(
    finished: tuple[TrainResult, str], scenes: Path, tmp_path: Path
) -> None:
    run = finished[0].run_dir
    _, loaded = built(scenes, "retinanet", init=str(run))
    saved, own = weights(run, "best"), loaded.model.state_dict()
    body = [name for name in own if name.startswith("backbone.body.")]
    assert body
    assert all(torch.equal(own[name], saved[name]) for name in body)
    path = tmp_path / "backbone.pth"
    torch.save(create_model("glnet_nano", num_classes=7).state_dict(), path)
    task, _ = built(scenes, "retinanet", init=str(path))
    (note,) = task.build().start
    assert "loaded into the backbone" in note
    assert "neck and heads are new" in note


def test_the_norms_of_the_backbone_keep_their_statistics(scenes: Path) -> None:
    changes = {"model": "acmix_resnet_nano", "batch_norm": "frozen", "name": "frozen"}
    config = tiny(scenes, "retinanet", **changes)
    state = weights(train(config, console=silent()).run_dir)
    means = [v for k, v in state.items() if k.endswith("running_mean") and ".body." in k]
    assert means
    assert all((mean == 0).all() for mean in means)


def test_the_commands_know_the_task(
    finished: tuple[TrainResult, str], scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(finished[0].run_dir)
    assert main(["eval", run, "--workers", "0", "--device", "cpu", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["method"] == "mask_rcnn"
    assert main(["report", run]) == 0
    assert main(["train", "--resume", run]) == 0
    assert "has finished its 2 epochs" in capsys.readouterr().out


def test_batches_of_one_image_and_a_length_in_updates(scenes: Path) -> None:
    config = tiny(scenes, "retinanet", batch_size=1, steps=3, name="updates")
    result = train(config, console=silent())
    assert [row["step"] for row in rows(result.run_dir)] == ["3"]


def test_images_keep_their_ratio_without_a_fixed_input(scenes: Path) -> None:
    changes = {"short_side": 64, "long_side": 96, "short_sides": [48, 64]}
    settings = {key: value for key, value in TINY.items() if key not in ("img_size", "scale")}
    settings |= {"data": f"coco:{scenes}", "method": "retinanet", **changes}
    config: Any = load_config("detection", None, settings)
    task = Detection(config, open_dataset(config.data, **data_options(config)))
    model = task.build()
    loaded = Checkpoint(model.model, model.card, Path("test"))
    preprocess = loaded.card.preprocess
    assert preprocess.input_size == (3, 64, 96)
    assert preprocess.resized((64, 48)) == (64, 85)
    heights = {
        training_batch(task, loaded, 0)["target"][0]["boxes"].canvas_size[0] for _ in range(9)
    }
    assert heights == {48, 64}


def test_masks_of_the_data_are_no_matter_for_a_method_without_masks(scenes: Path) -> None:
    _, loaded = built(scenes, "retinanet", score=0.001)
    source = open_dataset(f"coco:{scenes}", targets="instances")
    found = evaluate(loaded, source, workers=0, device="cpu")
    assert not found.has_masks
    assert found.map >= 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"short_side": 300}, "img_size=64 and short_side=300 contradict each other"),
        ({"crop_sides": [40, 60]}, r"img_size=64 and crop_sides=\[40, 60\] contradict each other"),
        ({"img_size": None, "scale": [0.5, 1]}, r"scale=\[0.5, 1.0\] needs img_size"),
        ({"img_size": None, "crop_range": [32, 64]}, r"crop_range=\[32, 64\] needs crop_sides"),
    ],
)
def test_a_size_without_an_effect_is_an_error(
    changes: dict[str, Any], message: str, scenes: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        built(scenes, "retinanet", **changes)
