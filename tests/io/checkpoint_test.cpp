#include "moe/io/checkpoint.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <sstream>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "compare.hpp"
#include "load_layer.hpp"
#include "moe/models/presets.hpp"
#include "moe/moe.hpp"
#include "random.hpp"
#include "run_any_layer.hpp"

namespace {

namespace fs = std::filesystem;
using namespace moe;
using namespace moe::io;
using moe::test::Random;
using moe::test::same_bits;
using nlohmann::json;

// ---- a family of models ---------------------------------------------------------------------------------------------

/// Where the width of the shared experts stands.
enum class SharedWidth { none, number_of_experts, key_of_its_own, as_routed };

/// What makers call their settings and tensors. Written down a second time, from their files and not from ours.
struct Family {
  std::string model_type;
  std::string num_experts = "num_experts", top_k = "num_experts_per_tok", d_ff = "moe_intermediate_size";
  json settings = json::object();  // of the router
  TopKOptions options = {};        // what they say, all but top_k
  std::string router = "gate.weight", selection_bias = "";
  std::array<std::string, 3> projections = {"gate_proj", "up_proj", "down_proj"};
  bool transposed = false;
  SharedWidth shared_width = SharedWidth::none;
  std::string shared = "", shared_gate = "";
};

void PrintTo(const Family& of, std::ostream* out) { *out << of.model_type; }

std::vector<Family> families() {
  const std::array<std::string, 3> w1_w3_w2 = {"w1", "w3", "w2"};
  const TopKOptions renormalized = {.renormalize = true};
  const TopKOptions grouped = {
      .score = Score::sigmoid, .scale = 1.75, .num_groups = 3, .kept_groups = 2, .group_top = 2};
  const json norm = {{"norm_topk_prob", true}};
  const json grouping = {{"norm_topk_prob", false}, {"n_group", 3}, {"topk_group", 2}, {"routed_scaling_factor", 1.75}};

  // clang-format off
  std::vector<Family> all = {
      {.model_type = "mixtral", .num_experts = "num_local_experts", .d_ff = "intermediate_size", .options = renormalized, .projections = w1_w3_w2},
      {.model_type = "minimax", .num_experts = "num_local_experts", .d_ff = "intermediate_size", .options = renormalized, .projections = w1_w3_w2},
      {.model_type = "minimax_m2", .num_experts = "num_local_experts", .d_ff = "intermediate_size",
       .options = {.score = Score::sigmoid, .renormalize = true}, .selection_bias = "e_score_correction_bias", .projections = w1_w3_w2},
      {.model_type = "lfm2_moe", .settings = {{"norm_topk_prob", false}, {"routed_scaling_factor", 2}},
       .options = {.score = Score::sigmoid, .scale = 2}, .selection_bias = "expert_bias", .projections = w1_w3_w2},
      {.model_type = "qwen2_moe", .settings = norm, .options = renormalized,
       .shared_width = SharedWidth::key_of_its_own, .shared = "shared_expert", .shared_gate = "shared_expert_gate.weight"},
      {.model_type = "qwen3_moe", .settings = norm, .options = renormalized},
      {.model_type = "qwen3_next", .settings = {{"norm_topk_prob", false}},
       .shared_width = SharedWidth::key_of_its_own, .shared = "shared_expert", .shared_gate = "shared_expert_gate.weight"},
      {.model_type = "olmoe", .d_ff = "intermediate_size", .settings = norm, .options = renormalized},
      {.model_type = "flex_olmo", .d_ff = "intermediate_size", .settings = norm, .options = renormalized},
      {.model_type = "jamba", .d_ff = "intermediate_size", .router = "router.weight"},
      {.model_type = "hunyuan_v1_moe", .top_k = "moe_topk", .d_ff = "intermediate_size", .options = renormalized, .router = "gate.wg.weight",
       .shared_width = SharedWidth::as_routed, .shared = "shared_mlp"},
      {.model_type = "llama4_text", .num_experts = "num_local_experts", .d_ff = "intermediate_size",
       .options = {.score = Score::sigmoid, .weight_on = WeightOn::input}, .router = "router.weight", .transposed = true,
       .shared_width = SharedWidth::as_routed, .shared = "shared_expert"},
      {.model_type = "deepseek", .num_experts = "n_routed_experts", .settings = norm, .options = renormalized,
       .shared_width = SharedWidth::number_of_experts, .shared = "shared_experts"},
      {.model_type = "deepseek_v2", .num_experts = "n_routed_experts",
       .settings = {{"topk_method", "group_limited_greedy"}, {"n_group", 3}, {"topk_group", 2}, {"routed_scaling_factor", 16.0}},
       .options = {.scale = 16, .num_groups = 3, .kept_groups = 2},
       .shared_width = SharedWidth::number_of_experts, .shared = "shared_experts"},
  };
  // clang-format on
  for (const char* const type : {"deepseek_v3", "kimi_k2", "glm4_moe", "dots1"}) {
    all.push_back({.model_type = type,
                   .num_experts = "n_routed_experts",
                   .settings = grouping,
                   .options = grouped,
                   .selection_bias = "gate.e_score_correction_bias",
                   .shared_width = SharedWidth::number_of_experts,
                   .shared = "shared_experts"});
  }
  return all;
}

Family family(const std::string& model_type) {
  for (const Family& one : families()) {
    if (one.model_type == model_type) return one;
  }
  throw std::logic_error("no family " + model_type);
}

/// No width is another one's multiple by accident, experts fall into groups of at least 2.
MoeShape random_shape(const Family& of, unsigned seed) {
  Random random(seed);
  const Index num_experts = of.options.num_groups * (2 + random.below(4));
  const Index top_k = 1 + random.below(num_experts * of.options.kept_groups / of.options.num_groups);
  const Index d_ff = 1 + random.below(40);
  const Index d_ff_shared = of.shared_width == SharedWidth::none                ? 0
                            : of.shared_width == SharedWidth::number_of_experts ? d_ff * (1 + random.below(3))
                            : of.shared_width == SharedWidth::key_of_its_own    ? 1 + random.below(40)
                                                                                : d_ff;
  TopKOptions options = of.options;
  options.top_k = top_k;
  return {.d_model = 1 + random.below(50),
          .d_ff = d_ff,
          .num_experts = num_experts,
          .top_k = top_k,
          .d_ff_shared = d_ff_shared,
          .selection_bias = !of.selection_bias.empty(),
          .shared_gate = !of.shared_gate.empty(),
          .router = options};
}

json config_of(const Family& of, const MoeShape& shape) {
  json config = of.settings;
  config["model_type"] = of.model_type;
  config["hidden_act"] = "silu";
  config["intermediate_size"] = 4711;  // of dense layers, unless it is the experts' own
  config["hidden_size"] = shape.d_model;
  config[of.d_ff] = shape.d_ff;
  config[of.num_experts] = shape.num_experts;
  config[of.top_k] = shape.top_k;
  if (of.shared_width == SharedWidth::number_of_experts) config["n_shared_experts"] = shape.d_ff_shared / shape.d_ff;
  if (of.shared_width == SharedWidth::key_of_its_own) config["shared_expert_intermediate_size"] = shape.d_ff_shared;
  return config;
}

// ---- one block's parameters, in memory and in files -----------------------------------------------------------------

template <class R>
using Row = Eigen::Matrix<R, 1, Eigen::Dynamic>;

/// @tparam W  of the experts
/// @tparam R  of the router
template <class W, class R = ActivationScalar<W>>
struct Block {
  MoeShape shape = {};
  Weight<R> router = {};
  Row<R> selection_bias = {}, shared_gate = {};
  std::vector<GatedFfn<W>> experts = {}, shared = {};  // one shared, or none
};

template <class W>
GatedFfn<W> random_ffn(Index d_model, Index d_ff, std::uint64_t seed) {
  return {random_weight<W>(d_ff, d_model, seed * 3), random_weight<W>(d_ff, d_model, seed * 3 + 1),
          random_weight<W>(d_model, d_ff, seed * 3 + 2)};
}

template <class W, class R = ActivationScalar<W>>
Block<W, R> random_block(const MoeShape& shape, std::uint64_t seed) {
  const Index d = shape.d_model;
  Block<W, R> block{.shape = shape, .router = random_weight<R>(shape.num_experts, d, 1000 * seed)};
  if (shape.selection_bias) block.selection_bias = random_weight<R>(1, shape.num_experts, 1000 * seed + 1);
  if (shape.shared_gate) block.shared_gate = random_weight<R>(1, d, 1000 * seed + 2);
  for (Index e = 0; e < shape.num_experts; ++e) {
    block.experts.push_back(random_ffn<W>(d, shape.d_ff, 1000 * seed + 10 + std::uint64_t(e)));
  }
  if (shape.d_ff_shared > 0) block.shared = {random_ffn<W>(d, shape.d_ff_shared, 1000 * seed + 3)};
  return block;
}

template <class W>
GatedFfnBank<W> bank_of(const std::vector<GatedFfn<W>>& ffns) {
  const auto stack = [&](Weight<W> GatedFfn<W>::* which) {
    const Weight<W>& first = ffns[0].*which;
    WeightStack<W> weights(Index(ffns.size()), first.rows(), first.cols());
    for (std::size_t e = 0; e < ffns.size(); ++e) weights.owned(Index(e)) = ffns[e].*which;
    return weights;
  };
  return {stack(&GatedFfn<W>::w_gate), stack(&GatedFfn<W>::w_up), stack(&GatedFfn<W>::w_down)};
}

/// The layer that no file was ever asked for.
template <class W, class R>
AnyLayer<ActivationScalar<W>> in_memory(const Block<W, R>& block) {
  using S = ActivationScalar<W>;
  LinearTopK<S> router(block.router.template cast<S>(), std::get<TopKOptions>(block.shape.router), {},
                       block.selection_bias.template cast<S>().transpose());
  MoeLayer layer(std::move(router), bank_of(block.experts));
  if (block.shared.empty()) return layer;
  return WithSharedExpert(std::move(layer), bank_of(block.shared), block.shared_gate.template cast<S>());
}

/// A tensor that keeps these values.
template <class T>
Tensor tensor_of(const std::string& name, const std::vector<Index>& shape, std::vector<T> values) {
  const auto kept = std::make_shared<const std::vector<T>>(std::move(values));
  Tensor tensor = make_tensor(name, shape, std::span<const T>(*kept));
  tensor.owner = kept;
  return tensor;
}

/// Row after row.
template <class M>
std::vector<typename M::Scalar> values_of(const M& weight) {
  static_assert(M::IsRowMajor);
  return {weight.data(), weight.data() + weight.size()};
}

template <class M>
Tensor tensor_of(const std::string& name, const M& weight) {
  return tensor_of(name, {weight.rows(), weight.cols()}, values_of(weight));
}

template <class W>
std::vector<Tensor> separate_tensors(const std::string& prefix, const std::array<std::string, 3>& projections,
                                     const GatedFfn<W>& ffn) {
  return {tensor_of(prefix + projections[0] + ".weight", ffn.w_gate),
          tensor_of(prefix + projections[1] + ".weight", ffn.w_up),
          tensor_of(prefix + projections[2] + ".weight", ffn.w_down)};
}

/// [experts, 2·d_ff, d_model] and [experts, d_model, d_ff]; or both turned around.
template <class W>
std::vector<Tensor> fused_tensors(const std::string& prefix, const std::vector<GatedFfn<W>>& ffns, bool transposed) {
  const Index d = ffns[0].d_model(), ff = ffns[0].d_ff(), count = Index(ffns.size());
  std::vector<W> gate_up, down;
  const auto append = [&](std::vector<W>& to, const Weight<W>& weight) {
    const std::vector<W> values = values_of(transposed ? Weight<W>(weight.transpose()) : weight);
    to.insert(to.end(), values.begin(), values.end());
  };
  for (const GatedFfn<W>& ffn : ffns) {
    Weight<W> both(2 * ff, d);
    both << ffn.w_gate, ffn.w_up;
    append(gate_up, both);
    append(down, ffn.w_down);
  }
  using Shape = std::vector<Index>;
  return {tensor_of(prefix + "gate_up_proj", transposed ? Shape{count, d, 2 * ff} : Shape{count, 2 * ff, d}, gate_up),
          tensor_of(prefix + "down_proj", transposed ? Shape{count, ff, d} : Shape{count, d, ff}, down)};
}

enum class Form { separate, fused };

template <class W, class R>
std::vector<Tensor> tensors_of(const Family& of, const Block<W, R>& block, const std::string& prefix,
                               Form form = Form::separate) {
  std::vector<Tensor> tensors = {tensor_of(prefix + of.router, block.router)};
  const auto add = [&](std::vector<Tensor> more) { tensors.insert(tensors.end(), more.begin(), more.end()); };
  if (block.shape.selection_bias) {
    add({tensor_of(prefix + of.selection_bias, {block.shape.num_experts}, values_of(block.selection_bias))});
  }
  if (block.shape.shared_gate) add({tensor_of(prefix + of.shared_gate, block.shared_gate)});
  if (of.transposed || form == Form::fused) {
    add(fused_tensors(prefix + "experts.", block.experts, of.transposed));
  } else {
    for (std::size_t e = 0; e < block.experts.size(); ++e) {
      add(separate_tensors(prefix + "experts." + std::to_string(e) + ".", of.projections, block.experts[e]));
    }
  }
  for (const GatedFfn<W>& ffn : block.shared) {
    add(separate_tensors(prefix + of.shared + ".", {"gate_proj", "up_proj", "down_proj"}, ffn));
  }
  return tensors;
}

// ---- what tests say -------------------------------------------------------------------------------------------------

std::string text_of(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

void write_text(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

/// What the Error says; a failure if there is none. Whatever else is thrown flies on and fails the test.
template <class Action>
std::string error_of(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

void expect_parts(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) EXPECT_NE(message.find(part), message.npos) << message << "\nlacks: " << part;
}

/// Every field, so that two can be compared and a difference be read.
std::string description_of(const TopKOptions& options) {
  const auto& [top_k, score, renormalize, norm, epsilon, floor, scale, num_groups, kept_groups, group_top, rejected,
               bias_on, weigh_biased, always_chosen, weight_on] = options;
  std::ostringstream text;
  text.precision(17);
  text << "top_k " << top_k << ", score " << int(score) << ", renormalize " << renormalize << ", norm " << norm
       << ", epsilon " << epsilon << ", floor " << floor << ", scale " << scale << ", num_groups " << num_groups
       << ", kept_groups " << kept_groups << ", group_top " << group_top << ", rejected_groups " << int(rejected)
       << ", bias_on " << int(bias_on) << ", weigh_biased " << weigh_biased << ", always_chosen " << always_chosen
       << ", weight_on " << int(weight_on);
  return text.str();
}

std::string description_of(const MoeShape& shape) {
  const auto& [d_model, d_ff, num_experts, top_k, d_latent, d_ff_shared, num_zero_experts, expert_bias, router_bias,
               selection_bias, shared_gate, hidden, hidden_shared, router] = shape;
  std::ostringstream text;
  text << "d_model " << d_model << ", d_ff " << d_ff << ", num_experts " << num_experts << ", top_k " << top_k
       << ", d_ff_shared " << d_ff_shared << ", num_zero_experts " << num_zero_experts << ", expert_bias "
       << expert_bias << ", router_bias " << router_bias << ", selection_bias " << selection_bias << ", shared_gate "
       << shared_gate << ", d_latent " << d_latent << ", hidden " << moe::to_string(hidden) << " and "
       << moe::to_string(hidden_shared) << "; "
       << (std::holds_alternative<TopKOptions>(router) ? description_of(std::get<TopKOptions>(router)) : "SparseMixer");
  return text.str();
}

template <class Scalar>
testing::AssertionResult same_answers(const AnyLayer<Scalar>& layer, const AnyLayer<Scalar>& expected) {
  if (layer.d_model() != expected.d_model()) return testing::AssertionFailure() << "d_model is " << layer.d_model();
  const Matrix<Scalar> x = random_tokens<Scalar>(expected.d_model(), 9, 42);
  return same_bits(layer.forward(x), expected.forward(x));
}

/// A folder of its own for each test.
class Checkpoint : public testing::Test {
 protected:
  Checkpoint() {
    folder = fs::temp_directory_path() / ("moe_checkpoint_" + std::to_string(std::random_device{}()));
    fs::create_directories(folder);
  }
  ~Checkpoint() override { fs::remove_all(folder); }

  void write(const json& config, const std::vector<Tensor>& tensors) const {
    write_text(folder / "config.json", config.dump());
    write_safetensors(folder / "model.safetensors", tensors);
  }

  template <class W, class R>
  void write(const Family& of, const Block<W, R>& block, const std::string& prefix, Form form = Form::separate) const {
    write(config_of(of, block.shape), tensors_of(of, block, prefix, form));
  }

  fs::path folder;
};

// ---- every architecture ---------------------------------------------------------------------------------------------

class EveryArchitecture : public Checkpoint, public testing::WithParamInterface<Family> {};

TEST_P(EveryArchitecture, LoadsAsItWasWritten) {
  const Family& of = GetParam();
  for (unsigned seed = 1; seed <= 4; ++seed) {
    const auto block = random_block<float>(random_shape(of, seed), seed);
    SCOPED_TRACE(description_of(block.shape));
    write(of, block, "model.layers.3.mlp.");
    const LoadedLayer<float> loaded = load_layer(folder, "model.layers.3.mlp");
    EXPECT_EQ(loaded.model_type, of.model_type);
    EXPECT_EQ(description_of(loaded.shape), description_of(block.shape));
    EXPECT_TRUE(same_answers(loaded.layer, in_memory(block)));
  }
}

class EveryRowMajorArchitecture : public EveryArchitecture {};

TEST_P(EveryRowMajorArchitecture, LoadsTheSameFromFusedExperts) {
  const Family& of = GetParam();
  for (unsigned seed = 1; seed <= 2; ++seed) {
    const auto block = random_block<bfloat16>(random_shape(of, seed), seed);
    write(of, block, "mlp.", Form::fused);
    EXPECT_TRUE(same_answers(load_layer(folder, "mlp").layer, in_memory(block))) << description_of(block.shape);
  }
}

TEST_P(EveryArchitecture, OutlivesTheFolder) {
  const Family& of = GetParam();
  const auto block = random_block<float16>(random_shape(of, 5), 5);
  write(of, block, "");
  const AnyLayer<float> layer = load_layer(folder, "").layer;
  fs::remove_all(folder);
  EXPECT_TRUE(same_answers(layer, in_memory(block)));
}

std::vector<Family> row_major_families() {
  std::vector<Family> all = families();
  std::erase_if(all, [](const Family& of) { return of.transposed; });
  return all;
}

const auto model_type_of = [](const auto& test) { return test.param.model_type; };
INSTANTIATE_TEST_SUITE_P(Named, EveryArchitecture, testing::ValuesIn(families()), model_type_of);
INSTANTIATE_TEST_SUITE_P(Named, EveryRowMajorArchitecture, testing::ValuesIn(row_major_families()), model_type_of);

// ---- where the tensors are ------------------------------------------------------------------------------------------

TEST_F(Checkpoint, APrefixEndsWithADotOrNot) {
  const Family of = family("qwen2_moe");
  const auto third = random_block<float>(random_shape(of, 1), 3), fourth = random_block<float>(random_shape(of, 1), 4);
  std::vector<Tensor> tensors = tensors_of(of, third, "model.layers.3.mlp.");
  for (Tensor& tensor : tensors_of(of, fourth, "model.layers.4.mlp.")) tensors.push_back(std::move(tensor));
  write(config_of(of, third.shape), tensors);
  EXPECT_TRUE(same_answers(load_layer(folder, "model.layers.3.mlp").layer, in_memory(third)));
  EXPECT_TRUE(same_answers(load_layer(folder, "model.layers.3.mlp.").layer, in_memory(third)));
  EXPECT_TRUE(same_answers(load_layer(folder, "model.layers.4.mlp").layer, in_memory(fourth)));
}

/// The tensors dealt out to three shards, so that one expert's three weights lie in three files.
void write_shards(const fs::path& folder, const std::vector<Tensor>& tensors) {
  json index = {{"metadata", {{"total_size", 1}}}, {"weight_map", json::object()}};
  std::vector<std::vector<Tensor>> shards(3);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    shards[i % 3].push_back(tensors[i]);
    index["weight_map"][tensors[i].name] = "model-0000" + std::to_string(i % 3 + 1) + "-of-00003.safetensors";
  }
  for (std::size_t s = 0; s < 3; ++s) {
    write_safetensors(folder / ("model-0000" + std::to_string(s + 1) + "-of-00003.safetensors"), shards[s]);
  }
  write_text(folder / "model.safetensors.index.json", index.dump());
}

TEST_F(Checkpoint, AnExpertMayLieInSeveralShards) {
  const Family of = family("glm4_moe");
  for (const Form form : {Form::separate, Form::fused}) {
    const auto block = random_block<bfloat16>(random_shape(of, 7), 7);
    write_text(folder / "config.json", config_of(of, block.shape).dump());
    write_shards(folder, tensors_of(of, block, "model.layers.1.mlp.", form));
    const AnyLayer<float> layer = load_layer(folder, "model.layers.1.mlp").layer;
    for (const auto& file : fs::directory_iterator(folder)) fs::remove(file);
    EXPECT_TRUE(same_answers(layer, in_memory(block)));
  }
}

TEST_F(Checkpoint, AModelIsOpenedOnceForAllOfItsLayers) {
  const Family of = family("glm4_moe");
  const std::vector<std::string> blocks = {"model.layers.2.mlp", "model.layers.9.mlp", "model.layers.10.mlp"};
  const auto block_of = [&](unsigned seed) { return random_block<bfloat16>(random_shape(of, 7), seed); };
  const auto first = block_of(7), second = block_of(8), third = block_of(9);
  std::vector<Tensor> tensors = tensors_of(of, first, blocks[0] + ".");
  for (Tensor& tensor : tensors_of(of, second, blocks[1] + ".")) tensors.push_back(std::move(tensor));
  for (Tensor& tensor : tensors_of(of, third, blocks[2] + ".")) tensors.push_back(std::move(tensor));
  const std::vector<float> gain = {1, 2, 3};
  tensors.push_back(make_tensor("model.layers.1.mlp.gate_proj.weight", {3, 1}, gain));  // dense: no MoE block
  tensors.push_back(make_tensor("model.norm.weight", {3}, gain));
  write_text(folder / "config.json", config_of(of, first.shape).dump());
  write_shards(folder, tensors);

  const Model model(folder);
  for (const auto& file : fs::directory_iterator(folder)) fs::remove(file);  // so that none can be opened again
  EXPECT_EQ(model.moe_blocks(), blocks);
  EXPECT_EQ(model.shape().num_experts, first.shape.num_experts);
  EXPECT_TRUE(same_answers(load_layer(model, blocks[0]).layer, in_memory(first)));
  EXPECT_TRUE(same_answers(load_layer(model, blocks[1]).layer, in_memory(second)));
  EXPECT_TRUE(same_answers(load_layer(model, blocks[2]).layer, in_memory(third)));
  EXPECT_EQ(model.tensors().read("model.norm.weight"), Eigen::Map<const Weight<float>>(gain.data(), 3, 1));
  expect_parts(error_of([&] { load_layer(folder, blocks[0]); }), {"config.json: no such file"});
}

TEST_F(Checkpoint, ALayerRunsInAFileThatIncludesNothingButAnyLayer) {
  const Family of = family("qwen3_moe");
  const auto block = random_block<float>(random_shape(of, 5), 5);
  write(of, block, "mlp.");
  const AnyLayer<float> layer = load_layer(folder, "mlp").layer;
  const Matrix<float> x = random_tokens<float>(layer.d_model(), 9, 42);
  EXPECT_TRUE(same_bits(test::run(layer, x), layer.forward(x)));
}

TEST_F(Checkpoint, ATransposedLayerIsItsTurnedTwin) {
  const Family of = family("llama4_text");
  Family turned = of;
  turned.transposed = false;
  const auto block = random_block<float>(random_shape(of, 3), 3);
  const std::vector<Tensor> stored = tensors_of(of, block, ""), twin = tensors_of(turned, block, "", Form::fused);
  ASSERT_EQ(stored[1].name, "experts.gate_up_proj");
  ASSERT_EQ(stored[1].shape[1], twin[1].shape[2]);
  ASSERT_EQ(stored[1].shape[2], twin[1].shape[1]);
  write(config_of(of, block.shape), stored);
  EXPECT_TRUE(same_answers(load_layer(folder, "").layer, in_memory(block)));
}

TEST_F(Checkpoint, AFileThatIsNotAlignedIsReadAllTheSame) {
  for (const Form form : {Form::separate, Form::fused}) {
    const Family of = family("qwen2_moe");
    const auto block = random_block<bfloat16>(random_shape(of, 11), 11);
    write(of, block, "", form);
    std::string text = text_of(folder / "model.safetensors");
    const std::size_t header = static_cast<unsigned char>(text[0]) + 256u * static_cast<unsigned char>(text[1]);
    ASSERT_EQ(text.substr(2, 6), std::string(6, '\0'));
    text.insert(8 + header, " ");  // as an old writer left it
    text[0] = static_cast<char>((header + 1) % 256);
    text[1] = static_cast<char>((header + 1) / 256);
    write_text(folder / "model.safetensors", text);
    ASSERT_FALSE(is_aligned(read_safetensors(folder / "model.safetensors").tensors[0]));
    EXPECT_TRUE(same_answers(load_layer(folder, "").layer, in_memory(block)));
  }
}

#if __has_include(<sys/mman.h>)

/// Writes over the bytes of a file and leaves the file itself what it is: whoever has mapped it sees the new ones.
void overwrite(const fs::path& path, const std::string& text) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.write(text.data(), std::streamsize(text.size()));
}

/// Loads a block, then gives its files the experts of another.
template <class W>
AnyLayer<float> loaded_and_overwritten(const fs::path& folder, const Family& of, const Block<W>& block,
                                       const Block<W>& other, Form form) {
  write_text(folder / "config.json", config_of(of, block.shape).dump());
  const fs::path path = folder / "model.safetensors", other_path = folder / "other";
  write_safetensors(other_path, tensors_of(of, other, "", form));
  const std::string text = text_of(other_path);
  fs::remove(other_path);
  write_safetensors(path, tensors_of(of, block, "", form));
  EXPECT_EQ(fs::file_size(path), text.size());
  const AnyLayer<float> layer = load_layer(folder, "").layer;
  EXPECT_TRUE(same_answers(layer, in_memory(block)));
  overwrite(path, text);
  return layer;
}

template <class W>
class ExpertsOf : public Checkpoint {};
using WeightTypes = testing::Types<float, bfloat16, float16>;
TYPED_TEST_SUITE(ExpertsOf, WeightTypes);

TYPED_TEST(ExpertsOf, AreUsedWhereTheyLieInTheFile) {
  for (const Form form : {Form::separate, Form::fused}) {
    const Family of = family("deepseek_v3");
    const MoeShape shape = random_shape(of, 13);
    const auto block = random_block<TypeParam>(shape, 1);
    auto other = random_block<TypeParam>(shape, 2);
    other.router = block.router;  // it was copied when the layer was loaded
    other.selection_bias = block.selection_bias;
    ASSERT_FALSE(same_answers(in_memory(block), in_memory(other)));
    const AnyLayer<float> layer = loaded_and_overwritten(this->folder, of, block, other, form);
    EXPECT_TRUE(same_answers(layer, in_memory(other)));
  }
}

TYPED_TEST(ExpertsOf, ATransposedLayerAreTurnedOnce) {
  const Family of = family("llama4_text");
  const MoeShape shape = random_shape(of, 17);
  const auto block = random_block<TypeParam>(shape, 1);
  auto other = random_block<TypeParam>(shape, 2), half = other;
  half.router = block.router;
  half.experts = block.experts;  // the shared expert stays in the file
  EXPECT_TRUE(same_answers(loaded_and_overwritten(this->folder, of, block, other, Form::fused), in_memory(half)));
}

#endif

// ---- types of numbers -----------------------------------------------------------------------------------------------

template <class T>
class NumbersOf : public Checkpoint {};
using NumberTypes = testing::Types<float, bfloat16, float16>;
TYPED_TEST_SUITE(NumbersOf, NumberTypes);

TYPED_TEST(NumbersOf, TheRouterMayBeOfAnyTypeBesideBfloat16Experts) {
  const Family of = family("deepseek_v3");
  const auto block = random_block<bfloat16, TypeParam>(random_shape(of, 19), 19);
  this->write(of, block, "");
  EXPECT_TRUE(same_answers(load_layer(this->folder, "").layer, in_memory(block)));
}

TYPED_TEST(NumbersOf, TheExpertsDecideTheWeightsOfALayerOfFloats) {
  for (const char* const type : {"qwen2_moe", "llama4_text"}) {
    const Family of = family(type);
    const auto block = random_block<TypeParam, float>(random_shape(of, 23), 23);
    this->write(of, block, "");
    EXPECT_TRUE(same_answers(load_layer<float>(this->folder, "").layer, in_memory(block)));
  }
}

TEST_F(Checkpoint, ALayerOfDoublesHasWeightsOfDoubles) {
  for (const char* const type : {"deepseek_v3", "qwen2_moe", "llama4_text"}) {
    const Family of = family(type);
    const auto block = random_block<double>(random_shape(of, 29), 29);
    write(of, block, "");
    EXPECT_TRUE(same_answers(load_layer<double>(folder, "").layer, in_memory(block)));
    expect_parts(error_of([&] { load_layer<float>(folder, ""); }),
                 {"model.safetensors: tensor \"experts.", "has dtype F64, expected F32, BF16 or F16"});
  }
}

// ---- config.json ----------------------------------------------------------------------------------------------------

MoeShape shape_of(const json& config) { return moe_shape(Config(config, "config.json")); }

TEST_F(Checkpoint, TheTextPartOfAModelThatSeesIsItsTextConfig) {
  const Family of = family("llama4_text");
  const auto block = random_block<bfloat16>(random_shape(of, 31), 31);
  const json config = {{"model_type", "llama4"},
                       {"hidden_size", 17},
                       {"text_config", config_of(of, block.shape)},
                       {"vision_config", {{"model_type", "llama4_vision_model"}, {"hidden_size", 1408}}}};
  write(config, tensors_of(of, block, "language_model.model.layers.3.feed_forward."));
  const auto loaded = load_layer(folder, "language_model.model.layers.3.feed_forward");
  EXPECT_EQ(loaded.model_type, "llama4_text");
  EXPECT_TRUE(same_answers(loaded.layer, in_memory(block)));
}

/// The sizes alone: all that has no default.
json sizes_of(const Family& of) {
  json config = config_of(of, {.d_model = 12, .d_ff = 5, .num_experts = 16, .top_k = 2, .d_ff_shared = 10});
  for (const auto& [key, value] : of.settings.items()) config.erase(key);
  config.erase("hidden_act");
  return config;
}

TEST(MoeShapeOfConfig, TakesThePublishedDefaultWhereAKeyIsAbsent) {
  // configuration_<model_type>.py of huggingface/transformers; of deepseek and kimi_k2, the one beside the weights.
  const TopKOptions plain = {.top_k = 2}, renormalized = {.top_k = 2, .renormalize = true};
  const TopKOptions deepseek_v3 = {.top_k = 2,
                                   .score = Score::sigmoid,
                                   .renormalize = true,
                                   .epsilon = 1e-20,
                                   .scale = 2.5,
                                   .num_groups = 8,
                                   .kept_groups = 4,
                                   .group_top = 2};
  const std::vector<std::pair<std::string, TopKOptions>> defaults = {
      {"mixtral", renormalized},
      {"minimax", renormalized},
      {"minimax_m2", {.top_k = 2, .score = Score::sigmoid, .renormalize = true}},
      {"lfm2_moe", {.top_k = 2, .score = Score::sigmoid, .renormalize = true, .epsilon = 1e-6}},
      {"qwen2_moe", plain},
      {"qwen3_moe", plain},
      {"qwen3_next", renormalized},
      {"olmoe", plain},
      {"flex_olmo", plain},
      {"jamba", plain},
      {"hunyuan_v1_moe", renormalized},
      {"llama4_text", {.top_k = 2, .score = Score::sigmoid, .weight_on = WeightOn::input}},
      {"deepseek", plain},
      {"deepseek_v2", plain},
      {"deepseek_v3", deepseek_v3},
      {"kimi_k2", deepseek_v3},
      {"glm4_moe", {.top_k = 2, .score = Score::sigmoid, .renormalize = true, .epsilon = 1e-20}},
      {"dots1", {.top_k = 2, .score = Score::sigmoid}}};
  for (const auto& [model_type, options] : defaults) {
    const Family of = family(model_type);
    json config = sizes_of(of);
    EXPECT_EQ(description_of(std::get<TopKOptions>(shape_of(config).router)), description_of(options)) << model_type;
    for (const auto& [key, value] : of.settings.items()) {
      if (key != "norm_topk_prob") continue;
      config[key] = nullptr;  // which is false, wherever it is read
      EXPECT_FALSE(std::get<TopKOptions>(shape_of(config).router).renormalize) << model_type;
    }
  }
}

/// A model's config.json, what concerns its MoE layers.
struct Published {
  const char* preset;
  const char* config;
};

// clang-format off
const Published published_configs[] = {
    {"olmoe-1b-7b",  // allenai/OLMoE-1B-7B-0924
     R"({"model_type": "olmoe", "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 1024, "num_experts": 64,
         "num_experts_per_tok": 8, "norm_topk_prob": false})"},
    {"qwen3-30b-a3b",  // Qwen/Qwen3-30B-A3B
     R"({"model_type": "qwen3_moe", "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
         "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": []})"},
    {"qwen3-235b-a22b",  // Qwen/Qwen3-235B-A22B
     R"({"model_type": "qwen3_moe", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 12288, "moe_intermediate_size": 1536,
         "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": []})"},
    {"mixtral-8x7b",  // mistralai/Mixtral-8x7B-v0.1
     R"({"model_type": "mixtral", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "num_local_experts": 8,
         "num_experts_per_tok": 2, "router_aux_loss_coef": 0.02, "sliding_window": null})"},
    {"mixtral-8x22b",  // mistralai/Mixtral-8x22B-v0.1
     R"({"model_type": "mixtral", "hidden_act": "silu", "hidden_size": 6144, "intermediate_size": 16384, "num_local_experts": 8,
         "num_experts_per_tok": 2})"},
    {"deepseek-moe-16b",  // deepseek-ai/deepseek-moe-16b-base
     R"({"model_type": "deepseek", "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408,
         "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "norm_topk_prob": false, "scoring_func": "softmax"})"},
    {"deepseek-v2-lite",  // deepseek-ai/DeepSeek-V2-Lite
     R"({"model_type": "deepseek_v2", "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408,
         "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "norm_topk_prob": false, "n_group": 1, "topk_group": 1,
         "topk_method": "greedy", "scoring_func": "softmax", "routed_scaling_factor": 1.0})"},
    {"deepseek-v2",  // deepseek-ai/DeepSeek-V2
     R"({"model_type": "deepseek_v2", "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536,
         "n_routed_experts": 160, "n_shared_experts": 2, "num_experts_per_tok": 6, "norm_topk_prob": false, "n_group": 8, "topk_group": 3,
         "topk_method": "group_limited_greedy", "scoring_func": "softmax", "routed_scaling_factor": 16.0})"},
    {"deepseek-v3",  // deepseek-ai/DeepSeek-V3
     R"({"model_type": "deepseek_v3", "hidden_act": "silu", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
         "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "norm_topk_prob": true, "n_group": 8, "topk_group": 4,
         "topk_method": "noaux_tc", "scoring_func": "sigmoid", "routed_scaling_factor": 2.5})"},
    {"kimi-k2",  // moonshotai/Kimi-K2-Instruct
     R"({"model_type": "kimi_k2", "hidden_act": "silu", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
         "n_routed_experts": 384, "n_shared_experts": 1, "num_experts_per_tok": 8, "norm_topk_prob": true, "n_group": 1, "topk_group": 1,
         "topk_method": "noaux_tc", "scoring_func": "sigmoid", "routed_scaling_factor": 2.827})"},
    {"glm-4.5",  // zai-org/GLM-4.5
     R"({"model_type": "glm4_moe", "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536,
         "n_routed_experts": 160, "n_shared_experts": 1, "num_experts_per_tok": 8, "norm_topk_prob": true, "n_group": 1, "topk_group": 1,
         "routed_scaling_factor": 2.5})"},
    {"glm-4.5-air",  // zai-org/GLM-4.5-Air
     R"({"model_type": "glm4_moe", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 10944, "moe_intermediate_size": 1408,
         "n_routed_experts": 128, "n_shared_experts": 1, "num_experts_per_tok": 8, "norm_topk_prob": true, "n_group": 1, "topk_group": 1,
         "routed_scaling_factor": 1.0})"},
    {"llama4-scout",  // meta-llama/Llama-4-Scout-17B-16E
     R"({"model_type": "llama4", "text_config": {"model_type": "llama4_text", "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 8192,
         "intermediate_size_mlp": 16384, "num_local_experts": 16, "num_experts_per_tok": 1},
         "vision_config": {"model_type": "llama4_vision_model", "hidden_act": "gelu", "hidden_size": 1408, "intermediate_size": 5632}})"},
    {"llama4-maverick",  // meta-llama/Llama-4-Maverick-17B-128E
     R"({"model_type": "llama4", "text_config": {"model_type": "llama4_text", "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 8192,
         "intermediate_size_mlp": 16384, "num_local_experts": 128, "num_experts_per_tok": 1},
         "vision_config": {"model_type": "llama4_vision_model", "hidden_act": "gelu", "hidden_size": 1408, "intermediate_size": 5632}})"},
    {"minimax-m2",  // MiniMaxAI/MiniMax-M2
     R"({"model_type": "minimax_m2", "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 1536, "mlp_intermediate_size": 8192,
         "num_local_experts": 256, "num_experts_per_tok": 8, "scoring_func": "sigmoid", "use_routing_bias": true, "shared_intermediate_size": 0})"},
};
// clang-format on

