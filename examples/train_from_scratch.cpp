// A byte-level language model from scratch: embeddings, a sparse layer, a softmax. Saved half-way, and resumed.
#include <moe/io/parameters.hpp>
#include <moe/moe.hpp>
#include <moe/train.hpp>

#include <filesystem>
#include <fstream>
#include <iostream>
using namespace moe;
constexpr Index history = 8, per_byte = 8, d_model = history * per_byte, tokens = 128, steps = 200;

struct Model {  // logits of a byte = W_out · (x + layer(x)), where x is the embeddings of the bytes before it
  using Scalar = float;
  Weight<float> embedding = random_weight<float>(256, per_byte, 1), out = random_weight<float>(256, d_model, 2);
  MoeLayer<LinearTopK<float>, GatedFfnBank<float>> layer{
      {random_weight<float>(8, d_model, 3), {.top_k = 2, .renormalize = true}}, random_bank<float>(8, d_model, 64, 4)};
  void visit_parameters(auto& visit) { visit("embedding", embedding), visit("out", out), visit.in("moe", layer); }
};

struct Training {
  Model model, gradient = zeros_like(model);
  AdamW<float> adam{parameters(model), {}, {{.patterns = {"embedding"}, .weight_decay = 0}}};
  decltype(tape_of(model.layer)) tape = tape_of(model.layer);

  float step(const std::string& text, Index number) {  // on places by chance; returns bits per byte
    Matrix<float> x(d_model, tokens), y(d_model, tokens);
    const auto byte = [&](Index t, Index k) {
      const Index place = random_below(Index(text.size()) - history, 5, std::uint64_t(number * tokens + t));
      return Index(static_cast<unsigned char>(text[std::size_t(place + k)]));
    };
    for (Index i = 0; i < tokens * history; ++i) {
      x.reshaped(per_byte, tokens * history).col(i) = model.embedding.row(byte(i / history, i % history));
    }
    forward(model.layer, x, y, tape);
    Matrix<float> hidden = x + y, d_logits = model.out * hidden;  // softmax − what came
    for (auto token : d_logits.colwise()) softmax(token, token);
    float bits = 0;
    for (Index t = 0; t < tokens; ++t) bits -= std::log2(d_logits(byte(t, history), t)--) / float(tokens);
    d_logits /= float(tokens);
    const Matrix<float> d_hidden = model.out.transpose() * d_logits;
    Matrix<float> d_x = d_hidden;

    gradient.out += d_logits * hidden.transpose();
    const auto shares = measure_shares(tape.ws.routing, tokens, 8);  // keeps experts equally busy
    add_load_balancing_gradient<float>(tape.ws.routing, {}, shares, 0.01, tape.logit_gradient());
    backward(model.layer, x, d_hidden, tape, d_x, gradient.layer);
    for (Index i = 0; i < tokens * history; ++i) {
      gradient.embedding.row(byte(i / history, i % history)) += d_x.reshaped(per_byte, tokens * history).col(i);
    }
    adam.options().learning_rate = 0.01 * WarmUpCosine{.warm_up = 20, .steps = steps}(number);
    adam.take(parameters(gradient), {.max_norm = 1.0});  // and leaves zeros
    return bits;
  }
  std::vector<Parameter<float>> state() {
    auto all = parameters(model);
    for (const auto& memory : adam.state()) all.push_back(memory);
    return all;
  }
};

int main() {
  std::ifstream file("LICENSE");  // a text that stays
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  Training training, resumed;
  for (Index step = 0; step < steps / 2; ++step) training.step(text, step);
  const auto saved = std::filesystem::temp_directory_path() / "eigen_moe_train_from_scratch.safetensors";
  io::save_parameters(saved, training.state());
  io::load_parameters(saved, resumed.state());
  std::filesystem::remove(saved);
  float bits = 8, same = 8;
  for (Index step = steps / 2; step < steps; ++step) bits = training.step(text, step), same = resumed.step(text, step);
  std::cout << (bits < 3 ? "Less" : "More") << " than 3 bits per byte; resumed, it learns "
            << (same == bits ? "the same to the last bit" : "something else") << ".\n";
}

/* Output:
Less than 3 bits per byte; resumed, it learns the same to the last bit.
*/
