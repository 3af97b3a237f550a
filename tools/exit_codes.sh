#!/bin/sh
# exit_codes.sh MOE_INSPECT: what it prints where, and how it ends: 0, 1 if something would be refused, 2 if it cannot tell.
set -eu
program=$1
out=$(mktemp) err=$(mktemp)
trap 'rm -f "$out" "$err"' EXIT

# expect CODE TEXT ARGUMENT…: ends so, with this text in its output, which is on stderr if and only if the code is 2.
expect() {
  code=$1 text=$2 status=0
  shift 2
  "$program" "$@" >"$out" 2>"$err" || status=$?
  if [ "$status" != "$code" ]; then
    echo "moe_inspect $*: ended with $status, expected $code"
    cat "$out" "$err"
    exit 1
  fi
  said=$out silent=$err
  if [ "$code" = 2 ]; then said=$err silent=$out; fi
  if ! grep -qF -- "$text" "$said" || [ -s "$silent" ]; then
    echo "moe_inspect $*: expected \"$text\" on one stream and nothing on the other"
    cat "$out" "$err"
    exit 1
  fi
}

expect 0 'model.layers.1.mlp, 3  (2 alike)' tests/real/qwen3_moe_steps
expect 0 '"model_type": "qwen3_moe"' --json tests/real/qwen3_moe_steps
expect 0 'renormalised' --hub-code tests/real/deepseek_v2_norm
expect 0 'qwen3_moe' --types
expect 0 'Exit code: 0; 1 if something would be refused' --help
expect 1 'REFUSED' tests/real/doge
expect 1 '"refuses": true' tests/real/doge --json
expect 2 'expected a model'"'"'s folder' # nothing
expect 2 'no option is called "--jsn"' --jsn tests/real/doge
expect 2 'expected one folder' tests/real/doge tests/real/mixtral
expect 2 'FOLDER is empty' ''
expect 2 'no_such_folder/config.json: no such file' no_such_folder
expect 2 'is a file, expected the folder' tests/real/mixtral/config.json
if [ -w /dev/full ]; then
  status=0
  "$program" tests/real/mixtral >/dev/full 2>"$err" || status=$?
  [ "$status" = 2 ] && grep -q 'cannot be written' "$err"
fi
