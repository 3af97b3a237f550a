/// @file  Experts to other ranks.
#pragma once

#include <optional>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/parameters.hpp"
#include "moe/core/types.hpp"
#include "moe/distributed/agreement.hpp"
#include "moe/distributed/communicator.hpp"
#include "moe/distributed/expert_parallel.hpp"
#include "moe/distributed/move_parameters.hpp"
#include "moe/distributed/placement.hpp"
#include "moe/distributed/shared_error.hpp"

namespace moe::inline MOE_TARGET::distributed {

/// Collective. The same experts, placed otherwise, such as by the load of late: each rank keeps what it shall have, and
/// gets the rest from a rank that has it. Until the new group takes the place of the old one, memory holds both.
///   layer.experts() = move_experts(layer.experts(), place_by_load(stats, num_ranks, 2), make_bank);
/// @param make  make(n): n experts of the group's kind and sizes, with any numbers; called where n ≥ 1
/// @throws what this rank's make() throws, and std::runtime_error on all others; as ExpertParallel's constructor if the
///         placement is of other experts or ranks; as move_parameters() if the sizes differ. `group` stays as it was.
template <Experts G, class Make>
ExpertParallel<G> move_experts(ExpertParallel<G>& group, const Placement& placement, const Make& make) {
  const Communicator& comm = group.communicator();
  const Claim claims[] = {{"placement.num_experts()", placement.num_experts()}};
  require_agreement(comm, claims, "move_experts");
  require_equal(placement.num_experts(), group.num_experts(), "move_experts: placement.num_experts()");
  std::optional<G> local;
  run_together(comm, [&] {
    const Index num_local = std::ssize(placement.experts_of(comm.rank()));
    if (num_local > 0) local.emplace(make(num_local));
  });
  ExpertParallel<G> moved(std::move(local), placement, comm.get(), group.options());
  move_parameters(all_parameters(group), all_parameters(moved), comm.get(), group.options().patience);
  return moved;
}

}  // namespace moe::inline MOE_TARGET::distributed
