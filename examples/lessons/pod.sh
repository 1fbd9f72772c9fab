#!/bin/sh
# A bare Pod: it runs, and when it is deleted nothing brings it back. A Deployment's pod comes again.
set -eu
p1 kubectl apply -f - <pod.yaml
p1 kubectl wait pod/hello --for=condition=Ready --timeout=3m
p1 kubectl get pod hello -o wide
p1 kubectl delete pod hello
p1 kubectl get pod hello --ignore-not-found
one=$(p1 kubectl get pods -l app=web -o 'jsonpath={.items[0].metadata.name}')
p1 kubectl delete pod "$one"
p1 kubectl rollout status deployment/web --timeout=3m
p1 kubectl get pods -l app=web
