// A gated FFN's activation takes gate and up: Glu<Silu>, not Silu.
// expect: moe: this activation takes one argument, expected gate and up: Glu<Act> makes a gated one of it
#include "moe/experts/gated_ffn.hpp"

#ifdef MOE_POSITIVE_CONTROL
using Act = moe::Glu<moe::Silu>;
#else
using Act = moe::Silu;
#endif

moe::GatedFfn<float, Act> expert;