TEST(MoeShapeOfConfig, IsThePresetOfTheModel) {
  for (const auto& [name, config] : published_configs) {
    EXPECT_EQ(description_of(shape_of(json::parse(config))), description_of(layer_shape(name))) << name;
  }
}

TEST(MoeShapeOfConfig, TakesAListThatRepeatsOneNumber) {
  // tencent/Hunyuan-A13B-Instruct writes one number a layer.
  const json config = {{"model_type", "hunyuan_v1_moe"},
                       {"hidden_act", "silu"},
                       {"hidden_size", 4096},
                       {"intermediate_size", 3072},
                       {"moe_intermediate_size", {3072, 3072}},
                       {"num_experts", 64},
                       {"num_shared_expert", {1, 1, 1}},
                       {"moe_topk", {8, 8, 8}}};
  EXPECT_EQ(shape_of(config).top_k, 8);
  for (const json& list : {json::array(), json{8, 4}, json{{8}}, json{8, 8.5}, json{{"0", 8}}}) {
    json bad = config;
    bad["moe_topk"] = list;
    expect_parts(error_of([&] { shape_of(bad); }), {"config.json: moe_topk is an ", "expected a whole number from 1"});
  }
}

TEST(MoeShapeOfConfig, OfDeepSeekV2ScalesAsItsClassUnlessTheHubsCodeIsAskedFor) {
  // modeling_deepseek.py beside the weights of deepseek-ai/DeepSeek-V2: it renormalises, or else scales.
  json config = sizes_of(family("deepseek_v2"));
  config.update({{"norm_topk_prob", true}, {"routed_scaling_factor", 16.0}});
  for (const bool norm : {true, false}) {
    config["norm_topk_prob"] = norm;
    const auto as_hub = [&](bool hub_code) {
      Config its(config, "config.json");
      its.set_hub_code(hub_code);
      return std::get<TopKOptions>(moe_shape(its).router);
    };
    EXPECT_EQ(as_hub(true).scale, norm ? 1 : 16);
    EXPECT_EQ(as_hub(true).renormalize, norm);
    EXPECT_EQ(as_hub(false).scale, 16);
    EXPECT_FALSE(as_hub(false).renormalize);
  }
}

