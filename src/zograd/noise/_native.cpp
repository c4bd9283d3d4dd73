// Noise kernels: Philox4x32-10 signs, normals and rounding draws, fused with the weight update.
//
// __init__.py fixes the format (which bit of which Philox word belongs to which element); reference.py is a readable
// implementation of it. This file is the fast one: plain loops that GCC and Clang vectorise, and for x86-64
// hand-vectorised Philox and look-ups of normals.
// C ABI, no Python or torch headers; native.py calls it through ctypes.
//
// A tensor is processed in tiles of 2048 consecutive element indices (one Philox sign block). For each tile, all noise
// terms are summed into a buffer v in the first-level cache, so weights are read once and written once, whatever the
// number of terms.
//
// Compile with -ffp-contract=off: a fused multiply-add would change the last bit.

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#include <immintrin.h>
#endif

#include "native.h"

#if defined(_MSC_VER) && !defined(__clang__)
#define PREFETCH(address) ((void)(address))
#else
#define PREFETCH(address) __builtin_prefetch(address)
#endif

#if defined(__clang__)
#define UNROLL10 _Pragma("clang loop unroll_count(10)")
#elif defined(__GNUC__)
#define UNROLL10 _Pragma("GCC unroll 10")
#endif

namespace {

constexpr int64_t ABI = 6;
constexpr int TILE = 2048;

enum Stream : uint32_t { SIGNS = 0, NORMALS = 1, ROUNDING = 2, FOLD = 3 };
enum Kind : int64_t { SIGN = 0, NORMAL = 1 };
enum Dtype : int64_t { F32 = 0, F64 = 1, BF16 = 2, F16 = 3 };
enum Mode : int64_t { NEAREST = 0, STOCHASTIC = 1, SPLIT = 2, PAIR = 3 };

// Both structs are packed by native.py with struct.Struct; every field is 8 bytes.
struct Term {
    int64_t kind;
    uint64_t key;
    double coef;
};

struct Call {
    int64_t dtype, mode, threads, n_terms;
    int64_t n;         // elements (combine) or elements per row (combine_rows)
    int64_t start;     // index of the first element (combine)
    int64_t n_rows;    // combine_rows only
    uint64_t leaf, round_key;
    double scale, dense_coef;
    uint64_t out, x, dense, low, rows, minus, table;  // addresses, 0 when absent
};

template <class To, class From>
INLINE To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// condition ? yes : no, without a branch. GCC may take chains of ?: for control flow, and then vectorises nothing.
template <class U>
INLINE U select(bool condition, U yes, U no) {
    const U mask = U(0) - U(condition);
    return (yes & mask) | (no & ~mask);
}

// ---------------------------------------------------------------------------------------------------------- Philox

constexpr uint32_t W0 = 0x9E3779B9u, W1 = 0xBB67AE85u;  // what the key grows by each round

INLINE void round_(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t k0, uint32_t k1) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0, c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1, c3 = uint32_t(p0);
}

// words[16 k + lane] = word k of Philox4x32-10(counter = (16 block + lane, leaf, stream), key). The ten rounds are
// unrolled by hand, so that the compiler vectorises the loop over lanes.
INLINE void philox16(uint64_t key, uint64_t block, uint32_t leaf, uint32_t stream, uint32_t* words) {
    const uint64_t q = block * 16;  // a multiple of 16: lanes never carry into the high word
    const uint32_t q0 = uint32_t(q), q1 = uint32_t(q >> 32);
    const uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
    for (uint32_t lane = 0; lane < 16; ++lane) {
        uint32_t c0 = q0 + lane, c1 = q1, c2 = leaf, c3 = stream;
        round_(c0, c1, c2, c3, k0, k1);
        round_(c0, c1, c2, c3, k0 + W0, k1 + W1);
        round_(c0, c1, c2, c3, k0 + 2 * W0, k1 + 2 * W1);
        round_(c0, c1, c2, c3, k0 + 3 * W0, k1 + 3 * W1);
        round_(c0, c1, c2, c3, k0 + 4 * W0, k1 + 4 * W1);
        round_(c0, c1, c2, c3, k0 + 5 * W0, k1 + 5 * W1);
        round_(c0, c1, c2, c3, k0 + 6 * W0, k1 + 6 * W1);
        round_(c0, c1, c2, c3, k0 + 7 * W0, k1 + 7 * W1);
        round_(c0, c1, c2, c3, k0 + 8 * W0, k1 + 8 * W1);
        round_(c0, c1, c2, c3, k0 + 9 * W0, k1 + 9 * W1);
        words[lane] = c0;
        words[16 + lane] = c1;
        words[32 + lane] = c2;
        words[48 + lane] = c3;
    }
}

// The primitives of noise, once per instruction set. They are not inlined: one call per tile costs nothing.
//   words:   words[64 b + 16 k + lane] = word k of Philox(counter = (16 (block + b) + lane, leaf, stream)), b < count
//   normals: v[128 b + e] = coef * z or (without `first`) v[128 b + e] + coef * z, z the normal of element e of block
//            `block + b` of 128
// `ahead` and `ahead_bytes`: while block b is computed, prefetch from ahead + b * ahead_bytes.
struct Makers {
    void (*words)(uint64_t key, uint64_t block, int count, uint32_t leaf, uint32_t stream, uint32_t* words,
                  uint64_t ahead, int ahead_bytes);
    void (*normals)(uint64_t key, uint64_t block, int count, uint32_t leaf, const float* table, float coef, bool first,
                    float* v, uint64_t ahead, int ahead_bytes);
};

INLINE void prefetch(uint64_t from, int bytes) {
    for (int i = 0; i < bytes; i += 64) PREFETCH(reinterpret_cast<const char*>(from + uint64_t(i)));
}

// u: a 16-bit draw in the low half; the upper half is ignored.
INLINE float normal_of(uint32_t u, const float* table) {
    return bits<float>(bits<uint32_t>(table[u & 0x7fffu]) ^ ((u << 16) & 0x80000000u));
}

void words_0(uint64_t key, uint64_t block, int count, uint32_t leaf, uint32_t stream, uint32_t* words, uint64_t ahead,
             int ahead_bytes) {
    for (int b = 0; b < count; ++b) {
        prefetch(ahead + uint64_t(b) * uint64_t(ahead_bytes), ahead_bytes);
        philox16(key, block + uint64_t(b), leaf, stream, words + 64 * b);
    }
}

