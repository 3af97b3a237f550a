#!/bin/sh
# interrupted.sh MOE_COMPARE JSON: what was finished is in the file when Ctrl-C ends the program, which ends by that signal.
set -eu
rm -f "$2"
# A shell's background jobs ignore Ctrl-C unless told otherwise.
env --default-signal=INT "$1" --shape 64,64,4,2 --weights f32 --threads 1 --seconds 0.3 --json "$2" \
  --tokens 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30 > "$2.txt" &
program=$!
until grep -q '"tokens": 3' "$2" 2> /dev/null; do
  kill -0 $program
  sleep 0.1
done
kill -INT $program
status=0
wait $program || status=$?
if [ $status != 130 ]; then
  echo "ended with $status, expected 130, by SIGINT"
  exit 1
fi
[ "$(head -c 1 "$2")$(tail -n 1 "$2")" = "[]" ]
grep -q '"tokens": 1' "$2"
! grep -q '"tokens": 30' "$2"
