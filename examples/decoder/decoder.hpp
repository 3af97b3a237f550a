/// @file  A whole language model around MoE layers.
#pragma once

#include <moe/io/checkpoint.hpp>
#include <moe/io/model.hpp>
#include <moe/moe.hpp>
#include <moe/telemetry.hpp>

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "attention.hpp"
#include "settings.hpp"

namespace decoder {

/// The feed-forward part of a layer.
struct Ffn {
  moe::AnyLayer<float> layer;
  Index num_experts;  // 0: it is dense
};

struct Layer {
  moe::RmsNorm<float> attention_norm, ffn_norm;
  Attention attention;
  Ffn ffn;
};

/// One text, and all that changes while it grows.
struct Text {
  std::vector<KvCache> caches;                 // one a layer
  std::map<Index, moe::RoutingStats> routing;  // of the layers that have experts
  moe::Workspace<float> workspace;             // one for all layers, one after the other

  Index length() const { return caches.empty() ? 0 : caches[0].length; }
};

struct Decoder {
  Settings settings;
  moe::Weight<float> embedding;  // (vocabulary × d_model)
  std::vector<Layer> layers;
  moe::RmsNorm<float> norm;
  std::optional<moe::Weight<float>> head;  // (vocabulary × d_model); none: the embedding is it

  /// Reads the tokens that come next in a text.
  /// @return what the model makes of each, (d_model × n): logits() of a column tell what may follow
  /// @throws std::invalid_argument if a token is none of the vocabulary.
  moe::Matrix<float> read(std::span<const Index> tokens, Text& text, moe::ExecutorRef executor) const {
    const auto n = Index(tokens.size());
    moe::Matrix<float> x(settings.d_model, n), normed = x, y = x;
    for (Index t = 0; t < n; ++t) {
      const Index token = tokens[std::size_t(t)];
      moe::require_between(0, token, settings.vocabulary - 1, "decoder: token");
      x.col(t) = embedding.row(token).transpose();
    }
    text.caches.resize(layers.size());
    const auto with_workers = [&](const auto& f) {
      moe::Workers workers = moe::workers_of(text.workspace, executor);
      f(workers);
    };
    for (std::size_t l = 0; l < layers.size(); ++l) {
      const Layer& layer = layers[l];
      with_workers([&](moe::Workers& workers) {
        layer.attention_norm.apply(x, normed, workers);
        x += layer.attention(normed, text.caches[l], workers);
        layer.ffn_norm.apply(x, normed, workers);
      });
      layer.ffn.layer.forward(normed, y, text.workspace, executor);  // the MoE layer, or the dense one
      x += y;
      if (const Index experts = layer.ffn.num_experts; experts > 0) {
        text.routing.try_emplace(Index(l), experts).first->second.add(text.workspace.routing, n);
      }
    }
    with_workers([&](moe::Workers& workers) { norm.apply(x, x, workers); });
    return x;
  }

  /// (vocabulary × n) of what read() returned, or of some columns of it.
  moe::Matrix<float> logits(const moe::Matrix<float>& x, moe::ExecutorRef executor) const {
    moe::CallScratch scratch;
    moe::Workers workers(executor, scratch);
    moe::Matrix<float> y(settings.vocabulary, x.cols());
    moe::kernels::matmul<float, float>(moe::map_of(head ? *head : embedding), x, y, workers);
    return y;
  }
};

/// @param on_layer  is called as on_layer(layer, of so many) before each is loaded
/// @throws moe::io::Error naming the file, and the tensor or the key, if the model is not one of ours, or not whole.
inline Decoder load(
    const std::filesystem::path& folder, const std::function<void(Index, Index)>& on_layer = [](Index, Index) {}) {
  const moe::io::Model files(folder);
  const Settings s = read_settings(files.config());
  const auto matrix = [&](const std::string& name, Index rows, Index cols) -> moe::Weight<float> {
    return files.tensors().read<float>(name, {rows, cols});
  };
  const auto vector = [&](const std::string& name, Index size) -> moe::Vector<float> {
    return files.tensors().read<float>(name, {size});
  };
  const auto norm = [&](const std::string& name, Index size) {
    return moe::RmsNorm<float>(vector(name + ".weight", size), {.epsilon = s.norm_epsilon});
  };
  const std::vector<moe::io::Block> blocks = files.blocks();
  const auto ffn = [&](const std::string& layer) -> Ffn {
    for (const moe::io::Block& block : blocks) {
      if (!block.name.starts_with(layer)) continue;
      if (!block.sparse) return {files.ffn(block.name), 0};
      return {files.layer(block.name).layer, files.shape().num_experts};
    }
    moe::io::fail(folder.string(), ": no feed-forward part below \"", layer, "\"");
  };

  Decoder model{.settings = s,
                .embedding = matrix("model.embed_tokens.weight", s.vocabulary, s.d_model),
                .layers = {},
                .norm = norm("model.norm", s.d_model),
                .head = {}};
  if (!s.tied_embeddings) model.head = matrix("lm_head.weight", s.vocabulary, s.d_model);
  const Index of_queries = s.num_heads * s.head_dim, of_keys = s.num_kv_heads * s.head_dim;
  for (Index l = 0; l < s.num_layers; ++l) {
    on_layer(l, s.num_layers);
    const std::string layer = "model.layers." + std::to_string(l) + ".", attention = layer + "self_attn.";
    const auto linear = [&](const std::string& name, Index outputs, Index inputs) {
      return moe::Projection<float>(
          matrix(attention + name + ".weight", outputs, inputs),
          s.attention_bias ? vector(attention + name + ".bias", outputs) : moe::Vector<float>());
    };
    const auto head_norm = [&](const char* name) {
      return s.has_head_norms ? std::optional(norm(attention + name, s.head_dim)) : std::nullopt;
    };
    model.layers.push_back({.attention_norm = norm(layer + "input_layernorm", s.d_model),
                            .ffn_norm = norm(layer + "post_attention_layernorm", s.d_model),
                            .attention = {.query = linear("q_proj", of_queries, s.d_model),
                                          .key = linear("k_proj", of_keys, s.d_model),
                                          .value = linear("v_proj", of_keys, s.d_model),
                                          .output = linear("o_proj", s.d_model, of_queries),
                                          .query_norm = head_norm("q_norm"),
                                          .key_norm = head_norm("k_norm"),
                                          .rope = Rope(s.head_dim, s.rope_theta),
                                          .head_dim = s.head_dim,
                                          .window = s.window},
                            .ffn = ffn(layer)});
  }
  return model;
}

}  // namespace decoder
