"""What detectors and segmenters share: a backbone by name, its weights, norms and layer groups."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple, Self

import torch
from timm.models import group_parameters
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convattn.checks import check_choice
from convattn.models._registry import create_model
from convattn.models.feature_pyramid import LAST_FOUR, MapBackbone
from convattn.names import first_of

BATCH_NORMS = ("train", "eval", "frozen")


class LoadedNames(NamedTuple):
    """The names of tensors after `DenseModel.load_backbone`, as the classifier has them."""

    loaded: list[str]
    missing: list[str]  # in the backbone, not in the file
    unexpected: list[str]  # in the file, not in the backbone, such as the classifier's head


class DenseModel(nn.Module):
    """A detector or a segmenter: a backbone with feature maps, then a neck and heads.

    A subclass builds ``self.backbone`` from `feature_extractor` and adds its neck and heads as
    other attributes, or puts the neck into the backbone, outside of ``backbone.body``.

    Args:
        backbone: a `MapBackbone` over the feature extractor, such as a `PyramidBackbone`.
        model: the name of the model that the feature extractor was built from.
        backbone_args: the arguments that it was built with.
    """

    def __init__(
        self, backbone: MapBackbone, model: str, backbone_args: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.model = model
        self.backbone_args = dict(backbone_args or {})
        self.batch_norm = "train"

    def load_backbone(self, state_dict: Mapping[str, Tensor]) -> LoadedNames:
        """Load the backbone's tensors from a state dict with the names of the classifier.

        Args:
            state_dict: for example that of ``create_model("glnet_4g")``, its classifier included.

        Returns:
            The names that were loaded, that are missing, and that the backbone does not have.

        Raises:
            ValueError: no name fits, or a tensor has another shape; nothing is loaded then.
        """
        own = self.backbone.body.state_dict()
        names = classifier_names(own, state_dict)
        wrong = [
            f"{name} has shape {tuple(state_dict[name].shape)} instead of {tuple(own[key].shape)}"
            for key, name in names.items()
            if state_dict[name].shape != own[key].shape
        ]
        if wrong or not names:
            reason = first_of(wrong, 3) or "it has none of the names of the backbone's tensors"
            raise ValueError(
                f"the weights do not fit the backbone {self.model!r}: {reason}; no tensor was "
                "loaded"
            )
        found = {key: state_dict[name] for key, name in names.items()}
        self.backbone.body.load_state_dict(found, strict=False)
        used = set(names.values())
        return LoadedNames(
            loaded=list(names.values()),
            missing=[_plain(key) for key in own if key not in names],
            unexpected=[name for name in state_dict if name not in used],
        )

    def classifier(self) -> nn.Module:
        """Return the classifier with the same backbone, on the meta device."""
        weights = ("pretrained", "checkpoint_path")
        arguments = {k: v for k, v in self.backbone_args.items() if k not in weights}
        with torch.device("meta"):
            return create_model(self.model, **arguments)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the backbone's parameters that the classifier excludes from decay."""
        classifier: Any = self.classifier()
        excluded = classifier.no_weight_decay() if hasattr(classifier, "no_weight_decay") else ()
        own = [name for name, _ in self.backbone.body.named_parameters()]
        return {f"backbone.body.{key}" for key in classifier_names(own, set(excluded))}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Return a function from a parameter's name to its layer, for layer-wise learning rates.

        The layers of the backbone are those of its classifier; neck and heads are the last layer.

        Args:
            coarse: whether a layer is a stage instead of a block.
        """
        classifier: Any = self.classifier()
        layers: dict[str, int] = {}
        if hasattr(classifier, "group_matcher"):
            matcher = classifier.group_matcher(coarse=coarse)
            layers = group_parameters(classifier, matcher, reverse=True)
        own = [name for name, _ in self.backbone.body.named_parameters()]
        layer_of = {
            f"backbone.body.{key}": layers[n] for key, n in classifier_names(own, layers).items()
        }
        last = max(layer_of.values(), default=0) + 1

        def layer(name: str) -> int:
            return layer_of.get(name, 0 if name.startswith("backbone.body.") else last)

        return layer

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's activations in the backward pass instead of storing them."""
        body: Any = self.backbone.body
        wrapped = isinstance(body, FeatureGetterNet)  # does not pass the call on
        (body["model"] if wrapped else body).set_grad_checkpointing(enable)

    def set_batch_norm(self, mode: str) -> None:
        """Choose what the backbone's batch norms do in training.

        Args:
            mode: "train": statistics of the batch; "eval": the running statistics, which do not
                change; "frozen": also the weights and biases of the norms do not change.

        Raises:
            ValueError: another mode.
        """
        check_choice("mode of the batch norms", mode, BATCH_NORMS)
        self.batch_norm = mode
        for norm in self._batch_norms():
            for parameter in norm.parameters(recurse=False):
                parameter.requires_grad_(mode != "frozen")
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules but the batch norms that `set_batch_norm` keeps."""
        super().train(mode)
        if mode and self.batch_norm != "train":
            for norm in self._batch_norms():
                norm.eval()
        return self

    def _batch_norms(self) -> Iterator[nn.Module]:
        return (m for m in self.backbone.body.modules() if isinstance(m, _BatchNorm))


def feature_extractor(name: str, *, levels: int = 4, **arguments: Any) -> nn.Module:
    """Build a feature extractor whose maps have increasing strides.

    Args:
        name: the name of a model, as in `create_model`.
        levels: the number of maps, counted from the last one; four have strides 4, 8, 16 and 32.
        **arguments: arguments of ``timm.create_model``: ``in_chans``, ``drop_path_rate``, ...

    Raises:
        ValueError: the name is unknown, or the strides of the maps do not increase.
        TypeError: the model does not have such an argument.
    """
    try:
        body = _any_size(name, out_indices=LAST_FOUR[-levels:], **arguments)
    except AssertionError as error:  # timm's check of `out_indices`
        raise ValueError(
            f"{name} cannot be the backbone of a detector or a segmenter, which needs {levels} "
            f"maps: {error}"
        ) from error
    strides = body.feature_info.reduction()
    if strides != sorted(set(strides)):
        raise ValueError(
            f"{name} cannot be the backbone of a detector or a segmenter: its last {levels} maps "
            f"have strides {strides}, and the strides must increase; choose a model with stages, "
            "such as 'glnet_4g'"
        )
    return body


def _any_size(name: str, **arguments: Any) -> Any:
    """Return a feature extractor that takes images of any size, if the model can."""
    try:  # models of timm with windows have this argument
        return create_model(name, features_only=True, strict_img_size=False, **arguments)
    except TypeError:
        return create_model(name, features_only=True, **arguments)


def classifier_names(keys: Collection[str], known: Collection[str]) -> dict[str, str]:
    """Return the names in the classifier of a feature extractor's tensors.

    Args:
        keys: names of the feature extractor's tensors.
        known: names of the classifier's tensors; a tensor without such a name is left out.
    """
    names = {key: next((n for n in _candidates(key) if n in known), None) for key in keys}
    return {key: name for key, name in names.items() if name is not None}


def _candidates(key: str) -> Iterator[str]:
    """Yield the names that a tensor can have before timm wraps a model or flattens its stages."""
    plain = _plain(key)
    yield plain
    first, _, rest = plain.partition(".")
    for i, letter in enumerate(first):
        if letter == "_":
            yield f"{first[:i]}.{first[i + 1 :]}.{rest}"


def _plain(key: str) -> str:
    """Return the name without the prefix that timm's wrappers add."""
    return key.removeprefix("model.").removeprefix("body.")
