"""Run the command ``yolo`` of Ultralytics with the operators of this package registered.

    python -m convattn.integrations.yolo detect train model=yolo11n-glmix.yaml data=coco8.yaml

The arguments are those of ``yolo``.
"""

from ultralytics.cfg import entrypoint

from convattn.integrations.ultralytics import register

if __name__ == "__main__":
    register()
    entrypoint()
