#!/bin/sh
# The disk does 20 reads and writes a second.
# k3s: on a server `apply request took too long`; on a worker images and pods come slowly.
set -eu
node=${1:-worker-1}
p1 fault slow-disk "$node" --iops 20 --for "${FOR:-2m}"
p1 status || :
p1 exec "$node" --root -- 'time -p dd if=/dev/zero of=/root/p1-probe bs=64k count=16 oflag=direct; rm -f /root/p1-probe'
p1 fault heal "$node"
