#!/bin/sh
# What the node sends to others is late by 300 ms.
# k3s: nodes stay Ready; etcd between servers elects another leader from about 5 s on.
set -eu
node=${1:-worker-1}
p1 fault latency "$node" --delay 300ms --for "${FOR:-2m}"
p1 status || :
p1 exec "$node" --root -- 'tc qdisc show | grep netem'
p1 fault heal "$node"
