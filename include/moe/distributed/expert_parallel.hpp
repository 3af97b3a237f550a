/// @file  A group of experts that live on many ranks.
#pragma once

#include <chrono>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <mpi.h>

#include "moe/check.hpp"
#include "moe/combine.hpp"
#include "moe/concepts.hpp"
#include "moe/dispatch.hpp"
#include "moe/distributed/agreement.hpp"
#include "moe/distributed/communicator.hpp"
#include "moe/distributed/exchange.hpp"
#include "moe/distributed/handle.hpp"
#include "moe/distributed/parcels.hpp"
#include "moe/distributed/placement.hpp"
#include "moe/distributed/shared_error.hpp"
#include "moe/distributed/traffic.hpp"
#include "moe/experts/expert_subset.hpp"
#include "moe/scratch.hpp"
#include "moe/types.hpp"
#include "moe/workers.hpp"

namespace moe::distributed {

/// How numbers travel.
enum class Wire {
  exact,     // as they are
  bfloat16,  // rounded (half an ulp, 2^-9 of each), tokens and answers, also those that stay on their rank
};

/// What travels back to a token's rank.
enum class Answers {
  each,    // every expert's, to be added at home
  summed,  // weight · answer, summed over a rank's experts: fewer, but not the bits of one process
};

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
  /// @throws std::invalid_argument on all ranks, naming the values and who claims them, if ranks disagree on d_model,
  ///         Scalar or options; or if no rank holds an expert.
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
                            {"sizeof(Scalar)", sizeof(Scalar)},
                            {"options.chunks", options_.chunks},
                            {"options.wire", std::int64_t(options_.wire)},
                            {"options.answers", std::int64_t(options_.answers)},
                            {"placement.num_experts()", placement_.num_experts()}};
    d_model_ = Index(require_agreement(comm_, claims, who)[0]);
    require(d_model_ != no_opinion, who + ": no rank holds an expert");
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
  const std::optional<G>& local() const { return local_; }

  /// Collective.
  /// @throws what this rank's experts throw; std::runtime_error if those of another rank throw, or MPI fails.
  void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
             Workers& workers) const {
    options_.wire == Wire::exact ? apply_over<Scalar>(x, plan, y, workers) : apply_over<bfloat16>(x, plan, y, workers);
  }

 private:
  /// Time since it was made, and the part of it that is spent in experts.
  class Stopwatch {
    using Clock = std::chrono::steady_clock;

   public:
    template <class F>
    void in_experts(const F& f) {
      const auto start = Clock::now();
      f();
      experts_ += seconds_since(start);
    }
    double experts() const { return experts_; }
    double exchange() const { return seconds_since(start_) - experts_; }

   private:
    static double seconds_since(Clock::time_point start) {
      return std::chrono::duration<double>(Clock::now() - start).count();
    }
    Clock::time_point start_ = Clock::now();
    double experts_ = 0;
  };

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
    auto rank = ranks.begin();
    for (const auto& its_ranks : placement_.ranks_of) {
      for (int lowest = 0; const int its : its_ranks) {
        require_between(lowest, its, comm_.size() - 1, who + ": " + (rank++)->name);
        lowest = its + 1;
      }
    }
  }

  Index num_local() const { return local_ ? Index(local_->num_experts()) : 0; }

  Index bytes_of_number() const { return options_.wire == Wire::exact ? sizeof(Scalar) : sizeof(bfloat16); }

  /// Memory for what `columns` hold as To: their own, if they do already.
  template <class To, class Map>
  static auto room_for(const Map& columns, Scratch& scratch) {
    if constexpr (std::is_same_v<typename Map::Scalar, To>) {
      return Map(columns);
    } else {
      return scratch.matrix<To>(columns.rows(), columns.cols());
    }
  }

  /// Fills that memory with what comes back in a chunk.
  template <class From, class To>
  static void convert(const From& from, To& to, const Parcels& parcels, int Parcel::*back, int chunk,
                      Workers& workers) {
    if constexpr (!std::is_same_v<From, To>) {
      parcels.for_each(back, chunk, workers,
                       [&](Parcel, int i) { to.col(i) = from.col(i).template cast<typename To::Scalar>(); });
    }
  }

  /// apply(), where T travels.
  template <class T>
  void apply_over(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
                  Workers& workers) const {
    Stopwatch stopwatch;
    Scratch& scratch = workers.shared();
    const auto out = address(plan, held_by_, comm_.rank(), x.cols(), options_.chunks, scratch);
    const Parcels in = exchange_parcels(out.parcels, scratch);
    const Order<Scalar>* const orders = exchange_orders(out, in, scratch);
    const bool summed = options_.answers == Answers::summed;
    const auto back = summed ? &Parcel::columns : &Parcel::slots;

    auto sent = scratch.matrix<T>(d_model(), out.parcels.total().columns);
    auto received = scratch.matrix<T>(d_model(), in.total().columns);
    auto* const column_of = scratch.array<Index>(in.total().slots);     // of each order, among those received
    auto tokens = scratch.matrix<Scalar>(d_model(), in.total().slots);  // of each order
    auto answers = scratch.matrix<Scalar>(d_model(), in.total().slots);
    auto sums = scratch.matrix<Scalar>(d_model(), summed ? in.total().columns : 0);
    auto sent_back = room_for<T>(summed ? sums : answers, scratch);
    auto received_back = scratch.matrix<T>(d_model(), out.parcels.total().*back);
    auto answers_to_own = room_for<Scalar>(received_back, scratch);
    auto* const tokens_travel = scratch.array<MPI_Request>(options_.chunks);
    auto* const answers_travel = scratch.array<MPI_Request>(options_.chunks);

    const auto send_tokens = [&](int chunk) {
      out.parcels.for_each(&Parcel::columns, chunk, workers,
                           [&](Parcel, int i) { sent.col(i) = x.col(out.token[i]).template cast<T>(); });
      tokens_travel[chunk] =
          start_exchange(comm_, *column_, sent.data(), out.parcels.counts(&Parcel::columns, chunk, scratch),
                         received.data(), in.counts(&Parcel::columns, chunk, scratch));
    };
    const auto run_experts = [&](int chunk) {
      in.for_each(&Parcel::slots, chunk, workers, [&](Parcel first, int i) {
        column_of[i] = first.columns + orders[i].column;
        tokens.col(i) = received.col(column_of[i]).template cast<Scalar>();
        answers.col(i).setZero();
      });
      const auto plan_here = plan_orders(in, orders, chunk, num_local(), scratch);
      if (local_) local_->apply(tokens, plan_here, answers, workers);
      if (!summed) return;
      in.for_each(&Parcel::columns, chunk, workers, [&](Parcel, int i) { sums.col(i).setZero(); });
      combine(answers, plan_sums(plan_here, orders, column_of, scratch), sums, workers, plan_here.token.data());
    };
    const auto send_answers = [&](int chunk) {
      convert(summed ? sums : answers, sent_back, in, back, chunk, workers);
      answers_travel[chunk] = start_exchange(comm_, *column_, sent_back.data(), in.counts(back, chunk, scratch),
                                             received_back.data(), out.parcels.counts(back, chunk, scratch));
    };

    SharedError error(comm_);
    send_tokens(0);
    for (int chunk = 0; chunk < options_.chunks; ++chunk) {
      if (chunk + 1 < options_.chunks) send_tokens(chunk + 1);  // to travel while the experts work
      comm_.wait(tokens_travel[chunk], "exchange tokens");
      stopwatch.in_experts([&] { error.run([&] { run_experts(chunk); }); });
      send_answers(chunk);
    }
    error.ask();
    for (int chunk = 0; chunk < options_.chunks; ++chunk) {
      comm_.wait(answers_travel[chunk], "exchange answers");
      convert(received_back, answers_to_own, out.parcels, back, chunk, workers);
    }
    error.rethrow();
    if (summed) {
      combine(answers_to_own, plan_columns(out), y, workers);
    } else {
      combine(answers_to_own, plan, y, workers, out.place);
    }
    if (options_.traffic) *options_.traffic += traffic(out.parcels, in, back, stopwatch);
  }

  Parcels exchange_parcels(const Parcels& out, Scratch& scratch) const {
    const Parcels in(comm_.size(), options_.chunks, scratch);
    const int numbers = 2 * options_.chunks;
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

  Traffic traffic(const Parcels& out, const Parcels& in, int Parcel::*back, const Stopwatch& stopwatch) const {
    Traffic sum{.calls = 1,
                .routes = in.total().slots,
                .seconds_in_experts = stopwatch.experts(),
                .seconds_in_exchange = stopwatch.exchange()};
    Index orders = 0;
    for (int rank = 0; rank < comm_.size(); ++rank) {
      for (int chunk = 0; rank != comm_.rank() && chunk < options_.chunks; ++chunk) {
        sum.columns += out(rank, chunk).columns;
        sum.answers += in(rank, chunk).*back;
        orders += out(rank, chunk).slots;
      }
    }
    sum.bytes = (sum.columns + sum.answers) * d_model_ * bytes_of_number() + orders * Index(sizeof(Order<Scalar>)) +
                Index(comm_.size() - 1) * options_.chunks * Index(sizeof(Parcel));
    return sum;
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
ExpertParallel(G, MPI_Comm, ExpertParallelOptions = {}) -> ExpertParallel<G>;
template <Experts G>
ExpertParallel(G, Placement, MPI_Comm, ExpertParallelOptions = {}) -> ExpertParallel<G>;

/// Collective. Of a group that every rank has at hand, such as one in a mapped file, each rank runs its own part alone
/// (and, of a file, reads no other): contiguous blocks, or as placed.
///   load_layer("model", "model.layers.3.mlp", [](auto experts) { return share_experts(experts, MPI_COMM_WORLD); })
/// @throws std::invalid_argument as ExpertParallel's constructor; and if the placement is of another number of experts.
template <Experts G>
ExpertParallel<ExpertSubset<G>> share_experts(G experts, Placement placement, MPI_Comm comm,
                                              const ExpertParallelOptions& options = {}) {
  const Communicator ranks(comm, options.patience);
  const Claim claims[] = {{"experts.num_experts()", experts.num_experts()},
                          {"placement.num_experts()", placement.num_experts()}};
  require_agreement(ranks, claims, "share_experts");
  require_equal(placement.num_experts(), experts.num_experts(), "share_experts: placement.num_experts()");
  ExpertSubset own(std::move(experts), placement.experts_of(ranks.rank()));
  return {std::move(own), std::move(placement), comm, options};
}
template <Experts G>
ExpertParallel<ExpertSubset<G>> share_experts(G experts, MPI_Comm comm, const ExpertParallelOptions& options = {}) {
  int size = 0;
  check(MPI_Comm_size(comm, &size), "MPI_Comm_size");
  const Index num_experts = experts.num_experts();
  return share_experts(std::move(experts), place_in_blocks(num_experts, size), comm, options);
}

}  // namespace moe::distributed
