#!/bin/sh
# Which replica answers each of nine requests, by turns; a node that is cordoned takes no new pods, and the one it has goes on answering.
set -eu
ask() {
    for _ in 1 2 3 4 5 6 7 8 9; do curl --silent --fail --max-time 5 http://192.168.56.110; done | sort | uniq -c
}
p1 kubectl get endpoints web
ask
p1 kubectl cordon worker-2
trap 'p1 kubectl uncordon worker-2' EXIT
p1 kubectl get nodes
ask
