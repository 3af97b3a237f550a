// Training on many ranks: each has some of the experts, and tokens of its own. Gradients of experts come from the
// tokens of all ranks; those of the router, which all ranks have, are summed over them.
#include <moe/distributed/balance.hpp>
#include <moe/distributed/run.hpp>
#include <moe/moe.hpp>
#include <moe/train.hpp>
#include <moe/train/distributed/expert_parallel.hpp>
#include <moe/train/distributed/gradient_reducer.hpp>

#include <cstdint>
#include <cstdio>

int main(int argc, char** argv) {
  return moe::distributed::run(argc, argv, [] {
    const moe::Index d_model = 16, d_ff = 32, num_tokens = 64;
    int rank = 0, num_ranks = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &num_ranks);

    const moe::Index num_experts = 2 * num_ranks;
    const auto own_experts = moe::random_bank<float>(2, d_model, d_ff, /*seed=*/std::uint64_t(10 + rank));
    moe::MoeLayer layer(moe::LinearTopK<float>(moe::random_weight<float>(num_experts, d_model, /*seed=*/1),
                                               {.top_k = 2, .renormalize = true}),
                        moe::distributed::ExpertParallel(own_experts, MPI_COMM_WORLD));
    auto gradient = moe::zeros_like(layer);
    auto tape = moe::tape_of(layer);
    moe::AdamW<float> adam(moe::parameters(layer), {.learning_rate = 3e-3});
    moe::distributed::GradientReducer gradients(moe::parameters(gradient), MPI_COMM_WORLD);

    moe::Matrix<float> y(d_model, num_tokens), d_x(d_model, num_tokens);
    moe::Scratch scratch;
    double first = 0, last = 0;
    for (int step = 0; step < 300; ++step) {
      const auto x = moe::random_tokens<float>(d_model, num_tokens, std::uint64_t(100 + step * num_ranks + rank));
      moe::set_to_zero(gradients.parameters()), d_x.setZero();
      moe::forward(layer, x, y, tape);
      const moe::Matrix<float> d_y = (y - x) / float(num_ranks * num_tokens);  // to learn y = x: mean over all tokens
      auto shares = moe::measure_shares(tape.ws.routing, num_tokens, num_experts);
      scratch.reset();
      moe::distributed::all_reduce(shares, gradients.communicator(), scratch);  // balance over all tokens
      moe::add_load_balancing_gradient<float>(tape.ws.routing, {}, shares, 0.01, tape.logit_gradient());

      moe::backward(layer, x, d_y, tape, d_x, gradient);
      gradients.sum();
      gradients.clip(1.0);
      adam.step(gradients.parameters());

      double error[] = {(y - x).squaredNorm()};
      moe::distributed::sum_in_order(error, gradients.communicator(), scratch);
      last = error[0];
      if (step == 0) first = last;
    }
    if (rank == 0) std::printf("%d ranks: the error is %s\n", num_ranks, last < first / 2 ? "halved" : "not halved");
    return 0;
  });
}

/* Output:
4 ranks: the error is halved
*/
