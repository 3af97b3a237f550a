#include "laws/expert_laws.hpp"
#include "laws/experts_laws.hpp"
#include "laws/router_laws.hpp"

#include "laws/executor_laws.hpp"
#include "moe/core/concepts.hpp"
#include "moe/experts/activation.hpp"
#include "moe/experts/any_expert.hpp"
#include "moe/experts/ffn.hpp"
#include "moe/experts/function_expert.hpp"
#include "moe/experts/gated_ffn.hpp"
#include "moe/experts/gated_ffn_bank.hpp"
#include "oracle.hpp"

#include <memory>
#include <utility>
#include <vector>

// Archetypes: they have what a concept asks for and nothing else. What the library uses beyond that does not compile
// here. Near-misses: a single thing is wrong with each, and the concept says so.

namespace moe {

/// What all of them lack: a default, copies, assignment.
struct OnlyMoves {
  OnlyMoves() = delete;
  explicit OnlyMoves(int) {}
  OnlyMoves(OnlyMoves&&) = default;
  OnlyMoves& operator=(OnlyMoves&&) = delete;
};

// ---------------------------------------------------------------------------------------------------- Activation

struct LeastActivation {
  LeastActivation() = default;
  LeastActivation(const LeastActivation&) = default;
  LeastActivation& operator=(const LeastActivation&) = delete;

  template <class X>
  auto operator()(const Eigen::ArrayBase<X>& x) const {
    return x.derived().abs2();
  }
};
static_assert(Activation<LeastActivation, float> && Activation<LeastActivation, double>);
static_assert(GatedActivation<Glu<LeastActivation>, float>);

struct ActivationOfAScalar {
  float operator()(float x) const { return x; }
};
static_assert(!Activation<ActivationOfAScalar, float>);

struct MutableActivation {
  template <class X>
  auto operator()(const Eigen::ArrayBase<X>& x) {
    return x.derived().abs2();
  }
};
static_assert(!Activation<MutableActivation, float>);

static_assert(!Activation<SwiGlu, float>, "of two arguments");
static_assert(!GatedActivation<Silu, float>, "of one argument");
static_assert(!Activation<int, float>);

static_assert(Activation<Silu, float> && Activation<Relu, double> && Activation<Gelu, float> &&
              Activation<GeluTanh, double>);
static_assert(GatedActivation<SwiGlu, float> && GatedActivation<GeGlu, double> && GatedActivation<ReGlu, float>);

// -------------------------------------------------------------------------------------------------------- Expert

struct LeastExpert : OnlyMoves {
  using Scalar = float;
  short width;  // convertible to Index, no more
  float factor;

  LeastExpert(Index d_model, unsigned seed)
      : OnlyMoves(0), width(static_cast<short>(d_model)), factor(1 / static_cast<float>(seed)) {}
  LeastExpert(LeastExpert&&) = default;

  short d_model() const { return width; }
  void forward(const ConstMatrixRef<float>& x, MatrixRef<float> y, Scratch&) const { y = factor * x; }
};
static_assert(Expert<LeastExpert>);

struct MutableExpert : LeastExpert {
  void forward(const ConstMatrixRef<float>& x, MatrixRef<float> y, Scratch&) { y = x; }
};
static_assert(!Expert<MutableExpert>, "one expert, many threads");

struct ExpertWithoutScalar {
  Index d_model() const { return 1; }
  void forward(const ConstMatrixRef<float>& x, MatrixRef<float> y, Scratch&) const { y = x; }
};
static_assert(!Expert<ExpertWithoutScalar>);

struct ExpertWithoutWidth {
  using Scalar = float;
  void forward(const ConstMatrixRef<float>& x, MatrixRef<float> y, Scratch&) const { y = x; }
};
static_assert(!Expert<ExpertWithoutWidth>);

struct ExpertThatReturns {
  using Scalar = float;
  Index d_model() const { return 1; }
  Matrix<float> forward(const ConstMatrixRef<float>& x, MatrixRef<float>, Scratch&) const { return x; }
};
static_assert(!Expert<ExpertThatReturns>, "what it returns nobody would read");

struct ExpertOfAnotherScalar : ExpertWithoutScalar {
  using Scalar = double;
};
static_assert(!Expert<ExpertOfAnotherScalar>, "says double, takes float");

static_assert(Expert<Ffn<float>> && Expert<GatedFfn<bfloat16>> && Expert<AnyExpert<double>>);
static_assert(!std::constructible_from<AnyExpert<double>, Ffn<float>>, "another scalar");
static_assert(std::constructible_from<AnyExpert<float>, Ffn<float16>>, "whose activations are float");

// -------------------------------------------------------------------------------------------------------- Router

struct LeastRouter : OnlyMoves {
  using Scalar = float;
  short width;

