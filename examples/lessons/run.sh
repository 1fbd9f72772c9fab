#!/bin/sh
# docker run -d -p 8080:80 nginx; docker ps; docker logs; docker rm -f
set -eu
trap 'p1 kubectl delete pod once --ignore-not-found' EXIT
p1 kubectl run once --image=nginx:1.28-alpine --port=80
p1 kubectl wait pod/once --for=condition=Ready --timeout=3m
p1 kubectl get pods
p1 exec server --root -- k3s crictl ps
p1 kubectl logs once
# The port of this host leads there for as long as p1 runs.
p1 forward pod/once 8080:80 &
forward=$!
trap 'kill $forward; p1 kubectl delete pod once --ignore-not-found' EXIT
curl --silent --show-error --fail --retry 9 --retry-connrefused --max-time 10 http://127.0.0.1:8080
