/// @file  What became of a model whose weights were quantised.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET::io {

/// How far it is, for whoever waits.
struct QuantizeProgress {
  std::size_t bytes = 0, of_bytes = 0;  // of the model that was read
  std::string_view tensor = {};         // that comes next
};

/// A matrix that was quantised.
struct MatrixQuantization {
  std::string tensor;        // that it is, or is part of
  Index expert;              // whose it is, of a tensor of all experts; else -1
  std::vector<Index> shape;  // its own
  double error;              // ‖decoded − w‖ / ‖w‖
  std::string type;          // that it has now: "q4_k"
};

/// All of them, and what stayed.
struct ModelQuantization {
  std::vector<MatrixQuantization> matrices;               // quantised
  std::vector<std::pair<std::string, std::string>> kept;  // tensors of which it was wanted, but: the reason
  std::vector<std::string> unweighed;                     // of which the importance matrix says nothing
  std::vector<std::string> unweighing;                    // types that were asked for, and look at no such matrix
  std::size_t bytes_before = 0, bytes_after = 0;          // of all tensors
};

}  // namespace moe::inline MOE_TARGET::io
