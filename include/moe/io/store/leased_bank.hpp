/// @file  A bank of FFN experts whose weights are here while a call uses them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/dispatch.hpp"
#include "moe/core/quantized.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/experts/combine.hpp"
#include "moe/experts/ffn_bank.hpp"
#include "moe/experts/projection.hpp"
#include "moe/io/coded_tensor.hpp"
#include "moe/io/error.hpp"
#include "moe/io/store/lender.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

/// How a group computes, whose experts are all here that have tokens.
template <class Scalar>
class ApplyHere {
 public:
  /// @param first  of its experts, as the lender numbers them
  /// @param apply  apply(x, plan, y, workers); it outlives this
  template <class Apply>
  ApplyHere(Index first_expert, const Apply& apply)
      : first(first_expert),
        apply_(&apply),
        call_([](const void* its, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
                 MatrixRef<Scalar> y, Workers& workers) { (*static_cast<const Apply*>(its))(x, plan, y, workers); }) {}

  void operator()(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
                  Workers& workers) const {
    call_(apply_, x, plan, y, workers);
  }

  const Index first;

 private:
  const void* apply_;
  void (*call_)(const void* apply, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
                MatrixRef<Scalar> y, Workers& workers);
};

/// The experts of a call: leased from the first on, used from the first on, given back however the call ends.
class Leases {
 public:
  Leases(ExpertLender& lender, std::span<Index> experts, const ExpertLender::Order& order)
      : lender_(lender), experts_(experts), order_(order), missing_(lender.begin(experts, order)) {}
  Leases(const Leases&) = delete;
  Leases& operator=(const Leases&) = delete;
  ~Leases() { lender_.release(experts_.subspan(std::size_t(used_), std::size_t(leased_ - used_))); }

  Index num_missing() const { return missing_; }  // when the call began
  bool are_all_used() const { return used_ == std::ssize(experts_); }
  void lease_more() {
    if (leased_ < std::ssize(experts_)) {
      leased_ += lender_.lease(experts_.subspan(std::size_t(leased_)), leased_ - used_, order_);
    }
  }
  /// Those that are here, at least one.
  std::span<Index> next() {
    const auto leased = experts_.subspan(std::size_t(used_), std::size_t(leased_ - used_));
    return leased.first(std::size_t(lender_.arrived(leased, order_)));
  }
  void give_back(std::span<const Index> used) {
    used_ += std::ssize(used);
    lender_.release(used);
  }

 private:
  ExpertLender& lender_;
  std::span<Index> experts_;
  ExpertLender::Order order_;
  Index leased_ = 0, used_ = 0, missing_;
};

/// What a call of few tokens computes of some experts while others are on their way: the answer of each slot by itself,
/// added to no other, so that combine() adds them in the order of the plan.
template <class Scalar>
class SlotAnswers {
 public:
  SlotAnswers(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, Scratch& scratch)
      : x_(x),
        plan_(plan),
        read_(scratch.matrix<Scalar>(x.rows(), plan.num_slots())),
        answers_(scratch.matrix<Scalar>(x.rows(), plan.num_slots())),
        offset_(scratch.array<Index>(plan.num_experts() + 1)),
        slot_(scratch.array<Index>(plan.num_slots())),
        route_(scratch.array<Index>(plan.num_slots())),
        weight_(scratch.array<Scalar>(plan.num_slots())) {
    answers_.setConstant(
        Scalar(-0.));  // the one number to which every answer is added as it is, a zero's sign included
  }

  /// @param experts  of the group, in ascending order
  template <class IsOne>
  void compute(const ApplyHere<Scalar>& group, const IsOne& is_one, Workers& workers) {
    Index slots = 0;
    for (Index e = 0; e < plan_.num_experts(); ++e) {
      offset_[e] = slots;
      if (!is_one(e)) continue;
      for (Index s = plan_.first(e); s < plan_.first(e) + plan_.count(e); ++s, ++slots) {
        read_.col(s) = x_.col(plan_.token[std::size_t(s)]);
        slot_[slots] = s;
        route_[slots] = plan_.route[std::size_t(s)];
        weight_[slots] = plan_.input_weight(s);
      }
    }
    offset_[plan_.num_experts()] = slots;
    const auto list = [&](const auto* first) { return std::span(first, std::size_t(slots)); };
    const DispatchPlan<Scalar> some{{offset_, std::size_t(plan_.num_experts()) + 1},
                                    list(static_cast<const Index*>(slot_)),
                                    list(static_cast<const Scalar*>(weight_)),
                                    list(static_cast<const Index*>(route_)),
                                    plan_.weight_on};
    group(read_, some, answers_, workers);
  }

  void combine_into(MatrixRef<Scalar> y, Workers& workers) const { combine(answers_, plan_, y, workers); }