void normals_0(uint64_t key, uint64_t block, int count, uint32_t leaf, const float* table, float coef, bool first,
               float* v, uint64_t ahead, int ahead_bytes) {
    alignas(64) uint32_t words[64];
    for (int b = 0; b < count; ++b) {
        prefetch(ahead + uint64_t(b) * uint64_t(ahead_bytes), ahead_bytes);
        philox16(key, block + uint64_t(b), leaf, NORMALS, words);
        for (int j = 0; j < 64; ++j) {
            float *const low = v + 128 * b + j, *const high = low + 64;
            const float cz_low = coef * normal_of(words[j], table), cz_high = coef * normal_of(words[j] >> 16, table);
            *low = first ? cz_low : *low + cz_low;
            *high = first ? cz_high : *high + cz_high;
        }
    }
}

#if LEVELS == 3
constexpr uint64_t LANES[8] = {0, 1, 2, 3, 4, 5, 6, 7};

// Vectorised by hand, because compilers use vpmullq (three multiplications) where vpmuludq suffices, and load the table
// element by element. Each 64-bit lane holds one counter word in its lower half; the upper half is undefined.
using Wide1 = uint64_t __attribute__((vector_size(32)));
using Wide2 = uint64_t __attribute__((vector_size(64)));
using Half1 = uint32_t __attribute__((vector_size(32)));
using Half2 = uint32_t __attribute__((vector_size(64)));
using Float1 = float __attribute__((vector_size(32)));
using Float2 = float __attribute__((vector_size(64)));

#define MULTIPLY_1(a, b) Wide1(_mm256_mul_epu32(__m256i(a), __m256i(b)))
#define MULTIPLY_2(a, b) Wide2(_mm512_mul_epu32(__m512i(a), __m512i(b)))
// Moves the upper half of each lane to its lower half. A shuffle, because shifts would compete with multiplications.
#define UPPER_1(a) Wide1(_mm256_shuffle_epi32(__m256i(a), 0xf5))
#define UPPER_2(a) Wide2(_mm512_shuffle_epi32(__m512i(a), _MM_PERM_ENUM(0xf5)))
// The lower halves of a, then those of b.
#define LOWER_1(a, b)                                                                                              \
    Half1(_mm256_permute4x64_epi64(                                                                                \
        __m256i(_mm256_shuffle_ps(__m256(a), __m256(b), 0x88)), 0xd8))
#define LOWER_2(a, b)                                                                                              \
    Half2(_mm512_permutex2var_epi32(__m512i(a),                                                                    \
                                    _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0),   \
                                    __m512i(b)))
#define LOOK_UP_1(table, index) Half1(_mm256_i32gather_ps(table, __m256i(index), 4))
#define LOOK_UP_2(table, index) Half2(_mm512_i32gather_ps(__m512i(index), table, 4))

