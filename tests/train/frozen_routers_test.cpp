// Every router: frozen, gradients pass through it as if it learned, and nothing of it learns; beside padding, it tells
// real tokens what it tells them alone, to the bit.
#include "allocations.hpp"

#include "moe/train/frozen.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "moe/moe.hpp"
#include "moe/telemetry.hpp"
#include "moe/train.hpp"
#include "random.hpp"
#include "train/all_routers.hpp"

namespace moe {
namespace {

using test::random_matrix;
using test::same_bits;

/// What a backward pass adds to d_logits and d_x that are not 0 before.
template <class R>
std::pair<Matrix<float>, Matrix<float>> gradients_through(const R& router, const SideInputs<float>& side, R& gradient) {
  const auto x = random_matrix<Matrix<float>>(40, 70, 50);
  const Tokens<float> tokens(x, side);
  std::vector<Scratch> scratch;
  const Serial serial;
  Workers workers(serial, scratch);
  Routing<float> routing;
  router.route(tokens, routing, workers);
  const auto d_weight = random_matrix<Eigen::VectorXf>(routing.size(), 1, 51);
  auto d_logits = random_matrix<Matrix<float>>(Index(routing.logits.size()) / 70, 70, 52);
  auto d_x = random_matrix<Matrix<float>>(40, 70, 53);
  backward(router, tokens, routing, {d_weight.data(), std::size_t(d_weight.size())}, d_logits, d_x, gradient, workers);
  return {d_logits, d_x};
}

std::vector<std::vector<std::byte>> bytes_of(const std::vector<AnyParameter>& all) {
  std::vector<std::vector<std::byte>> bytes;
  for (const auto& one : all) bytes.emplace_back(one.data, one.data + one.bytes());
  return bytes;
}

template <class I>
class FrozenRouters : public testing::Test {};

template <class Indices>
struct TypesOf;
template <std::size_t... i>
struct TypesOf<std::index_sequence<i...>> {
  using type = testing::Types<std::integral_constant<std::size_t, i>...>;
};
using All = decltype(test::all_routers());
TYPED_TEST_SUITE(FrozenRouters, TypesOf<std::make_index_sequence<std::tuple_size_v<All>>>::type);

TYPED_TEST(FrozenRouters, PassTheGradientsOnAndLearnNothing) {
  auto [router, side] = std::get<TypeParam::value>(test::all_routers());
  auto learnt = zeros_like(router);
  const auto [d_logits, d_x] = gradients_through(router, side, learnt);

  Frozen frozen(router);
  Frozen gradient = frozen;
  EXPECT_TRUE(parameters(gradient).empty());
  const auto before = bytes_of(all_parameters(frozen));
  const auto [frozen_d_logits, frozen_d_x] = gradients_through(frozen, side, gradient);
  EXPECT_TRUE(same_bits(frozen_d_logits, d_logits));
  EXPECT_TRUE(same_bits(frozen_d_x, d_x));
  EXPECT_EQ(bytes_of(all_parameters(frozen)), before);
}

/// A router and its gradient, of a type that is not seen.
struct Erased {
  using Scalar = float;
  using Logits = MatrixRef<float>;

  Index num_experts_ = 0;
  std::function<void(const Tokens<float>&, Routing<float>&, Workers&)> route_ = {};
  std::function<void(const Tokens<float>&, const Routing<float>&, std::span<const float>, Logits, Logits, Workers&)>
      backward_ = {};

