#include "laws/common.hpp"

#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "distributed/ranks.hpp"
#include "errors.hpp"
#include "expert_factories.hpp"
#include "moe/distributed/move_experts.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/models/random.hpp"
#include "moe/train/experts/ffn.hpp"

namespace moe::distributed {

using test::copied;
using test::dealt;
using test::invariant_forward;
using test::local_group;
using test::my_rank;
using test::num_ranks;
using test::random_matrix;
using test::same_bits;

/// All with biases.
struct FfnLists {
  static ExpertList<Ffn<float>> make(Index d_model, std::span<const unsigned> seeds) {
    std::vector<Ffn<float>> experts;
    for (const unsigned seed : seeds) experts.push_back(test::Ffns<float>::make(d_model, 2 * seed + 1));
    return ExpertList(std::move(experts));
  }
};

template <class Factory>
class MovedExpertsOf : public testing::Test {};

using Factories = testing::Types<test::GatedFfnBanks<float, GptOssGlu, true>, test::GatedFfnBanks<double>,
                                 test::GatedFfnBanks<bfloat16>, FfnLists>;
TYPED_TEST_SUITE(MovedExpertsOf, Factories);

TYPED_TEST(MovedExpertsOf, GiveTheBitsThatTheyGaveBefore) {
  using Scalar = typename decltype(TypeParam::make(Index(1), std::span<const unsigned>{}))::Scalar;
  const Index d_model = 17;
  for (const Index num_experts : {1, 2, 7, 13}) {
    const auto router = laws::router_for<Scalar>(d_model, num_experts, (num_experts + 1) / 2);
    const MoeLayer whole(router, TypeParam::make(d_model, laws::seeds_from(1, num_experts)));
    const auto make = [&](Index n) { return TypeParam::make(d_model, laws::seeds_from(1000, n)); };  // others
    const auto first = dealt(num_experts, num_ranks());
    MoeLayer layer(router, ExpertParallel(local_group<TypeParam>(d_model, first.experts_of(my_rank())), first,
                                          MPI_COMM_WORLD, {.chunks = 2}));
    const auto x = random_matrix<Matrix<Scalar>>(d_model, test::tokens_of(my_rank(), 9), 100 + unsigned(my_rank()));
    const auto expected = invariant_forward(whole, x);
    Placement all_on_the_last;
    all_on_the_last.ranks_of.assign(std::size_t(num_experts), {num_ranks() - 1});
    for (const auto& placement :
         {copied(num_experts, num_ranks()), place_in_blocks(num_experts, num_ranks()), all_on_the_last, first}) {
      layer.experts() = move_experts(layer.experts(), placement, make);
      EXPECT_EQ(layer.experts().placement(), placement);
      EXPECT_EQ(layer.experts().options().chunks, 2);
      EXPECT_TRUE(same_bits(invariant_forward(layer, x), expected)) << num_experts << " experts";
    }
  }
}

using Bank = test::GatedFfnBanks<float>;

TEST(MoveExperts, LeavesTheGroupAsItWasWhereAnythingDoesNotFit) {
  const Index d_model = 8, num_experts = 2 * num_ranks();
  const auto placement = place_in_blocks(num_experts, num_ranks());
  ExpertParallel group(local_group<Bank>(d_model, placement.experts_of(my_rank())), placement, MPI_COMM_WORLD);
  const auto router = laws::router_for<float>(d_model, num_experts, 2);
  const auto x = random_matrix<Matrix<float>>(d_model, 5, 1);
  const auto expected = invariant_forward(MoeLayer(router, group), x);
  const int last = num_ranks() - 1;

  const auto make = [&](Index n) { return Bank::make(d_model, laws::seeds_from(1000, n)); };
  EXPECT_EQ(test::error_of([&] { move_experts(group, place_in_blocks(num_experts + 1, num_ranks()), make); }),
            "move_experts: placement.num_experts() is " + std::to_string(num_experts + 1) + ", expected " +
                std::to_string(num_experts));
  const auto message = [&](const auto& make_other) -> std::string {
    try {
      move_experts(group, dealt(num_experts, num_ranks()), make_other);
    } catch (const std::exception& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(message([&](Index n) {
              if (my_rank() == last) throw std::runtime_error("no memory");
              return make(n);
            }),
            (my_rank() == last ? "" : "rank " + std::to_string(last) + ": ") + "no memory");
  const Index bytes = Index(sizeof(float)) * d_model * Bank::make(d_model, laws::seeds_from(1, 1)).d_ff();
  EXPECT_EQ(message([&](Index n) { return random_bank<float>(n, d_model, 3, 1); }),
            "move_parameters: " + std::to_string(last) + ".gate_proj.weight, from rank " + std::to_string(last / 2) +
                " to rank 0: bytes is " + std::to_string(bytes) + ", expected " + std::to_string(4 * 3 * d_model));
  EXPECT_TRUE(same_bits(invariant_forward(MoeLayer(router, group), x), expected));
}

std::vector<AnyParameter> list_of(std::vector<std::pair<std::string, std::vector<float>>>& vectors) {
  std::vector<AnyParameter> list;
  for (auto& [name, numbers] : vectors) {
    auto* const bytes = reinterpret_cast<std::byte*>(numbers.data());
    list.push_back({name, 1, Index(numbers.size()), sizeof(float), bytes, bytes});
  }
  return list;
}

TEST(MoveParameters, ByNameFromWhoeverHasThem) {
  const auto name = [](int rank) { return "of rank " + std::to_string(rank); };
  const auto number = [](int rank) { return std::vector<float>(std::size_t(rank) * 1000 + 1, float(rank)); };
  std::vector<std::pair<std::string, std::vector<float>>> own{{name(my_rank()), number(my_rank())}, {"of all", {7}}};
  std::vector<std::pair<std::string, std::vector<float>>> wanted;
  if (my_rank() == 0) wanted.push_back({"of all", {0}});
  for (int rank = 0; rank < num_ranks(); ++rank) {
    if ((rank + my_rank()) % 2 == 0) wanted.push_back({name(rank), std::vector<float>(number(rank).size())});
  }
  if (num_ranks() > 1 && my_rank() == num_ranks() - 1) {  // else nobody wants one of them
    for (int rank = 0; rank < num_ranks(); ++rank) {
      if ((rank + my_rank()) % 2 != 0) wanted.push_back({name(rank), std::vector<float>(number(rank).size())});
    }
  }
  move_parameters(list_of(own), list_of(wanted), MPI_COMM_WORLD);
  for (const auto& [its_name, numbers] : wanted) {
    if (its_name == "of all") {
      EXPECT_EQ(numbers, std::vector<float>{7});
    } else {
      EXPECT_EQ(numbers, number(std::stoi(its_name.substr(8)))) << its_name;
    }
  }
}

TEST(MoveParameters, WritesNothingWhereOneIsMissingOrLost) {
  const int last = num_ranks() - 1;
  std::vector<std::pair<std::string, std::vector<float>>> own{{"a", {1}}}, wanted{{"a", {0}}};
  if (my_rank() == last) wanted.push_back({"b", {0}});
  EXPECT_EQ(test::error_of([&] { move_parameters(list_of(own), list_of(wanted), MPI_COMM_WORLD); }),
            "move_parameters: b is wanted by rank " + std::to_string(last) + ", and no rank has it");
  if (my_rank() == last) own.push_back({"c", {2}});
  wanted.resize(1);
  EXPECT_EQ(test::error_of([&] { move_parameters(list_of(own), list_of(wanted), MPI_COMM_WORLD); }),
            "move_parameters: c of rank " + std::to_string(last) + " is wanted by no rank: it would be lost");
  auto mapped = list_of(wanted), apart = list_of(own);
  if (my_rank() == last) mapped[0].to_write = nullptr;
  own.resize(1);
  const std::string way = "from rank " + std::to_string(last) + " to rank " + std::to_string(last);
  EXPECT_EQ(test::error_of([&] { move_parameters(list_of(own), mapped, MPI_COMM_WORLD); }),
            "move_parameters: a, " + way + ": is mapped there: it cannot be written");
  apart.resize(1);
  if (my_rank() == last) apart[0].data = nullptr;
  EXPECT_EQ(test::error_of([&] { move_parameters(apart, list_of(wanted), MPI_COMM_WORLD); }),
            "move_parameters: a, " + way + ": does not lie in one piece");
  EXPECT_EQ(wanted[0].second, std::vector<float>{0});
}

}  // namespace moe::distributed
