/* Operations on each row of a matrix: layer norm, GLMix's directions, similarities and scales.

   Rows are contiguous, in float32 or bfloat16; all results are computed in float32. */

#include "vectors.h"

#define CHUNK 128       /* rows of a task */
#define SMALL (1 << 14) /* elements for which one thread is faster */
#define KEPT 24         /* vectors of a row that stay in registers, at most */

int64_t rows_abi(void) { return ABI(0); }

#define EACH(i, count) for (int64_t i = 0; i < (count); i += LANES)
#define EVERY(i, vectors) _Pragma("GCC unroll 24") for (int i = 0; i < vectors; i++)

INLINE map_t row_of(const map_t *matrix, int64_t row, int64_t width, int half) {
    char *data = (char *)matrix->data + row * width * (half ? 2 : 4);
    return (map_t){.data = data, .half = half};
}

INLINE float sum_of(vec v) {
#if LANES == 16
    return _mm512_reduce_add_ps((__m512)v);
#else
    return (v[0] + v[4]) + (v[1] + v[5]) + ((v[2] + v[6]) + (v[3] + v[7]));
#endif
}

/* Set the lanes past the end of the row to x; the vector starts at element i of the row. */
INLINE vec within(vec v, int64_t i, int64_t width, float x) {
#if LANES == 16
    const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
    const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7};
#endif
    return width - i >= LANES ? v : where(lane < (int32_t)(width - i), v, all(x));
}

/* ---- layer norm: y = (x - mean) / sqrt(variance + eps) * weight + bias ---- */

INLINE void add_row(const map_t *x, const map_t *branch, const map_t *total, int64_t width) {
    EACH(i, width) write(total, i, width - i, read(x, i, width - i) + read(branch, i, width - i));
}

INLINE void norm_row(const map_t *x, const map_t *y, int64_t width, const float *weight,
                     const float *bias, float eps, float *kept) {
    vec sum = all(0), squares = all(0);
    EACH(i, width) {
        vec v = read(x, i, width - i);
        sum += v;
        store(kept + i, v);
    }
    float mean = sum_of(sum) / width;
    EACH(i, width) {
        vec v = within(load(kept + i) - mean, i, width, 0);
        squares += v * v;
        store(kept + i, v);
    }
    float factor = 1 / __builtin_sqrtf(sum_of(squares) / width + eps);
    EACH(i, width) write(y, i, width - i, load(kept + i) * factor * load(weight + i) + load(bias + i));
}

/* The layer norm of a row of a constant number of full vectors, which stay in registers. */
INLINE void norm_whole(const map_t *x, const map_t *y, const float *weight, const float *bias,
                       float eps, int vectors) {
    vec v[KEPT], sum = all(0), squares = all(0);
    EVERY(i, vectors) v[i] = read(x, i * LANES, LANES);
    EVERY(i, vectors) sum += v[i];
    float mean = sum_of(sum) / (vectors * LANES);
    EVERY(i, vectors) v[i] -= mean;
    EVERY(i, vectors) squares += v[i] * v[i];
    float factor = 1 / __builtin_sqrtf(sum_of(squares) / (vectors * LANES) + eps);
    EVERY(i, vectors) {
        vec scaled = v[i] * factor * load(weight + i * LANES);
        write(y, i * LANES, LANES, scaled + load(bias + i * LANES));
    }
}

/* Layer norm of x, or of x + branch; the sum is written to `total`. */
INLINE void norm_rows(const map_t *x, const map_t *branch, const map_t *total, const map_t *y,
                      int64_t rows, int64_t width, const float *weight, const float *bias,
                      float eps, int64_t threads, int half) {
#pragma omp parallel for num_threads(threads) if (rows * width > SMALL)
    for (int64_t chunk = 0; chunk < (rows + CHUNK - 1) / CHUNK; chunk++) {
        float kept[width + LANES];
        int64_t end = (chunk + 1) * CHUNK < rows ? (chunk + 1) * CHUNK : rows;
        for (int64_t row = chunk * CHUNK; row < end; row++) {
            map_t from = row_of(x, row, width, half), to = row_of(y, row, width, half);
            if (branch->data) {
                map_t other = row_of(branch, row, width, half),
                      sum = row_of(total, row, width, half);
                add_row(&from, &other, &sum, width);
                from = sum;
            }
            switch (width % LANES ? 0 : width / LANES) {
#define WHOLE(n)                                                                              \
    case n:                                                                                   \
        norm_whole(&from, &to, weight, bias, eps, n);                                         \
        break;
                WHOLE(4) WHOLE(6) WHOLE(8) WHOLE(12) WHOLE(16) WHOLE(24)
#undef WHOLE
            default: norm_row(&from, &to, width, weight, bias, eps, kept);
            }
        }
    }
}

/* half: 1 if all tensors are bfloat16, 0 if all are float32; branch and total: both or neither. */
void rows_layer_norm(void *x, void *branch, void *total, void *weight, void *bias, void *y,
                     int64_t rows, int64_t width, float eps, int64_t half, int64_t threads) {
    map_t from = {.data = x, .half = half}, to = {.data = y, .half = half};
    map_t other = {.data = branch, .half = half}, sum = {.data = total, .half = half};
    map_t scale = {.data = weight, .half = half}, shift = {.data = bias, .half = half};
    float factors[width + LANES], terms[width + LANES];
    EACH(i, width) {
        store(factors + i, read(&scale, i, width - i));
        store(terms + i, read(&shift, i, width - i));
    }
    half ? norm_rows(&from, &other, &sum, &to, rows, width, factors, terms, eps, threads, 1)
         : norm_rows(&from, &other, &sum, &to, rows, width, factors, terms, eps, threads, 0);
}

