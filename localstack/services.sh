#!/usr/bin/env bash
# Starts and stops the servers that tests can use: MinIO and Redis on loopback, DynamoDB Local on port 8000.
#   services.sh up | down
set -euo pipefail
cd "$(dirname "$0")/.."
run=.cache/services
mkdir -p "$run"

redis_up() { # an append-only file under .cache/services keeps what is written
  if [ -f "$run/redis.pid" ] && kill -0 "$(cat "$run/redis.pid")" 2>/dev/null; then echo "redis runs already"; return; fi
  local server
  server=$(PATH=$PWD/.cache/bin:$PATH command -v redis-server) || { echo "no redis-server: run make deps" >&2; return 1; }
  mkdir -p "$run/redis-data"
  nohup "$server" --bind 127.0.0.1 --port 6379 --dir "$PWD/$run/redis-data" --appendonly yes --save "" > "$run/redis.log" 2>&1 &
  echo $! > "$run/redis.pid"
  for _ in $(seq 100); do
    if (exec 3<>/dev/tcp/127.0.0.1/6379) 2>/dev/null && kill -0 "$(cat "$run/redis.pid")" 2>/dev/null; then echo "redis: redis://127.0.0.1:6379"; return; fi
    sleep 0.1
  done
  echo "redis did not start: $run/redis.log" >&2
  return 1
}

redis_down() { if [ -f "$run/redis.pid" ]; then kill "$(cat "$run/redis.pid")" 2>/dev/null || true; rm -f "$run/redis.pid"; fi; }

case ${1:-} in
up)
  redis_up
  ./localstack/dynamodb/dynamodb.sh up "$run" 8000 || echo "dynamodb is left out" >&2
  if [ -f "$run/minio.pid" ] && kill -0 "$(cat "$run/minio.pid")" 2>/dev/null; then echo "minio runs already"; exit 0; fi
  [ -x .cache/bin/minio ] || { echo "no .cache/bin/minio: run make deps" >&2; exit 1; }
  MINIO_ROOT_USER=cirrolog MINIO_ROOT_PASSWORD=cirrolog-secret nohup .cache/bin/minio server --quiet --address 127.0.0.1:9000 --console-address 127.0.0.1:0 "$run/minio-data" > "$run/minio.log" 2>&1 &
  echo $! > "$run/minio.pid"
  for _ in $(seq 100); do
    if (exec 3<>/dev/tcp/127.0.0.1/9000) 2>/dev/null; then
      echo "minio: http://127.0.0.1:9000 user cirrolog password cirrolog-secret (export AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
      exit 0
    fi
    sleep 0.1
  done
  echo "minio did not start: $run/minio.log" >&2
  exit 1;;
down)
  redis_down
  ./localstack/dynamodb/dynamodb.sh down "$run"
  if [ -f "$run/minio.pid" ]; then kill "$(cat "$run/minio.pid")" 2>/dev/null || true; rm -f "$run/minio.pid"; fi;;
*) sed -n 2,3p "$0"; exit 2;;
esac
