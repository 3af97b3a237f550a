#!/bin/sh
# interrupted.sh JSON DONE LEFT PROGRAM ARGUMENTS: what was done is in the file when Ctrl-C ends the program, which ends by
# that signal. It comes once the file has a line that DONE fits; none fits LEFT, of what was to come.
set -eu
json=$1 done=$2 left=$3
shift 3
rm -f "$json"
# A shell's background jobs ignore Ctrl-C unless told otherwise.
env --default-signal=INT "$@" --json "$json" > "$json.txt" &
program=$!
until grep -q "$done" "$json" 2> /dev/null; do
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
[ "$(head -c 1 "$json")$(tail -n 1 "$json")" = "[]" ]
grep -q "$done" "$json"
! grep -q "$left" "$json"