TEST(MoeShapeOfConfig, IsOfNoConfigThatContradictsItsModelType) {
  json config = sizes_of(family("minimax"));
  config["scoring_func"] = "sigmoid";  // MiniMax-M2 under its elder's name
  expect_parts(error_of([&] { shape_of(config); }),
               {"config.json: scoring_func is \"sigmoid\", expected \"softmax\" of model_type \"minimax\""});
  config = sizes_of(family("deepseek_v3"));
  config["scoring_func"] = "softmax";
  expect_parts(error_of([&] { shape_of(config); }), {"scoring_func is \"softmax\", expected \"sigmoid\""});
}

// ---- bad configs ----------------------------------------------------------------------------------------------------

/// A layer of 8 experts, 24 → 16 → 24, that loads.
class BadCheckpoint : public Checkpoint {
 protected:
  static MoeShape shape(const Family& of) {
    TopKOptions options = of.options;
    options.top_k = 2;
    return {.d_model = 24,
            .d_ff = 16,
            .num_experts = 8,
            .top_k = 2,
            .d_ff_shared = of.shared_width == SharedWidth::none ? 0 : 16,
            .selection_bias = !of.selection_bias.empty(),
            .shared_gate = !of.shared_gate.empty(),
            .router = options};
  }

  static Family grouped() {
    Family of = family("deepseek_v3");
    of.settings["n_group"] = 2;
    of.settings["topk_group"] = 1;
    of.options.num_groups = 2;
    of.options.kept_groups = 1;
    return of;
  }

