"""Folders of images in class folders."""
