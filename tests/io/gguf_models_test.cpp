/// @file  GGUF files as models: what llama.cpp's architectures mean, files of its converter, and blocks that are
/// written.
#include "moe/io/gguf_architectures.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "errors.hpp"
#include "load_layer.hpp"
#include "moe/io/checkpoint.hpp"
#include "moe/io/model.hpp"
#include "moe/io/quantize_gguf.hpp"
#include "moe/io/save_gguf.hpp"
#include "moe/moe.hpp"
#include "recorded_folders.hpp"
#include "temporary_folder.hpp"

namespace {

namespace fs = std::filesystem;
using namespace moe;
using namespace moe::io;

constexpr Index d = 8, ff = 4, n = 6, ff_shared = 4;

/// Keys and tensors of a model with one MoE layer, its second.
struct Made {
  std::string architecture;
  GgufFile file = {};

  explicit Made(std::string name) : architecture(std::move(name)) {
    set("general.architecture", gguf_value(architecture));
    count("embedding_length", d).count("expert_count", n).count("expert_used_count", 2);
    count("feed_forward_length", 10).count("expert_feed_forward_length", ff);
    tensor("blk.0.ffn_down.weight", {d, 10})
        .tensor("blk.0.ffn_up.weight", {10, d})
        .tensor("blk.0.ffn_gate.weight", {10, d});
    tensor("blk.1.ffn_gate_inp.weight", {n, d})
        .tensor("blk.1.ffn_norm.weight", {d})
        .tensor("blk.1.attn_q.weight", {d, d});
    tensor("blk.1.ffn_up_exps.weight", {n, ff, d}).tensor("blk.1.ffn_down_exps.weight", {n, d, ff});
    tensor("blk.1.ffn_gate_exps.weight", {n, ff, d});
  }

  Made& set(const std::string& key, const GgufValue& value) {
    std::erase_if(file.metadata, [&](const GgufEntry& entry) { return entry.key == key; });
    file.metadata.push_back({key, value});
    return *this;
  }
  template <class T>
  Made& key(const std::string& name, T value) {
    return set(architecture + "." + name, gguf_value(value));
  }
  Made& count(const std::string& name, Index value) { return key(name, std::uint32_t(value)); }
  Made& without(const std::string& name) {
    std::erase_if(file.metadata, [&](const GgufEntry& entry) { return entry.key == architecture + "." + name; });
    std::erase_if(file.tensors, [&](const Tensor& tensor) { return tensor.name == name; });
    return *this;
  }

  Made& tensor(const std::string& name, std::vector<Index> shape) {
    Tensor made{.name = name, .dtype = "F32", .shape = std::move(shape), .file = "made.gguf"};
    const Index size = element_count(made);
    const Weight<float> numbers =
        random_weight<float>(1, size, /*seed=*/std::uint64_t(name.size() + file.tensors.size()));
    const auto memory = std::make_shared<std::vector<float>>(numbers.data(), numbers.data() + size);
    made.bytes = std::as_bytes(std::span(*memory));
    made.owner = memory;
    file.tensors.push_back(std::move(made));
    return *this;
  }
  Made& bias() { return tensor("blk.1.exp_probs_b.bias", {n}); }
  Made& shared(Index width = ff_shared) {
    return tensor("blk.1.ffn_up_shexp.weight", {width, d})
        .tensor("blk.1.ffn_gate_shexp.weight", {width, d})
        .tensor("blk.1.ffn_down_shexp.weight", {d, width});
  }
  Made& gate_of_shared() { return tensor("blk.1.ffn_gate_inp_shexp.weight", {d}); }  // as quantised files have it
  Made& ungated() { return without("blk.1.ffn_gate_exps.weight"); }
  Made& fused() {
    return without("blk.1.ffn_gate_exps.weight")
        .without("blk.1.ffn_up_exps.weight")
        .tensor("blk.1.ffn_gate_up_exps.weight", {n, 2 * ff, d});
  }

  GgufModel translated() const { return translate_gguf(file, "made.gguf"); }
  MoeShape shape() const {
    const GgufModel model = translated();
    return moe_shape(model.config, model.architecture, 1);
  }
  TopKOptions router() const { return std::get<TopKOptions>(shape().router); }

  /// Through a file: all of it is loaded and runs.
  Index loads() const {
    const test::TemporaryFolder temporary("gguf_models");
    write_gguf(temporary.path / "made.gguf", file.metadata, file.tensors);
    const Model model(temporary.path / "made.gguf");
    EXPECT_EQ(model.moe_blocks(), std::vector<std::string>{"blk.1"});
    const auto loaded = load_layer(model, "blk.1");
    const Matrix<float> x = random_tokens<float>(d, 3, /*seed=*/1);
    Workspace<float> workspace;
    workspace.side.router_input = {x.data(), std::size_t(x.size())};
    const Matrix<float> y = loaded.layer.forward(x, workspace);
    EXPECT_TRUE(y.allFinite() && y.norm() > 0);
    return loaded.shape.num_experts;
  }

  std::string error() const {
    return test::error_of<Error>([&] { loads(); });
  }
};

void expect_parts(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    EXPECT_NE(message.find(part), std::string::npos) << part << "\nis not in\n" << message;
  }
}

/// What a router is to do, without what keeps sums from being 0.
struct Expected {
  Score score;
  bool renormalize;
  double scale = 1;
  Index groups = 1;
};

void expect_router(const Made& made, const std::string& model_type, const Expected& expected) {
  SCOPED_TRACE(made.architecture);
  EXPECT_EQ(made.translated().config.text("model_type"), model_type);
  const TopKOptions router = made.router();
  EXPECT_EQ(router.top_k, 2);
  EXPECT_EQ(router.score, expected.score);
  EXPECT_EQ(router.renormalize, expected.renormalize);
  EXPECT_FLOAT_EQ(float(router.scale), float(expected.scale));
  EXPECT_EQ(router.num_groups, expected.groups);
  EXPECT_EQ(router.weight_on, WeightOn::output);
  EXPECT_LE(router.epsilon, 1e-6);
  EXPECT_LE(router.floor, 1e-12);
  EXPECT_EQ(made.loads(), n);
}

