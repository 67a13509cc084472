"""Modules on maps (B, C, H, W): parameters, and one call into the operators."""

from convattn.layers.attention_block import AttentionBlock as AttentionBlock
from convattn.layers.block import PreNormBlock as PreNormBlock
from convattn.layers.ffn import ConvMlp as ConvMlp
from convattn.layers.glmix import GLMix as GLMix
from convattn.layers.glmix import GLMixBlock as GLMixBlock
from convattn.layers.xvolution import XVolution as XVolution
