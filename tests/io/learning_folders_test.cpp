/// @file  Layers of the folders that transformers wrote, loaded to learn: in full, and beside adapters. They answer
/// what
///        was recorded, and their gradients are slopes; so do those of the folders below the one that MOE_REAL_DIR
///        names.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "learning_layers.hpp"
#include "moe/moe.hpp"
#include "moe/train.hpp"
#include "random.hpp"
#include "recorded_folders.hpp"

namespace moe::io {
namespace {

namespace fs = std::filesystem;
using test::random_matrix;

/// What was recorded of one block, of a few tokens.
struct Recorded {
  Matrix<float> x, y, router_input, state;
  std::vector<Index> ids;

  Recorded(const Tensors& all, const std::string& block, Index most) {
    const std::string prefix = block.empty() ? "" : block + ".";
    const auto columns = [&](const std::string& what) -> Matrix<float> {
      if (!all.contains(prefix + what)) return {};
      const Matrix<float> whole = all.read<float>(prefix + what).transpose();
      return whole.leftCols(std::min(most, whole.cols()));
    };
    x = columns("input");
    y = columns("output");
    router_input = columns("router_input");
    state = columns("router_state");
    if (!all.contains(prefix + "token_ids")) return;
    const Tensor tensor = all.at(prefix + "token_ids");
    const auto numbers = as<std::int64_t>(tensor);
    ids.assign(numbers.begin(), numbers.begin() + x.cols());
  }

  void tell(SideInputs<float>& side) const {
    side.sequence_length = x.cols();
    side.router_input = {router_input.data(), std::size_t(router_input.size())};
    side.previous_state = {state.data(), std::size_t(state.size())};
    side.token_ids = ids;
  }
};

/// Σ weight ⊙ y, whose gradient of y is `weight`.
struct Loss {
  TrainableLayer<float>& layer;
  const Recorded& in;
  Matrix<float> weight = random_matrix<Matrix<float>>(in.x.rows(), in.x.cols(), /*seed=*/3);

