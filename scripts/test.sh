#!/bin/sh
# Builds and runs the tests, installing first what is missing. Further arguments go to ctest: scripts/test.sh -R golden
set -eu
. "$(dirname -- "$0")/setup.sh"
set_up tests compiler cmake make eigen3 nlohmann_json googletest
build tests
exec ctest --preset tests "$@"
