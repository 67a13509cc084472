"""Convolution and attention in one operator: ACmix, X-volution and GLMix."""

from convattn.deploy import reparameterize as reparameterize
from convattn.layers.acmix.acmix import ACmix as ACmix
from convattn.layers.conv2d import ACmixConv2d as ACmixConv2d
from convattn.layers.conv2d import GLMixConv2d as GLMixConv2d
from convattn.layers.conv2d import XVolutionConv2d as XVolutionConv2d
from convattn.layers.glmix import GLMix as GLMix
from convattn.layers.glmix import GLMixBlock as GLMixBlock
from convattn.layers.xvolution import XVolution as XVolution
from convattn.models import create_model as create_model
from convattn.models import list_models as list_models
from convattn.models import load_official as load_official
from convattn.surgery import replace as replace

__version__ = "0.1.0"
