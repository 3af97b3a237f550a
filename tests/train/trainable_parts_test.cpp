// Routers and groups of experts that learn behind one type: what they hold, no more and no less.
#include "allocations.hpp"

#include <algorithm>
#include <utility>
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

using test::error_of;
using test::random_bank;
using test::random_matrix;
using test::random_router;
using test::same_bits;

constexpr Index d = 9;
const TopKOptions options{.top_k = 2, .score = Score::sigmoid};

auto router() { return random_router(6, d, options, /*seed=*/1); }
auto experts() {
  return JoinedExperts(TrainableExperts<double>(random_bank(4, d, 5, /*seed=*/2)),
                       TrainableExperts<double>(ExpertList(std::vector(2, CopyExpert<double>{d}))));
}
auto erased() { return MoeLayer(TrainableRouter<double>(router()), TrainableExperts<double>(experts())); }

TEST(TrainableParts, HaveTrueGradients) {
  for (const Index tokens : {0, 1, 9, 40}) laws::expect_true_gradients(erased(), tokens, 3);
}

TEST(TrainableParts, GiveTheBitsOfWhatTheyHold) {
  const auto plain = MoeLayer(
      router(), JoinedExperts(random_bank(4, d, 5, /*seed=*/2), ExpertList(std::vector(2, CopyExpert<double>{d}))));
  const auto layer = erased();
  const auto x = random_matrix<Matrix<double>>(d, 40, 4), c = random_matrix<Matrix<double>>(d, 40, 5);
  EXPECT_TRUE(same_bits(layer.forward(x), plain.forward(x)));
  auto expected = laws::gradients_of(plain, x, c);
  auto got = laws::gradients_of(layer, x, c);
  EXPECT_TRUE(same_bits(got.of_x, expected.of_x));
  const auto ours = parameters(got.of_parameters), theirs = parameters(expected.of_parameters);
  ASSERT_EQ(ours.size(), theirs.size());
  for (std::size_t i = 0; i < ours.size(); ++i) {
    EXPECT_EQ(ours[i].name, theirs[i].name);
    EXPECT_TRUE(same_bits(Weight<double>(ours[i].matrix()), Weight<double>(theirs[i].matrix()))) << ours[i].name;
  }
}

TEST(TrainableParts, OfWhichCopiesAreCopies) {
  auto layer = erased();
  const auto x = random_matrix<Matrix<double>>(d, 7, 4);
  const Matrix<double> before = layer.forward(x);
  auto copy = layer;
  set_to_zero(parameters(copy));
  EXPECT_TRUE(same_bits(layer.forward(x), before));
  EXPECT_FALSE(same_bits(copy.forward(x), before));
  copy = layer;
  EXPECT_TRUE(same_bits(copy.forward(x), before));
}

TEST(TrainableParts, ThatAreFrozenPassGradientsOn) {
  const auto frozen = MoeLayer(TrainableRouter<double>(Frozen(router())), TrainableExperts<double>(experts()));
  const auto x = random_matrix<Matrix<double>>(d, 12, 4), c = random_matrix<Matrix<double>>(d, 12, 5);
  EXPECT_TRUE(same_bits(laws::gradients_of(frozen, x, c).of_x, laws::gradients_of(erased(), x, c).of_x));
  auto copy = frozen;
  for (const auto& parameter : parameters(copy)) EXPECT_FALSE(parameter.name.starts_with("gate")) << parameter.name;
  EXPECT_EQ(frozen_parameters(copy).at(0).name, "gate.weight");
}

/// A bias that only its update moves, wherever in a layer its router is.
TEST(TrainableParts, GiveTheSelectionBiasOfTheirRouter) {
  const auto biased = [] {
    return LinearTopK<double>(random_matrix<Weight<double>>(6, d, 1), options, {},
                              random_matrix<Vector<double>>(6, 1, 2));
  };
  const MoeLayer plain(biased(), experts());
  const auto x = random_matrix<Matrix<double>>(d, 12, 4);
  const auto check = [&](auto layer) {
    TrainableLayer<double> learns(std::move(layer));
    auto bias = learns.selection_bias();
    ASSERT_EQ(bias.size(), 6);
    EXPECT_TRUE(same_bits(Vector<double>(bias), plain.router().selection_bias()));
    bias.setZero();
    bias(3) = 100;  // whom all choose now
    Matrix<double> y(d, x.cols());
    learns.forward(x, y);
    const auto& routing = learns.workspace().routing;
    EXPECT_EQ(std::count(routing.expert.begin(), routing.expert.end(), 3), x.cols());
  };
  check(plain);
  check(MoeLayer(TrainableRouter<double>(biased()), experts()));
  check(WithSharedExpert(plain, random_bank(1, d, 5, 6)));
  check(NormedOutput(WithSharedExpert(plain, random_bank(1, d, 5, 6)), RmsNorm<double>(Vector<double>::Ones(d))));

  EXPECT_EQ(TrainableLayer<double>(erased()).selection_bias().size(), 0);
  EXPECT_EQ(TrainableLayer<double>(DenseLayer(random_bank(1, d, 5, 6))).selection_bias().size(), 0);
}

TEST(TrainableParts, RefuseGradientsAndTapesOfOtherTypes) {
  const auto x = random_matrix<Matrix<double>>(d, 5, 4), c = random_matrix<Matrix<double>>(d, 5, 5);
  const auto layer = erased();
  auto other_router = MoeLayer(TrainableRouter<double>(Frozen(router())), TrainableExperts<double>(experts()));
  auto other_experts =
      MoeLayer(TrainableRouter<double>(router()), TrainableExperts<double>(random_bank(6, d, 5, /*seed=*/2)));
  const auto learn = [&](auto& gradient) {
    auto tape = tape_of(layer);
    Matrix<double> y(d, 5), d_x = Matrix<double>::Zero(d, 5);
    forward(layer, x, y, tape);
    backward(layer, x, c, tape, d_x, gradient);
  };
  EXPECT_EQ(error_of([&] { learn(other_router); }), "backward: the gradient is of a router of another type");
  EXPECT_EQ(error_of([&] { learn(other_experts); }), "backward: the gradient is of a group of another type");
}

TEST(TrainableParts, MergedServeAndDoNotLearn) {
  auto adapted = with_lora(random_bank(6, d, 5, /*seed=*/2), {.rank = 2});
  for (const auto& named : named_adapters("", adapted)) {
    named.adapter->b = random_matrix<Weight<double>>(named.adapter->out(), 2, 6);
  }
  const auto layer = MoeLayer(TrainableRouter<double>(router()), TrainableExperts<double>(adapted));
  const auto sum = merged(layer);
  const auto x = random_matrix<Matrix<double>>(d, 12, 4);
  EXPECT_TRUE(test::is_close(sum.forward(x), layer.forward(x)));
  EXPECT_TRUE(same_bits(sum.forward(x), MoeLayer(router(), merged(adapted)).forward(x)));
  auto tape = tape_of(sum);
  Matrix<double> y(d, 12);
  EXPECT_THROW(forward(sum, x, y, tape), std::logic_error);
}

}  // namespace
}  // namespace moe
