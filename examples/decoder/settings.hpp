/// @file  What config.json says of a Qwen3-MoE or Mixtral, but for its MoE layers, which load_layer() knows.
#pragma once

#include <moe/io/config.hpp>
#include <moe/io/error.hpp>

#include <string>

namespace decoder {

using moe::Index;

struct Settings {
  Index d_model, num_layers, vocabulary;
  Index num_heads, num_kv_heads, head_dim;
  Index window;          // so many tokens, itself among them, are seen by a token; 0: all up to itself
  double rope_theta;     // wavelengths of positions grow up to 2π · this
  float norm_epsilon;    // of each RMSNorm
  bool has_head_norms;   // an RMSNorm of each head's queries, and of its keys
  bool attention_bias;   // of the projections of attention
  bool tied_embeddings;  // the output's weights are those of the embedding
};

/// Keys that are absent have the defaults of the published configuration classes.
/// @throws moe::io::Error naming the file, the key and both values, if a setting is missing or none that we can do.
inline Settings read_settings(const moe::io::Config& config) {
  const std::string type = config.text("model_type");
  const bool qwen3 = type == "qwen3_moe";
  if (!qwen3 && type != "mixtral") {
    moe::io::fail(config.file(), ": model_type is \"", type, "\", expected \"qwen3_moe\" or \"mixtral\"");
  }
  // Three generations of keys: rope_parameters, and before that rope_scaling, whose rope_type was once a mere type.
  for (const char* const key :
       {"rope_parameters.rope_type", "rope_parameters.type", "rope_scaling.rope_type", "rope_scaling.type"}) {
    if (const std::string rope = config.text(key, "default"); rope != "default") {
      moe::io::fail(config.file(), ": ", key, " is \"", rope, "\", expected \"default\"");
    }
  }
  const double usual_theta = config.number("rope_theta", qwen3 ? 1e4 : 1e6);
  const bool slides = !qwen3 || config.flag("use_sliding_window", false);
  const auto unless_null = [&](const char* key, Index if_null) {
    return config.is_null(key) ? if_null : config.integer(key);
  };
  const Index d_model = config.integer("hidden_size"), num_heads = config.integer("num_attention_heads");
  const Settings settings{.d_model = d_model,
                          .num_layers = config.integer("num_hidden_layers"),
                          .vocabulary = config.integer("vocab_size"),
                          .num_heads = num_heads,
                          .num_kv_heads = config.integer("num_key_value_heads"),
                          .head_dim = unless_null("head_dim", d_model / num_heads),
                          .window = slides ? unless_null("sliding_window", 0) : 0,
                          .rope_theta = config.number("rope_parameters.rope_theta", usual_theta),
                          .norm_epsilon = float(config.number("rms_norm_eps", qwen3 ? 1e-6 : 1e-5)),
                          .has_head_norms = qwen3,
                          .attention_bias = qwen3 && config.flag("attention_bias", false),
                          .tied_embeddings = config.flag("tie_word_embeddings", false)};
  if (num_heads % settings.num_kv_heads != 0) {
    moe::io::fail(config.file(), ": num_attention_heads is ", num_heads,
                  ", expected a multiple of num_key_value_heads, ", settings.num_kv_heads);
  }
  if (settings.head_dim % 2 != 0) {
    moe::io::fail(config.file(), ": head_dim is ", settings.head_dim, ", expected an even number, whose halves turn");
  }
  return settings;
}

}  // namespace decoder
