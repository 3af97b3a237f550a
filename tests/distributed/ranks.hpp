/// @file  What the tests on many ranks use.
#pragma once

#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <mpi.h>

#include "moe/distributed/expert_parallel.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workspace.hpp"

namespace moe::test {

inline int rank_of(MPI_Comm comm) {
  int rank = 0;
  MPI_Comm_rank(comm, &rank);
  return rank;
}

inline int num_ranks(MPI_Comm comm) {
  int size = 0;
  MPI_Comm_size(comm, &size);
  return size;
}

inline int my_rank() { return rank_of(MPI_COMM_WORLD); }
inline int num_ranks() { return num_ranks(MPI_COMM_WORLD); }

/// The seeds of expert 0, 1, …: expert e is made from 1 + e.
inline std::vector<unsigned> seeds_of(const std::vector<Index>& experts) {
  std::vector<unsigned> seeds;
  for (const Index e : experts) seeds.push_back(static_cast<unsigned>(1 + e));
  return seeds;
}

/// This rank's experts as a group of their own, as a factory of the laws makes it; nothing if it has none.
template <class Factory, class Group = decltype(Factory::make(Index(1), std::span<const unsigned>{}))>
std::optional<Group> local_group(Index d_model, const std::vector<Index>& experts) {
  if (experts.empty()) return std::nullopt;
  return Factory::make(d_model, seeds_of(experts));
}

/// A factory's experts, as one group and shared out.
template <class Factory>
struct GroupsOf {
  using Group = decltype(Factory::make(Index(1), std::span<const unsigned>{}));
  using Scalar = typename Group::Scalar;

  static Group whole(Index d_model, Index num_experts) {
    std::vector<Index> all(static_cast<std::size_t>(num_experts));
    std::iota(all.begin(), all.end(), Index(0));
    return Factory::make(d_model, seeds_of(all));
  }
  static auto shared_out(Index d_model, const distributed::Placement& placement,
                         const distributed::ExpertParallelOptions& options = {}, MPI_Comm comm = MPI_COMM_WORLD) {
    return distributed::ExpertParallel(local_group<Factory>(d_model, placement.experts_of(rank_of(comm))), placement,
                                       comm, options);
  }
};

/// Expert e on the rank that it would have if they were dealt like cards, the last rank first.
inline distributed::Placement dealt(Index num_experts, int ranks) {
  distributed::Placement placement;
  for (Index e = 0; e < num_experts; ++e) placement.ranks_of.push_back({int(ranks - 1 - e % ranks)});
  return placement;
}

/// Expert 0 on every rank, expert 1 on every second one, …, expert e on every (e + 1)-th, and so on from the start.
inline distributed::Placement copied(Index num_experts, int ranks) {
  distributed::Placement placement;
  for (Index e = 0; e < num_experts; ++e) {
    placement.ranks_of.emplace_back();
    for (int rank = int(e % ranks); rank < ranks; rank += int(e % ranks) + 1) placement.ranks_of.back().push_back(rank);
  }
  return placement;
}

/// What each rank says when one of them met an error.
inline std::string told_by(int rank, const std::string& error) {
  return (rank == my_rank() ? "" : "rank " + std::to_string(rank) + ": ") + error;
}

/// Tokens of each rank: uneven, and none on one of them.
inline Index tokens_of(int rank, Index most) { return most - (rank * 5 + 1) % (most + 1); }

/// y = layer(x), where no token sees another.
template <class Layer, class Scalar = typename Layer::Scalar>
Matrix<Scalar> invariant_forward(const Layer& layer, const Matrix<Scalar>& x, ExecutorRef executor = Serial{}) {
  Matrix<Scalar> y(x.rows(), x.cols());
  Workspace<Scalar> ws;
  ws.numerics.batch_invariant = true;
  layer.forward(x, y, ws, executor);
  return y;
}

}  // namespace moe::test
