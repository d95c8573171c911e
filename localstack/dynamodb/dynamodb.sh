#!/usr/bin/env bash
# DynamoDB Local from Maven Central, in memory: for tests. Needs java 17+ and mvn.
#   dynamodb.sh run PORT          in the foreground; it listens on all addresses and cannot be told otherwise
#   dynamodb.sh up DIR PORT       in the background, waiting until it answers; its pid and log go to DIR
#   dynamodb.sh down DIR
#   dynamodb.sh jars              download the jars
# The jars go to DYNAMODB_LIB (default: ~/.cache/dynamodb-jars).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
lib=${DYNAMODB_LIB:-$HOME/.cache/dynamodb-jars}
if [ ! -d "$lib" ]; then # made whole: another run may look at the same time
  new=$lib.$$
  mvn -q -f "$here/pom.xml" dependency:copy-dependencies -DoutputDirectory="$new" >&2
  mv -T "$new" "$lib" || rm -rf "$new"
fi
case ${1:-} in
run)
  exec java -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Djava.library.path="$lib" -cp "$lib/*" \
    com.amazonaws.services.dynamodbv2.local.main.ServerRunner -inMemory -disableTelemetry -port "$2";;
up)
  dir=$2 port=$3
  if [ -f "$dir/dynamodb.pid" ] && kill -0 "$(cat "$dir/dynamodb.pid")" 2>/dev/null; then echo "dynamodb runs already"; exit 0; fi
  mkdir -p "$dir"
  nohup "$0" run "$port" > "$dir/dynamodb.log" 2>&1 &
  echo $! > "$dir/dynamodb.pid"
  for _ in $(seq 200); do
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      echo "dynamodb: dynamodb://cirrolog?endpoint=http://127.0.0.1:$port&region=us-east-1&create=true (any credentials)"
      exit 0
    fi
    sleep 0.1
  done
  echo "dynamodb did not start: $dir/dynamodb.log" >&2
  exit 1;;
down)
  if [ -f "$2/dynamodb.pid" ]; then kill "$(cat "$2/dynamodb.pid")" 2>/dev/null || true; rm -f "$2/dynamodb.pid"; fi;;
jars) ;;
*) sed -n 2,7p "$0"; exit 2;;
esac