  explicit LeastRouter(Index d_model) : OnlyMoves(0), width(static_cast<short>(d_model)) {}
  LeastRouter(LeastRouter&&) = default;

  short d_model() const { return width; }
  short num_experts() const { return 3; }
  void route(const ConstMatrixRef<float>& x, Routing<float>& routing, Workers&) const {
    for (Index t = 0; t < x.cols(); ++t) routing.add(t, x(0, t) > 0 ? 2 : 0, 0.5F);
  }
};
static_assert(Router<LeastRouter>);

struct MutableRouter : LeastRouter {
  void route(const ConstMatrixRef<float>&, Routing<float>&, Workers&) {}
};
static_assert(!Router<MutableRouter>);

struct RouterWithoutNumber {
  using Scalar = float;
  Index d_model() const { return 1; }
  void route(const ConstMatrixRef<float>&, Routing<float>&, Workers&) const {}
};
static_assert(!Router<RouterWithoutNumber>);

struct RouterThatReturns : RouterWithoutNumber {
  Index num_experts() const { return 1; }
  Routing<float> route(const ConstMatrixRef<float>&) const { return {}; }
};
static_assert(!Router<RouterThatReturns>);

struct RouterOfAnotherScalar : RouterWithoutNumber {
  Index num_experts() const { return 1; }
  void route(const ConstMatrixRef<float>&, Routing<double>&, Workers&) const {}
};
static_assert(!Router<RouterOfAnotherScalar>);

static_assert(Router<LinearTopK<float>> && Router<LinearTopK<double>>);

// ------------------------------------------------------------------------------------------------------- Experts

struct LeastExperts : OnlyMoves {
  using Scalar = float;
  short width;
  std::vector<unsigned> seeds;

  LeastExperts(Index d_model, std::vector<unsigned> its_seeds)
      : OnlyMoves(0), width(static_cast<short>(d_model)), seeds(std::move(its_seeds)) {}
  LeastExperts(LeastExperts&&) = default;

  short d_model() const { return width; }
  short num_experts() const { return static_cast<short>(seeds.size()); }
  void apply(const ConstMatrixRef<float>& x, const DispatchPlan<float>& plan, MatrixRef<float> y, Workers&) const {
    for (Index e = 0; e < plan.num_experts(); ++e) {
      for (Index s = plan.first(e); s < plan.first(e) + plan.count(e); ++s) {
        const Index t = plan.token[std::size_t(s)];
        const float share = plan.weight[std::size_t(s)] / static_cast<float>(seeds[std::size_t(e)]);
        y.col(t) += share * x.col(t);  // linear, so that it does not matter where the weight is multiplied in
      }
    }
  }
};
static_assert(Experts<LeastExperts>);

struct MutableExperts : LeastExperts {
  void apply(const ConstMatrixRef<float>&, const DispatchPlan<float>&, MatrixRef<float>, Workers&) {}
};
static_assert(!Experts<MutableExperts>);

struct ExpertsWithoutNumber {
  using Scalar = float;
  Index d_model() const { return 1; }
  void apply(const ConstMatrixRef<float>&, const DispatchPlan<float>&, MatrixRef<float>, Workers&) const {}
};
static_assert(!Experts<ExpertsWithoutNumber>);

static_assert(!Experts<LeastExpert> && !Expert<LeastExperts>, "one is not many");
static_assert(Experts<ExpertList<LeastExpert>> && Experts<GatedFfnBank<float16>> && Experts<FfnBank<float16, Relu>>);

// ------------------------------------------------------------------------------------------------------ Executor

struct LeastExecutor {
  LeastExecutor() = default;
  LeastExecutor(LeastExecutor&&) = delete;  // stays where it is