  /// What load_layer says of these tensors.
  std::string error_with(const Family& of, const std::vector<Tensor>& tensors, const std::string& prefix = "mlp") {
    write(config_of(of, shape(of)), tensors);
    return error_of([&] { load_layer(folder, prefix); });
  }

  /// All kinds of tensors.
  static std::vector<std::pair<Family, Form>> forms() {
    return {{family("qwen2_moe"), Form::separate}, {grouped(), Form::fused}, {family("llama4_text"), Form::fused}};
  }

  std::vector<Tensor> good(const Family& of, Form form = Form::separate) {
    const auto block = random_block<bfloat16>(shape(of), 1);
    const std::vector<Tensor> tensors = tensors_of(of, block, "mlp.", form);
    write(config_of(of, block.shape), tensors);
    EXPECT_TRUE(same_answers(load_layer(folder, "mlp").layer, in_memory(block)));
    return tensors;
  }
};

std::vector<Tensor> without(std::vector<Tensor> tensors, const std::string& name) {
  const auto removed = std::erase_if(tensors, [&](const Tensor& tensor) { return tensor.name == name; });
  EXPECT_EQ(removed, 1u) << name;
  return tensors;
}

/// The same with another tensor of that name.
std::vector<Tensor> with(const std::vector<Tensor>& tensors, const Tensor& tensor) {
  std::vector<Tensor> result = without(tensors, tensor.name);
  result.push_back(tensor);
  return result;
}

