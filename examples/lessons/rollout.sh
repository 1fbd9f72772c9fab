#!/bin/sh
# A rolling update, pod by pod, and its undo: in the file, which lasts, and by `kubectl rollout undo`, which is quick.
set -eu
show() { p1 kubectl get deployment web -o 'jsonpath=image: {.spec.template.spec.containers[0].image}{"\n"}'; }
cp apps/web.yaml web.before
trap 'mv web.before apps/web.yaml' EXIT
sed 's/nginx:1.28-alpine/nginx:1.29-alpine/' web.before >apps/web.yaml
p1 up                               # applies it, and waits until all three are new
show
cp web.before apps/web.yaml
p1 up                               # the undo that lasts
show
p1 kubectl rollout history deployment/web
p1 kubectl rollout undo deployment/web
p1 kubectl rollout status deployment/web --timeout=3m
show
p1 plan --deep || :                 # says that it is not as in the file
p1 up --deep
