#!/bin/sh
# What nodes and pods use, by the metrics-server that k3s brings along; its first figures come after a minute.
set -eu
p1 kubectl -n kube-system rollout status deployment/metrics-server --timeout=3m
p1 kubectl top nodes
p1 kubectl top pods -A
