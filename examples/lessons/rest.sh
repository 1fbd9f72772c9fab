#!/bin/sh
# The API is REST over HTTPS: curl with the certificates of the kubeconfig does what kubectl does.
set -eu
umask 077
keys=$(mktemp -d)
trap 'rm -r "$keys"' EXIT
config=$(p1 kubeconfig)
value() { sed -n "s/^ *$1: //p" "$config" | head -n 1; }
value certificate-authority-data | base64 -d >"$keys/ca"
value client-certificate-data | base64 -d >"$keys/cert"
value client-key-data | base64 -d >"$keys/key"
server=$(value server)
ask() { curl --silent --show-error --fail --cacert "$keys/ca" --cert "$keys/cert" --key "$keys/key" "$@"; }
ask "$server/version"
ask "$server/api/v1/nodes" | grep -o '"kubeletVersion": *"[^"]*"'
ask "$server/apis/apps/v1/namespaces/default/deployments/web" | grep -o '"readyReplicas": *[0-9]*'
# Two replicas, by a patch; then three, as in the file.
for replicas in 2 3; do
    ask --request PATCH --header 'Content-Type: application/merge-patch+json' --data "{\"spec\": {\"replicas\": $replicas}}" \
        "$server/apis/apps/v1/namespaces/default/deployments/web" | grep -o '"replicas": *[0-9]*' | head -n 1
done
# Without a certificate nobody is let in.
curl --silent --cacert "$keys/ca" --output "$keys/answer" --write-out 'without a certificate: %{http_code}\n' "$server/api/v1/nodes"
