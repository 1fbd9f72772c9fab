#!/bin/sh
# The cable of the node is pulled: nobody reaches it, this host included.
# k3s: as in a partition.
set -eu
node=${1:-worker-1}
p1 fault link-down "$node" --for "${FOR:-2m}"
p1 status || :
p1 kubectl get nodes || :
p1 fault heal "$node"
