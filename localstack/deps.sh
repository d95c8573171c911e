#!/usr/bin/env bash
# Installs what the tests need and is missing. Says what it could not install;
# the tests that need it then skip, or fail with REQUIRE_ALL=1.
set -uo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/.cache/bin
mkdir -p "$bin"

minio=github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c
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

go_tool() { # go_tool PROGRAM MODULE@VERSION
  [ -x "$bin/$1" ] && [ "$(cat "$bin/$1.version" 2>/dev/null)" = "$2" ] && return
  echo "deps: building $2"
  if GOBIN=$bin GOFLAGS=-mod=mod go install "$2"; then echo "$2" > "$bin/$1.version"; else echo "deps: could not build $1" >&2; fi
}

apt_get kcat kcat
apt_get java default-jre-headless
apt_get mvn maven
apt_get curl curl
deb_file promtool prometheus
go_tool minio "$minio"
go_tool staticcheck "$staticcheck"
exit 0