 private:
  const ConstMatrixRef<Scalar>& x_;
  const DispatchPlan<Scalar>& plan_;
  Eigen::Map<Matrix<Scalar>, Eigen::Aligned64> read_, answers_;  // of each slot
  Index *offset_, *slot_, *route_;
  Scalar* weight_;
};

/// The plan of some neighbours among the experts alone; the others have no slots.
template <class Scalar>
DispatchPlan<Scalar> plan_of(Index first, Index last, const DispatchPlan<Scalar>& plan, Index* offset) {
  const Index begin = plan.first(first), end = plan.first(last) + plan.count(last);
  for (Index e = 0; e <= plan.num_experts(); ++e) {
    offset[e] = std::clamp(plan.offset[std::size_t(e)], begin, end) - begin;
  }
  const auto slots = [&](auto all) { return all.subspan(std::size_t(begin), std::size_t(end - begin)); };
  return {{offset, std::size_t(plan.num_experts()) + 1},
          slots(plan.token),
          slots(plan.weight),
          slots(plan.route),
          plan.weight_on};
}

/// Slots' inputs and answers may take so many bytes beside the experts; a call of more goes through them by number.
inline constexpr Index max_answer_bytes = Index(4) << 20;

/// A batch that uses more than half of a group, in calls of so many tokens, says nothing of the next one.
inline constexpr Index tokens_of_batch = 16;

/// The experts of a group that have tokens, as the lender numbers them.
template <class Scalar>
std::span<Index> experts_used(const DispatchPlan<Scalar>& plan, Index first, Scratch& scratch) {
  auto* const list = scratch.array<Index>(std::min(plan.num_experts(), plan.num_slots()));
  std::size_t num_used = 0;
  for (Index e = 0; e < plan.num_experts(); ++e) {
    if (plan.count(e) > 0) list[num_used++] = first + e;
  }
  return {list, num_used};
}

/// use(some of the experts that are used, which are here meanwhile), until all were.
template <class Use>
void use_leased(ExpertLender& lender, std::span<Index> used, const ExpertLender::Order& order, Workers& workers,
                const Use& use) {
  Leases leases(lender, used, order);
  leases.lease_more();
  if (leases.num_missing() > 0) workers.work_meanwhile();
  while (true) {
    const auto here = leases.next();
    use(here);
    leases.give_back(here);
    if (leases.are_all_used()) return;
    leases.lease_more();
  }
}

/// A batch of so many tokens, that uses so many of a group.
template <class Scalar>
bool is_stream(Index num_tokens, std::size_t num_used, const DispatchPlan<Scalar>& plan) {
  return num_tokens >= tokens_of_batch && 2 * Index(num_used) > plan.num_experts();
}

/// use(plan, slot) for the plan of some experts, neighbours by their numbers, that are here meanwhile; `slot` is their
/// first in the whole plan. In the order of the plan.
/// @param first  of the group's experts, as the lender numbers them
template <class Scalar, class Use>
void use_in_turn(ExpertLender& lender, Index first, Index num_tokens, const DispatchPlan<Scalar>& plan,
                 Workers& workers, const Use& use) {
  Scratch& scratch = workers.shared();
  const auto used = experts_used(plan, first, scratch);
  if (used.empty()) return;
  auto* const offset = scratch.array<Index>(plan.num_experts() + 1);
  const Scratch::Mark mark = scratch.mark();
  const bool streams = is_stream(num_tokens, used.size(), plan);
  use_leased(lender, used, {.by_number = true, .streams = streams}, workers, [&](std::span<Index> here) {
    const Index from = here.front() - first;
    use(plan_of(from, here.back() - first, plan, offset), plan.first(from));
    scratch.rewind(mark);
  });
}

/// y += what a group answers whose experts are here while they are leased: the bits of a group that is here whole.
template <class Scalar>
void apply_leased(ExpertLender& lender, const ApplyHere<Scalar>& group, const ConstMatrixRef<Scalar>& x,
                  const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y, Workers& workers) {
  Scratch& scratch = workers.shared();
  const auto used = experts_used(plan, group.first, scratch);
  if (used.empty()) return;
  if (is_stream(x.cols(), used.size(), plan) ||
      2 * plan.num_slots() * x.rows() * Index(sizeof(Scalar)) > max_answer_bytes) {
    return use_in_turn(lender, group.first, x.cols(), plan, workers,
                       [&](const DispatchPlan<Scalar>& some, Index) { group(x, some, y, workers); });
  }
  std::optional<SlotAnswers<Scalar>> answers;
  use_leased(lender, used, {}, workers, [&](std::span<Index> here) {
    if (here.size() == used.size()) return group(x, plan, y, workers);
    if (!answers) answers.emplace(x, plan, scratch);
    const Scratch::Mark mark = scratch.mark();
    std::ranges::sort(here);
    answers->compute(group, [&](Index e) { return std::ranges::binary_search(here, group.first + e); }, workers);
    scratch.rewind(mark);
  });
  if (answers) answers->combine_into(y, workers);
}

