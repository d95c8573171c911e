#!/usr/bin/env bash
# A cluster on this machine: MinIO, Redis, DynamoDB Local and an AWS emulator (moto), by Docker Compose where an engine is
# and without containers elsewhere; what terraform/ creates on them; and three agents. docs/localstack.md tells more.
#   localstack.sh up              start it, or say that it runs
#   localstack.sh down            stop it and delete its data
#   localstack.sh tofu ARGS…      OpenTofu on what was created, as `localstack.sh tofu plan`
# Ports, each to be changed by its variable:
#   MINIO_PORT 9000  REDIS_PORT 6379  DYNAMODB_PORT 8000  AWS_PORT 4566
#   KAFKA_PORTS "9092 9093 9094"  HTTP_PORTS "8082 8083 8084"  ADMIN_PORTS "9644 9654 9664"  RPC_PORTS "9645 9655 9665"
# METADATA=redis puts the cluster's metadata into Redis instead of the table. STORE=localstack takes the S3 of LocalStack, on the
# port of MinIO, instead of that. ENGINE=native leaves Docker alone, ENGINE=docker demands it. LOCALSTACK_DIR (.cache/localstack)
# is where all of it lies. LOCALSTACK_TF_CONFIG names a CLI configuration of Terraform by which the real AWS provider is found.
set -euo pipefail
cd "$(dirname "$0")/.."
me=localstack
run=${LOCALSTACK_DIR:-$PWD/.cache/localstack} bin=${LOCALSTACK_BIN:-$PWD/.cache/bin}
cirrolog=${CIRROLOG:-$PWD/bin/cirrolog} # given, it is not built
zips=${LAMBDA_ZIPS:-$PWD/.cache/lambda} # given, they are not built
moto=$PWD/.cache/clients/moto/bin/python
minio_port=${MINIO_PORT:-9000} redis_port=${REDIS_PORT:-6379} dynamodb_port=${DYNAMODB_PORT:-8000} aws_port=${AWS_PORT:-4566}
read -ra kafka <<< "${KAFKA_PORTS:-9092 9093 9094}"
read -ra http <<< "${HTTP_PORTS:-8082 8083 8084}"
read -ra admin <<< "${ADMIN_PORTS:-9644 9654 9664}"
read -ra rpc <<< "${RPC_PORTS:-9645 9655 9665}"
metadata=${METADATA:-dynamodb} store=${STORE:-minio} engine=${ENGINE:-auto}
agents=(agent1 agent2 agent3)
. localstack/lib.sh

export AWS_ACCESS_KEY_ID=cirrolog AWS_SECRET_ACCESS_KEY=cirrolog-secret

lock() { # one up or down at a time, on a directory of ours
  [ ! -e "$run" ] || [ -e "$run/.localstack" ] || fail "$run is there and is not of localstack.sh: remove it, or set LOCALSTACK_DIR"
  mkdir -p "$(dirname "$run")"
  exec 9> "$run.lock"
  flock -w 1 9 || fail "another localstack.sh is at work on $run"
  known
}

# known tells what the services are: those that were started, or those that are asked for. With Docker they are one,
# whose end is theirs.
known() {
  store=${STORE:-minio} engine=${ENGINE:-auto} store_name=MinIO
  [ ! -s "$run/services" ] || read -r store engine < "$run/services"
  [ "$store" = minio ] || store_name=LocalStack
  services=("$store" redis dynamodb aws)
  [ "$engine" != docker ] || services=(compose)
  export MINIO_PORT=$minio_port REDIS_PORT=$redis_port DYNAMODB_PORT=$dynamodb_port AWS_PORT=$aws_port
  compose=(docker compose -p "cirrolog-$(printf %s "$run" | cksum | cut -d' ' -f1)" -f localstack/compose.yaml --profile "$store")
}

# use ENGINE: notes it.
use() {
  echo "$store $1" > "$run/services"
  known
}

stop_all() {
  known
  halt 40 "${agents[@]}"
  halt 40 "${services[@]}"
  [ ! -s "$run/services" ] || [ "$engine" != docker ] || "${compose[@]}" down --volumes > "$run/compose-down.log" 2>&1 9>&- || true
}

check_arguments() {
  case $metadata in dynamodb | redis) ;; *) fail "METADATA=$metadata is neither dynamodb nor redis" ;; esac
  case $store in minio | localstack) ;; *) fail "STORE=$store is neither minio nor localstack" ;; esac
  case $engine in auto | docker | native) ;; *) fail "ENGINE=$engine is none of auto, docker and native" ;; esac
  local name
  for name in KAFKA_PORTS:${#kafka[@]} HTTP_PORTS:${#http[@]} ADMIN_PORTS:${#admin[@]} RPC_PORTS:${#rpc[@]}; do
    [ "${name#*:}" = 3 ] || fail "${name%:*} must be three ports"
  done
}

