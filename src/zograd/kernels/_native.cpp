// Loops that torch has no single operation for: side branches and moves of rank one, log-sum-exp in pieces.
//
// Compilers vectorise these plain loops. Sums run over 16 fixed lanes, so results depend neither on the number of
// threads nor on the instruction set. Compiled with -ffp-contract=off. C ABI, called by __init__.py through ctypes.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "native.h"

namespace {

constexpr int64_t ABI = 4;
constexpr int LANES = 16;

INLINE float load(const float* p) { return *p; }
INLINE float load(const uint16_t* p) {  // bfloat16
    const uint32_t u = uint32_t(*p) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}
INLINE void store(float* p, float f) { *p = f; }
INLINE void store(uint16_t* p, float f) {  // to nearest even; NaN stays NaN
    uint32_t u;
    std::memcpy(&u, &f, 4);
    const uint32_t nan = uint32_t(0) - uint32_t((u & 0x7fffffffu) > 0x7f800000u);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    *p = uint16_t((rounded & ~nan) | (0x7fc0u & nan));
}

INLINE uint32_t bits(float f) {
    uint32_t u;
    std::memcpy(&u, &f, 4);
    return u;
}
INLINE uint32_t bits(uint16_t u) { return u; }

INLINE float sum(const float* lanes) {
    float s[LANES];
    for (int k = 0; k < LANES; ++k) s[k] = lanes[k];
    for (int width = LANES / 2; width; width /= 2)
        for (int k = 0; k < width; ++k) s[k] += s[k + width];
    return s[0];
}

// ---- y[n] += sum_t coef_t (x[n] . v_t) u_t --------------------------------------------------------------------------

// 16 floats, one per lane; added and multiplied lane by lane.
#if defined(__GNUC__) || defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // warns of calls with vector arguments; all of these are inlined
typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
INLINE Lanes lanes(const uint16_t* p) {
    Halves h;
    std::memcpy(&h, p, sizeof h);
    const Words w = __builtin_convertvector(h, Words) << 16;
    Lanes l;
    std::memcpy(&l, &w, sizeof l);
    return l;
}
#else
struct Lanes {
    float f[LANES];
    Lanes& operator+=(const Lanes& b) {
        for (int k = 0; k < LANES; ++k) f[k] += b.f[k];
        return *this;
    }
    friend Lanes operator*(Lanes a, const Lanes& b) {
        for (int k = 0; k < LANES; ++k) a.f[k] *= b.f[k];
        return a;
    }
    friend Lanes operator*(float a, Lanes b) {
        for (int k = 0; k < LANES; ++k) b.f[k] *= a;
        return b;
    }
};
INLINE Lanes lanes(const uint16_t* p) {
    Lanes l;
    for (int k = 0; k < LANES; ++k) l.f[k] = load(p + k);
    return l;
}
#endif
INLINE Lanes lanes(const float* p) {
    Lanes l;
    std::memcpy(&l, p, sizeof l);
    return l;
}
INLINE void put(float* p, const Lanes& l) { std::memcpy(p, &l, sizeof l); }
INLINE void put(uint16_t* p, const Lanes& l) {
    float f[LANES];
    std::memcpy(f, &l, sizeof f);
    for (int k = 0; k < LANES; ++k) store(p + k, f[k]);
}

constexpr int MOST = 32;  // terms that are added in one pass over y

struct Sides {
    int64_t columns, rows;  // of x and y
    int64_t start;          // the element of each u that belongs to y[0]
    int64_t n_terms;
    const float* coef;
    const float* const* u;
    const float* const* v;
};

// a[r MOST + t] = coef_t (x[r] . v_t) for R rows and the T terms from `first` on; x and v are loaded once for all.
template <int R, int T, class F>
INLINE void dots(float* a, const F* x, const Sides& m, int64_t first) {
    const float* const* const v = m.v + first;
    Lanes acc[R][T];
    std::memset(acc, 0, sizeof acc);
    int64_t j = 0;
    for (; j + LANES <= m.columns; j += LANES) {
        Lanes w[T];
        for (int t = 0; t < T; ++t) w[t] = lanes(v[t] + j);
        for (int r = 0; r < R; ++r) {
            const Lanes xr = lanes(x + r * m.columns + j);
            for (int t = 0; t < T; ++t) acc[r][t] += xr * w[t];
        }
    }
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) {
            float s[LANES];
            put(s, acc[r][t]);
            for (int64_t k = 0; j + k < m.columns; ++k) s[k] += load(x + r * m.columns + j + k) * v[t][j + k];
            a[r * MOST + t] = m.coef[first + t] * sum(s);
        }
}

