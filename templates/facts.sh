# What p1 wants to know of a node, one `key=value` a line. Built for guests under emulation, where starting
# a program costs 10 ms and more: the shell's own words wherever they do.
umask 077
say() { printf '%s=%s\n' "$1" "$2"; }
first() { [ -r "$1" ] && IFS= read -r line < "$1" && printf '%s' "$line"; }

say boot "$(first /proc/sys/kernel/random/boot_id)"
say hostname "$(first /proc/sys/kernel/hostname)"
say machine_id "$(first /etc/machine-id)"
say epoch "$(date +%s)"
say arch "$(uname -m)"
say kernel "$(first /proc/sys/kernel/osrelease)"
[ -r /etc/os-release ] && . /etc/os-release && say os "${PRETTY_NAME:-}"
while read -r key value _; do
  case $key in MemTotal:) say memory_kib "$value" ;; esac
done < /proc/meminfo
df -Pk /var/lib 2>/dev/null | {
  read -r _; read -r _ total _ free _ at; say disk_free_kib "$free"
  # What of its disk the root file system does not fill: beyond its partition, and in it, where a twelfth is for tables and journal.
  [ "$at" = / ] || exit 0
  while read -r _ _ dev _ at _; do [ "$at" = / ] && root=/sys/dev/block/$dev; done < /proc/self/mountinfo
  [ -r "${root:-}/partition" ] && read -r start < "$root/start" && read -r size < "$root/size" && read -r all < "$root/../size" || exit 0
  room=$(( (all - start - size) / 2048 ))
  for other in "$root"/../*/start; do read -r begins < "$other"; [ "$begins" -le "$start" ] || room=0; done
  [ $((size / 2 - total)) -le $((size / 24)) ] || room=$((room + (size / 2 - total) / 1024))
  say unfilled_mib "$room"
}
ip -o -4 addr 2>/dev/null | while read -r _ iface _ address _; do say address "$iface $address"; done
while read -r iface target _ _ _ _ _ mask _; do
  [ "$target" = 00000000 ] && [ "$mask" = 00000000 ] && say default_route "$iface"
done < /proc/net/route

[ -r /sys/module/apparmor/parameters/enabled ] && say apparmor "$(first /sys/module/apparmor/parameters/enabled)"
command -v apparmor_parser >/dev/null 2>&1 && say apparmor_parser yes
[ -r /sys/fs/selinux/enforce ] && say selinux_enforcing "$(first /sys/fs/selinux/enforce)"
for dir in /var/lib/selinux/*/active/modules/*/k3s; do [ -d "$dir" ] && say selinux_policy yes; done
# NetworkManager while it runs; p1's file for it, or what says the same.
[ -d /run/NetworkManager ] &&
  ! grep -qs '^unmanaged-devices.*interface-name:cni0.*interface-name:flannel\*.*interface-name:veth' \
    /etc/NetworkManager/conf.d/*.conf && say untuned network-manager
if [ -r /sys/fs/cgroup/cgroup.controllers ]; then
  say cgroup "v2 $(first /sys/fs/cgroup/cgroup.controllers)"
else
  while read -r name _ _ enabled; do
    [ "$name" = memory ] && say cgroup "v1 $([ "$enabled" = 1 ] && printf memory)"
  done < /proc/cgroups
fi
# Firewalls that are on, and what they let in. ufw's own files say all of it; firewalld has what holds now and what holds
# from its next start on.
[ -r /etc/ufw/ufw.conf ] && while IFS= read -r line; do
  [ "$line" = ENABLED=yes ] || continue
  say firewall ufw
  [ -r /etc/default/ufw ] && while IFS= read -r line; do
    case $line in IPV6=[Yy]*) say firewall ufw-ipv6 ;; esac
  done < /etc/default/ufw
  for file in /etc/ufw/user.rules /etc/ufw/user6.rules; do
    [ -r "$file" ] && while read -r _ tuple _ action protocol ports to by from way _; do
      case "$tuple $action $to $by $way" in
        'tuple allow 0.0.0.0/0 any in' | 'tuple allow ::/0 any in') say firewall_rule "ufw $protocol $ports $from" ;;
      esac
    done < "$file"
  done
done < /etc/ufw/ufw.conf
zones() {
  # shellcheck disable=SC2086 # none, or one option
  LC_ALL=C firewall-cmd $2 --list-all-zones 2>/dev/null | while IFS= read -r line; do
    case $line in
      '') ;;
      '  interfaces: '?*) [ -n "$2" ] || for one in ${line#*: }; do say firewall_zone "$one $zone"; done ;;
      '  sources: '?*) for one in ${line#*: }; do
        [ -n "$2" ] || say firewall_zone "$one $zone"
        say firewall_rule "firewalld $1 $zone source $one"
      done ;;
      '  ports: '?*) for one in ${line#*: }; do say firewall_rule "firewalld $1 $zone port $one"; done ;;
      ' '*) ;;
      ?'rule '*) say firewall_rule "firewalld $1 $zone rich-rule ${line#?}" ;;
      *) zone=${line%% *} ;;
    esac
  done
}
if command -v firewall-cmd >/dev/null 2>&1 && firewall-cmd --state >/dev/null 2>&1; then
  say firewall firewalld
  say firewall_zone "default $(firewall-cmd --get-default-zone 2>/dev/null)"
  zones runtime ''
  zones permanent --permanent
fi
[ -r /var/lib/p1/opened ] && while IFS= read -r line; do say firewall_noted "$line"; done < /var/lib/p1/opened
for dir in /usr/local/bin /opt/bin; do
  for name in k3s k3s-killall.sh k3s-uninstall.sh k3s-agent-uninstall.sh; do
    [ -e "$dir/$name" ] && say script "$dir/$name"
  done
done
[ -e /etc/rancher/node/password ] && say node_password yes
if [ -d /var/lib/rancher/k3s/server/db/etcd ]; then
  say datastore etcd
elif [ -e /var/lib/rancher/k3s/server/db/state.db ]; then
  say datastore sqlite
fi
# What a restore that has not come to its end set aside.
for dir in /var/lib/rancher/k3s/p1-former-*; do
  [ -d "$dir" ] && say former "${dir##*/p1-former-}"
