// Copies of an expert learn, and what learns is written.
// expect: moe: quantised weights are not written: dequantized<float>\(bank\), or <bfloat16>, makes some that are
#include "moe/experts/gated_ffn_bank.hpp"
#include "moe/surgery/upcycle.hpp"

auto copies(const moe::FfnBank<moe::Quantized>& dense) {
#ifdef MOE_POSITIVE_CONTROL
  return moe::upcycle(moe::dequantized<float>(dense));
#else
  return moe::upcycle(dense);
#endif
}
