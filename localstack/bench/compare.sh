#!/usr/bin/env bash
# Ours, the floor and Apache Kafka in one run, one server alive at a time, in
# alternating blocks; prints a Markdown table (table.py) and leaves it in WORK/table.md.
#   BLOCKS (8)     how many blocks; BLOCK=N runs the N-th alone
#   ROWS           of: 1 16 small tiny e2e full start parts (all but parts)
#   SERVERS        keep only these: ours floor kafka kafka-growing kafka-flush
#   GIB (2)        size of a pass of 1 MiB batches; the other rows take a share of it
#   WORK           (.cache/bench-kafka) WORK/rows gets a line as soon as a cell is done, and a cell
#                  that is there is not run again: a run that was cut off goes on where it was.
#                  NEW=1 begins anew.
#   WIRE_QUIET     (90) seconds that a pass waits at most for an idle machine
#   WIRE_TRIES     (4) a measured pass during which the host took away more than WIRE_STOLEN (0.02)
#                  of the processor time is repeated so often; the least disturbed one counts. So is one of
#                  e2e during which a synced write of 4 KiB by the generator took more than WIRE_STALL (20ms)
#   BIN            measure this cirrolog instead of the one of this tree
# Ours and the floor acknowledge after the disk has the bytes, Kafka from the page
# cache unless it is kafka-flush (flush.messages=1). kafka runs on recycled memory, its best
# case: WARM (4) GiB are touched and freed before each measured pass, for every server but
# kafka-growing, whose page cache grows into memory that the host took back.
# One configuration per server for the whole table.
set -euo pipefail
cd "$(dirname "$0")/../.."
blocks=${BLOCKS:-8} gib=${GIB:-2} rows=${ROWS:-1 16 small tiny e2e full start} warm=${WARM:-4} tries=${WIRE_TRIES:-4}
only=${SERVERS:-ours floor kafka kafka-growing kafka-flush}
work=${WORK:-.cache/bench-kafka}
[ -z "${NEW:-}" ] || rm -rf "$work"
mkdir -p "$work"
work=$(cd "$work" && pwd)
out=$work/rows
touch "$out"
(cd localstack/bench/wire && GOFLAGS=-mod=mod go build -trimpath -buildvcs=false -o "$work/wire" .)
if [ -n "${BIN:-}" ]; then cp "$BIN" "$work/cirrolog.new"; else CGO_ENABLED=0 go build -tags grpcnotrace -trimpath -buildvcs=false -o "$work/cirrolog.new" ./services/cirrolog; fi
config="cirrolog $(sha256sum < "$work/cirrolog.new" | cut -c1-16) wire $(sha256sum < "$work/wire" | cut -c1-16) gib $gib warm $warm heap ${KAFKA_HEAP:-2g}"
if [ -f "$work/config" ] && [ "$config" != "$(cat "$work/config")" ]; then
  echo "$work holds a run of another build or size ($(cat "$work/config")): NEW=1 begins anew, WORK=… keeps both" >&2
  exit 1
fi
echo "$config" > "$work/config"
mv "$work/cirrolog.new" "$work/cirrolog"

pid='' sink='' port=''
ours=(--data-dir "$work/data" --kafka-addr 127.0.0.1:23901 --admin-addr 127.0.0.1:23902 --http-addr= )
s3='s3://bench/x?endpoint=http://127.0.0.1:23907&region=us-east-1'
export AWS_ACCESS_KEY_ID=key AWS_SECRET_ACCESS_KEY=secretsecret

start() { # start NAME PARTS ROW
  rm -rf "$work/data"
  mkdir -p "$work/data"
  case $1 in
  ours)
    port=23901
    local args=(--topic-config remote.storage.enable=false)
    [ "$3" != full ] || args=(--bucket "$s3")
    "$work/cirrolog" serve "${ours[@]}" "${args[@]}" > "$work/ours.log" 2>&1 &
    pid=$!;;
  floor)
    port=23903
    local args=()
    [ "$3" != full ] || args=(-upload http://127.0.0.1:23907/floor)
    "$work/wire" floor -addr 127.0.0.1:$port -dir "$work/data" -ring $((gib + 1)) -pipe -parts "$2" "${args[@]}" > "$work/floor.log" 2>&1 &
    pid=$!;;
  kafka*)
    port=23905
    local props=
    [ "$1" != kafka-flush ] || props=log.flush.interval.messages=1
    pid=$(KAFKA_PROPS=$props localstack/bench/kafka/kafka.sh start "$work/data" $port);;
  esac
  for _ in $(seq 300); do (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break; sleep 0.1; done
  case $1 in kafka*) sleep 3;; esac
}
stop() {
  for p in $pid $sink; do
    kill "$p" 2>/dev/null || true
    while kill -0 "$p" 2>/dev/null; do sleep 0.1; done
  done
  rm -rf "$work/data"
  pid='' sink=''
}

