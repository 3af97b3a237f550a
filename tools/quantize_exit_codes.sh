#!/bin/sh
# quantize_exit_codes.sh MOE_QUANTIZE: what it prints where, and how it ends: 0, or 2 and nothing is written.
set -eu
program=$1
folder=$(mktemp -d)
out=$folder/stdout err=$folder/stderr
trap 'rm -rf "$folder"' EXIT
model=tests/golden/glm4_moe  # rows of 16 numbers in experts' down_proj, of 20 elsewhere

# expect CODE TEXT ARGUMENT…: ends so, with this text on stdout if the code is 0, else on stderr, with nothing on stdout.
expect() {
  code=$1 text=$2 status=0
  shift 2
  "$program" "$@" >"$out" 2>"$err" || status=$?
  said=$out
  if [ "$code" != 0 ]; then said=$err; fi
  if [ "$status" != "$code" ] || ! grep -qF -- "$text" "$said" || { [ "$code" != 0 ] && [ -s "$out" ]; }; then
    echo "moe_quantize $*: ended with $status, expected $code and \"$text\""
    cat "$out" "$err"
    exit 1
  fi
}

expect 0 'Exit code: 0; 2 if OUT was not written, or' --help
expect 0 'weights are off by' $model "$folder/a" --type nvfp4 --keep gate_proj --keep up_proj
grep -qF '100 %' "$err"  # a line for each tenth, where no terminal is
[ -f "$folder/a/config.json" ]
expect 0 '"type": "nvfp4"' --json --type nvfp4 $model "$folder/b" --keep gate_proj --keep up_proj
expect 2 'is there already' $model "$folder/a" --type nvfp4 --keep gate_proj --keep up_proj
expect 0 'weights are off by' $model "$folder/a" --type nvfp4 --keep gate_proj --keep up_proj --overwrite
expect 2 'has a quantization_config ("compressed-tensors")' "$folder/a" "$folder/c" --type nvfp4
expect 2 'the length of a row is 20, no multiple of 16, the block of nvfp4' $model "$folder/c" --type nvfp4
expect 2 'no type is called "q9", expected one of fp8, int4_g32' $model "$folder/c" --type q9
expect 2 'no --type, expected one of fp8' $model "$folder/c"
expect 2 '--type is the last word' $model "$folder/c" --type
expect 2 '--keep is followed by nothing' $model "$folder/c" --type fp8 --keep
expect 2 'no option is called "--typ"' $model "$folder/c" --typ fp8
expect 2 'got 1 folders, expected IN and OUT' $model --type fp8
expect 2 'no such file' no_such_folder "$folder/c" --type fp8
expect 2 'type "q4_k" is of GGUF files, and OUT is a folder: expected one of fp8, int4_g32' $model "$folder/c" --type q4_k
[ ! -e "$folder/c" ]

oss=tests/real/gpt_oss_mxfp4  # rows of 64 numbers, and of 32 in experts' down_proj
expect 0 'weights are off by' $oss "$folder/a.gguf" --type q4_0
grep -qF '100 %' "$err"
expect 0 '"expert": 1,' --json $oss "$folder/b.gguf" --type q8_0 --keep ffn_down_exps
grep -qF '"reason": "asked to stay"' "$out"
expect 2 'is there already' $oss "$folder/a.gguf" --type q4_0
expect 0 '  stays: blk.0.ffn_down_exps.weight: asked to stay' "$folder/b.gguf" "$folder/a.gguf" --type Q5_1 --overwrite --keep down
expect 2 'the length of a row is 20, no multiple of 32, the block of q8_0: keep it as it is (--keep ffn_gate_exps)' \
  $model "$folder/c.gguf" --type q8_0
expect 2 'type "int4_g128" is of folders, and OUT is a GGUF file: expected one of q8_0' $oss "$folder/c.gguf" --type int4_g128
expect 0 '  blk.0: weights are off by 0.0' $oss "$folder/mixed.gguf" --type q4_0 --type-of ffn_down_exps=q8_0
grep -qF '"changed_choices": 0' "$out" && exit 1  # that is JSON
expect 0 '"changed_choices": 0' $oss "$folder/mixed.gguf" --type q4_0 --type-of blk.0.=q5_1 --json --overwrite
grep -qF '"type": "q5_1"' "$out"
expect 0 'given tokens), ' $oss "$folder/given.gguf" --type q8_0 --inputs $oss/blocks.safetensors --tokens 0
expect 0 'weights are off by' $oss "$folder/given.gguf" --type q8_0 --tokens 0 --overwrite
grep -qF 'choices change' "$out" && exit 1
expect 0 'answers by 0.0' "$folder/b.gguf" "$folder/b.gguf" --type q5_0 --overwrite  # IN is compared while it is there
expect 2 'expected [tokens, 64]' $oss "$folder/c.gguf" --type q8_0 --inputs tests/real/zaya/blocks.safetensors
expect 2 'none is called as what a block of' $oss "$folder/c.gguf" --type q8_0 --inputs $oss/model.safetensors
expect 2 '--type-of is followed by "ffn_down_exps", expected PART=TYPE' $oss "$folder/c.gguf" --type q8_0 --type-of ffn_down_exps
expect 2 '--type-of is of GGUF files' $oss "$folder/c" --type fp8 --type-of down=fp8
expect 2 '--tokens is followed by "-1"' $oss "$folder/c.gguf" --type q8_0 --tokens -1
expect 2 'no such file' $oss "$folder/c.gguf" --type q8_0 --imatrix no_such_file
expect 2 'its general.type is ' $oss "$folder/c.gguf" --type q8_0 --imatrix "$folder/b.gguf"
expect 2 'no type is called "q9" that GGUF' $oss "$folder/c.gguf" --type q9
expect 2 'no --type, expected one of q8_0' $oss "$folder/c.gguf"
expect 2 '--all-linears is of folders' $oss "$folder/c.gguf" --type q8_0 --all-linears
expect 2 '"down_proj" was asked to stay, and is in no name' $oss "$folder/c.gguf" --type q8_0 --keep down_proj
expect 2 'IN is a file, and OUT is a folder' "$folder/a.gguf" "$folder/c" --type fp8
expect 2 'no such file' no_such_folder "$folder/c.gguf" --type q8_0
[ ! -e "$folder/c.gguf" ]
