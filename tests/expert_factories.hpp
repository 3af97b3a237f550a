/// @file  Experts of every type of the library, made from a seed: what the law suites run on.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <vector>

#include "moe/experts/any_expert.hpp"
#include "moe/experts/ffn.hpp"
#include "moe/experts/function_expert.hpp"
#include "moe/experts/gated_ffn.hpp"
#include "moe/experts/gated_ffn_bank.hpp"
#include "random.hpp"

namespace moe::test {

/// Hidden sizes on either side of a register's width for each d_model on either side of it.
inline Index hidden_size(Index d_model) { return 2 * d_model - 1; }

/// Weights that keep numbers of order one at order one.
template <class W>
Weight<W> random_weight(Random& random, Index rows, Index cols) {
  return random.matrix<Weight<W>>(rows, cols, 2 / std::sqrt(double(cols)));
}

template <class W, class Act = Relu>
struct Ffns {
  static Ffn<W, Act> make(Index d_model, unsigned seed) {
    using Vector = typename Ffn<W, Act>::Vector;
    Random random(seed);
    const Index d_ff = hidden_size(d_model);
    auto w_in = random_weight<W>(random, d_ff, d_model), w_out = random_weight<W>(random, d_model, d_ff);
    const bool with_biases = seed % 2 == 1;
    return {.w_in = std::move(w_in),
            .w_out = std::move(w_out),
            .b_in = with_biases ? random.matrix<Vector>(d_ff, 1) : Vector(),
            .b_out = with_biases ? random.matrix<Vector>(d_model, 1) : Vector()};
  }
};

template <class W, class Act = SwiGlu, bool with_biases = false>
struct GatedFfns {
  static GatedFfn<W, Act> make(Index d_model, unsigned seed) {
    using Vector = typename GatedFfn<W, Act>::Vector;
    Random random(seed);
    const Index d_ff = hidden_size(d_model);
    auto w_gate = random_weight<W>(random, d_ff, d_model), w_up = random_weight<W>(random, d_ff, d_model);
    GatedFfn<W, Act> expert{
        .w_gate = std::move(w_gate), .w_up = std::move(w_up), .w_down = random_weight<W>(random, d_model, d_ff)};
    if (with_biases) {
      expert.b_gate = random.matrix<Vector>(d_ff, 1);
      expert.b_up = random.matrix<Vector>(d_ff, 1);
      expert.b_down = random.matrix<Vector>(d_model, 1);
    }
    return expert;
  }
};

/// The same experts as GatedFfns, stacked.
template <class W, class Act = SwiGlu, bool with_biases = false>
struct GatedFfnBanks {
  static GatedFfnBank<W, Act> make(Index d_model, std::span<const unsigned> seeds) {
    const Index d_ff = hidden_size(d_model), n = static_cast<Index>(seeds.size());
    WeightStack<W> gate(n, d_ff, d_model), up(n, d_ff, d_model), down(n, d_model, d_ff);
    using Biases = Matrix<ActivationScalar<W>>;
    GatedFfnBiases<ActivationScalar<W>> biases;
    if (with_biases) biases = {Biases(d_ff, n), Biases(d_ff, n), Biases(d_model, n)};
    for (Index e = 0; e < n; ++e) {
      const auto expert = GatedFfns<W, Act, with_biases>::make(d_model, seeds[std::size_t(e)]);
      if (with_biases) {
        biases.gate.col(e) = expert.b_gate;
        biases.up.col(e) = expert.b_up;
        biases.down.col(e) = expert.b_down;
      }
      gate.owned(e) = expert.w_gate;
      up.owned(e) = expert.w_up;
      down.owned(e) = expert.w_down;
    }
    return {std::move(gate), std::move(up), std::move(down), Act{}, std::move(biases)};
  }
};

/// The same experts as Ffns, stacked; the biases of those that have none are 0, and without biases nobody has any.
template <class W, class Act = Relu, bool with_biases = false>
struct FfnBanks {
  static FfnBank<W, Act> make(Index d_model, std::span<const unsigned> seeds) {
    using Biases = Matrix<ActivationScalar<W>>;
    const Index d_ff = hidden_size(d_model), n = static_cast<Index>(seeds.size());
    WeightStack<W> up(n, d_ff, d_model), down(n, d_model, d_ff);
    FfnBiases<ActivationScalar<W>> biases;
    if (with_biases) biases = {.up = Biases::Zero(d_ff, n), .down = Biases::Zero(d_model, n)};
    for (Index e = 0; e < n; ++e) {
      const auto expert = Ffns<W, Act>::make(d_model, seeds[std::size_t(e)]);
      if (with_biases && expert.b_in.size() > 0) {
        biases.up.col(e) = expert.b_in;
        biases.down.col(e) = expert.b_out;
      }
      up.owned(e) = expert.w_in;
      down.owned(e) = expert.w_out;
    }
    return {std::move(up), std::move(down), Act{}, std::move(biases)};
  }
};

/// GatedFfnBanks again, mapped: all matrices of an expert in one piece of memory, as odd rows apart as a fused
/// checkpoint's, and off any alignment.
template <class W>
struct MappedGatedFfnBanks {
  static GatedFfnBank<W> make(Index d_model, std::span<const unsigned> seeds) {
    const Index d_ff = hidden_size(d_model), in_stride = d_model + 3, out_stride = d_ff + 5;
    const Index in_size = d_ff * in_stride, size = 2 * in_size + d_model * out_stride;
    const auto memory = std::make_shared<std::vector<W>>(std::size_t(1 + size * Index(seeds.size())), W(77));
    std::array<std::vector<const W*>, 3> at;
    for (std::size_t e = 0; e < seeds.size(); ++e) {
      const auto expert = GatedFfns<W>::make(d_model, seeds[e]);
      W* place = memory->data() + 1 + Index(e) * size;
      const auto put = [&](const Weight<W>& weight, Index stride, std::vector<const W*>& list) {
        Eigen::Map<Weight<W>, 0, Eigen::OuterStride<>>(place, weight.rows(), weight.cols(), {stride}) = weight;
        list.push_back(place);
        place += weight.rows() * stride;
      };
      put(expert.w_gate, in_stride, at[0]);
      put(expert.w_up, in_stride, at[1]);
      put(expert.w_down, out_stride, at[2]);
    }
    return {WeightStack<W>(at[0], d_ff, d_model, in_stride, memory),
            WeightStack<W>(at[1], d_ff, d_model, in_stride, memory),
            WeightStack<W>(at[2], d_model, d_ff, out_stride, memory)};
  }
};

/// A different type behind each residue of the seed.
template <class Scalar>
struct AnyExperts {
  static AnyExpert<Scalar> make(Index d_model, unsigned seed) {
    if (seed % 3 == 0) return Ffns<Scalar>::make(d_model, seed);
    if (seed % 3 == 1) return GatedFfns<Scalar>::make(d_model, seed);
    return expert_from<Scalar>(d_model, [factor = Scalar(seed)](const auto& x, auto y) { y = x / factor; });
  }
};

template <class Scalar>
struct FunctionExperts {
  static auto make(Index d_model, unsigned seed) {
    return expert_from<Scalar>(d_model, [shift = Scalar(seed) / 8](const auto& x, auto y) {
      y = x.cwiseAbs2() - Matrix<Scalar>::Constant(x.rows(), x.cols(), shift);
    });
  }
};

}  // namespace moe::test
