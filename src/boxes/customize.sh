#!/bin/sh
# Last step of a box's root file system, run by mmdebstrap with the root's path as its argument.
# Beside this script: user, hostname, key.pub, enabled (one unit per line).
set -eu
root=$1
recipe=$(dirname "$0")
user=$(cat "$recipe/user")

chroot "$root" useradd --create-home --shell /bin/bash --user-group --groups adm,systemd-journal "$user"
# No password, but not locked: sshd without PAM refuses locked accounts even with a key.
chroot "$root" usermod --password '*' "$user"
install -d -m 0700 "$root/home/$user/.ssh"
install -m 0600 "$recipe/key.pub" "$root/home/$user/.ssh/authorized_keys"
chroot "$root" chown -R "$user:" "/home/$user/.ssh"
echo "$user ALL=(ALL) NOPASSWD: ALL" >"$root/etc/sudoers.d/90-box"
chmod 0440 "$root/etc/sudoers.d/90-box"

while read -r unit; do
    chroot "$root" systemctl --quiet enable "$unit"
done <"$recipe/enabled"

# What must differ between machines is made at first boot. An *empty* machine-id also keeps DHCP
# servers from giving clones one address.
rm -f "$root"/etc/ssh/ssh_host_* "$root/var/lib/dbus/machine-id"
: >"$root/etc/machine-id"
cp "$recipe/hostname" "$root/etc/hostname"
printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' >"$root/etc/hosts"
if [ -e "$root/lib/systemd/systemd-resolved" ]; then
    ln -sf ../run/systemd/resolve/resolv.conf "$root/etc/resolv.conf"
fi

chroot "$root" update-tirfs
chroot "$root" dpkg-query -W -f '${Package}=${Version}\n' | LC_ALL=C sort >"$recipe/packages.txt"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/*.log "$root"/var/log/apt