// y[r] += sum_t a[r MOST + t] u_t for R rows and n terms from `first` on, in float32 and rounded once.
template <int R, class F>
INLINE void add_terms(F* y, const Sides& m, int64_t first, int64_t n, const float* a) {
    const float* const* const u = m.u + first;
    int64_t i = 0;
    for (; i + LANES <= m.rows; i += LANES) {
        Lanes acc[R];
        for (int r = 0; r < R; ++r) acc[r] = lanes(y + r * m.rows + i);
        for (int64_t t = 0; t < n; ++t) {
            const Lanes w = lanes(u[t] + m.start + i);
            for (int r = 0; r < R; ++r) acc[r] += a[r * MOST + t] * w;
        }
        for (int r = 0; r < R; ++r) put(y + r * m.rows + i, acc[r]);
    }
    for (; i < m.rows; ++i)
        for (int r = 0; r < R; ++r) {
            float f = load(y + r * m.rows + i);
            for (int64_t t = 0; t < n; ++t) f += a[r * MOST + t] * u[t][m.start + i];
            store(y + r * m.rows + i, f);
        }
}

template <int R, class F>
INLINE void side_block(F* y, const F* x, const Sides& m) {
    for (int64_t first = 0; first < m.n_terms; first += MOST) {
        const int64_t n = m.n_terms - first < MOST ? m.n_terms - first : MOST;
        float a[R * MOST];
        int64_t t = 0;
        for (; t + 4 <= n; t += 4) dots<R, 4>(a + t, x, m, first + t);
        for (; t < n; ++t) dots<R, 1>(a + t, x, m, first + t);
        add_terms<R>(y, m, first, n, a);
    }
}

template <class F>
INLINE void side_rows(F* y, const F* x, const Sides& m, int64_t first, int64_t last) {
    int64_t n = first;
    for (; n + 4 <= last; n += 4) side_block<4>(y + n * m.rows, x + n * m.columns, m);
    for (; n < last; ++n) side_block<1>(y + n * m.rows, x + n * m.columns, m);
}

// ---- out[e] = scale x[e] + sum_k (coef_k u_k[i]) v_k[j], element e = i columns + j ----------------------------------

struct Outer {
    int64_t start, columns;  // out[0] is element `start` of its matrix
    float scale;
    bool one_by_one;  // (x + first) + second ..., instead of scale x + (first + second ...)
    int64_t n_terms;
    const float* coef;
    const float* const* u;  // one per term: all rows
    const float* const* v;  // one per term: all columns
};

// `count` elements of row i from column j on; the sums over the terms stay in registers.
template <class T>
INLINE int64_t moved_one_by_one(const Outer& m, T* to, const T* from, int64_t i, int64_t j, int64_t count) {
    constexpr int64_t WIDE = 64;
    uint32_t differ = 0;
    for (int64_t k = 0; k < count; k += WIDE) {
        const int64_t here = count - k < WIDE ? count - k : WIDE;
        alignas(64) float a[WIDE], w[WIDE];
        if (here == WIDE) {
            for (int64_t l = 0; l < WIDE; ++l) a[l] = load(from + k + l);
            for (int64_t t = 0; t < m.n_terms; ++t) {
                const float c = m.coef[t] * m.u[t][i];
                std::memcpy(w, m.v[t] + j + k, sizeof w);
                for (int64_t l = 0; l < WIDE; ++l) a[l] += c * w[l];
            }
        } else {
            for (int64_t l = 0; l < here; ++l) a[l] = load(from + k + l);
            for (int64_t t = 0; t < m.n_terms; ++t) {
                const float c = m.coef[t] * m.u[t][i];
                const float* const v = m.v[t] + j + k;
                for (int64_t l = 0; l < here; ++l) a[l] += c * v[l];
            }
        }
        IVDEP
        for (int64_t l = 0; l < here; ++l) {
            const T before = from[k + l];
            T after;
            store(&after, a[l]);
            differ += bits(before) != bits(after);
            to[k + l] = after;
        }
    }
    return differ;
}

