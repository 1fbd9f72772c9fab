#!/bin/sh
# Who may do what: `reader` may list the pods of `shop`, not delete them, and see nothing elsewhere.
set -eu
p1 kubectl -n shop get serviceaccounts,roles,rolebindings
may() { p1 kubectl auth can-i "$@" --as=system:serviceaccount:shop:reader; }
may list pods -n shop
for what in 'delete pods -n shop' 'list pods -n default'; do
    # shellcheck disable=SC2086
    if may $what; then exit 1; fi
done