/// Each architecture as its converter writes it: without the keys that it does not write.
TEST(GgufModels, HaveTheRoutersOfTheirArchitectures) {
  constexpr Score softmax = Score::softmax, sigmoid = Score::sigmoid;
  const std::set<std::string> never = {"qwen2moe", "olmoe", "llada-moe", "jamba", "deepseek"};
  const std::map<std::string, std::string> of_softmax = {{"qwen3moe", "qwen3_moe"}, {"qwen3vlmoe", "qwen3_vl_moe_text"},
                                                         {"rnd1", "rnd1"},          {"mellum", "mellum"},
                                                         {"llama", "mixtral"},      {"mixtral", "mixtral"},
                                                         {"mistral3", "mixtral"},   {"minimax-01", "minimax"},
                                                         {"olmoe", "olmoe"},        {"llada-moe", "llada_moe"},
                                                         {"jamba", "jamba"},        {"dbrx", "dbrx"},
                                                         {"arctic", "arctic"}};
  for (const auto& [name, type] : of_softmax) expect_router(Made(name), type, {softmax, !never.contains(name)});

  const std::map<std::string, std::string> with_shared = {
      {"granitemoe", "granitemoeshared"}, {"granitehybrid", "granitemoehybrid"}, {"granite_swa", "granitemoe_swa"},
      {"hunyuan-moe", "hunyuan_v1_moe"},  {"ernie4_5-moe", "ernie4_5_moe"},      {"deepseek", "deepseek"}};
  for (const auto& [name, type] : with_shared) {
    expect_router(Made(name).shared(), type, {softmax, !never.contains(name)});
    EXPECT_EQ(Made(name).shared().shape().d_ff_shared, ff_shared);
    EXPECT_EQ(Made(name).shape().d_ff_shared, 0);
  }
  for (const auto& [name, type] : std::map<std::string, std::string>{{"qwen2moe", "qwen2_moe"},
                                                                     {"qwen3next", "qwen3_next"},
                                                                     {"qwen35moe", "qwen3_5_moe_text"},
                                                                     {"qwen4exp", "qwen4_exp_text"}}) {
    const Made made = Made(name).shared().gate_of_shared().count("expert_shared_feed_forward_length", ff_shared);
    expect_router(made, type, {softmax, !never.contains(name)});
    EXPECT_TRUE(made.shape().shared_gate);
  }
  expect_router(Made("bailingmoe")
                    .shared()
                    .count("expert_shared_count", 1)
                    .key("expert_weights_scale", 1.0F)
                    .key("expert_weights_norm", true),
                "bailing_moe", {softmax, true});

  const std::map<std::string, std::string> of_sigmoid = {{"deepseek2", "deepseek_v3"},
                                                         {"deepseek32", "deepseek_v32"},
                                                         {"glm-dsa", "glm_moe_dsa"},
                                                         {"glm4moe", "glm4_moe"},
                                                         {"dots1", "dots1"},
                                                         {"dots3note", "dots3_note_text"},
                                                         {"bailingmoe2", "bailing_moe_v2"},
                                                         {"bailingmoe3", "bailing_hybrid"},
                                                         {"afmoe", "afmoe"},
                                                         {"laguna", "laguna"},
                                                         {"hy_v3", "hy_v3"},
                                                         {"exaone-moe", "exaone_moe"}};
  for (const auto& [name, type] : of_sigmoid) {
    Made made(name);
    made.shared()
        .bias()
        .count("expert_shared_count", 1)
        .key("expert_weights_scale", 2.5F)
        .key("expert_weights_norm", true);
    made.count("expert_gating_func", 2).count("expert_group_count", 3).count("expert_group_used_count", 2);
    expect_router(made, type, {sigmoid, true, 2.5, 3});
    EXPECT_EQ(made.router().kept_groups, 2);
    EXPECT_EQ(made.router().group_top, 2);
    EXPECT_TRUE(made.shape().selection_bias);
    made.without("expert_gating_func").without("expert_weights_norm").without("expert_weights_scale");
    made.without("expert_group_count").without("expert_group_used_count");
    expect_router(made, type, {sigmoid, false});
    EXPECT_EQ(made.router().group_top, 1);
  }
  for (const auto& [name, type] : std::map<std::string, std::string>{{"minimax-m2", "minimax_m2"},
                                                                     {"lfm2moe", "lfm2_moe"},
                                                                     {"kimi-linear", "kimi_linear"},
                                                                     {"mimo2", "mimo_v2_flash"}}) {
    expect_router(Made(name).bias(), type, {sigmoid, true});
  }
  expect_router(Made("mistral4").shared().key("expert_weights_norm", true), "mistral4", {softmax, true});
  expect_router(Made("deepseek2-ocr").shared(), "deepseek_ocr2_text", {softmax, false});
  expect_router(Made("cohere2moe").key("expert_weights_norm", true), "cohere2_moe", {sigmoid, true});
}

/// Files of DeepSeek-V2 and V3 are of one architecture, and say which only where config.json did.
TEST(GgufModels, TellDeepSeekV2FromV3) {
  const Made v2 = Made("deepseek2")
                      .shared(8)
                      .count("expert_shared_count", 2)
                      .count("expert_group_count", 3)
                      .count("expert_group_used_count", 1);
  expect_router(v2, "deepseek_v2", {Score::softmax, false, 1, 3});
  EXPECT_EQ(v2.router().group_top, 1);
  EXPECT_EQ(v2.shape().d_ff_shared, 8);
  expect_router(Made("deepseek2").shared().bias(), "deepseek_v3", {Score::sigmoid, false});
  expect_router(Made("deepseek2").shared().count("expert_gating_func", 2), "deepseek_v3", {Score::sigmoid, false});
  expect_router(Made("deepseek2").shared().bias().count("expert_gating_func", 1), "deepseek_v3",
                {Score::softmax, false});
  expect_router(Made("deepseek2").shared().count("expert_gating_func", 4), "deepseek_v3",
                {Score::sqrt_softplus, false});
  expect_router(Made("deepseek2").shared().count("expert_gating_func", 3), "deepseek_v3",
                {Score::softmax_of_chosen, false});
}

