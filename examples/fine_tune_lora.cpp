// LoRA: adapters learn beside a router and 16-bit experts that stay as they are, go to a file, and are merged.
#include <moe/io/adapters.hpp>
#include <moe/moe.hpp>
#include <moe/train.hpp>

#include <cstdio>
#include <filesystem>

int main() {
  const moe::Index d_model = 16, d_ff = 32, num_experts = 8, tokens = 128;
  const moe::LinearTopK<float> router(moe::random_weight<float>(num_experts, d_model, 1), {.top_k = 2});
  const auto bank = moe::random_bank<moe::bfloat16>(num_experts, d_model, d_ff, 2);  // or of a mapped file
  moe::MoeLayer layer(moe::with_lora(router, {.rank = 2}), moe::with_lora(bank, {.rank = 4}));
  const auto before = layer;

  const std::string report = moe::training_report(layer);  // a line for each parameter, and the totals
  std::printf("%s", report.substr(report.rfind('\n', report.size() - 2) + 1).c_str());

  auto gradient = moe::zeros_like(layer);  // of the adapters alone
  auto tape = moe::tape_of(layer);
  moe::AdamW<float> adam(moe::parameters(layer), {.learning_rate = 5e-3, .weight_decay = 0});
  moe::Matrix<float> y(d_model, tokens), d_x(d_model, tokens);
  for (unsigned step = 0; step < 500; ++step) {  // learns y = −x
    const auto x = moe::random_tokens<float>(d_model, tokens, 100 + step);
    moe::forward(layer, x, y, tape);
    moe::set_to_zero(moe::parameters(gradient)), d_x.setZero();
    moe::backward(layer, x, (y + x) / float(tokens), tape, d_x, gradient);
    adam.step(moe::parameters(gradient));
  }

  const auto folder = std::filesystem::temp_directory_path() / "moe_fine_tune_lora";
  std::filesystem::create_directories(folder);
  moe::io::save_adapters(folder, moe::named_adapters("model.layers.0.mlp", layer));  // as PEFT names them
  auto read = before;
  moe::io::load_adapters(folder, moe::named_adapters("model.layers.0.mlp", read));
  std::filesystem::remove_all(folder);

  const auto x = moe::random_tokens<float>(d_model, tokens, 99);
  const auto say = [&](const char* which, const auto& of) {
    const float share = (of.forward(x) + x).squaredNorm() / (before.forward(x) + x).squaredNorm();
    std::printf("%s: the error is %s 40 %% of what it was\n", which, share < 0.4f ? "less than" : "above");
  };
  say("before", before);
  say("with adapters", layer);
  say("read from the file", read);
  say("merged into the weights", moe::merged(read));
}

/* Output:
50 of 75 parameters learn, 4656 of 17072 numbers
before: the error is above 40 % of what it was
with adapters: the error is less than 40 % of what it was
read from the file: the error is less than 40 % of what it was
merged into the weights: the error is less than 40 % of what it was
*/
