"""Data sets with a class for each pixel: ADE20K, Pascal VOC and folders of masks."""
