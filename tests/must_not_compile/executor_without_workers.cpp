// Scratch memory is made ready for each worker, so an executor says how many there are.
// expect: moe: this executor has no `Index workers\(\)`: how many tasks run at once
#include "moe/runtime/workers.hpp"

struct InOrder {
#ifdef MOE_POSITIVE_CONTROL
  moe::Index workers() const { return 1; }
#endif
  void for_each(moe::Index n, const moe::Task& task) const {
    for (moe::Index i = 0; i < n; ++i) task(i, 0);
  }
};

InOrder in_order;
moe::ExecutorRef executor = in_order;
