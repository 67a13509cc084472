"""Constants that were chosen by measurement.

``python -m benchmarks.tune NAME`` measures the operator that depends on a constant, with the value
in this file and with other values. The preferences of paths (`dispatch.Path.prefers`) compare sizes
with these constants.
"""

from __future__ import annotations

# ---- sliding windows ----

# "native" is preferred for maps of more pixels than a square whose side is this much longer than
# the window, as smaller maps leave vectors of queries half empty: 9 x 9 for 7 x 7 windows. Two
# cores, (512, 7x7): dense 0.47 ms, native 0.71.
NATIVE_MARGIN = 2

# "dense" and "bands" are preferred for maps of up to a tile of T = K queries with its halo and this
# margin along one axis: 18 x 18 pixels for 7 x 7 windows. Two cores, (256, 14x14): dense 1.8 ms in
# bands, strips 3.0, tiled 4.0.
DENSE_MARGIN = 4

# Floats of a thread's workspace of "native", forward and backward: they fit in the L2
# cache of a core. Bands of more rows copy a smaller share of halo.
NATIVE_WORKSPACE = (1 << 17, 1 << 18)

# BAND_ROWS: rows of queries of a band of "bands". BAND_SHARE: "bands" is taken if the windows of a
# band contain at most this share of the rows of keys. Two cores, (256, 14x14): bands of two rows
# 2.0 ms, of three rows 2.4, all rows at once 2.8; (256, 18x18): 4.6, 5.3, 7.3.
BAND_ROWS = 2
BAND_SHARE = 0.6

# Pixels along one axis that the queries of a tile of "tiled" cover; a larger window replaces this
# value. A smaller tile copies a larger share of halo, a larger tile computes more products that the
# mask discards. The value does not depend on the size of the map, so that one compiled graph
# computes every size. 7 divides the sizes of the maps of 224-pixel images.
TILE_SPAN = 7

# Maximum rows and columns of the queries of a tile of "strips", for stride 1 and for larger
# strides. A smaller tile has fewer keys outside the window of each query. A larger tile has faster
# products and a smaller share of halo to copy, which matters more in the backward pass.
STRIP_SPANS = ((2, 8), (2, 4))
STRIP_SPANS_BACKWARD = ((2, 8), (2, 7))

# Bytes of the logits of a strip per thread, in the backward pass with their gradients: they fit in
# the caches.
STRIP_LOGITS = 1 << 18

# ---- ACmix: the convolution path ----

# Up to this number of channels times the stride squared, one dense convolution of the input map is
# faster than the convolution of q, k and v. Forward and backward, float32, batch 8, one core: dense
# (64, 56x56) 53 ms, from q, k and v 95; (128, 28x28) 43, 52; (256, 14x14) 41, 26. The copy of q, k
# and v to (d, J) takes as long as 128 channels of a dense convolution; with a stride of 2, as long
# as four times as many.
DENSE_CHANS = 128

# Above this number of outputs per channel of a group, a projection to the K^2 maps per channel is
# faster than projections to q, k and v. Measured as above: (192, 28x28), N = 6: 58 ms, q, k and v
# 66; (256, 14x14), N = 4: 27, 26.
PROJECTED_OUTPUTS = 4

# In the deployed form, the multiplications per second of a dense convolution, divided by those of a
# projection or a group convolution. Float32, batch 16, one core, 3 x 3 kernels: (64, 56x56) dense
# 15 ms, the two layers 16; (128, 28x28) 15, 10; (256, 14x14) 14, 7; (128, 56x56), stride 2: 16, 48;
# (96, 56x56), three heads: 34, 33, in bfloat16 17, 21; (192, 28x28), six heads: 33, 13.
DENSE_SPEED = 1.5

# Neighbouring groups of a group convolution are merged up to this number of outputs: the number of
# channels in a vector register of a CPU. A group with fewer outputs does not fill the register.
MERGED_OUTPUTS = 16

# ---- GLMix ----

# Maximum logits and pixels of a tile of "tiled" and "shared". Products of smaller tiles are slow;
# the logits of larger tiles do not fit in the cache. Values from 2^17 to 2^22 logits were measured.
SLOT_TILE_LOGITS = 2**19
SLOT_TILE_PIXELS = 2**12

# Similarities that "native" and "shared" keep from clustering to dispatching, at most: 64 MiB in
# float32. "tiled" keeps none.
SIMILARITIES_KEPT = 2**24

# ---- tokens ----

# Logits that the path "products" of `attend_heads` computes at a time; their memory is reused.
HEADS_TILE_LOGITS = 2**19

# Up to this number of tokens N, the (N, N) weights that "reference" of `attend_heads` stores for
# gradients need no more memory than queries, keys and values. One core, bfloat16, 64 tokens: the
# backward pass is 6x as fast as that of sdpa.
MAX_STORED_TOKENS = 64

# From this number of tokens in a batch, a 1x1 convolution in bfloat16 is faster than a linear
# layer: the linear layer copies its bias to every row. Two cores, 256 channels: 8 x 196 tokens
# 0.67 ms, linear 0.81; 8 x 64 tokens 0.28, 0.29; 8 x 49 tokens 0.37, 0.28.
MANY_TOKENS = 1024

# ---- convolutions ----

# Pixels that a feed-forward network computes at a time, in whole images, one at least. The memory
# of the hidden map is reused. Float32, large maps: 6 to 7 % faster.
FFN_PIXELS = 2**13
