#include "laws/experts_laws.hpp"

namespace moe::laws {

template class ExpertsLawsOf<float>;
template class ExpertsLawsOf<double>;

}  // namespace moe::laws
