#!/bin/sh
# Writes the API reference, build/reference/html/index.html. Fails if Doxygen has to say anything, such as of a public
# function or type without a docstring. (Members that are data need none, where their names say it.)
set -eu
. "$(dirname -- "$0")/setup.sh"
set_up reference doxygen
cd "$moe_root"
mkdir -p build/reference
doxygen docs/Doxyfile 2>build/reference/warnings
if grep -v ' (variable) of .* is not documented\.$' build/reference/warnings >&2; then exit 1; fi
for name in MoeLayer LogitsRouter io_1_1Model distributed_1_1ExpertParallel; do  # it has seen what there is to see
  [ -e "build/reference/html/classmoe_1_1$name.html" ] || { say "reference.sh: there is no page of $name"; exit 1; }
done
echo "Every public function and type has a docstring: build/reference/html/index.html"