template <class T>
Tensor zeros(const std::string& name, const std::vector<Index>& shape) {
  Index count = 1;
  for (const Index size : shape) count *= size;
  return tensor_of(name, shape, std::vector<T>(std::size_t(count)));
}

TEST_F(BadCheckpoint, AConfigThatIsNoObjectIsAnError) {
  good(family("qwen3_moe"));
  const std::vector<std::pair<std::string, std::string>> bad = {{"", "config.json: not JSON"},
                                                                {"{", "config.json: not JSON"},
                                                                {"null", "config.json: is null, expected an object"},
                                                                {"[]", "config.json: is array, expected an object"},
                                                                {"7", "config.json: is number, expected an object"},
                                                                {"{}", "config.json: has no \"model_type\""},
                                                                {"{\"a\": \"\xff\"}", "config.json: not JSON"}};
  for (const auto& [text, message] : bad) {
    write_text(folder / "config.json", text);
    expect_parts(error_of([&] { load_layer(folder, "mlp"); }), {folder.string(), message});
  }
  fs::remove(folder / "config.json");
  expect_parts(error_of([&] { load_layer(folder, "mlp"); }), {(folder / "config.json").string(), "no such file"});
  expect_parts(error_of([&] { load_layer(folder / "nowhere", "mlp"); }), {"nowhere", "config.json: no such file"});
}

