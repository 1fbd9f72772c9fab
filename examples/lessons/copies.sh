#!/bin/sh
# k3d cluster create, delete, create: here a copy of the whole cluster, and the way back to a moment, in seconds.
set -eu
p1 up --keep
p1 fork -n 2 -- p1 kubectl delete deployment web    # in two copies at once, which go when it ends
p1 kubectl get deployment web                       # the original has it
p1 kubectl delete deployment web
p1 --yes reset
p1 kubectl rollout status deployment/web --timeout=3m
p1 kubectl get deployment web
