#!/usr/bin/env bash
# Installs what the tests need and is missing. Says what it could not install;
# the tests that need it then skip, or fail with REQUIRE_ALL=1.
#   deps.sh [localstack|s3|terraform|release]     all, or only what localstack.sh, it with STORE=localstack, it with Docker, or
#                                                 `make snapshot` needs
set -uo pipefail
cd "$(dirname "$0")/.."
bin=${LOCALSTACK_BIN:-$PWD/.cache/bin}
mkdir -p "$bin"

minio=github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c
goreleaser=github.com/goreleaser/goreleaser/v2@v2.15.0
staticcheck=honnef.co/go/tools/cmd/staticcheck@v0.8.2

apt_get() { # apt_get PROGRAM PACKAGE: installs PACKAGE when PROGRAM is missing
  command -v "$1" >/dev/null 2>&1 && return
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "deps: $1 is missing: install the package $2" >&2
    return
  fi
  [ -n "${updated:-}" ] || apt-get update -qq >/dev/null 2>&1
  updated=1
  echo "deps: installing $2"
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null 2>&1 || echo "deps: could not install $2" >&2
}

deb_file() { # deb_file PROGRAM PACKAGE: takes PROGRAM out of PACKAGE, whose service is not wanted
  [ -x "$bin/$1" ] || command -v "$1" >/dev/null 2>&1 && return
  if ! command -v apt-get >/dev/null 2>&1; then
    echo "deps: $1 is missing: install the package $2" >&2
    return
  fi
  tmp=$(mktemp -d)
  echo "deps: taking $1 out of $2"
  [ "$(id -u)" != 0 ] || [ -n "${updated:-}" ] || apt-get update -qq >/dev/null 2>&1
  updated=1
  if (cd "$tmp" && apt-get download -qq "$2" >/dev/null 2>&1 && dpkg-deb -x "$2"_*.deb . && cp "usr/bin/$1" "$bin/$1.$$" && mv "$bin/$1.$$" "$bin/$1"); then :; else echo "deps: could not get $1" >&2; fi
  rm -rf "$tmp"
}

redis_server() { # redis-server is a link to redis-check-rdb of redis-tools; the package redis-server adds a service, which is not wanted
  [ -x "$bin/redis-server" ] || command -v redis-server >/dev/null 2>&1 && return
  apt_get redis-check-rdb redis-tools
  ! command -v redis-check-rdb >/dev/null 2>&1 || ln -sf "$(command -v redis-check-rdb)" "$bin/redis-server"
}

go_tool() { # go_tool PROGRAM MODULE@VERSION
  [ -x "$bin/$1" ] && [ "$(cat "$bin/$1.version" 2>/dev/null)" = "$2" ] && return
  echo "deps: building $2"
  if GOBIN=$bin GOFLAGS=-mod=mod go install "$2"; then echo "$2" > "$bin/$1.version"; else echo "deps: could not build $1" >&2; fi
}

