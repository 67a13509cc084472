/* Vectors of floats, as GCC and Clang write them for every processor.

   Maps come in float32 or bfloat16 and with any strides; everything is computed in float32. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#else
#define LANES 8
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));

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

/* Read up to a vector of elements that lie one after another; the others are 0. */
INLINE vec read(const map_t *map, int64_t at, int64_t count) {
    if (map->half) {
        hvec h = {0};
        const uint16_t *p = (const uint16_t *)map->data + at;
        count < LANES ? memcpy(&h, p, 2 * count) : memcpy(&h, p, sizeof h);
        return (vec)(__builtin_convertvector(h, uvec) << 16);
    }
    vec v = {0};
    const float *p = (const float *)map->data + at;
    count < LANES ? memcpy(&v, p, 4 * count) : memcpy(&v, p, sizeof v);
    return v;
}

/* Write up to a vector of elements; bfloat16 is rounded to the nearest, to even ones in doubt. */
INLINE void write(const map_t *map, int64_t at, int64_t count, vec v) {
    if (map->half) {
        uvec u = (uvec)v, nan = (uvec)(v != v);
        u = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
        hvec h = __builtin_convertvector((u & ~nan) | (0x7fc0 & nan), hvec);
        uint16_t *p = (uint16_t *)map->data + at;
        count < LANES ? memcpy(p, &h, 2 * count) : memcpy(p, &h, sizeof h);
    } else {
        float *p = (float *)map->data + at;
        count < LANES ? memcpy(p, &v, 4 * count) : memcpy(p, &v, sizeof v);
    }
}

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

/* Transpose a square: log2(LANES) times, its first half is shuffled into its second one. */
INLINE void transpose(vec *a) {
#if LANES == 16
    const ivec low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}, high = low + 8;
#else
    const ivec low = {0, 8, 1, 9, 2, 10, 3, 11}, high = low + 4;
#endif
    vec b[LANES];
    UNROLL for (int stage = 1; stage < LANES; stage *= 2) {
        UNROLL for (int i = 0; i < LANES / 2; i++) {
            b[2 * i] = __builtin_shuffle(a[i], a[i + LANES / 2], low);
            b[2 * i + 1] = __builtin_shuffle(a[i], a[i + LANES / 2], high);
        }
        UNROLL for (int i = 0; i < LANES; i++) a[i] = b[i];
    }
}

/* e^x of numbers up to 0, within 2 units in the last place; below -87 it is e^-87, next to 0.
   With n the integer next to x / log 2: 2^n times a polynomial of the rest (Cephes, expf). */
INLINE vec exponential(vec x) {
    const float integers = 12582912; /* from here on floats have no fractions */
    x = where(x < -87, all(-87), x);
    vec n = x * 1.44269504088896341f + integers;
    ivec exponent = (ivec)n << 23;
    n -= integers;
    x = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec y = all(1.9875691500e-4f);
    y = y * x + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * x * x + x + 1;
    return (vec)((ivec)y + exponent);
}
