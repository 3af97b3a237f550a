// Threads of your own: anything with workers() and for_each() is an executor. Results do not change by a bit.
#include <moe/moe.hpp>

#include <cstdio>
#include <thread>
#include <vector>

struct MyThreads {
  moe::Index workers() const { return 3; }

  void for_each(moe::Index n, const moe::Task& task) const {  // task(i, worker) once for each i
    std::vector<std::jthread> threads;
    for (moe::Index w = 0; w < workers(); ++w) {
      threads.emplace_back([&task, n, w, step = workers()] {
        for (moe::Index i = w; i < n; i += step) task(i, w);
      });
    }
  }
};

int main() {
  const moe::LinearTopK<float> router(moe::random_weight<float>(8, 32, 1), {.top_k = 2, .renormalize = true});
  const moe::MoeLayer layer(router, moe::random_bank<float>(8, 32, 48, 2));
  const moe::Matrix<float> x = moe::random_tokens<float>(32, 100, 3);
  const bool equal = layer.forward(x, moe::Serial()) == layer.forward(x, MyThreads());
  std::printf("one thread and three: %s\n", equal ? "the same to the last bit" : "different");
}

/* Output:
one thread and three: the same to the last bit
*/
