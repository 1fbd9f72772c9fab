#!/bin/sh
# A fifth of what the node sends to others is lost.
# k3s: connections are slow and last.
set -eu
node=${1:-worker-1}
p1 fault loss "$node" --percent 20 --for "${FOR:-2m}"
p1 status || :
p1 exec "$node" --root -- 'tc -s qdisc show | grep -A 1 netem'
p1 fault heal "$node"
