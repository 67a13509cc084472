/* What a sliding window multiplies, in rows of columns whose lanes are neighbouring queries.

   Products take ROWS rows of queries at once: one key serves them all, for PLACES columns of the
   window, and one value CHANNELS channels. */

#include "vectors.h"

#define ROWS 3
#if LANES == 16 /* and 32 registers */
#define PLACES 7
#define CHANNELS 8
#else
#define PLACES 4
#define CHANNELS 4
#endif

/* out[r][t] = sum over channels of q[r] and the key at shift[t]: rows x places vectors. */
INLINE void score_block(const float *q, int64_t by_query, int64_t q_step, const float *k,
                        int64_t k_step, const int64_t *shift, int64_t width, float *out,
                        int64_t by_row, int64_t by_place, int rows, int places) {
    vec sum[ROWS][PLACES];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int t = 0; t < places; t++) sum[r][t] = all(0);
    for (int64_t c = 0; c < width; c++, q += q_step, k += k_step) {
        vec query[ROWS];
        UNROLL for (int r = 0; r < rows; r++) query[r] = load(q + r * by_query);
        UNROLL for (int t = 0; t < places; t++) {
            vec key = load(k + shift[t]);
            UNROLL for (int r = 0; r < rows; r++) sum[r][t] += query[r] * key;
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int t = 0; t < places; t++)
            store(out + r * by_row + t * by_place, sum[r][t]);
}

/* A row of keys under some rows of queries, at all columns of the window. */
static void score(const float *q, int64_t by_query, int64_t q_step, const float *k, int64_t k_step,
                  const int64_t *shift, int64_t width, float *out, int64_t by_row,
                  int64_t by_place, int rows, int64_t places) {
#define BLOCK(r, t)                                                                           \
    case 8 * r + t:                                                                           \
        score_block(q, by_query, q_step, k, k_step, shift, width, out, by_row, by_place, r, t); \
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
        places -= now, shift += now, out += now * by_place;
    }
#undef BLOCKS
#undef BLOCK
}

/* A row of what is summed, and its weights in those rows of a group that it counts for. */
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
                      int64_t by_row, int64_t out_step, int wide) {
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
        UNROLL for (int c = 0; c < wide; c++) store(out + r * by_row + c * out_step, sum[r][c]);
}

/* All channels of a vector of columns that begins at x, in the rows of a group. */
static void sum(const term_t *terms, int64_t count, int64_t x, int64_t width, int64_t step,
                const int64_t *place, const int64_t *shift, int64_t places, float *out,
                int64_t by_row, int64_t out_step) {
    int64_t c = 0;
#define PART(wide)                                                                            \
    for (; c + wide <= width; c += wide)                                                      \
        sum_block(terms, count, x, c * step, step, place, shift, places, out + c * out_step,  \
                  by_row, out_step, wide);
    PART(CHANNELS) PART(4) PART(1)
#undef PART
}

/* Softmax over the places, in each lane that is kept; 0 in the others. */
static void softmax(float *logits, int64_t step, int64_t places, ivec kept) {
    vec most = load(logits), total = all(0);
    for (int64_t t = 1; t < places; t++) most = larger(load(logits + t * step), most);
    for (int64_t t = 0; t < places; t++) {
        vec e = exponential(load(logits + t * step) - most);
        total += e;
        store(logits + t * step, e);
    }
    total = 1 / total;
    for (int64_t t = 0; t < places; t++) {
        vec weight = load(logits + t * step) * total;
        store(logits + t * step, (vec)((ivec)weight & kept));
    }
}

/* changes = weights (changes - sum of weights changes): the gradient of a softmax, in each lane. */
static void softmax_backward(const float *weights, float *changes, int64_t step, int64_t places,
                             ivec kept) {
    vec total = all(0);
    for (int64_t t = 0; t < places; t++) total += load(weights + t * step) * load(changes + t * step);
    for (int64_t t = 0; t < places; t++) {
        vec change = load(weights + t * step) * (load(changes + t * step) - total);
        store(changes + t * step, (vec)((ivec)change & kept));
    }
}
