// Three matrices are of a gated FFN, whose activation takes gate and up: Glu<Silu>, not Silu.
// expect: moe: this activation takes one argument, expected gate and up: Glu<Act> makes a gated one of it
#include "moe/experts/gated_ffn_bank.hpp"

#ifdef MOE_POSITIVE_CONTROL
using Act = moe::Glu<moe::Silu>;
#else
using Act = moe::Silu;
#endif

moe::GatedFfnBank<float, Act> bank(const moe::WeightStack<float>& in, const moe::WeightStack<float>& out) {
  return {in, in, out};
}
