/// @file  The processor that a file is compiled for, as the namespace of all that it then compiles.
///
/// Files of one program may be compiled for different processors. What they compile of this library differs (registers,
/// layouts, instructions), so it must not share a name, or the linker would keep one of the two for both files. Every
/// header opens `namespace moe::inline MOE_TARGET`, and nobody writes that name: moe::MoeLayer finds its own.
#pragma once

// Only a file that is not there ends every compiler; an #error alone is followed by thousands of lines of others.
#if defined(_MSC_VER) && !defined(__clang__)
#error "moe: MSVC's own front end lacks what the kernels need: compile with clang-cl, or with g++ of MinGW"
#include <nothing more, see the line above>
#elif !defined(__GNUC__) && !defined(__clang__)
#error "moe: the kernels need the vector extensions of g++ or clang++: compile with one of these"
#include <nothing more, see the line above>
#elif (defined(_MSVC_LANG) ? _MSVC_LANG : __cplusplus) < 202002L
#error "moe: needs C++20: compile with -std=c++20 or later (CMake: link moe::moe, which asks for it)"
#include <nothing more, see the line above>
#elif defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || \
    (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "moe: -ffast-math and its parts break promises of bits and of NaN: compile without it, and without -Ofast"
#include <nothing more, see the line above>
#endif

/// @def MOE_PROCESSOR
/// The processor that this file is compiled for, by what its kernels use of it.
///
/// Every one that multiplies pairs of bfloat16 (AVX512_BF16) multiplies bytes as well (AVX512_VNNI). Of tiles (AMX)
/// Linux must be asked, and is. On ARM, squares of bytes (i8mm) are multiplied by who multiplies pairs of bfloat16 and
/// dot products: Armv8.6 has all three.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512BF16__)
#if defined(__AVX512VNNI__) && defined(__AVX512VL__) && defined(__linux__) && \
    ((defined(__AMX_TILE__) && defined(__AMX_BF16__)) || (defined(__AMXTILE__) && defined(__AMXBF16__)))
#define MOE_PROCESSOR avx512_amx
#define MOE_HAS_AMX
#elif defined(__AVX512VNNI__) && defined(__AVX512VL__)
#define MOE_PROCESSOR avx512_bf16
#else
#define MOE_PROCESSOR avx512_bf16_alone
#endif
#elif defined(__AVX512F__) && defined(__AVX512BW__)
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#define MOE_PROCESSOR avx512_vnni
#else
#define MOE_PROCESSOR avx512
#endif
#elif defined(__AVX512F__)
#define MOE_PROCESSOR avx512f
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && defined(__AVXVNNI__)
#define MOE_PROCESSOR avx2_vnni
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define MOE_PROCESSOR avx2
#elif defined(__AVX__) && defined(__FMA__) && defined(__F16C__)
#define MOE_PROCESSOR avx_fma_f16c
#elif defined(__AVX__) && defined(__FMA__)
#define MOE_PROCESSOR avx_fma
#elif defined(__AVX__) && defined(__F16C__)
#define MOE_PROCESSOR avx_f16c
#elif defined(__AVX__)
#define MOE_PROCESSOR avx
#elif defined(__SSE2__)
#define MOE_PROCESSOR sse2
#elif defined(__aarch64__) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && defined(__ARM_FEATURE_DOTPROD)
#if defined(__ARM_FEATURE_MATMUL_INT8)
#define MOE_PROCESSOR neon_i8mm
#else
#define MOE_PROCESSOR neon_bf16
#endif
#elif defined(__aarch64__) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define MOE_PROCESSOR neon_bf16_alone
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#define MOE_PROCESSOR neon_dot
#elif defined(__aarch64__)
#define MOE_PROCESSOR neon
#else
#define MOE_PROCESSOR portable
#endif

/// @def MOE_TARGET
/// The inline namespace of all names. A program or library that carries code for several processors behind one
/// interface says whose names all of it has: cmake/processors.cmake.
#if !defined(MOE_TARGET)
#define MOE_TARGET MOE_PROCESSOR
#endif

#define MOE_STRING(text) #text
#define MOE_NAME_OF(macro) MOE_STRING(macro)

namespace moe::inline MOE_TARGET {

/// The name of the processor that this file is compiled for: "avx512_amx", "avx512_bf16", "avx512_vnni", "avx512",
/// "avx2_vnni", "avx2", "sse2", "neon", …
inline constexpr const char* target_name = MOE_NAME_OF(MOE_PROCESSOR);

}  // namespace moe::inline MOE_TARGET

#undef MOE_STRING
#undef MOE_NAME_OF
