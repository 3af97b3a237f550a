#!/bin/sh
# What it costs to compile a program of README's: user seconds, peak memory, and how many times <Eigen/Core> alone.
#   scripts/bench_compile.sh [ROUNDS] [PATTERN]     # 3 rounds of all rows; or of those whose name matches
# One round compiles each row once, after <Eigen/Core>; printed are medians over rounds, and the median of the rounds'
# ratios. The environment may set CXX and FLAGS. Nothing else should run meanwhile.
set -eu
. "$(dirname -- "$0")/setup.sh"
set_up bench_compile compiler eigen3 nlohmann_json
rounds=${1:-3} pattern=${2:-.}
flags=${FLAGS--march=native -fopenmp}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for prefix in /usr/local /usr /opt/homebrew; do
  if [ -e $prefix/include/eigen3/Eigen/Core ]; then eigen=$prefix/include/eigen3; break; fi
done
include="-I $moe_root/include -isystem $eigen"

# measure COMMAND… prints its user seconds and the peak of its largest process in MB.
cat >"$folder/measure.cpp" <<'END'
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cstdio>
int main(int, char** argv) {
  const pid_t child = fork();
  if (child == 0) return execvp(argv[1], argv + 1);
  int status = 0;
  rusage used{};
  wait4(child, &status, 0, &used);
  std::printf("%.2f %.0f\n", double(used.ru_utime.tv_sec) + 1e-6 * double(used.ru_utime.tv_usec), double(used.ru_maxrss) / 1024);
  return status != 0;
}
END
"$CXX" -O1 "$folder/measure.cpp" -o "$folder/measure"

# The first C++ block of README that has this line.
block_with() {
  awk -v line="$1" '/^```cpp$/ { inside = 1; code = ""; next }
                    /^```$/ { if (inside && index(code, line)) { printf "%s", code; exit } inside = 0 }
                    inside { code = code $0 "\n" }' "$moe_root/README.md"
}
echo '#include <Eigen/Core>' >"$folder/eigen.cpp"
echo '#include <moe/moe.hpp>' >"$folder/door.cpp"
block_with '#include <moe/moe.hpp>' >"$folder/first.cpp"
block_with '#include <moe/io/checkpoint.hpp>' >"$folder/checkpoint.cpp"
for program in first checkpoint; do grep -q 'int main' "$folder/$program.cpp"; done

# row             file        what is defined for it
rows='
Eigen/Core        eigen       -
moe/moe.hpp       door        -
first             first       -
checkpoint        checkpoint  -
checkpoint/moe_io checkpoint  MOE_IO_COMPILED
'
for round in $(seq "$rounds"); do
  printf '%s ' "$round" >&2
  for level in -O0 -O2; do
    while read -r row file defined; do
      case $row in '') continue ;; Eigen/Core) ;; *) printf %s "$row" | grep -q -e "$pattern" || continue ;; esac
      [ "$defined" = - ] && defined='' || defined="-D$defined"
      # shellcheck disable=SC2086  # lists of words
      echo "$level $row $("$folder/measure" "$CXX" -std=c++20 $level $flags $defined $include -c "$folder/$file.cpp" -o "$folder/out.o")" |
        tee -a "$folder/results"
    done <<END
$rows
END
  done >"$folder/log"
done
echo >&2

echo "$("$CXX" --version | head -n 1), -std=c++20 $flags; medians of $rounds"
awk '
  function median(list, parts, n, i, j, x) {
    n = split(list, parts, " ")
    for (i = 2; i <= n; ++i) for (j = i; j > 1 && parts[j] + 0 < parts[j - 1] + 0; --j) {
      x = parts[j]; parts[j] = parts[j - 1]; parts[j - 1] = x
    }
    return n % 2 ? parts[(n + 1) / 2] : (parts[n / 2] + parts[n / 2 + 1]) / 2
  }
  $2 == "Eigen/Core" { one = $3 }
  {
    key = $2 " " $1
    if (!(key in seconds)) order[++count] = key
    seconds[key] = seconds[key] " " $3; memory[key] = memory[key] " " $4; ratio[key] = ratio[key] " " $3 / one
  }
  END {
    printf "%-20s %-4s %8s %8s %12s\n", "", "", "user s", "peak MB", "x Eigen/Core"
    for (i = 1; i <= count; ++i) {
      split(order[i], part, " ")
      printf "%-20s %-4s %8.2f %8.0f %12.2f\n", part[1], part[2], median(seconds[order[i]]), median(memory[order[i]]), median(ratio[order[i]])
    }
  }' "$folder/results"
