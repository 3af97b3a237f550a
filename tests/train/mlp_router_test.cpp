// Gradients of routers whose hidden state goes on to the next layer's, against central differences in double.
#include "allocations.hpp"

#include "moe/train.hpp"

#include <array>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "errors.hpp"
#include "laws/gradient_laws.hpp"
#include "mlp_router_factory.hpp"
#include "moe/moe.hpp"
#include "random.hpp"
#include "train/factories.hpp"

namespace moe {
namespace {

using laws::expect_true_gradients;
using test::random_matrix;
using test::random_mlp_router;
using test::random_vector;

/// As Zaya's: the last expert gives nothing.
auto zaya_layer(Index d_model, Index state_size, unsigned seed, bool hears, bool biases = true) {
  MlpTopK<double> router(random_mlp_router<double>(5, d_model, state_size, seed, hears, biases), {.top_k = 1},
                         0.1 * random_vector(5, seed + 1), 1e-3);
  return MoeLayer(std::move(router), JoinedExperts(random_bank<double>(4, d_model, 5, 99),
                                                   ExpertList(std::vector{ZeroExpert<double>{d_model}})));
}

TEST(MlpRouterGradients, AtEveryStateSizeWithAPreviousStateOrNot) {
  for (const Index state_size : laws::gradient_sizes) {
    for (const Index tokens : {0, 1, 9}) {
      static Matrix<double> previous;
      previous = random_matrix<Matrix<double>>(state_size, tokens, 20);
      const SideInputs<double> side{.previous_state = {previous.data(), std::size_t(previous.size())}};
      expect_true_gradients(zaya_layer(7, state_size, 1, true), tokens, 3, 10, side);
      expect_true_gradients(zaya_layer(7, state_size, 1, false, false), tokens, 3, 10, side);
      expect_true_gradients(zaya_layer(7, state_size, 1, true), tokens, 3, 10);
    }
  }
}

/// Three layers, of which each router hears the one before; the first has no scale for it.
struct Carrying {
  using Scalar = double;
  using Layer = decltype(zaya_layer(1, 1, 1, true));

  std::array<Layer, 3> layers;

  Index d_model() const { return layers[0].d_model(); }
  void forward(const ConstMatrixRef<double>& x, MatrixRef<double> y, Workspace<double>& ws) const {
    Matrix<double> now = x, next(x.rows(), x.cols());
    std::vector<double> state;
    for (const auto& layer : layers) {
      ws.side.previous_state = state;
      layer.forward(now, next, ws);
      state = ws.routing.state;
      now += next;
    }
    y = now;
  }
};
void visit_parameters(Carrying& all, ParameterVisitor<double>& visit) {
  visit.in("first", all.layers[0]);
  visit.in("second", all.layers[1]);
  visit.in("third", all.layers[2]);
}

struct CarryingTape {
  std::array<decltype(tape_of(std::declval<const Carrying::Layer&>())), 3> tapes;
  std::array<Matrix<double>, 3> x, d_state;
  Workspace<double>& workspace() { return tapes[2].ws; }
  Eigen::Map<Matrix<double>> logit_gradient() { return tapes[2].logit_gradient(); }
};
CarryingTape tape_of(const Carrying&) { return {}; }

void forward(const Carrying& all, const ConstMatrixRef<double>& x, MatrixRef<double> y, CarryingTape& tape,
             ExecutorRef executor) {
  Matrix<double> now = x, next(x.rows(), x.cols());
  for (std::size_t i = 0; i < 3; ++i) {
    tape.x[i] = now;
    if (i > 0) tape.tapes[i].ws.side.previous_state = tape.tapes[i - 1].ws.routing.state;
    forward(all.layers[i], tape.x[i], next, tape.tapes[i], executor);
    now += next;
  }
  y = now;
}
void backward(const Carrying& all, const ConstMatrixRef<double>& /*x*/, const ConstMatrixRef<double>& d_y,
              CarryingTape& tape, MatrixRef<double> d_x, Carrying& gradient, ExecutorRef executor) {
  Matrix<double> d_now = d_y;
  for (auto& d_state : tape.d_state) d_state.setZero(all.layers[0].router().logits().state_size(), d_y.cols());
  for (std::size_t i = 3; i-- > 0;) {
    auto& ws = tape.tapes[i].ws;
    ws.side.state_gradient = {tape.d_state[i].data(), std::size_t(tape.d_state[i].size())};
    Matrix<double> d_before = d_now;
    backward(all.layers[i], tape.x[i], d_now, tape.tapes[i], d_before, gradient.layers[i], executor);
    d_now = d_before;
    if (i == 0) break;
    Workers workers(executor, ws.scratch);
    carried_backward<double>(all.layers[i].router().logits(), tape.d_state[i], tape.d_state[i - 1], workers);
  }
  d_x += d_now;
}

TEST(MlpRouterGradients, OfStatesThatTheNextLayersCarry) {
  for (const Index tokens : {0, 1, 9, 40}) {
    expect_true_gradients(
        Carrying{{zaya_layer(7, 6, 21, false), zaya_layer(7, 6, 31, true), zaya_layer(7, 6, 41, true)}}, tokens, 25);
  }
}

TEST(MlpRouterGradients, OfALayerWithoutAScaleAddNothingToTheStateBefore) {
  const MlpLogits<double> deaf(random_mlp_router<double>(5, 7, 6, 1, false));
  std::vector<Scratch> scratch;
  const Serial serial;
  Workers workers(serial, scratch);
  Matrix<double> d_previous = Matrix<double>::Zero(6, 4);
  carried_backward<double>(deaf, random_matrix<Matrix<double>>(6, 4, 2), d_previous, workers);
  EXPECT_TRUE(d_previous.isZero(0));
}

TEST(MlpRouterGradients, RefuseWhatDoesNotFit) {
  const MlpLogits<double> mlp(random_mlp_router<double>(5, 7, 6, 1));
  std::vector<Scratch> scratch;
  const Serial serial;
  Workers workers(serial, scratch);
  const auto error = [&](Index rows, Index previous_rows, Index previous_cols) {
    return test::error_of([&] {
      Matrix<double> d = Matrix<double>::Zero(rows, 4), d_previous = Matrix<double>::Zero(previous_rows, previous_cols);
      carried_backward<double>(mlp, d, d_previous, workers);
    });
  };
  EXPECT_EQ(error(6, 6, 4), "no error");
  EXPECT_EQ(error(5, 6, 4), "carried_backward: d_state.rows() is 5, expected 6");
  EXPECT_EQ(error(6, 5, 4), "carried_backward: d_previous.rows() is 5, expected 6");
  EXPECT_EQ(error(6, 6, 9), "carried_backward: d_previous.cols() is 9, expected 4");

  const auto layer = zaya_layer(7, 6, 1, true);
  auto tape = tape_of(layer);
  auto gradient = zeros_like(layer);
  Matrix<double> x = random_matrix<Matrix<double>>(7, 3, 2), y(7, 3), d_x = Matrix<double>::Zero(7, 3);
  std::vector<double> d_state(17);
  tape.ws.side.state_gradient = d_state;
  forward(layer, x, y, tape);
  EXPECT_EQ(test::error_of([&] { backward(layer, x, y, tape, d_x, gradient); }),
            "backward: side.state_gradient.size() is 17, expected 18");
}

}  // namespace
}  // namespace moe