TEST(GgufModels, HaveWhatTheirTypesHaveBesides) {
  const Made oss = Made("gpt-oss")
                       .tensor("blk.1.ffn_gate_inp.bias", {n})
                       .tensor("blk.1.ffn_up_exps.bias", {n, ff})
                       .tensor("blk.1.ffn_gate_exps.bias", {n, ff})
                       .tensor("blk.1.ffn_down_exps.bias", {n, d});
  expect_router(oss, "gpt_oss", {Score::softmax_of_chosen, false});
  EXPECT_TRUE(oss.shape().expert_bias && oss.shape().router_bias);
  const GptOssGlu glu = std::get<GptOssGlu>(std::get<AnyGatedActivation>(oss.shape().hidden).held());
  EXPECT_EQ(glu.limit, 7.0F);
  EXPECT_EQ(glu.alpha, 1.702F);

  const Made llama4 = Made("llama4").shared();
  EXPECT_EQ(llama4.router().weight_on, WeightOn::input);
  EXPECT_EQ(llama4.router().score, Score::sigmoid);
  EXPECT_EQ(llama4.loads(), n);

  const Made phi = Made("phimoe");
  EXPECT_EQ(std::get<SparseMixerOptions>(phi.shape().router).jitter, 0.01);
  EXPECT_EQ(phi.loads(), n);

  Made nemotron("nemotron_h_moe");
  nemotron.bias()
      .ungated()
      .without("blk.0.ffn_gate.weight")
      .key("expert_weights_norm", true)
      .key("expert_weights_scale", 2.5F);
  nemotron.tensor("blk.1.ffn_up_shexp.weight", {ff_shared, d}).tensor("blk.1.ffn_down_shexp.weight", {d, ff_shared});
  expect_router(nemotron, "nemotron_h", {Score::sigmoid, true, 2.5});
  EXPECT_TRUE(std::get<AnyActivation>(nemotron.shape().hidden).is<ReluSquared>());
  nemotron.without("blk.1.ffn_up_exps.weight").without("blk.1.ffn_down_exps.weight").count("moe_latent_size", 3);
  nemotron.tensor("blk.1.ffn_up_exps.weight", {n, ff, 3}).tensor("blk.1.ffn_down_exps.weight", {n, 3, ff});
  nemotron.tensor("blk.1.ffn_latent_down.weight", {3, d}).tensor("blk.1.ffn_latent_up.weight", {d, 3});
  EXPECT_EQ(nemotron.shape().d_latent, 3);
  EXPECT_EQ(nemotron.loads(), n);

  Made gemma("gemma4");
  gemma.fused()
      .tensor("blk.1.ffn_gate_inp.scale", {d})
      .tensor("blk.1.ffn_down_exps.scale", {n})
      .key("attention.layer_norm_rms_epsilon", 1e-6F);
  gemma.tensor("blk.1.ffn_down.weight", {d, 10})
      .tensor("blk.1.ffn_up.weight", {10, d})
      .tensor("blk.1.ffn_gate.weight", {10, d});
  EXPECT_TRUE(std::get<AnyGatedActivation>(gemma.shape().hidden).is<GeGluTanh>());
  EXPECT_EQ(gemma.loads(), n);

  Made grok("grok");
  grok.key("router_logit_softcapping", 30.0F);
  EXPECT_TRUE(std::get<AnyGatedActivation>(grok.shape().hidden).is<GeGluTanh>());
  EXPECT_EQ(grok.translated().architecture.output_scale(grok.translated().config), 1);
  EXPECT_EQ(grok.loads(), n);
  grok.tensor("blk.1.ffn_down.weight", {d, 10})
      .tensor("blk.1.ffn_up.weight", {10, d})
      .tensor("blk.1.ffn_gate.weight", {10, d});
  EXPECT_EQ(grok.shape().d_ff_shared, 10);
  EXPECT_EQ(grok.translated().architecture.output_scale(grok.translated().config), std::sqrt(0.5));
  EXPECT_EQ(grok.loads(), n);

  const Made cohere = Made("cohere2moe").shared();
  EXPECT_EQ(cohere.translated().architecture.output_scale(cohere.translated().config), 0.5);
  EXPECT_EQ(cohere.loads(), n);

  const auto limit = [](const Made& made, bool shared) {
    const MoeShape shape = made.shape();
    return io::detail::limit_of(shared ? shape.hidden_shared : shape.hidden);
  };
  Made step("step35");
  step.shared()
      .set("step35.swiglu_clamp_exp", gguf_list(std::vector<float>{0, 7}))
      .set("step35.swiglu_clamp_shexp", gguf_list(std::vector<float>{0, 16}));
  EXPECT_EQ(limit(step, false), 7);
  EXPECT_EQ(limit(step, true), 16);
  EXPECT_EQ(step.loads(), n);
  for (const char* const name : {"glm5-next", "hy_v4", "minimax-m3"}) {
    Made made(name);
    made.shared().bias().key("expert_weights_norm", true);
    if (made.architecture != "minimax-m3") made.key("swiglu_clamp_exp", 10.0F);
    EXPECT_EQ(limit(made, false), made.architecture == "minimax-m3" ? 7 : 10) << name;
    EXPECT_EQ(limit(made, true), made.architecture == "hy_v4" ? 0 : limit(made, false)) << name;
    EXPECT_EQ(made.loads(), n);
  }
}

/// What transformers has no class of, but for DeepSeek-V4, and what is made of parts that are here.
TEST(GgufModels, HaveWhatNoFolderHas) {
  Made v4("deepseek4");
  v4.shared().bias().key("expert_weights_norm", true).key("expert_weights_scale", 1.5F).count("expert_gating_func", 4);
  v4.set("deepseek4.swiglu_clamp_exp", gguf_list(std::vector<float>{10, 10})).count("hash_layer_count", 1);
  expect_router(v4, "deepseek_v4", {Score::sqrt_softplus, true, 1.5});
  EXPECT_EQ(io::detail::limit_of(v4.shape().hidden), 10);
  EXPECT_EQ(io::detail::limit_of(v4.shape().hidden_shared), 10);

  const Made thinker = Made("smallthinker").count("expert_gating_func", 2);
  expect_router(thinker, "smallthinker", {Score::sigmoid, true});
  EXPECT_TRUE(thinker.translated().architecture.early_router);
  EXPECT_TRUE(std::get<AnyGatedActivation>(thinker.shape().hidden).is<ReGlu>());
  expect_router(Made("smallthinker").count("expert_gating_func", 1), "smallthinker", {Score::softmax, true});

  for (const float said : {0.0F, 7.0F, 5.0F}) {  // 0: the key is not there
    Made maple("maple");
    if (said > 0) maple.set("maple.swiglu_clamp_exp", gguf_list(std::vector<float>{said, said}));
    expect_router(maple, "maple", {Score::softmax, true});
    const auto glu = std::get<AnyGatedActivation>(maple.shape().hidden).held();
    EXPECT_EQ(std::get<ClampedInputGlu<Silu>>(glu).limit, said > 0 ? said : 7.0F);
  }

  Made k3("kimi-k3");
  k3.bias().shared().key("activation.situ_beta", 4.0F).key("activation.situ_linear_beta", 25.0F);
  k3.key("expert_weights_norm", true).key("expert_weights_scale", 2.5F).count("expert_gating_func", 2);
  expect_router(k3, "kimi_k3", {Score::sigmoid, true, 2.5});
  for (const HiddenActivation& hidden : {k3.shape().hidden, k3.shape().hidden_shared}) {
    EXPECT_EQ(std::get<AnyGatedActivation>(hidden), AnyGatedActivation(SoftcappedSwiGlu{.gate_cap = 4, .up_cap = 25}));
  }
  k3.without("blk.1.ffn_gate_exps.weight").without("blk.1.ffn_up_exps.weight").without("blk.1.ffn_down_exps.weight");
  k3.tensor("blk.1.ffn_up_exps.weight", {n, ff, 3}).tensor("blk.1.ffn_gate_exps.weight", {n, ff, 3});
  k3.tensor("blk.1.ffn_down_exps.weight", {n, 3, ff}).count("expert_latent_length", 3);
  k3.tensor("blk.1.ffn_routed_down.weight", {3, d}).tensor("blk.1.ffn_routed_up.weight", {d, 3});
  EXPECT_EQ(k3.shape().d_latent, 3);
  EXPECT_EQ(k3.loads(), n);
  expect_parts(
      Made(k3).key("attention.layer_norm_rms_epsilon", 1e-5F).tensor("blk.1.ffn_routed_norm.weight", {4}).error(),
      {"tensor \"blk.1.ffn_routed_norm.weight\" has shape [4], expected [3]"});
  expect_parts(Made("kimi-k3").error(), {"made.gguf: has no \"kimi-k3.activation.situ_beta\""});

  const Made nomic = Made("nomic-bert-moe").ungated().without("blk.0.ffn_gate.weight").count("moe_every_n_layers", 2);
  expect_router(nomic, "nomic_bert", {Score::softmax, false});
  EXPECT_TRUE(std::get<AnyActivation>(nomic.shape().hidden).is<Gelu>());
}

