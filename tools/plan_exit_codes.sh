#!/bin/sh
# plan_exit_codes.sh MOE_PLAN: what it prints where, and how it ends: 0, or 2 and nothing on stdout.
set -eu
program=$1
folder=$(mktemp -d)
out=$folder/stdout err=$folder/stderr
trap 'rm -rf "$folder"' EXIT

# expect CODE TEXT ARGUMENT…: ends so, with this text on stdout if the code is 0, else on stderr; nothing on the other.
expect() {
  code=$1 text=$2 status=0
  shift 2
  "$program" "$@" >"$out" 2>"$err" || status=$?
  said=$out silent=$err
  if [ "$code" != 0 ]; then said=$err silent=$out; fi
  if [ "$status" != "$code" ] || ! grep -qF -- "$text" "$said" || [ -s "$silent" ]; then
    echo "moe_plan $*: ended with $status, expected $code and \"$text\" on one stream and nothing on the other"
    cat "$out" "$err"
    exit 1
  fi
}

model=tests/real/qwen3_moe_steps  # layers 1 and 3 are sparse: 8 experts, top-2
routes=$folder/routes.csv counts=$folder/counts.csv
{
  echo token,layer,expert
  token=0
  while [ $token -lt 40 ]; do
    for layer in 1 3; do
      echo "$token,$layer,$((token % 5))"
      echo "$token,$layer,7"
    done
    token=$((token + 1))
  done
} >"$routes"
printf 'layer,expert,count\n1,0,5\n1,2,3\n3,1,4\n3,4,4\n3,6,1\n' >"$counts"
fast="--disk 2.5GB/s --compute 20GB"

# $fast is several words
# shellcheck disable=SC2086
{
  expect 0 'Exit code: 0; 2 for wrong usage' --help
  expect 0 '2 layers, 40 tokens, of which the first 8 fill the memory' "$routes" $model $fast
  expect 0 'tokens a second: █ decayed counts, · up to MIN' "$routes" $model $fast --besides 2ms
  # 5 of 6 experts that a layer names take turns, and LRU evicts each before it is used again; the seventh always hits
  expect 0 'LRU              50.0 %' "$routes" --expert-bytes 1MB --experts 8 $fast --memory 8MB
  expect 0 'MIN             100.0 %' "$routes" --expert-bytes 1MB --experts 8 $fast --memory 75%
  expect 0 '"policy": "decayed counts"' --json "$routes" $model $fast --memory 100%
  expect 0 '2 layers, 30 tokens' "$counts" $model $fast --tokens 30
  expect 0 '2 layers, 512 tokens' "$counts" --expert-bytes 1kB $fast --top-k 1
  expect 2 'got 1 files, expected TRACE and MODEL' "$routes"
  expect 2 'got 2 files, expected TRACE alone' "$routes" $model --expert-bytes 1MB
  expect 2 'no option is called "--dsk", expected --expert-bytes, ' "$routes" $model --dsk 1GB
  expect 2 '--disk is the last word' "$routes" $model --disk
  expect 2 '--disk is "2.5", expected bytes, as 9.4MB or 2.5GB/s' "$routes" $model --disk 2.5
  expect 2 '--memory is "lots", expected bytes or a share' "$routes" $model $fast --memory lots
  expect 2 'expected at least 8' "$routes" --expert-bytes 1MB --experts 7 $fast
  expect 2 '--memory is "1B", expected at least' "$routes" $model $fast --memory 1B
  expect 2 '--tokens is "0", expected a number from 1' "$routes" $model --tokens 0
  expect 2 '--measure runs a model'"'"'s experts, expected TRACE and MODEL' "$routes" --expert-bytes 1MB $fast --measure
  # what was planned is what comes of it; a budget below a walk is refused in its line
  expect 0 '105 kB             64           64   exactly' "$routes" $model $fast --memory 40%,100% --measure
  expect 0 'expected at least 65536, which is what one token uses' "$routes" $model $fast --memory 40kB --measure
  expect 0 '"measured": [' "$routes" $model --disk 2.5GB/s --memory 40kB,50% --threads 1 --measure --json
  expect 2 'without MODEL there is no disk to measure' "$routes" --expert-bytes 1MB
  expect 2 'bytes are too few to measure a disk' "$routes" $model
  printf 'token,layer,expert\n0,1,0\n' >"$folder/one.csv"
  expect 2 'one.csv: has 1 layers, expected 2, the MoE layers of tests/real/mixtral' "$folder/one.csv" tests/real/mixtral $fast
  expect 2 'has counts alone, and top_k is 0' "$counts" --expert-bytes 1kB $fast
  expect 2 'no such file' "$folder/none.csv" $model
  expect 2 'no such file' "$routes" no_such_folder
  echo "0,1,9x" >>"$routes"
  expect 2 'routes.csv:162: expert is "9x", expected a number from 0 to 16383' "$routes" $model $fast
}
if [ -w /dev/full ]; then
  status=0
  "$program" --json "$counts" $model --disk 1GB --compute 1GB >/dev/full 2>"$err" || status=$?
  [ "$status" = 2 ] && grep -q 'cannot be written' "$err"
fi
