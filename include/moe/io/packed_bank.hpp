/// @file  Packed banks in files, used where they are mapped.
///
/// A safetensors file with U8 tensors [panels, bytes of a panel], "codes.experts.3.gate_proj" and
/// "scales.experts.3.gate_proj" (up_proj, down_proj), F32 tensors "factors" and, of a bank that has some,
/// "bias.gate_proj" …, whose rows are filled up to whole lines of the cache, and the sizes and formats as metadata.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/experts/ffn_bank.hpp"
#include "moe/formats/packed.hpp"
#include "moe/io/error.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/safetensors_file.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

inline constexpr const char* packed_bank_format = "moe packed bank";
inline constexpr const char* packed_bank_version = "1";
inline constexpr std::array packed_names = {"gate_proj", "up_proj", "down_proj"};

/// Numbers of a row of F32: whole lines of the cache, so that codes behind them begin one.
inline Index packed_row(Index numbers) { return (numbers + 15) / 16 * 16; }

inline std::string packed_name(const char* plane, Index expert, const char* matrix) {
  return std::string(plane) + ".experts." + std::to_string(expert) + "." + matrix;
}

/// What a file of a packed bank says of itself.
struct PackedBankFile {
  Tensors tensors;
  std::string name;  // for messages

  explicit PackedBankFile(const std::filesystem::path& path) : tensors(Tensors::open(path)), name(utf8(path)) {
    if (text("format") != packed_bank_format) {
      fail(name, ": format is \"", text("format"), "\", expected \"", packed_bank_format, "\"");
    }
    if (text("version") != packed_bank_version) {
      fail(name, ": version is \"", text("version"), "\", expected \"", packed_bank_version, "\"");
    }
  }

  const std::string& text(const std::string& key) const {
    const auto found = tensors.metadata().find(key);
    if (found == tensors.metadata().end()) fail(name, ": metadata have no \"", key, "\", as a packed bank has");
    return found->second;
  }

  /// @throws Error unless it is a whole number from 1 to `most`.
  Index size(const std::string& key, Index most) const {
    const std::string& its = text(key);
    Index number = 0;
    const auto [end, error] = std::from_chars(its.data(), its.data() + its.size(), number);
    if (error != std::errc() || end != its.data() + its.size() || number < 1 || number > most) {
      fail(name, ": ", key, " is \"", its, "\", expected a whole number from 1 to ", most);
    }
    return number;
  }

  const Tensor& plane(const std::string& key, Index panels, Index row_bytes) const {
    const Tensor* const tensor = tensors.find(key);
    if (tensor == nullptr) fail(name, ": no tensor \"", key, "\"");
    if (tensor->dtype != "U8") fail(to_string(*tensor), " is ", tensor->dtype, ", expected U8");
    require_shape(*tensor, {panels, row_bytes});
    return *tensor;
  }

  /// @throws Error if one of them is not finite, or the shape is another.
  Matrix<float> numbers(const std::string& key, Index rows, Index cols) const {
    Matrix<float> its = tensors.read<float>(key, {rows, cols});
    if (!its.allFinite()) fail(name, ": tensor \"", key, "\" holds a number that is not finite: the file is damaged");
    return its;
  }

  /// (rows × cols) of each expert.
  WeightStack<Quantized> stack(std::size_t which, Index num_experts, Index rows, Index cols,
                               const Matrix<float>& factors) const {
    const char* const matrix = packed_names[which];
    const Index panels = packing::panels_of(rows);
    auto owners = std::make_shared<std::vector<std::shared_ptr<const void>>>();
    std::vector<QuantizedMatrix> experts;
    for (Index e = 0; e < num_experts; ++e) {
      const std::string key = packed_name("format", e, matrix);
      const PackedFormat* const format = find_packed_format(text(key));
      if (format == nullptr) fail(name, ": ", key, " is \"", text(key), "\", which is no packed format");
      if (cols % format->packed->block != 0) {
        fail(name, ": ", key, " is ", text(key), " with rows of ", cols, " numbers, expected a multiple of ",
             format->packed->block);
      }
      const Tensor& codes = plane(packed_name("codes", e, matrix), panels, format->row_of_codes(cols));
      const Tensor& scales = plane(packed_name("scales", e, matrix), panels, format->row_of_scales(cols));
      if (const Index at = format->first_not_finite(scales.bytes); at >= 0) {
        fail(to_string(scales), " holds a scale that is not finite at byte ", at, ": the file is damaged");
      }
      experts.push_back(
          packed_matrix(*format, rows, cols, codes.bytes.data(), scales.bytes.data(), factors(Index(which), e)));
      owners->insert(owners->end(), {codes.owner, scales.owner});
    }
    return WeightStack<Quantized>(std::move(experts), owners);
  }

  /// @throws Error naming a tensor that nothing of a bank of so many experts is read from.
  void require_all_known(Index num_experts, bool is_gated) const {
    std::set<std::string> known = {"factors"};
    for (const char* const matrix : packed_names) {
      if (!is_gated && matrix == packed_names[0]) continue;
      known.insert(std::string("bias.") + matrix);
      for (Index e = 0; e < num_experts; ++e) {
        known.insert(packed_name("codes", e, matrix));
        known.insert(packed_name("scales", e, matrix));
      }
    }
    for (const std::string& its : tensors.names()) {
      if (!known.contains(its))
        fail(name, ": tensor \"", its, "\" is none of a packed bank of ", num_experts, " experts");
    }
  }

