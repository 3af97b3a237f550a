#include "reference.hpp"

#include <moe/io/safetensors.hpp>

std::vector<float> reference(const std::string& folder, const std::string& tensor) {
  const auto tensors = moe::io::Tensors::open(folder + "/case.safetensors");
  const auto stored = tensors.at(tensor);
  const auto numbers = moe::io::as<float>(stored);
  return {numbers.begin(), numbers.end()};
}
