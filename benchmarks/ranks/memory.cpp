/// @file  How much memory does each rank take for a checkpoint whose experts are shared out?
///
/// First one process writes two checkpoints of as many bytes: one whose experts are used where they lie in the file,
/// one whose experts have to be turned. Then ranks load one of them and send tokens to all of its experts:
///   memory_of_ranks write /tmp/checkpoints
///   mpirun -n 4 memory_of_ranks measure /tmp/checkpoints/mapped
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <mpi.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "moe/distributed/checkpoint.hpp"
#include "moe/distributed/run.hpp"
#include "moe/io/safetensors_file.hpp"
#include "moe/models/random.hpp"

namespace {

namespace fs = std::filesystem;
using moe::bfloat16;
using moe::Index;
using moe::io::Tensor;

constexpr Index top_k = 8;

struct Sizes {
  Index experts = 64, d_model = 1024, d_ff = 1024;
};

Tensor random_tensor(const std::string& name, const std::vector<Index>& shape, std::uint64_t seed) {
  Index size = 1;
  for (const Index its : shape) size *= its;
  const auto numbers =
      std::make_shared<moe::Weight<bfloat16>>(moe::random_weight<bfloat16>(size / shape.back(), shape.back(), seed));
  Tensor tensor = moe::io::make_tensor(name, shape, std::span<const bfloat16>(numbers->data(), std::size_t(size)));
  tensor.owner = numbers;
  return tensor;
}

void write(const fs::path& folder, nlohmann::json config, const Sizes& sizes, const std::vector<Tensor>& tensors) {
  fs::create_directories(folder);
  config.update({{"hidden_size", sizes.d_model}, {"intermediate_size", sizes.d_ff}, {"num_experts_per_tok", top_k}});
  std::ofstream(folder / "config.json") << config;
  moe::io::write_safetensors(folder / "model.safetensors", tensors);
}

void write_mapped(const fs::path& folder, const Sizes& sizes) {
  const auto [n, d, ff] = sizes;
  std::vector<Tensor> tensors = {random_tensor("gate.weight", {n, d}, 1)};
  for (Index e = 0; e < n; ++e) {
    const std::string expert = "experts." + std::to_string(e);
    const auto seed = std::uint64_t(2 + 3 * e);
    tensors.push_back(random_tensor(expert + ".gate_proj.weight", {ff, d}, seed));
    tensors.push_back(random_tensor(expert + ".up_proj.weight", {ff, d}, seed + 1));
    tensors.push_back(random_tensor(expert + ".down_proj.weight", {d, ff}, seed + 2));
  }
  write(folder, {{"model_type", "olmoe"}, {"num_experts", n}}, sizes, tensors);
}

void write_turned(const fs::path& folder, const Sizes& sizes) {
  const auto [n, d, ff] = sizes;
  write(folder, {{"model_type", "llama4_text"}, {"num_local_experts", n}}, sizes,
        {random_tensor("router.weight", {n, d}, 1), random_tensor("experts.gate_up_proj", {n, d, 2 * ff}, 2),
         random_tensor("experts.down_proj", {n, ff, d}, 3), random_tensor("shared_expert.gate_proj.weight", {ff, d}, 4),
         random_tensor("shared_expert.up_proj.weight", {ff, d}, 5),
         random_tensor("shared_expert.down_proj.weight", {d, ff}, 6)});
}

/// What this process held at most, so far, pages of mapped files included; MB.
double peak_megabytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return double(usage.ru_maxrss) * 1024 / 1e6;
}

void measure(const fs::path& folder) {
  const double before = peak_megabytes();
  const auto [layer, shape, model_type, dtype] = moe::distributed::load_layer<float>(folder, "", MPI_COMM_WORLD);
  moe::Workspace<float> ws;
  const moe::Matrix<float> x = moe::random_tokens<float>(shape.d_model, 64, 1);
  moe::Matrix<float> y(x.rows(), x.cols());
  layer.forward(x, y, ws);
  const double peak = peak_megabytes();
  const auto chosen = Index(std::set(ws.routing.expert.begin(), ws.routing.expert.end()).size());

  double all[2] = {before, peak};
  MPI_Allreduce(MPI_IN_PLACE, all, 2, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  int rank = 0, ranks = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  if (rank != 0) return;
  std::printf("%s, %td of %td experts used, %.0f MB of files, %d ranks: at most %.0f MB a rank, %.0f before\n",
              model_type.c_str(), chosen, shape.num_experts, double(fs::file_size(folder / "model.safetensors")) / 1e6,
              ranks, all[1], all[0]);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"How much memory does each rank of mpirun take for a checkpoint whose experts are shared out?"};
  std::string folder;
  Sizes sizes;
  auto* const writing = app.add_subcommand("write", "Write two checkpoints, FOLDER/mapped and FOLDER/turned");
  writing->add_option("folder", folder)->required();
  writing->add_option("--experts", sizes.experts)->capture_default_str();
  writing->add_option("--d-model", sizes.d_model)->capture_default_str();
  writing->add_option("--d-ff", sizes.d_ff)->capture_default_str();
  auto* const measuring = app.add_subcommand("measure", "Load one of them on all ranks, and use all of its experts");
  measuring->add_option("folder", folder)->required();
  app.require_subcommand(1);
  CLI11_PARSE(app, argc, argv);
  if (*writing) {
    write_mapped(fs::path(folder) / "mapped", sizes);
    write_turned(fs::path(folder) / "turned", sizes);
    return 0;
  }
  return moe::distributed::run(argc, argv, [&] {
    measure(folder);
    return 0;
  });
}
