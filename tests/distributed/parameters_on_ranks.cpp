// Parameters of many ranks: their names, saving them, and going on with another number of ranks.
#include "moe/distributed/parameters.hpp"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "distributed/ranks.hpp"
#include "errors.hpp"
#include "expert_factories.hpp"
#include "moe/io/json.hpp"
#include "moe/moe.hpp"
#include "moe/train.hpp"

namespace moe::distributed {
namespace {

namespace fs = std::filesystem;
using test::copied;
using test::dealt;
using test::error_of;
using test::local_group;
using test::my_rank;
using test::num_ranks;
using test::same_bits;
using test::told_by;

constexpr Index d_model = 5, num_experts = 9;

void wait_for_all() { MPI_Barrier(MPI_COMM_WORLD); }

/// One folder for all ranks; it goes with the last of them.
struct SharedFolder {
  fs::path path;

  explicit SharedFolder(const std::string& name) {
    long id = ::getpid();
    MPI_Bcast(&id, 1, MPI_LONG, 0, MPI_COMM_WORLD);
    path = fs::path(testing::TempDir()) / ("moe_" + name + "_on_ranks_" + std::to_string(id));
  }
  ~SharedFolder() {
    wait_for_all();
    if (my_rank() == 0) fs::remove_all(path);
    wait_for_all();
  }
  SharedFolder(const SharedFolder&) = delete;
  SharedFolder& operator=(const SharedFolder&) = delete;

  /// Seen by all ranks alike, for none goes on before all have looked.
  std::set<std::string> files() const {
    wait_for_all();
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(path)) names.insert(entry.path().filename().string());
    wait_for_all();
    return names;
  }
};

/// Calls f(comm) on the first ranks, with a communicator of these; the others wait.
template <class F>
void on_first_ranks(int count, const F& f) {
  MPI_Comm comm = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, my_rank() < count ? 0 : MPI_UNDEFINED, 0, &comm);
  if (comm != MPI_COMM_NULL) {
    f(comm);
    MPI_Comm_free(&comm);
  }
  wait_for_all();
}

std::vector<int> numbers_of_ranks() {
  std::vector<int> numbers;
  for (const int ranks : {1, 2, 3, 4, 8}) {
    if (ranks <= num_ranks()) numbers.push_back(ranks);
  }
  return numbers;
}

using Bank = test::GatedFfnBanks<float, GptOssGlu, true>;  // with biases

using Place = std::function<Placement(Index num_experts, int ranks)>;
const std::map<std::string, Place> placements = {{"in blocks", place_in_blocks}, {"dealt", dealt}, {"copied", copied}};

/// A layer of which each rank holds a part, and what its optimiser remembers of it.
template <class Optimiser>
class Training {
  static auto make_layer(const Place& place, MPI_Comm comm) {
    const Placement placement = place(num_experts, test::num_ranks(comm));
    return MoeLayer(
        LinearTopK<float>(random_weight<float>(num_experts, d_model, 1), {.top_k = 2}),
        ExpertParallel(local_group<Bank>(d_model, placement.experts_of(test::rank_of(comm))), placement, comm));
  }

 public:
  Training(const Place& place, MPI_Comm comm)
      : layer_(make_layer(place, comm)), gradient_(zeros_like(layer_)), optimiser_(parameters(layer_)) {}

  /// Gradients depend on the step and on the parameter's name, so that they are alike wherever it lives.
  void run(unsigned first, unsigned last) {
    for (unsigned step = first; step < last; ++step) {
      for (auto& gradient : parameters(gradient_)) {
        gradient.matrix() =
            random_weight<float>(gradient.rows, gradient.cols, std::hash<std::string>()(gradient.name) + step);
      }
      optimiser_.step(parameters(gradient_));
    }
  }

  std::vector<Parameter<float>> state() {
    auto all = parameters(layer_);
    for (auto& parameter : optimiser_.state()) all.push_back(parameter);
    return all;
  }

 private:
  decltype(make_layer(place_in_blocks, MPI_COMM_SELF)) layer_, gradient_;
  Optimiser optimiser_;
};

std::vector<std::string> names_of(const std::vector<Parameter<float>>& parameters) {
  std::vector<std::string> names;
  for (const auto& parameter : parameters) names.push_back(parameter.name);
  return names;
}

void expect_same(const std::vector<Parameter<float>>& some, const std::vector<Parameter<float>>& all) {
  for (const auto& parameter : some) {
    const auto whole = std::ranges::find(all, parameter.name, &Parameter<float>::name);
    ASSERT_NE(whole, all.end()) << parameter.name;
    EXPECT_TRUE(same_bits(parameter.matrix(), whole->matrix())) << parameter.name;
  }
}

