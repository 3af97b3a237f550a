// What a user's first program needs: the library's one door, for the machine that the compiler takes by default.
#include <iostream>

#include <moe/check.hpp>
#include <moe/types.hpp>

int main() {
  const moe::Matrix<float> tokens = moe::Matrix<float>::Ones(4, 3);
  moe::require_equal(tokens.rows(), 4, "tokens.rows()");
  std::cout << "consumed\n";
}
