/// @file  Folders as transformers writes them, with what its classes computed: those in tests/real, and those below the
///        folder that MOE_REAL_DIR names. tests/real/README.md says what is recorded.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "load_layer.hpp"
#include "moe/io/checkpoint.hpp"
#include "moe/moe.hpp"
#include "recorded_folders.hpp"

namespace {

namespace fs = std::filesystem;
using namespace moe;

class RealFolder : public testing::TestWithParam<test::RecordedFolder> {};

/// What was recorded of one block.
struct Records {
  const io::Tensors& all;
  std::string prefix;

  bool has(const std::string& what) const { return all.contains(name_of(what)); }
  Weight<float> floats(const std::string& what) const { return all.read<float>(name_of(what)); }
  Matrix<std::int64_t> integers(const std::string& what) const {
    const io::Tensor tensor = all.at(name_of(what));
    const auto values = io::as<std::int64_t>(tensor);
    const Index rows = tensor.shape.size() > 1 ? tensor.shape[0] : 1;
    return Eigen::Map<const Weight<std::int64_t>>(values.data(), rows, Index(values.size()) / rows);
  }
  std::string name_of(const std::string& what) const { return prefix.empty() ? what : prefix + "." + what; }
};

void expect_close(const Matrix<float>& got, const Weight<float>& recorded, const std::string& what) {
  ASSERT_EQ(got.size(), recorded.size()) << what;
  double worst = 0;
  for (Index i = 0; i < got.size(); ++i) {
    const float a = got.data()[i], b = recorded.data()[i];  // tokens one after the other, in both
    if (!(std::abs(a - b) <= 1e-5F + 1e-4F * std::abs(b))) worst = std::max(worst, double(std::abs(a - b)));
    if (std::isnan(a) != std::isnan(b)) worst = std::numeric_limits<double>::infinity();
  }
  EXPECT_EQ(worst, 0) << what;
}

/// The experts that each token has, and their weights.
using Chosen = std::vector<std::map<Index, float>>;

Chosen chosen_of(const Routing<float>& routing, Index num_tokens, Index num_experts) {
  Chosen chosen(static_cast<std::size_t>(num_tokens));
  for (std::size_t r = 0; r < routing.token.size(); ++r) {
    if (routing.is_dropped(Index(r)) || routing.expert[r] >= num_experts) continue;
    chosen[std::size_t(routing.token[r])][routing.expert[r]] = routing.weight[r];
  }
  return chosen;
}

void check_block(const io::Model& model, const Records& records) {
  SCOPED_TRACE(records.prefix);
  const auto loaded = model.layer(records.prefix);
  const Weight<float> input = records.floats("input");
  const Index num_tokens = input.rows();
  const Matrix<float> x = input.transpose();

  Workspace<float> ws;
  ws.side.sequence_length = num_tokens;
  Matrix<float> router_input, state;
  std::vector<Index> ids;
  if (records.has("router_input")) {
    router_input = records.floats("router_input").transpose();
    ws.side.router_input = {router_input.data(), std::size_t(router_input.size())};
  }
  if (records.has("router_state")) {
    state = records.floats("router_state").transpose();
    ws.side.previous_state = {state.data(), std::size_t(state.size())};
  }
  if (records.has("token_ids")) {
    const auto recorded = records.integers("token_ids");
    ids.assign(recorded.data(), recorded.data() + recorded.size());
    ws.side.token_ids = ids;
  }

  Matrix<float> y(x.rows(), num_tokens);
  loaded.layer.forward(x, y, ws);
  // Of ERNIE 4.5 VL, the group of experts for text alone was recorded; the shared expert is added beside it.
  if (loaded.model_type == "ernie4_5_vl_moe_text" && loaded.shape.d_ff_shared > 0) {
    y -= model.ffn(records.prefix + ".shared_experts").forward(x);
  }
  expect_close(y, records.floats("output"), "output");

  const Index num_experts = loaded.shape.num_experts;
  if (records.has("router_logits") && std::ssize(ws.routing.logits) == records.floats("router_logits").size()) {
    const Index rows = std::ssize(ws.routing.logits) / num_tokens;
    expect_close(Eigen::Map<const Matrix<float>>(ws.routing.logits.data(), rows, num_tokens),
                 records.floats("router_logits"), "router_logits");
  }
  if (!records.has("topk_index") || !records.has("topk_weight")) return;
  const Chosen chosen = chosen_of(ws.routing, num_tokens, num_experts);
  const auto index = records.integers("topk_index");
  const auto weight = records.floats("topk_weight");
  for (Index t = 0; t < num_tokens; ++t) {
    std::set<Index> expected;
    for (Index k = 0; k < index.cols(); ++k) {
      if (weight(t, k) != 0 && index(t, k) < num_experts) expected.insert(index(t, k));
    }
    std::set<Index> got;
    for (const auto& [expert, its_weight] : chosen[std::size_t(t)]) got.insert(expert);
    ASSERT_EQ(got, expected) << "token " << t;
  }
}

TEST_P(RealFolder, ComputesWhatItsClassComputed) {
  const fs::path& folder = GetParam().path;
  ASSERT_TRUE(fs::exists(folder / "config.json")) << folder << " is no folder with a model and its records";
  const auto settings = nlohmann::json::parse(std::ifstream(folder / "config.json"), nullptr, false);
  if (!settings.is_discarded() && settings.value("model_type", "") == "doge") {
    EXPECT_THROW(io::Model{folder}, io::Error);  // product keys, which are no part of this library
    return;
  }
  const auto all = io::Tensors::open(folder / "blocks.safetensors");
  const auto blocks = nlohmann::json::parse(all.metadata().at("blocks"));
  ASSERT_FALSE(blocks.empty());
  const io::Model model(folder);
  for (const auto& [prefix, module] : blocks.items()) check_block(model, {all, prefix});
  for (const std::string& block : model.moe_blocks()) EXPECT_NO_THROW(model.layer(block)) << block;
}

INSTANTIATE_TEST_SUITE_P(Folders, RealFolder,
                         testing::ValuesIn(test::recorded_folders("tests/real", "MOE_REAL_DIR", "blocks.safetensors")),
                         test::name_of);

}  // namespace