// Ten rounds on the counters q, q + 1, ... (16 of them, 8 with AVX2); then w[k] holds word k of each. NEXT runs after
// round r. It processes the words of the previous step, so that table look-ups and multiplications overlap.
#define PHILOX(L, q, stream, w, NEXT)                                                                                 \
    Wide##L c[4][2];                                                                                                  \
    for (int h = 0; h < 2; ++h) {                                                                                     \
        std::memcpy(&c[0][h], LANES, sizeof(Wide##L));                                                                \
        c[0][h] += (q) + uint64_t(h) * (sizeof(Wide##L) / 8);                                                         \
        c[1][h] = Wide##L{} + ((q) >> 32);                                                                            \
        c[2][h] = Wide##L{} + uint64_t(leaf);                                                                         \
        c[3][h] = Wide##L{} + uint64_t(stream);                                                                       \
    }                                                                                                                 \
    uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);                                                            \
    UNROLL10                                                                                                          \
    for (int r = 0; r < 10; ++r) {                                                                                    \
        for (int h = 0; h < 2; ++h) {                                                                                 \
            const Wide##L p0 = MULTIPLY_##L(c[0][h], M0), p1 = MULTIPLY_##L(c[2][h], M1);                             \
            c[0][h] = UPPER_##L(p1) ^ c[1][h] ^ uint64_t(k0), c[1][h] = p1;                                           \
            c[2][h] = UPPER_##L(p0) ^ c[3][h] ^ uint64_t(k1), c[3][h] = p0;                                           \
        }                                                                                                             \
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;                                                                         \
        NEXT                                                                                                          \
    }                                                                                                                 \
    for (int k = 0; k < 4; ++k) w[k] = LOWER_##L(c[k][0], c[k][1]);

// at[0 ..] = coef * z or at[0 ..] + coef * z, z the normals of the 16-bit draws in the upper or lower halves of w.
#define PUT_NORMALS(L, w, upper, at)                                                                                  \
    const Half##L index = (upper) ? ((w) >> 16) & 0x7fffu : (w) & 0x7fffu;                                            \
    const Half##L sign = ((upper) ? (w) : (w) << 16) & 0x80000000u;                                                   \
    Float##L cz = coef * Float##L(LOOK_UP_##L(table, index) ^ sign);                                                  \
    if (!first) {                                                                                                     \
        Float##L before;                                                                                              \
        std::memcpy(&before, at, sizeof before);                                                                      \
        cz = before + cz;                                                                                             \
    }                                                                                                                 \
    std::memcpy(at, &cz, sizeof cz);

#define MAKERS(L, TARGET)                                                                                             \
    TARGET void words_##L(uint64_t key, uint64_t block, int count, uint32_t leaf, uint32_t stream, uint32_t* words,   \
                          uint64_t ahead, int ahead_bytes) {                                                          \
        const Wide##L M0 = Wide##L{} + uint64_t(0xD2511F53u), M1 = Wide##L{} + uint64_t(0xCD9E8D57u);                 \
        constexpr int STEP = sizeof(Half##L) / 4;                                                                     \
        for (int i = 0; i < 16 * count; i += STEP) {                                                                  \
            const uint64_t q = block * 16 + uint64_t(i);                                                              \
            if (i % 16 == 0) prefetch(ahead + uint64_t(i / 16) * uint64_t(ahead_bytes), ahead_bytes);                 \
            Half##L w[4];                                                                                             \
            PHILOX(L, q, stream, w, )                                                                                 \
            for (int k = 0; k < 4; ++k) std::memcpy(words + 64 * (i / 16) + 16 * k + i % 16, &w[k], sizeof w[k]);     \
        }                                                                                                             \
    }                                                                                                                 \
    TARGET void normals_##L(uint64_t key, uint64_t block, int count, uint32_t leaf, const float* table, float coef,   \
                            bool first, float* v, uint64_t ahead, int ahead_bytes) {                                  \
        const Wide##L M0 = Wide##L{} + uint64_t(0xD2511F53u), M1 = Wide##L{} + uint64_t(0xCD9E8D57u);                 \
        constexpr int STEP = sizeof(Half##L) / 4;                                                                     \
        Half##L w[4] = {};                                                                                            \
        alignas(64) float nowhere[128] = {};                                                                          \
        for (int i = 0; i <= 16 * count; i += STEP) { /* the last step only uses the words of the one before */       \
            const uint64_t q = block * 16 + uint64_t(i);                                                              \
            const int done = i - STEP;                                                                                \
            float* const to = i ? v + 128 * (done / 16) + done % 16 : nowhere;                                        \
            if (i % 16 == 0) prefetch(ahead + uint64_t(i / 16) * uint64_t(ahead_bytes), ahead_bytes);                 \
            PHILOX(L, q, NORMALS, w, if (r < 8) {                                                                     \
                float* const at = to + 16 * (r >> 1) + 64 * (r & 1);                                                  \
                PUT_NORMALS(L, w[r >> 1], r & 1, at)                                                                  \
            })                                                                                                        \
        }                                                                                                             \
    }

MAKERS(1, LEVEL1)
MAKERS(2, LEVEL2)
constexpr Makers makers[3] = {{words_0, normals_0}, {words_1, normals_1}, {words_2, normals_2}};
#else
constexpr Makers makers[1] = {{words_0, normals_0}};
#endif

// draws[e], from <= e < to (multiples of 128): the 16-bit draws of one tile for stochastic rounding.
template <int LEVEL>
INLINE void draws16(uint64_t key, uint32_t leaf, uint64_t tile, int from, int to, uint16_t* draws, uint64_t ahead,
                    int ahead_bytes) {
    alignas(64) uint32_t words[TILE / 2];
    const int blocks = (to - from) / 128;
    makers[LEVEL].words(key, tile * 16 + uint64_t(from >> 7), blocks, leaf, ROUNDING, words, ahead, ahead_bytes);
    for (int b = 0; b < blocks; ++b) {
        for (int j = 0; j < 64; ++j) draws[from + 128 * b + j] = uint16_t(words[64 * b + j]);
        for (int j = 0; j < 64; ++j) draws[from + 128 * b + 64 + j] = uint16_t(words[64 * b + j] >> 16);
    }
}

// ------------------------------------------------------------------------------------------------- terms, into v[]

INLINE float flip(float a, uint32_t sign_bit) { return bits<float>(bits<uint32_t>(a) ^ sign_bit); }
INLINE double flip(double a, uint32_t sign_bit) { return bits<double>(bits<uint64_t>(a) ^ (uint64_t(sign_bit) << 32)); }

template <bool FIRST, class A>
INLINE void accumulate_signs(A coef, const uint32_t* words, int from, int to, A* v) {
    for (int w = from >> 5; w < to >> 5; ++w) {
        const uint32_t word = words[w];
        A* const vw = v + 32 * w;
        for (int j = 0; j < 32; ++j) {
            const A cz = flip(coef, (word << (31 - j)) & 0x80000000u);
            vw[j] = FIRST ? cz : vw[j] + cz;
        }
    }
}

template <int LEVEL, class A>
INLINE void accumulate(const Term& term, bool first, uint32_t leaf, const float* table, uint64_t tile, int from, int to,
                       A* v, uint64_t ahead, int ahead_bytes) {
    if (term.kind == SIGN) {
        alignas(64) uint32_t words[64];
        makers[LEVEL].words(term.key, tile, 1, leaf, SIGNS, words, 0, 0);
        if (first) accumulate_signs<true>(A(term.coef), words, from, to, v);
        else accumulate_signs<false>(A(term.coef), words, from, to, v);
    } else {
        const uint64_t block = tile * 16 + uint64_t(from >> 7);
        const int count = (to - from) / 128;
        if constexpr (sizeof(A) == sizeof(float)) {
            makers[LEVEL].normals(term.key, block, count, leaf, table, term.coef, first, v + from, ahead, ahead_bytes);
        } else {
            alignas(64) float z[TILE];
            makers[LEVEL].normals(term.key, block, count, leaf, table, 1.0f, true, z + from, ahead, ahead_bytes);
            for (int e = from; e < to; ++e) {
                const A cz = term.coef * A(z[e]);
                v[e] = first ? cz : v[e] + cz;
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------- number formats
// load: stored bits -> arithmetic type. nearest: round half to even. stochastic: up with probability (t - down) / ulp.
// join / split: the 32-bit master code held as (16-bit float, 16 low bits).

// Every NaN becomes the canonical quiet NaN; infinities are kept; stochastic and split keep finite values finite.

struct Float32 {
    using Bits = uint32_t;
    using Acc = float;
    INLINE float load(uint32_t b) { return bits<float>(b); }
    INLINE uint32_t nearest(float t) { return bits<uint32_t>(t); }
};

struct Float64 {
    using Bits = uint64_t;
    using Acc = double;
    INLINE double load(uint64_t b) { return bits<double>(b); }
    INLINE uint64_t nearest(double t) { return bits<uint64_t>(t); }
};

struct BFloat16 {
    using Bits = uint16_t;
    using Acc = float;
    using Master = float;

    INLINE float load(uint16_t b) { return bits<float>(uint32_t(b) << 16); }

    INLINE uint16_t nearest(float t) {
        const uint32_t u = bits<uint32_t>(t);
        const uint32_t r = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
        return uint16_t((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : r);
    }

    INLINE uint16_t stochastic(float t, uint32_t draw) {
        const uint32_t u = bits<uint32_t>(t), a = u & 0x7fffffffu;
        uint32_t r = (a + draw) >> 16;
        r = r > 0x7f7fu ? 0x7f7fu : r;
        r = select(a >= 0x7f800000u, 0x7f80u, r) | (u >> 31 << 15);
        return uint16_t(select(a > 0x7f800000u, 0x7fc0u, r));
    }

    INLINE float join(uint32_t hi, uint32_t lo) {  // the code is the float32 pattern of the master
        const uint32_t code = (((hi & 0x7fffu) - (lo >> 15)) << 16 | lo) & 0x7fffffffu;
        return bits<float>(code | (hi & 0x8000u) << 16);
    }

    INLINE void split(float t, uint16_t& hi, uint16_t& lo) {
        const uint32_t u = bits<uint32_t>(t), a = u & 0x7fffffffu;
        uint32_t code = a > 0x7f7f7fffu ? 0x7f7f7fffu : a;
        code = select(a >= 0x7f800000u, 0x7f800000u, code);
        const uint32_t h = (code + 0x8000u) >> 16 | (u >> 31 << 15);
        hi = uint16_t(select(a > 0x7f800000u, 0x7fc0u, h));
        lo = uint16_t(code);
    }
};

struct Float16 {
    using Bits = uint16_t;
    using Acc = float;
    using Master = double;
    static constexpr uint64_t INFINITE = 0x7ff0000000000000u;

    INLINE float load(uint16_t b) {
        const uint32_t m = b & 0x7fffu, wide = m << 13;
        const float normal = bits<float>(wide + (224u << 23)) * 0x1p-112f;  // infinities and NaN included
        const float subnormal = bits<float>(wide + (113u << 23)) - 0x1p-14f;
        return flip(m < 0x0400u ? subnormal : normal, uint32_t(b & 0x8000u) << 16);
    }

    INLINE uint16_t nearest(float t) {
        const uint32_t u = bits<uint32_t>(t), a = u & 0x7fffffffu;
        // Adding 0.5 aligns the last bit with 2^-24, the spacing of subnormals, so the addition does the rounding.
        const uint32_t subnormal = bits<uint32_t>(bits<float>(a) + 0.5f) - 0x3f000000u;
        const uint32_t normal = (a - (112u << 23) + 0xfffu + ((a >> 13) & 1u)) >> 13;
        const uint32_t r = a < 0x38800000u ? subnormal : (normal > 0x7c00u ? 0x7c00u : normal);
        return uint16_t(a > 0x7f800000u ? 0x7e00u : r | (u >> 31 << 15));
    }

    INLINE uint16_t stochastic(float t, uint32_t draw) {
        const uint32_t u = bits<uint32_t>(t), a = u & 0x7fffffffu;
        const bool tiny = a < 0x38800000u;                               // below 2^-14
        const float s = bits<float>(select(tiny, a, 0u)) * 0x1p24f;  // n + f, exact
        const int32_t n = int32_t(s);
        const float f = s - float(n);
        const uint32_t subnormal = uint32_t(n) + uint32_t(float(int32_t(draw)) < f * 0x1p16f);
        const uint32_t normal = (a - (112u << 23) + (draw >> 3)) >> 13;
        uint32_t r = select(tiny, subnormal, normal > 0x7bffu ? 0x7bffu : normal);
        r = select(a >= 0x7f800000u, 0x7c00u, r) | (u >> 31 << 15);
        return uint16_t(select(a > 0x7f800000u, 0x7e00u, r));
    }

    INLINE double join(uint32_t hi, uint32_t lo) {  // the code is 5 exponent and 26 mantissa bits
        const uint32_t code = (((hi & 0x7fffu) - (lo >> 15)) << 16 | lo) & 0x7fffffffu;
        const uint64_t subnormal = bits<uint64_t>(double(int32_t(code)) * 0x1p-40);
        const uint64_t normal = (uint64_t(code) + (1008ull << 26)) << 26;
        const uint64_t infinite = uint64_t(code & 0x3ffffffu) << 26 | INFINITE;
        const uint64_t a = code < (1u << 26) ? subnormal : (code >= 31u << 26 ? infinite : normal);
        return bits<double>(a | uint64_t(hi & 0x8000u) << 48);
    }

    INLINE void split(double t, uint16_t& hi, uint16_t& lo) {
        const uint64_t u = bits<uint64_t>(t), a = u & 0x7fffffffffffffffull;
        const uint64_t subnormal = bits<uint64_t>(bits<double>(a) * 0x1p40 + 0x1p52) & 0xffffffffull;
        const uint64_t normal = ((a + ((1ull << 25) - 1) + ((a >> 26) & 1)) >> 26) - (1008ull << 26);
        uint64_t code = select(a < uint64_t(1009) << 52, subnormal, normal);  // below 2^-14
        code = code > 0x7bff7fffu ? 0x7bff7fffu : code;
        code = select(a >= INFINITE, uint64_t(0x7c000000), code);
        const uint64_t h = (code + 0x8000u) >> 16 | (u >> 63 << 15);
        hi = uint16_t(select(a > INFINITE, uint64_t(0x7e00), h));
        lo = uint16_t(code);
    }
};

// Blocks of float16 by the processor's conversion instructions instead of the integer arithmetic above, with the same
// bits: both round half to even, and every NaN becomes 0x7e00.
//   widen:  t[e] = x[e], exact
//   narrow: out[e] = nearest(t[e]); returns how many differ from before[e], which may be out[e] itself
struct Converters {
    void (*widen)(const uint16_t* x, float* t, int count);
    uint32_t (*narrow)(const float* t, const uint16_t* before, uint16_t* out, int count);
};

#if LEVELS == 3
LEVEL1 void widen_1(const uint16_t* x, float* t, int count) {
    int e = 0;
    for (; e + 8 <= count; e += 8)
        _mm256_storeu_ps(t + e, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + e))));
    for (; e < count; ++e) t[e] = Float16::load(x[e]);
}

LEVEL2 void widen_2(const uint16_t* x, float* t, int count) {
    int e = 0;
    for (; e + 16 <= count; e += 16)
        _mm512_storeu_ps(t + e, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + e))));
    for (; e < count; ++e) t[e] = Float16::load(x[e]);
}

INLINE uint32_t narrow_one(float t, const uint16_t* before, uint16_t* out) {
    const uint16_t was = *before;
    *out = Float16::nearest(t);
    return *out != was;
}

LEVEL1 uint32_t narrow_1(const float* t, const uint16_t* before, uint16_t* out, int count) {
    const __m128i nan = _mm_set1_epi16(0x7e00);
    uint32_t equal = 0;
    int e = 0;
    for (; e + 8 <= count; e += 8) {
        const __m256 wide = _mm256_loadu_ps(t + e);
        const __m128i was = _mm_loadu_si128(reinterpret_cast<const __m128i*>(before + e));
        const __m256i unordered = _mm256_castps_si256(_mm256_cmp_ps(wide, wide, _CMP_UNORD_Q));
        const __m128i is_nan = _mm_packs_epi32(_mm256_castsi256_si128(unordered), _mm256_extracti128_si256(unordered, 1));
        const __m128i half = _mm_blendv_epi8(_mm256_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT), nan, is_nan);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + e), half);
        equal += uint32_t(_mm_popcnt_u32(uint32_t(_mm_movemask_epi8(_mm_cmpeq_epi16(half, was))))) / 2;
    }
    uint32_t differ = uint32_t(e) - equal;
    for (; e < count; ++e) differ += narrow_one(t[e], before + e, out + e);
    return differ;
}

