#!/bin/sh
# Run by Vagrant's shell provisioner as root; INSTALL_K3S_EXEC, K3S_TOKEN and K3S_URL are set.
set -eu
chmod 755 /tmp/k3s
mv /tmp/k3s /usr/local/bin/k3s
if [ -e /tmp/images.tar ]; then
    mkdir -p /var/lib/rancher/k3s/agent/images
    mv /tmp/images.tar /var/lib/rancher/k3s/agent/images/
fi
INSTALL_K3S_SKIP_DOWNLOAD=true sh /tmp/install.sh
