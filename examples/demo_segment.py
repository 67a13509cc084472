"""``make demo-segment``: generate pictures, train a segmenter on them, evaluate it and use it.

The segmenter is Semantic FPN on a small GLNet, trained from random weights. It is evaluated on
scenes over photographs that it has not seen; its classes are drawn on some of these.
"""

from __future__ import annotations

from examples.demo import new_run, print_report, show

SCENES = "--format folder --count 1200 --val 150 --size 128"
TRAINING = (
    "--method semantic_fpn --model glnet_nano --recipe small channels=64 img_size=128 epochs=24 "
    "photometric=false"
)
DRAWN = 6


def main() -> None:
    """Run the demo."""
    run_dir = new_run("demo-segment")
    scenes = run_dir.with_name(f"{run_dir.name}-scenes")
    show(f"data scenes --out {scenes} {SCENES}")
    show(f"train {TRAINING} --data masks:{scenes} --name {run_dir.name}")
    show(f"eval {run_dir}")
    unseen = " ".join(map(str, sorted((scenes / "images" / "val").iterdir())[:DRAWN]))
    show(f"predict {run_dir} {unseen} --output {run_dir / 'pictures'}")
    print_report(run_dir)


if __name__ == "__main__":
    main()
