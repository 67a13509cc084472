"""The base class of all families: the constructor, its checks, and timm's classifier methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn

from convattn.checks import check_choice, check_positive, check_rate

POOLS = ("avg", "max", "avgmax", "catavgmax", "")


class Backbone(nn.Module):
    """A backbone with the methods that timm expects, built from a frozen config.

    A family defines ``check`` for its config and ``build`` for its modules. `Pyramid` defines
    ``build``, and its families define ``parts``.

    Args:
        config: the variant; its fields are keyword arguments of the registered models.
        in_chans: channels of the image.
        num_classes: size of the output; 0 for the pooled features.
        global_pool: pooling before timm's classifier: "avg", "max", "avgmax" or "catavgmax";
            "token" if the model has a class token; "" for the features, if there is no classifier.
            None for "token" if the model has a class token, else "avg".
        output_stride: stride of the last map; None for the default. Only ResNets support several
            values: a stage that keeps its resolution has dilated 3x3 convolutions or operators.
        drop_rate: dropout before the classifier.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: sizes, names or a stride that the family does not support.
    """

    pools: ClassVar[tuple[str, ...]] = POOLS
    output_strides: ClassVar[tuple[int, ...]] = (32,)  # the default first
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
        """Raise unless the sizes and names of the config are valid."""
        raise NotImplementedError

    def build(self, config: Any, global_pool: str | None, output_stride: int) -> None:
        """Build the modules, including the classifier, and initialize their weights."""
        raise NotImplementedError

    def _pooling(self) -> Any:
        """Return the module that pools before the classifier."""
        raise NotImplementedError

    def _put_classifier(self, num_classes: int, global_pool: str) -> None:
        """Replace the classifier and its pooling by new ones."""
        raise NotImplementedError

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one.

        Args:
            num_classes: number of classes; 0 for no classifier.
            global_pool: pooling before the classifier; None for the current pooling, or for the
                default if the model does not pool and gets a classifier.

        Raises:
            ValueError: the model does not support this pooling, or it is "" with a classifier.
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
        """Return the default pooling of the family."""
        return "avg"

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters without weight decay."""
        names = [name for name, _ in self.named_parameters()]
        return {name for name in names if name.rsplit(".", 1)[-1] in self.not_decayed}

    def _count_pooled(self) -> None:
        self.head_hidden_size: int = self.num_features * self._pooling().feat_mult()


def check_sizes(in_chans: int, num_classes: int, drop_rate: float) -> None:
    """Raise unless these sizes are valid; ``num_classes=0`` means no classifier."""
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
    """Raise unless a family supports this output stride."""
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
    """Build modules in this context on a device; None for the default device."""
    if device is None:
        yield
        return
    with torch.device(device):
        yield