  Index d_model() const { return 40; }
  Index num_experts() const { return num_experts_; }
  void route(const Tokens<float>& tokens, Routing<float>& routing, Workers& workers) const {
    route_(tokens, routing, workers);
  }
};
void backward(const Erased& router, const Tokens<float>& tokens, const Routing<float>& routing,
              std::span<const float> d_weight, MatrixRef<float> d_logits, MatrixRef<float> d_x, Erased&,
              Workers& workers) {
  router.backward_(tokens, routing, d_weight, d_logits, d_x, workers);
}

/// 70 real tokens among padding.
std::vector<std::uint8_t> mask_of_70() {
  std::vector<std::uint8_t> mask(5);
  for (int t = 0; t < 70; ++t) mask.insert(mask.end(), t % 3 == 0 ? 2 : 0, 0), mask.push_back(1);
  mask.resize(mask.size() + 9);
  return mask;
}

/// Columns of 70 tokens, where the mask has them; all others are filled.
template <class T>
std::vector<T> among_padding(std::span<const T> columns, TokenMask mask, T filling) {
  const std::size_t rows = columns.size() / 70;
  std::vector<T> padded(rows * mask.size(), filling);
  for (std::size_t t = 0, i = 0; t < mask.size() && rows > 0; ++t) {
    if (mask[t] != 0) std::copy_n(columns.data() + rows * i++, rows, padded.data() + rows * t);
  }
  return padded;
}
Matrix<float> among_padding(const Matrix<float>& m, TokenMask mask, float filling) {
  const auto all = among_padding(std::span<const float>(m.data(), std::size_t(m.size())), mask, filling);
  return Eigen::Map<const Matrix<float>>(all.data(), m.rows(), std::ssize(mask));
}

/// What a step gives back.
struct Step {
  Matrix<float> y, d_x, d_logits;
  Routing<float> routing;
};
Step step_of(const Erased& router, const SideInputs<float>& side, const Matrix<float>& x, const Matrix<float>& d_y,
             const std::function<Matrix<float>(const Matrix<float>&)>& pad) {
  MoeLayer layer(router, std::vector<CopyExpert<float>>(std::size_t(router.num_experts()), CopyExpert<float>{40}));
  auto gradient = layer;
  auto tape = tape_of(layer);
  tape.ws.side = side;
  Step step{x, Matrix<float>::Zero(x.rows(), x.cols()), {}, {}};
  forward(layer, x, step.y, tape);
  if (tape.num_logits > 0) tape.logit_gradient() += pad(random_matrix<Matrix<float>>(tape.num_logits, 70, 62));
  backward(layer, x, d_y, tape, step.d_x, gradient);
  step.d_logits = tape.logit_gradient();
  step.routing = tape.ws.routing;
  return step;
}

void expect_what_is_measured_to_pass_over_padding(const Routing<float>& real, const Routing<float>& padded,
                                                  Index num_experts, TokenMask mask) {
  const Index n = std::ssize(mask);
  Eigen::ArrayXd importance, of_padded;
  measure_importance(real, 70, num_experts, importance);
  measure_importance(padded, n, num_experts, of_padded, mask);
  EXPECT_TRUE(same_bits(of_padded, importance));
  if (std::ssize(real.logits) != 70 * num_experts) return;
  EXPECT_EQ(load_balancing_loss(measure_shares(padded, n, num_experts, {.mask = mask})),
            load_balancing_loss(measure_shares(real, 70, num_experts)));
  EXPECT_EQ(z_loss(logits_of(padded, num_experts, n), mask), z_loss(logits_of(real, num_experts, 70)));
  RoutingStats stats(num_experts), stats_of_padded(num_experts);
  stats.add(real, 70), stats_of_padded.add(padded, n, mask);
  EXPECT_TRUE(std::ranges::equal(stats_of_padded.sums(), stats.sums()));
}

TYPED_TEST(FrozenRouters, DoNotSeePadding) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  const auto its = std::get<TypeParam::value>(test::all_routers());
  const auto& router = its.router;
  const SideInputs<float>& side = its.side;
  const auto mask = mask_of_70();
  const auto x = random_matrix<Matrix<float>>(40, 70, 60), d_y = random_matrix<Matrix<float>>(40, 70, 61);
  std::vector<std::vector<std::byte>> gradients[2];
  const auto step = [&](int i, const SideInputs<float>& its_side, const Matrix<float>& its_x,
                        const Matrix<float>& its_d_y, const auto& pad) {
    auto gradient = zeros_like(router);
    const Erased erased{
        router.num_experts(),
        [&](const auto& tokens, auto& routing, auto& workers) { router.route(tokens, routing, workers); },
        [&](const auto& tokens, const auto& routing, auto d_weight, auto d_logits, auto d_x, auto& workers) {
          backward(router, tokens, routing, d_weight, d_logits, d_x, gradient, workers);
        }};
    const auto made = step_of(erased, its_side, its_x, its_d_y, pad);
    gradients[i] = bytes_of(all_parameters(gradient));
    return made;
  };
  const auto real = step(0, side, x, d_y, [](const Matrix<float>& m) { return m; });

  const auto ids = among_padding<Index>(side.token_ids, mask, -7);
  const auto modality = among_padding<std::uint8_t>(side.modality, mask, 99);
  const auto logits = among_padding<float>(side.previous_logits, mask, nan);
  const auto state = among_padding<float>(side.previous_state, mask, nan);
  SideInputs<float> padded_side = side;
  padded_side.mask = mask;
  padded_side.token_ids = ids, padded_side.modality = modality;
  padded_side.previous_logits = logits, padded_side.previous_state = state;
  std::vector<Index> place;
  for (std::size_t t = 0; t < mask.size(); ++t) {
    if (mask[t] != 0) place.push_back(Index(t));
  }
  Routing<float> recorded;
  if (side.recorded) {
    recorded = *side.recorded;
    for (Index& t : recorded.token) t = place[std::size_t(t)];
    padded_side.recorded = &recorded;
  }
  const auto pad = [&](const Matrix<float>& m) { return among_padding(m, mask, nan); };
  const auto padded = step(1, padded_side, pad(x), pad(d_y), pad);

  EXPECT_TRUE(same_bits(padded.y, among_padding(real.y, mask, 0)));
  EXPECT_TRUE(same_bits(padded.d_x, among_padding(real.d_x, mask, 0)));
  if (real.d_logits.size() > 0) {
    EXPECT_TRUE(same_bits(padded.d_logits, among_padding(real.d_logits, mask, 0)));
  }
  EXPECT_EQ(gradients[1], gradients[0]);
  auto expected = real.routing;
  for (Index& t : expected.token) t = place[std::size_t(t)];
  EXPECT_EQ(padded.routing.token, expected.token);
  EXPECT_EQ(padded.routing.expert, expected.expert);
  EXPECT_EQ(padded.routing.weight, expected.weight);
  EXPECT_EQ(padded.routing.dropped, expected.dropped);
  EXPECT_EQ(padded.routing.logits, among_padding<float>(expected.logits, mask, 0));
  EXPECT_EQ(padded.routing.state, among_padding<float>(expected.state, mask, 0));
  expect_what_is_measured_to_pass_over_padding(real.routing, padded.routing, router.num_experts(), mask);
}

}  // namespace
}  // namespace moe
