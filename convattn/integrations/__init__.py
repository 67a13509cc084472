"""Our operators and backbones in other libraries, one file a library, imported where it is used.

``import convattn`` needs torchvision alone of these. segmentation-models-pytorch has no file here:
``smp.Unet("tu-glnet_4g", encoder_weights=None)`` works after ``import convattn``.
"""