load() { # load SERVER ARGS…
  local w=$warm
  [ "$1" != kafka-growing ] || w=0
  shift
  WIRE_TRIES=$tries "$work/wire" kraw -addr 127.0.0.1:$port -pid "$pid" -rounds 1 -warm "$w" "$@"
}

# used SERVER PARTS: a server that has been in use: twice GIB were written to as many partitions as
# the pass has, so that memory and disk are not touched for the first time, and deleted (by the
# next pass); nothing waits for the disk.
used() {
  warm=0 tries=1 load "$1" -mode produce -parts "$2" -total $((gib * 2048 * (1 << 20))) > /dev/null
  sync
}

# pass ROW SERVER: a server in use, a discarded warm-up where the batches are smaller, then
# a measured pass, on stdout.
pass() {
  local mib=$((1 << 20)) s=$2
  case $1 in
  small)
    start "$s" 16 "$1"
    used "$s" 16
    warm=0 tries=1 load "$s" -mode produce -parts 16 -batch 16384 -total $((gib * mib * 64)) > /dev/null
    load "$s" -mode produce -parts 16 -batch 16384 -total $((gib * mib * 256));;
  tiny)
    start "$s" 1 "$1"
    used "$s" 1
    warm=0 tries=1 load "$s" -mode produce -batch 1024 -inflight 64 -total $((gib * mib * 8)) > /dev/null
    load "$s" -mode produce -batch 1024 -inflight 64 -total $((gib * mib * 32));;
  e2e)
    start "$s" 1 "$1"
    used "$s" 1
    warm=0 tries=1 load "$s" -mode e2e -linger 1ms -dur 5s > /dev/null
    WIRE_PROBE=$work load "$s" -mode e2e -linger 1ms -dur 20s | tr '\n' ' ' | sed 's/ *$/\n/';;
  full)
    "$work/wire" sink -addr 127.0.0.1:23907 > "$work/sink.log" 2>&1 &
    sink=$!
    start "$s" 1 "$1"
    local settle=http://127.0.0.1:23907/-/bytes
    [ "${s#kafka}" = "$s" ] || settle=
    load "$s" -mode full -pace 200 -maxpart $((2 * mib)) -settle "$settle" -total $((gib * mib * 256)) > /dev/null
    load "$s" -mode full -pace 200 -maxpart $((2 * mib)) -settle "$settle" -total $((gib * mib * 1024));;
  start | parts)
    local n=0
    [ "$1" = start ] || n=10000
    rm -rf "$work/data"
    case $s in
    ours) "$work/wire" first -addr 127.0.0.1:23901 -parts $n "$work/cirrolog" serve "${ours[@]}" --topic-config remote.storage.enable=false;;
    kafka) "$work/wire" first -addr 127.0.0.1:23905 -parts $n localstack/bench/kafka/kafka.sh run "$work/data" 23905;;
    esac;;
  *) # a partition's limit above the batch size, as consumers of such batches set it
    start "$s" "$1" "$1"
    used "$s" "$1"
    load "$s" -mode both -parts "$1" -total $((gib * mib * 1024)) -maxpart $((2 * mib));;
  esac
}
title() {
  case $1 in
  small) echo "16 KiB, 16 partitions, 5 in flight";;
  tiny) echo "1 KiB requests, 64 in flight";;
  e2e) echo "10 MB/s, linger 1 ms";;
  full) echo "produce 200 MB/s, upload, tail consumer";;
  start) echo "one topic";;
  parts) echo "10,000 partitions";;
  *) echo "1 MiB, $1 partitions";;
  esac
}
who() { # the servers of a row
  case $1 in
  1 | 16) echo ours floor kafka kafka-growing$([ "$1" = 1 ] || echo " kafka-flush");;
  small) echo ours floor kafka kafka-flush;;
  start | parts) echo ours kafka;;
  *) echo ours floor kafka;;
  esac
}
for b in ${BLOCK:-$(seq "$blocks")}; do
  for row in $rows; do
    order=$(for s in $(who "$row"); do case " $only " in *" $s "*) echo "$s";; esac; done)
    [ $((b % 2)) = 1 ] || order=$(echo "$order" | tac)
    for s in $order; do
      key="$b|$s|$(title "$row")"
      ! grep -qF "$key|" "$out" || continue
      set +e # a function left of || would go on after a failure
      (set -e; trap stop EXIT; pass "$row" "$s") > "$work/cell"
      rc=$?
      set -e
      [ $rc = 0 ] || { echo "cell $key failed, the server's log is in $work" >&2; exit 1; }
      sed "s#^ *#$key|#" "$work/cell" | tee -a "$out" >&2
    done
  done
done
python3 localstack/bench/table.py "$out" | tee "$work/table.md"
