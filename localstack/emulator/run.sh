#!/usr/bin/env bash
# An emulator of AWS, in the foreground, on loopback, with nothing but S3, IAM and STS of LocalStack.
#   run.sh localstack|moto PORT DIR      DIR has what it writes
set -euo pipefail
[ $# = 3 ] || { sed -n 2,3p "$0"; exit 2; }
clients=$(cd "$(dirname "$0")/../.." && pwd)/.cache/clients
case $1 in
localstack)
  mkdir -p "$3/tmp"
  # It takes a machine that is a container itself for its image, and listens on all addresses of IPv4 whatever it is
  # told. An address of IPv4 in IPv6 it obeys.
  address=[::ffff:127.0.0.1]
  grep -q . /proc/net/if_inet6 2> /dev/null || address=127.0.0.1
  export DISABLE_EVENTS=1 SKIP_SSL_CERT_DOWNLOAD=1 SERVICES=s3,iam,sts GATEWAY_LISTEN=$address:$2 LOCALSTACK_HOST=127.0.0.1:$2
  export OVERRIDE_IN_DOCKER=0 FILESYSTEM_ROOT=$3 TMPDIR=$3/tmp DNS_ADDRESS=0
  exec "$clients/localstack/bin/python" -m localstack.runtime.main ;;
moto) exec "$clients/moto/bin/python" -m moto.server -H 127.0.0.1 -p "$2" ;;
*) sed -n 2,3p "$0"; exit 2 ;;
esac
