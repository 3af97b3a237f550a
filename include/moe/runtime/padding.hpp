/// @file  A padded batch without its padding.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/sequences.hpp"
#include "moe/core/token_mask.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"

namespace moe::inline MOE_TARGET {

/// The real tokens of a batch, side by side, for one call of a layer: until it ends, ws.side tells of them alone, and
/// has no mask. Its memory is the workspace's, so that a warm call allocates nothing.
template <class Scalar>
class RealTokens {
 public:
  using Columns = Eigen::Map<Matrix<Scalar>>;  ///< Something of each real token.

  /// @param who  what errors begin with
  /// @throws std::invalid_argument unless all side inputs are of so many tokens; std::logic_error if another call holds
  /// the workspace.
  RealTokens(Workspace<Scalar>& ws, Index num_tokens, std::string_view who)
      : hold_(ws.unpadded), ws_(ws), given_(ws.side), who_(who), num_tokens_(num_tokens) {
    require_mask(given_.mask, num_tokens, who);
    hold_.each().resize(1);
    scratch().reset();
    real_ = scratch().template array<Index>(num_tokens);
    place_ = scratch().template array<Index>(num_tokens + 1);
    place_[0] = 0;
    for (Index t = 0; t < num_tokens; ++t) {
      real_[place_[t]] = t;
      place_[t + 1] = place_[t] + !is_masked(given_.mask, t);
    }
    ws_.side = tell();
  }
  RealTokens(const RealTokens&) = delete;
  RealTokens& operator=(const RealTokens&) = delete;
  ~RealTokens() {
    const auto d = ws_.side.state_gradient;
    for (std::size_t i = 0; i < d.size(); ++i) {
      const Index rows = std::ssize(d) / count();
      given_.state_gradient[std::size_t(real_[Index(i) / rows] * rows + Index(i) % rows)] = d[i];
    }
    ws_.side = given_;
  }

  Index count() const { return place_[num_tokens_]; }  ///< Tokens that are no padding.

  /// Room for a column of each.
  Columns columns(Index rows) { return {scratch().template array<Scalar>(rows * count()), rows, count()}; }

  /// Their columns of those of the batch.
  Columns of(const ConstMatrixRef<Scalar>& batch) {
    auto its = columns(batch.rows());
    gather(batch.data(), batch.outerStride(), batch.rows(), its.data());
    return its;
  }

  /// Writes their columns, and leaves those of padding as they are.
  void write(const Columns& its, MatrixRef<Scalar> batch) const {
    for (Index i = 0; i < count(); ++i) {
      std::copy_n(its.data() + i * its.rows(), its.rows(), batch.data() + real_[i] * batch.outerStride());
    }
  }

  /// From what lies in columns of all tokens to theirs alone, in place …
  void take(std::vector<Scalar>& columns) const { take(columns, columns); }

  /// … and back. Padding gets 0.
  /// @param rows_of_none  the height of a column, where no token is real
  void give_back(std::vector<Scalar>& columns, Index rows_of_none = 0) const {
    const Index rows = count() == 0 ? rows_of_none : std::ssize(columns) / count();
    columns.resize(std::size_t(rows * num_tokens_));
    for (Index t = num_tokens_ - 1; t >= 0 && place_[t + 1] <= t; --t) {  // those before are where they were
      Scalar* const column = columns.data() + t * rows;
      if (place_[t + 1] > place_[t]) {
        std::copy_n(columns.data() + place_[t] * rows, rows, column);
      } else {
        std::fill_n(column, rows, Scalar(0));
      }
    }
  }

  /// The same of routes, logits and state. Routes of padding are left out.
  void take(Routing<Scalar>& routing) const { take(routing, routing); }
  /// Routes name tokens of the batch again; logits and state of padding are 0.
  /// @param logits_of_none  as many a token, where no token was real
  void give_back(Routing<Scalar>& routing, Index logits_of_none = 0) const {
    for (Index& t : routing.token) t = real_[t];
    give_back(routing.logits, logits_of_none);
    give_back(routing.state);
  }

 private:
  Scratch& scratch() { return hold_.each().front(); }

  /// Their columns of a batch's, so many numbers apart, side by side; in place as well, for none lies before its place.
  template <class T>
  void gather(const T* batch, Index stride, Index rows, T* its) const {
    const std::size_t bytes = sizeof(T) * std::size_t(rows);
    for (Index i = 0; bytes > 0 && i < count(); ++i) std::memmove(its + i * rows, batch + real_[i] * stride, bytes);
  }

