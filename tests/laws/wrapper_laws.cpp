#include "laws/wrapper_laws.hpp"

#include <algorithm>
#include <string>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "moe/io/parameters.hpp"
#include "moe/runtime/workspace.hpp"
#include "random.hpp"
#include "temporary_folder.hpp"

namespace moe::laws {

namespace {

constexpr Index num_tokens = 20;

Matrix<double> tokens_of(const AnyLayer<double>& layer) {
  return test::random_matrix<Matrix<double>>(layer.d_model(), num_tokens, 61);
}

Matrix<double> used(const AnyLayer<double>& layer, const Matrix<double>& x, std::optional<std::uint64_t> seed = {},
                    const Numerics& numerics = {}) {
  Workspace<double> ws;
  ws.side.seed = seed;
  ws.numerics = numerics;
  return layer.forward(x, ws);
}

Matrix<double> learning(TrainableLayer<double>& layer, const Matrix<double>& x,
                        std::optional<std::uint64_t> seed = {}) {
  Matrix<double> y(x.rows(), x.cols());
  layer.workspace().side.seed = seed;
  layer.forward(x, y);
  return y;
}

void expect_dropout_while_it_learns_alone(Wrapped& layer, const Matrix<double>& x) {
  const auto y = used(layer.used, x);
  EXPECT_TRUE(test::same_bits(used(layer.used, x, 7), y)) << "a seed is no sign that a layer learns";
  EXPECT_TRUE(test::same_bits(learning(layer.learning, x), y)) << "without a seed nothing is left out";
  const auto dropped = learning(layer.learning, x, 7);
  EXPECT_FALSE(test::is_close(dropped, y)) << "nothing is left out while it learns";
  EXPECT_FALSE(test::is_close(learning(layer.learning, x, 8), dropped)) << "another step, another choice";
  EXPECT_TRUE(test::same_bits(learning(layer.another, x, 7), dropped));
}

void expect_all_adapters_to_be_listed(Wrapped& layer) {
  std::vector<std::string> listed, there;
  for (const auto& named : layer.learning.named_adapters("block")) {
    if (named.adapter->rank() > 0) listed.push_back(named.matrix + ".lora_A.weight");
  }
  for (const auto& parameter : layer.learning.parameters()) {
    if (parameter.name.ends_with("lora_A.weight")) there.push_back("block." + parameter.name);
  }
  std::sort(listed.begin(), listed.end()), std::sort(there.begin(), there.end());
  EXPECT_EQ(listed, there);
  EXPECT_FALSE(there.empty());
}

void expect_merging_to_leave_none(const Wrapped& layer, const Matrix<double>& x) {
  for (const auto& named : layer.left) ADD_FAILURE() << named.matrix << " has an adapter after merged()";
  EXPECT_TRUE(test::is_close(used(layer.merged, x), used(layer.used, x)));
}

void expect_numerics_to_arrive(const Wrapped& layer, const Matrix<double>& x) {
  if (layer.tokens_see_each_other) return;
  const Numerics invariant{.batch_invariant = true};
  const auto together = used(layer.used, x, {}, invariant);
  for (Index t = 0; t < x.cols(); ++t) {
    EXPECT_TRUE(test::same_bits(used(layer.used, x.col(t), {}, invariant), together.col(t).eval())) << t;
  }
}

void expect_parameters_to_return_from_a_file(Wrapped& layer, const Matrix<double>& x) {
  const test::TemporaryFolder folder("wrapper_laws");
  const auto file = folder.path / "parameters.safetensors";
  const auto y = learning(layer.learning, x);
  io::save_parameters(file, layer.learning.parameters());
  for (const auto& parameter : layer.another.parameters()) parameter.matrix().setZero();
  io::load_parameters(file, layer.another.parameters());
  EXPECT_TRUE(test::same_bits(learning(layer.another, x), y));
}

void expect_routes_to_be_seen(const Wrapped& layer, const Matrix<double>& x) {
  if (!layer.has_routes) return;
  Workspace<double> ws;
  layer.used.forward(x, ws);
  EXPECT_GT(ws.routing.size(), 0);
}

/// Once buffers have grown.
void expect_warm_steps_to_allocate_nothing(Wrapped& layer, const Matrix<double>& x) {
  Matrix<double> y(x.rows(), x.cols()), d_x = Matrix<double>::Zero(x.rows(), x.cols());
  const auto step = [&] {
    layer.learning.forward(x, y);
    layer.learning.backward(x, y, d_x);
  };
  layer.learning.workspace().side.seed = 5;
  step(), step();
  EXPECT_EQ(test::allocations_in(step), 0);
}

}  // namespace

void expect_to_pass_everything_on(Wrapped layer) {
  const auto x = tokens_of(layer.used);
  expect_dropout_while_it_learns_alone(layer, x);
  expect_all_adapters_to_be_listed(layer);
  expect_merging_to_leave_none(layer, x);
  expect_numerics_to_arrive(layer, x);
  expect_parameters_to_return_from_a_file(layer, x);
  expect_routes_to_be_seen(layer, x);
  expect_warm_steps_to_allocate_nothing(layer, x);
}

}  // namespace moe::laws