// Elements first .. last (counted from out[0]); returns the number of elements that differ from x. out may be x.
template <class T>
INLINE int64_t outer_range(const Outer& m, T* out, const T* x, int64_t first, int64_t last) {
    constexpr int64_t PIECE = 512;
    alignas(64) float add[PIECE];
    int64_t changed = 0;
    int64_t e = first;
    while (e < last) {
        const int64_t i = (m.start + e) / m.columns, j = (m.start + e) % m.columns;
        int64_t count = m.columns - j;
        count = count < last - e ? count : last - e;
        count = count < PIECE ? count : PIECE;
        const T* const from = x + e;
        T* const to = out + e;
        if (m.one_by_one) {
            changed += moved_one_by_one(m, to, from, i, j, count);
            e += count;
            continue;
        }
        for (int64_t t = 0; t < m.n_terms; ++t) {
            const float c = m.coef[t] * m.u[t][i];
            const float* const v = m.v[t] + j;
            if (t == 0) for (int64_t k = 0; k < count; ++k) add[k] = c * v[k];
            else for (int64_t k = 0; k < count; ++k) add[k] += c * v[k];
        }
        uint32_t differ = 0;
        IVDEP
        for (int64_t k = 0; k < count; ++k) {
            const T before = from[k];
            T after;
            store(&after, m.scale * load(&before) + add[k]);
            differ += bits(before) != bits(after);
            to[k] = after;
        }
        changed += differ;
        e += count;
    }
    return changed;
}

// ---- log-sum-exp over a piece of the vocabulary ---------------------------------------------------------------------

// e^x for x <= 0 to 2 ulp; 0 below -87.3.
INLINE float exp_(float x) {
    const float clipped = x < -87.3f ? -87.3f : x;
    const float n = std::nearbyint(clipped * 1.44269504f);
    const float r = (clipped - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * r) * r + r + 1.0f;
    const int32_t bits = (int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    return x < -87.3f ? 0.0f : p * scale;
}

// Adds the columns of the logits to top and total, for rows first .. last.
template <class T>
INLINE void lse_rows(const T* logits, int64_t stride, int64_t columns, float* top, float* total, int64_t first,
                     int64_t last) {
    for (int64_t n = first; n < last; ++n) {
        const T* const row = logits + n * stride;
        float most[LANES];
        for (int k = 0; k < LANES; ++k) most[k] = top[n];
        int64_t j = 0;
        for (; j + LANES <= columns; j += LANES)
            for (int k = 0; k < LANES; ++k) {
                const float l = load(row + j + k);
                most[k] = most[k] > l ? most[k] : l;  // may drop a NaN; the sum below restores it
            }
        for (int k = 0; j < columns; ++j, ++k) {
            const float l = load(row + j);
            most[k] = most[k] > l ? most[k] : l;
        }
        float m = most[0];
        for (int k = 1; k < LANES; ++k) m = m > most[k] ? m : most[k];
        float lanes[LANES] = {};
        for (j = 0; j + LANES <= columns; j += LANES)
            for (int k = 0; k < LANES; ++k) lanes[k] += exp_(load(row + j + k) - m);
        for (int k = 0; j < columns; ++j, ++k) lanes[k] += exp_(load(row + j) - m);
        const float before = total[n] == 0.0f ? 0.0f : total[n] * exp_(top[n] - m);
        total[n] = before + sum(lanes);
        top[n] = m;
    }
}

#define DEFINE(LEVEL, TARGET)                                                                                       \
    TARGET void side_f32_##LEVEL(float* y, const float* x, const Sides& m, int64_t f, int64_t l) {                  \
        side_rows(y, x, m, f, l); }                                                                                 \
    TARGET void side_bf16_##LEVEL(uint16_t* y, const uint16_t* x, const Sides& m, int64_t f, int64_t l) {           \
        side_rows(y, x, m, f, l); }                                                                                 \
    TARGET int64_t outer_f32_##LEVEL(const Outer& m, float* out, const float* x, int64_t f, int64_t l) {            \
        return outer_range(m, out, x, f, l); }                                                                      \
    TARGET int64_t outer_bf16_##LEVEL(const Outer& m, uint16_t* out, const uint16_t* x, int64_t f, int64_t l) {     \
        return outer_range(m, out, x, f, l); }                                                                      \
    TARGET void lse_f32_##LEVEL(const float* x, int64_t s, int64_t c, float* t, float* z, int64_t f, int64_t l) {   \
        lse_rows(x, s, c, t, z, f, l); }                                                                            \
    TARGET void lse_bf16_##LEVEL(const uint16_t* x, int64_t s, int64_t c, float* t, float* z, int64_t f, int64_t l) { \
        lse_rows(x, s, c, t, z, f, l); }