# install brings what runs below. What it can't bring is missed by check_tools, unless an older one is there.
install() {
  local what targets=(localstack)
  [ "$engine" != docker ] || targets=(terraform)
  [ "$engine $store" != "native localstack" ] || targets+=(s3)
  for what in "${targets[@]}"; do ./localstack/deps.sh "$what"; done 2>&1 9>&- | tee "$run/deps.log" | grep --line-buffered '^deps: \(building\|installing\)' || true
  [ -n "${CIRROLOG:-}" ] || "${GO:-go}" build -o "$cirrolog" ./services/cirrolog > "$run/build.log" 2>&1 9>&- ||
    fail "cirrolog can't be built: $(tail -n 1 "$run/build.log") ($run/build.log)"
  [ -n "${LAMBDA_ZIPS:-}" ] || "${GO:-go}" run ./internal/lambdazip -o "$zips" > "$run/lambda.log" 2>&1 9>&- ||
    fail "the Lambda functions can't be built: $(tail -n 1 "$run/lambda.log") ($run/lambda.log)"
}

check_tools() {
  local missing=()
  if [ "$engine" = native ]; then
    PATH=$bin:$PATH command -v redis-server > /dev/null || missing+=(redis-server)
    [ "$store" != minio ] || [ -x "$bin/minio" ] || missing+=(minio)
    [ "$store" = minio ] || [ -x .cache/clients/localstack/bin/python ] || missing+=("LocalStack (Python 3.13 or later)")
  fi
  [ -x "$bin/tofu" ] || missing+=(OpenTofu)
  [ -x "$bin/provider/terraform-provider-aws" ] || missing+=("the Terraform provider")
  [ -x "$moto" ] || missing+=(moto)
  if [ "$engine" = native ]; then
    command -v java > /dev/null || missing+=(java)
    [ -d "${DYNAMODB_LIB:-$HOME/.cache/dynamodb-jars}" ] || missing+=("DynamoDB Local")
  fi
  command -v curl > /dev/null || missing+=(curl)
  [ -x "$cirrolog" ] || missing+=("$cirrolog")
  [ ${#missing[@]} = 0 ] || fail "missing, and could not be installed (is there a network?): $(printf '%s, ' "${missing[@]}" | sed 's/, $//') ($run/deps.log)"
}

check_ports() {
  vacant "$minio_port" "$store_name" MINIO_PORT
  vacant "$redis_port" Redis REDIS_PORT
  vacant "$dynamodb_port" "DynamoDB Local" DYNAMODB_PORT
  vacant "$aws_port" "the AWS emulator" AWS_PORT
  local i
  for i in 0 1 2; do
    vacant "${kafka[$i]}" "Kafka of agent $((i + 1))" KAFKA_PORTS
    vacant "${http[$i]}" "HTTP of agent $((i + 1))" HTTP_PORTS
    vacant "${admin[$i]}" "admin of agent $((i + 1))" ADMIN_PORTS
    vacant "${rpc[$i]}" "RPC of agent $((i + 1))" RPC_PORTS
  done
}

# start_services starts them by Compose if that is to be, and without it when that fails: an engine may have no network.
start_services() {
  if [ "$engine" = docker ]; then
    echo "localstack: starting $store_name, Redis, DynamoDB Local and the AWS emulator by Docker Compose"
    launch compose "${compose[@]}" up --no-color --abort-on-container-exit
    if (ready 300) 2> "$run/compose-failed.log"; then return; fi
    [ "${ENGINE:-auto}" = auto ] || fail "$(sed "s/^$me: //" "$run/compose-failed.log")"
    echo "localstack: starting without Docker Compose, which fails: $(sed "s/^$me: //" "$run/compose-failed.log")"
    stop_all
    use native
    install
    check_tools
  fi
  echo "localstack: starting $store_name, Redis, DynamoDB Local and the AWS emulator"
  case $store in
  minio) minio_launch "$minio_port" ;;
  localstack) launch localstack ./localstack/emulator/run.sh localstack "$minio_port" "$run/localstack-data" ;;
  esac
  redis_launch "$redis_port"
  launch dynamodb ./localstack/dynamodb/dynamodb.sh run "$dynamodb_port"
  launch aws ./localstack/emulator/run.sh moto "$aws_port" "$run/aws-data"
  ready 60
}

