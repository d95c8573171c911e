#!/usr/bin/env bash
# Runs a command on a machine that nobody ever used: a new Debian, by debootstrap,
# with Go, git and make, in a chroot as root, the package registries its only help.
# Prints time and peak memory. Needs root and debootstrap.
#   fresh.sh DIR COMMAND…     e.g. fresh.sh /tmp/fresh make test; a second run with the same DIR is a warm one
# What is tested is the committed tree (HEAD), cloned anew each time.
set -euo pipefail
# In a mount namespace of its own: what is mounted below is seen by nobody else and gone however this ends, so that who
# deletes DIR never deletes what is behind its /dev.
[ -n "${FRESH_UNSHARED:-}" ] || FRESH_UNSHARED=1 exec unshare --mount --propagation private "$0" "$@"
unset FRESH_UNSHARED
cd "$(dirname "$0")/.."
dir=$1; shift
if [ ! -e "$dir/etc/debian_version" ]; then
  debootstrap --variant=minbase --include=ca-certificates,git,make bookworm "$dir" > "$dir.log" 2>&1
  cp -a "$(go env GOROOT)" "$dir/usr/local/go"
  # The certificates and the resolver are the network's, not the machine's.
  cp -a /usr/local/share/ca-certificates/. "$dir/usr/local/share/ca-certificates/"
  chroot "$dir" update-ca-certificates > /dev/null 2>&1
fi
cp /etc/resolv.conf "$dir/etc/resolv.conf"
mount --bind /dev "$dir/dev"; mount --bind /dev/pts "$dir/dev/pts"; mount --bind /dev/shm "$dir/dev/shm"
mount -t proc proc "$dir/proc"; mount -t sysfs sys "$dir/sys"
mkdir -p "$dir/src"
cache=$dir/src/cirrolog/.cache
[ ! -d "$cache" ] || mv "$cache" "$dir/cache"
rm -rf "$dir/src/cirrolog"
git clone -q . "$dir/src/cirrolog"
[ ! -d "$dir/cache" ] || mv "$dir/cache" "$cache"
peak() { # the most memory that the processes of the chroot had together
  local most=0 now
  while sleep 1; do
    now=0
    for p in /proc/[0-9]*; do
      [ "$(readlink "$p/root" 2> /dev/null)" = "$(realpath "$dir")" ] || continue
      now=$((now + $(awk '/^Pss:/ { s = $2 } END { print s + 0 }' "$p/smaps_rollup" 2> /dev/null || echo 0)))
    done
    [ "$now" -le "$most" ] || { most=$now; echo "$most" > "$dir.peak"; }
  done
}
peak & watcher=$!
began=$(date +%s.%N) code=0
# shellcheck disable=SC2016
env -i HOME=/root PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb REQUIRE_ALL="${REQUIRE_ALL:-}" \
  chroot "$dir" bash -c 'cd /src/cirrolog && exec "$@"' -- "$@" || code=$?
awk -v a="$began" -v b="$(date +%s.%N)" -v p="$(cat "$dir.peak" 2> /dev/null || echo 0)" -v c=$code \
  'BEGIN { printf "fresh: exit code %d, %.0f s, peak memory %.0f MiB\n", c, b - a, p / 1024 }'
kill "$watcher"
exit $code