/* ---- GLMix: e = exp(product / |u|), its sums over slots and over pixels ---- */

INLINE float inverse_length(const map_t *u, int64_t channels, float min_norm) {
    vec squares = all(0);
    EACH(i, channels) {
        vec v = read(u, i, channels - i);
        squares += v * v;
    }
    float length = __builtin_sqrtf(sum_of(squares));
    return length <= min_norm ? 0 : 1 / length;
}

INLINE void similar_rows(const map_t *e, const map_t *u, int64_t images, int64_t pixels,
                         int64_t slots, int64_t channels, int64_t step, float min_norm,
                         float *inverse_sums, float *totals, int64_t threads, int half) {
    int64_t chunks = (pixels + CHUNK - 1) / CHUNK, padded = (slots + LANES - 1) / LANES * LANES;
#pragma omp parallel for num_threads(threads) if (images * pixels * slots > SMALL)
    for (int64_t task = 0; task < images * chunks; task++) {
        int64_t image = task / chunks, first = task % chunks * CHUNK;
        int64_t end = first + CHUNK < pixels ? first + CHUNK : pixels;
        float *total = totals + task * padded;
        memset(total, 0, 4 * padded);
        for (int64_t p = first; p < end; p++) {
            map_t row = row_of(e, image * pixels + p, slots, half);
            map_t pixel = {.data = (char *)u->data + (image * step + p * channels) * (half ? 2 : 4),
                           .half = half};
            float inverse = inverse_length(&pixel, channels, min_norm);
            vec sum = all(0);
            EACH(m, slots) {
                vec v = read(&row, m, slots - m) * inverse;
                /* between e^-87 and e^87 */
                v = exponential(larger(all(-87), -larger(all(-87), -v)));
                write(&row, m, slots - m, v);
                v = read(&row, m, slots - m); /* rounded; 0 past the slots */
                sum += v;
                store(total + m, load(total + m) + v);
            }
            inverse_sums[image * pixels + p] = 1 / sum_of(sum);
        }
    }
}

/* Return the size of the workspace of an image in floats: sums over the pixels of each chunk. */
int64_t rows_workspace(int64_t pixels, int64_t slots) {
    return (pixels + CHUNK - 1) / CHUNK * ((slots + LANES - 1) / LANES * LANES);
}

/* e: products of pixels and slots (images, pixels, slots), replaced by exponentials; u: pixels,
   with a stride of `step` elements between images; inverse_sums (images, pixels): 1 / sums over
   slots; totals (images, slots): sums over pixels, first of each chunk in `workspace`. */
void rows_similarities(void *e, void *u, float *inverse_sums, float *totals, float *workspace,
                       int64_t images, int64_t pixels, int64_t slots, int64_t channels,
                       int64_t step, float min_norm, int64_t half, int64_t threads) {
    map_t at = {.data = e, .half = half}, from = {.data = u, .half = half};
    if (half)
        similar_rows(&at, &from, images, pixels, slots, channels, step, min_norm, inverse_sums,
                     workspace, threads, 1);
    else
        similar_rows(&at, &from, images, pixels, slots, channels, step, min_norm, inverse_sums,
                     workspace, threads, 0);
    int64_t chunks = (pixels + CHUNK - 1) / CHUNK, padded = (slots + LANES - 1) / LANES * LANES;
    memset(totals, 0, 4 * images * slots);
    for (int64_t task = 0; task < images * chunks; task++)
        for (int64_t m = 0; m < slots; m++)
            totals[task / chunks * slots + m] += workspace[task * padded + m];
}

INLINE void direct_rows(const map_t *x, const map_t *y, int64_t rows, int64_t width, float min_norm,
                        float factor, int64_t threads, int half) {
#pragma omp parallel for num_threads(threads) if (rows * width > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        map_t from = row_of(x, row, width, half), to = row_of(y, row, width, half);
        float length = factor * inverse_length(&from, width, min_norm);
        EACH(i, width) write(&to, i, width - i, read(&from, i, width - i) * length);
    }
}

/* y = factor x / |x| for every row; 0 if |x| is not above `min_norm`. */
void rows_directions(void *x, void *y, int64_t rows, int64_t width, float min_norm, float factor,
                     int64_t half, int64_t threads) {
    map_t from = {.data = x, .half = half}, to = {.data = y, .half = half};
    half ? direct_rows(&from, &to, rows, width, min_norm, factor, threads, 1)
         : direct_rows(&from, &to, rows, width, min_norm, factor, threads, 0);
}

INLINE void scale_rows(const map_t *x, int64_t rows, int64_t width, const float *scales,
                       int64_t threads, int half) {
#pragma omp parallel for num_threads(threads) if (rows * width > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        map_t at = row_of(x, row, width, half);
        EACH(i, width) write(&at, i, width - i, read(&at, i, width - i) * scales[row]);
    }
}

/* Multiply row i by scale i, for every row. */
void rows_scale(void *x, const float *scales, int64_t rows, int64_t width, int64_t half,
                int64_t threads) {
    map_t at = {.data = x, .half = half};
    half ? scale_rows(&at, rows, width, scales, threads, 1)
         : scale_rows(&at, rows, width, scales, threads, 0);
}