// ---- where the weights of a bank lie

/// Smaller ones stay: to read them with their expert would take a request of its own.
inline constexpr std::size_t max_kept_bytes = 4096;

/// Rows of a plane that a matrix reads, or what was promised of it; null of what is in no file.
inline Bytes bytes_of(const BytePlane& plane, const QuantizedMatrix& matrix, const ExpertLender& lender) {
  if (plane.data == nullptr) return {};
  if (const std::size_t promised = lender.promised_at(plane.data); promised > 0) return {plane.data, promised};
  const Tensor* const tensor = lender.tensor_at(plane.data);
  if (tensor == nullptr || matrix.rows() == 0) return {};
  const auto left = std::size_t(tensor->bytes.data() + tensor->bytes.size() - plane.data);
  if (plane.row_bytes == 0) return {plane.data, left};
  const std::byte* const first = plane.row(matrix.stored_row(0));
  const std::byte* const last = plane.row(matrix.stored_row(matrix.rows() - 1));
  const auto end = std::min(left, std::size_t(last - plane.data + plane.row_bytes));
  return {first, end - std::size_t(first - plane.data)};
}

template <class W>
const W* borrowed(const W* place, Index rows, Index cols, Index stride, ExpertLender&, std::vector<Bytes>& weights) {
  if (rows > 0 && cols > 0) weights.push_back(std::as_bytes(std::span(place, std::size_t((rows - 1) * stride + cols))));
  return place;
}

/// The matrix with what stays of it where it stays.
inline QuantizedMatrix borrowed(QuantizedMatrix matrix, Index, Index, Index, ExpertLender& lender,
                                std::vector<Bytes>& weights) {
  if (matrix.rows() > 0 && bytes_of(matrix.codes, matrix, lender).empty()) {
    fail("a store cannot hold weights in ", matrix.format().name, " that lie in no file");
  }
  for (BytePlane* const plane : {&matrix.codes, &matrix.scales, &matrix.zeros}) {
    const Bytes bytes = bytes_of(*plane, matrix, lender);
    if (bytes.empty()) continue;
    if (plane != &matrix.codes && bytes.size() <= max_kept_bytes) {
      plane->data = lender.keep(bytes) - (bytes.data() - plane->data);
    } else {
      weights.push_back(bytes);
    }
  }
  if (const auto* const index = reinterpret_cast<const std::byte*>(matrix.group_of);
      lender.tensor_at(index) != nullptr) {
    const Bytes bytes{index, std::size_t(matrix.stored_cols()) * sizeof(*matrix.group_of)};
    if (bytes.size() <= max_kept_bytes) {
      matrix.group_of = reinterpret_cast<const std::int32_t*>(lender.keep(bytes));
    } else {
      weights.push_back(bytes);
    }
  }
  return matrix;
}

template <class W>
const W* moved(const W* place, const Moved& moved) {
  return moved(place);
}
inline QuantizedMatrix moved(QuantizedMatrix matrix, const Moved& moved) {
  for (BytePlane* const plane : {&matrix.codes, &matrix.scales, &matrix.zeros}) {
    if (plane->data == nullptr) continue;
    const std::byte* const first = plane->row(matrix.stored_row(0));  // what lies before it may not be there
    plane->data = moved(first) - (first - plane->data);
  }
  matrix.group_of = moved(matrix.group_of);
  return matrix;
}

/// Where a matrix lies from now on, which stays.
template <class W>
typename WeightStack<W>::Place kept_place(const WeightStack<W>& stack, Index expert, ExpertLender& lender) {
  std::vector<Bytes> weights;
  const auto place = borrowed(stack.place(expert), stack.rows(), stack.cols(), stack.row_stride(), lender, weights);
  std::vector<Moved::Part> parts;
  for (const Bytes bytes : weights) {
    if (lender.tensor_at(bytes.data()) != nullptr || lender.promised_at(bytes.data()) > 0) {
      parts.push_back({bytes, lender.keep(bytes)});
    }
  }
  return moved(place, Moved(parts));
}

/// The same bank, with weights that stay.
template <class W, class Act>
FfnBank<W, Act> kept(FfnBank<W, Act> bank, ExpertLender& lender) {
  if (bank.w_up().is_owned() || bank.w_down().is_owned()) return bank;
  for (Index e = 0; e < bank.num_experts(); ++e) {
    const auto up = kept_place(bank.w_up(), e, lender), down = kept_place(bank.w_down(), e, lender);
    bank.move(e, FfnBank<W, Act>::is_gated ? kept_place(bank.w_gate(), e, lender) : up, up, down);
  }
  return bank;
}

