/* Attention of few tokens with heads of few channels, and window attention, without gradients.

   B batch, N heads of d channels, T tokens.

       l_ij = scale q_i . k_j + mask_ij,  y_i = sum_j exp(l_ij) v_j / sum_j exp(l_ij)

   One task is a head of a window of an image; tokens without windows are one window of one row. The
   queries of a task are copied to rows of [channel][token], so that the lanes of a vector are
   queries. Keys and values are scalars that all lanes share, and no sum is across lanes. A group of
   QUERIES vectors attends to all keys; the logits of a group fit in the L1 cache.

   If the processor has products of bfloat16 pairs, a 32-bit word is a pair of channels for the
   logits, and a pair of keys for the outputs. The loops are the same, with half as many words. */

#include "vectors.h"

#define QUERIES 3
#if LANES == 16 /* AVX-512 has 32 registers */
#define KEYS 7
#define CHANNELS 8
#else
#define KEYS 4
#define CHANNELS 4
#endif

/* In maps, `channel` is the stride between heads; the channels of a head are contiguous. */
typedef struct {
    int64_t batch, heads, width; /* B, N, d */
    int64_t down, across;        /* windows of an image */
    int64_t rows, columns;       /* of a window: T = rows columns */
    int64_t threads;
    double scale;
    int64_t mask_window, mask_head, mask_key; /* strides of the mask */
} task_t;

#if defined(__AVX512BF16__)
#define HAS_PAIRS 1
INLINE vec add_pairs(vec sum, vec a, float b) {
    uint32_t word;
    memcpy(&word, &b, sizeof word);
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)_mm512_set1_epi32(word));
}
/* Return pairs of bfloat16: lane i is the pair of a[i] and b[i]. */
INLINE vec pair(vec a, vec b) {
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
    const __m512i order = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
        23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (vec)_mm512_permutexvar_epi16(order, both);
}
#else
#define HAS_PAIRS 0
INLINE vec add_pairs(vec sum, vec a, float b) { return sum + a * b; }
INLINE vec pair(vec a, vec b) { return a + b; }
#endif

/* sum + a b, of floats or of bfloat16 pairs. */
INLINE vec add_product(vec sum, vec a, float b, int pairs) {
    return pairs ? add_pairs(sum, a, b) : sum + a * b;
}

typedef struct {
    float *queries, *keys, *values, *logits, *sums;
} parts_t;

static int64_t divide(const task_t *t, float *at, parts_t *parts) {
    float *start = at;
    int64_t tokens = t->rows * t->columns;
    int64_t lanes = round_up(tokens, LANES), padded = round_up(t->width, LANES);
    parts->queries = at, at += t->width * lanes;
    parts->keys = at, at += (tokens + KEYS) * padded;
    parts->values = at, at += (tokens + KEYS) * padded;
    parts->logits = at, at += tokens * QUERIES * LANES;
    parts->sums = at, at += padded * QUERIES * LANES;
    return round_up(at - start, LANES);
}

int64_t heads_abi(void) { return ABI(sizeof(task_t)); }

/* Return the size of the workspace of all threads in floats. */
int64_t heads_workspace(const task_t *t) {
    parts_t parts;
    return LANES + t->threads * divide(t, NULL, &parts);
}

/* logits[j][r] = mask + scale times the sum of q[r] k[j] over `words`, for `keys` keys. */
INLINE void score_block(const float *q, int64_t lanes, const float *k, int64_t padded,
                        int64_t words, const float *mask, int64_t mask_key, float scale,
                        float *logits, int rows, int keys, int pairs) {
    vec sum[QUERIES][KEYS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int j = 0; j < keys; j++) sum[r][j] = all(0);
    for (int64_t c = 0; c < words; c++) {
        vec query[QUERIES];
        UNROLL for (int r = 0; r < rows; r++) query[r] = load(q + c * lanes + r * LANES);
        UNROLL for (int j = 0; j < keys; j++) {
            float key = k[j * padded + c];
            UNROLL for (int r = 0; r < rows; r++)
                sum[r][j] = add_product(sum[r][j], query[r], key, pairs);
        }
    }
    UNROLL for (int j = 0; j < keys; j++)
        UNROLL for (int r = 0; r < rows; r++) {
            vec logit = sum[r][j] * scale;
            if (mask) logit += load(mask + j * mask_key + r * LANES);
            store(logits + (j * QUERIES + r) * LANES, logit);
        }
}

INLINE void score(const float *q, int64_t lanes, const float *k, int64_t padded, int64_t words,
                  int64_t tokens, const float *mask, int64_t mask_key, float scale, float *logits,
                  int rows, int pairs) {
    int64_t j = 0;
#define PART(keys)                                                                              \
    for (; j + keys <= tokens; j += keys)                                                       \
        score_block(q, lanes, k + j * padded, padded, words, mask ? mask + j * mask_key : NULL, \
                    mask_key, scale, logits + j * QUERIES * LANES, rows, keys, pairs);
    PART(KEYS) PART(1)
#undef PART
}

