// Every router, frozen: gradients pass through it as if it learned, and nothing of it learns.
#include "allocations.hpp"

#include "moe/train/frozen.hpp"

#include <cstddef>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "moe/moe.hpp"
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

}  // namespace
}  // namespace moe
