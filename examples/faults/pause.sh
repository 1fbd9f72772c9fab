#!/bin/sh
# The machine stands still, and its clock is set when it goes on.
# k3s: NotReady after 40 s, Ready again with the first heartbeat.
set -eu
node=${1:-worker-1}
p1 fault pause "$node" --for "${FOR:-2m}"
p1 status || :
p1 kubectl get nodes || :
p1 fault heal "$node"
