#include "laws/layer_laws.hpp"

namespace moe::laws {

template class LayerLawsOf<float>;
template class LayerLawsOf<double>;

}  // namespace moe::laws
