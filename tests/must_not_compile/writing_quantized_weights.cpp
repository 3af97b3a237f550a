// Quantised weights are read where they lie; they are dequantised before they are written.
// expect: moe: quantised weights are not written: dequantized<float>\(bank\), or <bfloat16>, makes some that are
#include "moe/experts/gated_ffn_bank.hpp"

void change(moe::FfnBank<moe::Quantized>& bank) {
#ifdef MOE_POSITIVE_CONTROL
  auto numbers = moe::dequantized<float>(bank);
  numbers[0].w_up.setZero();
#else
  bank[0].w_up.setZero();
#endif
}
