"""The operators and backbones in other libraries: one file per library.

Import the file of a library, such as `convattn.integrations.ultralytics`: importing this package
imports no other library. segmentation-models-pytorch needs no file: it builds encoders by timm's
names, so ``smp.Unet("tu-glnet_4g", encoder_weights=None)`` works after ``import convattn.models``.
"""
