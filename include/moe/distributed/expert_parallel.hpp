/// @file  A group of experts that live on many ranks.
#pragma once

#include <chrono>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

#include <mpi.h>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/distributed/agreement.hpp"
#include "moe/distributed/communicator.hpp"
#include "moe/distributed/exchange.hpp"
#include "moe/distributed/handle.hpp"
#include "moe/distributed/parcels.hpp"
#include "moe/distributed/placement.hpp"
#include "moe/distributed/round_trip.hpp"
#include "moe/distributed/shared_error.hpp"
#include "moe/distributed/traffic.hpp"
#include "moe/experts/expert_subset.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET::distributed {

/// How numbers travel.
enum class Wire {
  exact,     // as they are
  bfloat16,  // rounded (half an ulp, 2^-9 of each), tokens and answers, also those that stay on their rank
};

/// How a group works together.
struct ExpertParallelOptions {
  /// A rank's tokens travel in so many parts: while the experts work on one, the next is on its way. Alike on all
  /// ranks.
  int chunks = 1;

  /// Alike on all ranks.
  Wire wire = Wire::exact;

  /// Alike on all ranks.
  Answers answers = Answers::each;

  /// A rank that waits longer than this for the others says so and ends them all. More than the slowest call of the
  /// slowest rank, and whatever it does between two calls.
  std::chrono::milliseconds patience = std::chrono::minutes(10);

  /// Every apply() adds to it, if it is there.
  Traffic* traffic = nullptr;
};

/// The experts of all ranks as one group, of which each rank holds some in a local group of any kind. Tokens travel to
/// the experts; answers travel back and are added at home, in the order of the plan. So where `batch_invariant` is set,
/// each rank gets the bits that one process with all experts would give for its tokens. (Where it is not, an expert
/// sees the tokens of all ranks in one batch, and may round otherwise.)
///
/// While the first tokens travel, the experts do what their layer has to do besides, such as its shared expert.
///
/// All ranks call apply(), each with its own tokens, be they none, in the same order and with the same Numerics; one
/// thread at a time. What a rank's experts throw is thrown there, and on all other ranks as std::runtime_error that
/// says which rank and what; then the group may be used again. Any other exception leaves the others waiting: run()
/// ends them at once, and else their patience does.
template <Experts G>
class ExpertParallel {
 public:
  using Scalar = typename G::Scalar;

  /// Collective. Rank 0 holds the first experts, rank 1 those that follow, …: as many as its local group has.
  /// @param local  this rank's experts; std::nullopt on a rank that holds none
  /// @throws std::invalid_argument on all ranks, naming the values and who claims them, if ranks disagree on d_model, a
  ///         bank's d_ff, the type of experts or options; or if no rank holds an expert.
  ExpertParallel(std::optional<G> local, MPI_Comm comm, const ExpertParallelOptions& options = {})
      : ExpertParallel(std::move(local), Placement{}, comm, options) {}

  /// Collective. Expert e is on the ranks placement.ranks_of[e]; a rank's local group has its experts in ascending
  /// order. An empty placement is none.
  /// @throws std::invalid_argument on all ranks, also if they disagree on the placement, or one of them holds another
  ///         number of experts than it says.
  ExpertParallel(std::optional<G> local, Placement placement, MPI_Comm comm, const ExpertParallelOptions& options = {})
      : local_(std::move(local)), placement_(std::move(placement)), comm_(comm, options.patience), options_(options) {
    const std::string who = "ExpertParallel";
    const Claim claims[] = {{"d_model", local_ ? std::int64_t(local_->d_model()) : no_opinion},
                            {"d_ff", d_ff()},
                            {"sizeof(Scalar)", sizeof(Scalar)},
                            {"options.chunks", options_.chunks},
                            {"options.wire", std::int64_t(options_.wire)},
                            {"options.answers", std::int64_t(options_.answers)},
                            {"placement.num_experts()", placement_.num_experts()}};
    d_model_ = Index(require_agreement(comm_, claims, who)[0]);
    require(d_model_ != no_opinion, who + ": no rank holds an expert");
    require_same_text(comm_, "the type of experts", typeid(G).name(), who);
    require_between(1, options_.chunks, most_chunks, who + ": options.chunks");

    const std::int64_t held[] = {num_local()};
    const auto held_by = gather(comm_, held, "say how many experts each holds");
    if (num_experts() > 0) {
      require_same_placement(who);
    } else {
      for (int rank = 0; rank < comm_.size(); ++rank) {
        placement_.ranks_of.insert(placement_.ranks_of.end(), std::size_t(held_by[std::size_t(rank)]), {rank});
      }
    }
    held_by_ = holdings(placement_, comm_.size());
    for (std::size_t rank = 0; rank < held_by.size(); ++rank) {
      require_equal(held_by[rank], std::ssize(held_by_[rank]), who + ": experts held by rank " + std::to_string(rank));
    }
    require_between(1, num_experts(), std::numeric_limits<std::int32_t>::max(), who + ": experts of all ranks");
    column_ = column_type(d_model_ * bytes_of_number());
    order_ = column_type(sizeof(Order<Scalar>));
  }

