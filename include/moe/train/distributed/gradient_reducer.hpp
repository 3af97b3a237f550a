/// @file  The gradients of all ranks as one.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <mpi.h>

#include "moe/core/check.hpp"
#include "moe/core/parameters.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/task.hpp"
#include "moe/core/types.hpp"
#include "moe/distributed/agreement.hpp"
#include "moe/distributed/communicator.hpp"
#include "moe/distributed/exchange.hpp"
#include "moe/distributed/sum_in_order.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/optimisers/clip_gradients.hpp"

namespace moe::inline MOE_TARGET::distributed {

/// The gradients of a model whose router, and whatever else is not an expert, is on every rank, and whose experts are
/// on one or a few. Parameters of the same name are copies of one: each rank has the part of its gradient that comes
/// from its own tokens, and sum() gives the whole to all of them. So they stay copies, as long as each rank then makes
/// the same step.
///   GradientReducer gradients(parameters(gradient), MPI_COMM_WORLD);
///   … forward, backward, and then
///   gradients.sum();
///   gradients.clip(1.0);
///   adam.step(gradients.parameters());
template <class Scalar>
class GradientReducer {
 public:
  /// Collective.
  /// @param gradients  where they lie as long as this lives
  /// @param patience   as ExpertParallelOptions::patience
  /// @throws std::invalid_argument on all ranks, with the sizes and who claims them, if ranks disagree on a shape or on
  ///         Scalar, or one of them has two of a name; on this rank alone, if it has 2³¹ numbers that others have, too.
  GradientReducer(std::vector<Parameter<Scalar>> gradients, MPI_Comm comm,
                  std::chrono::milliseconds patience = std::chrono::minutes(10))
      : gradients_(std::move(gradients)), comm_(comm, patience), outgoing_(comm_.size()), incoming_(comm_.size()) {
    std::map<std::string, Parameter<Scalar>> own;
    for (const auto& gradient : gradients_) own.emplace(gradient.name, gradient);
    for (const auto& [name, ranks] : find_holders(own)) {  // on all ranks in the same order
      if (!own.contains(name)) continue;
      if (ranks.front() == comm_.rank()) counted_.push_back(own.at(name));
      if (ranks.size() > 1) share(own.at(name), ranks);
    }
    outgoing_.place();
    incoming_.place();
    for (Shared& shared : shared_) {
      for (Band& band : shared.bands) {
        band.sent += outgoing_.first[std::size_t(band.rank)];
        band.received += incoming_.first[std::size_t(band.rank)];
      }
    }
  }

  /// As they were given.
  const std::vector<Parameter<Scalar>>& parameters() const { return gradients_; }
  const Communicator& communicator() const { return comm_; }

  /// Collective, once a step. Each becomes the sum over the ranks that have it, in the order of the ranks: the bits of
  /// one process that computes the gradient of each rank's tokens by itself and adds these up, for any transport,
  /// library and number of threads. (MPI_Allreduce promises no order. This moves as much: every rank adds up a band of
  /// each parameter, and tells it to the others.)
  void sum(ExecutorRef executor = Serial{}) {
    for_each_shared(executor, [&](const Shared& shared) {
      for (const Band& band : shared.bands) {
        std::copy_n(shared.data + band.first, band.size, outgoing_.numbers.data() + band.sent);
      }
    });
    exchange(outgoing_, incoming_);
    for_each_shared(executor, [&](const Shared& shared) {
      const auto part = [&](const Band& band) {
        return Eigen::Map<Array>(incoming_.numbers.data() + band.received, shared.own_size);
      };
      auto sum = part(shared.bands.front());
      for (std::size_t i = 1; i < shared.bands.size(); ++i) sum += part(shared.bands[i]);
      for (std::size_t i = 1; i < shared.bands.size(); ++i) part(shared.bands[i]) = sum;
    });
    exchange(incoming_, outgoing_);
    for_each_shared(executor, [&](const Shared& shared) {
      for (const Band& band : shared.bands) {
        std::copy_n(outgoing_.numbers.data() + band.sent, band.size, shared.data + band.first);
      }
    });
  }

  /// Collective, after sum(). As clip_gradients() of the gradients of all ranks, each of which counts once, however
  /// many ranks have it.
  /// @returns their norm as it was before, the same on all ranks: not finite where a gradient on any of them is not
  /// @throws std::invalid_argument unless max_norm > 0.
  double clip(double max_norm, ExecutorRef executor = Serial{}) {
    moe::detail::require_max_norm(max_norm);
    double squares[] = {moe::detail::sum_of_squares(counted_, executor)};
    scratch_.reset();
    sum_in_order(squares, comm_, scratch_);
    const double norm = std::sqrt(squares[0]);
    moe::detail::clip_from(norm, gradients_, max_norm, executor);
    return norm;
  }

