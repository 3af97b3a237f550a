// Routers that read something else than the experts, and the gradients of it.
#include "allocations.hpp"

#include <cmath>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "errors.hpp"
#include "laws/gradient_laws.hpp"
#include "moe/moe.hpp"
#include "moe/train.hpp"
#include "random.hpp"
#include "train/factories.hpp"

namespace moe {
namespace {

using laws::expect_true_gradients;
using laws::gradients_of;
using test::is_close;
using test::random_bank;
using test::random_matrix;
using test::random_router;
using test::same_bits;

constexpr Index d = 9;
constexpr TopKOptions top_2{.top_k = 2, .score = Score::sigmoid};

std::span<const double> numbers_of(const Matrix<double>& m) { return {m.data(), std::size_t(m.size())}; }

Matrix<double> tokens(Index count, unsigned seed) { return random_matrix<Matrix<double>>(d, count, seed); }

/// check(layer), for routers of several kinds and all that stands around a layer.
template <class Check>
void for_each_layer(const Check& check) {
  const auto router = random_router(4, d, top_2, 1);
  const auto bank = random_bank(4, d, 5, 2);
  const MoeLayer sparse(router, bank);
  check(sparse);
  check(MoeLayer(with_lora(router, {.rank = 2}), with_lora(bank, {.rank = 2})));
  check(MoeLayer(Frozen(router), bank));
  check(MoeLayer(router, Frozen(bank)));
  check(MoeLayer(WithCapacity(router, {.capacity = capacity_factor(1.0, 2)}), bank));
  check(MoeLayer(moe::Replay(router), bank));
  check(MoeLayer(ExpertChoice<double>(router.weight()), bank));
  check(MoeLayer(NormedTopK<double>(router.weight(), Vector<double>::Ones(d), Vector<double>::Ones(4), top_2, 0.1),
                 bank));
  check(WithSharedExpert(sparse, random_bank(1, d, 7, 3), random_matrix<Eigen::RowVectorXd>(1, d, 4)));
  check(test::residual_moe_of(sparse, 5));
  check(moe::AffineOutput(sparse, 0.7, random_matrix<Eigen::VectorXd>(d, 1, 6)));
  check(NormedOutput(sparse, RmsNorm<double>(random_matrix<Eigen::VectorXd>(d, 1, 7), {.epsilon = 0.1})));
}

TEST(RouterInput, IsWhatTheRouterReadsAndExpertsReadX) {
  const MoeLayer layer(random_router(4, d, top_2, 1), random_bank(4, d, 5, 2));
  for (const Index n : {0, 1, 17, 40}) {
    const auto x = tokens(n, 8), z = tokens(n, 9);
    Workspace<double> of_z, apart;
    layer.forward(z, of_z);
    const MoeLayer replay(moe::Replay(layer.router()), layer.experts());
    Workspace<double> replayed;
    replayed.side.recorded = &of_z.routing;
    const auto expected = replay.forward(x, replayed);
    apart.side.router_input = numbers_of(z);
    EXPECT_TRUE(same_bits(layer.forward(x, apart), expected)) << n;
    EXPECT_EQ(apart.routing.expert, of_z.routing.expert);
    EXPECT_EQ(apart.routing.logits, of_z.routing.logits);
  }
}

TEST(RouterInput, OfXItselfChangesNoBitThroughAnyWrapper) {
  const auto x = tokens(20, 8), z = tokens(20, 9);
  for_each_layer([&](const auto& layer) {
    Workspace<double> plain, same, other;
    same.side.router_input = numbers_of(x);
    other.side.router_input = numbers_of(z);
    const auto y = layer.forward(x, plain);
    EXPECT_TRUE(same_bits(layer.forward(x, same), y));
    EXPECT_FALSE(is_close(layer.forward(x, other), y)) << "nobody has read it";
    auto tape = tape_of(layer);
    tape.workspace().side = other.side;
    Matrix<double> learning(d, 20);
    forward(layer, x, learning, tape);
    EXPECT_TRUE(same_bits(learning, layer.forward(x, other)));
  });
}

TEST(RouterInputGradients, AreTrueOfAllElseThatYDependsOn) {
  const auto z = tokens(20, 9);
  for_each_layer([&](const auto& layer) { expect_true_gradients(layer, 20, 10, 10, {.router_input = numbers_of(z)}); });
}

TEST(RouterInputGradients, AreCentralDifferences) {
  const auto x = tokens(20, 11), c = tokens(20, 12);
  for_each_layer([&](const auto& its) {
    TrainableLayer<double> layer(its);
    Matrix<double> z = tokens(20, 13), y(d, 20), d_x = Matrix<double>::Zero(d, 20);
    layer.workspace().side.router_input = numbers_of(z);
    layer.forward(x, y);
    layer.backward(x, c, d_x);
    const Matrix<double> d_z = layer.router_input_gradient();
    ASSERT_EQ(d_z.size(), z.size());
    for (Index i = 0; i < z.size(); i += 7) {
      const double was = z.data()[i], h = 1e-5;
      z.data()[i] = was + h;
      layer.forward(x, y);
      const double above = y.cwiseProduct(c).sum();
      z.data()[i] = was - h;
      layer.forward(x, y);
      const double below = y.cwiseProduct(c).sum();
      z.data()[i] = was;
      const double expected = (above - below) / (2 * h);
      EXPECT_NEAR(d_z.data()[i], expected, 1e-7 * (1 + std::abs(expected))) << i;
    }
    layer.workspace().side.router_input = {};
    layer.forward(x, y);
    layer.backward(x, c, d_x);
    EXPECT_EQ(layer.router_input_gradient().size(), 0) << "the router has read x";
  });
}

TEST(RouterInputGradients, OfXItselfSumUpToThoseOfX) {
  const auto x = tokens(20, 14), c = tokens(20, 15);
  for_each_layer([&](const auto& layer) {
    const auto whole = gradients_of(layer, x, c);
    auto gradient = zeros_like(layer);
    auto tape = tape_of(layer);
    tape.workspace().side.router_input = numbers_of(x);
    Matrix<double> y(d, 20), d_x = Matrix<double>::Zero(d, 20);
    forward(layer, x, y, tape);
    backward(layer, x, c, tape, d_x, gradient);
    EXPECT_TRUE(is_close((d_x + tape.router_input_gradient()).eval(), whole.of_x));
    EXPECT_GT(tape.router_input_gradient().norm(), 1e-3 * whole.of_x.norm());
  });
}

TEST(RouterInputGradients, OfALayerWithoutARouterAreNone) {
  TrainableLayer<double> dense(DenseLayer(random_bank(1, d, 5, 16)));
  EXPECT_EQ(dense.router_input_gradient().size(), 0);
  EXPECT_EQ(
      TrainableLayer<double>(test::random_soft_moe<double>(d, 2, 1, {}, false, 17)).router_input_gradient().size(), 0);
}

TEST(RouterInputSteps, HaveTheSameBitsOnAnyNumberOfThreadsAndAllocateNothingOnceWarm) {
  const MoeLayer layer(random_router<float>(4, 33, {.top_k = 2}, 18), random_bank<float>(4, 33, 17, 19));
  const auto z = random_matrix<Matrix<float>>(33, 70, 20);
  const SideInputs<float> side{.router_input = {z.data(), std::size_t(z.size())}};
  laws::expect_the_same_bits_for_any_number_of_threads(layer, side);
  laws::expect_warm_steps_to_allocate_nothing(layer, side);
}

TEST(RouterInput, OfAnotherSizeOrWhereSomethingIsWrittenIsRefused) {
  const MoeLayer layer(random_router(4, d, top_2, 1), random_bank(4, d, 5, 2));
  const auto x = tokens(5, 21);
  Matrix<double> z = tokens(6, 22), y(d, 5);
  Workspace<double> ws;
  ws.side.router_input = numbers_of(z);
  EXPECT_EQ(test::error_of([&] { layer.forward(x, y, ws); }), "MoeLayer: side.router_input.size() is 54, expected 45");
  ws.side.router_input = ws.side.router_input.first(45);
  EXPECT_EQ(test::error_of([&] { layer.forward(x, z.leftCols(5), ws); }),
            "MoeLayer: side.router_input overlaps what is written");
  const auto before = z;
  auto tape = tape_of(layer);
  auto gradient = zeros_like(layer);
  tape.workspace().side = ws.side;
  EXPECT_EQ(test::error_of([&] { forward(layer, x, z.leftCols(5), tape); }),
            "forward: side.router_input overlaps what is written");
  forward(layer, x, y, tape);
  EXPECT_EQ(test::error_of([&] { backward(layer, x, y, tape, z.leftCols(5), gradient); }),
            "backward: side.router_input overlaps what is written");
  EXPECT_TRUE(same_bits(z, before));
}

}  // namespace
}  // namespace moe
