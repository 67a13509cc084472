"""Functions on tensors, without parameters: torch is all they need."""

from convattn.ops._backend import use_backend as use_backend
from convattn.ops.acmix import acmix_convolution as acmix_convolution
from convattn.ops.acmix import convolution_path as convolution_path
from convattn.ops.acmix import folded_convolution as folded_convolution
from convattn.ops.acmix import map_convolution as map_convolution
from convattn.ops.acmix import shift_convolution as shift_convolution
from convattn.ops.attention import global_attention as global_attention
from convattn.ops.attention import patchwise_aggregate as patchwise_aggregate
from convattn.ops.attention import sliding_window_attention as sliding_window_attention
from convattn.ops.attention import window_attention as window_attention
from convattn.ops.glmix import cluster_and_dispatch as cluster_and_dispatch
from convattn.ops.glmix import dispatch as dispatch
from convattn.ops.glmix import kmeans_clustering as kmeans_clustering
from convattn.ops.glmix import pool_slots as pool_slots
from convattn.ops.glmix import soft_clustering as soft_clustering
from convattn.ops.map_attention import map_window_attention as map_window_attention
from convattn.ops.xvolution import pixel_shift_attention as pixel_shift_attention