// ---- names ----------------------------------------------------------------------------------------------------------

std::vector<std::string> gate_names(const std::vector<Index>& experts) {
  std::vector<std::string> names;
  for (const Index e : experts) names.push_back("experts." + std::to_string(e) + ".gate_proj.weight");
  return names;
}

TEST(ParametersOfRanks, AreNamedByTheNumbersOfAllExperts) {
  for (const auto& [name, place] : placements) {
    const Placement placement = place(num_experts, num_ranks());
    Training<Sgd<float>> training(place, MPI_COMM_WORLD);
    std::vector<std::string> gates;
    for (const std::string& its : names_of(training.state())) {
      if (its.starts_with("experts.") && its.ends_with("gate_proj.weight")) gates.push_back(its);
    }
    EXPECT_EQ(gates, gate_names(placement.experts_of(my_rank()))) << name;
  }
}

TEST(ParametersOfRanks, AreNumberedThroughGroupsWithinGroups) {
  const auto bank = [](Index experts) { return random_bank<float>(experts, d_model, 3, 1); };
  const Index ranks = num_ranks(), rank = my_rank();
  // Two experts on every rank, in groups of one each; behind one that all ranks have.
  JoinedExperts group(bank(1),
                      ExpertParallel(JoinedExperts(bank(1), bank(1)), dealt(2 * ranks, int(ranks)), MPI_COMM_WORLD));
  std::vector<Parameter<float>> found;
  ParameterVisitor<float> visit(found);
  visit.in("experts", group);
  std::vector<std::string> gates;
  for (const auto& parameter : found) {
    if (parameter.name.ends_with("gate_proj.weight")) gates.push_back(parameter.name);
  }
  EXPECT_EQ(gates, gate_names({0, 1 + (ranks - 1 - rank), 1 + (ranks - 1 - rank) + ranks}));
}

// ---- saving ---------------------------------------------------------------------------------------------------------

template <class Optimiser>
class Resuming : public testing::Test {};
using Optimisers = testing::Types<AdamW<float>, Sgd<float>>;
TYPED_TEST_SUITE(Resuming, Optimisers);

TYPED_TEST(Resuming, OnAnyOtherNumberOfRanksGoesOnBitForBit) {
  const SharedFolder folder("resume");
  Training<TypeParam> whole(place_in_blocks, MPI_COMM_SELF), half(place_in_blocks, MPI_COMM_SELF);
  whole.run(0, 6);
  half.run(0, 3);
  for (const int ranks_before : numbers_of_ranks()) {
    for (const auto& before_as : placements) {
      SCOPED_TRACE(std::to_string(ranks_before) + " ranks, " + before_as.first);
      on_first_ranks(ranks_before, [&](MPI_Comm comm) {
        Training<TypeParam> before(before_as.second, comm);
        before.run(0, 3);
        save_parameters(folder.path, before.state(), comm, {{"step", "3"}});
      });
      for (const int ranks_after : numbers_of_ranks()) {
        SCOPED_TRACE("then " + std::to_string(ranks_after));
        on_first_ranks(ranks_after, [&](MPI_Comm comm) {
          Training<TypeParam> after(before_as.first == "copied" ? dealt : copied, comm);
          set_to_zero(after.state());
          load_parameters(folder.path, after.state(), comm);
          expect_same(after.state(), half.state());
          after.run(3, 6);
          expect_same(after.state(), whole.state());
        });
      }
    }
  }
}

TEST(SaveParameters, IsOneCheckpointToOneProcess) {
  for (const auto& [name, place] : placements) {
    const SharedFolder folder("one");
    Training<AdamW<float>> training(place, MPI_COMM_WORLD), whole(place_in_blocks, MPI_COMM_SELF);
    training.run(0, 2);
    whole.run(0, 2);
    save_parameters(folder.path / "deeper", training.state(), MPI_COMM_WORLD, {{"format", "pt"}});

    const auto tensors = io::Tensors::open(folder.path / "deeper");
    auto expected = names_of(whole.state());
    std::ranges::sort(expected);
    EXPECT_EQ(tensors.names(), expected);
    EXPECT_EQ(tensors.metadata(), io::Metadata({{"format", "pt"}}));

    Training<AdamW<float>> read(place_in_blocks, MPI_COMM_SELF);
    set_to_zero(read.state());
    io::load_parameters(folder.path / "deeper", read.state());
    expect_same(read.state(), whole.state());
  }
}

