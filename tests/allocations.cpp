#include "allocations.hpp"

#include "counting_new.hpp"

namespace moe::test {

std::atomic<long> num_allocations{0}, num_bytes{0};

}  // namespace moe::test