 private:
  using Array = Eigen::Array<Scalar, Eigen::Dynamic, 1>;

  /// What a parameter's copy on some rank adds up.
  struct Band {
    int rank;
    Index first, size;
    Index sent;      // where it lies on its way to that rank
    Index received;  // where that rank's part of this rank's own band arrives
  };
  struct Shared {
    Scalar* data;
    std::vector<Band> bands;  // of each rank that has it, in their order
    Index own_size;           // of this rank's band
  };

  /// Numbers to all ranks, or from all.
  struct Numbers {
    explicit Numbers(int num_ranks) : count(std::size_t(num_ranks), 0), first(std::size_t(num_ranks), 0) {}

    void add(int rank, Index size) {
      total += size;
      require_between(0, total, std::numeric_limits<int>::max(), "GradientReducer: numbers that several ranks have");
      count[std::size_t(rank)] += int(size);
    }
    void place() {
      std::exclusive_scan(count.begin(), count.end(), first.begin(), 0);
      numbers.resize(std::size_t(total));
    }

    std::vector<int> count, first;
    Index total = 0;
    std::vector<Scalar> numbers;
  };

  /// The ranks that have each parameter, by its name.
  std::map<std::string, std::vector<int>> find_holders(const std::map<std::string, Parameter<Scalar>>& own) const {
    const std::string who = "GradientReducer";
    std::string names;
    for (const auto& gradient : gradients_) names += gradient.name + '\n';
    const auto names_of = gather_texts(comm_, names, "tell the names of their parameters");

    std::map<std::string, std::vector<int>> holders;
    for (int rank = 0; rank < comm_.size(); ++rank) {
      std::istringstream lines(names_of[std::size_t(rank)]);
      for (std::string name; std::getline(lines, name);) {
        auto& ranks = holders[name];
        require(ranks.empty() || ranks.back() != rank, who + ": rank " + std::to_string(rank) + " has two of " + name);
        ranks.push_back(rank);
      }
    }
    std::vector<Claim> claims{{"sizeof(Scalar)", sizeof(Scalar)}};
    for (const auto& [name, ranks] : holders) {
      const auto its = own.find(name);
      claims.push_back({"rows of " + name, its == own.end() ? no_opinion : std::int64_t(its->second.rows)});
      claims.push_back({"cols of " + name, its == own.end() ? no_opinion : std::int64_t(its->second.cols)});
    }
    require_agreement(comm_, claims, who);
    return holders;
  }

  /// Cuts a parameter into as many bands as ranks have it.
  void share(const Parameter<Scalar>& gradient, const std::vector<int>& ranks) {
    const Index size = gradient.size(), bands = std::ssize(ranks);
    const auto first = [&](Index band) { return size * band / bands; };
    const Index own = std::ranges::find(ranks, comm_.rank()) - ranks.begin();
    Shared shared{gradient.data, {}, first(own + 1) - first(own)};
    for (Index b = 0; b < bands; ++b) {
      const int rank = ranks[std::size_t(b)];
      shared.bands.push_back({rank, first(b), first(b + 1) - first(b), outgoing_.count[std::size_t(rank)],
                              incoming_.count[std::size_t(rank)]});
      outgoing_.add(rank, shared.bands.back().size);
      incoming_.add(rank, shared.own_size);
    }
    shared_.push_back(std::move(shared));
  }

  template <class F>
  void for_each_shared(ExecutorRef executor, const F& f) const {
    const auto run = [&](Index i, Index) { f(shared_[std::size_t(i)]); };
    executor.for_each(std::ssize(shared_), Task(run));
  }

  void exchange(const Numbers& from, Numbers& to) const {
    MPI_Request request =
        start_exchange(comm_, number_type<Scalar>(), from.numbers.data(), {from.count.data(), from.first.data()},
                       to.numbers.data(), {to.count.data(), to.first.data()});
    comm_.wait(request, "sum gradients");
  }

  std::vector<Parameter<Scalar>> gradients_;
  std::vector<Parameter<Scalar>> counted_;  // here, when each is to count once
  Communicator comm_;
  Numbers outgoing_, incoming_;
  std::vector<Shared> shared_;
  Scratch scratch_;
};

}  // namespace moe::inline MOE_TARGET::distributed
