// Threads of your own: anything with workers() and for_each() is an executor. Results do not change by a bit.
#include <moe/moe.hpp>

#include <cstdio>
#include <stdexcept>
#include <thread>
#include <vector>

struct MyThreads {
  moe::Index workers() const { return 3; }

  void for_each(moe::Index n, const moe::Task& task) const {  // task(i, worker) once for each i
    moe::FirstError error;  // carried to the caller: an exception that leaves a thread ends the program
    std::vector<std::jthread> threads;
    for (moe::Index w = 0; w < workers(); ++w) {
      threads.emplace_back([&, w] {
        for (moe::Index i = w; i < n; i += workers()) error.run([&] { task(i, w); });
      });
    }
    threads.clear();  // waits for them
    error.rethrow();
  }
};

int main() {
  const moe::LinearTopK<float> router(moe::random_weight<float>(8, 32, 1), {.top_k = 2, .renormalize = true});
  const moe::MoeLayer layer(router, moe::random_bank<float>(8, 32, 48, 2));
  const moe::Matrix<float> x = moe::random_tokens<float>(32, 100, 3);
  const bool equal = layer.forward(x, moe::Serial()) == layer.forward(x, MyThreads());
  std::printf("one thread and three: %s\n", equal ? "the same to the last bit" : "different");

  const auto fail = [](const auto&, auto) { throw std::runtime_error("my expert failed"); };
  const moe::MoeLayer faulty(router, std::vector(8, moe::expert_from<float>(32, fail)));
  try {
    faulty.forward(x, MyThreads());
  } catch (const std::exception& error) {
    std::printf("caught: %s\n", error.what());
  }
}

/* Output:
one thread and three: the same to the last bit
caught: my expert failed
*/