LEVEL2 uint32_t narrow_2(const float* t, const uint16_t* before, uint16_t* out, int count) {
    const __m256i nan = _mm256_set1_epi16(0x7e00);
    uint32_t differ = 0;
    int e = 0;
    for (; e + 16 <= count; e += 16) {
        const __m512 wide = _mm512_loadu_ps(t + e);
        const __m256i was = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(before + e));
        const __mmask16 is_nan = _mm512_cmp_ps_mask(wide, wide, _CMP_UNORD_Q);
        const __m256i half = _mm256_mask_mov_epi16(_mm512_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT), is_nan, nan);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + e), half);
        differ += uint32_t(_mm_popcnt_u32(_mm256_cmpneq_epi16_mask(half, was)));
    }
    for (; e < count; ++e) differ += narrow_one(t[e], before + e, out + e);
    return differ;
}

constexpr Converters converters[3] = {{nullptr, nullptr}, {widen_1, narrow_1}, {widen_2, narrow_2}};
#else
constexpr Converters converters[1] = {{nullptr, nullptr}};
#endif

template <int LEVEL, class D>
constexpr bool CONVERTS = LEVEL > 0 && std::is_same<D, Float16>::value;

// ------------------------------------------------------------------------------------------------------- the update

// Elements lo .. hi - 1 of a tile are wanted; noise is computed in whole blocks of 128: elements from .. to - 1.
// offset: the position of element lo in the tensors of the call.
struct Part {
    int lo, hi, from, to;
    int64_t offset;
};

