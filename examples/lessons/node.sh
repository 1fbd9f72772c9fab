#!/bin/sh
# cat /etc/os-release; uname -v; ip addr; ps -ef: on a node, which is a whole machine, and in a container on it,
# which is another system with few processes and addresses of its own, on the same kernel.
set -eu
look='head -n 2 /etc/os-release; uname -v; ip -brief address; ps -ef | wc -l'
p1 exec -- "$look"
trap 'p1 kubectl delete pod look --ignore-not-found' EXIT
# docker run -ti rockylinux:8; by hand `p1 kubectl run look --image=rockylinux:8 -ti --rm -- bash`.
p1 kubectl run look --image=rockylinux:8 --restart=Never -- sh -c 'head -n 2 /etc/os-release; uname -v; cat /proc/net/fib_trie; ls -d /proc/[0-9]*'
p1 kubectl wait pod/look --for='jsonpath={.status.phase}=Succeeded' --timeout=3m
p1 kubectl logs look
