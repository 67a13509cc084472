"""Semantic FPN and UperNet on any backbone with a pyramid of maps."""

from convattn.tasks.segmentation.models.build import METHODS as METHODS
from convattn.tasks.segmentation.models.build import build_segmenter as build_segmenter
from convattn.tasks.segmentation.models.inference import Inference as Inference
from convattn.tasks.segmentation.models.inference import segment as segment
from convattn.tasks.segmentation.models.segmenter import Segmenter as Segmenter
