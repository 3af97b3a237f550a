#include "laws/router_laws.hpp"

namespace moe::laws {

template class RouterLawsOf<float>;
template class RouterLawsOf<double>;

}  // namespace moe::laws