/* sums[c][r] = sum of p[j][r] v[j][c] over `words`, times factor[r]. */
INLINE void sum_block(const float *p, const float *v, int64_t padded, int64_t words,
                      const vec *factor, float *sums, int rows, int wide, int pairs) {
    vec sum[QUERIES][CHANNELS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < wide; c++) sum[r][c] = all(0);
    for (int64_t j = 0; j < words; j++) {
        vec weight[QUERIES];
        UNROLL for (int r = 0; r < rows; r++) weight[r] = load(p + (j * QUERIES + r) * LANES);
        UNROLL for (int c = 0; c < wide; c++) {
            float value = v[j * padded + c];
            UNROLL for (int r = 0; r < rows; r++)
                sum[r][c] = add_product(sum[r][c], weight[r], value, pairs);
        }
    }
    UNROLL for (int c = 0; c < wide; c++)
        UNROLL for (int r = 0; r < rows; r++)
            store(sums + (c * QUERIES + r) * LANES, sum[r][c] * factor[r]);
}

/* Replace logits by exp(logit - the query's largest logit); return 1 / the sum of the results. */
INLINE vec weigh(float *logits, int64_t tokens) {
    vec largest = load(logits), total = all(0);
    for (int64_t j = 1; j < tokens; j++)
        largest = larger(load(logits + j * QUERIES * LANES), largest);
    for (int64_t j = 0; j < tokens; j++) {
        vec e = exponential(load(logits + j * QUERIES * LANES) - largest);
        total += e;
        store(logits + j * QUERIES * LANES, e);
    }
    return 1 / total;
}

/* Combine the weights of two neighbouring keys to pairs; a last single weight is paired with 0. */
INLINE void pair_weights(float *weights, int64_t tokens) {
    for (int64_t j = 0; j < tokens; j += 2) {
        vec second = j + 1 < tokens ? load(weights + (j + 1) * QUERIES * LANES) : all(0);
        store(weights + j / 2 * QUERIES * LANES, pair(load(weights + j * QUERIES * LANES), second));
    }
}

/* Outputs of `rows` vectors of queries; `first` is the index of the first query. */
INLINE void group(const task_t *t, const parts_t *parts, const float *mask, int64_t first, int rows,
                  int pairs) {
    int64_t tokens = t->rows * t->columns;
    int64_t lanes = round_up(tokens, LANES), padded = round_up(t->width, LANES);
    score(parts->queries + first, lanes, parts->keys, padded, pairs ? t->width / 2 : t->width,
          tokens, mask ? mask + first : NULL, t->mask_key, t->scale, parts->logits, rows, pairs);
    vec factor[QUERIES];
    UNROLL for (int r = 0; r < rows; r++) {
        factor[r] = weigh(parts->logits + r * LANES, tokens);
        if (pairs) pair_weights(parts->logits + r * LANES, tokens);
    }
    int64_t c = 0, words = pairs ? (tokens + 1) / 2 : tokens;
#define PART(wide)                                                         \
    for (; c + wide <= t->width; c += wide)                                \
        sum_block(parts->logits, parts->values + c, padded, words, factor, \
                  parts->sums + c * QUERIES * LANES, rows, wide, pairs);
    PART(CHANNELS) PART(1)
#undef PART
}

/* ---- reading and writing maps ---- */

typedef struct {
    const map_t *map;
    int64_t start; /* offset of the head in its window */
    int64_t columns, width;
} tokens_t;

static tokens_t tokens_of(const task_t *t, const map_t *map, int64_t image, int64_t window,
                          int64_t head) {
    int64_t row = window / t->across * t->rows, column = window % t->across * t->columns;
    int64_t start = image * map->image + row * map->row + column * map->column;
    return (tokens_t){map, start + head * map->channel, t->columns, t->width};
}

INLINE int64_t token_at(const tokens_t *x, int64_t i) {
    return x->start + i / x->columns * x->map->row + i % x->columns * x->map->column;
}

static void copy_tokens(const tokens_t *from, int64_t tokens, float *to, int64_t padded) {
    for (int64_t j = 0; j < tokens; j++) {
        int64_t at = token_at(from, j);
        for (int64_t c = 0; c < from->width; c += LANES)
            store(to + j * padded + c, read(from->map, at + c, from->width - c));
    }
}

/* View tokens as words; each word is a pair of channels. */
static tokens_t paired(tokens_t x, map_t *words) {
    *words = (map_t){x.map->data, 0, 0, x.map->row / 2, x.map->column / 2, 0};
    return (tokens_t){words, x.start / 2, x.columns, x.width / 2};
}