  Index d_model() const { return d_model_; }
  Index num_experts() const { return placement_.num_experts(); }
  const Placement& placement() const { return placement_; }
  /// This rank's experts, if it holds any.
  const std::optional<G>& local() const { return local_; }
  std::optional<G>& local() { return local_; }
  const Communicator& communicator() const { return comm_; }  ///< The ranks, under a context of their own.
  const ExpertParallelOptions& options() const { return options_; }

  /// Collective.
  /// @throws what this rank's experts throw; std::runtime_error if those of another rank throw, or MPI fails.
  void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
             Workers& workers) const {
    const Stopwatch stopwatch;
    const auto itinerary = tell_ranks(plan, x.cols(), options_.chunks, Copies::all, workers.shared());
    with_wire([&]<class T>(T) {
      auto trip = round_trip<T>(itinerary, workers.shared(), workers.shared());
      apply(trip, x, plan, y, stopwatch, workers,
            [&](const auto& plan_here) { local_->apply(trip.tokens(), plan_here, trip.answers(), workers); });
    });
  }

  // The steps of apply(), for who keeps more of it than y.

  /// Collective: all ranks learn what is asked of them.
  Itinerary<Scalar> tell_ranks(const DispatchPlan<Scalar>& plan, Index num_tokens, int num_chunks, Copies copies,
                               Scratch& scratch) const {
    const auto out = address(plan, held_by_, copies, comm_.rank(), num_tokens, num_chunks, scratch);
    const Parcels in = exchange_parcels(out.parcels, scratch);
    return {out, in, exchange_orders(out, in, scratch), options_.answers};
  }

  /// f(a number as it travels).
  template <class F>
  void with_wire(const F& f) const {
    options_.wire == Wire::exact ? f(Scalar()) : f(bfloat16());
  }

  /// As RoundTrip's constructor.
  template <class T>
  RoundTrip<Scalar, T> round_trip(const Itinerary<Scalar>& itinerary, Scratch& scratch, Scratch& kept) const {
    return {comm_, *column_, d_model_, itinerary, scratch, kept};
  }

  /// Collective.
  /// @param run_experts  of the plan that it is given: adds what they make of trip.tokens() to trip.answers()
  template <class T, class F>
  void apply(RoundTrip<Scalar, T>& trip, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
             MatrixRef<Scalar> y, Stopwatch stopwatch, Workers& workers, const F& run_experts) const {
    const int chunks = trip.itinerary().in.num_chunks();
    const auto run_chunk = [&](int chunk) {
      trip.unpack(chunk, workers);
      const auto plan_here = trip.plan(chunk, num_local());
      const bool weighted_at_home = options_.answers == Answers::each;
      if (local_) run_experts(weighted_at_home ? without_output_weights(plan_here, workers.shared()) : plan_here);
    };
    SharedError error(comm_);
    trip.send(0, x, workers);
    stopwatch.in_experts([&] { error.run([&] { workers.work_meanwhile(); }); });
    for (int chunk = 0; chunk < chunks; ++chunk) {
      if (chunk + 1 < chunks) trip.send(chunk + 1, x, workers);  // to travel while the experts work
      trip.receive(chunk);
      stopwatch.in_experts([&] { error.run([&] { run_chunk(chunk); }); });
      trip.send_back(chunk, workers);
    }
    error.ask();
    for (int chunk = 0; chunk < chunks; ++chunk) trip.receive_back(chunk, workers);
    error.rethrow();
    trip.combine_at_home(plan, y, workers);
    const Index told = trip.itinerary().out.parcels.total_without(comm_.rank()).slots * Index(sizeof(Order<Scalar>)) +
                       Index(comm_.size() - 1) * chunks * Index(sizeof(Parcel));
    count_traffic(trip.itinerary(), told, stopwatch);
  }

  /// Counts a trip, and so many bytes beside it.
  void count_traffic(const Itinerary<Scalar>& itinerary, Index other_bytes, const Stopwatch& stopwatch) const {
    if (!options_.traffic) return;
    const Index columns = itinerary.out.parcels.total_without(comm_.rank()).columns;
    const Index answers = itinerary.in.total_without(comm_.rank()).*itinerary.back();
    *options_.traffic += {.calls = 1,
                          .columns = columns,
                          .answers = answers,
                          .routes = itinerary.in.total().slots,
                          .bytes = (columns + answers) * d_model_ * bytes_of_number() + other_bytes,
                          .seconds_in_experts = stopwatch.experts(),
                          .seconds_in_exchange = stopwatch.exchange()};
  }

  /// This rank's experts, by their numbers among those of all ranks.
  template <class Visit>
  void visit_parameters(Visit& visit) {
    if (local_) visit.numbered(placement_.experts_of(comm_.rank()), *local_);
  }

 private:
  static constexpr int most_chunks = 1024;  // times ranks is an int

  void require_same_placement(const std::string& who) const {
    std::vector<Claim> sizes, ranks;
    for (std::size_t e = 0; e < placement_.ranks_of.size(); ++e) {
      const std::string name = "placement.ranks_of[" + std::to_string(e) + "]";
      sizes.push_back({name + ".size()", std::ssize(placement_.ranks_of[e])});
      for (std::size_t copy = 0; copy < placement_.ranks_of[e].size(); ++copy) {
        ranks.push_back({name + "[" + std::to_string(copy) + "]", placement_.ranks_of[e][copy]});
      }
    }
    require_agreement(comm_, sizes, who);
    require_agreement(comm_, ranks, who);
    for (const Claim& size : sizes) require_between(1, size.value, comm_.size(), who + ": " + size.name);
    for (std::size_t e = 0; e < placement_.ranks_of.size(); ++e) {
      require_ascending(placement_.ranks_of[e], comm_.size(), who + ": placement.ranks_of[" + std::to_string(e) + "]");
    }
  }

  /// Of a bank; other groups may hold experts of any sizes.
  std::int64_t d_ff() const {
    if constexpr (requires { local_->d_ff(); }) {
      if (local_) return local_->d_ff();
    }
    return no_opinion;
  }

  Index num_local() const { return local_ ? Index(local_->num_experts()) : 0; }

  Index bytes_of_number() const { return options_.wire == Wire::exact ? sizeof(Scalar) : sizeof(bfloat16); }

  Parcels exchange_parcels(const Parcels& out, Scratch& scratch) const {
    const Parcels in(comm_.size(), out.num_chunks(), scratch);
    const int numbers = 2 * out.num_chunks();
    static_assert(sizeof(Parcel) == 2 * sizeof(int));
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Ialltoall(out.data(), numbers, MPI_INT, in.data(), numbers, MPI_INT, comm_.get(), &request),
          "MPI_Ialltoall");
    comm_.wait(request, "exchange numbers of tokens");
    in.place();
    return in;
  }

  const Order<Scalar>* exchange_orders(const Outgoing<Scalar>& out, const Parcels& in, Scratch& scratch) const {
    auto* const orders = scratch.array<Order<Scalar>>(in.total().slots);
    MPI_Request request =
        start_exchange(comm_, *order_, out.orders, out.parcels.all_slots(scratch), orders, in.all_slots(scratch));
    comm_.wait(request, "exchange routes");
    return orders;
  }

  std::optional<G> local_;
  Placement placement_;
  Communicator comm_;
  ExpertParallelOptions options_;
  Index d_model_ = 0;
  std::vector<std::vector<Held>> held_by_;  // each rank
  Handle<MPI_Datatype> column_, order_;
};

