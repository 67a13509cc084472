"""Feature pyramid backbones for torchvision's RetinaNet, Faster R-CNN and Mask R-CNN."""

from convattn.models.feature_pyramid import PyramidBackbone, backbone_with_fpn

__all__ = ["PyramidBackbone", "backbone_with_fpn"]
