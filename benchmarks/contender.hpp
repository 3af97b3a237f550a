/// @file  A way to compute a layer, to be measured against others.
#pragma once

#include <array>

#include "moe/core/numerics.hpp"
#include "moe/core/types.hpp"
#include "moe/models/presets.hpp"
#include "options.hpp"
#include "work.hpp"

namespace moe::bench {

enum class Kind { moe, moe_fast, moe_packed, moe_invariant, dense_active, dense_total, eigen_per_token, eigen_grouped };

inline constexpr std::array kinds{Kind::moe,          Kind::moe_fast,    Kind::moe_packed,      Kind::moe_invariant,
                                  Kind::dense_active, Kind::dense_total, Kind::eigen_per_token, Kind::eigen_grouped};

inline const char* name_of(Kind kind) {
  switch (kind) {
    case Kind::moe:
      return "moe";
    case Kind::moe_fast:
      return "moe_fast";
    case Kind::moe_packed:
      return "moe_packed";
    case Kind::moe_invariant:
      return "moe_invariant";
    case Kind::dense_active:
      return "dense_active";
    case Kind::dense_total:
      return "dense_total";
    case Kind::eigen_per_token:
      return "eigen_per_token";
    case Kind::eigen_grouped:
      return "eigen_grouped";
  }
  return "";
}

/// Whether it is written by hand on Eigen.
constexpr bool is_by_hand(Kind kind) { return kind == Kind::eigen_per_token || kind == Kind::eigen_grouped; }

/// Whether a coded type has a packed form.
constexpr bool is_packed_type(WeightType type) {
  switch (type) {
    case WeightType::q8_0:
    case WeightType::q6_k:
    case WeightType::q4_k:
    case WeightType::q4_0:
    case WeightType::iq4_nl:
    case WeightType::iq4_xs:
    case WeightType::gguf_mxfp4:
      return true;
    default:
      return false;
  }
}

/// Whether it computes with weights of this type: Eigen has no products of coded ones, and not all are packed.
constexpr bool takes(Kind kind, WeightType type) {
  return kind == Kind::moe_packed ? is_packed_type(type) : !is_by_hand(kind) || !is_coded(type);
}

/// Whether products may be fast.
constexpr bool is_fast(Kind kind) { return kind == Kind::moe_fast || kind == Kind::moe_packed; }

/// How the kind sums its products.
inline Numerics numerics_of(Kind kind) {
  return {.products = is_fast(kind) ? Products::fast : Products::exact, .batch_invariant = kind == Kind::moe_invariant};
}

/// What the machine could do with the products that the kind may take.
inline Limits limits_of(Kind kind, WeightType weights, Limits limits) {
  if (!is_fast(kind)) return limits;
  if (bytes_of(weights) == 2) limits.fma_gflops = limits.pairs_gflops;
  if (is_coded(weights)) limits.fma_gflops = limits.bytes_gflops;
  return limits;
}

/// The hidden units of one layer, all experts together.
constexpr Index total_units(const MoeShape& shape) { return shape.num_experts * shape.d_ff + shape.d_ff_shared; }

/// Those that one token meets.
constexpr Index active_units(const MoeShape& shape) { return shape.top_k * shape.d_ff + shape.d_ff_shared; }

/// A dense FFN has neither router nor biases, and is active as a whole.
constexpr LayerParams params_of(Kind kind, const MoeShape& shape) {
  if (kind != Kind::dense_active && kind != Kind::dense_total) return count_params(shape);
  const Index units = kind == Kind::dense_active ? active_units(shape) : total_units(shape);
  const Index params = count_gated_ffn_params(shape.d_model, units);
  return {.total = params, .active = params};
}

/// It has memory of its own. Successive calls use different weights, as far as there are any.
class Contender {
 public:
  virtual ~Contender() = default;

  /// What is timed. x and y (d_model × n_tokens)
  virtual void forward(const ConstMatrixRef<float>& x, MatrixRef<float> y) = 0;

  /// Of the experts in the last forward; and of its router, if it has one.
  virtual Work experts_work() const = 0;
  virtual Work router_work() const { return {}; }
};

}  // namespace moe::bench