/// The same numbers by other parts of the library: what these files compute, token by token.
TEST(GgufModels, ComputeWhatTheirArchitecturesCompute) {
  const auto matrix = [](const Made& made, const std::string& name, Index e = 0) {
    const Tensor* const tensor = &*std::ranges::find(made.file.tensors, name, &Tensor::name);
    const std::size_t rank = tensor->shape.size();
    const Index rows = tensor->shape[rank - 2], cols = tensor->shape[rank - 1];
    return Matrix<float>(
        WeightMap<float>(as<float>(*tensor).data() + e * rows * cols, rows, cols, Eigen::OuterStride<>(cols)));
  };
  const Matrix<float> x = random_tokens<float>(d, 5, /*seed=*/1), before = random_tokens<float>(d, 5, /*seed=*/2);
  const auto check = [&](const Made& made, const auto& weights_of, const auto& hidden_of, bool early) {
    SCOPED_TRACE(made.architecture);
    const test::TemporaryFolder temporary("gguf_computes");
    write_gguf(temporary.path / "made.gguf", made.file.metadata, made.file.tensors);
    Workspace<float> workspace;
    if (early) workspace.side.router_input = {before.data(), std::size_t(before.size())};
    const Matrix<float> y = load_layer(temporary.path / "made.gguf", "blk.1").layer.forward(x, workspace);
    const Matrix<float> logits = matrix(made, "blk.1.ffn_gate_inp.weight") * (early ? before : x);
    for (Index t = 0; t < x.cols(); ++t) {
      std::vector<Index> order(static_cast<std::size_t>(n));
      std::iota(order.begin(), order.end(), Index(0));
      std::ranges::sort(order, std::greater(), [&](Index e) { return logits(e, t); });
      const auto [first, second] = weights_of(Vector<float>(logits.col(t)), order[0], order[1]);
      Vector<float> expected = Vector<float>::Zero(d);
      for (const auto& [e, weight] : {std::pair(order[0], first), std::pair(order[1], second)}) {
        const Vector<float> up = matrix(made, "blk.1.ffn_up_exps.weight", e) * x.col(t);
        expected += weight * matrix(made, "blk.1.ffn_down_exps.weight", e) * hidden_of(e, Vector<float>(x.col(t)), up);
      }
      EXPECT_LE((y.col(t) - expected).cwiseAbs().maxCoeff(), 1e-5F * (1 + expected.cwiseAbs().maxCoeff()));
    }
  };
  const auto sigmoid = [](float l) { return 1 / (1 + std::exp(-l)); };
  const Made thinker = Made("smallthinker").count("expert_gating_func", 2);
  check(
      thinker,
      [&](const Vector<float>& l, Index a, Index b) {
        const float sum = sigmoid(l(a)) + sigmoid(l(b));
        return std::pair(sigmoid(l(a)) / sum, sigmoid(l(b)) / sum);
      },
      [&](Index e, const Vector<float>& token, const Vector<float>& up) {
        const Vector<float> gate = matrix(thinker, "blk.1.ffn_gate_exps.weight", e) * token;
        return Vector<float>(gate.cwiseMax(0.0F).cwiseProduct(up));
      },
      true);
  const Made maple = Made("maple").set("maple.swiglu_clamp_exp", gguf_list(std::vector<float>{0.5F, 0.5F}));
  const auto softmax_of_two = [](const Vector<float>& l, Index a, Index b) {
    const float share = 1 / (1 + std::exp(l(b) - l(a)));
    return std::pair(share, 1 - share);
  };
  check(
      maple, softmax_of_two,
      [&](Index e, const Vector<float>& token, const Vector<float>& up) {
        const Vector<float> gate = (matrix(maple, "blk.1.ffn_gate_exps.weight", e) * token).cwiseMin(0.5F);
        Vector<float> hidden = up.cwiseMin(0.5F).cwiseMax(-0.5F);
        for (Index i = 0; i < hidden.size(); ++i) hidden(i) *= gate(i) * sigmoid(gate(i));
        return hidden;
      },
      false);
  const Made nomic = Made("nomic-bert-moe").ungated();
  check(
      nomic,
      [](const Vector<float>& l, Index a, Index b) {
        const float all = l.array().exp().sum();
        return std::pair(std::exp(l(a)) / all, std::exp(l(b)) / all);
      },
      [](Index, const Vector<float>&, const Vector<float>& up) {
        Vector<float> hidden = up;
        for (float& h : hidden) h *= 0.5F * (1 + std::erf(h / std::sqrt(2.0F)));
        return hidden;
      },
      false);
}