INLINE Part part_of(const Call& call, int64_t tile) {
    const int64_t base = tile * TILE;
    const int lo = call.start > base ? int(call.start - base) : 0;
    const int hi = call.start + call.n < base + TILE ? int(call.start + call.n - base) : TILE;
    return {lo, hi, lo & ~127, (hi + 127) & ~127, base + lo - call.start};
}

// Does computing the noise take longer than loading the weights?
INLINE bool slow_to_make(const Call& call, const Term* terms) {
    bool slow = false;
    for (int64_t j = 0; j < call.n_terms; ++j) slow |= terms[j].kind == NORMAL;
    return slow;
}

template <int LEVEL, class D, int MODE, bool HAS_X>
INLINE int64_t combine_tiles(const Call& call, const Term* terms, int64_t first_tile, int64_t last_tile) {
    using Acc = typename D::Acc;
    using Bits = typename D::Bits;
    alignas(64) Acc v[TILE];
    const auto leaf = uint32_t(call.leaf);
    const auto* const table = reinterpret_cast<const float*>(call.table);
    const auto scale = Acc(call.scale), dense_coef = Acc(call.dense_coef);
    const bool slow = MODE == STOCHASTIC || slow_to_make(call, terms);
    const bool silent = call.n_terms == 0 && call.dense == 0;
    // Sums start from -0.0: t + (-0.0) == t for every t, zeros included, so no loop needs a case for "nothing to add".
    if (silent) for (int e = 0; e < TILE; ++e) v[e] = HAS_X ? Acc(-0.0) : Acc(0.0);

    int64_t moved = 0;
    for (int64_t tile = first_tile; tile < last_tile; ++tile) {
        const auto [lo, hi, from, to, offset] = part_of(call, tile);
        const int count = hi - lo;

        // Computing the noise needs no memory traffic, and takes too long for out-of-order execution to load weights
        // early. So prefetch them: a few cache lines with each block of normals or draws, or all at once.
        Bits* const out = reinterpret_cast<Bits*>(call.out) + offset;
        const Bits* const x = HAS_X ? reinterpret_cast<const Bits*>(call.x) + offset : nullptr;
        const uint64_t ahead = HAS_X ? call.x + uint64_t((offset + from - lo) * int64_t(sizeof(Bits))) : 0;
        constexpr int AHEAD_BYTES = HAS_X ? 128 * int(sizeof(Bits)) : 0;
        if (!slow) prefetch(ahead, (to - from) / 128 * AHEAD_BYTES);

        bool first = true;
        if (call.dense) {
            const Acc* const dense = reinterpret_cast<const Acc*>(call.dense) + offset;
            for (int e = from; e < lo; ++e) v[e] = 0;
            for (int e = 0; e < count; ++e) v[lo + e] = dense_coef * dense[e];
            for (int e = hi; e < to; ++e) v[e] = 0;
            first = false;
        }
        for (int64_t j = 0; j < call.n_terms; ++j) {
            accumulate<LEVEL>(terms[j], first, leaf, table, uint64_t(tile), from, to, v, ahead, AHEAD_BYTES);
            first = false;
        }

        const Acc* const add = v + lo;
        alignas(64) uint16_t draws[MODE == STOCHASTIC ? TILE : 1];
        if constexpr (MODE == STOCHASTIC)
            draws16<LEVEL>(call.round_key, leaf, uint64_t(tile), from, to, draws, ahead, AHEAD_BYTES);
        const uint16_t* const draw = draws + (MODE == STOCHASTIC ? lo : 0);
        uint32_t differ = 0;
        if constexpr (MODE == SPLIT) {
            using Master = typename D::Master;
            const auto master_scale = Master(call.scale);
            auto* const low = reinterpret_cast<uint16_t*>(call.low) + offset;
            IVDEP
            for (int e = 0; e < count; ++e) {
                const Bits h0 = out[e];
                const uint16_t l0 = low[e];
                Bits h;
                uint16_t l;
                D::split(master_scale * D::join(h0, l0) + Master(add[e]), h, l);
                differ += uint32_t((h ^ h0) | (l ^ l0)) != 0;
                out[e] = h;
                low[e] = l;
            }
        } else if constexpr (CONVERTS<LEVEL, D> && MODE == NEAREST) {
            alignas(64) float t[TILE];
            const float* sum = add;
            if constexpr (HAS_X) {
                converters[LEVEL].widen(x, t, count);
                for (int e = 0; e < count; ++e) t[e] = scale * t[e] + add[e];
                sum = t;
            }
            differ = converters[LEVEL].narrow(sum, HAS_X ? x : out, out, count);
            if constexpr (!HAS_X) differ = 0;
        } else if constexpr (CONVERTS<LEVEL, D> && HAS_X) {
            alignas(64) float t[TILE];
            converters[LEVEL].widen(x, t, count);
            IVDEP
            for (int e = 0; e < count; ++e) {
                const Bits before = x[e], after = D::stochastic(scale * t[e] + add[e], draw[e]);
                differ += after != before;
                out[e] = after;
            }
        } else if constexpr (HAS_X) {
            IVDEP
            for (int e = 0; e < count; ++e) {
                const Bits before = x[e];
                const Acc t = scale * D::load(before) + add[e];
                Bits after;
                if constexpr (MODE == STOCHASTIC) after = D::stochastic(t, draw[e]);
                else after = D::nearest(t);
                differ += after != before;
                out[e] = after;
            }
        } else {
            for (int e = 0; e < count; ++e) {
                if constexpr (MODE == STOCHASTIC) out[e] = D::stochastic(add[e], draw[e]);
                else out[e] = D::nearest(add[e]);
            }
        }
        moved += differ;
    }
    return moved;
}

