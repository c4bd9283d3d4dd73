// De-quantization of blocks of GGUF tensors, with scales (and mins) taken from the blocks or from float32 masters.
//
// The formats are those of ggml (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K); gguf_blocks.py says where scales lie in
// their blocks and is the readable statement in torch. Values are the same bits as there: the order of the products is
// fixed, and the file is compiled with -ffp-contract=off. C ABI, called by native.py through ctypes.

#include <cstdint>
#include <cstring>

#include "native.h"

namespace {

constexpr int64_t ABI = 1;

enum Format : int64_t { Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14 };
enum Out : int64_t { F32 = 0, BF16 = 1 };

struct Call {
    const uint8_t* blocks;
    const float *scales, *mins;  // one a block, or null: those of the blocks
    void* out;
};

INLINE float half(const uint8_t* at) {
    uint16_t h;
    std::memcpy(&h, at, 2);
    const uint32_t sign = uint32_t(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, fraction = h & 1023u;
    float value;
    if (exponent == 0) {
        value = float(fraction) * 5.9604644775390625e-8f;  // 2^-24
        return sign ? -value : value;
    }
    const uint32_t word = sign | (exponent == 31 ? 0x7F800000u : (exponent + 112u) << 23) | fraction << 13;
    std::memcpy(&value, &word, 4);
    return value;
}

INLINE void store(float* out, const float* y, int n) { std::memcpy(out, y, sizeof(float) * n); }

// Round to nearest, ties to even; NaN stays NaN.
INLINE void store(uint16_t* out, const float* y, int n) {
    for (int i = 0; i < n; ++i) {
        uint32_t w;
        std::memcpy(&w, y + i, 4);
        const uint32_t nan = uint32_t(0) - uint32_t((w & 0x7FFFFFFFu) > 0x7F800000u);
        const uint32_t rounded = (w + 0x7FFFu + ((w >> 16) & 1u)) >> 16, quiet = (w >> 16) | 64u;
        out[i] = uint16_t((rounded & ~nan) | (quiet & nan));
    }
}

// Scale and min number j of a block with 6-bit scales and mins, packed into 12 bytes.
INLINE void six_bits(const uint8_t* q, int j, float& scale, float& min) {
    scale = float(j < 4 ? q[j] & 63 : (q[j + 4] & 15) | (q[j - 4] >> 6) << 4);
    min = float(j < 4 ? q[j + 4] & 63 : q[j + 4] >> 4 | (q[j] >> 6) << 4);
}

template <int64_t F>
struct Layout;
template <> struct Layout<Q4_0> { static constexpr int size = 32, bytes = 18, scale = 0, min = -1; };
template <> struct Layout<Q4_1> { static constexpr int size = 32, bytes = 20, scale = 0, min = 2; };
template <> struct Layout<Q5_0> { static constexpr int size = 32, bytes = 22, scale = 0, min = -1; };
template <> struct Layout<Q5_1> { static constexpr int size = 32, bytes = 24, scale = 0, min = 2; };
template <> struct Layout<Q8_0> { static constexpr int size = 32, bytes = 34, scale = 0, min = -1; };
template <> struct Layout<Q4_K> { static constexpr int size = 256, bytes = 144, scale = 0, min = 2; };
template <> struct Layout<Q5_K> { static constexpr int size = 256, bytes = 176, scale = 0, min = 2; };
template <> struct Layout<Q6_K> { static constexpr int size = 256, bytes = 210, scale = 208, min = -1; };

template <int64_t F>
INLINE void values(const uint8_t* b, float d, float m, float* y) {
    if constexpr (F == Q4_0) {
        for (int i = 0; i < 16; ++i) {
            const int q = b[2 + i];
            y[i] = d * float((q & 15) - 8);
            y[16 + i] = d * float((q >> 4) - 8);
        }
    } else if constexpr (F == Q4_1) {
        for (int i = 0; i < 16; ++i) {
            const int q = b[4 + i];
            y[i] = d * float(q & 15) + m;
            y[16 + i] = d * float(q >> 4) + m;
        }
    } else if constexpr (F == Q5_0 || F == Q5_1) {
        constexpr int at = F == Q5_0 ? 2 : 4;
        uint32_t high;
        std::memcpy(&high, b + at, 4);
        for (int i = 0; i < 16; ++i) {
            const int q = b[at + 4 + i];
            const int low = (q & 15) | int((high >> i) & 1u) << 4, up = q >> 4 | int((high >> (i + 16)) & 1u) << 4;
            y[i] = F == Q5_0 ? d * float(low - 16) : d * float(low) + m;
            y[16 + i] = F == Q5_0 ? d * float(up - 16) : d * float(up) + m;
        }
    } else if constexpr (F == Q8_0) {
        for (int i = 0; i < 32; ++i) y[i] = d * float(int8_t(b[2 + i]));
    } else if constexpr (F == Q4_K || F == Q5_K) {
        const uint8_t *packed = b + 4, *high = b + 16, *q = b + (F == Q4_K ? 16 : 48);
        for (int j = 0; j < 4; ++j) {
            float s1, m1, s2, m2;
            six_bits(packed, 2 * j, s1, m1);
            six_bits(packed, 2 * j + 1, s2, m2);
            s1 = d * s1, s2 = d * s2, m1 = m * m1, m2 = m * m2;
            for (int i = 0; i < 32; ++i) {
                int low = q[32 * j + i] & 15, up = q[32 * j + i] >> 4;
                if constexpr (F == Q5_K) low |= ((high[i] >> (2 * j)) & 1) << 4, up |= ((high[i] >> (2 * j + 1)) & 1) << 4;
                y[64 * j + i] = s1 * float(low) - m1;
                y[64 * j + 32 + i] = s2 * float(up) - m2;
            }
        }
    } else {
        for (int n = 0; n < 2; ++n) {
            const uint8_t *low = b + 64 * n, *high = b + 128 + 32 * n;
            const int8_t* s = reinterpret_cast<const int8_t*>(b + 192 + 8 * n);
            float* z = y + 128 * n;
            for (int side = 0; side < 2; ++side) {
                const float s1 = d * float(s[side]), s2 = d * float(s[side + 2]);
                const float s3 = d * float(s[side + 4]), s4 = d * float(s[side + 6]);
                for (int i = 16 * side; i < 16 * side + 16; ++i) {
                    z[i] = s1 * float(((low[i] & 15) | (high[i] & 3) << 4) - 32);
                    z[i + 32] = s2 * float(((low[i + 32] & 15) | ((high[i] >> 2) & 3) << 4) - 32);
                    z[i + 64] = s3 * float((low[i] >> 4 | ((high[i] >> 4) & 3) << 4) - 32);
                    z[i + 96] = s4 * float((low[i + 32] >> 4 | (high[i] >> 6) << 4) - 32);
                }
            }
        }
    }
}

template <int64_t F, class T>
INLINE void blocks(const Call& call, int64_t begin, int64_t end) {
    using L = Layout<F>;
    float y[L::size];
    for (int64_t k = begin; k < end; ++k) {
        const uint8_t* b = call.blocks + k * L::bytes;
        const float d = call.scales ? call.scales[k] : half(b + L::scale);
        float m = 0.0f;
        if constexpr (L::min >= 0) m = call.mins ? call.mins[k] : half(b + L::min);
        values<F>(b, d, m, y);
        store(static_cast<T*>(call.out) + k * L::size, y, L::size);
    }
}

template <class T>
INLINE void any(int64_t format, const Call& call, int64_t begin, int64_t end) {
    switch (format) {
        case Q4_0: return blocks<Q4_0, T>(call, begin, end);
        case Q4_1: return blocks<Q4_1, T>(call, begin, end);
        case Q5_0: return blocks<Q5_0, T>(call, begin, end);
        case Q5_1: return blocks<Q5_1, T>(call, begin, end);
        case Q8_0: return blocks<Q8_0, T>(call, begin, end);
        case Q4_K: return blocks<Q4_K, T>(call, begin, end);
        case Q5_K: return blocks<Q5_K, T>(call, begin, end);
        case Q6_K: return blocks<Q6_K, T>(call, begin, end);
    }
}

#define KERNELS(LEVEL, TARGET)                                                                                          \
    TARGET void run_##LEVEL(int64_t format, int64_t out, const Call& call, int64_t begin, int64_t end) {                \
        if (out == BF16)                                                                                               \
            any<uint16_t>(format, call, begin, end);                                                                   \
        else                                                                                                           \
            any<float>(format, call, begin, end);                                                                      \
    }

KERNELS(0, )
#if LEVELS == 3
KERNELS(1, LEVEL1)
KERNELS(2, LEVEL2)
#endif

using Kernel = void (*)(int64_t, int64_t, const Call&, int64_t, int64_t);

Kernel pick() {
#if LEVELS == 3
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
    const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    return v3 && v4 ? run_2 : v3 ? run_1 : run_0;
#else
    return run_0;
#endif
}

}  // namespace

EXPORT int64_t zograd_quantized_abi() { return ABI; }

// out[k * size ...] = the values of block k, for k < n. scales, mins: float32, one a block, or null. out_type: Out.
EXPORT void zograd_quantized_dequantize(int64_t format, const uint8_t* blocks, int64_t n, int64_t size,
                                        const float* scales, const float* mins, void* out, int64_t out_type,
                                        int64_t threads) {
    static const Kernel kernel = pick();
    const Call call{blocks, scales, mins, out};
    if (threads <= 1 || n * size < PARALLEL_FROM) {
        kernel(format, out_type, call, 0, n);
        return;
    }
    const int64_t parts = threads * 4;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(int(threads)) schedule(static)
#endif
    for (int64_t part = 0; part < parts; ++part) kernel(format, out_type, call, n * part / parts, n * (part + 1) / parts);
}