/// Kimi K3's norm of what the experts answer together is before they are projected to the width of the model: the layer
/// without it, and with 1 for W_up, tells what is normed.
TEST(GgufModels, NormWhatExpertsAnswerTogether) {
  Made k3("kimi-k3");
  k3.bias().key("activation.situ_beta", 4.0F).key("activation.situ_linear_beta", 25.0F);
  k3.key("expert_weights_norm", true).count("expert_latent_length", d).key("attention.layer_norm_rms_epsilon", 0.01F);
  k3.tensor("blk.1.ffn_routed_down.weight", {d, d}).tensor("blk.1.ffn_routed_up.weight", {d, d});
  const test::TemporaryFolder temporary("gguf_routed_norm");
  const Matrix<float> x = random_tokens<float>(d, 9, /*seed=*/3);
  const auto answer = [&](const Made& made) {
    write_gguf(temporary.path / "made.gguf", made.file.metadata, made.file.tensors);
    return load_layer(temporary.path / "made.gguf", "blk.1").layer.forward(x);
  };
  const auto numbers_of = [](const Made& made, const std::string& name) {
    return as<float>(*std::ranges::find(made.file.tensors, name, &Tensor::name));
  };
  Made inside = k3;
  inside.without("blk.1.ffn_routed_up.weight").tensor("blk.1.ffn_routed_up.weight", {d, d});
  std::vector<float> one(d * d);
  for (std::size_t i = 0; i < d; ++i) one[i * d + i] = 1;
  inside.file.tensors.back().bytes = std::as_bytes(std::span(one));
  Matrix<float> v = answer(inside);
  k3.tensor("blk.1.ffn_routed_norm.weight", {d});
  const auto gain = numbers_of(k3, "blk.1.ffn_routed_norm.weight"), up = numbers_of(k3, "blk.1.ffn_routed_up.weight");
  for (Index t = 0; t < v.cols(); ++t) {
    v.col(t) /= std::sqrt(v.col(t).squaredNorm() / float(d) + 0.01F);
    for (Index i = 0; i < d; ++i) v(i, t) *= gain[std::size_t(i)];
  }
  const Matrix<float> expected = WeightMap<float>(up.data(), d, d, Eigen::OuterStride<>(d)) * v;
  EXPECT_LE((answer(k3) - expected).cwiseAbs().maxCoeff(), 1e-5F * (1 + expected.cwiseAbs().maxCoeff()));

  // Coded anew, it goes along.
  write_gguf(temporary.path / "in.gguf", k3.file.metadata, k3.file.tensors);
  quantize_gguf(temporary.path / "in.gguf", temporary.path / "out.gguf", {.type = "bf16"});
  const Matrix<float> rounded = load_layer(temporary.path / "out.gguf", "blk.1").layer.forward(x);
  EXPECT_LE((rounded - expected).norm(), 0.02F * expected.norm());
}

TEST(GgufModels, HaveAsManyBlocksAsTheySay) {
  EXPECT_EQ(Made("qwen3moe").count("block_count", 2).loads(), n);
  EXPECT_EQ(Made("glm4moe").bias().count("block_count", 3).count("nextn_predict_layers", 1).loads(), n);  // left out
  expect_parts(Made("qwen3moe").count("block_count", 0).error(),
               {"made.gguf: qwen3moe.block_count is 0, and tensors are of blocks up to \"blk.1\", expected 2"});
  expect_parts(Made("qwen3moe").count("block_count", 1).error(), {"qwen3moe.block_count is 1", "expected 2"});
  expect_parts(Made("qwen3moe").count("block_count", 3).error(), {"qwen3moe.block_count is 3", "expected 2"});
}

TEST(GgufModels, AreAllTested) {
  std::set<std::string> known;
  for (const std::string& name : gguf_architectures()) EXPECT_TRUE(known.insert(name).second) << name;
  EXPECT_EQ(known.size(), 58U);  // who adds one adds it above
}

TEST(GgufModels, ReadExpertsInOneTensorAndWithoutOuterSizes) {
  EXPECT_EQ(Made("qwen3moe").fused().loads(), n);
  Made one("qwen3moe");
  one.count("expert_count", 1).count("expert_used_count", 1);
  for (Tensor& tensor : one.file.tensors) {
    if (tensor.name.find("_exps.") == std::string::npos && tensor.name.find("gate_inp") == std::string::npos) continue;
    tensor.shape.erase(tensor.shape.begin());  // as writers leave out what is 1
    tensor.bytes = tensor.bytes.first(std::size_t(element_count(tensor)) * sizeof(float));
  }
  EXPECT_EQ(one.loads(), 1);
}

TEST(GgufModels, FindSizesWhereKeysAreAbsentOrListed) {
  EXPECT_EQ(Made("olmoe").without("expert_feed_forward_length").shape().d_ff, ff);
  Made listed("nemotron_h_moe");
  listed.set("nemotron_h_moe.expert_used_count", gguf_list(std::vector<std::int32_t>{0, 2}));
  EXPECT_EQ(listed.shape().top_k, 2);
  listed.set("nemotron_h_moe.expert_used_count", gguf_list(std::vector<std::int32_t>{3, 2}));
  expect_parts(test::error_of<Error>([&] { listed.shape(); }),
               {"made.gguf: nemotron_h_moe.expert_used_count is 3 in some layers and 2 in others"});
}

TEST(GgufModels, ListTheirBlocks) {
  const test::TemporaryFolder temporary("gguf_blocks");
  const Made made = Made("qwen2moe").shared().gate_of_shared();
  write_gguf(temporary.path / "made.gguf", made.file.metadata, made.file.tensors);
  const Model model(temporary.path / "made.gguf");
  const auto blocks = model.blocks();
  ASSERT_EQ(blocks.size(), 2U);
  EXPECT_EQ(blocks[0].name, "blk.0");
  EXPECT_FALSE(blocks[0].sparse);
  EXPECT_EQ(blocks[1].name, "blk.1");
  EXPECT_TRUE(blocks[1].sparse);
  EXPECT_EQ(model.ffn("blk.0").d_model(), d);
  EXPECT_EQ(model.read("blk.1.attn_q.weight").rows(), d);
  EXPECT_EQ(model.tensors().metadata().at("general.architecture"), "qwen2moe");
  EXPECT_EQ(Tensors::open(temporary.path / "made.gguf").names(), model.tensors().names());
  expect_parts(test::error_of<Error>([&] { load_layer(model, "blk.0"); }),
               {"made.gguf: no MoE block \"blk.0\" among 1", "did you mean \"blk.1\"?"});
}

