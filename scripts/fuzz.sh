#!/bin/sh
# Fuzzes what reads files: configs with tensors, adapters, whole models, GGUF, one after the other, under AddressSanitizer and
# UndefinedBehaviorSanitizer. They begin with the models and adapters below tests/.
#   scripts/fuzz.sh               an hour, a quarter of it each
#   scripts/fuzz.sh 60 layer      a minute of one: layer, adapters, model or gguf
# What is found is left in build/fuzz/found/; build/fuzz/bin/fuzz_NAME FILE runs it again, and its text is a test's.
set -eu
. "$(dirname -- "$0")/setup.sh"

seconds=${1:-3600}
case $seconds in '' | *[!0-9]* | 0) say "usage: scripts/fuzz.sh [SECONDS [layer|adapters|model|gguf]…]"; exit 2 ;; esac
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- layer adapters model gguf

set_up fuzz cmake make eigen3 nlohmann_json googletest
command -v clang++ >/dev/null || give_up "clang++, whose libFuzzer this is. Install with: apt-get install clang"
# shellcheck disable=SC2046  # words
(build fuzz make_corpus $(printf "fuzz_%s " "$@"))
cd "$moe_root/build/fuzz"
mkdir -p found
bin/make_corpus seeds "$moe_root/tests"

for target in "$@"; do
  # Large inputs are slow ones; what is grown stays in corpus/ for the next time.
  mkdir -p "corpus/$target" "seeds/$target"
  printf '== %s, %d seconds\n' "$target" $((seconds / $#))
  UBSAN_OPTIONS=print_stacktrace=1 "bin/fuzz_$target" "corpus/$target" "seeds/$target" -dict=seeds/words.dict \
    -artifact_prefix="found/$target-" -max_total_time=$((seconds / $#)) -timeout=20 -rss_limit_mb=3000 \
    -max_len=40000 -print_final_stats=1 -verbosity=0
done
