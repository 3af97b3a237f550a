#!/bin/sh
# Answers "is sparse worth it here?" on this machine. Arguments go to moe_compare: scripts/compare.sh --help
# Installs first what is missing; only the comparison itself goes to standard output.
set -eu
. "$(dirname -- "$0")/setup.sh"
set_up compare compiler cmake make eigen3 nlohmann_json cli11
(build compare) >&2
exec "$moe_root/build/compare/bin/moe_compare" "$@"
