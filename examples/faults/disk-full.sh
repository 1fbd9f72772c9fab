#!/bin/sh
# Nothing is left on the disk below /var/lib.
# k3s: the kubelet reports DiskPressure, evicts pods with their emptyDir volumes, and takes none until five minutes after the end.
set -eu
node=${1:-worker-1}
p1 fault disk-full "$node" --for "${FOR:-2m}"
p1 status || :
p1 exec "$node" --root -- 'df -h /var/lib; echo x >/var/lib/p1-probe || echo no room; rm -f /var/lib/p1-probe'
p1 fault heal "$node"
