/// @file  Number formats that are as plain as can be, and matrices in them: what tests of coded weights run on.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "moe/core/quantized.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/experts/ffn_bank.hpp"
#include "moe/formats/ggml.hpp"
#include "random.hpp"

namespace moe::test {

/// Eight numbers of 8 bits, times a float.
struct Bytes8 {
  static constexpr const char* name = "Bytes8";
  static constexpr Index numbers = 8, bytes = 12;
  static void decode(const std::byte* block, float* to) {
    float scale;
    std::memcpy(&scale, block, sizeof scale);
    for (Index i = 0; i < numbers; ++i) to[i] = scale * float(std::int8_t(block[4 + i]));
  }
};

/// Sixteen numbers of 4 bits, the lower halves of eight bytes and then the upper ones, times a float.
struct Halves16 {
  static constexpr const char* name = "Halves16";
  static constexpr Index numbers = 16, bytes = 12;
  static void decode(const std::byte* block, float* to) {
    float scale;
    std::memcpy(&scale, block, sizeof scale);
    for (Index i = 0; i < 8; ++i) {
      const int both = std::to_integer<int>(block[4 + i]);
      to[i] = scale * float(both % 16 - 8);
      to[8 + i] = scale * float(both / 16 - 8);
    }
  }
};

/// Three numbers together, which divide nothing, in two planes, times the factor of the matrix. The last few of a row
/// may be fewer.
inline constexpr NumberFormat triplets = {
    "Triplets", 3, 8 + 8 / 3.0, [](const QuantizedMatrix& matrix, Index row, Index first, Index count, float* to) {
      const std::byte* const code = matrix.codes.row(row) + first;
      const std::byte* const scale = matrix.scales.row(row) + first / 3;
      for (Index i = 0; i < count; ++i) {
        to[i] = matrix.factor * float(std::to_integer<int>(scale[i / 3])) * float(std::int8_t(code[i]));
      }
    }};

/// Random codes of a type of GGUF, with scales of order `size`, and memory of its own.
struct RandomBlocks {
  std::shared_ptr<std::vector<std::byte>> bytes;
  QuantizedMatrix matrix;

  RandomBlocks(const GgmlType& type, Index rows, Index cols, unsigned seed, float size = 0.01F)
      : bytes(std::make_shared<std::vector<std::byte>>(std::size_t(rows * cols / type.numbers * type.bytes))),
        matrix(*type.format, rows, cols, BytePlane{bytes->data(), cols / type.numbers * type.bytes}) {
    Random random(seed);
    for (std::byte& byte : *bytes) byte = std::byte(random.below(256));
    for (std::size_t block = 0; block < bytes->size(); block += std::size_t(type.bytes)) {
      std::byte* const its = bytes->data() + block;
      for (const Index at : type.halves) {
        const float16 half(size * float(1 + random()));
        if (at >= 0) std::memcpy(static_cast<void*>(its + at), &half, sizeof half);
      }
      if (type.format == &block_format<GgmlMxfp4>) its[0] = std::byte(118 + random.below(4));
      if (type.format != &block_format<GgmlNvfp4>) continue;
      for (int i = 0; i < 4; ++i) its[i] = std::byte(random.below(64));
    }
  }
};

/// Random codes of a format, which `memory` keeps, of numbers that keep those of order one at order one.
inline QuantizedMatrix random_codes(const NumberFormat& format, Index rows, Index cols, Random& random,
                                    std::vector<std::shared_ptr<std::vector<std::byte>>>& memory) {
  const auto plane = [&](Index row_bytes) {
    memory.push_back(std::make_shared<std::vector<std::byte>>(std::size_t(rows * row_bytes)));
    for (std::byte& byte : *memory.back()) byte = std::byte(random.below(256));
    return BytePlane{memory.back()->data(), row_bytes};
  };
  const Index blocks = (cols + format.block - 1) / format.block;
  const double size = 2 / std::sqrt(double(cols));  // of a number
  if (&format == &triplets) return {format, rows, cols, plane(cols), plane(blocks), {}, float(size / (255 * 128))};
  const BytePlane codes = plane(blocks * 12);
  for (Index block = 0; block < rows * blocks; ++block) {
    const float scale = float(random() * size / (&format == &block_format<Bytes8> ? 128 : 8));
    std::memcpy(memory.back()->data() + block * 12, &scale, sizeof scale);
  }
  return {format, rows, cols, codes};
}

/// One matrix an expert, in one format after the other that cuts rows of so many numbers into whole blocks.
/// @param which  the first one's
inline WeightStack<Quantized> random_stack(Index num_experts, Index rows, Index cols, unsigned seed,
                                           std::size_t which) {
  const NumberFormat* const formats[] = {&triplets, &block_format<Bytes8>, &block_format<Halves16>};
  Random random(seed);
  std::vector<std::shared_ptr<std::vector<std::byte>>> memory;
  std::vector<QuantizedMatrix> experts;
  for (Index e = 0; e < num_experts; ++e) {
    const NumberFormat* format = formats[(which + std::size_t(e)) % 3];
    if (cols % format->block != 0) format = &triplets;
    experts.push_back(random_codes(*format, rows, cols, random, memory));
  }
  return WeightStack<Quantized>(std::move(experts), std::make_shared<decltype(memory)>(std::move(memory)));
}

/// Of other formats from expert to expert, and from gate to up to down.
template <class Act>
FfnBank<Quantized, Act> coded_bank(Index num_experts, Index d_model, Index d_ff, unsigned seed, bool biased) {
  const auto ins = [&](unsigned which) { return random_stack(num_experts, d_ff, d_model, seed + which, which); };
  const auto bias = [&](Index rows) {
    return biased ? random_matrix<Matrix<float>>(rows, num_experts, seed) : Matrix<float>();
  };
  constexpr bool gated = FfnBank<Quantized, Act>::is_gated;
  return FfnBank<Quantized, Act>::of(gated ? ins(0) : WeightStack<Quantized>(0, 0, 0), ins(1),
                                     random_stack(num_experts, d_model, d_ff, seed + 2, 2), {},
                                     {gated ? bias(d_ff) : Matrix<float>(), bias(d_ff), bias(d_model)});
}

/// A factory of the laws: expert e is made from seeds[e] alone.
struct QuantizedBanks {
  static FfnBank<Quantized> make(Index d_model, std::span<const unsigned> seeds) {
    std::vector<QuantizedMatrix> matrices[3];
    auto memory = std::make_shared<std::vector<FfnBank<Quantized>>>();
    for (const unsigned seed : seeds) {
      memory->push_back(coded_bank<SwiGlu>(1, d_model, 2 * d_model - 1, 10 * seed, false));
      matrices[0].push_back(memory->back().w_gate()[0]);
      matrices[1].push_back(memory->back().w_up()[0]);
      matrices[2].push_back(memory->back().w_down()[0]);
    }
    const auto stack = [&](int i) { return WeightStack<Quantized>(matrices[i], memory); };
    return {stack(0), stack(1), stack(2)};
  }
};

}  // namespace moe::test
