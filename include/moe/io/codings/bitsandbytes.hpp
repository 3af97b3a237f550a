/// @file  NF4, FP4 and LLM.int8 of bitsandbytes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/formats/bitsandbytes.hpp"
#include "moe/formats/integers.hpp"
#include "moe/io/codings/coded_module.hpp"
#include "moe/io/error.hpp"
#include "moe/io/json.hpp"
#include "moe/io/quantization.hpp"
#include "moe/io/tensor.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/rounding.hpp"

namespace moe::inline MOE_TARGET::io::detail {

inline constexpr Family four_bits_of_bitsandbytes{"4 bits of bitsandbytes", {{{"bitsandbytes", "load_in_4bit"}}}};
inline constexpr Family int8_of_bitsandbytes{"LLM.int8 of bitsandbytes", {{{"bitsandbytes", "load_in_8bit"}}}};

/// How many numbers share a size, as a stranger's JSON has it.
inline Index block_size(const nlohmann::json& state, const char* key, const std::string& where) {
  constexpr Index most = 1 << 24;  // so that nothing that is added to it overflows
  const Index size = to_sizes(nlohmann::json::array({member(state, key, where)}), key, where)[0];
  if (size < 1 || size > most) fail(where, " has ", key, " ", size, ", expected a number from 1 to ", most);
  return size;
}

inline QuantizedWeight read_int8_of_bitsandbytes(CodedModule& module) {
  const Tensor weight = module.take(module.weight), scales = module.take(module.name + ".SCB");
  module.require_family(weight, int8_of_bitsandbytes);
  const auto [rows, cols] = matrix_shape(weight);
  require_dtype(scales, {"F32"});
  require_shape(scales, {rows});
  require_finite<float>(scales);
  if (module.has(module.name + ".weight_format")) module.take(module.name + ".weight_format");
  const Coding coding{.type = "INT8", .rows = 1, .cols = 0};
  module.require_promised(weight, coding, module.said.of(module.name));
  return made(int8_of_127, rows, cols, {weight.bytes.data(), cols},
              {scales.bytes.data(), 4, 1, std::max<Index>(cols, 1)}, {}, one_of_127, "F32", coding);
}

/// Sizes of blocks that are coded themselves.
inline const std::byte* nested_sizes(CodedModule& module, const Tensor& sizes, const nlohmann::json& state,
                                     const std::string& where) {
  const Tensor maxima = module.take(module.weight + ".nested_absmax"),
               map = module.take(module.weight + ".nested_quant_map");
  require_dtype(maxima, {"F32"});
  require_dtype(map, {"F32"});
  require_shape(map, {256});
  require_finite<float>(maxima);
  require_finite<float>(map);
  const Index together = block_size(state, "nested_blocksize", where);
  const nlohmann::json& said_offset = member(state, "nested_offset", where);
  if (!said_offset.is_number()) fail(where, " has nested_offset ", describe(said_offset), ", expected a number");
  const float offset = said_offset.get<float>();
  const Index count = element_count(sizes);
  if ((count + together - 1) / together != element_count(maxima)) {
    fail(to_string(maxima), " has shape ", to_string(maxima.shape), ", expected one for each ", together, " of ",
         count);
  }
  const auto make = [=, map_here = module.here(map.bytes), maxima_here = module.here(maxima.bytes)](
                        const std::byte* from, std::byte* to) {
    for (Index i = 0; i < count; ++i) {
      const float size = moe::detail::number_at<float>(map_here, Index(from[i]));
      const float of = moe::detail::number_at<float>(maxima_here, i / together);
      const float number = kernels::product(size * of - kernels::Lanes<float>{})[0] + offset;
      std::memcpy(to + i * Index(sizeof number), &number, sizeof number);
    }
  };
  return module.made({sizes.bytes, std::size_t(count) * sizeof(float), make});
}

inline QuantizedWeight read_bitsandbytes(CodedModule& module) {
  const Tensor weight = module.take(module.weight), sizes = module.take(module.weight + ".absmax"),
               map = module.take(module.weight + ".quant_map");
  module.require_family(weight, four_bits_of_bitsandbytes);
  const bool is_nf4 = module.has(module.weight + ".quant_state.bitsandbytes__nf4");
  const Tensor text = module.take(module.weight + ".quant_state.bitsandbytes__" + (is_nf4 ? "nf4" : "fp4"));
  const std::string where = to_string(text);
  const nlohmann::json state = parse_json({reinterpret_cast<const char*>(text.bytes.data()), text.bytes.size()}, where);
  const std::vector<Index> shape = to_sizes(member(state, "shape", where), "shape", where);
  const Index block = block_size(state, "blocksize", where);
  if (shape.size() != 2) fail(where, " has shape ", to_string(shape), ", expected two sizes");
  const Tensor whole{.name = weight.name, .dtype = "F4", .shape = shape, .file = weight.file};
  const Index count = element_count(whole);
  if (Index(weight.bytes.size()) != (count + 1) / 2) {
    fail(to_string(weight), " has ", weight.bytes.size(), " bytes, expected ", (count + 1) / 2, " for ",
         to_string(shape), " numbers of 4 bits");
  }
  if (block % 2 != 0) fail(where, " has blocksize ", block, ", expected an even number");
  const Index blocks = (count + block - 1) / block;
  require_dtype(map, {"F32"});
  require_shape(map, {16});
  require_finite<float>(map);
  require_shape(sizes, {blocks});
  const std::byte* scales = sizes.bytes.data();
  if (sizes.dtype == "U8") {
    scales = nested_sizes(module, sizes, state, where);
  } else {
    require_dtype(sizes, {"F32", "U8"});
    require_finite<float>(sizes);
  }
  const std::byte* table = map.bytes.data();
  if (!is_nf4) {  // the software does not read the table, and its zero with a sign is one
    std::vector<std::byte> signed_map(map.bytes.begin(), map.bytes.end());
    const float zero = -0.F;
    std::memcpy(signed_map.data() + 8 * sizeof zero, &zero, sizeof zero);
    table = module.keep(std::move(signed_map));
  }
  const std::string dtype = to_text(member(state, "dtype", where), "dtype", where);
  const Coding coding{.type = is_nf4 ? "NF4" : "FP4", .rows = 1, .cols = block};
  module.require_promised(weight, coding, module.said.of(module.name));
  const BytePlane codes{weight.bytes.data(), shape[1] / 2}, its_scales{scales, 0, 1, block}, its_table{table};
  if (dtype == "float32")
    return made(table4<float>, shape[0], shape[1], codes, its_scales, its_table, 1, "F32", coding);
  if (dtype == "float16")
    return made(table4<float16>, shape[0], shape[1], codes, its_scales, its_table, 1, "F16", coding);
  if (dtype == "bfloat16") {
    return made(table4<bfloat16>, shape[0], shape[1], codes, its_scales, its_table, 1, "BF16", coding);
  }
  fail(where, " has dtype \"", dtype, "\", expected float32, float16 or bfloat16");
}

}  // namespace moe::inline MOE_TARGET::io::detail