TEST_F(BadCheckpoint, ASettingThatDoesNotFitIsAnErrorThatNamesIt) {
  const Family of = grouped();
  good(of);
  const json config = json::parse(text_of(folder / "config.json"));
  const std::string whole = ", expected a whole number from 1 to 2147483647";
  const std::vector<std::pair<json, std::string>> bad = {
      {{{"model_type", nullptr}}, "has no \"model_type\""},
      {{{"model_type", 7}}, "model_type is 7, expected a string"},
      {{{"model_type", "bert"}}, "model_type is \"bert\", expected one of "},
      {{{"model_type", std::string(2000, 'x')}}, "model_type is \"xxxx"},
      {{{"text_config", {{"model_type", "bert"}}}}, "model_type is \"bert\" and no key speaks of experts"},
      {{{"hidden_act", "quick_gelu"}}, "hidden_act is \"quick_gelu\", expected \"silu\""},
      {{{"hidden_act", json::array()}}, "hidden_act is an array, expected a string"},
      {{{"hidden_size", nullptr}}, "\"mlp.gate.weight\" has shape [8, 24], expected [8, 7168]"},
      {{{"hidden_size", "24"}}, "hidden_size is \"24\"" + whole},
      {{{"hidden_size", true}}, "hidden_size is true" + whole},
      {{{"hidden_size", json::object()}}, "hidden_size is an object" + whole},
      {{{"hidden_size", -24}}, "hidden_size is -24" + whole},
      {{{"hidden_size", 0}}, "hidden_size is 0" + whole},
      {{{"hidden_size", 24.5}}, "hidden_size is 24.5" + whole},
      {{{"hidden_size", 2147483648}}, "hidden_size is 2147483648" + whole},
      {{{"hidden_size", 18446744073709551615u}}, "hidden_size is 18446744073709551615" + whole},
      {{{"hidden_size", 1e300}}, "hidden_size is 1e+300" + whole},
      {{{"hidden_size", 25}}, "\"mlp.gate.weight\" has shape [8, 24], expected [8, 25]"},
      {{{"hidden_size", 1000000000}}, "\"mlp.gate.weight\" has shape [8, 24], expected [8, 1000000000]"},
      {{{"n_routed_experts", nullptr}}, "\"mlp.gate.weight\" has shape [8, 24], expected [256, 24]"},
      {{{"n_routed_experts", 2147483647}}, "\"mlp.gate.weight\" has shape [8, 24], expected [2147483647, 24]"},
      {{{"n_routed_experts", 10}}, "\"mlp.gate.weight\" has shape [8, 24], expected [10, 24]"},
      {{{"n_routed_experts", 7}}, "\"mlp.gate.weight\" has shape [8, 24], expected [7, 24]"},
      {{{"moe_intermediate_size", nullptr}}, "gate_proj.weight\" has shape [16, 24], expected [2048, 24]"},
      {{{"moe_intermediate_size", 2147483647}}, "gate_proj.weight\" has shape [16, 24], expected [2147483647, 24]"},
      {{{"n_shared_experts", 2}}, "shared_experts.gate_proj.weight\" has shape [16, 24], expected [32, 24]"},
      {{{"n_shared_experts", 0}}, "tensor \"mlp.shared_experts.down_proj.weight\" is of the block \"mlp\""},
      {{{"swiglu_limit", 7}},
       "has \"swiglu_limit\", which changes what MoE blocks compute, and model_type \"deepseek_v3\""},
      {{{"moe_latent_size", 12}}, "has \"moe_latent_size\", which changes"},
      {{{"num_local_experts", 9}}, "n_routed_experts is 8 and num_local_experts is 9, expected one value"},
      {{{"n_shared_experts", 2147483647}}, "shared_experts.gate_proj.weight\" has shape [16, 24], expected ["},
      {{{"num_experts_per_tok", nullptr}}, "top_k is 8, expected 1 to 4"},
      {{{"num_experts_per_tok", 9}}, "top_k is 9, expected 1 to 4"},
      {{{"num_experts_per_tok", 2147483647}}, "top_k is 2147483647, expected 1 to 4"},
      {{{"n_group", 3}}, "num_groups 3 does not divide num_experts 8"},
      {{{"n_group", 9}}, "num_groups is 9, expected 1 to 8"},
      {{{"n_group", 2147483647}}, "num_groups is 2147483647, expected 1 to 8"},
      {{{"n_group", "2"}}, "n_group is \"2\"" + whole},
      {{{"topk_group", 3}}, "kept_groups is 3, expected 1 to 2"},
      {{{"norm_topk_prob", 1}}, "norm_topk_prob is 1, expected true or false"},
      {{{"routed_scaling_factor", "2.5"}}, "routed_scaling_factor is \"2.5\", expected a number"},
  };
  for (const auto& [patch, message] : bad) {
    json patched = config;
    patched.merge_patch(patch);  // null removes a key
    write_text(folder / "config.json", patched.dump());
    expect_parts(error_of([&] { load_layer(folder, "mlp"); }), {folder.string(), message});
  }
}

