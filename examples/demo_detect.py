"""``make demo-detect``: generate pictures, train a detector on them, evaluate it and use it.

The detector is RetinaNet on a small ResNet with X-volution, trained from random weights. Each
picture has one to three large objects (``--easy``), so that a few minutes are enough. The detector
is evaluated on held-out pictures, whose background photographs are in no training picture; the
objects that it finds are drawn on six of the held-out pictures.
"""

from __future__ import annotations

from examples.demo import new_run, print_report, show

SCENES = "--format coco --easy --count 7200 --val 300 --size 96"
TRAINING = "--method retinanet --model xvolution_resnet_nano --recipe scenes"
DRAWN = 6


def main() -> None:
    """Run the demo."""
    run_dir = new_run("demo-detect")
    scenes = run_dir.with_name(f"{run_dir.name}-scenes")
    show(f"data scenes --out {scenes} {SCENES}")
    show(f"train {TRAINING} --data coco:{scenes} --name {run_dir.name}")
    show(f"eval {run_dir}")
    unseen = " ".join(map(str, sorted((scenes / "val2017").iterdir())[:DRAWN]))
    show(f"predict {run_dir} {unseen} --score 0.4 --output {run_dir / 'pictures'}")
    print_report(run_dir)


if __name__ == "__main__":
    main()
