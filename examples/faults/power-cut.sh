#!/bin/sh
# The plug of the machine is pulled; it is started when the fault ends.
# k3s: NotReady after 40 s; what was flushed is there when it is back, and k3s starts with the machine.
set -eu
node=${1:-worker-1}
p1 fault power-cut "$node" --for "${FOR:-2m}"
p1 status || :
p1 kubectl get nodes || :
p1 fault heal "$node"