ready() { # SECONDS for each
  local health=/minio/health/ready all=("${services[@]}")
  [ "$store" = minio ] || health=/_localstack/health
  [ "$engine" != docker ] || all=(compose compose compose compose)
  await "${all[0]}" "$1" answers "http://127.0.0.1:$minio_port$health"
  await "${all[1]}" "$1" pongs "$redis_port"
  await "${all[2]}" "$1" answered "http://127.0.0.1:$dynamodb_port"
  await "${all[3]}" "$1" answers "http://127.0.0.1:$aws_port/moto-api/"
}

# answered URL, pongs PORT: tell whether there is an answer, of whatever kind. Docker listens before the server does.
answered() { curl -s -m 5 -o /dev/null "$1"; }
pongs() {
  local line
  { exec 3<> "/dev/tcp/127.0.0.1/$1" && printf 'PING\r\n' >&3 && read -rt 2 line <&3 && exec 3>&-; } 2> /dev/null
}

# tofu ARGS…: OpenTofu in a copy of terraform/ under $run, which keeps state and modules out of the sources.
tofu() {
  export TF_VAR_dynamodb_url=http://127.0.0.1:$dynamodb_port TF_VAR_emulator_url=http://127.0.0.1:$aws_port
  export TF_VAR_minio="{url=\"http://127.0.0.1:$minio_port\",access_key=\"$AWS_ACCESS_KEY_ID\",secret_key=\"$AWS_SECRET_ACCESS_KEY\"}"
  export TF_CLI_CONFIG_FILE=${LOCALSTACK_TF_CONFIG:-$run/tofu.rc} CHECKPOINT_DISABLE=1 TF_IN_AUTOMATION=1
  "$bin/tofu" -chdir="$run/terraform/examples/local-emulator" "$@"
}

apply() {
  echo "localstack: applying terraform/examples/local-emulator"
  rm -rf "$run/terraform"
  cp -r terraform "$run/terraform"
  # A development override needs no registry, no lock file and no init; only the modules are to be found.
  printf 'provider_installation {\n  dev_overrides {\n    "hashicorp/aws" = "%s"\n  }\n  direct {}\n}\n' "$bin/provider" > "$run/tofu.rc"
  local first=get
  [ -z "${LOCALSTACK_TF_CONFIG:-}" ] || first=init
  { tofu $first -no-color && tofu apply -no-color -auto-approve -input=false; } > "$run/tofu.log" 2>&1 9>&- ||
    fail "terraform: $(grep -m 1 -o 'Error: .*' "$run/tofu.log" || tail -n 1 "$run/tofu.log") ($run/tofu.log)"
  bucket_url=$(tofu output -no-color -raw bucket_url 2> /dev/null)
  metadata_url=$(tofu output -no-color -raw metadata_url 2> /dev/null)
  [ "$metadata" = dynamodb ] || metadata_url=redis://127.0.0.1:$redis_port
}