  short workers() { return 2; }  // may change itself
  void for_each(Index n, const Task& task) {
    for (Index i = n; i-- > 0;) task(i, i % 2);
  }
};
static_assert(Executor<LeastExecutor>);
static_assert(!Executor<const LeastExecutor>);

struct ExecutorWithoutWorkers {
  void for_each(Index, const Task&) const {}
};
static_assert(!Executor<ExecutorWithoutWorkers>);

struct ExecutorOfMutableTasks {
  Index workers() const { return 1; }
  void for_each(Index, Task&) const {}
};
static_assert(!Executor<ExecutorOfMutableTasks>);

static_assert(Executor<Serial> && Executor<const Serial> && Executor<OpenMp> && Executor<ExecutorRef>);
static_assert(!std::constructible_from<ExecutorRef, Matrix<float>&>,
              "layer.forward(x, y) is not layer.forward(x, executor)");

// ------------------------------------------------------------------------------------- and what they are good for

TEST(Archetypes, MakeALayer) {
  const Index d_model = 5;
  std::vector<LeastExpert> experts;
  for (const unsigned seed : {1U, 2U, 4U}) experts.emplace_back(d_model, seed);
  const MoeLayer of_a_list(LeastRouter(d_model), ExpertList(std::move(experts)));
  const MoeLayer of_a_group(LeastRouter(d_model), LeastExperts(d_model, {1, 2, 4}));

  const auto x = test::random_matrix<Matrix<float>>(d_model, 20, 1);
  Matrix<float> expected = x;
  for (Index t = 0; t < x.cols(); ++t) expected.col(t) *= x(0, t) > 0 ? 0.125F : 0.5F;
  LeastExecutor executor;
  EXPECT_TRUE(test::is_close(of_a_list.forward(x), expected));
  EXPECT_TRUE(test::is_close(of_a_list.forward(x, executor), expected));
  EXPECT_TRUE(test::is_close(of_a_group.forward(x, executor), expected));
  EXPECT_TRUE(test::is_close(test::oracle_forward(of_a_list, x), expected));
}

TEST(Archetypes, OfAnActivationMakeFfns) {
  const auto w_in = test::random_matrix<Weight<float>>(6, 5, 1), w_out = test::random_matrix<Weight<float>>(5, 6, 2);
  const Ffn<float, LeastActivation> ffn{.w_in = w_in, .w_out = w_out};
  const GatedFfn<float, Glu<LeastActivation>> gated{.w_gate = w_in, .w_up = w_in, .w_down = w_out};
  for (const Index num_tokens : {1, 20}) {
    const auto x = test::random_matrix<Matrix<float>>(5, num_tokens, 3);
    Matrix<float> y(5, num_tokens);
    Scratch scratch;
    ffn.forward(x, y, scratch);
    EXPECT_TRUE(test::is_close(y, (w_out * (w_in * x).cwiseAbs2()).eval()));
    gated.forward(x, y, scratch);
    EXPECT_TRUE(test::is_close(y, (w_out * (w_in * x).array().cube().matrix()).eval()));
  }
}

}  // namespace moe

// A type of one's own, held to every law in a line each.
namespace moe::laws {

struct LeastExpertsOfSeeds {
  static LeastExperts make(Index d_model, std::span<const unsigned> seeds) {
    return {d_model, std::vector<unsigned>(seeds.begin(), seeds.end())};
  }
};
struct LeastExpertOfSeed {
  struct Shared : std::shared_ptr<const LeastExpert> {  // a list of them is copied
    using Scalar = float;
    Index d_model() const { return (*this)->d_model(); }
    void forward(const ConstMatrixRef<float>& x, MatrixRef<float> y, Scratch& scratch) const {
      (*this)->forward(x, y, scratch);
    }
  };
  static Shared make(Index d_model, unsigned seed) { return {std::make_shared<const LeastExpert>(d_model, seed)}; }
};
struct LeastRouters {
  static LeastRouter make(Index d_model) { return LeastRouter(d_model); }
};
struct LeastExecutors {
  static LeastExecutor make(Index) { return {}; }
};

INSTANTIATE_TYPED_TEST_SUITE_P(Archetype, ExpertLaws, LeastExpertOfSeed);
INSTANTIATE_TYPED_TEST_SUITE_P(Archetype, ExpertsLaws, LeastExpertsOfSeeds);
INSTANTIATE_TYPED_TEST_SUITE_P(Archetype, RouterLaws, LeastRouters);
INSTANTIATE_TYPED_TEST_SUITE_P(Archetype, TokenChoiceLaws, LeastRouters);
INSTANTIATE_TYPED_TEST_SUITE_P(Archetype, ExecutorLaws, LeastExecutors);

}  // namespace moe::laws
