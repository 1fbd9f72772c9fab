#!/bin/sh
# Nothing passes between the node and all others; this host still reaches it.
# k3s: the node is NotReady 40 s after its last heartbeat, its pods are made elsewhere five minutes later, and its agent connects
# again by itself.
set -eu
node=${1:-worker-1}
p1 fault partition "$node" --for "${FOR:-2m}"
p1 status || :
p1 exec "$node" --root -- 'iptables -t raw -S P1-FAULT'
p1 fault heal "$node"
