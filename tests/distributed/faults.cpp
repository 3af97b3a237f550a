/// @file  What a rank must not do. `faults CASE`, under mpirun: every case ends all ranks, see CMakeLists.txt.
#include <chrono>
#include <csignal>
#include <stdexcept>
#include <string>
#include <thread>

#include <mpi.h>

#include "distributed/ranks.hpp"
#include "moe/distributed/run.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/models/random.hpp"
#include "moe/routers/linear_top_k.hpp"

int main(int argc, char** argv) {
  using namespace moe;
  return distributed::run(argc, argv, [&] {
    const std::string fault = argv[1];
    const bool is_faulty = test::my_rank() == 1;
    const Index d_model = 8, num_experts = 4;
    const distributed::ExpertParallelOptions options{.patience = std::chrono::seconds(2)};

    if (is_faulty && fault == "never_comes") std::this_thread::sleep_for(std::chrono::minutes(1));
    const MoeLayer layer(
        LinearTopK<float>(random_weight<float>(num_experts, d_model, 1), {.top_k = 2}),
        distributed::shard_experts(random_bank<float>(num_experts, d_model, 16, 2), MPI_COMM_WORLD, options));
    layer.forward(random_tokens<float>(d_model, 5, 3));
    if (is_faulty && fault == "throws") throw std::runtime_error("the tokenizer ran out of tokens");
    if (is_faulty && fault == "is_killed") std::raise(SIGKILL);
    if (is_faulty && fault == "sleeps") std::this_thread::sleep_for(std::chrono::minutes(1));
    const Index tokens_of_width = is_faulty && fault == "wrong_shape" ? d_model + 1 : d_model;
    layer.forward(random_tokens<float>(tokens_of_width, 5, 3));
    return 0;
  });
}
