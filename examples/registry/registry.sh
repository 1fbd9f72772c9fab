#!/bin/sh
# The registry that Debian packages, with its images on the disk of their own. May be run twice.
set -eu
export DEBIAN_FRONTEND=noninteractive
disk=/dev/disk/by-id/virtio-images at=/var/lib/docker-registry
if ! command -v docker-registry >/dev/null; then
  apt-get update -q
  apt-get install -q -y docker-registry e2fsprogs
fi
blkid "$disk" >/dev/null || mkfs.ext4 -q "$disk"
grep -q "^$disk " /etc/fstab || echo "$disk $at ext4 defaults,nofail 0 2" >>/etc/fstab
mountpoint -q "$at" || { systemctl stop docker-registry; mount "$at"; chown docker-registry: "$at"; }
systemctl enable docker-registry
systemctl restart docker-registry
