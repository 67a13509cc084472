"""Data sets of objects with boxes and masks: COCO, Pascal VOC and YOLO."""
