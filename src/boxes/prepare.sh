# Makes of a vendor's cloud image what p1's machines start from. The image's own cloud-init runs it once, as root, in
# the machine that p1 boots to prepare the image. Set before: user, key, packages, about, and `files`, a function.
# What p1 is told goes to the second serial port, a line each: `p1: says TEXT`, `p1: package NAME=VERSION`, `p1: done`.
set -eu
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive
tell() { printf 'p1: %s\n' "$*" >/dev/ttyS1; }
has() { command -v "$1" >/dev/null 2>&1; }
end() {
    status=$?
    [ $status = 0 ] || tell "failed with exit code $status"
    sync
    # Services that stop would write down again what is gone, and so would cloud-init if this ended.
    systemctl poweroff --force
    sleep 300
}
trap end EXIT

# Nothing installs or upgrades beside this, or later beneath a cluster.
systemctl disable --now apt-daily.timer apt-daily-upgrade.timer dnf-makecache.timer >/dev/null 2>&1 || :
systemctl disable --now unattended-upgrades.service >/dev/null 2>&1 || :
systemctl stop apt-daily.service apt-daily-upgrade.service >/dev/null 2>&1 || :

installed() {
    if has dpkg-query; then
        dpkg-query -W -f='${Status}\n' "$1" 2>/dev/null | grep -q 'ok installed'
    else
        rpm -q "$1" >/dev/null 2>&1
    fi
}
missing=
for package in $packages; do
    installed "$package" || missing="$missing $package"
