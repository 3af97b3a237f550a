// What stands around a sparse layer passes on what is asked of the whole.
#include "laws/wrapper_laws.hpp"

#include <gtest/gtest.h>

#include "moe/moe.hpp"
#include "moe/train.hpp"
#include "train/factories.hpp"

namespace moe::laws {
namespace {

constexpr Index d = 12, experts = 5;

auto bank(Index its_experts = experts, unsigned seed = 4) {
  return with_lora(test::random_bank(its_experts, d, 9, seed), {.rank = 3, .dropout = 0.5});
}
/// Only its shared expert has adapters.
auto plain_layer() {
  return MoeLayer(test::random_router(experts, d, {.top_k = 2}, 3), Frozen(test::random_bank(experts, d, 9, 4)));
}
auto layer() {
  return MoeLayer(with_lora(test::random_router(experts, d, {.top_k = 2}, 3), {.rank = 2, .dropout = 0.5}), bank());
}
auto row(unsigned seed) { return test::random_matrix<Eigen::RowVectorXd>(1, d, seed); }
auto column(unsigned seed) { return test::random_matrix<Eigen::VectorXd>(d, 1, seed); }
auto pair(unsigned seed) { return test::random_rows(2, d, seed); }

TEST(WrappersOfLayers, Dense) { expect_to_pass_everything_on(DenseLayer(bank(1)), {.has_routes = false}); }

TEST(WrappersOfLayers, SharedExpert) { expect_to_pass_everything_on(WithSharedExpert(layer(), bank(1, 5), row(6))); }

TEST(WrappersOfLayers, SharedExpertBesideALayerThatDoesNotLearn) {
  expect_to_pass_everything_on(WithSharedExpert(plain_layer(), bank(1, 5)));
}

TEST(WrappersOfLayers, ResidualMoe) {
  expect_to_pass_everything_on(moe::ResidualMoe(plain_layer(), bank(1, 5), pair(6)));
}

TEST(WrappersOfLayers, AffineOutput) { expect_to_pass_everything_on(moe::AffineOutput(layer(), 0.7, column(6))); }

TEST(WrappersOfLayers, AffineOutputOfASharedExpert) {
  expect_to_pass_everything_on(moe::AffineOutput(WithSharedExpert(layer(), bank(1, 5)), 0.7));
}

TEST(WrappersOfLayers, NormedOutputOfASharedExpert) {
  const RmsNorm<double> norm(column(6), {.epsilon = 0.1, .offset = 1});
  expect_to_pass_everything_on(moe::NormedOutput(WithSharedExpert(layer(), bank(1, 5), row(7)), norm));
}

TEST(WrappersOfLayers, SoftMoe) {
  expect_to_pass_everything_on(moe::SoftMoe(test::random_rows(2 * experts, d, 7), bank()),
                               {.tokens_see_each_other = true, .has_routes = false});
}

}  // namespace
}  // namespace moe::laws
