"""``make demo-segment``: generate pictures, train a segmenter on them, evaluate it and use it.

The segmenter is Semantic FPN on a small ResNet with X-volution, trained from random weights. Each
picture has one to three large objects (``--easy``), so that a few minutes are enough. The segmenter
is evaluated on held-out pictures, whose background photographs are in no training picture; the
classes that it predicts are drawn on six of the held-out pictures.
"""

from __future__ import annotations

from examples.demo import new_run, print_report, show

SCENES = "--format folder --easy --count 7200 --val 300 --size 96"
TRAINING = "--method semantic_fpn --model xvolution_resnet_nano --recipe scenes"
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