done
# Of the settings that are fixed once there is data; of a datastore only its kind, the rest is secret.
if [ -r /etc/rancher/k3s/config.yaml ]; then
  say settings known
  key=
  while IFS= read -r line; do
    case $line in
      'server: '*) say joins "${line#server: }" ;;
      'cluster-init: true') say joins init ;;
      # Whatever lies on the disk is from before.
      'datastore-endpoint: '*) say datastore external ;;
    esac
    case $line in
      '  - '*) value=${line#  - } ;;
      *) key=${line%%:*} value=${line#*:} ;;
    esac
    value=${value# }
    case ${key%+} in
      cluster-cidr | service-cidr | cluster-dns | cluster-domain | secrets-encryption) ;;
      kube-controller-manager-arg) case $value in *node-cidr-mask-size*) ;; *) value= ;; esac ;;
      datastore-endpoint) value=${value#[\"\']} value=${value%%:*} ;;
      *) value= ;;
    esac
    [ -n "$value" ] && say setting "${key%+} $value"
  done < /etc/rancher/k3s/config.yaml
fi
[ -e /var/lib/rancher/k3s/server/cred/encryption-config.json ] && say setting 'secrets-encryption-prepared yes'
# What else configures k3s: names of settings and variables, no values.
names() {
  found=
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in [A-Za-z_]*"$2"*) found="$found,${line%%"$2"*}" ;; esac
  done < "$1"
  say elsewhere "${found:-,} $1"
}
for file in /etc/rancher/k3s/config.yaml.d/*.[yY][mM][lL] /etc/rancher/k3s/config.yaml.d/*.[yY][aA][mM][lL]; do
  [ -f "$file" ] && [ -r "$file" ] && names "$file" :
done
for unit in k3s k3s-agent; do
  for file in "/etc/default/$unit" "/etc/sysconfig/$unit"; do
    [ -f "$file" ] && [ -s "$file" ] || continue
    # p1's own is one of the files that it writes.
    case $(first "$file") in '# Written by p1'*) own="${own:-} $file" ;; *) names "$file" = ;; esac
  done
done
# @services@: what each init system that p1 knows adds.
for stamp in /var/lib/p1/stamps/*; do
  [ -f "$stamp" ] && say stamp "${stamp##*/} $(first "$stamp")"
done
[ -d /var/lib/p1/baked ] && say baked yes
# p1's part of /etc/hosts.
if [ -r /etc/hosts ]; then
  part=
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in
      '# p1: begin'*) part=yes ;;
      '# p1: end') part= ;;
      *) [ -z "$part" ] || say hosts "$line" ;;
    esac
  done < /etc/hosts
fi
if [ -f /var/lib/p1/files ]; then
  while read -r sum size time path; do
    say staged "$sum $size $time $path"
    paths="${paths:-} $path"
  done < /var/lib/p1/files
  # shellcheck disable=SC2086 # p1's own paths have no blanks
  [ -n "${paths:-}" ] && stat -c 'stat=%s %Y %n' $paths 2>/dev/null
fi
# The last two tell whether a worker knows the server that there is.
written='/etc/rancher/k3s/config.yaml /etc/rancher/k3s/registries.yaml
  /var/lib/rancher/k3s/server/tls/server-ca.crt /var/lib/rancher/k3s/agent/server-ca.crt'
present=
for file in $written ${own:-}; do [ -f "$file" ] && present="$present $file"; done
# shellcheck disable=SC2086
[ -n "$present" ] && sha256sum $present | while read -r sum path; do say sha256 "$sum $path"; done
say end ok
