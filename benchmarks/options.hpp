/// @file  What the words on the command line mean.
#pragma once

#include <algorithm>
#include <charconv>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "moe/core/check.hpp"
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

enum class WeightType { f32, bf16, f16 };

inline constexpr WeightType weight_types[] = {WeightType::f32, WeightType::bf16, WeightType::f16};

inline const char* name_of(WeightType type) {
  return type == WeightType::f32 ? "f32" : type == WeightType::bf16 ? "bf16" : "f16";
}

inline double bytes_of(WeightType type) { return type == WeightType::f32 ? 4 : 2; }

/// "f32,bf16"
/// @throws std::invalid_argument listing the types there are.
inline std::vector<WeightType> parse_weight_types(std::string_view list) {
  std::vector<WeightType> types;
  for (std::size_t begin = 0; begin <= list.size();) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    const std::string_view name = list.substr(begin, end - begin);
    const auto* type = std::find_if(std::begin(weight_types), std::end(weight_types),
                                    [&](WeightType candidate) { return name == name_of(candidate); });
    require(type != std::end(weight_types), "--weights: \"" + std::string(name) + "\" is none of f32, bf16, f16");
    types.push_back(*type);
    begin = end + 1;
  }
  return types;
}

/// f(std::type_identity<W>()) for the type that this names.
template <class F>
auto with_type(WeightType type, const F& f) {
  switch (type) {
    case WeightType::f32:
      return f(std::type_identity<float>());
    case WeightType::bf16:
      return f(std::type_identity<bfloat16>());
    case WeightType::f16:
      break;
  }
  return f(std::type_identity<float16>());
}

}  // namespace moe::bench
