"""Functions on tensors, without parameters. They need no package but torch."""

from convattn.ops.acmix.convolution import acmix_convolution as acmix_convolution
from convattn.ops.acmix.convolution import folded_convolution as folded_convolution
from convattn.ops.acmix.convolution import shift_convolution as shift_convolution
from convattn.ops.acmix.from_map import convolution_path as convolution_path
from convattn.ops.acmix.from_map import map_convolution as map_convolution
from convattn.ops.dispatch import checkpoint_contexts as checkpoint_contexts
from convattn.ops.dispatch import explain as explain
from convattn.ops.dispatch import record_paths as record_paths
from convattn.ops.dispatch import use_backend as use_backend
from convattn.ops.glmix.slots import cluster_and_dispatch as cluster_and_dispatch
from convattn.ops.glmix.slots import dispatch as dispatch
from convattn.ops.glmix.slots import kmeans_clustering as kmeans_clustering
from convattn.ops.glmix.slots import pool_slots as pool_slots
from convattn.ops.glmix.slots import soft_clustering as soft_clustering
from convattn.ops.global_.attention import global_attention as global_attention
from convattn.ops.patchwise.aggregate import patchwise_aggregate as patchwise_aggregate
from convattn.ops.sliding.attention import sliding_window_attention as sliding_window_attention
from convattn.ops.windows.attention import map_window_attention as map_window_attention
from convattn.ops.windows.attention import window_attention as window_attention
from convattn.ops.xvolution.pixel_shift import pixel_shift_attention as pixel_shift_attention
