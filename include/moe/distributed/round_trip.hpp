/// @file  Columns of tokens on their way to experts, and of answers on their way back.
#pragma once

#include <type_traits>

#include <mpi.h>

#include "moe/core/dispatch.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/distributed/communicator.hpp"
#include "moe/distributed/exchange.hpp"
#include "moe/distributed/parcels.hpp"
#include "moe/experts/combine.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET::distributed {

/// Who asks whom for what, as one rank sees it: a view of memory in a scratch.
template <class Scalar>
struct Itinerary {
  Outgoing<Scalar> out;         // from this rank's tokens to all ranks
  Parcels in;                   // from all ranks to this rank's experts
  const Order<Scalar>* orders;  // that came in
  Answers answers;

  bool is_summed() const { return answers == Answers::summed; }  ///< Do the answers to a token come back as one sum?

  /// What an answer is for.
  int Parcel::* back() const { return is_summed() ? &Parcel::columns : &Parcel::slots; }
};

/// The way to the experts and back, once, chunk by chunk, where T travels. Its memory is in a scratch.
template <class Scalar, class T>
class RoundTrip {
 public:
  template <class S>
  using Columns = Eigen::Map<Matrix<S>, Eigen::Aligned64>;  ///< What travels, a token a column.

  /// @param column     of d_model T
  /// @param itinerary  may be that of an earlier trip
  /// @param kept       where columns arrive at the experts, if they are to last longer than the rest
  RoundTrip(const Communicator& comm, MPI_Datatype column, Index d_model, const Itinerary<Scalar>& itinerary,
            Scratch& scratch, Scratch& kept)
      : comm_(comm),
        column_(column),
        itinerary_(itinerary),
        scratch_(scratch),
        sent_(scratch.matrix<T>(d_model, itinerary.out.parcels.total().columns)),
        arrived_(kept.matrix<T>(d_model, itinerary.in.total().columns)),
        tokens_(room_for_tokens(arrived_.data())),
        answers_(scratch.matrix<Scalar>(d_model, itinerary.in.total().*back())),
        sent_back_(room_for<T>(answers_)),
        arrived_back_(scratch.matrix<T>(d_model, itinerary.out.parcels.total().*back())),
        answers_at_home_(room_for<Scalar>(arrived_back_)),
        there_(scratch.array<MPI_Request>(itinerary.in.num_chunks())),
        home_(scratch.array<MPI_Request>(itinerary.in.num_chunks())) {}

  const Itinerary<Scalar>& itinerary() const { return itinerary_; }

  /// Collective: the columns that a chunk of this rank's tokens goes by set out.
  void send(int chunk, const ConstMatrixRef<Scalar>& x, Workers& workers) {
    const Parcels& out = itinerary_.out.parcels;
    out.for_each(&Parcel::columns, chunk, workers,
                 [&](Parcel, int i) { sent_.col(i) = x.col(itinerary_.out.token[i]).template cast<T>(); });
    there_[chunk] = start_exchange(comm_, column_, sent_.data(), out.counts(&Parcel::columns, chunk, scratch_),
                                   arrived_.data(), itinerary_.in.counts(&Parcel::columns, chunk, scratch_));
  }

  /// Until those of all ranks are here.
  void receive(int chunk) { comm_.wait(there_[chunk], "exchange tokens"); }

  /// Those of all ranks, and of all chunks.
  T* arrived() { return arrived_.data(); }

  /// What the local experts read: a column for each order; or, where they sum, for each that arrived.
  Columns<Scalar>& tokens() { return tokens_; }
  /// What they are to add their answers to, a column for each of tokens().
  Columns<Scalar>& answers() { return answers_; }
  /// What they are asked.
  DispatchPlan<Scalar> plan(int chunk, Index num_experts) const {
    return plan_orders(itinerary_.in, itinerary_.orders, chunk, num_experts, itinerary_.answers, scratch_);
  }

  /// Fills tokens() with what has arrived, and answers() with 0.
  void unpack(int chunk, Workers& workers) {
    unpack(chunk, arrived_.data(), tokens_, workers);
    itinerary_.in.for_each(back(), chunk, workers, [&](Parcel, int i) { answers_.col(i).setZero(); });
  }

  /// The same of what arrived on an earlier trip.
  /// @param tokens  of room_for_tokens(arrived)
  void unpack(int chunk, const T* arrived, Columns<Scalar>& tokens, Workers& workers) const {
    const Eigen::Map<const Matrix<T>> columns(arrived, arrived_.rows(), arrived_.cols());
    if (static_cast<const void*>(tokens.data()) == arrived) return;
    itinerary_.in.for_each(back(), chunk, workers, [&](Parcel first, int i) {
      const Index column = itinerary_.is_summed() ? i : first.columns + itinerary_.orders[i].column;
      tokens.col(i) = columns.col(column).template cast<Scalar>();
    });
  }

  /// Memory for as much as tokens(): that of the columns themselves where they need no other.
  Columns<Scalar> room_for_tokens(T* arrived) const {
    if constexpr (std::is_same_v<T, Scalar>) {
      if (itinerary_.is_summed()) return {arrived, arrived_.rows(), arrived_.cols()};
    }
    return scratch_.matrix<Scalar>(arrived_.rows(), itinerary_.in.total().*back());
  }

  /// Collective: answers() set out.
  void send_back(int chunk, Workers& workers) {
    convert(answers_, sent_back_, itinerary_.in, chunk, workers);
    home_[chunk] = start_exchange(comm_, column_, sent_back_.data(), itinerary_.in.counts(back(), chunk, scratch_),
                                  arrived_back_.data(), itinerary_.out.parcels.counts(back(), chunk, scratch_));
  }

  /// Until those to this rank's tokens are here.
  void receive_back(int chunk, Workers& workers) {
    comm_.wait(home_[chunk], "exchange answers");
    convert(arrived_back_, answers_at_home_, itinerary_.out.parcels, chunk, workers);
  }

  /// y.col(token) += weight · answer for all of them, in the order of the plan; sums as they are, rank by rank.
  void combine_at_home(const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y, Workers& workers) const {
    if (itinerary_.is_summed()) {
      combine(answers_at_home_, plan_columns(itinerary_.out), y, workers);
    } else {
      combine(answers_at_home_, plan, y, workers, itinerary_.out.place);
    }
  }

 private:
  int Parcel::* back() const { return itinerary_.back(); }

  /// Memory for what `columns` hold as To: their own, if they do already.
  template <class To, class From>
  Columns<To> room_for(Columns<From>& columns) const {
    if constexpr (std::is_same_v<From, To>) {
      return Columns<To>(columns);
    } else {
      return scratch_.matrix<To>(columns.rows(), columns.cols());
    }
  }

  /// Fills that memory with what travels back in a chunk.
  template <class From, class To>
  void convert(const Columns<From>& from, Columns<To>& to, const Parcels& parcels, int chunk, Workers& workers) const {
    if constexpr (!std::is_same_v<From, To>) {
      parcels.for_each(back(), chunk, workers, [&](Parcel, int i) { to.col(i) = from.col(i).template cast<To>(); });
    }
  }

  const Communicator& comm_;
  MPI_Datatype column_;
  Itinerary<Scalar> itinerary_;
  Scratch& scratch_;
  Columns<T> sent_, arrived_;
  Columns<Scalar> tokens_, answers_;
  Columns<T> sent_back_, arrived_back_;
  Columns<Scalar> answers_at_home_;
  MPI_Request *there_, *home_;
};

}  // namespace moe::inline MOE_TARGET::distributed