  /// (rows × num_experts), or empty.
  Matrix<float> bias(const char* matrix, Index rows, Index num_experts) const {
    const std::string key = std::string("bias.") + matrix;
    if (!tensors.contains(key)) return {};
    return numbers(key, num_experts, packed_row(rows)).transpose().topRows(rows);
  }
};

}  // namespace detail

/// Writes a bank that packed() made, whole or not at all: after a crash in the middle, the file that was there is as it
/// was. The activation is not in the file.
/// @throws Error naming the matrix and its format if that is not packed whole; if a scale or bias is not finite; if the
///         file cannot be written.
template <class Act>
void save_packed(const std::filesystem::path& path, const FfnBank<Quantized, Act>& bank) {
  const Index num_experts = bank.num_experts();
  std::vector<Tensor> tensors;
  Metadata metadata = {{"format", detail::packed_bank_format},
                       {"version", detail::packed_bank_version},
                       {"num_experts", std::to_string(num_experts)},
                       {"d_model", std::to_string(bank.d_model())},
                       {"d_ff", std::to_string(bank.d_ff())}};
  Weight<float> factors = Weight<float>::Ones(3, detail::packed_row(num_experts));
  const std::array stacks = {&bank.w_gate(), &bank.w_up(), &bank.w_down()};
  for (std::size_t s = 0; s < stacks.size(); ++s) {
    for (Index e = 0; e < stacks[s]->num_experts(); ++e) {
      const QuantizedMatrix& its = (*stacks[s])[e];
      const char* const matrix = detail::packed_names[s];
      const std::string key = detail::packed_name("format", e, matrix);
      const PackedFormat* const format = find_packed_format(its.format().name);
      if (format == nullptr || format->packed != &its.format()) {
        fail("save_packed: ", key, " is ", its.format().name, ", expected a packed format: packed(bank)");
      }
      if (its.cols() != its.stored_cols() || its.stored_row(0) != 0 || its.stored_row(1) != 1) {
        fail("save_packed: ", key, " is a part of a packed matrix, expected a whole one");
      }
      const Index panels = packing::panels_of(its.rows());
      const std::span<const std::byte> scales(its.scales.data, std::size_t(panels * its.scales.row_bytes));
      if (!std::isfinite(its.factor) || format->first_not_finite(scales) >= 0) {
        fail("save_packed: a scale of ", matrix, " of expert ", e, " is not finite");
      }
      metadata[key] = its.format().name;
      factors(Index(s), e) = its.factor;
      const auto add = [&](const char* plane, const BytePlane& bytes) {
        tensors.push_back({.name = detail::packed_name(plane, e, matrix),
                           .dtype = "U8",
                           .shape = {panels, bytes.row_bytes},
                           .bytes = {bytes.data, std::size_t(panels * bytes.row_bytes)}});
      };
      add("codes", its.codes);
      add("scales", its.scales);
    }
  }
  tensors.push_back(make_tensor("factors", {factors.rows(), factors.cols()},
                                std::span<const float>(factors.data(), std::size_t(factors.size()))));
  std::array<Matrix<float>, 3> biases = {bank.biases().gate, bank.biases().up, bank.biases().down};
  for (std::size_t s = 0; s < biases.size(); ++s) {
    if (biases[s].size() == 0) continue;
    if (!biases[s].allFinite()) fail("save_packed: a bias of ", detail::packed_names[s], " is not finite");
    const Index rows = biases[s].rows();
    biases[s].conservativeResizeLike(Matrix<float>::Zero(detail::packed_row(rows), num_experts));
    tensors.push_back(make_tensor(std::string("bias.") + detail::packed_names[s], {num_experts, biases[s].rows()},
                                  std::span<const float>(biases[s].data(), std::size_t(biases[s].size()))));
  }
  write_safetensors(path, tensors, metadata);
}

/// The bank of such a file, whose weights stay there and are read as they are used. The same file serves every
/// processor.
/// @throws Error naming the file, and what was found and expected: another format or version, sizes that do not fit, a
///         tensor that is missing, of another shape or of no bank, a scale, factor or bias that is not finite, gates
///         where the activation takes none.
template <class Act = SwiGlu>
FfnBank<Quantized, Act> map_packed(const std::filesystem::path& path, Act act = {}) {
  constexpr bool is_gated = FfnBank<Quantized, Act>::is_gated;
  const detail::PackedBankFile file(path);
  constexpr Index most = Index(1) << 30;
  const Index num_experts = file.size("num_experts", Index(file.tensors.names().size()));
  const Index d_model = file.size("d_model", most), d_ff = file.size("d_ff", most);
  if (const bool has_gate = file.tensors.any_below("codes.experts.0.gate_proj"); has_gate != is_gated) {
    fail(file.name, ": experts have ", has_gate ? "a gate" : "no gate", ", expected ",
         is_gated ? "one, for the activation takes two" : "none, for the activation takes one");
  }
  file.require_all_known(num_experts, is_gated);
  const Matrix<float> factors = file.numbers("factors", 3, detail::packed_row(num_experts));
  auto gate = is_gated ? file.stack(0, num_experts, d_ff, d_model, factors) : WeightStack<Quantized>(0, 0, 0);
  auto up = file.stack(1, num_experts, d_ff, d_model, factors);
  auto down = file.stack(2, num_experts, d_model, d_ff, factors);
  return FfnBank<Quantized, Act>::of(
      std::move(gate), std::move(up), std::move(down), std::move(act),
      {file.bias("gate_proj", d_ff, num_experts), file.bias("up_proj", d_ff, num_experts),
       file.bias("down_proj", d_model, num_experts)});
}

}  // namespace moe::inline MOE_TARGET::io