# hooks runs what is in init/, when bucket and table are there, with the AWS emulator's Python, which has AWS's library.
hooks() {
  echo "localstack: creating the Lambda functions"
  local hook
  for hook in localstack/init/*.py; do
    AWS_URL=http://127.0.0.1:$aws_port LAMBDA_ZIPS=$zips BUCKET_URL=$bucket_url METADATA_URL=$metadata_url \
      BROKERS=127.0.0.1:${kafka[0]},127.0.0.1:${kafka[1]},127.0.0.1:${kafka[2]} \
      "$moto" "$hook" > "$run/hook.log" 2>&1 9>&- || fail "$hook: $(tail -n 1 "$run/hook.log") ($run/hook.log)"
  done
}

start_agents() {
  echo "localstack: starting three agents"
  local i
  for i in 0 1 2; do
    start_agent "$i"
  done
  for i in 0 1 2; do
    await "agent$((i + 1))" 60 answers "http://127.0.0.1:${admin[$i]}/readyz"
  done
}

start_agent() { # INDEX
  launch "agent$(($1 + 1))" "$cirrolog" agent --node-id "$(($1 + 1))" --data-dir "$run/agent$(($1 + 1))" --bucket "$bucket_url" --metadata "$metadata_url" --rack "zone-$(($1 + 1))" \
    --kafka-addr "127.0.0.1:${kafka[$1]}" --http-addr "127.0.0.1:${http[$1]}" --admin-addr "127.0.0.1:${admin[$1]}" --rpc-addr "127.0.0.1:${rpc[$1]}" \
    --memory-tail 64MiB --cache-size 1GiB
}

help_text() {
  local brokers=127.0.0.1:${kafka[0]},127.0.0.1:${kafka[1]},127.0.0.1:${kafka[2]} c=${cirrolog#"$PWD/"}
  cat << END
Three agents: Kafka on $brokers
Bucket   $bucket_url
Metadata $metadata_url

  export CIRROLOG_BROKERS=$brokers CIRROLOG_ADMIN=127.0.0.1:${admin[0]}
  $c topic create words -p 3 -c segment.bytes=1048576
  seq 1 1000000 | $c produce words
  $c consume words -o start -e | wc -l
  $c cluster agents
  kill -9 \$(cut -d' ' -f1 $run/agent3.pid)        # an agent dies; the others go on with its partitions
  $c consume words -o start -e | wc -l
  curl -s -d hello http://127.0.0.1:${http[0]}/api/v1/topics/words/messages

  export AWS_ACCESS_KEY_ID=$AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY=$AWS_SECRET_ACCESS_KEY
  $c replay words --bucket '$bucket_url' | wc -l    # what is in segments already, read from the bucket alone
  localstack/localstack.sh tofu plan                   # what Terraform created, in $store_name, DynamoDB Local and the AWS emulator

\`make localstack-up\` starts an agent again that died; \`make localstack-down\` stops all and deletes its data. Logs: $run/*.log
END
}

up() {
  check_arguments
  lock
  local name dead=()
  for name in "${services[@]}" "${agents[@]}"; do running "$name" || dead+=("$name"); done
  if [ -f "$run/help" ] && [ ${#dead[@]} -lt $((${#services[@]} + 3)) ]; then resume "${dead[@]}"; return; fi
  stop_all # of a start that was killed
  rm -f "$run/services"
  known
  check_ports
  rm -rf "$run"
  mkdir -p "$run"
  touch "$run/.localstack"
  if [ "$engine" = auto ]; then
    engine=native
    ! timeout 10 docker info > /dev/null 2>&1 || ! docker compose version > /dev/null 2>&1 || engine=docker
  fi
  use "$engine"
  export LOCALSTACK_OF=$run # marks all that is started, for interrupted
  local code=0
  trap interrupted INT TERM HUP
  set -m # a process group of its own
  start < /dev/null &
  set +m
  wait $! || code=$?
  trap - INT TERM HUP
  [ $code = 0 ] || stop_all
  [ $code != 0 ] || cat "$run/help"
  exit $code
}

# start does the work of up beside the shell that takes the signals: bash may lose a signal, or fail, when it comes in
# the middle of an expansion, and does not while it waits.
start() {
  install
  check_tools
  start_services
  apply
  hooks
  start_agents
  printf 'bucket_url=%q\nmetadata_url=%q\n' "$bucket_url" "$metadata_url" > "$run/urls"
  help_text > "$run/help"
}

# interrupted ends start, then what it launched, also what it had no time to note.
interrupted() {
  trap '' INT TERM HUP
  local environ
  [ -z "${!:-}" ] || { kill -9 -- "-$!"; wait $!; } 2> /dev/null || true
  stop_all
  for environ in /proc/[0-9]*/environ; do
    ! grep -qzFx "LOCALSTACK_OF=$run" "$environ" 2> /dev/null || kill -9 "${environ//[^0-9]/}" 2> /dev/null || true
  done
  fail "interrupted"
}

# resume DEAD…: of a cluster that was up, starts agents again. The services keep nothing over their end.
resume() {
  local name i
  for name in "$@"; do
    case $name in
    agent*) ;;
    *) fail "$name has died: run \`make localstack-down\`, then up again ($run/$name.log)" ;;
    esac
  done
  . "$run/urls"
  for name in "$@"; do
    i=$((${name#agent} - 1))
    echo "localstack: $name has died, starting it again"
    start_agent $i
    await "$name" 60 answers "http://127.0.0.1:${admin[$i]}/readyz"
  done
  [ $# -gt 0 ] || echo "localstack: runs already"
  cat "$run/help"
}

down() {
  lock
  local name alive=0
  for name in "${services[@]}" "${agents[@]}"; do ! running "$name" || alive=$((alive + 1)); done
  stop_all
  rm -rf "$run" "$run.lock"
  if [ $alive = 0 ]; then echo "localstack: nothing runs"; else echo "localstack: stopped $alive processes"; fi
}

case ${1:-} in
up) up ;;
down) down ;;
tofu) [ -d "$run/terraform" ] || fail "nothing was created: run \`make localstack-up\`"; shift; tofu "$@" ;;
*) sed -n 2,14p "$0"; exit 2 ;;
esac