TEST(GgufModels, RefuseWhatTheirArchitectureCannotMean) {
  expect_parts(Made("qwen3moe").count("expert_gating_func", 2).error(),
               {"made.gguf: qwen3moe.expert_gating_func is 2, expected 1"});
  expect_parts(Made("deepseek2").count("expert_gating_func", 5).error(),
               {"deepseek2.expert_gating_func is 5, expected 1 (softmax), 2"});
  expect_parts(Made("qwen3moe").key("expert_weights_norm", false).error(),
               {"qwen3moe.expert_weights_norm is false, expected true"});
  expect_parts(Made("olmoe").key("expert_weights_norm", true).error(),
               {"olmoe.expert_weights_norm is true, expected false"});
  expect_parts(Made("llama4").key("expert_weights_scale", 2.0F).error(),
               {"llama4.expert_weights_scale is 2, expected 1"});
  expect_parts(Made("phimoe").count("expert_group_count", 2).error(), {"phimoe.expert_group_count is 2, expected 1"});
  expect_parts(Made("deepseek2").key("expert_weights_scale", std::nanf("")).error(),
               {"deepseek2.expert_weights_scale is nan, expected a number"});
  expect_parts(Made("qwen3moe").key("swiglu_clamp_exp", 7.0F).error(), {"qwen3moe.swiglu_clamp_exp is 7"});
  expect_parts(Made("hy_v4").key("swiglu_clamp_exp", 7.0F).key("swiglu_clamp_shexp", 7.0F).error(),
               {"hy_v4.swiglu_clamp_exp is 7, and that of shared experts 7, expected 0"});
  expect_parts(Made("qwen3moe").key("experts_of_tomorrow", 7.0F).error(),
               {"made.gguf: has \"qwen3moe.experts_of_tomorrow\", which changes what MoE blocks compute"});
  expect_parts(Made("qwen3moe").without("expert_used_count").error(),
               {"made.gguf: has no \"qwen3moe.expert_used_count\""});
  expect_parts(Made("qwen3moe").key("expert_count", 6.0F).error(),
               {"qwen3moe.expert_count is 6.0, expected a whole number from 0"});
  expect_parts(Made("qwen3moe").count("expert_count", 0).error(),
               {"made.gguf: qwen3moe.expert_count is 0, expected 1 or more"});
  expect_parts(Made("qwen3moe").count("expert_used_count", 0).error(), {"qwen3moe.expert_used_count is 0, expected 1"});
  expect_parts(Made("qwen3moe").count("embedding_length", 0).error(), {"qwen3moe.embedding_length is 0, expected 1"});
  expect_parts(Made("deepseek2").key("expert_weights_norm", std::uint32_t(1)).error(),
               {"deepseek2.expert_weights_norm is 1, expected a flag"});
  expect_parts(Made("deepseek2").key("expert_weights_scale", std::string("x")).error(),
               {"deepseek2.expert_weights_scale is a string, expected a number"});
  expect_parts(Made("deepseek2").shared().count("expert_shared_count", 3).error(),
               {"shared experts are 4 wide in tensors", "expected 12 by the keys"});
  expect_parts(Made("deepseek2").count("expert_shared_count", 1).error(),
               {"shared experts are 0 wide in tensors", "expected 4 by the keys"});
  expect_parts(Made("deepseek2").count("expert_group_count", 4).error(),
               {"num_groups 4 does not divide num_experts 6"});
  expect_parts(Made("qwen3moe").count("expert_count", 7).error(),
               {"tensor \"blk.1.ffn_gate_inp.weight\" has shape [6, 8], expected [7, 8]"});
  expect_parts(Made("qwen3moe").count("expert_feed_forward_length", 5).error(),
               {"tensor \"blk.1.ffn_gate_exps.weight\" has shape [6, 4, 8], expected [6, 5, 8]"});
}

TEST(GgufModels, RefuseTensorsOfABlockThatNobodyReads) {
  for (const char* const end : {"ffn_gate_up_exps.scale", "ffn_gate_tid2eid.weight", "exp_probs_b_vl.bias",
                                "ffn_up_chexps.weight", "ffn_gate.weight"}) {
    const std::string name = std::string("blk.1.") + end;
    expect_parts(Made("qwen3moe").tensor(name, {n}).error(),
                 {"tensor \"" + name + "\" is of the block \"blk.1\"", "has nothing that reads it"});
  }
}

TEST(GgufModels, RefuseScalesThatFitNoWeight) {
  const std::string up = "tensor \"blk.1.ffn_up_exps.scale\"";
  expect_parts(Made("qwen3moe").tensor("blk.1.ffn_up_shexp.scale", {1}).error(),
               {"tensor \"blk.1.ffn_up_shexp.scale\" is there, and no \"blk.1.ffn_up_shexp.weight\""});
  expect_parts(Made("qwen3moe").tensor("blk.1.ffn_up_exps.scale", {1}).error(),
               {up + " has shape [1], expected [6], a factor of each matrix"});
  expect_parts(Made("gpt-oss").tensor("blk.1.ffn_up_exps.scale", {n}).tensor("blk.1.ffn_up_exps.bias", {n, ff}).error(),
               {up + " is beside \"blk.1.ffn_up_exps.bias\": whether a bias is multiplied"});
  Made other("qwen3moe");
  other.tensor("blk.1.ffn_up_exps.scale", {n}).file.tensors.back().dtype = "I32";
  expect_parts(other.error(), {up + " has dtype I32, expected F32"});
  Made none("qwen3moe");
  none.tensor("blk.1.ffn_up_exps.scale", {n});
  std::vector<float> numbers(n, 1);
  numbers[4] = std::nanf("");
  none.file.tensors.back().bytes = std::as_bytes(std::span(numbers));
  expect_parts(none.error(), {up + " holds nan, expected finite numbers"});
}

TEST(GgufModels, RefuseOtherArchitectures) {
  Made dense("qwen3");
  dense.without("expert_count");
  expect_parts(dense.error(), {"general.architecture is \"qwen3\" and no key counts experts: this is a dense model, "
                               "expected one of qwen2moe, qwen3moe"});
  expect_parts(Made("qwen9moe").error(), {"general.architecture is \"qwen9moe\", expected one of "});
  expect_parts(Made("grovemoe").error(), {"general.architecture is \"grovemoe\", which is not read: its experts share "
                                          "further ones, in groups (ffn_*_chexps), and no part here does that"});
  Made none("qwen3moe");
  none.without("blk.1.ffn_down_exps.weight");
  expect_parts(none.error(), {"no tensor is called \"blk.*.ffn_down_exps.weight\": there are no MoE layers to load"});
  none.tensor("blk.1.ffn_down.0.weight", {d, ff});
  expect_parts(none.error(), {"for each expert has tensors of its own, as until April 2024: convert the model anew"});
  Made nameless("qwen3moe");
  nameless.set("general.architecture", gguf_value(std::uint32_t(1)));
  expect_parts(nameless.error(), {"made.gguf: has no text at key \"general.architecture\""});
}

// ---- files of llama.cpp's converter

class GgufFolder : public testing::TestWithParam<test::RecordedFolder> {};

/// What its blocks compute, quantized_folders_test holds to what was recorded.
TEST_P(GgufFolder, SaysWhatConfigJsonSaid) {
  const fs::path& folder = GetParam().path;
  const auto recorded = nlohmann::json::parse(std::ifstream(folder / "case.json"));
  const Model model(folder / "model.gguf");
  const auto& config = recorded.at("hf_config");
  const Config expected(config, "case.json");
  EXPECT_EQ(model.config().text("model_type"), expected.text("model_type"));
  const MoeShape of_config = moe_shape(expected);
  const auto differs = difference(model.shape(), of_config);
  EXPECT_FALSE(differs.has_value()) << differs->setting << ": " << differs->of_a << ", " << differs->of_b;
  ASSERT_EQ(std::ssize(model.moe_blocks()), recorded.at("layers").get<Index>());
  for (const auto& [name, said] : recorded.at("tensors_of_block").items()) {
    const Tensor* const tensor = model.tensors().find("blk.0." + name);
    ASSERT_NE(tensor, nullptr) << name;
    EXPECT_EQ(said.get<std::string>().substr(0, said.get<std::string>().find(' ')), tensor->dtype) << name;
  }
}

