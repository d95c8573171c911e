#!/usr/bin/env bash
# Starts and stops the servers that tests can use: MinIO and Redis on loopback, DynamoDB Local on port 8000.
#   services.sh up | down
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck disable=SC2034
me=services bin=$PWD/.cache/bin run=$PWD/.cache/services
mkdir -p "$run"
. localstack/lib.sh

case ${1:-} in
up)
  if running redis; then echo "redis runs already"; else
    vacant 6379 Redis
    redis_launch 6379
    await redis 10 listens 6379
    echo "redis: redis://127.0.0.1:6379"
  fi
  if running dynamodb; then echo "dynamodb runs already"; else
    (vacant 8000 "DynamoDB Local"; launch dynamodb ./localstack/dynamodb/dynamodb.sh run 8000; await dynamodb 30 listens 8000
     echo "dynamodb: dynamodb://cirrolog?endpoint=http://127.0.0.1:8000&region=us-east-1&create=true (any credentials)") || echo "dynamodb is left out" >&2
  fi
  if running minio; then echo "minio runs already"; else
    [ -x "$bin/minio" ] || fail "there is no .cache/bin/minio: run make deps"
    vacant 9000 MinIO
    minio_launch 9000
    await minio 30 listens 9000
    echo "minio: http://127.0.0.1:9000 user cirrolog password cirrolog-secret (export AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
  fi;;
down) halt 10 redis dynamodb minio;;
*) sed -n 2,3p "$0"; exit 2;;
esac
