"""Detectors on any backbone with maps of increasing strides."""

from convattn.tasks.detection.models.build import METHODS as METHODS
from convattn.tasks.detection.models.build import build_detector as build_detector
from convattn.tasks.detection.models.build import method_arguments as method_arguments
from convattn.tasks.detection.models.detector import Detector as Detector