TEST(SaveParameters, WritesEachOnceByTheLowestRankThatHasIt) {
  const SharedFolder folder("once");
  const Placement placement = copied(num_experts, num_ranks());
  Training<AdamW<float>> training(copied, MPI_COMM_WORLD);
  save_parameters(folder.path, training.state(), MPI_COMM_WORLD);

  std::set<int> writers = {0};
  for (const auto& ranks : placement.ranks_of) writers.insert(ranks.front());
  std::map<std::string, std::string> shard_of;
  for (const std::string& name : io::Tensors::open(folder.path).names()) {
    const std::size_t at = name.find("experts.");
    const Index expert = at == name.npos ? -1 : std::stol(name.substr(at + 8));
    const int writer = expert < 0 ? 0 : placement.ranks_of[std::size_t(expert)].front();
    const Index number = 1 + std::distance(writers.begin(), writers.find(writer));
    shard_of[name] = io::shard_name(1, number, std::ssize(writers));
  }
  const auto index = io::read_json(folder.path / "model.safetensors.index.json");
  EXPECT_EQ(index["weight_map"], nlohmann::json(shard_of));

  std::size_t tensors = 0, bytes = 0;
  for (const std::string& file : folder.files()) {
    if (!file.ends_with(".safetensors")) continue;
    for (const auto& tensor : io::read_safetensors(folder.path / file).tensors) {
      ++tensors;
      bytes += tensor.bytes.size();
      EXPECT_EQ(shard_of[tensor.name], file);
    }
  }
  EXPECT_EQ(tensors, shard_of.size());
  EXPECT_EQ(index["metadata"]["total_size"], bytes);
}

TEST(SaveParameters, TakesThePlaceOfTheSaveBeforeAndOfWhatACrashLeft) {
  const SharedFolder folder("again");
  Training<Sgd<float>> training(dealt, MPI_COMM_WORLD), read(dealt, MPI_COMM_WORLD);
  save_parameters(folder.path, training.state(), MPI_COMM_WORLD);
  const std::set<std::string> first = folder.files();
  const std::set<std::string> others = {"model-00001-of-00002.safetensors", "model-1-best.safetensors", "notes.txt"};
  if (my_rank() == 0) {
    for (const std::string& name : others) std::ofstream(folder.path / name) << "somebody else's";
    std::ofstream(folder.path / "model-41-00002-of-00003.safetensors") << "half";
    std::ofstream(folder.path / "model-7-00002-of-00003.safetensors.tmp0") << "half";
  }
  wait_for_all();
  training.run(0, 1);
  save_parameters(folder.path, training.state(), MPI_COMM_WORLD);
  std::set<std::string> expected = others;
  for (std::string name : first) {
    expected.insert(name.starts_with("model-1-") ? name.replace(6, 1, "42") : name);
  }
  EXPECT_EQ(folder.files(), expected);
  load_parameters(folder.path, read.state(), MPI_COMM_WORLD);
  expect_same(read.state(), training.state());
}

TEST(SaveParameters, OfNothingIsACheckpointOfNothing) {
  const SharedFolder folder("nothing");
  const std::vector<Parameter<float>> none;
  save_parameters(folder.path, none, MPI_COMM_WORLD);
  EXPECT_TRUE(io::Tensors::open(folder.path).names().empty());
  load_parameters(folder.path, none, MPI_COMM_WORLD);
}

// ---- what goes wrong on one rank ------------------------------------------------------------------------------------

/// While it lives, the file system takes a thousand bytes from this process, then no more.
class FullDisk {
 public:
  FullDisk() {
    getrlimit(RLIMIT_FSIZE, &was_);
    const rlimit tight{1000, was_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &tight);
  }
  ~FullDisk() {
    setrlimit(RLIMIT_FSIZE, &was_);
    std::signal(SIGXFSZ, handler_);
  }
  FullDisk(const FullDisk&) = delete;
  FullDisk& operator=(const FullDisk&) = delete;

 private:
  void (*handler_)(int) = std::signal(SIGXFSZ, SIG_IGN);
  rlimit was_{};
};

TEST(SaveParameters, LeavesTheSaveBeforeWholeWhenOneRankFails) {
  const SharedFolder folder("full_disk");
  Training<AdamW<float>> training(place_in_blocks, MPI_COMM_WORLD), read(place_in_blocks, MPI_COMM_WORLD),
      before(place_in_blocks, MPI_COMM_WORLD);
  save_parameters(folder.path, training.state(), MPI_COMM_WORLD);
  const std::set<std::string> files = folder.files();
  training.run(0, 1);
  for (int full = 0; full < num_ranks(); ++full) {
    const std::string error = error_of<std::runtime_error>([&] {
      if (my_rank() != full) return save_parameters(folder.path, training.state(), MPI_COMM_WORLD);
      const FullDisk disk;
      save_parameters(folder.path, training.state(), MPI_COMM_WORLD);
    });
    EXPECT_EQ(error, told_by(full, (folder.path / io::shard_name(2, full + 1, num_ranks())).string() +
                                       ": cannot be written: File too large"));
    EXPECT_EQ(folder.files(), files);
    load_parameters(folder.path, read.state(), MPI_COMM_WORLD);
    expect_same(read.state(), before.state());
  }
}

