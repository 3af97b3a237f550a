/// @file  Gradients of a group of experts that live on many ranks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>

#include <mpi.h>

#include "moe/core/check.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/distributed/exchange.hpp"
#include "moe/distributed/expert_parallel.hpp"
#include "moe/distributed/parcels.hpp"
#include "moe/distributed/round_trip.hpp"
#include "moe/distributed/shared_error.hpp"
#include "moe/distributed/traffic.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/no_gradient.hpp"

namespace moe::inline MOE_TARGET::distributed {

/// What a forward pass keeps on this rank for its backward pass: who asked whom for what, the columns that arrived at
/// this rank's experts, and their tape. (None of the groups' tapes depends on the weights of answers, which are known
/// to the experts only on the way back.)
template <class Scalar, class LocalTape>
struct ExpertParallelTape {
  /// Which copies of an expert learn from its tokens. With Copies::first a gradient has the bits of one process; with
  /// Copies::all each copy has a part of it. Either way GradientReducer::sum() gives the whole to all.
  Copies copies = Copies::first;

  std::unique_ptr<Scratch> memory =
      std::make_unique<Scratch>();  // of what follows; reused, so a warm step allocates nothing
  std::optional<Itinerary<Scalar>> itinerary;
  void* arrived = nullptr;  // columns of tokens as they travelled

  LocalTape local;
};

template <class G>
auto tape_of(const ExpertParallel<G>&) {
  using LocalTape = decltype(tape_of(std::declval<const G&>()));
  return ExpertParallelTape<typename G::Scalar, LocalTape>{};
}

/// Collective. As group.apply(), and keeps in `tape` what backward() needs. Tokens travel in one piece, whatever
/// options.chunks says, so that an expert has the tokens of all ranks in one batch: rank by rank, in the order that
/// they have in one process with the tokens of all ranks side by side.
template <class G, class LocalTape, class Scalar = typename G::Scalar>
void apply(const ExpertParallel<G>& group, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
           MatrixRef<Scalar> y, ExpertParallelTape<Scalar, LocalTape>& tape, Workers& workers) {
  const Stopwatch stopwatch;
  tape.memory->reset();
  tape.itinerary = group.tell_ranks(plan, x.cols(), 1, tape.copies, *tape.memory);
  group.with_wire([&]<class T>(T) {
    auto trip = group.template round_trip<T>(*tape.itinerary, workers.shared(), *tape.memory);
    tape.arrived = trip.arrived();
    group.apply(trip, x, plan, y, stopwatch, workers, [&](const auto& plan_here) {
      apply(*group.local(), trip.tokens(), plan_here, trip.answers(), tape.local, workers);
    });
  });
}

namespace detail {

template <class G>
G& local_gradient(ExpertParallel<G>& gradient) {
  return *gradient.local();
}
template <class Scalar>
NoGradient<Scalar>& local_gradient(NoGradient<Scalar>& none) {
  return none;
}

}  // namespace detail

/// Collective. As backward() of a bank: experts/ffn_bank.hpp. Columns of ∂L/∂y travel to the experts, once a
/// token and rank, as the tokens did; ∂L/∂x and ∂L/∂weight travel home, and are added there in the order of the plan.
/// Each rank has the gradients of its own experts from the tokens of all ranks, which so need no sum.
///
/// Where `batch_invariant` is set, d_x, d_weight and the gradients have the bits of one process that has the tokens of
/// all ranks side by side. With Wire::bfloat16 gradients are rounded on their way as answers are (but for d_weight),
/// and are those at the rounded tokens; with Answers::summed a rank sums ∂L/∂x over its own experts.
/// @param gradient  a group of the same shape and placement, such as zeros_like() makes; or NoGradient
/// @throws as group.apply()
template <class G, class LocalTape, class Gradient, class Scalar = typename G::Scalar>
void backward(const ExpertParallel<G>& group, const ConstMatrixRef<Scalar>&, const DispatchPlan<Scalar>& plan,
              const ConstMatrixRef<Scalar>& d_y, const ExpertParallelTape<Scalar, LocalTape>& tape,
              std::span<std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_x, Gradient& gradient,
              Workers& workers) {
  Stopwatch stopwatch;
  Scratch& scratch = workers.shared();
  const Communicator& comm = group.communicator();
  require(tape.itinerary.has_value(), "backward: there was no forward() on this tape");
  const Outgoing<Scalar>& out = tape.itinerary->out;
  const Parcels& in = tape.itinerary->in;
  const Index asked = in.total().slots;
  auto* const d_weight_here = scratch.array<Scalar>(asked);
  auto* const d_weight_at_home = scratch.array<Scalar>(plan.num_slots());
  std::fill_n(d_weight_here, asked, Scalar(0));

  group.with_wire([&]<class T>(T) {
    auto trip = group.template round_trip<T>(*tape.itinerary, scratch, scratch);  // of gradients
    auto* const arrived = static_cast<T*>(tape.arrived);
    auto tokens = trip.room_for_tokens(arrived);
    SharedError error(comm);
    trip.send(0, d_y, workers);
    trip.unpack(0, arrived, tokens, workers);
    trip.receive(0);
    stopwatch.in_experts([&] {
      error.run([&] {
        trip.unpack(0, workers);
        if (!group.local()) return;
        backward(*group.local(), tokens, trip.plan(0, group.local()->num_experts()), trip.tokens(), tape.local,
                 std::span<Scalar>(d_weight_here, std::size_t(asked)), trip.answers(), detail::local_gradient(gradient),
                 workers);
      });
    });
    trip.send_back(0, workers);
    auto weights_travel = start_exchange(comm, number_type<Scalar>(), d_weight_here, in.all_slots(scratch),
                                         d_weight_at_home, out.parcels.all_slots(scratch));
    error.ask();
    trip.receive_back(0, workers);
    comm.wait(weights_travel, "exchange gradients of weights");
    error.rethrow();

    DispatchPlan<Scalar> weighted = plan;  // by the experts
    weighted.weight_on = WeightOn::input;
    trip.combine_at_home(weighted, d_x, workers);
  });
  for (std::size_t s = 0; s < plan.token.size(); ++s) {
    d_weight[std::size_t(plan.route[s])] += d_weight_at_home[out.place[s]];
  }
  group.count_traffic(*tape.itinerary, in.total_without(comm.rank()).slots * Index(sizeof(Scalar)), stopwatch);
}

}  // namespace moe::inline MOE_TARGET::distributed