# go_module PROGRAM DIR PACKAGE: builds PACKAGE as the module in DIR pins it, for what `go install` can't build
go_module() {
  local what
  what=$(cd "$2" && cat go.mod go.sum ./*.go ./*/*.go ./*.json 2>/dev/null | sha256sum)
  [ -x "$bin/$1" ] && [ "$(cat "$bin/$1.version" 2>/dev/null)" = "$what" ] && return
  echo "deps: building $1"
  mkdir -p "$(dirname "$bin/$1")"
  if (cd "$2" && ${GO:-go} build -trimpath -ldflags '-s -w' -o "$bin/$1.$$" "$3") && mv "$bin/$1.$$" "$bin/$1"; then echo "$what" > "$bin/$1.version"; else echo "deps: could not build $1" >&2; fi
}

# stamped DIR WHAT COMMAND…: runs COMMAND when DIR was not made for WHAT yet.
stamped() {
  local dir=$1 what=$2; shift 2
  [ "$(cat "$dir/stamp" 2>/dev/null)" = "$what" ] && return
  echo "deps: installing $dir"
  mkdir -p "$dir"
  if "$@"; then echo "$what" > "$dir/stamp"; else echo "deps: could not install $dir" >&2; fi
}

# venv DIR PYTHON REQUIREMENTS: a virtual environment, made anew when the checkout has been moved: its programs name DIR.
venv() { stamped "$1" "$PWD $("$2" --version 2>&1; cat "$3")" make_venv "$@"; }

# make_venv DIR PYTHON REQUIREMENTS: certificates are those of the system, as Debian's own pip has them.
make_venv() {
  [ ! -s /etc/ssl/certs/ca-certificates.crt ] || local -x PIP_CERT=${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}
  "$2" -m venv --clear "$1" && "$1/bin/pip" install -q --retries 2 --disable-pip-version-check -r "$3"
}

# What localstack.sh runs beside servers in containers.
terraform_deps() {
  apt_get curl curl
  python3 -c 'import ensurepip, venv' 2>/dev/null || apt_get "python3 with venv" python3-venv
  venv .cache/clients/moto python3 localstack/moto/requirements.txt
  go_module tofu localstack/tofu github.com/opentofu/opentofu/cmd/tofu
  go_module provider/terraform-provider-aws localstack/provider .
}

# What it runs without containers.
localstack_deps() {
  apt_get java default-jre-headless
  [ -d "${DYNAMODB_LIB:-$HOME/.cache/dynamodb-jars}" ] || apt_get mvn maven
  redis_server
  ! command -v mvn >/dev/null 2>&1 || ./localstack/dynamodb/dynamodb.sh jars || echo "deps: could not download DynamoDB Local" >&2
  go_tool minio "$minio"
  terraform_deps
}

# python_new prints a Python that LocalStack's S3 runs on: 3.13 or later, with venv. Debian 12 has none; then it comes
# from Maven Central, where it is packed for programs in Java.
python_new() {
  local python
  for python in "${LOCALSTACK_PYTHON:-}" python3 python3.14 python3.13 "$HOME"/.pyenv/versions/3.1[3-9]*/bin/python3; do
    [ -z "$python" ] || ! "$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 13))' 2>/dev/null || { echo "$python"; return; }
  done
  python=$PWD/.cache/clients/python3.13
  [ -x "$python/bin/python3.13" ] || python_maven "$python" >&2 || return 1
  echo "$python/bin/python3.13"
}

python_maven() { # DIR
  local system=linux-x86_64 new=$1.$$ version=3.13.0-1.5.11
  [ "$(uname -m)" = x86_64 ] || system=linux-arm64
  echo "deps: getting Python ${version%-*}"
  rm -rf "$new" && mkdir -p "$new" &&
    mvn -q -B -Dstyle.color=never dependency:get -Dtransitive=false -Dartifact="org.bytedeco:cpython:$version:jar:$system" &&
    mvn -q -B -Dstyle.color=never dependency:copy -Dartifact="org.bytedeco:cpython:$version:jar:$system" -DoutputDirectory="$new" &&
    python3 -m zipfile -e "$new/cpython-$version-$system.jar" "$new/all" && mv "$new/all/org/bytedeco/cpython/$system" "$new/python" &&
    chmod +x "$new"/python/bin/* && cp "$new"/python/libffi.so* "$new/python/lib/python3.13/lib-dynload/" && # where _ctypes looks
    rm -rf "$new/python/lib/python3.13/test" "$new/python/include" &&
    { rm -rf "$1"; mv "$new/python" "$1"; }
  local code=$?
  rm -rf "$new"
  return $code
}

# LocalStack, whose S3 tests and STORE=localstack use beside MinIO.
s3_deps() {
  local python
  if python=$(python_new); then
    venv .cache/clients/localstack "$python" localstack/emulator/requirements.txt
  else
    echo "deps: LocalStack is left out: there is no Python 3.13 or later" >&2
  fi
}

# image_base DIR: what gcr.io/distroless/static has, of the same packages, for where that image can't be had.
image_base() {
  local debs p
  debs=$(mktemp -d)
  [ "$(id -u)" != 0 ] || [ -n "${updated:-}" ] || apt-get update -qq >/dev/null 2>&1
  updated=1
  rm -rf "$1" && mkdir -p "$1" &&
    (cd "$debs" && apt-get download -qq base-files netbase tzdata ca-certificates >/dev/null 2>&1 && for p in *.deb; do dpkg-deb -x "$p" "$1" || exit 1; done) &&
    mkdir -p "$1/etc/ssl/certs" "$1/home/nonroot" "$1/tmp" && chmod 1777 "$1/tmp" &&
    cat "$1"/usr/share/ca-certificates/mozilla/*.crt > "$1/etc/ssl/certs/ca-certificates.crt" &&
    printf 'root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n' > "$1/etc/passwd" &&
    printf 'root:x:0:\nnobody:x:65534:\nnonroot:x:65532:\n' > "$1/etc/group" &&
    rm -rf "$1/usr/share/doc" "$1/usr/share/man" "$1/usr/share/ca-certificates" "$1/usr/sbin" "$1/usr/share/lintian" "$1/etc/update-motd.d"
  local code=$?
  rm -rf "$debs"
  return $code
}

node_clients() { cp "$matrix/node/package.json" "$matrix/node/package-lock.json" "$1" && (cd "$1" && npm ci --silent --no-audit --no-fund >&2); }

case ${1:-} in
localstack) localstack_deps; exit 0;;
terraform) terraform_deps; exit 0;;
s3) s3_deps; exit 0;;
release) go_tool goreleaser "$goreleaser"; exit 0;;
?*) sed -n 2,5p "$0"; exit 2;;
esac
apt_get kcat kcat
apt_get mvn maven
deb_file promtool prometheus
apt_get node nodejs
apt_get npm npm
localstack_deps
# The client libraries that the matrix runs, at pinned versions.
matrix=localstack/e2e/clients
venv .cache/clients/python python3 $matrix/python/requirements.txt
stamped .cache/clients/node "$(node --version 2>&1; cat $matrix/node/package-lock.json)" node_clients .cache/clients/node
(cd $matrix/go && ${GO:-go} mod download) || echo "deps: could not download the Go clients" >&2
! command -v mvn >/dev/null 2>&1 || ./localstack/bench/kafka/kafka.sh jars || echo "deps: could not download Kafka" >&2
go_tool staticcheck "$staticcheck"
apt_get systemd-analyze systemd
# What the tests of infra read charts and Compose files with, and the base of the image.
go_module helm localstack/tools helm.sh/helm/v3/cmd/helm
go_module compose localstack/tools ./compose
go_module monitoring localstack/tools ./monitoring
s3_deps
venv .cache/clients/schemas python3 localstack/tools/requirements.txt
! command -v apt-get >/dev/null 2>&1 || stamped .cache/image-base "2 $(cat /etc/debian_version)" image_base "$PWD/.cache/image-base"
exit 0