/// The same projection, with a weight that stays.
template <class W>
Projection<W> kept(const Projection<W>& projection, ExpertLender& lender) {
  WeightStack<W> weight = projection.stack();
  if (!weight.is_owned()) weight.move(0, kept_place(weight, 0, lender));
  return Projection<W>(std::move(weight), projection.bias());
}

}  // namespace detail

/// The experts of a bank, of which those are here that a call uses, for as long as it lasts. The answers are those of
/// the bank, to the last bit, however few there is room for. Copies share the experts.
template <class W, class Act>
class LeasedBank {
 public:
  using Scalar = ActivationScalar<W>;

  static constexpr bool is_gated = FfnBank<W, Act>::is_gated;

  /// @param bank     its weights lie in mapped files, where nobody reads them; its biases stay
  /// @param numbers  of its experts, in their block
  /// @throws Error if weights lie elsewhere.
  LeasedBank(FfnBank<W, Act> bank, std::shared_ptr<ExpertLender> lender, const std::string& block,
             const std::vector<Index>& numbers)
      : held_(std::make_shared<Held>(std::move(bank), std::move(lender))) {
    std::vector<BorrowedExpert> experts;
    for (Index e = 0; e < num_experts(); ++e) experts.push_back(borrow(e, numbers[std::size_t(e)]));
    held_->first = held_->lender->add(block, std::move(experts));
  }

  Index d_model() const { return held_->bank.d_model(); }
  Index d_ff() const { return held_->bank.d_ff(); }
  Index num_experts() const { return held_->bank.num_experts(); }

  /// @throws Error naming file, tensor and offset, if an expert cannot be read; y is then not to be used. The next call
  ///         tries again.
  void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
             Workers& workers) const {
    const auto run = [&](auto&&... call) { held_->bank.apply(call...); };
    apply_by(run, x, plan, y, workers);
  }

  /// The same by apply(x, plan, y, workers), called for experts that are here meanwhile, as bank() has them. What it
  /// adds for a slot depends on no other.
  template <class Apply>
  void apply_by(const Apply& apply, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
                MatrixRef<Scalar> y, Workers& workers) const {
    detail::apply_leased(*held_->lender, detail::ApplyHere<Scalar>(held_->first, apply), x, plan, y, workers);
  }

  /// use(plan, slot) for the plan of some experts that are here meanwhile, as bank() has them, in the order of the
  /// whole plan, in which `slot` is their first.
  template <class Use>
  void use_in_turn(Index num_tokens, const DispatchPlan<Scalar>& plan, Workers& workers, const Use& use) const {
    detail::use_in_turn(*held_->lender, held_->first, num_tokens, plan, workers, use);
  }

  /// Whose weights are not to be read but by those calls.
  const FfnBank<W, Act>& bank() const { return held_->bank; }

 private:
  struct Held {
    Held(FfnBank<W, Act> its_bank, std::shared_ptr<ExpertLender> its_lender)
        : bank(std::move(its_bank)), lender(std::move(its_lender)) {}
    FfnBank<W, Act> bank;  // an expert's weights are moved when nobody has leased it
    std::shared_ptr<ExpertLender> lender;
    Index first = 0;
  };
  using Place = typename WeightStack<W>::Place;

  BorrowedExpert borrow(Index e, Index number) {
    BorrowedExpert expert{.number = number};
    const auto place = [&](const WeightStack<W>& stack) {
      return detail::borrowed(stack.place(e), stack.rows(), stack.cols(), stack.row_stride(), *held_->lender,
                              expert.weights);
    };
    const auto& bank = held_->bank;
    const Place up = place(bank.w_up()), down = place(bank.w_down());
    const Place gate = FfnBank<W, Act>::is_gated ? place(bank.w_gate()) : up;
    expert.settle = [held = std::weak_ptr<Held>(held_), e, gate, up, down](const Moved& to) {
      const std::shared_ptr<Held> here = held.lock();
      if (here) here->bank.move(e, detail::moved(gate, to), detail::moved(up, to), detail::moved(down, to));
      return here != nullptr;
    };
    if constexpr (std::is_same_v<W, Quantized>) {
      expert.check = [lender = held_->lender.get(), number, gate, up, down](const Moved& to) {
        for (const QuantizedMatrix* const matrix : {&gate, &up, &down}) {
          if (const Tensor* const tensor = lender->tensor_at(matrix->codes.data)) {
            require_finite_scales(*tensor, detail::moved(*matrix, to), tensor->shape.size() == 3 ? number : -1);
          }
        }
      };
    }
    return expert;
  }

  std::shared_ptr<Held> held_;
};

}  // namespace moe::inline MOE_TARGET::io
