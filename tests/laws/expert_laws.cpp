#include "laws/expert_laws.hpp"

namespace moe::laws {

template class ExpertLawsOf<float>;
template class ExpertLawsOf<double>;

}  // namespace moe::laws
