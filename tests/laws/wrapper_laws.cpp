#include "laws/wrapper_laws.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

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

/// What is behind an AnyLayer.
void expect_parts_to_be_found(Wrapped& layer) {
  std::vector<std::string> found, there;
  for (const auto& parameter : all_parameters(layer.used)) found.push_back(parameter.name);
  for (const auto& parameter : layer.learning.parameters()) there.push_back(parameter.name);
  for (const auto& parameter : layer.learning.frozen_parameters()) there.push_back(parameter.name);
  std::sort(found.begin(), found.end()), std::sort(there.begin(), there.end());
  EXPECT_EQ(found, there);
  EXPECT_FALSE(parts<Adapter<double>>(layer.used).empty());
  EXPECT_EQ(layer.used.router().has_value(), layer.has_routes);
  if (!layer.has_routes) return;
  EXPECT_EQ(layer.used.router()->d_model(), layer.used.d_model());
  EXPECT_EQ(layer.used.experts()->num_experts(), layer.used.router()->num_experts());
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

/// What a step makes of x: y, ∂L/∂x added to ones, and ∂L/∂ each parameter.
struct Step {
  Matrix<double> y, d_x;
  std::vector<Matrix<double>> gradients;
};

Step step_of(TrainableLayer<double>& layer, const Matrix<double>& x, const Matrix<double>& d_y, TokenMask mask = {}) {
  Step step{x, Matrix<double>::Ones(x.rows(), x.cols()), {}};
  set_to_zero(layer.gradients());
  layer.workspace().side.mask = mask;
  layer.workspace().side.seed = 7;
  layer.forward(x, step.y);
  layer.backward(x, d_y, step.d_x);
  for (const auto& gradient : layer.gradients()) step.gradients.emplace_back(gradient.matrix());
  return step;
}

/// So many rows of numbers, in the columns that the mask leaves; all others are filled.
Matrix<double> padded(const Matrix<double>& real, TokenMask mask, double filling) {
  Matrix<double> all = Matrix<double>::Constant(real.rows(), std::ssize(mask), filling);
  for (Index t = 0, i = 0; t < all.cols(); ++t) {
    if (!is_masked(mask, t)) all.col(t) = real.col(i++);
  }
  return all;
}

/// Even if it is not a number.
void expect_padding_to_change_no_bit(Wrapped& layer, const Matrix<double>& all) {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  for (const Index n : {num_tokens, Index(1), Index(0)}) {
    const Matrix<double> x = all.leftCols(n), d_y = 0.5 * all.rightCols(n);
    std::vector<std::uint8_t> mask;  // some in front, some between, many behind
    for (Index t = 0; t < n; ++t) mask.insert(mask.end(), {std::uint8_t(0), std::uint8_t(1)});
    if (n > 3) mask[4] = 1, mask[5] = 1, mask[7] = 0;
    mask.resize(mask.size() + 23);
    ASSERT_EQ(std::count(mask.begin(), mask.end(), 1), n);

    Workspace<double> ws, ws_of_padded;
    ws_of_padded.side.mask = mask;
    const auto y = layer.used.forward(x, ws), y_of_padded = layer.used.forward(padded(x, mask, nan), ws_of_padded);
    EXPECT_TRUE(test::same_bits(y_of_padded, padded(y, mask, 0))) << n << " tokens";
    ASSERT_EQ(ws_of_padded.routing.size(), ws.routing.size());
    for (std::size_t r = 0; r < ws.routing.token.size(); ++r) {
      const Index t = ws_of_padded.routing.token[r];
      EXPECT_FALSE(is_masked(mask, t));
      EXPECT_EQ(std::count(mask.begin(), mask.begin() + t, 1), ws.routing.token[r]);
    }

    const auto real = step_of(layer.another, x, d_y);
    const auto step = step_of(layer.learning, padded(x, mask, nan), padded(d_y, mask, nan), mask);
    EXPECT_TRUE(test::same_bits(step.y, padded(real.y, mask, 0))) << n << " tokens";
    EXPECT_TRUE(test::same_bits(step.d_x, padded(real.d_x, mask, 1))) << n << " tokens";
    ASSERT_EQ(step.gradients.size(), real.gradients.size());
    for (std::size_t i = 0; i < real.gradients.size(); ++i) {
      EXPECT_TRUE(test::same_bits(step.gradients[i], real.gradients[i])) << layer.learning.parameters()[i].name;
    }
    const auto logits = layer.learning.workspace().routing.logits.size();
    EXPECT_EQ(std::size_t(layer.learning.logit_gradient().size()), logits);
    if (!layer.another.workspace().routing.logits.empty()) {
      EXPECT_EQ(logits, layer.another.workspace().routing.logits.size() / std::size_t(n) * mask.size());
    }
  }
  layer.learning.workspace().side.mask = {};
}

void expect_warm_padded_steps_to_allocate_nothing(Wrapped& layer, const Matrix<double>& x) {
  std::vector<std::uint8_t> mask(std::size_t(x.cols()), 1);
  mask[3] = mask[11] = 0;
  Matrix<double> y(x.rows(), x.cols()), d_x = Matrix<double>::Zero(x.rows(), x.cols());
  const auto step = [&] {
    layer.learning.forward(x, y);
    layer.learning.backward(x, y, d_x);
  };
  layer.learning.workspace().side.mask = mask;
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
  expect_parts_to_be_found(layer);
  expect_warm_steps_to_allocate_nothing(layer, x);
  expect_padding_to_change_no_bit(layer, x);
  expect_warm_padded_steps_to_allocate_nothing(layer, x);
}

}  // namespace moe::laws