TEST_F(BadCheckpoint, AnUnknownMethodOfDeepSeekV2IsAnError) {
  json config = sizes_of(family("deepseek_v2"));
  config["topk_method"] = "noaux_tc";
  expect_parts(error_of([&] { shape_of(config); }), {"topk_method is \"noaux_tc\", expected \"greedy\" or"});
  config["topk_method"] = "group_limited_greedy";
  expect_parts(error_of([&] { shape_of(config); }), {"config.json: n_group is null, expected a whole number"});
}

/// What is wrong in files: numbers, brackets, the words of JSON.
const std::vector<std::string> splices = {"-",  "0",   "1", "9", "2147483647", "4294967296", "1e9", "1e999",
                                          ".5", "1.0", "8", "2", "null",       "true",       "\"",  "{",
                                          "}",  "[",   "]", ",", ":",          "\"silu\"",   "[]",  "\\"};

const std::string& random_splice(Random& random) { return splices[std::size_t(random.below(Index(splices.size())))]; }

/// One to three times: a byte changed, a few removed, or some put in, or in their place.
std::string with_changed_bytes(std::string text, Random& random) {
  for (Index times = 1 + random.below(3); times > 0; --times) {
    const auto at = std::size_t(random.below(Index(text.size())));
    const auto length = std::min(text.size() - at, std::size_t(1 + random.below(4)));
    switch (random.below(4)) {
      case 0:
        text[at] = static_cast<char>(random.below(256));
        break;
      case 1:
        text.erase(at, length);
        break;
      case 2:
        text.insert(at, random_splice(random));
        break;
      default:
        text.replace(at, length, random_splice(random));
    }
  }
  return text;
}

/// One setting says something else, or is gone.
std::string with_a_changed_setting(const std::string& text, Random& random) {
  json config = json::parse(text);
  const auto setting = std::next(config.begin(), random.below(Index(config.size())));
  const json value = json::parse(random_splice(random), nullptr, false);
  if (value.is_discarded())
    config.erase(setting);
  else
    *setting = value;
  return config.dump();
}

TEST_F(BadCheckpoint, AMutatedConfigLoadsOrIsAnError) {
  Random random(20251);
  int loaded = 0, refused = 0;
  for (const Family& of : {grouped(), family("qwen2_moe"), family("llama4_text")}) {
    good(of);
    const std::string text = text_of(folder / "config.json");
    for (int i = 0; i < 1000; ++i) {
      const std::string bad = i % 2 ? with_changed_bytes(text, random) : with_a_changed_setting(text, random);
      write_text(folder / "config.json", bad);
      try {
        const LoadedLayer<float> layer = load_layer(folder, "mlp");
        layer.layer.forward(random_tokens<float>(layer.layer.d_model(), 2, 1));
        ++loaded;
      } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find(folder.string()), std::string::npos) << error.what();
        ++refused;
      } catch (const std::exception& error) {
        ADD_FAILURE() << bad << "\nlets escape " << typeid(error).name() << ": " << error.what();
      }
    }
  }
  EXPECT_GT(loaded, 300);
  EXPECT_GT(refused, 1000);
}

// ---- bad tensors ----------------------------------------------------------------------------------------------------

TEST_F(BadCheckpoint, AMissingTensorIsAnErrorThatNamesIt) {
  for (const auto& [of, form] : forms()) {
    const std::vector<Tensor> tensors = good(of, form);
    for (const Tensor& tensor : tensors) {
      expect_parts(error_with(of, without(tensors, tensor.name)),
                   {(folder / "model.safetensors").string() + ": no tensor \"mlp."});
    }
  }
  const Family of = grouped();
  const std::vector<Tensor> tensors = good(of);
  for (const char* const name : {"mlp.gate.weight", "mlp.gate.e_score_correction_bias", "mlp.experts.3.up_proj.weight",
                                 "mlp.experts.0.gate_proj.weight", "mlp.shared_experts.down_proj.weight"}) {
    expect_parts(error_with(of, without(tensors, name)), {"no tensor \"" + std::string(name) + "\""});
  }
  expect_parts(error_with(of, without(good(of, Form::fused), "mlp.experts.down_proj")),
               {"no tensor \"mlp.experts.down_proj\""});
}

