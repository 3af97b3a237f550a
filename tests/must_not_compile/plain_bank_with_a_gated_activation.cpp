// Two matrices are of an FFN that is not gated, whose activation takes one argument.
// expect: moe: this activation takes gate and up, expected one argument: a gated bank has w_gate, too
#include "moe/experts/ffn_bank.hpp"

#ifdef MOE_POSITIVE_CONTROL
using Act = moe::Silu;
#else
using Act = moe::SwiGlu;
#endif

moe::FfnBank<float, Act> bank(const moe::WeightStack<float>& in, const moe::WeightStack<float>& out) {
  return {in, out};
}
