#!/usr/bin/env bash
# Runs every fuzz target of the module, one after the other, FUZZTIME each (60s).
#   fuzz.sh [REGEXP]   only targets PACKAGE/NAME that match
# Inputs that fail are kept by go test under the package's testdata/fuzz.
set -euo pipefail
cd "$(dirname "$0")/.."
fuzztime=${FUZZTIME:-60s} only=${1:-.}
# go test -list prints the names of a package's targets, then "ok PACKAGE TIME".
list=$(go test -list '^Fuzz' ./...)
targets=$(awk '/^Fuzz/ { names[++n] = $1 } /^ok/ { for (i = 1; i <= n; i++) print $2, names[i]; n = 0 }' <<< "$list" | grep -E -- "$only" || true)
[ -n "$targets" ] || { echo "fuzz: no target matches $only" >&2; exit 1; }
failed=()
while read -r pkg name; do
  echo "== $pkg $name, $fuzztime"
  go test -run '^$' -fuzz "^$name\$" -fuzztime "$fuzztime" "$pkg" || failed+=("$pkg $name")
done <<< "$targets"
echo "fuzz: $(wc -l <<< "$targets") targets, $fuzztime each, ${#failed[@]} failed"
[ ${#failed[@]} = 0 ] || { printf '  %s\n' "${failed[@]}" >&2; exit 1; }