  double operator()() {
    Matrix<float> y(in.x.rows(), in.x.cols());
    in.tell(layer.workspace().side);
    layer.forward(in.x, y);
    return weight.cast<double>().cwiseProduct(y.cast<double>()).sum();
  }
};

/// Along their own direction, gradients g are as steep as |g|. Steps become shorter where a longer one passes a bend,
/// or another expert is chosen.
void expect_slope(Loss& loss, Eigen::Map<Eigen::ArrayXf> numbers, const Eigen::ArrayXf& gradient,
                  const std::string& what) {
  const float length = std::sqrt(gradient.square().sum());
  ASSERT_TRUE(std::isfinite(length)) << what;
  const Eigen::ArrayXf before = numbers, along = gradient / std::max(length, std::numeric_limits<float>::min());
  double slope = 0;
  const double allowed = 0.02 * double(length) + 0.02;
  for (const float step : {1e-3F, 3e-4F, 1e-4F, 1e-5F}) {
    numbers = before + step * along;
    const double up = loss();
    numbers = before - step * along;
    slope = (up - loss()) / (2 * double(step));
    numbers = before;
    if (std::abs(slope - double(length)) <= allowed) return;
  }
  EXPECT_NEAR(slope, double(length), allowed) << what;
}

void expect_slopes(TrainableLayer<float>& layer, const Recorded& in) {
  Loss loss{layer, in};
  loss();
  Matrix<float> d_x = Matrix<float>::Zero(in.x.rows(), in.x.cols());
  set_to_zero(layer.gradients());
  layer.backward(in.x, loss.weight, d_x);
  const Matrix<float> d_router_input = layer.router_input_gradient();
  std::vector<Eigen::ArrayXf> gradients;
  for (const auto& gradient : layer.gradients()) gradients.push_back(gradient.array());
  std::size_t i = 0;
  for (const auto& parameter : layer.parameters()) {
    expect_slope(loss, {parameter.data, parameter.size()}, gradients[i++], parameter.name);
  }
  Recorded other = in;
  Loss of_x{layer, other};
  expect_slope(of_x, {other.x.data(), other.x.size()}, d_x.reshaped().array(), "x");
  ASSERT_EQ(d_router_input.size(), in.router_input.size());
  if (in.router_input.size() == 0) return;
  expect_slope(of_x, {other.router_input.data(), other.router_input.size()}, d_router_input.reshaped().array(),
               "router_input");
}

class LearningFolder : public testing::TestWithParam<test::RecordedFolder> {
 protected:
  /// f(model, block, what was recorded) of each block.
  template <class F>
  void for_each_block(Index most_tokens, const F& f) {
    const fs::path& folder = GetParam().path;
    ASSERT_TRUE(fs::exists(folder / "config.json")) << folder;
    if (folder.filename() == "doge") {
      EXPECT_THROW(Model{folder}, Error);  // product keys, which are no part of this library
      return;
    }
    const auto all = Tensors::open(folder / "blocks.safetensors");
    const Model model(folder);
    const auto blocks = nlohmann::json::parse(all.metadata().at("blocks"));
    for (const auto& [block, module] : blocks.items()) {
      SCOPED_TRACE(block);
      f(model, block, Recorded(all, block, most_tokens));
    }
  }
};

Matrix<float> answer(TrainableLayer<float>& layer, const Recorded& in) {
  Matrix<float> y(in.x.rows(), in.x.cols());
  in.tell(layer.workspace().side);
  layer.forward(in.x, y);
  return y;
}

template <class Layer>
Matrix<float> served(const Layer& layer, const Recorded& in) {
  Matrix<float> y(in.x.rows(), in.x.cols());
  Workspace<float> workspace;
  in.tell(workspace.side);
  layer.forward(in.x, y, workspace);
  return y;
}

void expect_close(const Matrix<float>& got, const Matrix<float>& expected, float share, const std::string& what) {
  EXPECT_LE((got - expected).cwiseAbs().maxCoeff(), share * expected.cwiseAbs().maxCoeff()) << what;
}

TEST_P(LearningFolder, AnswersWhatItsModelAnswersAndHasSlopesForGradients) {
  for_each_block(1000, [](const Model& model, const std::string& block, const Recorded& in) {
    auto layer = load_trainable_layer(model, block);
    expect_close(answer(layer, in), served(model.layer(block).layer, in), 1e-5F, "y");
  });
  for_each_block(5, [](const Model& model, const std::string& block, const Recorded& in) {
    auto layer = load_trainable_layer(model, block);
    EXPECT_TRUE(layer.named_adapters(block).empty());
    expect_slopes(layer, in);
  });
}

TEST_P(LearningFolder, LearnsBesideItsFileByAdapters) {
  for_each_block(5, [](const Model& model, const std::string& block, const Recorded& in) {
    const bool takes_router = model.architecture().router_kind != RouterKind::normed &&
                              model.architecture().router_kind != RouterKind::carried;
    const LoraLayerOptions options{
        .router = {.rank = takes_router ? 2 : 0}, .experts = {.rank = 2}, .shared = {.rank = 3}};
    auto layer = load_lora_layer(model, block, options);
    const Matrix<float> before = served(model.layer(block).layer, in);
    EXPECT_EQ(answer(layer, in), before);
    EXPECT_FALSE(layer.frozen_parameters().empty());
    unsigned seed = 1;
    for (const auto& named : layer.named_adapters(block)) {
      named.adapter->b = 0.1F * random_matrix<Weight<float>>(named.adapter->out(), named.adapter->rank(), seed++);
    }
    const Matrix<float> adapted = answer(layer, in);
    EXPECT_GT((adapted - before).norm(), 1e-3F * before.norm());
    const std::string dtype = model.layer(block).dtype;
    if (dtype == "MXFP4") {  // to which nothing can be added
      EXPECT_THROW(merged(layer), std::invalid_argument);
    } else {
      expect_close(served(merged(layer), in), adapted, dtype == "F32" ? 1e-4F : 3e-2F, "merged");
    }
    expect_slopes(layer, in);
  });
}

INSTANTIATE_TEST_SUITE_P(Folders, LearningFolder,
                         testing::ValuesIn(test::recorded_folders("tests/real", "MOE_REAL_DIR", "blocks.safetensors")),
                         test::name_of);

/// The layer before learns of what this one made of its state.
TEST(LearningLayer, OfZayaHandsBackTheGradientOfTheStateThatItHears) {
  const fs::path folder = "tests/real/zaya";
  const Model model(folder);
  const auto records = Tensors::open(folder / "blocks.safetensors");
  const std::string block = "model.layers.1.mlp";
  Recorded in(records, block, 5);
  ASSERT_GT(in.state.size(), 0);
  auto layer = load_trainable_layer(model, block);
  Loss loss{layer, in};
  loss();
  Matrix<float> d_x = Matrix<float>::Zero(in.x.rows(), in.x.cols()), d_state = 0 * in.state, d_previous = d_state;
  layer.workspace().side.state_gradient = {d_state.data(), std::size_t(d_state.size())};
  layer.backward(in.x, loss.weight, d_x);
  layer.workspace().side.state_gradient = {};
  EXPECT_GT(d_state.norm(), 0);

  auto its = layer.merged_parts();
  const auto logits = parts<MlpLogits<float>>(its);
  ASSERT_EQ(logits.size(), 1U);
  EXPECT_EQ(logits[0].name, "gate");
  Workspace<float> workspace;
  Workers workers = workers_of(workspace, Serial{});
  carried_backward(*logits[0].part, d_state, d_previous, workers);
  expect_slope(loss, {in.state.data(), in.state.size()}, d_previous.reshaped().array(), "previous_state");
}

/// Tokens of text and of images have experts of their own, of other widths.
TEST(LearningLayer, OfErnieLearnsOfBothModalities) {
  const Model model("tests/real/ernie4_5_vl_moe");
  const std::string block = model.moe_blocks().at(0);
  Recorded in(Tensors::open("tests/real/ernie4_5_vl_moe/blocks.safetensors"), block, 6);
  const std::vector<std::uint8_t> modality = {0, 1, 1, 0, 1, 0};
  for (const bool lora : {false, true}) {
    SCOPED_TRACE(lora);
    auto layer = lora ? load_lora_layer(model, block, {.router = {.rank = 2}, .experts = {.rank = 2}})
                      : load_trainable_layer(model, block);
    for (const auto& named : layer.named_adapters(block)) {
      named.adapter->b = 0.1F * random_matrix<Weight<float>>(named.adapter->out(), named.adapter->rank(), 5);
    }
    layer.workspace().side.modality = modality;
    expect_slopes(layer, in);
    const Index n = model.shape().num_experts;
    bool text = false, images = false;
    for (const Index e : layer.workspace().routing.expert) e < n ? text = true : images = true;
    EXPECT_TRUE(text && images);
    Index of_images = 0;
    for (const auto& gradient : layer.gradients()) {
      const bool its = gradient.name.starts_with("experts.") && std::stol(gradient.name.substr(8)) >= n;
      of_images += its && gradient.array().abs().maxCoeff() > 0;
    }
    EXPECT_GT(of_images, 0);
  }
}

}  // namespace
}  // namespace moe::io
