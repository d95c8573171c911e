#!/bin/bash
# Makes the instance ready for cirrolog@agent, at each boot: mounts the instance store, fetches the program, and writes
# the agent's flags with this instance's addresses and zone. Run by cirrolog-setup.service.
set -euo pipefail
root=${ROOT:-} # tests have another
imds=${IMDS:-http://169.254.169.254}
# shellcheck source=/dev/null
. "$root/etc/cirrolog/instance.env"

fail() { echo "cirrolog-setup: $*" >&2; exit 1; }

# retried WHAT COMMAND…: for ten minutes: a role, a route or an endpoint may be younger than the instance.
retried() {
  local what=$1; shift
  for _ in $(seq 60); do
    if "$@"; then return; fi
    sleep "${PAUSE:-10}"
  done
  fail "$what: not in ten minutes"
}

meta() { # meta PATH: of the instance, by IMDSv2
  local token
  token=$(curl -sf -m 5 --retry 5 -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 60" "$imds/latest/api/token") &&
    curl -sf -m 5 --retry 5 -H "X-aws-ec2-metadata-token: $token" "$imds/latest/meta-data/$1"
}

# The instance store is empty at the first boot and after a stop, and as it was after a reboot. Several disks become one.
disk() {
  local at=$root/var/lib/private/cirrolog device devices
  install -d -m 0700 "$root/var/lib/private" # as systemd has it for DynamicUser
  mkdir -p "$at"
  if mountpoint -q "$at"; then return; fi
  if command -v mdadm > /dev/null; then mdadm --assemble --scan > /dev/null 2>&1 || true; fi
  device=$(blkid -L cirrolog || true)
  if [ -z "$device" ]; then
    mapfile -t devices < <(lsblk -dnpo NAME,MODEL | awk '/Amazon EC2 NVMe Instance Storage/ { print $1 }')
    case ${#devices[@]} in
    0) fail "this instance has no instance store: choose another type" ;;
    1) device=${devices[0]} ;;
    *)
      command -v mdadm > /dev/null || retried "installing mdadm" dnf install -q -y mdadm
      device=/dev/md/cirrolog
      mdadm --create "$device" --run --level=0 --raid-devices=${#devices[@]} "${devices[@]}"
      ;;
    esac
    mkfs.xfs -q -f -L cirrolog "$device"
  fi
  mount -o noatime "$device" "$at"
}

download() { # download URL FILE
  case $1 in
  s3://*) aws s3 cp --only-show-errors "$1" "$2" ;;
  *) curl -sSfL -m 300 -o "$2" "$1" ;;
  esac
}

program() {
  local bin=$root/usr/bin/cirrolog stamp=$root/etc/cirrolog/program.sha256 tmp
  if [ -x "$bin" ] && [ "$(cat "$stamp" 2> /dev/null)" = "$PROGRAM_SHA256" ]; then return; fi
  tmp=$(mktemp -d)
  retried "fetching $PROGRAM_URL" download "$PROGRAM_URL" "$tmp/file"
  echo "$PROGRAM_SHA256  $tmp/file" | sha256sum --status -c ||
    fail "$PROGRAM_URL has the SHA-256 $(sha256sum < "$tmp/file" | cut -d' ' -f1), not $PROGRAM_SHA256 as Terraform was told"
  case $PROGRAM_URL in
  *.rpm)
    mv "$tmp/file" "$tmp/cirrolog.rpm"
    rpm -U --replacepkgs --oldpackage "$tmp/cirrolog.rpm"
    ;;
  *.tar.gz)
    tar -xzf "$tmp/file" -C "$tmp"
    install -m 0755 "$(find "$tmp" -type f -name cirrolog -print -quit)" "$bin"
    ;;
  *) install -m 0755 "$tmp/file" "$bin" ;;
  esac
  rm -rf "$tmp"
  echo "$PROGRAM_SHA256" > "$stamp"
}

flags() {
  local ip zone
  ip=$(meta local-ipv4)
  zone=$(meta placement/availability-zone)
  {
    cat "$root/etc/cirrolog/flags.yaml"
    printf '"advertised-addr": "%s:9092"\n"rpc-advertised-addr": "%s:9645"\n"rack": "%s"\n' "$ip" "$ip" "$zone"
  } > "$root/etc/cirrolog/agent.yaml.new"
  mv "$root/etc/cirrolog/agent.yaml.new" "$root/etc/cirrolog/agent.yaml"
}

secret() { # its value is the URL of the metadata store
  local url
  url=$(aws secretsmanager get-secret-value --secret-id "$METADATA_SECRET" --query SecretString --output text) || return
  case $url in *[\'\ ]* | "") fail "the secret $METADATA_SECRET is no URL of a metadata store" ;; esac
  (umask 077 && echo "CIRROLOG_METADATA='$url'" > "$root/etc/cirrolog/agent.env")
}

AWS_DEFAULT_REGION=$(meta placement/region)
export AWS_DEFAULT_REGION
disk
program
flags
if [ -n "$METADATA_SECRET" ]; then retried "reading $METADATA_SECRET" secret; fi