/// Those of all formats in which there is such a file; or what is missing.
std::vector<test::RecordedFolder> gguf_folders() {
  auto all = test::recorded_folders("tests/real_quant/folders", "MOE_QUANT_DIR", "case.json", "folders");
  std::erase_if(all, [](const auto& folder) {
    return fs::exists(folder.path / "case.json") && !fs::exists(folder.path / "model.gguf");
  });
  return all;
}

INSTANTIATE_TEST_SUITE_P(Folders, GgufFolder, testing::ValuesIn(gguf_folders()), test::name_of);

// ---- blocks that are written

void save(const Model& model, const fs::path& path) {
  std::vector<Tensor> tensors;
  for (const std::string& block : model.moe_blocks()) {
    for (Tensor& tensor : gguf_tensors(model, block)) tensors.push_back(std::move(tensor));
  }
  save_gguf(path, model, tensors, {{"general.name", gguf_value("saved")}});
}

const std::string no_error = test::error_of<Error>([] {});

/// Why the MoE blocks of a folder do not become a file; no error if they do, and then the file computes the same.
std::string expect_saved_or_refused(const fs::path& folder) {
  const test::TemporaryFolder temporary("save_gguf");
  const fs::path path = temporary.path / "saved.gguf";
  const std::string refused = test::error_of<Error>([&] { save(Model(folder), path); });
  EXPECT_EQ(fs::exists(path), refused == no_error);
  if (refused != no_error) return refused;
  const Model model(folder), saved(path);
  EXPECT_EQ(saved.moe_blocks().size(), model.moe_blocks().size());
  for (std::size_t i = 0; i < saved.moe_blocks().size(); ++i) {
    const auto before = load_layer(model, model.moe_blocks()[i]), after = load_layer(saved, saved.moe_blocks()[i]);
    // Long tokens and short ones: small logits share evenly, and large ones meet limits and caps.
    for (const float size : {0.01F, 1.0F, 30.0F}) {
      const Matrix<float> x = size * random_tokens<float>(before.layer.d_model(), 9, /*seed=*/i + 1);
      const std::vector<Index> ids = {0, 1, 2, 3, 4, 5, 6, 7, 8};
      Workspace<float> workspace;
      workspace.side.router_input = {x.data(), std::size_t(x.size())};
      workspace.side.token_ids = ids;
      const Matrix<float> expected = before.layer.forward(x, workspace);
      const std::vector<Index> experts = workspace.routing.expert;
      EXPECT_LE((after.layer.forward(x, workspace) - expected).cwiseAbs().maxCoeff(),
                1e-6 * expected.cwiseAbs().maxCoeff());
      EXPECT_EQ(workspace.routing.expert, experts);
    }
  }
  // A model that is such a file is written again as it is.
  save(saved, temporary.path / "again.gguf");
  EXPECT_EQ(Tensors::open(temporary.path / "again.gguf").names(), Tensors::open(path).names());
  return refused;
}

class WrittenFolder : public testing::TestWithParam<test::RecordedFolder> {};

TEST_P(WrittenFolder, ComputesTheSameOrIsRefused) {
  const fs::path& folder = GetParam().path;
  ASSERT_TRUE(fs::exists(folder / "config.json")) << folder;
  const std::string refused = expect_saved_or_refused(folder);
  const std::set<std::string> written = {"afmoe",
                                         "cohere2_moe_shared_average",
                                         "deepseek_v4",
                                         "deepseek_v4_limit",
                                         "dbrx",
                                         "deepseek_v2",
                                         "deepseek_v2_group",
                                         "deepseek_v3",
                                         "dots1",
                                         "ernie4_5_moe",
                                         "exaone_moe",
                                         "gemma4_text",
                                         "glm4_moe",
                                         "glm4_moe_group",
                                         "glm5_next",
                                         "gpt_oss",
                                         "gpt_oss_bf16",
                                         "gpt_oss_mxfp4",
                                         "granitemoe",
                                         "granitemoeshared",
                                         "hunyuan_v1_moe",
                                         "hy_v3",
                                         "hy_v4",
                                         "jamba",
                                         "kimi_linear",
                                         "lfm2_moe",
                                         "llama4_text",
                                         "mimo_v2_flash",
                                         "minimax_m2",
                                         "minimax_m3_vl_text",
                                         "mixtral",
                                         "nemotron_h",
                                         "nemotron_h_latent",
                                         "olmoe",
                                         "phimoe",
                                         "qwen2_moe",
                                         "qwen3_5_moe_text",
                                         "qwen3_moe",
                                         "qwen3_moe_bf16",
                                         "qwen3_next",
                                         "step3p5",
                                         "step3p5_limits"};
  if (written.contains(GetParam().name)) {
    EXPECT_EQ(refused, no_error);
  }
}

INSTANTIATE_TEST_SUITE_P(Folders, WrittenFolder,
                         testing::ValuesIn(test::recorded_folders("tests/real", "MOE_REAL_DIR", "config.json")),
                         test::name_of);

