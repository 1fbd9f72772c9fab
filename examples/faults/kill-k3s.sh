#!/bin/sh
# k3s is killed as often as systemd brings it back.
# k3s: containers go on; the node is NotReady after 40 s, and Ready soon after the end.
set -eu
node=${1:-worker-1}
p1 fault kill-k3s "$node" --for "${FOR:-2m}"
p1 status || :
p1 exec "$node" --root -- 'systemctl show -p ActiveState,NRestarts k3s k3s-agent'
p1 fault heal "$node"
