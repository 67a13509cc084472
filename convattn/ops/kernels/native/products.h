/* Products of sliding-window attention. The lanes of a vector are neighbouring queries of a row.

   ROWS rows of queries are multiplied at a time. They share the loads of the keys at PLACES columns
   of the window, and of the values of CHANNELS channels. */

#include "vectors.h"

#define ROWS 3
#if LANES == 16 /* AVX-512 has 32 registers */
#define PLACES 7
#define CHANNELS 8
#else
#define PLACES 4
#define CHANNELS 4
#endif

/* out[r][t] = sum over channels of q[r] and the key at shift[t]: rows x places vectors. */
INLINE void score_block(const float *q, int64_t query_stride, int64_t q_step, const float *k,
                        int64_t k_step, const int64_t *shift, int64_t width, float *out,
                        int64_t row_stride, int64_t place_stride, int rows, int places) {
    vec sum[ROWS][PLACES];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int t = 0; t < places; t++) sum[r][t] = all(0);
    for (int64_t c = 0; c < width; c++, q += q_step, k += k_step) {
        vec query[ROWS];
        UNROLL for (int r = 0; r < rows; r++) query[r] = load(q + r * query_stride);
        UNROLL for (int t = 0; t < places; t++) {
            vec key = load(k + shift[t]);
            UNROLL for (int r = 0; r < rows; r++) sum[r][t] += query[r] * key;
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int t = 0; t < places; t++)
            store(out + r * row_stride + t * place_stride, sum[r][t]);
}

/* Logits of some rows of queries with a row of keys, at all columns of the window. */
static void score(const float *q, int64_t query_stride, int64_t q_step, const float *k,
                  int64_t k_step, const int64_t *shift, int64_t width, float *out,
                  int64_t row_stride, int64_t place_stride, int rows, int64_t places) {
#define BLOCK(r, t)                                                                    \
    case 8 * r + t:                                                                    \
        score_block(q, query_stride, q_step, k, k_step, shift, width, out, row_stride, \
                    place_stride, r, t);                                               \
        break;
#define BLOCKS(t) BLOCK(1, t) BLOCK(2, t) BLOCK(3, t)
    while (places > 0) {
        int now = places < PLACES ? places : PLACES;
        switch (8 * rows + now) {
            BLOCKS(1) BLOCKS(2) BLOCKS(3) BLOCKS(4)
#if PLACES == 7
            BLOCKS(5) BLOCKS(6) BLOCKS(7)
#endif
        }
        places -= now, shift += now, out += now * place_stride;
    }
#undef BLOCKS
#undef BLOCK
}

/* A row of values, and the weights of this row for the rows [first, end) of a group of queries. */
typedef struct {
    const float *row, *weights[ROWS];
    int first, end;
} term_t;

/* sum[r][c] += weights[r][t] row[c][shift[t]] over t, for rows first to end and `wide` channels. */
INLINE void add_block(vec sum[ROWS][CHANNELS], const term_t *term, int64_t x, int64_t from,
                      int64_t step, const int64_t *place, const int64_t *shift, int64_t places,
                      int first, int end, int wide) {
    for (int64_t t = 0; t < places; t++) {
        const float *row = term->row + from + x + shift[t];
        vec weight[ROWS];
        UNROLL for (int r = first; r < end; r++) weight[r] = load(term->weights[r] + x + place[t]);
        UNROLL for (int c = 0; c < wide; c++) {
            vec value = load(row + c * step);
            UNROLL for (int r = first; r < end; r++) sum[r][c] += weight[r] * value;
        }
    }
}

INLINE void sum_block(const term_t *terms, int64_t count, int64_t x, int64_t from, int64_t step,
                      const int64_t *place, const int64_t *shift, int64_t places, float *out,
                      int64_t row_stride, int64_t out_step, int wide) {
    vec sum[ROWS][CHANNELS];
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int c = 0; c < wide; c++) sum[r][c] = all(0);
    for (const term_t *term = terms; term < terms + count; term++) {
#define PART(first, end)                                                                      \
    case 4 * first + end:                                                                     \
        add_block(sum, term, x, from, step, place, shift, places, first, end, wide);          \
        break;
        switch (4 * term->first + term->end) {
            PART(0, 1) PART(0, 2) PART(0, 3) PART(1, 2) PART(1, 3) PART(2, 3)
        }
#undef PART
    }
    UNROLL for (int r = 0; r < ROWS; r++)
        UNROLL for (int c = 0; c < wide; c++)
            store(out + r * row_stride + c * out_step, sum[r][c]);
}

/* Weighted sums of all channels for a vector of columns from x on, in the rows of a group. */
static void sum(const term_t *terms, int64_t count, int64_t x, int64_t width, int64_t step,
                const int64_t *place, const int64_t *shift, int64_t places, float *out,
                int64_t row_stride, int64_t out_step) {
    int64_t c = 0;
#define PART(wide)                                                                          \
    for (; c + wide <= width; c += wide)                                                    \
        sum_block(terms, count, x, c * step, step, place, shift, places, out + c * out_step, \
                  row_stride, out_step, wide);
    PART(CHANNELS) PART(4) PART(1)
#undef PART
}

/* Softmax over the places of the window, in the lanes of the mask `kept`; 0 in the other lanes. */
static void softmax(float *logits, int64_t step, int64_t places, ivec kept) {
    vec largest = load(logits), total = all(0);
    for (int64_t t = 1; t < places; t++) largest = larger(load(logits + t * step), largest);
    for (int64_t t = 0; t < places; t++) {
        vec e = exponential(load(logits + t * step) - largest);
        total += e;
        store(logits + t * step, e);
    }
    total = 1 / total;
    for (int64_t t = 0; t < places; t++) {
        vec weight = load(logits + t * step) * total;
        store(logits + t * step, (vec)((ivec)weight & kept));
    }
}

/* grads = weights (grads - sum of weights grads): the gradient of a softmax, in kept lanes. */
static void softmax_backward(const float *weights, float *grads, int64_t step, int64_t places,
                             ivec kept) {
    vec total = all(0);
    for (int64_t t = 0; t < places; t++) total += load(weights + t * step) * load(grads + t * step);
    for (int64_t t = 0; t < places; t++) {
        vec grad = load(weights + t * step) * (load(grads + t * step) - total);
        store(grads + t * step, (vec)((ivec)grad & kept));
    }
}
