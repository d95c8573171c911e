# Background services of the scripts beside this file, which source it. A service NAME has its pid in $run/NAME.pid and
# its output in $run/NAME.log. Messages begin with $me.
# shellcheck shell=bash

fail() { echo "$me: $*" >&2; exit 1; }

# born PID: when the process started; a pid alone may be another process by now.
born() { [ -r "/proc/$1/stat" ] && sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# running NAME: tells whether the service that was launched is still that process.
running() {
  local pid began
  read -r pid began 2>/dev/null < "$run/$1.pid" || return 1
  [ -n "$began" ] && [ "$(born "$pid")" = "$began" ] && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null
}

listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# vacant PORT WHAT [VARIABLE]: fails when something listens there.
vacant() { ! listens "$1" || fail "port $1 for $2 is taken: stop what listens there${3:+, or set $3}"; }

# launch NAME COMMAND…: starts it in a session of its own, so that Ctrl-C at the script does not reach it.
launch() {
  local name=$1; shift
  setsid "$@" > "$run/$name.log" 2>&1 < /dev/null 9>&- &
  echo "$! $(born $!)" > "$run/$name.pid"
}

# await NAME SECONDS CHECK…: until CHECK succeeds. Fails when the service ends before, or the time is over.
await() {
  local name=$1 seconds=$2 end; shift 2
  end=$((SECONDS + seconds))
  until "$@"; do
    running "$name" || fail "$name ended while starting: $(tail -n 1 "$run/$name.log" | cut -c1-300) ($run/$name.log)"
    [ $SECONDS -lt $end ] || fail "$name is not ready after $seconds s: $run/$name.log"
    sleep 0.1
  done
  running "$name" || fail "$name ended while starting: $(tail -n 1 "$run/$name.log" | cut -c1-300) ($run/$name.log)"
}

# halt SECONDS NAME…: asks all to end, waits for them, and kills those that do not.
halt() {
  local seconds=$1 name pid; shift
  for name in "$@"; do
    if running "$name"; then read -r pid _ < "$run/$name.pid"; kill "$pid" 2>/dev/null || true; fi
  done
  for name in "$@"; do
    for _ in $(seq $((seconds * 20))); do running "$name" || break; sleep 0.05; done
    if running "$name"; then read -r pid _ < "$run/$name.pid"; kill -9 "$pid" 2>/dev/null || true; fi
    rm -f "$run/$name.pid"
  done
}

# answers URL: tells whether it is answered with success.
answers() { curl -sf -m 5 -o /dev/null "$1"; }

minio_launch() { # PORT; data under $run/minio-data
  MINIO_ROOT_USER=cirrolog MINIO_ROOT_PASSWORD=cirrolog-secret HOME=$run launch minio \
    "$bin/minio" server --quiet --address "127.0.0.1:$1" --console-address 127.0.0.1:0 "$run/minio-data"
}

redis_launch() { # PORT; an append-only file under $run keeps what is written
  local server
  server=$(PATH=$bin:$PATH command -v redis-server) || fail "there is no redis-server: run make deps"
  mkdir -p "$run/redis-data"
  launch redis "$server" --bind 127.0.0.1 --port "$1" --dir "$run/redis-data" --appendonly yes --save ""
}