// out = x + v and minus = x - v, with the noise computed once. At least one term.
template <int LEVEL, class D>
INLINE int64_t pair_tiles(const Call& call, const Term* terms, int64_t first_tile, int64_t last_tile) {
    using Acc = typename D::Acc;
    using Bits = typename D::Bits;
    alignas(64) Acc v[TILE];
    const auto* const table = reinterpret_cast<const float*>(call.table);
    const bool slow = slow_to_make(call, terms);
    for (int64_t tile = first_tile; tile < last_tile; ++tile) {
        const auto [lo, hi, from, to, offset] = part_of(call, tile);
        const uint64_t ahead = call.x + uint64_t((offset + from - lo) * int64_t(sizeof(Bits)));
        constexpr int AHEAD_BYTES = 128 * int(sizeof(Bits));
        if (!slow) prefetch(ahead, (to - from) / 128 * AHEAD_BYTES);
        for (int64_t j = 0; j < call.n_terms; ++j)
            accumulate<LEVEL>(terms[j], j == 0, uint32_t(call.leaf), table, uint64_t(tile), from, to, v, ahead, AHEAD_BYTES);
        const Bits* const x = reinterpret_cast<const Bits*>(call.x) + offset;
        Bits* const plus = reinterpret_cast<Bits*>(call.out) + offset;
        Bits* const minus = reinterpret_cast<Bits*>(call.minus) + offset;
        const Acc* const add = v + lo;
        const int count = hi - lo;
        if constexpr (CONVERTS<LEVEL, D>) {
            alignas(64) float t[TILE], sum[TILE];
            converters[LEVEL].widen(x, t, count);
            for (int e = 0; e < count; ++e) sum[e] = t[e] + add[e];
            for (int e = 0; e < count; ++e) t[e] = t[e] - add[e];
            converters[LEVEL].narrow(sum, plus, plus, count);
            converters[LEVEL].narrow(t, minus, minus, count);
            continue;
        }
        IVDEP
        for (int e = 0; e < count; ++e) {
            const Acc t = D::load(x[e]);
            plus[e] = D::nearest(t + add[e]);
            minus[e] = D::nearest(t - add[e]);
        }
    }
    return 0;
}

using Kernel = int64_t (*)(const Call&, const Term*, int64_t, int64_t);

#define KERNEL(NAME, LEVEL, TARGET, D, MODE)                                                               \
    TARGET int64_t NAME(const Call& call, const Term* terms, int64_t first, int64_t last) {                \
        if (MODE == SPLIT || call.x) return combine_tiles<LEVEL, D, MODE, true>(call, terms, first, last); \
        return combine_tiles<LEVEL, D, MODE, false>(call, terms, first, last);                             \
    }

#define PAIR_KERNEL(NAME, LEVEL, TARGET, D)                                                \
    TARGET int64_t NAME(const Call& call, const Term* terms, int64_t first, int64_t last) { \
        return pair_tiles<LEVEL, D>(call, terms, first, last);                             \
    }

