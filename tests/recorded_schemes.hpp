/// @file  What config.json says of the schemes that tests/real_quant has matrices of.
#pragma once

#include <cstdlib>
#include <string>

#include <nlohmann/json.hpp>

namespace moe::test {

/// What config.json says where a scheme is used.
inline nlohmann::json config_of(const std::string& family, const std::string& scheme) {
  const auto number_after = [&](const std::string& text) {
    return std::atoi(scheme.c_str() + scheme.find(text) + text.size());
  };
  if (family == "compressed_tensors") {
    nlohmann::json weights = {
        {"type", scheme.starts_with("int") ? "int" : "float"}, {"num_bits", 8}, {"symmetric", true}};
    std::string format = scheme.starts_with("mxfp8")  ? "mxfp8-quantized"
                         : scheme == "nvfp4"          ? "nvfp4-pack-quantized"
                         : scheme.starts_with("mxfp") ? scheme + "-pack-quantized"
                                                      : "float-quantized";
    if (scheme.starts_with("int")) {
      weights["num_bits"] = number_after("int");
      weights["symmetric"] = !scheme.ends_with("_asym");
      format = scheme == "int8_channel" || scheme == "int8_tensor_asym" ? "int-quantized" : "pack-quantized";
    }
    if (scheme.starts_with("mxfp") || scheme == "nvfp4") weights["num_bits"] = number_after("fp");
    weights["strategy"] = scheme.find("channel") != scheme.npos  ? "channel"
                          : scheme.find("tensor") != scheme.npos ? "tensor"
                          : scheme == "fp8_block"                ? "block"
                          : scheme == "nvfp4"                    ? "tensor_group"
                                                                 : "group";
    if (scheme == "fp8_block") weights["block_structure"] = {128, 128};
    if (scheme.find("_g") != scheme.npos) weights["group_size"] = number_after("_g");
    if (scheme.starts_with("mxfp")) weights["group_size"] = 32;
    if (scheme == "nvfp4") weights["group_size"] = 16;
    return {{"quant_method", "compressed-tensors"},
            {"format", format},
            {"ignore", {"lm_head", "re:.*mlp\\.gate$"}},
            {"config_groups", {{"group_0", {{"targets", {"Linear"}}, {"weights", weights}}}}}};
  }
  if (family == "transformers_fp8") {
    nlohmann::json json = {{"quant_method", "fp8"}, {"modules_to_not_convert", {"lm_head", "gate"}}};
    if (scheme.find("128x128") != scheme.npos) json["weight_block_size"] = {128, 128};
    if (scheme.find("64x32") != scheme.npos) json["weight_block_size"] = {64, 32};
    return json;
  }
  if (family == "gpt_oss_mxfp4") return {{"quant_method", "mxfp4"}};
  if (family == "gptq_awq") {
    const bool awq = scheme.starts_with("awq");
    nlohmann::json json = {{"quant_method", awq ? "awq" : "gptq"},
                           {"bits", number_after(awq ? "awq" : "gptq")},
                           {"group_size", number_after("_g")}};
    if (awq) json["version"] = "gemm";
    if (scheme.ends_with("v2")) json["checkpoint_format"] = "gptq_v2";
    return json;
  }
  if (family == "bitsandbytes") {
    return {{"quant_method", "bitsandbytes"},
            {scheme.find("int8") == scheme.npos ? "load_in_4bit" : "load_in_8bit", true}};
  }
  if (family == "mlx") {
    if (!scheme.starts_with("affine")) {
      return {{"bits", 4}, {"group_size", 32}, {"mode", scheme.substr(0, scheme.find('_'))}};
    }
    return {{"bits", number_after("affine_")}, {"group_size", std::atoi(scheme.c_str() + scheme.find('_', 7) + 1)}};
  }
  if (family == "modelopt") return {{"quant_method", "modelopt"}, {"quant_algo", "NVFP4"}};
  return {{"quant_method", "torchao"}};
}

}  // namespace moe::test
