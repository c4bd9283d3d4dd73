// Shared by the three files of compiled loops: export, inlining, vectors and instruction sets.

#pragma once

#include <cstdint>

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

// IVDEP: in place (x == out) the loop carries no dependence, which GCC cannot prove by itself.
#if defined(_MSC_VER) && !defined(__clang__)
#define INLINE static __forceinline
#define IVDEP __pragma(loop(ivdep))
#elif defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
#define IVDEP _Pragma("clang loop vectorize(assume_safety)")
#else
#define INLINE static inline __attribute__((always_inline))
#define IVDEP _Pragma("GCC ivdep")
#endif

// One binary serves every x86-64: each kernel is compiled for three instruction sets, and the widest available one is
// chosen at run time. The target attribute applies to inlined code only, hence INLINE everywhere. Compilers outline
// OpenMP regions, so these stay outside the kernels.
#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#define LEVELS 3
#define LEVEL1 __attribute__((target("arch=x86-64-v3")))
#define LEVEL2 __attribute__((target("arch=x86-64-v4")))
#else
#define LEVELS 1
#endif

constexpr int64_t PARALLEL_FROM = 1 << 15;  // elements; below this a thread team costs more than it saves
