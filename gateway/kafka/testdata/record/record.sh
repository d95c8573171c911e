#!/usr/bin/env bash
# Records what real clients send into ../frames, for the fuzzer and the replay
# test of this package: record.sh [kcat|java|sarama|franz-go]…   (all of them)
# Needs kcat; java 17+ and mvn (see localstack/bench/kafka); Go's module proxy.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
package=$(cd "$here/../.." && pwd)
root=$(cd "$package/../.." && pwd)
export here root
record() { (cd "$package" && CAPTURE_CLIENT=$1 CAPTURE_CMD=$2 go test -count=1 -run '^TestCapture$' -timeout 10m -v .); }

# shellcheck disable=SC2016
kcat='set -e
for codec in none gzip snappy lz4 zstd; do for acks in 0 1 -1; do for idempotent in true false; do
  [ $idempotent = false ] || [ $acks = -1 ] || continue
  printf "one\ntwo\nthree ${codec}\n" | kcat -P -b $BOOTSTRAP -t logs -p 0 -H a=b -K t -X compression.codec=$codec -X acks=$acks -X enable.idempotence=$idempotent
done; done; done
for level in read_committed read_uncommitted; do kcat -C -e -q -b $BOOTSTRAP -t logs -o beginning -X fetch.wait.max.ms=100 -X isolation.level=$level; done
kcat -C -e -q -b $BOOTSTRAP -t logs -o s@1000 -X fetch.wait.max.ms=100
kcat -Q -b $BOOTSTRAP -t logs:0:-1 -t logs:1:1000 -t other:0:-2
kcat -L -b $BOOTSTRAP; kcat -L -b $BOOTSTRAP -t logs
for old in 1.0.0 0.11.0 0.10.2; do # without ApiVersions
  o="-b $BOOTSTRAP -X api.version.request=false -X broker.version.fallback=$old"
  kcat -L $o -t logs
  [ $old = 0.10.2 ] || { echo old | kcat -P $o -t logs -p 1; kcat -C -e -q $o -t logs -p 1 -o beginning -X fetch.wait.max.ms=100; }
done'

# shellcheck disable=SC2016
java='set -e
tool() { "$root/localstack/bench/kafka/kafka.sh" tool "$@"; }
t="org.apache.kafka.tools"; s="--bootstrap-server $BOOTSTRAP"
printf "k:v\n" | tool $t.ConsoleProducer $s --topic logs --reader-property parse.key=true --reader-property key.separator=:
tool $t.TopicCommand $s --create --topic cli --partitions 2 --config retention.ms=1000
tool $t.TopicCommand $s --describe
tool $t.TopicCommand $s --alter --topic cli --partitions 3
tool $t.TopicCommand $s --list
tool kafka.admin.ConfigCommand $s --alter --entity-type topics --entity-name cli --add-config segment.bytes=1048576
tool kafka.admin.ConfigCommand $s --describe --all --entity-type brokers --entity-name 1 >/dev/null
tool $t.GetOffsetShell $s --topic logs
tool $t.LogDirsCommand $s --describe
tool $t.ClusterTool cluster-id $s
tool $t.BrokerApiVersionsCommand $s
echo "{\"version\":1,\"partitions\":[{\"topic\":\"logs\",\"partition\":0,\"offset\":0}]}" > /tmp/delete.$$
tool $t.DeleteRecordsCommand $s --offset-json-file /tmp/delete.$$; rm /tmp/delete.$$
tool $t.TopicCommand $s --delete --topic cli
java -cp "${KAFKA_LIB:-$HOME/.cache/kafka-jars}/*" "$here/Clients.java"'

sarama() {
  dir=$(mktemp -d)
  cp "$here/sarama.go" "$dir/main.go"
  (cd "$dir" && printf 'module sarama\ngo 1.26\nrequire github.com/IBM/sarama v1.45.1\n' > go.mod && GOFLAGS=-mod=mod go build -o sarama .)
  record sarama "$dir/sarama"
  rm -r "$dir"
}

[ $# -gt 0 ] || set -- kcat java sarama franz-go
for client; do
  case $client in
  kcat) record kcat "$kcat" ;;
  java) record java "$java" ;;
  sarama) sarama ;;
  franz-go) record franz-go "" ;;
  *) sed -n 2,5p "$0" >&2; exit 2 ;;
  esac
done
