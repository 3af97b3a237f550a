// Experts on many ranks: the layer, its router and its tokens stay as they are; the group of experts is another one.
// Under mpirun each rank holds a part of the experts, and has tokens of its own.
#include <moe/distributed/expert_parallel.hpp>
#include <moe/distributed/run.hpp>
#include <moe/moe.hpp>

#include <cstdint>
#include <cstdio>

int main(int argc, char** argv) {
  return moe::distributed::run(argc, argv, [] {
    const moe::Index d_model = 64, d_ff = 128, num_experts = 8, num_tokens = 100;
    int rank = 0, num_ranks = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &num_ranks);

    const moe::LinearTopK<float> router(moe::random_weight<float>(num_experts, d_model, /*seed=*/1), {.top_k = 2});
    const auto experts = moe::random_bank<float>(num_experts, d_model, d_ff, /*seed=*/2);
    moe::distributed::Traffic traffic;
    const moe::MoeLayer layer(router, experts);  // one process with all experts; and this is the line that changes:
    const moe::MoeLayer shared_out(router,
                                   moe::distributed::shard_experts(experts, MPI_COMM_WORLD, {.traffic = &traffic}));

    const auto x = moe::random_tokens<float>(d_model, num_tokens, /*seed=*/std::uint64_t(3 + rank));
    moe::Matrix<float> y(d_model, num_tokens), expected(d_model, num_tokens);
    moe::Workspace<float> workspace;
    workspace.numerics.batch_invariant = true;  // whatever tokens of other ranks an expert sees beside these
    layer.forward(x, expected, workspace);
    shared_out.forward(x, y, workspace);

    if (rank == 0) {
      std::printf("%d ranks, %td of %td experts on the first: ", num_ranks, shared_out.experts().local()->num_experts(),
                  num_experts);
      std::printf(y == expected ? "the bits of one process\n" : "something else than one process\n");
      std::printf("%td token columns sent for %td routes\n", traffic.columns, workspace.routing.size());
    }
    return 0;
  });
}

/* Output:
4 ranks, 2 of 8 experts on the first: the bits of one process
136 token columns sent for 200 routes
*/
