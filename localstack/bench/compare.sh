#!/usr/bin/env bash
# Ours, the floor and Apache Kafka in one run, one server alive at a time, in
# alternating blocks; prints a Markdown table of medians.
#   BLOCKS (3)  GIB (1)  PARTS ("1 16")  SERVERS ("ours floor kafka")
# Ours and the floor acknowledge after the disk has the bytes, Kafka from the page cache.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
blocks=${BLOCKS:-3} gib=${GIB:-1} servers=${SERVERS:-ours floor kafka}
work=${WORK:-$(mktemp -d)}
out=$work/rows
: > "$out"
(cd localstack/bench/wire && GOFLAGS=-mod=mod go build -o "$work/wire" .)
go build -o "$work/cirrolog" ./services/cirrolog

pid= port=
start() { # start NAME PARTS
  rm -rf "$work/data"
  case $1 in
  ours)
    port=23901
    "$work/cirrolog" serve --data-dir "$work/data" --kafka-addr 127.0.0.1:$port --admin-addr 127.0.0.1:23902 \
      --topic-config "${OURS_TOPIC_CONFIG:-remote.storage.enable=false}" > "$work/ours.log" 2>&1 &
    pid=$!;;
  floor)
    port=23903
    mkdir -p "$work/data"
    "$work/wire" floor -addr 127.0.0.1:$port -dir "$work/data" -ring 2 -pipe -parts "$2" > "$work/floor.log" 2>&1 &
    pid=$!;;
  kafka)
    port=23905
    pid=$(KAFKA_HEAP=${KAFKA_HEAP:--Xms2g -Xmx2g} localstack/bench/kafka/kafka.sh start "$work/data" $port);;
  esac
  for _ in $(seq 300); do (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break; sleep 0.1; done
  [ "$1" != kafka ] || sleep 3
}
stop() { kill "$pid" 2>/dev/null || true; while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done; rm -rf "$work/data"; }
trap stop EXIT

total=$((gib << 30))
cell() { # cell NAME ROW MODE ARGS…: one discarded warm-up, then a measured pass
  local name=$1 row=$2 mode=$3; shift 3
  "$work/wire" kraw -addr 127.0.0.1:$port -pid "$pid" -mode produce -rounds 1 -total $((total / 4)) "$@" > /dev/null
  "$work/wire" kraw -addr 127.0.0.1:$port -pid "$pid" -mode "$mode" -rounds 1 -total "$total" "$@" | sed "s/^ */$name|$row|/" | tee -a "$out" >&2
}
for b in $(seq "$blocks"); do
  order=$servers
  [ $((b % 2)) = 1 ] || order=$(echo "$servers" | tr ' ' '\n' | tac | tr '\n' ' ')
  for s in $order; do
    for p in ${PARTS:-1 16}; do
      start "$s" "$p"; cell "$s" "1 MiB, $p partitions" both -parts "$p"; stop
    done
    save=$total; total=$((total / 4))
    start "$s" 16; cell "$s" "16 KiB, 16 partitions, 5 in flight" produce -parts 16 -batch 16384; stop
    total=$((save / 16))
    start "$s" 1; cell "$s" "1 KiB requests, 64 in flight" produce -parts 1 -batch 1024 -inflight 64; stop
    total=$save
  done
done
python3 - "$out" <<'P'
import collections, re, statistics, sys
cells = collections.defaultdict(lambda: collections.defaultdict(list))
for line in open(sys.argv[1]):
    m = re.match(r'(\w+)\|(.*?)\|(PRODUCE|FETCH).*?:\s+(\d+) MB/s.*?(\d+) rec/s\s+broker ([\d.]+).*?p99 ([\d.]+\S+)', line)
    if m:
        name, row, kind, mb, rec, cpu, p99 = m.groups()
        cells[kind.lower() + ' ' + row][name].append((float(mb), float(cpu), p99))
names = ['ours', 'floor', 'kafka']
print('| work | ' + ' | '.join(n + ': MB/s, broker CPU-s/GiB' for n in names) + ' | CPU ours : floor, ours : kafka | MB/s ours : kafka |')
print('|---' * 6 + '|')
for row, by in cells.items():
    med = {n: (statistics.median(x[0] for x in by[n]), statistics.median(x[1] for x in by[n])) for n in names if by[n]}
    cols = ['%.0f, %.2f' % med[n] if n in med else '-' for n in names]
    rel = lambda i, n: '%.2f' % (med['ours'][i] / med[n][i]) if n in med and 'ours' in med and med[n][i] else '-'
    print('| %s | %s | %s, %s | %s |' % (row, ' | '.join(cols), rel(1, 'floor'), rel(1, 'kafka'), rel(0, 'kafka')))
P
