#!/usr/bin/env bash
# Ours, the floor and Apache Kafka in one run, one server alive at a time, in
# alternating blocks; prints a Markdown table (table.py).
#   BLOCKS (3)   GIB (1)   ROWS ("1 16 small tiny e2e")
#   SERVERS ("ours floor kafka"; also kafka-flush: Kafka with flush.messages=1)
#   WARM (0)     GiB of memory made host-backed before each produce: a page cache that
#                is recycled, Kafka's best case, instead of one that grows
# Ours and the floor acknowledge after the disk has the bytes, Kafka from the page
# cache unless it is kafka-flush.
set -euo pipefail
cd "$(dirname "$0")/../.."
blocks=${BLOCKS:-3} gib=${GIB:-1} servers=${SERVERS:-ours floor kafka} rows=${ROWS:-1 16 small tiny e2e} warm=${WARM:-0}
work=${WORK:-$(mktemp -d)}
mkdir -p "$work"
out=$work/rows
: > "$out"
(cd localstack/bench/wire && GOFLAGS=-mod=mod go build -o "$work/wire" .)
go build -o "$work/cirrolog" ./services/cirrolog

pid='' port=''
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
  kafka | kafka-flush)
    port=23905
    props=
    [ "$1" = kafka ] || props=log.flush.interval.messages=1
    pid=$(KAFKA_PROPS=$props KAFKA_HEAP=${KAFKA_HEAP:--Xms2g -Xmx2g} localstack/bench/kafka/kafka.sh start "$work/data" $port);;
  esac
  for _ in $(seq 300); do (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break; sleep 0.1; done
  case $1 in kafka*) sleep 3;; esac
}
stop() {
  [ -n "$pid" ] || return 0
  kill "$pid" 2>/dev/null || true
  while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
  rm -rf "$work/data"
  pid=''
}
trap stop EXIT

cell() { # cell SERVER ROW GIB/N PARTS MODE ARGS…: one discarded warm-up, then a measured pass
  local name=$1 row=$2 total=$(((gib << 30) / $3)) parts=$4 mode=$5; shift 5
  start "$name" "$parts"
  if [ "$mode" = e2e ]; then
    "$work/wire" kraw -addr 127.0.0.1:$port -pid "$pid" -mode e2e -dur 5s -parts "$parts" "$@" > /dev/null
    "$work/wire" kraw -addr 127.0.0.1:$port -pid "$pid" -mode e2e -dur 15s -parts "$parts" "$@" | tr '\n' ' ' | sed "s#^ *#$name|$row|#; s#\$#\n#" | tee -a "$out" >&2
  else
    "$work/wire" kraw -addr 127.0.0.1:$port -pid "$pid" -mode produce -rounds 1 -total $((total / 4)) -parts "$parts" "$@" > /dev/null
    "$work/wire" kraw -addr 127.0.0.1:$port -pid "$pid" -mode "$mode" -rounds 1 -total "$total" -parts "$parts" -warm "$warm" "$@" | sed "s#^ *#$name|$row|#" | tee -a "$out" >&2
  fi
  stop
}
for b in $(seq "$blocks"); do
  order=$servers
  [ $((b % 2)) = 1 ] || order=$(echo "$servers" | tr ' ' '\n' | tac | tr '\n' ' ')
  for row in $rows; do
    for s in $order; do
      case $row in
      small) cell "$s" "16 KiB, 16 partitions, 5 in flight" 4 16 produce -batch 16384;;
      tiny) cell "$s" "1 KiB requests, 64 in flight" 64 1 produce -batch 1024 -inflight 64;;
      e2e) cell "$s" "10 MB/s, linger 1 ms" 1 1 e2e -linger 1ms;;
      # A partition's limit above the batch size, as consumers of such batches set it.
      *) cell "$s" "1 MiB, $row partitions" 1 "$row" both -maxpart $((2 << 20));;
      esac
    done
  done
done
python3 localstack/bench/table.py "$out"
