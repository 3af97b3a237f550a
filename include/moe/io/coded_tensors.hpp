/// @file  The tensors of a model with what is coded as one tensor of its format, whatever it is made of in files.
#pragma once

#include <memory>

#include "moe/io/config.hpp"
#include "moe/io/safetensors.hpp"

namespace moe::inline MOE_TARGET::io::detail {

inline std::shared_ptr<const Tensors> with_coded(const std::shared_ptr<const Tensors>& stored, const Config&) {
  return stored;
}

}  // namespace moe::inline MOE_TARGET::io::detail
