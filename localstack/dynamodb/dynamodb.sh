#!/usr/bin/env bash
# DynamoDB Local from Maven Central, in memory: for tests. Needs java 17+ and mvn.
#   dynamodb.sh run PORT          in the foreground; it listens on all addresses and cannot be told otherwise
#   dynamodb.sh jars              download the jars
# The jars go to DYNAMODB_LIB (default: ~/.cache/dynamodb-jars).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
lib=${DYNAMODB_LIB:-$HOME/.cache/dynamodb-jars}
if [ ! -d "$lib" ]; then # made whole: another run may look at the same time
  new=$lib.$$
  mvn -q -B -Dstyle.color=never -f "$here/pom.xml" dependency:copy-dependencies -DoutputDirectory="$new" >&2
  mv -T "$new" "$lib" || rm -rf "$new"
fi
case ${1:-} in
run)
  exec java -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Djava.library.path="$lib" -cp "$lib/*" \
    com.amazonaws.services.dynamodbv2.local.main.ServerRunner -inMemory -disableTelemetry -port "$2";;
jars) ;;
*) sed -n 2,5p "$0"; exit 2;;
esac
