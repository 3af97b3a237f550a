// A layer computes in one scalar: that of its router is that of its experts.
// expect: moe: one of these computes in float and the other in double, expected one Scalar
#include "moe/experts/gated_ffn_bank.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/routers/linear_top_k.hpp"

#ifdef MOE_POSITIVE_CONTROL
using RouterScalar = float;
#else
using RouterScalar = double;
#endif

using Layer = moe::MoeLayer<moe::LinearTopK<RouterScalar>, moe::GatedFfnBank<float>>;
static_assert(sizeof(Layer) > 0);
