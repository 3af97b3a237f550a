// Runs the parts FIRST and SECOND of one program, and says what each ran on.
#include <cmath>
#include <cstdio>
#include <initializer_list>

#include "part.hpp"

int main() {
  const Ran first = FIRST(), second = SECOND(), again = FIRST();
  for (const Ran& ran : {first, second, again}) {
    std::printf("%s, %d lanes, %d workers\n", ran.target, ran.lanes, ran.workers);
    if (!(std::abs(ran.sum - first.sum) <= 1e-4 * std::abs(first.sum)) || !(ran.sum > 0)) {
      std::printf("sum %.9g, expected %.9g\n", ran.sum, first.sum);
      return 1;
    }
  }
}
