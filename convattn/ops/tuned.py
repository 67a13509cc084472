"""Constants that were measured, each with the command that measures it.

``python -m benchmarks.tune NAME`` times what depends on a constant, with the value that stands here
and with others. A preference for a path (`dispatch.Path.prefers`) compares sizes with these.
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

# Floats of a thread's workspace of "native", forward and backward: what stays in the second cache
# of a core. Bands of more rows copy less of the halo.
NATIVE_WORKSPACE = (1 << 17, 1 << 18)

# Rows of queries of a band of "bands"; one band is worth its call where it sees at most this share
# of the rows of keys. Two cores, (256, 14x14): two rows 2.0 ms, three 2.4, all at once 2.8;
# (256, 18x18): 4.6, 5.3, 7.3.
BAND_ROWS = 2
BAND_SHARE = 0.6

# Pixels that the queries of a tile of "tiled" span along one axis, or a window if that is more:
# fewer copy more of the halo, more compute more products that the mask throws away. Not fitted to
# the size of the map, so that one compiled graph serves every size; 7 divides the maps of 224-pixel
# images.
TILE_SPAN = 7

# Rows and columns of the queries of a tile of "strips", at most: without a stride, and with one.
# Fewer show each query fewer keys that its window has not, more make a better product and copy
# less, which counts more backward.
STRIP_SPANS = ((2, 8), (2, 4))
STRIP_SPANS_BACKWARD = ((2, 8), (2, 7))

# Bytes of the logits of a strip for each thread, backward with their gradients: what is computed at
# once stays in the caches.
STRIP_LOGITS = 1 << 18

# ---- ACmix: the convolution path ----

# Channels of a map, times the stride squared, up to which the convolution takes the map itself as
# one dense convolution. Forward and backward, float32, batch 8, one core: (64, 56x56) 53 ms, from
# q, k and v 95; (128, 28x28) 43, 52; (256, 14x14) 41, 26. Copying q, k and v to (d, J) costs as
# much as 128 channels of a dense convolution do; with a stride of 2, four times as much.
DENSE_CHANS = 128

# Outputs per channel of a group above which a projection to the K^2 maps per channel is faster than
# q, k and v. As above: (192, 28x28), N = 6: 58 ms, 66; (256, 14x14), N = 4: 27, 26.
PROJECTED_OUTPUTS = 4

# Multiplications of a dense convolution in the time of one of a projection or a group convolution,
# in the deployed form. Float32, batch 16, one core, 3 x 3 kernels: (64, 56x56) dense 15 ms, the two
# layers 16; (128, 28x28) 15, 10; (256, 14x14) 14, 7; (128, 56x56) with stride 2 16, 48; (96,
# 56x56), three heads, 34, 33, and 17, 21 in bfloat16; (192, 28x28), six heads, 33, 13.
DENSE_SPEED = 1.5

# Outputs up to which neighbouring groups of a group convolution are convolved as one: the channels
# that a vector of a CPU holds, which a group with fewer outputs leaves half empty.
MERGED_OUTPUTS = 16

# ---- GLMix ----

# Logits and pixels of a tile of "tiled" and "shared", at most: fewer make small products, more
# leave the cache. Logits were measured from 2^17 to 2^22.
SLOT_TILE_LOGITS = 2**19
SLOT_TILE_PIXELS = 2**12

# Similarities that "native" and "shared" keep from clustering to dispatching, at most: 64 MiB in
# float32. "tiled" keeps none.
SIMILARITIES_KEPT = 2**24

# ---- tokens ----

# Logits that "products" of heads computes at a time, in images: their memory is used again.
HEADS_TILE_LOGITS = 2**19

# Tokens up to which the (N, N) weights of heads, which products store for gradients, are no larger
# than their queries, keys and values. One core, bfloat16, 64 tokens: backward 6x as fast as sdpa.
MAX_STORED_TOKENS = 64

# Tokens of a batch from which a 1x1 convolution in bfloat16 is faster than a linear layer: oneDNN
# adds its bias for less than a copy of it. Two cores, 256 channels: 8 x 196 tokens 0.67 ms,
# linear 0.81; 8 x 64 0.28, 0.29; 8 x 49 0.37, 0.28.
MANY_TOKENS = 1024

# ---- convolutions ----

# Pixels that a feed-forward network computes at a time, in images: its wide map has no more, but
# for one image that is larger, and its memory is used again. Float32, large maps: 6 to 7 %.
FFN_PIXELS = 2**13
