// A list holds one type; AnyExpert is the one for several.
// expect: deduction (failed|of template arguments of 'vector')
#include "moe/experts/any_expert.hpp"
#include "moe/experts/expert_list.hpp"
#include "moe/experts/ffn.hpp"
#include "moe/experts/gated_ffn.hpp"

#ifdef MOE_POSITIVE_CONTROL
moe::ExpertList list(std::vector<moe::AnyExpert<float>>{moe::Ffn<float>{}, moe::GatedFfn<float>{}});
#else
moe::ExpertList list(std::vector{moe::Ffn<float>{}, moe::GatedFfn<float>{}});
#endif
