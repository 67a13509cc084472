"""Data sets by name, images with targets, transforms, batches; nothing of a model."""

from convattn.data.folders.classes import UnknownClassesError
from convattn.data.folders.listing import Listing, find_images, list_images, passed_over
from convattn.data.images import BrokenImageError, check_image, load_image
from convattn.data.inputs import AnyImage, Input, Inputs, Ranges, find_inputs
from convattn.data.joint.padding import (
    IGNORED,
    PAD_TO,
    collate_padded,
    padded_groups,
    padded_size,
    stack_masks,
)
from convattn.data.joint.transforms import JointAugment, joint_eval_transform, joint_train_transform
from convattn.data.loading import (
    BROKEN,
    PADDING,
    READABLE,
    Batch,
    Sample,
    collate_lists,
    collate_stacked,
    default_workers,
    eval_loader,
    train_loader,
)
from convattn.data.named import offered_targets, open_dataset
from convattn.data.problems import Problem, UnusableDataError
from convattn.data.scan import check_share, find_broken, reread
from convattn.data.source import (
    BrokenFile,
    DataSource,
    FileImages,
    ImageSet,
    Joined,
    Subset,
    Targets,
)
from convattn.data.survey import SET_RANGE, Survey, spread
from convattn.data.transforms import (
    Augment,
    ImageOnly,
    ImageTransform,
    Preprocess,
    Transform,
    eval_transform,
    preprocess_for,
    train_transform,
)
from convattn.data.value_range import ValueRange, check_range
from convattn.data.workers import BatchTransferError, SharedMemoryFullError, is_lost_worker
from convattn.names import listed, nfc, shown

__all__ = [
    "BROKEN",
    "IGNORED",
    "PADDING",
    "PAD_TO",
    "READABLE",
    "SET_RANGE",
    "AnyImage",
    "Augment",
    "Batch",
    "BatchTransferError",
    "BrokenFile",
    "BrokenImageError",
    "DataSource",
    "FileImages",
    "ImageOnly",
    "ImageSet",
    "ImageTransform",
    "Input",
    "Inputs",
    "Joined",
    "JointAugment",
    "Listing",
    "Preprocess",
    "Problem",
    "Ranges",
    "Sample",
    "SharedMemoryFullError",
    "Subset",
    "Survey",
    "Targets",
    "Transform",
    "UnknownClassesError",
    "UnusableDataError",
    "ValueRange",
    "check_image",
    "check_range",
    "check_share",
    "collate_lists",
    "collate_padded",
    "collate_stacked",
    "default_workers",
    "eval_loader",
    "eval_transform",
    "find_broken",
    "find_images",
    "find_inputs",
    "is_lost_worker",
    "joint_eval_transform",
    "joint_train_transform",
    "list_images",
    "listed",
    "load_image",
    "nfc",
    "offered_targets",
    "open_dataset",
    "padded_groups",
    "padded_size",
    "passed_over",
    "preprocess_for",
    "reread",
    "shown",
    "spread",
    "stack_masks",
    "train_loader",
    "train_transform",
]
