"""Functions on tensors, without parameters: torch is all they need."""

from convattn.ops.glmix import dispatch as dispatch
from convattn.ops.glmix import kmeans_clustering as kmeans_clustering
from convattn.ops.glmix import pool_slots as pool_slots
from convattn.ops.glmix import soft_clustering as soft_clustering
from convattn.ops.xvolution import pixel_shift_attention as pixel_shift_attention