TEST_F(BadCheckpoint, AWrongShapeIsAnErrorThatNamesBoth) {
  for (const auto& [of, form] : forms()) {
    const std::vector<Tensor> tensors = good(of, form);
    for (const Tensor& tensor : tensors) {
      std::vector<Index> longer = tensor.shape, flat = {1}, deeper = tensor.shape;
      ++longer.back();
      for (const Index size : tensor.shape) flat[0] *= size;
      deeper.insert(deeper.begin(), 1);
      for (const std::vector<Index>& wrong : {longer, flat, deeper, std::vector<Index>{}, std::vector<Index>{0}}) {
        if (wrong == tensor.shape) continue;
        expect_parts(error_with(of, with(tensors, zeros<bfloat16>(tensor.name, wrong))),
                     {"model.safetensors: tensor \"" + tensor.name + "\" has shape " + to_string(wrong) +
                      ", expected " + to_string(tensor.shape)});
      }
    }
  }
}

/// Some matrices of another type: those are converted, to float.
TEST_F(BadCheckpoint, ExpertsOfSeveralTypesAreThoseOfFloats) {
  const Family of = grouped();
  const auto block = random_block<bfloat16>(shape(of), 1);
  Block<float> wide{.shape = block.shape, .router = block.router, .selection_bias = block.selection_bias};
  const auto widened = [](const std::vector<GatedFfn<bfloat16>>& ffns) {
    std::vector<GatedFfn<float>> all;
    for (const auto& ffn : ffns)
      all.push_back({ffn.w_gate.cast<float>(), ffn.w_up.cast<float>(), ffn.w_down.cast<float>()});
    return all;
  };
  wide.experts = widened(block.experts);
  wide.shared = widened(block.shared);
  for (const Form form : {Form::separate, Form::fused}) {
    const std::vector<Tensor> narrow = tensors_of(of, block, "mlp.", form), floats = tensors_of(of, wide, "mlp.", form);
    for (std::size_t which = 0; which < narrow.size(); ++which) {
      std::vector<Tensor> mixed = narrow;
      mixed[which] = floats[which];
      write(config_of(of, block.shape), mixed);
      const auto loaded = load_layer(folder, "mlp");
      const Matrix<float> x = random_tokens<float>(24, 5, 3);
      EXPECT_TRUE(loaded.layer.forward(x).isApprox(in_memory(wide).forward(x), 1e-5F)) << mixed[which].name;
    }
  }
}

/// Two families' tensors in one block, half of the experts, a tensor that nothing reads.
TEST_F(BadCheckpoint, ATensorThatNothingReadsIsAnErrorThatNamesIt) {
  const Family of = grouped();
  const auto block = random_block<bfloat16>(shape(of), 1);
  std::vector<Tensor> both = tensors_of(of, block, "mlp.");
  for (Tensor& tensor : fused_tensors("mlp.experts.", block.experts, false)) both.push_back(std::move(tensor));
  expect_parts(error_with(of, both), {"tensor \"mlp.experts.",
                                      "is of the block \"mlp\", and a layer of model_type "
                                      "\"deepseek_v3\" with these settings has nothing that reads it, nor 1 others"});
  std::vector<Tensor> more = tensors_of(of, block, "mlp.");
  more.push_back(zeros<bfloat16>("mlp.experts.8.up_proj.weight", {16, 24}));  // there are 8 experts
  expect_parts(error_with(of, more), {"tensor \"mlp.experts.8.up_proj.weight\" is of the block"});
  more.back() = zeros<bfloat16>("mlp.experts.3.up_proj.bias", {16});
  expect_parts(error_with(of, more), {"tensor \"mlp.experts.3.up_proj.bias\" is of the block"});
  more.back() = zeros<bfloat16>("mlp.shared_experts.norm.weight", {0});  // of no elements: none
  write(config_of(of, shape(of)), more);
  EXPECT_TRUE(same_answers(load_layer(folder, "mlp").layer, in_memory(block)));
}

TEST_F(BadCheckpoint, ATypeThatNoLayerHasIsAnErrorThatNamesIt) {
  const Family of = grouped();
  const std::vector<Tensor> tensors = good(of);
  Tensor fp8 = zeros<std::uint8_t>("mlp.experts.0.gate_proj.weight", {16, 24});
  fp8.dtype = "F8_E4M3";
  expect_parts(error_with(of, with(tensors, fp8)),
               {"mlp.experts.0.gate_proj: no tensor \"mlp.experts.0.gate_proj.weight_scale_inv\""});
  fp8.dtype = "F8_E5M2";
  expect_parts(error_with(of, with(tensors, fp8)),
               {"\"mlp.experts.0.gate_proj.weight\" has dtype F8_E5M2, expected F32"});
  expect_parts(error_with(of, with(tensors, zeros<std::int64_t>("mlp.gate.weight", {8, 24}))),
               {"tensor \"mlp.gate.weight\" has dtype I64, expected F32"});
  good(of);
  expect_parts(error_of([&] { load_layer<double>(folder, "mlp"); }), {"has dtype BF16, expected F64"});
}

TEST_F(BadCheckpoint, AMissingShardIsAnErrorThatNamesIt) {
  const Family of = grouped();
  const std::vector<Tensor> tensors = good(of);
  write_shards(folder, tensors);
  fs::remove(folder / "model.safetensors");  // which the index does not name
  fs::remove(folder / "model-00002-of-00003.safetensors");
  expect_parts(error_of([&] { load_layer(folder, "mlp"); }),
               {"model.safetensors.index.json: shard ", "model-00002-of-00003.safetensors: no such file"});
  fs::remove(folder / "model.safetensors.index.json");
  expect_parts(error_of([&] { load_layer(folder, "mlp"); }), {"2 *.safetensors files without"});
}

TEST_F(BadCheckpoint, APrefixWithoutABlockIsAnErrorThatNamesTheNearest) {
  const Family of = grouped();
  const auto block = random_block<bfloat16>(shape(of), 1);
  std::vector<Tensor> tensors = separate_tensors("model.layers.0.mlp.", of.projections, block.shared[0]);  // dense
  for (const char* const prefix : {"model.layers.1.mlp.", "model.layers.2.mlp.", "model.layers.13.mlp."}) {
    for (Tensor& tensor : tensors_of(of, block, prefix)) tensors.push_back(std::move(tensor));
  }
  const auto suggestion = [&](const std::string& prefix) { return error_with(of, tensors, prefix); };
  for (const char* const dense : {"model.layers.0.mlp", "model.layers.0.mlp."}) {
    expect_parts(suggestion(dense), {folder.string(),
                                     ": no MoE block \"model.layers.0.mlp\" among 3: this one is a dense layer, "
                                     "without experts; did you mean \"model.layers.1.mlp\"?"});
  }
  expect_parts(suggestion("model.layers.33.mlp"), {"did you mean \"model.layers.13.mlp\"?"});
  expect_parts(suggestion("layers.2.mlp"), {"did you mean \"model.layers.2.mlp\"?"});
  expect_parts(suggestion("model.layers.2.block_sparse_moe"), {"did you mean \"model.layers.2.mlp\"?"});
  expect_parts(suggestion("model.layers.2"), {"did you mean \"model.layers.2.mlp\"?"});
  expect_parts(suggestion(""), {"no MoE block \"\" among 3"});
  expect_parts(suggestion("."), {"no MoE block \"\" among 3"});
  tensors = tensors_of(of, block, "");
  expect_parts(suggestion("mlp"), {"no MoE block \"mlp\" among 1; did you mean \"\"?"});
  tensors = {tensors[0]};
  expect_parts(suggestion("mlp"), {": no MoE block \"mlp\", nor any: no tensor is called \"experts.*\""});
}

}  // namespace
