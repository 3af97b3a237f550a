/// @file  From a model's files to a layer whose experts live on many ranks.
#pragma once

#include <concepts>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <mpi.h>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/distributed/agreement.hpp"
#include "moe/distributed/communicator.hpp"
#include "moe/distributed/expert_parallel.hpp"
#include "moe/distributed/placement.hpp"
#include "moe/distributed/shared_error.hpp"
#include "moe/experts/any_experts.hpp"
#include "moe/io/checkpoint.hpp"
#include "moe/io/model.hpp"

namespace moe::inline MOE_TARGET::distributed {

namespace detail {

/// @param open   the model, as a value or as a reference
/// @param place  the placement of so many experts on so many ranks
template <class Scalar, class Open, class Place>
io::LoadedLayer<Scalar> load_layer(const Open& open, const std::string& prefix, const Place& place, MPI_Comm comm,
                                   const ExpertParallelOptions& options) {
  const Communicator ranks(comm, options.patience);
  Placement placement;
  std::optional<io::LayerParts<Scalar>> parts;
  run_together(ranks, [&] {
    const io::Model& model = open();
    const MoeShape shape = io::load_parts<Scalar>(model, prefix, std::vector<Index>{}).shape;  // that of the files
    const Index num_experts = shape.num_experts + shape.num_zero_experts;
    placement = place(num_experts, ranks.size());
    require_equal(placement.num_experts(), num_experts, "load_layer: placement.num_experts()");
    parts = io::load_parts<Scalar>(model, prefix, placement.experts_of(ranks.rank()));
  });
  const MoeShape& shape = parts->shape;
  const Claim claims[] = {{"d_model", shape.d_model},
                          {"d_ff", shape.d_ff},
                          {"num_experts", shape.num_experts},
                          {"num_zero_experts", shape.num_zero_experts},
                          {"top_k", shape.top_k},
                          {"d_ff_shared", shape.d_ff_shared}};
  require_agreement(ranks, claims, "load_layer");
  require_same_text(ranks, "what they load", parts->model_type + " " + parts->dtype, "load_layer");
  ExpertParallel<AnyExperts<Scalar>> experts(std::move(parts->experts), std::move(placement), comm, options);
  return {parts->assemble(std::move(experts)), parts->shape, parts->model_type, parts->dtype};
}

}  // namespace detail

/// Collective. As io::load_layer(), but each rank maps, turns, expands or copies its own experts alone: contiguous
/// blocks, or as placed. What stands around the experts is on every rank.
/// @param placement  of all experts, zero-compute ones included, which come last
/// @throws io::Error where a file is missing or does not fit, and std::runtime_error "rank 2: <what it says>" on the
///         other ranks; std::invalid_argument on all ranks if they load other shapes, types or models; if the placement
///         is of another number of experts, and as ExpertParallel's constructor.
template <class Scalar = float>
io::LoadedLayer<Scalar> load_layer(const std::filesystem::path& folder, const std::string& prefix,
                                   const Placement& placement, MPI_Comm comm,
                                   const ExpertParallelOptions& options = {}) {
  return detail::load_layer<Scalar>([&] { return io::Model(folder); }, prefix, [&](Index, int) { return placement; },
                                    comm, options);
}
/// The same of a model that is open, on each rank: a rank's io::ExpertStore has a budget of its own.
template <class Scalar = float, std::derived_from<io::Model> Its>
io::LoadedLayer<Scalar> load_layer(const Its& model, const std::string& prefix, const Placement& placement,
                                   MPI_Comm comm, const ExpertParallelOptions& options = {}) {
  const auto open = [&]() -> const io::Model& { return model; };
  return detail::load_layer<Scalar>(open, prefix, [&](Index, int) { return placement; }, comm, options);
}
/// The same in contiguous blocks of experts, as many on each rank or one more.
template <class Scalar = float>
io::LoadedLayer<Scalar> load_layer(const std::filesystem::path& folder, const std::string& prefix, MPI_Comm comm,
                                   const ExpertParallelOptions& options = {}) {
  return detail::load_layer<Scalar>([&] { return io::Model(folder); }, prefix, place_in_blocks, comm, options);
}
/// The same of a model that is open, in contiguous blocks.
template <class Scalar = float, std::derived_from<io::Model> Its>
io::LoadedLayer<Scalar> load_layer(const Its& model, const std::string& prefix, MPI_Comm comm,
                                   const ExpertParallelOptions& options = {}) {
  const auto open = [&]() -> const io::Model& { return model; };
  return detail::load_layer<Scalar>(open, prefix, place_in_blocks, comm, options);
}

}  // namespace moe::inline MOE_TARGET::distributed
