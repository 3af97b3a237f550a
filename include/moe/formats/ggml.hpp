/// @file  The types of numbers that a GGUF file may have.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "moe/core/quantized.hpp"
#include "moe/formats/ggml_float.hpp"
#include "moe/formats/ggml_k.hpp"
#include "moe/formats/ggml_legacy.hpp"
#include "moe/formats/ggml_lookup.hpp"
#include "moe/formats/ggml_tiny.hpp"

namespace moe::inline MOE_TARGET {

/// One of them.
struct GgmlType {
  std::uint32_t number;                    // in the file
  std::string_view name;                   // as llama.cpp spells it
  Index numbers, bytes;                    // of a block, whole ones of which make a row; 0 where that is unknown here
  const NumberFormat* format;              // null where it is known, and refused
  std::string_view reason;                 // why it is refused: "… of lattices"
  std::array<Index, 2> halves = {-1, -1};  // where in a block its scale and minimum begin that are float16
};

namespace codes {

/// The entry of a type whose blocks a Block decodes.
template <class Block>
constexpr GgmlType type_of_blocks(std::uint32_t number, Index scale = -1, Index minimum = -1) {
  return {number, Block::name, Block::numbers, Block::bytes, &block_format<Block>, {}, {scale, minimum}};
}

inline constexpr std::string_view of_lattices =
                                      "its codes are points of a lattice, whose tables are not in this library",
                                  of_activations = "it is for activations, and no weight is stored in it",
                                  of_integers = "it holds no weights",
                                  is_removed = "llama.cpp removed it: convert the model again",
                                  of_ik_llama = "it is of ik_llama.cpp alone: convert the model with llama.cpp";

}  // namespace codes

/// By number.
inline constexpr GgmlType ggml_types[] = {
    {0, "F32", 1, 4, &block_format<F32>, {}},
    {1, "F16", 1, 2, &block_format<F16>, {}},
    codes::type_of_blocks<Q4_0>(2, 0),
    codes::type_of_blocks<Q4_1>(3, 0, 2),
    {4, "Q4_2", 0, 0, nullptr, codes::is_removed},
    {5, "Q4_3", 0, 0, nullptr, codes::is_removed},
    codes::type_of_blocks<Q5_0>(6, 0),
    codes::type_of_blocks<Q5_1>(7, 0, 2),
    codes::type_of_blocks<Q8_0>(8, 0),
    {9, "Q8_1", 32, 36, nullptr, codes::of_activations},
    codes::type_of_blocks<Q2_K>(10, 80, 82),
    codes::type_of_blocks<Q3_K>(11, 108),
    codes::type_of_blocks<Q4_K>(12, 0, 2),
    codes::type_of_blocks<Q5_K>(13, 0, 2),
    codes::type_of_blocks<Q6_K>(14, 208),
    {15, "Q8_K", 256, 292, nullptr, codes::of_activations},
    {16, "IQ2_XXS", 256, 66, nullptr, codes::of_lattices},
    {17, "IQ2_XS", 256, 74, nullptr, codes::of_lattices},
    {18, "IQ3_XXS", 256, 98, nullptr, codes::of_lattices},
    {19, "IQ1_S", 256, 50, nullptr, codes::of_lattices},
    codes::type_of_blocks<IQ4_NL>(20, 0),
    {21, "IQ3_S", 256, 110, nullptr, codes::of_lattices},
    {22, "IQ2_S", 256, 82, nullptr, codes::of_lattices},
    codes::type_of_blocks<IQ4_XS>(23, 0),
    {24, "I8", 1, 1, nullptr, codes::of_integers},
    {25, "I16", 1, 2, nullptr, codes::of_integers},
    {26, "I32", 1, 4, nullptr, codes::of_integers},
    {27, "I64", 1, 8, nullptr, codes::of_integers},
    {28, "F64", 1, 8, nullptr, codes::of_integers},
    {29, "IQ1_M", 256, 56, nullptr, codes::of_lattices},
    {30, "BF16", 1, 2, &block_format<BF16>, {}},
    {31, "Q4_0_4_4", 32, 18, nullptr, codes::is_removed},
    {32, "Q4_0_4_8", 32, 18, nullptr, codes::is_removed},
    {33, "Q4_0_8_8", 32, 18, nullptr, codes::is_removed},
    codes::type_of_blocks<TQ1_0>(34, 52),
    codes::type_of_blocks<TQ2_0>(35, 64),
    {36, "IQ4_NL_4_4", 32, 18, nullptr, codes::is_removed},  // I2_S of ik_llama.cpp
    {37, "IQ4_NL_4_8", 32, 18, nullptr, codes::is_removed},
    {38, "IQ4_NL_8_8", 32, 18, nullptr, codes::is_removed},
    codes::type_of_blocks<GgmlMxfp4>(39),
    codes::type_of_blocks<GgmlNvfp4>(40),
    codes::type_of_blocks<Q1_0>(41, 0),
    codes::type_of_blocks<Q2_0>(42, 0),
    {97, "Q8_0_X4", 0, 0, nullptr, codes::of_ik_llama},
    {98, "Q8_1_X4", 0, 0, nullptr, codes::of_ik_llama},
    {99, "Q8_2_X4", 0, 0, nullptr, codes::of_ik_llama},
    {133, "Q6_0", 0, 0, nullptr, codes::of_ik_llama},
    {134, "IQ1_BN", 0, 0, nullptr, codes::of_ik_llama},
    {135, "IQ2_BN", 0, 0, nullptr, codes::of_ik_llama},
    {136, "Q8_K64", 0, 0, nullptr, codes::of_ik_llama},
    {137, "IQ2_K", 0, 0, nullptr, codes::of_ik_llama},
    {138, "IQ3_K", 0, 0, nullptr, codes::of_ik_llama},
    {139, "IQ4_K", 0, 0, nullptr, codes::of_ik_llama},
    {140, "IQ5_K", 0, 0, nullptr, codes::of_ik_llama},
    {141, "IQ6_K", 0, 0, nullptr, codes::of_ik_llama},
    {144, "IQ4_KS", 0, 0, nullptr, codes::of_ik_llama},
    {145, "IQ2_KS", 0, 0, nullptr, codes::of_ik_llama},
    {146, "IQ4_KSS", 0, 0, nullptr, codes::of_ik_llama},
    {147, "Q8_K16", 0, 0, nullptr, codes::of_ik_llama},
    {148, "Q8_K32", 0, 0, nullptr, codes::of_ik_llama},
    {149, "Q8_KR8", 0, 0, nullptr, codes::of_ik_llama},
    {150, "Q8_K128", 0, 0, nullptr, codes::of_ik_llama},
    {151, "Q8_KV", 0, 0, nullptr, codes::of_ik_llama},
    {152, "IQ5_KS", 0, 0, nullptr, codes::of_ik_llama},
    {153, "IQ2_KT", 0, 0, nullptr, codes::of_ik_llama},
    {154, "IQ3_KT", 0, 0, nullptr, codes::of_ik_llama},
    {155, "IQ4_KT", 0, 0, nullptr, codes::of_ik_llama},
    {156, "IQ3_KS", 0, 0, nullptr, codes::of_ik_llama},
    {157, "IQ2_KL", 0, 0, nullptr, codes::of_ik_llama},
    {158, "IQ1_KT", 0, 0, nullptr, codes::of_ik_llama},
    {202, "Q4_0_R8", 0, 0, nullptr, codes::of_ik_llama},
    {206, "Q5_0_R4", 0, 0, nullptr, codes::of_ik_llama},
    {208, "Q8_0_R8", 0, 0, nullptr, codes::of_ik_llama},
    {210, "Q2_K_R4", 0, 0, nullptr, codes::of_ik_llama},
    {211, "Q3_K_R4", 0, 0, nullptr, codes::of_ik_llama},
    {212, "Q4_K_R4", 0, 0, nullptr, codes::of_ik_llama},
    {213, "Q5_K_R4", 0, 0, nullptr, codes::of_ik_llama},
    {214, "Q6_K_R4", 0, 0, nullptr, codes::of_ik_llama},
    {217, "IQ2_XS_R4", 0, 0, nullptr, codes::of_ik_llama},
    {219, "IQ1_S_R4", 0, 0, nullptr, codes::of_ik_llama},
    {220, "IQ4_NL_R4", 0, 0, nullptr, codes::of_ik_llama},
    {221, "IQ3_S_R4", 0, 0, nullptr, codes::of_ik_llama},
    {222, "IQ2_S_R4", 0, 0, nullptr, codes::of_ik_llama},
    {223, "IQ4_XS_R8", 0, 0, nullptr, codes::of_ik_llama},
    {229, "IQ1_M_R4", 0, 0, nullptr, codes::of_ik_llama},
    {230, "BF16_R16", 0, 0, nullptr, codes::of_ik_llama},
    {233, "Q6_0_R4", 0, 0, nullptr, codes::of_ik_llama},
    {335, "IQ2_BN_R4", 0, 0, nullptr, codes::of_ik_llama},
    {337, "IQ2_K_R4", 0, 0, nullptr, codes::of_ik_llama},
    {338, "IQ3_K_R4", 0, 0, nullptr, codes::of_ik_llama},
    {339, "IQ4_K_R4", 0, 0, nullptr, codes::of_ik_llama},
    {340, "IQ5_K_R4", 0, 0, nullptr, codes::of_ik_llama},
    {344, "IQ4_KS_R4", 0, 0, nullptr, codes::of_ik_llama},
    {352, "IQ5_KS_R4", 0, 0, nullptr, codes::of_ik_llama},
    {353, "MXFP4_R8", 0, 0, nullptr, codes::of_ik_llama},
    {397, "Q8_K_R16", 0, 0, nullptr, codes::of_ik_llama},
    {398, "Q8_KV_R8", 0, 0, nullptr, codes::of_ik_llama},
    {399, "Q8_K_R8", 0, 0, nullptr, codes::of_ik_llama},
};

/// Null where there is none.
constexpr const GgmlType* find_ggml_type(std::uint32_t number) {
  for (const GgmlType& type : ggml_types) {
    if (type.number == number) return &type;
  }
  return nullptr;
}

/// Null where there is none.
constexpr const GgmlType* find_ggml_type(std::string_view name) {
  for (const GgmlType& type : ggml_types) {
    if (type.name == name) return &type;
  }
  return nullptr;
}

}  // namespace moe::inline MOE_TARGET
