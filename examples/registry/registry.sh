#!/bin/sh
# The registry that Debian packages, listening on all addresses. May be run twice.
set -eu
export DEBIAN_FRONTEND=noninteractive
if ! command -v docker-registry >/dev/null; then
  apt-get update -q
  apt-get install -q -y docker-registry
fi
systemctl enable --now docker-registry
