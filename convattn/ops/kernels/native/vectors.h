/* Vectors of floats, by the vector extensions of GCC and Clang, for every processor.

   Maps are float32 or bfloat16 and have any strides; all results are computed in float32. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#else
#define LANES 8
#endif

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
/* clang warns about loops that it does not unroll */
#pragma clang diagnostic ignored "-Wpass-failed"
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));

/* Change it with every change of a signature or a struct, here and in `library.py`. */
#define ABI_VERSION 1
#define ABI(task_size) \
    ((int64_t)ABI_VERSION << 32 | (int64_t)(task_size) << 16 | (int64_t)sizeof(map_t))

/* A map (B, C, H, W) and its strides, in elements. */
typedef struct {
    void *data;
    int64_t image, channel, row, column;
    int64_t half; /* whether it is bfloat16 */
} map_t;

INLINE vec load(const float *p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(float *p, vec v) { memcpy(p, &v, sizeof v); }

INLINE vec all(float x) { return x - (vec){0}; }

INLINE vec where(ivec which, vec a, vec b) {
    return (vec)((which & (ivec)a) | (~which & (ivec)b));
}

/* Lane by lane, the larger of a and b; NaN if b is NaN. */
INLINE vec larger(vec a, vec b) {
#if LANES == 16
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return where(a > b, a, b);
#endif
}

/* Read the first elements of a vector from memory and set the others to 0, or write the first
   elements to memory. */
#if defined(__AVX512BW__) && defined(__AVX512VL__)
#define MASK(count) ((__mmask16)((1u << (count)) - 1))
INLINE vec read_floats(const float *p, int64_t count) {
    return (vec)_mm512_maskz_loadu_ps(MASK(count), p);
}
INLINE hvec read_halves(const uint16_t *p, int64_t count) {
    return (hvec)_mm256_maskz_loadu_epi16(MASK(count), p);
}
INLINE void write_floats(float *p, int64_t count, vec v) {
    _mm512_mask_storeu_ps(p, MASK(count), (__m512)v);
}
INLINE void write_halves(uint16_t *p, int64_t count, hvec h) {
    _mm256_mask_storeu_epi16(p, MASK(count), (__m256i)h);
}
#else
INLINE vec read_floats(const float *p, int64_t count) {
    vec v = {0};
    memcpy(&v, p, 4 * count);
    return v;
}
INLINE hvec read_halves(const uint16_t *p, int64_t count) {
    hvec h = {0};
    memcpy(&h, p, 2 * count);
    return h;
}
INLINE void write_floats(float *p, int64_t count, vec v) { memcpy(p, &v, 4 * count); }
INLINE void write_halves(uint16_t *p, int64_t count, hvec h) { memcpy(p, &h, 2 * count); }
#endif

/* Return a mask: all bits are 1 in the first `count` lanes, and 0 in the others. */
INLINE ivec first_lanes(int64_t count) {
    ivec lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return lane < (int32_t)(count < LANES ? count : LANES);
}

/* Read up to a vector of contiguous elements; the other lanes are 0. */
INLINE vec read(const map_t *map, int64_t at, int64_t count) {
    if (map->half) {
        const uint16_t *p = (const uint16_t *)map->data + at;
        hvec h;
        count < LANES ? (void)(h = read_halves(p, count)) : (void)memcpy(&h, p, sizeof h);
        return (vec)(__builtin_convertvector(h, uvec) << 16);
    }
    const float *p = (const float *)map->data + at;
    return count < LANES ? read_floats(p, count) : load(p);
}

/* Round to the nearest bfloat16, ties to even. The instruction rounds magnitudes below 2^-126 to 0.
 */
INLINE hvec round_to_half(vec v) {
#if defined(__AVX512BF16__)
    return (hvec)_mm512_cvtneps_pbh((__m512)v);
#else
    uvec u = (uvec)v, nan = (uvec)(v != v);
    u = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    return __builtin_convertvector((u & ~nan) | (0x7fc0 & nan), hvec);
#endif
}

/* Write up to a vector of contiguous elements. */
INLINE void write(const map_t *map, int64_t at, int64_t count, vec v) {
    if (map->half) {
        uint16_t *p = (uint16_t *)map->data + at;
        hvec h = round_to_half(v);
        count < LANES ? write_halves(p, count, h) : (void)memcpy(p, &h, sizeof h);
    } else {
        float *p = (float *)map->data + at;
        count < LANES ? write_floats(p, count, v) : store(p, v);
    }
}

INLINE int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

INLINE float read_one(const map_t *map, int64_t at) {
    if (!map->half) return ((const float *)map->data)[at];
    uint32_t u = (uint32_t)((const uint16_t *)map->data)[at] << 16;
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

INLINE void prefetch(const map_t *map, int64_t at) {
    __builtin_prefetch((const char *)map->data + (map->half ? 2 : 4) * at);
}

#if LANES == 16
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#else
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#endif
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else /* GCC has __builtin_shufflevector since version 12 */
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

/* Transpose a LANES x LANES matrix: log2(LANES) times, the first half of its rows is interleaved
   with the second half. */
INLINE void transpose(vec *a) {
    vec b[LANES];
    UNROLL for (int stage = 1; stage < LANES; stage *= 2) {
        UNROLL for (int i = 0; i < LANES / 2; i++) {
            b[2 * i] = SHUFFLE(a[i], a[i + LANES / 2], LOW);
            b[2 * i + 1] = SHUFFLE(a[i], a[i + LANES / 2], HIGH);
        }
        UNROLL for (int i = 0; i < LANES; i++) a[i] = b[i];
    }
}

/* Return e^x for x up to 87, with an error of at most 2 units in the last place. For x below -87
   the result is 0. n is the integer nearest to x / log 2, and the result is 2^n times a polynomial
   of the remainder (Cephes, expf). The result for NaN is NaN, since 2^n is multiplied, and its bits
   are not added to the exponent. */
INLINE vec exponential(vec x) {
    const float integers = 12582912 + 127; /* floats from 12582912 on are integers */
    ivec tiny = x < -87;
    vec n = x * 1.44269504088896341f + integers;
    vec power = (vec)((ivec)n << 23); /* the bias of the exponent is 127 */
    n -= integers;
    x = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec y = all(1.9875691500e-4f);
    y = y * x + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * x * x + x + 1;
    return (vec)((ivec)(y * power) & ~tiny);
}