DEFINE(0, )
#if LEVELS == 3
DEFINE(1, LEVEL1)
DEFINE(2, LEVEL2)
#define PICK(NAME) (level() == 2 ? NAME##_2 : level() == 1 ? NAME##_1 : NAME##_0)
int level() {
    static const int chosen = [] {
        __builtin_cpu_init();
        const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                        __builtin_cpu_supports("bmi2");
        const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
        return v3 && v4 ? 2 : v3 ? 1 : 0;
    }();
    return chosen;
}
#else
#define PICK(NAME) NAME##_0
#endif

// Calls work(first, last) on equal parts of 0 .. n.
template <class F>
void split(int64_t n, int64_t elements, int64_t threads, F work) {
    if (n == 0) return;
    if (threads <= 1 || elements < PARALLEL_FROM) return work(int64_t(0), n);
#pragma omp parallel for num_threads(int(threads)) schedule(static)
    for (int64_t t = 0; t < threads; ++t) work(n * t / threads, n * (t + 1) / threads);
}

}  // namespace

EXPORT int64_t zograd_kernels_abi() { return ABI; }

// y and x have n rows; rows b each .. (b + 1) each belong to branch b. Each branch has its own coef, u and v: `most` of
// them, or fewer, ended by a null u. The columns of y are `rows` elements of each u, from `start` on.
EXPORT void zograd_kernels_side(int64_t dtype, void* y, const void* x, int64_t each, int64_t n, int64_t columns,
                                int64_t rows, int64_t start, int64_t most, const float* coef,
                                const float* const* u, const float* const* v, int64_t threads) {
    split(n, n * (columns + rows), threads, [&](int64_t first, int64_t last) {
        for (int64_t b = first / each; b * each < last; ++b) {
            const int64_t from = first > b * each ? first : b * each, to = last < (b + 1) * each ? last : (b + 1) * each;
            Sides m = {columns, rows, start, 0, coef + b * most, u + b * most, v + b * most};
            while (m.n_terms < most && m.u[m.n_terms]) ++m.n_terms;
            if (dtype == 0)
                PICK(side_f32)(static_cast<float*>(y), static_cast<const float*>(x), m, from, to);
            else
                PICK(side_bf16)(static_cast<uint16_t*>(y), static_cast<const uint16_t*>(x), m, from, to);
        }
    });
}

EXPORT int64_t zograd_kernels_outer(int64_t dtype, void* out, const void* x, int64_t start, int64_t count, int64_t columns,
                                    float scale, int64_t one_by_one, int64_t n_terms, const float* coef,
                                    const float* const* u, const float* const* v, int64_t threads) {
    const Outer m = {start, columns, scale, one_by_one != 0, n_terms, coef, u, v};
    int64_t changed = 0;
    split(count, count, threads, [&](int64_t first, int64_t last) {
        const int64_t here = dtype == 0
            ? PICK(outer_f32)(m, static_cast<float*>(out), static_cast<const float*>(x), first, last)
            : PICK(outer_bf16)(m, static_cast<uint16_t*>(out), static_cast<const uint16_t*>(x), first, last);
#pragma omp atomic
        changed += here;
    });
    return changed;
}

EXPORT void zograd_kernels_lse(int64_t dtype, const void* logits, int64_t stride, int64_t n, int64_t columns, float* top,
                               float* total, int64_t threads) {
    split(n, n * columns, threads, [&](int64_t first, int64_t last) {
        if (dtype == 0) PICK(lse_f32)(static_cast<const float*>(logits), stride, columns, top, total, first, last);
        else PICK(lse_bf16)(static_cast<const uint16_t*>(logits), stride, columns, top, total, first, last);
    });
}
