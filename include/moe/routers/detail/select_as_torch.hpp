/// @file  The best of numbers of which many are equal, as torch.topk takes them.
#pragma once

#include <algorithm>
#include <utility>

#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET::detail {

template <class Scalar>
struct RankedItem {
  Scalar rank;  // never a NaN
  Index item;

  bool goes_before(const RankedItem& other) const { return rank > other.rank; }
};

/// Selects as libstdc++'s std::nth_element and std::partial_sort do: which of equals they leave in front is nobody's
/// promise, so what they do is written out here, and is the same with every standard library.
template <class Scalar>
class SelectAsLibstdcxx {
 public:
  using Ranked = RankedItem<Scalar>;

  /// Brings the k best of n to the front, in no order.
  static void nth_element(Ranked* first, Index k, Index n) {
    Ranked *last = first + n, *const nth = first + k - 1;
    Index steps_left = 0;
    for (Index rest = n; rest > 1; rest /= 2) steps_left += 2;
    while (last - first > 3) {
      if (steps_left-- == 0) {
        heap_select(first, nth + 1 - first, last - first);
        std::swap(*first, *nth);
        return;
      }
      Ranked* const cut = partition(first, last);
      (cut <= nth ? first : last) = cut;
    }
    for (Ranked* i = first; i != last; ++i) insert(first, i);
  }

  /// The same, by a heap of k.
  static void heap_select(Ranked* first, Index k, Index n) {
    for (Index parent = k / 2; parent-- > 0;) sift_down(first, parent, k, first[parent]);
    for (Index i = k; i < n; ++i) {
      if (!first[i].goes_before(first[0])) continue;
      const Ranked better = std::exchange(first[i], first[0]);
      sift_down(first, 0, k, better);
    }
  }

 private:
  /// Around the median of the second, the middle and the last.
  static Ranked* partition(Ranked* first, Ranked* last) {
    Ranked *const a = first + 1, *const b = first + (last - first) / 2, *const c = last - 1;
    Ranked* const median = a->goes_before(*b) ? (b->goes_before(*c)   ? b
                                                 : a->goes_before(*c) ? c
                                                                      : a)
                                              : (a->goes_before(*c)   ? a
                                                 : b->goes_before(*c) ? c
                                                                      : b);
    std::swap(*first, *median);
    Ranked* i = first + 1;
    for (Ranked* j = last;; ++i) {
      while (i->goes_before(*first)) ++i;
      do --j;
      while (first->goes_before(*j));
      if (i >= j) return i;
      std::swap(*i, *j);
    }
  }

  static void insert(Ranked* first, Ranked* place) {
    const Ranked one = *place;
    for (; place > first && one.goes_before(place[-1]); --place) *place = place[-1];
    *place = one;
  }

  /// In a heap whose root is the last of them: the hole goes down to a leaf, and `one` up from there.
  static void sift_down(Ranked* first, Index hole, Index size, Ranked one) {
    const Index top = hole;
    while (2 * hole + 1 < size) {
      Index child = 2 * hole + 1;
      if (child + 1 < size && !first[child + 1].goes_before(first[child])) ++child;
      first[hole] = first[child];
      hole = child;
    }
    for (Index parent = (hole - 1) / 2; hole > top && first[parent].goes_before(one); parent = (hole - 1) / 2) {
      first[hole] = first[parent];
      hole = parent;
    }
    first[hole] = one;
  }
};

/// Brings the k best of n to the front, in no order: of equals those that torch.topk (2.x, on a CPU) takes.
template <class Scalar>
void select_as_torch(RankedItem<Scalar>* first, Index k, Index n) {
  if (64 * k <= n) {
    SelectAsLibstdcxx<Scalar>::heap_select(first, k, n);
  } else {
    SelectAsLibstdcxx<Scalar>::nth_element(first, k, n);
  }
}

}  // namespace moe::inline MOE_TARGET::detail
