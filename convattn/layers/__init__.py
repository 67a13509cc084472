"""Modules on maps (B, C, H, W): each has parameters and calls operators of ``convattn.ops``."""

from convattn.layers.acmix.acmix import ACmix as ACmix
from convattn.layers.attention.block import AttentionBlock as AttentionBlock
from convattn.layers.attention.part import AttentionPart as AttentionPart
from convattn.layers.attention.parts import GlobalAttention as GlobalAttention
from convattn.layers.attention.parts import PatchwiseAttention as PatchwiseAttention
from convattn.layers.attention.parts import SlidingWindowAttention as SlidingWindowAttention
from convattn.layers.attention.parts import SpatialReductionAttention as SpatialReductionAttention
from convattn.layers.attention.parts import WindowAttention as WindowAttention
from convattn.layers.block import PreNormBlock as PreNormBlock
from convattn.layers.conv2d import ACmixConv2d as ACmixConv2d
from convattn.layers.conv2d import ConvBeside as ConvBeside
from convattn.layers.conv2d import GLMixConv2d as GLMixConv2d
from convattn.layers.conv2d import XVolutionConv2d as XVolutionConv2d
from convattn.layers.ffn import ConvMlp as ConvMlp
from convattn.layers.glmix import GLMix as GLMix
from convattn.layers.glmix import GLMixBlock as GLMixBlock
from convattn.layers.xvolution import XVolution as XVolution
