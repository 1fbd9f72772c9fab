#!/bin/sh
# The clock is an hour behind. (Ahead, a server is refused: it would delete what is old by it.)
# k3s: certificates made since are not valid yet for this node.
set -eu
node=${1:-worker-1}
p1 fault clock "$node" --by=-1h --for "${FOR:-2m}"
p1 status || :
p1 exec "$node" -- date
p1 fault heal "$node"
