/// @file  Parameters of many ranks to one checkpoint, and back.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <map>
#include <set>
#include <span>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include <mpi.h>
#include <nlohmann/json.hpp>

#include "moe/core/check.hpp"
#include "moe/core/parameters.hpp"
#include "moe/core/types.hpp"
#include "moe/distributed/agreement.hpp"
#include "moe/distributed/communicator.hpp"
#include "moe/distributed/shared_error.hpp"
#include "moe/io/error.hpp"
#include "moe/io/parameters.hpp"
#include "moe/io/safetensors_file.hpp"
#include "moe/io/shards.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::distributed {

namespace detail {

/// Who writes what.
struct Shares {
  std::map<std::string, int> writer_of;  // of each parameter of all ranks: the lowest rank that has it
  std::set<int> writers;
  std::vector<std::size_t> own;  // which of its own parameters this rank writes
  std::size_t total_bytes = 0;

  /// 1, 2, … of a rank that writes.
  Index shard_of(int writer) const { return 1 + std::distance(writers.begin(), writers.find(writer)); }
};

/// Collective.
/// @throws std::invalid_argument, on every rank, if ranks disagree on the shape or type of one name, or a rank has two.
template <class Scalar>
Shares share_out(const Communicator& comm, const std::vector<Parameter<Scalar>>& parameters) {
  nlohmann::json own = nlohmann::json::array();
  for (const auto& [name, data, rows, cols] : parameters) {
    own.push_back({name, std::string(io::dtype_name<Scalar>) + " " + io::to_string({rows, cols}),
                   std::size_t(rows * cols) * sizeof(Scalar)});
  }
  using Replace = nlohmann::json::error_handler_t;  // what is no UTF-8 is refused by who writes it
  const auto all = gather_texts(comm, own.dump(-1, ' ', false, Replace::replace), "agree on parameters");

  Shares shares;
  std::map<std::string, std::map<std::string, std::vector<int>>> ranks_of;  // by name, by type and shape
  for (int rank = 0; rank < comm.size(); ++rank) {
    std::set<std::string> names;
    std::size_t number = 0;
    for (const auto& [name, shape, bytes] :
         nlohmann::json::parse(all[std::size_t(rank)])
             .get<std::vector<std::tuple<std::string, std::string, std::size_t>>>()) {
      require(names.insert(name).second,
              "save_parameters: rank " + std::to_string(rank) + " has two parameters called " + name);
      ranks_of[name][shape].push_back(rank);
      if (shares.writer_of.try_emplace(name, rank).second) {
        shares.writers.insert(rank);
        shares.total_bytes += bytes;
        if (rank == comm.rank()) shares.own.push_back(number);
      }
      ++number;
    }
  }
  for (const auto& [name, ranks] : ranks_of) {
    require(ranks.size() == 1, "save_parameters: ranks disagree on " + who_says_what(name, ranks));
  }
  return shares;
}

inline void make_folder(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) io::fail(io::utf8(folder), ": cannot be made: ", error.message());
}

}  // namespace detail

/// Collective. Writes the parameters of all ranks as one checkpoint: each rank those that it has to a shard of its own
/// (one that several have, the lowest of them alone), and rank 0 the index, model.safetensors.index.json, by which any
/// tool reads them as a whole. All or nothing: until the index is in place, the save that was there before is what the
/// folder holds; then that save's shards are removed.
/// @param folder    is made if it is not there; all ranks see the same one
/// @param metadata  in every shard; {{"format", "pt"}} is what Hugging Face's transformers ask for
/// @param patience  how long a rank waits for the slowest to write
/// @throws io::Error where a file cannot be written, and std::runtime_error "rank 2: <what it says>" on the other
///         ranks; std::invalid_argument on all ranks, with the shapes, if they disagree on those of one name.
template <class Scalar>
void save_parameters(const std::filesystem::path& folder, const std::vector<Parameter<Scalar>>& parameters,
                     MPI_Comm comm, const io::Metadata& metadata = {},
                     std::chrono::milliseconds patience = std::chrono::minutes(10)) {
  const Communicator ranks(comm, patience);
  const bool is_first = ranks.rank() == 0;
  const detail::Shares shares = detail::share_out(ranks, parameters);
  std::int64_t save = 0;
  run_together(ranks, [&] {
    if (!is_first) return;
    detail::make_folder(folder);
    save = io::next_save(folder);
  });
  save = gather(ranks, std::span(&save, 1), "agree on the names of shards")[0];
  const auto shard_name = [&](int rank) {
    return io::shard_name(save, shares.shard_of(rank), std::ssize(shares.writers));
  };

  bool in_place = false;
  try {
    run_together(ranks, [&] {
      if (shares.own.empty()) return;
      std::vector<io::Tensor> tensors;
      for (const std::size_t p : shares.own) tensors.push_back(io::detail::as_tensor(parameters[p]));
      io::write_safetensors(folder / shard_name(ranks.rank()), tensors, metadata);
    });
    run_together(ranks, [&] {
      if (!is_first) return;
      std::map<std::string, std::string> shard_of;
      for (const auto& [name, writer] : shares.writer_of) shard_of[name] = shard_name(writer);
      io::write_index(folder, shard_of, shares.total_bytes);
      in_place = true;
    });
  } catch (...) {
    if (is_first && !in_place) io::remove_saves(folder, [&](Index its) { return its == save; });
    throw;
  }
  if (is_first) io::remove_saves(folder, [&](Index its) { return its != save; });
}

/// Collective. Reads each rank's parameters by name from a checkpoint, be it of as many ranks, of others, or of one
/// process. What else the files hold is left alone.
/// @param path  as io::Tensors::open()
/// @throws io::Error where one is missing, or of another shape or type, and std::runtime_error "rank 2: <what it says>"
///         on the other ranks; then nothing has been written on any.
template <class Scalar>
void load_parameters(const std::filesystem::path& path, const std::vector<Parameter<Scalar>>& parameters, MPI_Comm comm,
                     std::chrono::milliseconds patience = std::chrono::minutes(10)) {
  std::vector<io::Tensor> found;
  run_together(Communicator(comm, patience), [&] { found = io::detail::find_parameters(path, parameters); });
  io::detail::assign(found, parameters);
}

}  // namespace moe::inline MOE_TARGET::distributed
