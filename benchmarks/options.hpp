/// @file  What the words on the command line mean.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/models/presets.hpp"

namespace moe::bench {

/// "1,4,16"
/// @throws std::invalid_argument naming `what` unless these are positive numbers.
inline std::vector<Index> parse_numbers(std::string_view list, const std::string& what) {
  std::vector<Index> numbers;
  const char *at = list.data(), *const end = at + list.size();
  while (true) {
    Index number = 0;
    const auto [after, error] = std::from_chars(at, end, number);
    const bool fine = error == std::errc() && number > 0 && (after == end || *after == ',');
    require(fine, what + ": expected positive numbers with commas between them, got \"" + std::string(list) + "\"");
    numbers.push_back(number);
    if (after == end) return numbers;
    at = after + 1;
  }
}

/// "d_model,d_ff,experts,top_k"
/// @throws std::invalid_argument unless these are four positive numbers and top_k ≤ experts.
inline MoeShape parse_shape(std::string_view list) {
  const auto numbers = parse_numbers(list, "--shape");
  require_equal(std::ssize(numbers), 4, "--shape: the count of d_model,d_ff,experts,top_k");
  MoeShape shape{.d_model = numbers[0], .d_ff = numbers[1], .num_experts = numbers[2], .top_k = numbers[3]};
  require_between(1, shape.top_k, shape.num_experts, "--shape: top_k");
  shape.router = TopKOptions{.top_k = shape.top_k};
  return shape;
}

/// What weights can be: floats of 32 and 16 bits, GGUF's blocks, and what safetensors have. The latter two are coded.
enum class WeightType {
  f32,
  bf16,
  f16,
  q8_0,
  q6_k,
  q5_k,
  q5_1,
  q5_0,
  q4_k,
  q4_1,
  q4_0,
  iq4_nl,
  iq4_xs,
  gguf_mxfp4,
  gguf_nvfp4,
  q3_k,
  q2_k,
  tq2_0,
  tq1_0,
  fp8,
  int4_g32,
  int4_g128,
  mxfp4,
  nvfp4
};

struct NamedWeightType {
  WeightType type;
  const char* name;  // on the command line; of safetensors' types, as moe_quantize has it
  double bits;       // of a weight, scales included
};

inline constexpr NamedWeightType named_weight_types[] = {
    {WeightType::f32, "f32", 32},
    {WeightType::bf16, "bf16", 16},
    {WeightType::f16, "f16", 16},
    {WeightType::q8_0, "q8_0", 8.5},
    {WeightType::q6_k, "q6_k", 6.5625},
    {WeightType::q5_k, "q5_k", 5.5},
    {WeightType::q5_1, "q5_1", 6},
    {WeightType::q5_0, "q5_0", 5.5},
    {WeightType::q4_k, "q4_k", 4.5},
    {WeightType::q4_1, "q4_1", 5},
    {WeightType::q4_0, "q4_0", 4.5},
    {WeightType::iq4_nl, "iq4_nl", 4.5},
    {WeightType::iq4_xs, "iq4_xs", 4.25},
    {WeightType::gguf_mxfp4, "gguf_mxfp4", 4.25},
    {WeightType::gguf_nvfp4, "gguf_nvfp4", 4.5},
    {WeightType::q3_k, "q3_k", 3.4375},
    {WeightType::q2_k, "q2_k", 2.625},
    {WeightType::tq2_0, "tq2_0", 2.0625},
    {WeightType::tq1_0, "tq1_0", 1.6875},
    {WeightType::fp8, "fp8", 8 + 32.0 / (128 * 128)},
    {WeightType::int4_g32, "int4_g32", 4 + 16.0 / 32},  // scales of bfloat16
    {WeightType::int4_g128, "int4_g128", 4 + 16.0 / 128},
    {WeightType::mxfp4, "mxfp4", 4 + 8.0 / 32},
    {WeightType::nvfp4, "nvfp4", 4 + 8.0 / 16},
};

inline constexpr std::span<const NamedWeightType> weight_types = named_weight_types,
                                                  float_types = weight_types.first(3);

/// @pre every type is at its place in the list
inline constexpr const NamedWeightType& named(WeightType type) { return weight_types[std::size_t(type)]; }

inline const char* name_of(WeightType type) { return named(type).name; }
inline double bytes_of(WeightType type) { return named(type).bits / 8; }
inline constexpr bool is_coded(WeightType type) { return std::size_t(type) >= float_types.size(); }

/// "f32, bf16, f16"
inline std::string names_of(std::span<const NamedWeightType> types) {
  std::string names;
  for (const NamedWeightType& type : types) names += (names.empty() ? "" : ", ") + std::string(type.name);
  return names;
}

/// "f32,bf16"
/// @param among  what the program takes
/// @throws std::invalid_argument listing these.
inline std::vector<WeightType> parse_weight_types(std::string_view list,
                                                  std::span<const NamedWeightType> among = weight_types) {
  std::vector<WeightType> types;
  for (std::size_t begin = 0; begin <= list.size();) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    const std::string_view name = list.substr(begin, end - begin);
    const auto type = std::ranges::find(among, name, &NamedWeightType::name);
    require(type != among.end(), "--weights: \"" + std::string(name) + "\" is none of " + names_of(among));
    types.push_back(type->type);
    begin = end + 1;
  }
  return types;
}

/// f(std::type_identity<W>()) for the float type that this names.
template <class F>
auto with_float_type(WeightType type, const F& f) {
  eigen_assert(!is_coded(type));
  if (type == WeightType::f32) return f(std::type_identity<float>());
  if (type == WeightType::bf16) return f(std::type_identity<bfloat16>());
  return f(std::type_identity<float16>());
}

/// The same of any type; of all that are coded, W is Quantized.
template <class F>
auto with_type(WeightType type, const F& f) {
  if (is_coded(type)) return f(std::type_identity<Quantized>());
  return with_float_type(type, f);
}

}  // namespace moe::bench
