// The banks of layers that serve, of each type of weight and activation: load_layer.cpp says which, banks_of_*.cpp
// compile them, some types at a time, for no compiler should need more memory than it has.
#pragma once

#include "moe/io/layer_loader.hpp"

#define MOE_BANK(once, W, Act) \
  once template AnyExperts<ActivationScalar<W>> served<W, Act, Flags>(FfnBank<W, Act>, const Lending&, ExpertsOf);

#define MOE_BANKS(once, W)              \
  MOE_BANK(once, W, SwiGlu)             \
  MOE_BANK(once, W, AnyGatedActivation) \
  MOE_BANK(once, W, AnyActivation)