/// A new option without words of its own is a difference, too: these are all of today, one at a time.
TEST(SaveGguf, SeesEverySettingThatDiffers) {
  const MoeShape plain = {
      .d_model = 8,
      .d_ff = 4,
      .num_experts = 6,
      .top_k = 2,
      .d_ff_shared = 4,
      .selection_bias = true,
      .router = TopKOptions{
          .top_k = 2, .score = Score::sigmoid, .renormalize = true, .num_groups = 3, .kept_groups = 2, .group_top = 2}};
  std::vector<MoeShape> others;
  const auto with = [&](const auto& change) { change(others.emplace_back(plain)); };
  const auto with_router = [&](const auto& change) {
    with([&](MoeShape& shape) { change(std::get<TopKOptions>(shape.router)); });
  };
  with([](MoeShape& its) { its.d_model = 9; });
  with([](MoeShape& its) { its.d_ff = 5; });
  with([](MoeShape& its) { its.num_experts = 9; });
  with([](MoeShape& its) { its.num_zero_experts = 1; });
  with([](MoeShape& its) { its.top_k = 3; });
  with([](MoeShape& its) { its.d_latent = 2; });
  with([](MoeShape& its) { its.d_ff_shared = 5; });
  with([](MoeShape& its) { its.expert_bias = true; });
  with([](MoeShape& its) { its.router_bias = true; });
  with([](MoeShape& its) { its.selection_bias = false; });
  with([](MoeShape& its) { its.shared_gate = true; });
  with([](MoeShape& its) { its.hidden = AnyGatedActivation(GeGlu{}); });
  with([](MoeShape& its) { its.hidden = AnyActivation(Silu{}); });
  with([](MoeShape& its) { its.hidden_shared = AnyGatedActivation(ClampedInputGlu<Silu>{}); });
  with([](MoeShape& its) { its.router = SparseMixerOptions{}; });
  with_router([](TopKOptions& its) { its.top_k = 3; });
  with_router([](TopKOptions& its) { its.score = Score::softmax; });
  with_router([](TopKOptions& its) { its.renormalize = false; });
  with_router([](TopKOptions& its) { its.norm = 2; });
  with_router([](TopKOptions& its) { its.epsilon = 1e-20; });
  with_router([](TopKOptions& its) { its.floor = 0.5; });
  with_router([](TopKOptions& its) { its.scale = 1.5; });
  with_router([](TopKOptions& its) { its.num_groups = 2; });
  with_router([](TopKOptions& its) { its.kept_groups = 1; });
  with_router([](TopKOptions& its) { its.group_top = 1; });
  with_router([](TopKOptions& its) { its.rejected_groups = RejectedGroups::ranked_at_zero; });
  with_router([](TopKOptions& its) { its.bias_on = BiasOn::logits; });
  with_router([](TopKOptions& its) { its.weigh_biased = true; });
  with_router([](TopKOptions& its) { its.always_chosen = 1; });
  with_router([](TopKOptions& its) { its.weight_on = WeightOn::input; });
  std::set<std::string> settings;
  for (const MoeShape& other : others) {
    const auto differs = difference(plain, other);
    ASSERT_TRUE(differs.has_value());
    EXPECT_NE(differs->of_a, differs->of_b) << differs->setting;
    EXPECT_NE(differs->setting, "a setting");
    settings.insert(differs->setting);
  }
  EXPECT_EQ(settings.size(), others.size() - 2);  // two activations, and top_k twice
  EXPECT_FALSE(difference(plain, plain).has_value());

  const auto of_activation = [](const HiddenActivation& a, const HiddenActivation& b) {
    return difference({.hidden = a}, {.hidden = b}).has_value();
  };
  const auto glu = [](const auto& act) { return HiddenActivation(AnyGatedActivation(act)); };
  EXPECT_TRUE(of_activation(glu(GptOssGlu{.alpha = 1.5F}), glu(GptOssGlu{.alpha = 1.25F})));
  EXPECT_TRUE(of_activation(glu(GptOssGlu{.limit = 6}), glu(GptOssGlu{.limit = 7})));
  EXPECT_TRUE(of_activation(glu(ClampedOutputGlu<Silu>{.limit = 6}), glu(ClampedOutputGlu<Silu>{.limit = 7})));
  EXPECT_TRUE(of_activation(glu(SoftcappedSwiGlu{.gate_cap = 1}), glu(SoftcappedSwiGlu{.gate_cap = 2})));
  EXPECT_TRUE(of_activation(glu(SoftcappedSwiGlu{.up_cap = 1}), glu(SoftcappedSwiGlu{.up_cap = 2})));
  EXPECT_FALSE(of_activation(glu(SoftcappedSwiGlu{}), glu(SoftcappedSwiGlu{})));

  const auto of_router = [](const RouterOptions& a, const RouterOptions& b) {
    return difference({.router = a}, {.router = b}).has_value();
  };
  EXPECT_TRUE(of_router(SparseMixerOptions{.jitter = 0.1}, SparseMixerOptions{.jitter = 0.2}));
  EXPECT_FALSE(of_router(TopKOptions{.renormalize = true}, TopKOptions{.score = Score::softmax_of_chosen}));
  EXPECT_FALSE(of_router(TopKOptions{.renormalize = true}, TopKOptions{.renormalize = true, .floor = 1e-12}));
  EXPECT_TRUE(of_router(TopKOptions{.renormalize = true, .floor = 0.5}, TopKOptions{.renormalize = true}));
  EXPECT_FALSE(of_router(TopKOptions{.scale = 2.446}, TopKOptions{.scale = double(2.446F)}));
}

TEST(SaveGguf, RefusesALayerOfOtherSettings) {
  const Model model("tests/real/step3p5_limits");
  const std::string block = model.moe_blocks().at(0);
  const Index own = io::detail::layer_number(block);
  EXPECT_FALSE(gguf_tensors(model, block, own).empty());
  for (const Index other : {0, 1}) {
    const auto of = [&](Index layer) { return moe_shape(model.config(), model.architecture(), layer); };
    const bool fits = !difference(of(own), of(other)).has_value();
    EXPECT_EQ(fits, own == other);
    const std::string error = test::error_of<Error>([&] { gguf_tensors(model, block, other); });
    EXPECT_EQ(error == no_error, fits) << error;
  }
  expect_parts(test::error_of<Error>([&] { gguf_tensors(model, block, 0); }),
               {"cannot be layer 0 of a file: the activation is SwiGLU (factors within 0.5) in it, and SwiGLU in"});
}

TEST(SaveGguf, RefusesWhatGgufCannotSay) {
  const test::TemporaryFolder temporary("save_gguf_refused");
  const auto error = [&](const std::string& name) {
    return test::error_of<Error>([&] {
      const Model model("tests/real/" + name);
      const std::string block = model.moe_blocks().at(0);
      save_gguf(temporary.path / "a.gguf", model, gguf_tensors(model, block));
    });
  };
  expect_parts(error("olmoe_norm"),
               {"a.gguf: GGUF's architecture \"olmoe\" cannot say whether the router renormalises "
                "(norm_topk_prob) of model_type \"olmoe\": here it is true, and who reads the file "
                "would take false"});
  expect_parts(error("qwen2_moe_norm"), {"\"qwen2moe\" cannot say whether the router renormalises (norm_topk_prob)"});
  expect_parts(error("qwen3_moe_absent_norm"), {"\"qwen3moe\" cannot say whether the router renormalises", "is false"});
  expect_parts(error("cohere2_moe_shared_sum"),
               {"\"cohere2moe\" cannot say the factor of outputs", "here it is 1, and", "would take 0.5"});
  expect_parts(error("ernie4_5_moe_norm_min"),
               {"the router's floor (moe_norm_min)", "is 0.6, and", "would take 1e-12"});
  expect_parts(error("phimoe_jitter"), {"the router's jitter (router_jitter_noise)", "is 0.2, and", "would take 0.01"});
  expect_parts(error("gpt_oss_alpha"), {"the activation", "(limit 2, alpha 1), and", "(limit 7, alpha 1.702)"});
  expect_parts(error("minimax_m3_vl_text_limit"), {"cannot say the activation of model_type \"minimax_m3_vl_text\""});
  for (const char* const name : {"longcat_flash", "inkling_text"}) {
    expect_parts(error(name), {std::string("llama.cpp has no architecture for model_type \"") + name + "\""});
  }
  EXPECT_FALSE(fs::exists(temporary.path / "a.gguf"));
}

}  // namespace
