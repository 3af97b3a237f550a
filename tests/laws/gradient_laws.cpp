#include "laws/gradient_laws.hpp"

namespace moe::laws {

template void expect_true_gradients_of(TrainableLayer<double>, Index, unsigned, Index, const SideInputs<double>&);
template void expect_the_same_bits_of(const std::function<TrainableLayer<float>()>&, const SideInputs<float>&);
template void expect_warm_steps_of_to_allocate_nothing(TrainableLayer<float>, const SideInputs<float>&);

}  // namespace moe::laws
