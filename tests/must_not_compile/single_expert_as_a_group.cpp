// A layer has a group of experts; one expert is not a group.
// expect: moe: this is one expert, expected a group of them: ExpertList\(std::vector{expert}\)
#include "moe/experts/expert_list.hpp"
#include "moe/experts/ffn.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/routers/linear_top_k.hpp"

#ifdef MOE_POSITIVE_CONTROL
using Group = moe::ExpertList<moe::Ffn<float>>;
#else
using Group = moe::Ffn<float>;
#endif

using Layer = moe::MoeLayer<moe::LinearTopK<float>, Group>;
static_assert(sizeof(Layer) > 0);