template <Experts G>
ExpertParallel(G, MPI_Comm, ExpertParallelOptions = {}) -> ExpertParallel<G>;  ///< In contiguous blocks.
template <Experts G>
ExpertParallel(G, Placement, MPI_Comm, ExpertParallelOptions = {}) -> ExpertParallel<G>;  ///< As placed.

/// Collective. Of a group that every rank has at hand, each runs its own part alone: contiguous blocks, or as placed.
/// (For experts in files: load_layer(), of checkpoint.hpp.)
/// @throws std::invalid_argument as ExpertParallel's constructor; and if the placement is of another number of experts.
template <Experts G>
ExpertParallel<ExpertSubset<G>> shard_experts(G experts, Placement placement, MPI_Comm comm,
                                              const ExpertParallelOptions& options = {}) {
  const Communicator ranks(comm, options.patience);
  const Claim claims[] = {{"experts.num_experts()", experts.num_experts()},
                          {"placement.num_experts()", placement.num_experts()}};
  require_agreement(ranks, claims, "shard_experts");
  require_equal(placement.num_experts(), experts.num_experts(), "shard_experts: placement.num_experts()");
  ExpertSubset own(std::move(experts), placement.experts_of(ranks.rank()));
  return {std::move(own), std::move(placement), comm, options};
}
/// The same in contiguous blocks of experts, as many on each rank or one more.
template <Experts G>
ExpertParallel<ExpertSubset<G>> shard_experts(G experts, MPI_Comm comm, const ExpertParallelOptions& options = {}) {
  int size = 0;
  check(MPI_Comm_size(comm, &size), "MPI_Comm_size");
  const Index num_experts = experts.num_experts();
  return shard_experts(std::move(experts), place_in_blocks(num_experts, size), comm, options);
}

}  // namespace moe::inline MOE_TARGET::distributed
