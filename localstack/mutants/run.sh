#!/usr/bin/env bash
# Plants each known bug of this directory in a copy of the tree and checks that
# its test catches it, and that the same test passes without the bug.
#   run.sh [NAME…]     names of patches without .patch; all by default
# A patch starts with lines
#   # what: the bug in a sentence
#   # test: go test ./storage/... -run TestCrash
# A patch that no longer applies or builds, or that nothing catches, fails.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
# The files as they are here, so that uncommitted changes count.
git ls-files -z -co --exclude-standard | while IFS= read -r -d '' f; do [ ! -e "$f" ] || printf '%s\0' "$f"; done | tar --null -T - -cf - | tar -xf - -C "$copy" || exit 1
cd "$copy" || exit 1
# Tests find servers and clients where they are.
if [ -d "$here/../../.cache/bin" ]; then mkdir -p .cache && ln -s "$here/../../.cache/bin" .cache/bin; fi

header() { sed -n "s/^# $1: *//p" "$2" | head -1; }
declare -A clean=() # test command → does it pass without a bug
passes() { # passes COMMAND: its output is in $log
  log=$(bash -c "$1" 2>&1)
}
# failing prints the tests that failed, of a test and its subtests only these, three at most.
failing() {
  sed -n 's/^ *--- FAIL: \([^ ]*\).*/\1/p' | sort -u | awk '
    { names[NR] = $0 }
    END { for (i = 1; i <= NR; i++) if (i == NR || index(names[i + 1], names[i] "/") != 1) if (++n <= 3) printf "%s%s", (n > 1 ? ", " : ""), names[i]
          if (n > 3) printf " and %d more", n - 3 }'
}
caught=0 failed=0
bad() { echo "$1: FAIL: $2"; failed=$((failed + 1)); [ -z "${3:-}" ] || tail -n 20 <<< "$3" | sed 's/^/    /'; }
shopt -s nullglob
names=("$@")
[ ${#names[@]} -gt 0 ] || for p in "$here"/*.patch; do names+=("$(basename "$p" .patch)"); done
[ ${#names[@]} -gt 0 ] || { echo "mutants: no patches in $here" >&2; exit 1; }
for name in "${names[@]}"; do
  patch=$here/$name.patch
  [ -f "$patch" ] || { bad "$name" "no such patch"; continue; }
  what=$(header what "$patch") cmd=$(header test "$patch")
  [ -n "$cmd" ] || { bad "$name" "no '# test:' line"; continue; }
  if [ -z "${clean[$cmd]:-}" ]; then
    if passes "$cmd"; then clean[$cmd]=yes; else clean[$cmd]=no; fi
  fi
  [ "${clean[$cmd]}" = yes ] || { bad "$name" "$cmd fails without the bug" "$log"; continue; }
  git apply "$patch" || { bad "$name" "the patch no longer applies"; continue; }
  if passes "$cmd"; then
    bad "$name" "nothing caught it: $what" "$log"
  elif grep -qE '\[build failed\]|\[setup failed\]' <<< "$log"; then
    bad "$name" "the patched tree does not build" "$log"
  elif tests=$(failing <<< "$log") && [ -n "$tests" ]; then
    echo "$name: caught by $tests: $what"
    caught=$((caught + 1))
  elif grep -qE '^(panic|fatal error): ' <<< "$log"; then
    echo "$name: caught by $(grep -m1 -E '^(panic|fatal error): ' <<< "$log") in $cmd: $what"
    caught=$((caught + 1))
  else
    bad "$name" "$cmd fails, but no test does" "$log"
  fi
  git apply -R "$patch" || { echo "$name: could not take the patch back" >&2; exit 1; }
done
echo "mutants: $caught caught, $failed failed"
[ $failed = 0 ]