  // Of a batch, which may be what is written to.
  void take(const std::vector<Scalar>& batch, std::vector<Scalar>& its) const {
    const Index rows = num_tokens_ == 0 ? 0 : std::ssize(batch) / num_tokens_, size = rows * count();
    if (&its != &batch) its.resize(std::size_t(size));
    gather(batch.data(), rows, rows, its.data());
    its.resize(std::size_t(size));
  }
  void take(const Routing<Scalar>& batch, Routing<Scalar>& its) const {
    const Index all = batch.size();
    if (&its != &batch) {
      its.resize(all);
      its.dropped.resize(batch.dropped.size());
      its.weight_on = batch.weight_on;
    }
    Index kept = 0;
    for (std::size_t from = 0; from < std::size_t(all); ++from) {
      const Index t = batch.token[from];
      if (is_masked(given_.mask, t)) continue;
      const auto to = std::size_t(kept++);
      its.token[to] = place_[t];
      its.expert[to] = batch.expert[from];
      its.weight[to] = batch.weight[from];
      if (!its.dropped.empty()) its.dropped[to] = batch.dropped[from];
    }
    its.resize(kept);
    if (!its.dropped.empty()) its.dropped.resize(std::size_t(kept));
    take(batch.logits, its.logits);
    take(batch.state, its.state);
  }

  SideInputs<Scalar> tell() {
    SideInputs<Scalar> told = given_;
    told.mask = {};
    told.token_ids = of(given_.token_ids, "token_ids");
    told.modality = of(given_.modality, "modality");
    told.router_input = of(given_.router_input, "router_input");
    told.noise = of(given_.noise, "noise");
    told.previous_logits = of(given_.previous_logits, "previous_logits");
    told.previous_state = of(given_.previous_state, "previous_state");
    const auto d_state = of(std::span<const Scalar>(given_.state_gradient), "state_gradient");
    told.state_gradient = {const_cast<Scalar*>(d_state.data()), d_state.size()};
    if (given_.sequence_length != 0 || !given_.sequence_starts.empty()) {
      const Sequences all(num_tokens_, given_.sequence_length, given_.sequence_starts, who_);
      auto* const starts = scratch().template array<Index>(all.count() + 1);
      for (Index s = 0; s <= all.count(); ++s) starts[s] = place_[all.first(s)];
      told.sequence_length = 0;
      told.sequence_starts = {starts, std::size_t(all.count()) + 1};
    }
    if (given_.recorded) {
      if (given_.recorded_tokens > 0) {
        require_equal(given_.recorded_tokens, num_tokens_, "side.recorded_tokens beside a mask");
        told.recorded_tokens = count();
      }
      require_routes(*given_.recorded, num_tokens_, std::numeric_limits<Index>::max());
      take(*given_.recorded, ws_.unpadded_record);
      told.recorded = &ws_.unpadded_record;
    }
    return told;
  }

  Index rows_of(Index size, const char* what) const {
    const Index rows = size / num_tokens_;
    if (rows * num_tokens_ != size) {
      require(false, std::string(who_) + ": side." + what + ".size() is " + std::to_string(size) +
                         ", expected as much for each of " + std::to_string(num_tokens_) + " tokens");
    }
    return rows;
  }

  template <class T>
  std::span<const T> of(std::span<const T> batch, const char* what) {
    if (batch.empty() || num_tokens_ == 0) return batch;
    const Index rows = rows_of(std::ssize(batch), what);
    auto* const its = scratch().template array<T>(rows * count());
    gather(batch.data(), rows, rows, its);
    return {its, std::size_t(rows * count())};
  }

  CallScratch::Hold hold_;
  Workspace<Scalar>& ws_;
  const SideInputs<Scalar> given_;
  std::string_view who_;
  Index num_tokens_;
  Index* real_;   // (count()) where each is in the batch
  Index* place_;  // (num_tokens + 1) how many are before each
};

/// Whether padding is to be left out.
template <class Scalar>
bool is_padded(const Workspace<Scalar>& ws) {
  return !ws.side.mask.empty();
}

/// layer.forward() of the real tokens; y of padding is 0.
template <class Layer, class Scalar = typename Layer::Scalar>
void forward_real_tokens(const Layer& layer, const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y,
                         Workspace<Scalar>& ws, ExecutorRef executor) {
  require_columns(x, y, layer.d_model(), "forward");
  RealTokens<Scalar> real(ws, x.cols(), "forward");
  auto its_y = real.columns(y.rows());
  layer.forward(real.of(x), its_y, ws, executor);
  y.setZero();
  real.write(its_y, y);
  real.give_back(ws.routing);
}

}  // namespace moe::inline MOE_TARGET
