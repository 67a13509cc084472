"""What all families share: the constructor, its checks, and timm's classifier contract."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn

from convattn.checks import check_choice, check_positive, check_rate

POOLS = ("avg", "max", "avgmax", "catavgmax", "")


class Backbone(nn.Module):
    """A backbone with timm's contract, built from a frozen config.

    A family gives ``check`` for its config and ``build`` for its modules; a `Pyramid` has the
    latter, and its families give their parts.

    Args:
        config: the variant; its fields are keyword arguments of the registered models.
        in_chans: channels of the image.
        num_classes: size of the output; 0 for the pooled features.
        global_pool: how timm's classifier pools: "avg", "max", "avgmax", "catavgmax", where there
            is a class token "token", or without a classifier "" for the features themselves; None
            for "token" where there is one, else "avg".
        output_stride: stride of the last map; None for the usual one. Only ResNets have several:
            where a stage keeps its resolution, its 3x3 convolutions, or the operators in their
            place, are dilated instead.
        drop_rate: dropout before the classifier.
        device: where to build the parameters.
        dtype: their type.

    Raises:
        ValueError: sizes, names or a stride that do not fit.
    """

    pools: ClassVar[tuple[str, ...]] = POOLS
    output_strides: ClassVar[tuple[int, ...]] = (32,)  # the usual one first
    not_decayed: ClassVar[tuple[str, ...]] = ()  # last part of the names of parameters

    def __init__(
        self,
        config: Any,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = None,
        output_stride: int | None = None,
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.check(config)
        check_rate("drop_path_rate", config.drop_path_rate)
        check_sizes(in_chans, num_classes, drop_rate)
        stride = self.output_strides[0] if output_stride is None else output_stride
        check_output_stride(type(self).__name__, stride, self.output_strides)
        nn.Module.__init__(self)  # not super(): a ResNet calls timm's constructor in `build`
        self.config = config
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        with placed(device):
            self.build(config, global_pool, stride)
        self._count_pooled()
        self.to(dtype=dtype)

    @staticmethod
    def check(config: Any) -> None:
        """Raise unless the sizes and names of the config fit."""
        raise NotImplementedError

    def build(self, config: Any, global_pool: str | None, output_stride: int) -> None:
        """Build the modules, the classifier among them, and start their weights."""
        raise NotImplementedError

    def _pooling(self) -> Any:
        """Return the module that pools before the classifier."""
        raise NotImplementedError

    def _put_classifier(self, num_classes: int, global_pool: str) -> None:
        """Put a fresh classifier in place, with its pooling."""
        raise NotImplementedError

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier in place.

        Args:
            num_classes: its size; 0 for none.
            global_pool: how it pools; None for the way before, or for the usual way where a model
                that did not pool gets a classifier.

        Raises:
            ValueError: a pooling that the model does not have, or "" with a classifier.
        """
        check_sizes(self.in_chans, num_classes, self.drop_rate)
        pool: str = self._pooling().pool_type if global_pool is None else global_pool
        if global_pool is None and num_classes and not pool:
            pool = self._usual_pool()
        check_pool(pool, num_classes, self.pools)
        self.num_classes = num_classes
        self._put_classifier(num_classes, pool)
        self._count_pooled()

    def _usual_pool(self) -> str:
        """Return how the family pools unless told otherwise."""
        return "avg"

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that weight decay should leave alone."""
        names = [name for name, _ in self.named_parameters()]
        return {name for name in names if name.rsplit(".", 1)[-1] in self.not_decayed}

    def _count_pooled(self) -> None:
        self.head_hidden_size: int = self.num_features * self._pooling().feat_mult()


def check_sizes(in_chans: int, num_classes: int, drop_rate: float) -> None:
    """Raise unless a model can have these sizes; 0 classes mean no classifier."""
    check_positive("in_chans", in_chans)
    if num_classes != 0:
        check_positive("num_classes (0 for no classifier)", num_classes)
    check_rate("drop_rate", drop_rate)


def check_pool(global_pool: str, num_classes: int, pools: Sequence[str]) -> None:
    """Raise unless ``global_pool`` is one of ``pools`` and fits the number of classes."""
    check_choice("global_pool", global_pool, pools)
    if num_classes and not global_pool:
        raise ValueError(
            f"a classifier needs pooled features, got num_classes={num_classes} with "
            "global_pool=''; use global_pool='avg', or num_classes=0 for the features alone"
        )


def check_output_stride(family: str, output_stride: int, strides: Sequence[int]) -> None:
    """Raise unless a family has this output stride."""
    if output_stride in strides:
        return
    if len(strides) > 1:
        *others, last = sorted(strides)
        listed = f"{', '.join(map(str, others))} or {last}"
        raise ValueError(f"output_stride must be {listed}, got {output_stride}")
    raise ValueError(
        f"{family} has output stride {strides[0]} only, got output_stride={output_stride}; use "
        "features_only=True for the maps of all stages, or a ResNet, which can be dilated"
    )


def check_stages(config: Any, count: int, *fields: str) -> None:
    """Raise unless each of these fields of the config has an entry for each stage."""
    values = [getattr(config, field) for field in fields]
    if {len(value) for value in values} == {count}:
        return
    *others, last = fields
    subject = f"{', '.join(others)} and {last} must each" if others else f"{last} must"
    raise ValueError(f"{subject} name {count} stages, got {', '.join(map(str, values))}")


@contextmanager
def placed(device: torch.device | str | None) -> Iterator[None]:
    """Build modules without a ``device`` argument on this device; None for the usual one."""
    if device is None:
        yield
        return
    with torch.device(device):
        yield
