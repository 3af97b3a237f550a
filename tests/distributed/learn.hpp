/// @file  What the tests of training on many ranks use.
#pragma once

#include <iterator>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "distributed/ranks.hpp"
#include "moe/core/parameters.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/train.hpp"
#include "moe/train/distributed/expert_parallel.hpp"
#include "moe/train/parameter_pieces.hpp"
#include "random.hpp"

namespace moe::test {

/// What a layer makes of L = Σ d_y ⊙ y, where no token sees another.
template <class Layer>
struct Learnt {
  using Scalar = typename Layer::Scalar;
  Layer gradient;
  Matrix<Scalar> y, d_x;
  Matrix<Scalar> d_weight;  // (1 × routes)
};

template <class Layer, class Scalar = typename Layer::Scalar>
Learnt<Layer> learn(const Layer& layer, const Matrix<Scalar>& x, const Matrix<Scalar>& d_y,
                    ExecutorRef executor = Serial{}, distributed::Copies copies = distributed::Copies::first,
                    const SideInputs<Scalar>& side = {}) {
  auto tape = tape_of(layer);
  tape.workspace().numerics.batch_invariant = true;
  tape.workspace().side = side;
  if constexpr (requires { tape.experts.copies; }) tape.experts.copies = copies;
  Learnt<Layer> learnt{
      zeros_like(layer), Matrix<Scalar>(x.rows(), x.cols()), Matrix<Scalar>::Zero(x.rows(), x.cols()), {}};
  forward(layer, x, learnt.y, tape, executor);
  backward(layer, x, d_y, tape, learnt.d_x, learnt.gradient, executor);
  if constexpr (requires {
                  tape.d_weight;
                  tape.experts;
                }) {
    learnt.d_weight = Eigen::Map<Matrix<Scalar>>(tape.d_weight.data(), 1, std::ssize(tape.d_weight));
  }
  return learnt;
}

template <class Scalar>
using Named = std::map<std::string, Matrix<Scalar>>;

/// By name, to be looked up.
template <class Layer>
auto named(Layer& layer) {
  Named<typename Layer::Scalar> found;
  for (const auto& parameter : parameters(layer)) found[parameter.name] = parameter.matrix();
  return found;
}

/// The tokens of all ranks, rank by rank, or gradients of them.
template <class Scalar>
struct Batch {
  std::vector<Index> first{0};  // of each rank
  Matrix<Scalar> all;

  /// @param most  tokens of a rank
  Batch(Index d_model, Index most, unsigned seed) {
    for (int rank = 0; rank < num_ranks(); ++rank) first.push_back(first.back() + tokens_of(rank, most));
    all = random_matrix<Matrix<Scalar>>(d_model, first.back(), seed);
  }
  Matrix<Scalar> of(int rank) const {
    const auto r = static_cast<std::size_t>(rank);
    return all.middleCols(first[r], first[r + 1] - first[r]);
  }
  Matrix<Scalar> own() const { return of(my_rank()); }
};

template <class Scalar>
void expect_same_bits(const Named<Scalar>& some, const Named<Scalar>& all, const std::string& prefix,
                      const std::string& what) {
  for (const auto& [name, values] : some) {
    if (!name.starts_with(prefix)) continue;
    ASSERT_TRUE(all.contains(name)) << name;
    EXPECT_TRUE(same_bits(values, all.at(name))) << name << " of " << what;
  }
}

/// As one process has gradients that adds up those of each rank's tokens, in the order of the ranks.
template <class Layer, class Scalar = typename Layer::Scalar>
Named<Scalar> rank_by_rank(const Layer& layer, const Batch<Scalar>& x, const Batch<Scalar>& d_y) {
  Named<Scalar> sum;
  for (int rank = 0; rank < num_ranks(); ++rank) {
    auto learnt = learn(layer, x.of(rank), d_y.of(rank));
    for (const auto& [name, part] : named(learnt.gradient)) {
      if (rank == 0) {
        sum[name] = part;
      } else {
        sum[name] += part;
      }
    }
  }
  return sum;
}

}  // namespace moe::test