TEST(SaveParameters, LeavesNothingWhenTheIndexCannotBeWritten) {
  const SharedFolder folder("no_index");
  Training<Sgd<float>> training(place_in_blocks, MPI_COMM_WORLD);
  const fs::path index = folder.path / "model.safetensors.index.json";
  if (my_rank() == 0) fs::create_directories(index / "somebody's");
  wait_for_all();
  const std::string error =
      error_of<std::runtime_error>([&] { save_parameters(folder.path, training.state(), MPI_COMM_WORLD); });
  EXPECT_TRUE(error.starts_with(told_by(0, index.string() + ": cannot be written: "))) << error;
  EXPECT_EQ(folder.files(), std::set<std::string>{"model.safetensors.index.json"});

  const std::string no_folder =
      error_of<std::runtime_error>([&] { save_parameters("/dev/null/folder", training.state(), MPI_COMM_WORLD); });
  EXPECT_TRUE(no_folder.starts_with(told_by(0, "/dev/null/folder: cannot be made: "))) << no_folder;
}

TEST(SaveParameters, OnAllRanksTellsThatTheyDoNotSeeTheSameFolder) {
  const SharedFolder folder("folders");
  Training<Sgd<float>> training(place_in_blocks, MPI_COMM_WORLD);
  const fs::path own = folder.path / std::to_string(my_rank());
  fs::create_directories(own);
  const std::string second = io::shard_name(1, 2, num_ranks());
  EXPECT_EQ(error_of<std::runtime_error>([&] { save_parameters(own, training.state(), MPI_COMM_WORLD); }),
            num_ranks() == 1
                ? "no error"
                : told_by(0, (folder.path / "0" / second).string() +
                                 ": no such file: was it written to a folder of the same name elsewhere?"));
}

TEST(SaveParameters, OnAllRanksTellsWhoDisagreesOnAShape) {
  const SharedFolder folder("shapes");
  Weight<float> weight = Weight<float>::Zero(2, my_rank() == 0 ? 3 : 4);
  std::vector<Parameter<float>> parameters = {{"router.weight", weight.data(), weight.rows(), weight.cols()}};
  const auto save = [&] { save_parameters(folder.path, parameters, MPI_COMM_WORLD); };
  std::string others = num_ranks() == 2 ? "rank 1" : "ranks 1";
  for (int rank = 2; rank < num_ranks(); ++rank) others += ", " + std::to_string(rank);
  EXPECT_EQ(error_of(save),
            num_ranks() == 1
                ? "no error"
                : "save_parameters: ranks disagree on router.weight: F32 [2, 3] on rank 0; F32 [2, 4] on " + others);
  parameters.front().name = "of rank " + std::to_string(my_rank());
  if (my_rank() == num_ranks() - 1) parameters.push_back(parameters.front());
  const std::string last = std::to_string(num_ranks() - 1);
  EXPECT_EQ(error_of(save), "save_parameters: rank " + last + " has two parameters called of rank " + last);
}

TEST(LoadParameters, WritesNothingOnAnyRankWhenOneLacksSomething) {
  const SharedFolder folder("lacks");
  Training<Sgd<float>> training(place_in_blocks, MPI_COMM_WORLD), read(dealt, MPI_COMM_WORLD);
  save_parameters(folder.path, training.state(), MPI_COMM_WORLD);
  const int last = num_ranks() - 1;
  set_to_zero(read.state());
  auto state = read.state();
  Weight<float> more = Weight<float>::Zero(2, 2);
  if (my_rank() == last) state.push_back({"gate.bias", more.data(), 2, 2});
  const auto load = [&] { load_parameters(folder.path, state, MPI_COMM_WORLD); };
  const std::string missing = error_of<std::runtime_error>(load);
  EXPECT_TRUE(missing.starts_with(
      told_by(last, (folder.path / "model.safetensors.index.json").string() + ": no tensor \"gate.bias\" among ")))
      << missing;
  if (my_rank() == last) state.back() = {"gate.weight", more.data(), 2, 2};
  const std::string shape = error_of<std::runtime_error>(load);
  EXPECT_NE(shape.find("has shape [9, 5], expected [2, 2]"), shape.npos) << shape;
  for (const auto& parameter : read.state()) EXPECT_TRUE((parameter.array() == 0).all()) << parameter.name;
}

}  // namespace
}  // namespace moe::distributed
