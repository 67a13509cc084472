"""``make demo-detect``: generate pictures, train a detector on them, evaluate it and use it.

The detector is RetinaNet on a small GLNet, trained from random weights. It is evaluated on scenes
over photographs that it has not seen; its objects are drawn on some of these.
"""

from __future__ import annotations

from examples.demo import new_run, print_report, show

SCENES = "--count 1200 --val 150 --size 128"
TRAINING = (
    "--method retinanet --model glnet_nano --recipe small channels=64 img_size=128 epochs=24 "
    "color_jitter=0"
)
DRAWN = 6


def main() -> None:
    """Run the demo."""
    run_dir = new_run("demo-detect")
    scenes = run_dir.with_name(f"{run_dir.name}-scenes")
    show(f"data scenes --out {scenes} --format coco {SCENES}")
    show(f"train {TRAINING} --data coco:{scenes} --name {run_dir.name}")
    show(f"eval {run_dir}")
    unseen = " ".join(map(str, sorted((scenes / "val2017").iterdir())[:DRAWN]))
    show(f"predict {run_dir} {unseen} --output {run_dir / 'pictures'}")
    print_report(run_dir)


if __name__ == "__main__":
    main()