/* Copy tokens to words; each word is one channel of a pair of tokens. */
static void pair_tokens(const tokens_t *from, int64_t tokens, float *to, int64_t padded) {
    const uint16_t *data = from->map->data;
    for (int64_t j = 0; j < tokens; j += 2) {
        const uint16_t *a = data + token_at(from, j);
        const uint16_t *b = j + 1 < tokens ? data + token_at(from, j + 1) : a;
        for (int64_t c = 0; c < from->width; c++) {
            uint32_t word = a[c] | (uint32_t)(j + 1 < tokens ? b[c] : 0) << 16;
            memcpy(to + j / 2 * padded + c, &word, sizeof word);
        }
    }
}

static void cut_queries(const tokens_t *from, int64_t tokens, float *to, int64_t lanes) {
    for (int64_t c = 0; c < from->width; c += LANES)
        for (int64_t i = 0; i < lanes; i += LANES) {
            vec square[LANES];
            UNROLL for (int l = 0; l < LANES; l++) {
                square[l] = all(0);
                if (i + l < tokens)
                    square[l] = read(from->map, token_at(from, i + l) + c, from->width - c);
            }
            transpose(square);
            UNROLL for (int k = 0; k < LANES; k++)
                if (c + k < from->width) store(to + (c + k) * lanes + i, square[k]);
        }
}

static void write_outputs(const float *sums, const tokens_t *to, int64_t tokens, int64_t first) {
    for (int64_t c = 0; c < to->width; c += LANES) {
        vec square[LANES];
        UNROLL for (int k = 0; k < LANES; k++)
            square[k] = c + k < to->width ? load(sums + (c + k) * QUERIES * LANES) : all(0);
        transpose(square);
        UNROLL for (int l = 0; l < LANES; l++)
            if (first + l < tokens)
                write(to->map, token_at(to, first + l) + c, to->width - c, square[l]);
    }
}

/* ---- tasks ---- */

INLINE void attend(const task_t *t, const parts_t *parts, const map_t *maps, const float *mask,
                   int64_t image, int64_t window, int64_t head, int pairs) {
    int64_t tokens = t->rows * t->columns;
    int64_t lanes = round_up(tokens, LANES), padded = round_up(t->width, LANES);
    if (mask) mask += window * t->mask_window + head * t->mask_head;
    tokens_t q = tokens_of(t, &maps[0], image, window, head);
    tokens_t k = tokens_of(t, &maps[1], image, window, head);
    tokens_t v = tokens_of(t, &maps[2], image, window, head);
    tokens_t y = tokens_of(t, &maps[3], image, window, head);
    map_t words[2];
    if (pairs) q = paired(q, &words[0]), k = paired(k, &words[1]);
    cut_queries(&q, tokens, parts->queries, lanes);
    copy_tokens(&k, tokens, parts->keys, padded);
    if (pairs)
        pair_tokens(&v, tokens, parts->values, padded);
    else
        copy_tokens(&v, tokens, parts->values, padded);
    int64_t vectors = lanes / LANES, groups = (vectors + QUERIES - 1) / QUERIES;
    for (int64_t g = 0; g < groups; g++) { /* groups of nearly equal size */
        int64_t first = g * vectors / groups, rows = (g + 1) * vectors / groups - first;
        switch (rows) {
            case 1: group(t, parts, mask, first * LANES, 1, pairs); break;
            case 2: group(t, parts, mask, first * LANES, 2, pairs); break;
            case 3: group(t, parts, mask, first * LANES, 3, pairs); break;
        }
        for (int64_t r = 0; r < rows; r++)
            write_outputs(parts->sums + r * LANES, &y, tokens, (first + r) * LANES);
    }
}

/* Return whether pairs of channels are aligned words in memory. */
static int fits_pairs(const task_t *t, const map_t *maps) {
    if (t->width % 2) return 0;
    for (int i = 0; i < 3; i++) {
        int64_t odd = maps[i].image | maps[i].channel | maps[i].row | maps[i].column;
        if (!maps[i].half || odd % 2 || (uintptr_t)maps[i].data % 4) return 0;
    }
    return 1;
}

int omp_get_thread_num(void);

/* Maps: q, k, v, y. Mask: (windows or 1, heads or 1, keys, queries), or NULL. */
void heads(const task_t *t, const map_t *maps, const float *mask, float *workspace) {
    int64_t windows = t->down * t->across;
    int pairs = HAS_PAIRS && fits_pairs(t, maps);
#pragma omp parallel num_threads(t->threads)
    {
        parts_t parts;
        int64_t size = divide(t, NULL, &parts);
        float *start = (float *)round_up((int64_t)workspace, 4 * LANES);
        divide(t, start + omp_get_thread_num() * size, &parts);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < t->batch * windows * t->heads; i++) {
            int64_t image = i / t->heads / windows, window = i / t->heads % windows;
            pairs ? attend(t, &parts, maps, mask, image, window, i % t->heads, 1)
                  : attend(t, &parts, maps, mask, image, window, i % t->heads, 0);
        }
    }
}