done
if [ -n "$missing" ]; then
    tell "says installing$missing"
    if has apt-get; then
        apt-get -q update
        apt-get -qy -o DPkg::Lock::Timeout=300 --no-install-recommends install $missing </dev/null
        apt-get clean
        rm -rf /var/lib/apt/lists/*
    else
        dnf -y --setopt=install_weak_deps=False install $missing </dev/null
        dnf clean all
    fi
fi

tell "says setting it up"
id "$user" >/dev/null 2>&1 || useradd --create-home --shell /bin/bash --user-group "$user"
# No password, but not locked: sshd without PAM refuses locked accounts even with a key.
usermod --password '*' "$user"
mkdir -p "/home/$user/.ssh"
chmod 0700 "/home/$user/.ssh"
printf '%s\n' "$key" >"/home/$user/.ssh/authorized_keys"
chmod 0600 "/home/$user/.ssh/authorized_keys"
chown -R "$user:" "/home/$user/.ssh"
echo "$user ALL=(ALL) NOPASSWD: ALL" >/etc/sudoers.d/90-box
chmod 0440 /etc/sudoers.d/90-box

# Host keys at first boot, as no two machines may share them. RSA is left out: making one takes seconds under emulation.
cat >/usr/local/sbin/ssh-host-keys <<'END'
#!/bin/sh
cd /etc/ssh || exit 1
for type in ed25519 ecdsa; do
    [ -s "ssh_host_${type}_key" ] || ssh-keygen -q -t "$type" -N '' -C '' -f "ssh_host_${type}_key"
done
END
chmod 0755 /usr/local/sbin/ssh-host-keys
cat >/etc/systemd/system/ssh-host-keys.service <<'END'
[Unit]
Description=Make the SSH host keys of this machine
Before=ssh.service sshd.service sshd-keygen@ed25519.service sshd-keygen@ecdsa.service sshd-keygen@rsa.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/ssh-host-keys

[Install]
WantedBy=multi-user.target
END
systemctl --quiet enable ssh-host-keys.service
mkdir -p /etc/ssh/sshd_config.d /run/sshd
printf '%s no\n' UseDNS GSSAPIAuthentication PasswordAuthentication >/etc/ssh/sshd_config.d/10-box.conf
# Since OpenSSH 9.8 who connects without logging in is shut out for a while, as p1 does while a machine boots.
ssh-keygen -q -t ed25519 -N '' -f /run/p1-try-key
if sshd -t -h /run/p1-try-key -o PerSourcePenalties=no 2>/dev/null; then
    echo 'PerSourcePenalties no' >>/etc/ssh/sshd_config.d/10-box.conf
fi
sshd -t -h /run/p1-try-key

# The network as cloud-init wrote it is that of this one machine. Every card asks DHCP by its MAC address; by the address
# that follows from that, a fork of the machine is reached.
rm -f /etc/netplan/50-cloud-init.yaml /etc/network/interfaces.d/50-cloud-init* /etc/systemd/network/10-cloud-init-* \
    /etc/NetworkManager/system-connections/cloud-init-* /etc/NetworkManager/conf.d/*cloud-init* \
    /etc/sysconfig/network-scripts/ifcfg-e* /etc/udev/rules.d/*-persistent-net.rules
if systemctl is-enabled --quiet NetworkManager.service 2>/dev/null; then
    cat >/etc/NetworkManager/system-connections/box.nmconnection <<'END'
[connection]
id=box
type=ethernet
multi-connect=3

[ipv4]
method=auto
dhcp-client-id=mac

[ipv6]
method=link-local
addr-gen-mode=0
END
    chmod 0600 /etc/NetworkManager/system-connections/box.nmconnection
else
    cat >/etc/systemd/network/80-box.network <<'END'
[Match]
Name=en* eth*
[Link]
RequiredForOnline=no
[Network]
DHCP=ipv4
LinkLocalAddressing=ipv6
IPv6LinkLocalAddressGenerationMode=eui64
IPv6DuplicateAddressDetection=0
IPv6AcceptRA=no
[DHCPv4]
ClientIdentifier=mac
UseHostname=no
END
    chmod 0644 /etc/systemd/network/80-box.network
    systemctl --quiet disable networking.service 2>/dev/null || :
    systemctl --quiet enable systemd-networkd.service
    if [ -e /lib/systemd/systemd-resolved ]; then
        systemctl --quiet enable systemd-resolved.service
        ln -sf ../run/systemd/resolve/resolv.conf /etc/resolv.conf
    fi
fi

files
echo "$about" >/etc/p1-box
echo "${about%% *}" >/etc/hostname

# From here on p1 sets machines up as it does those of its own boxes: by systemd's credentials and over SSH.
: >/etc/cloud/cloud-init.disabled

tell "says taking away what this machine is known by"
if has dpkg-query; then
    dpkg-query -W -f='p1: package ${Package}=${Version}\n' | sort >/dev/ttyS1
else
    rpm -qa --qf 'p1: package %{NAME}=%{VERSION}-%{RELEASE}\n' | sort >/dev/ttyS1
fi
rm -rf /var/lib/cloud/* /run/p1-try-key*
rm -f /etc/ssh/ssh_host_* /root/.ssh/authorized_keys
: >/etc/machine-id
[ -L /var/lib/dbus/machine-id ] || rm -f /var/lib/dbus/machine-id
rm -f /var/lib/systemd/random-seed /var/lib/systemd/credential.secret /boot/loader/random-seed \
    /boot/efi/loader/random-seed /var/lib/dhcp/*lease* /var/lib/dhclient/*lease* /var/lib/dhcpcd/*lease* \
    /var/lib/NetworkManager/*lease* /var/lib/NetworkManager/secret_key /var/lib/NetworkManager/timestamps
rm -rf /var/lib/systemd/network /var/lib/systemd/coredump /var/crash /root/.*_history
find /tmp /var/tmp -xdev -mindepth 1 -delete 2>/dev/null || :
journalctl --relinquish-var >/dev/null 2>&1 || :
rm -rf /var/log/journal/* /run/log/journal/*
find /var/log -xdev -type f -exec truncate -s 0 {} + 2>/dev/null || :
if has restorecon; then
    restorecon -RF /etc /home /root /usr/local/sbin /var/lib/cloud 2>/dev/null || :
fi
sync
fstrim -a 2>/dev/null || :
tell done
