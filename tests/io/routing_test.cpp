#include "moe/io/routing.hpp"

#include <gtest/gtest.h>

#include "errors.hpp"
#include "temporary_folder.hpp"

namespace moe::io {

Routing<float> some_routes() {
  Routing<float> routing;
  routing.add(0, 3, 0.5F), routing.add(0, 1, 0.25F), routing.add(4, 2, -1);
  return routing;
}

TEST(RoutingFile, ComesBackAsItWas) {
  const test::TemporaryFolder folder("routing");
  const auto file = folder.path / "routes.safetensors";
  for (const bool drops : {false, true}) {
    for (const WeightOn weight_on : {WeightOn::input, WeightOn::output}) {
      Routing<float> routing = some_routes();
      routing.weight_on = weight_on;
      if (drops) routing.drop(1);
      save_routing(file, routing, 5);
      const auto loaded = load_routing<float>(file);
      EXPECT_EQ(loaded.num_tokens, 5);
      EXPECT_EQ(loaded.routing.token, routing.token);
      EXPECT_EQ(loaded.routing.expert, routing.expert);
      EXPECT_EQ(loaded.routing.weight, routing.weight);
      EXPECT_EQ(loaded.routing.dropped, routing.dropped);
      EXPECT_EQ(loaded.routing.weight_on, weight_on);
    }
  }
  save_routing(file, Routing<float>(), 0);
  EXPECT_EQ(load_routing<float>(file).routing.size(), 0);
}

TEST(RoutingFile, SaysWhatIsWrongWithIt) {
  const test::TemporaryFolder folder("routing");
  const auto file = folder.path / "routes.safetensors";
  const auto error = [&] {
    return test::error_of<Error>([&] { load_routing<float>(file); }).substr(file.string().size());
  };
  save_routing(file, some_routes(), 4);
  EXPECT_EQ(error(), ": a route is of token 4, expected 0 to 3");
  save_routing(file, some_routes(), -1);
  EXPECT_EQ(error(), ": num_tokens is \"-1\", expected a number");

  const std::vector<std::int64_t> two{0, 1};
  const std::vector<float> three{1, 1, 1};
  const Tensor expert = make_tensor("expert", {2}, std::span(two)), token = make_tensor("token", {2}, std::span(two));
  write_safetensors(file, {expert, token});
  EXPECT_EQ(error().substr(0, 29), ": no tensor \"weight\" among 2;");
  write_safetensors(file, {expert, token, make_tensor("weight", {3}, std::span(three))});
  EXPECT_EQ(error(), ": tensor \"weight\" has shape [3], expected [2]");
  write_safetensors(file, {expert, token, make_tensor("weight", {2}, std::span(three).first(2))});
  EXPECT_EQ(error(), ": no metadata \"num_tokens\"");
  write_safetensors(file, {expert, token, make_tensor("weight", {2}, std::span(three).first(2))},
                    {{"num_tokens", "2"}, {"weight_on", "both"}});
  EXPECT_EQ(error(), ": weight_on is \"both\", expected input or output");
}

}  // namespace moe::io