#define KERNELS(LEVEL, TARGET)                                                                  \
    KERNEL(nearest_f32_##LEVEL, LEVEL, TARGET, Float32, NEAREST)                                \
    KERNEL(nearest_f64_##LEVEL, LEVEL, TARGET, Float64, NEAREST)                                \
    KERNEL(nearest_bf16_##LEVEL, LEVEL, TARGET, BFloat16, NEAREST)                              \
    KERNEL(nearest_f16_##LEVEL, LEVEL, TARGET, Float16, NEAREST)                                \
    KERNEL(stochastic_bf16_##LEVEL, LEVEL, TARGET, BFloat16, STOCHASTIC)                        \
    KERNEL(stochastic_f16_##LEVEL, LEVEL, TARGET, Float16, STOCHASTIC)                          \
    KERNEL(split_bf16_##LEVEL, LEVEL, TARGET, BFloat16, SPLIT)                                  \
    KERNEL(split_f16_##LEVEL, LEVEL, TARGET, Float16, SPLIT)                                    \
    PAIR_KERNEL(pair_f32_##LEVEL, LEVEL, TARGET, Float32)                                       \
    PAIR_KERNEL(pair_f64_##LEVEL, LEVEL, TARGET, Float64)                                       \
    PAIR_KERNEL(pair_bf16_##LEVEL, LEVEL, TARGET, BFloat16)                                     \
    PAIR_KERNEL(pair_f16_##LEVEL, LEVEL, TARGET, Float16)                                       \
    const Kernel kernels_##LEVEL[4][4] = {                                                      \
        {nearest_f32_##LEVEL, nullptr, nullptr, pair_f32_##LEVEL},                              \
        {nearest_f64_##LEVEL, nullptr, nullptr, pair_f64_##LEVEL},                              \
        {nearest_bf16_##LEVEL, stochastic_bf16_##LEVEL, split_bf16_##LEVEL, pair_bf16_##LEVEL}, \
        {nearest_f16_##LEVEL, stochastic_f16_##LEVEL, split_f16_##LEVEL, pair_f16_##LEVEL},     \
    };

KERNELS(0, )
#if LEVELS == 3
KERNELS(1, LEVEL1)
KERNELS(2, LEVEL2)
#endif

int level_limit = 2;  // lowered by tests only

int level() {
#if LEVELS == 3
    static const int found = [] {
        __builtin_cpu_init();
        const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                        __builtin_cpu_supports("bmi2");
        const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
        return v3 ? (v4 ? 2 : 1) : 0;
    }();
    return found < level_limit ? found : level_limit;
#else
    return 0;
#endif
}

Kernel kernel_for(const Call& call) {
#if LEVELS == 3
    if (level() == 2) return kernels_2[call.dtype][call.mode];
    if (level() == 1) return kernels_1[call.dtype][call.mode];
#endif
    return kernels_0[call.dtype][call.mode];
}

int64_t bytes_of(int64_t dtype) { return dtype == F64 ? 8 : dtype == F32 ? 4 : 2; }

void unpack(const char* packed, Call& call, std::vector<Term>& terms) {
    std::memcpy(&call, packed, sizeof call);
    terms.resize(size_t(call.n_terms));
    if (call.n_terms) std::memcpy(terms.data(), packed + sizeof call, sizeof(Term) * terms.size());
}

// ------------------------------------------------------------------------------------------------------------- Gram

INLINE int32_t ones(uint32_t b) {  // population count, written out so that every compiler vectorises it
    b = b - ((b >> 1) & 0x55555555u);
    b = (b & 0x33333333u) + ((b >> 2) & 0x33333333u);
    return int32_t((((b + (b >> 4)) & 0x0f0f0f0fu) * 0x01010101u) >> 24);
}

// gram[j n + k] += sum_i z_j z_k, k <= j, over the elements of some tiles. |z| < 2^19, so 2^24 elements fit in int64.
template <int LEVEL>
INLINE void gram_tiles(int64_t n, const int64_t* kinds, const uint64_t* keys, uint32_t leaf, const float* table,
                       int64_t start, int64_t count, int64_t first_tile, int64_t last_tile, uint32_t* words, int32_t* z,
                       int64_t* gram) {
    alignas(64) float normals[TILE];
    alignas(64) uint32_t inside[TILE / 32];
    for (int64_t tile = first_tile; tile < last_tile; ++tile) {
        const int64_t base = tile * TILE;
        const int lo = start > base ? int(start - base) : 0;
        const int hi = start + count < base + TILE ? int(start + count - base) : TILE;
        for (int w = 0; w < TILE / 32; ++w) inside[w] = 0;
        for (int e = lo; e < hi; ++e) inside[e >> 5] |= 1u << (e & 31);
        for (int64_t j = 0; j < n; ++j) {
            int32_t* const zj = z + TILE * j;
            if (kinds[j] == SIGN) {
                uint32_t* const wj = words + TILE / 32 * j;
                makers[LEVEL].words(keys[j], uint64_t(tile), 1, leaf, SIGNS, wj, 0, 0);
                for (int w = 0; w < TILE / 32; ++w)
                    for (int i = 0; i < 32; ++i) zj[32 * w + i] = 65536 - int32_t((wj[w] >> i) & 1u) * 131072;
            } else {
                makers[LEVEL].normals(keys[j], uint64_t(tile) * 16, TILE / 128, leaf, table, 1.0f, true, normals, 0, 0);
                for (int e = 0; e < TILE; ++e) zj[e] = int32_t(normals[e] * 0x1p16f);  // exact
            }
            for (int e = 0; e < lo; ++e) zj[e] = 0;
            for (int e = hi; e < TILE; ++e) zj[e] = 0;
            for (int64_t k = 0; k <= j; ++k) {
                int64_t dot = 0;
                if (kinds[j] == SIGN && kinds[k] == SIGN) {
                    const uint32_t *const a = words + TILE / 32 * j, *const b = words + TILE / 32 * k;
                    int32_t unequal = 0;
                    for (int w = 0; w < TILE / 32; ++w) unequal += ones((a[w] ^ b[w]) & inside[w]);
                    dot = int64_t(hi - lo - 2 * unequal) * (int64_t(1) << 32);
                } else {
                    const int32_t* const zk = z + TILE * k;
                    for (int e = 0; e < TILE; ++e) dot += int64_t(zj[e]) * zk[e];
                }
                gram[j * n + k] += dot;
            }
        }
    }
}

#define GRAM(LEVEL, TARGET)                                                                                           \
    TARGET void gram_##LEVEL(int64_t n, const int64_t* kinds, const uint64_t* keys, uint32_t leaf, const float* table,\
                             int64_t start, int64_t count, int64_t first, int64_t last, uint32_t* words, int32_t* z,  \
                             int64_t* gram) {                                                                         \
        gram_tiles<LEVEL>(n, kinds, keys, leaf, table, start, count, first, last, words, z, gram);                    \
    }

GRAM(0, )
#if LEVELS == 3
GRAM(1, LEVEL1)
GRAM(2, LEVEL2)
#endif

}  // namespace

// ------------------------------------------------------------------------------------------------------ entry points

EXPORT int64_t zograd_noise_abi() { return ABI; }

// Sets the highest level to use (0 baseline, 1 AVX2, 2 AVX-512); returns the level in use. For tests and measurements.
EXPORT int64_t zograd_noise_limit_level(int64_t limit) {
    level_limit = int(limit);
    return level();
}

// setuptools on Windows and macOS requires this symbol to link an extension module; nothing imports it.
EXPORT void* PyInit__native() { return nullptr; }

// The key derived from `key` by `datum`: the first two words of Philox(counter = (datum, 0, FOLD), key).
EXPORT uint64_t zograd_noise_fold(uint64_t key, uint64_t datum) {
    uint32_t c0 = uint32_t(datum), c1 = uint32_t(datum >> 32), c2 = 0, c3 = FOLD;
    uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
    for (int round = 0; round < 10; ++round, k0 += W0, k1 += W1) round_(c0, c1, c2, c3, k0, k1);
    return uint64_t(c1) << 32 | c0;
}

// Returns the number of elements whose bits differ between x and out.
EXPORT int64_t zograd_noise_combine(const char* packed) {
    Call call;
    std::vector<Term> terms;
    unpack(packed, call, terms);
    if (call.n <= 0) return 0;
    const Kernel kernel = kernel_for(call);
    const int64_t first = call.start / TILE, tiles = (call.start + call.n - 1) / TILE + 1 - first;
    const int64_t parts = call.n < PARALLEL_FROM || call.threads < 1 ? 1 : call.threads < tiles ? call.threads : tiles;
    if (parts == 1) return kernel(call, terms.data(), first, first + tiles);
    int64_t moved = 0;
#pragma omp parallel for num_threads(int(parts)) schedule(static) reduction(+ : moved)
    for (int64_t p = 0; p < parts; ++p)
        moved += kernel(call, terms.data(), first + tiles * p / parts, first + tiles * (p + 1) / parts);
    return moved;
}

// Runs the call on elements start .. start + count of each (leaf, start, count); `out` holds the results in order.
EXPORT void zograd_noise_signs(const char* packed, int64_t n_runs, const char* packed_runs) {
    Call call;
    std::vector<Term> terms;
    unpack(packed, call, terms);
    const Kernel kernel = kernel_for(call);
    for (int64_t i = 0; i < n_runs; ++i) {
        int64_t run[3];
        std::memcpy(run, packed_runs + i * int64_t(sizeof run), sizeof run);
        call.leaf = uint64_t(run[0]);
        call.start = run[1];
        call.n = run[2];
        if (call.n > 0) kernel(call, terms.data(), call.start / TILE, (call.start + call.n - 1) / TILE + 1);
        call.out += uint64_t(call.n * bytes_of(call.dtype));
    }
}

// Runs two calls on the same elements, tile by tile, so the second finds the results of the first in the cache. Returns
// the result of the first.
EXPORT int64_t zograd_noise_chain(const char* packed, const char* packed_next) {
    Call call, next;
    std::vector<Term> terms, next_terms;
    unpack(packed, call, terms);
    unpack(packed_next, next, next_terms);
    if (call.n <= 0) return 0;
    const Kernel kernel = kernel_for(call), next_kernel = kernel_for(next);
    const int64_t first = call.start / TILE, tiles = (call.start + call.n - 1) / TILE + 1 - first;
    const int64_t parts = call.n < PARALLEL_FROM || call.threads < 1 ? 1 : call.threads < tiles ? call.threads : tiles;
    int64_t moved = 0;
#pragma omp parallel for num_threads(int(parts)) schedule(static) reduction(+ : moved) if (parts > 1)
    for (int64_t p = 0; p < parts; ++p)
        for (int64_t tile = first + tiles * p / parts; tile < first + tiles * (p + 1) / parts; ++tile) {
            moved += kernel(call, terms.data(), tile, tile + 1);
            next_kernel(next, next_terms.data(), tile, tile + 1);
        }
    return moved;
}

// out[r, :] = x[rows[r], :] + noise at elements rows[r] * n + (0 .. n - 1).
EXPORT void zograd_noise_combine_rows(const char* packed) {
    Call call;
    std::vector<Term> terms;
    unpack(packed, call, terms);
    if (call.n <= 0 || call.n_rows <= 0) return;
    const Kernel kernel = kernel_for(call);
    const auto* const rows = reinterpret_cast<const int64_t*>(call.rows);
    const uint64_t row_bytes = uint64_t(call.n * bytes_of(call.dtype));
    const int threads = call.n * call.n_rows < PARALLEL_FROM || call.threads < 1 ? 1 : int(call.threads);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t r = 0; r < call.n_rows; ++r) {
        Call row = call;
        row.start = rows[r] * call.n;
        row.x = call.x + uint64_t(rows[r]) * row_bytes;
        row.out = call.out + uint64_t(r) * row_bytes;
        kernel(row, terms.data(), row.start / TILE, (row.start + row.n - 1) / TILE + 1);
    }
}

// gram: n x n, row major, lower triangle filled; count <= 2^24.
EXPORT void zograd_noise_gram(int64_t n, const int64_t* kinds, const uint64_t* keys, uint64_t leaf, const float* table,
                              int64_t start, int64_t count, int64_t threads, int64_t* gram) {
    const int64_t first = start / TILE, tiles = (start + count - 1) / TILE + 1 - first;
    const int64_t parts = count < PARALLEL_FROM || threads < 1 ? 1 : threads < tiles ? threads : tiles;
    auto* kernel = gram_0;
#if LEVELS == 3
    kernel = level() == 2 ? gram_2 : level() == 1 ? gram_1 : gram_0;
#endif
#pragma omp parallel for num_threads(int(parts)) schedule(static) if (parts > 1)
    for (int64_t p = 0; p < parts; ++p) {
        std::vector<uint32_t> words(size_t(n * TILE / 32));
        std::vector<int32_t> z(size_t(n * TILE));
        std::vector<int64_t> part(size_t(n * n));
        kernel(n, kinds, keys, uint32_t(leaf), table, start, count, first + tiles * p / parts,
               first + tiles * (p + 1) / parts, words.data(), z.data(), part.data());
#pragma omp critical
        for (int64_t i = 0; i < n * n; ++i) gram[i] += part[i];
    }
}
