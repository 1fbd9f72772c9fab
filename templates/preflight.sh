# What a machine that exists already has to be good for before k3s is put on it, one `key=value` a line. Changes nothing.
# `peers` has a line `PROTOCOL ADDRESS PORT` for each place that it has to reach.
say() { printf '%s=%s\n' "$1" "$2"; }

if [ -r /sys/fs/cgroup/cgroup.controllers ]; then say cgroup 2; else say cgroup 1; fi
listening() {
  while read -r _ local _ state _; do
    [ "$state" != "$3" ] || say listens "$2 $((0x${local##*:}))"
  done <"$1"
}
for file in /proc/net/tcp /proc/net/tcp6; do [ ! -r "$file" ] || listening "$file" tcp 0A; done
for file in /proc/net/udp /proc/net/udp6; do [ ! -r "$file" ] || listening "$file" udp 07; done
while read -r path name; do [ ! -e "$path" ] || say other "$name $path"; done <<'OTHERS'
/etc/kubernetes/kubelet.conf kubeadm
/etc/kubernetes/manifests/kube-apiserver.yaml kubeadm
/var/lib/rancher/rke2 RKE2
/var/snap/microk8s MicroK8s
/var/lib/k0s k0s
OTHERS
if command -v modprobe >/dev/null 2>&1 && [ -d "/lib/modules/$(uname -r)" ]; then
  for module in overlay br_netfilter nf_conntrack vxlan; do
    [ -d "/sys/module/$module" ] || modprobe -n -q "$module" 2>/dev/null || say lacks "$module"
  done
fi
if grep -qis '^ *\(export *\)\{0,1\}https\{0,1\}_proxy=.' /etc/environment /etc/default/k3s /etc/sysconfig/k3s; then say proxy yes; fi

# Nobody listens there yet: a refusal is an answer, and says that the way is free. Over UDP it comes with the second packet.
reach() {
  case $1 in
    tcp) try='exec 3<>"/dev/tcp/$0/$1"' ;;
    udp) try='exec 3<>"/dev/udp/$0/$1" && printf x >&3 && sleep 0.5 && printf x >&3 && sleep 0.2 && printf x >&3' ;;
  esac
  said=$(LC_ALL=C timeout 4 bash -c "$try" "$2" "$3" 2>&1)
  case $?:$said in
    0:*) [ "$1" = tcp ] && how=open || how=silent ;;
    *refused*) how=open ;;
    124:*) how=silent ;;
    *) how=barred ;;
  esac
  say reach "$1 $2 $3 $how"
}
if command -v bash >/dev/null 2>&1 && command -v timeout >/dev/null 2>&1; then
  while read -r protocol address port; do
    [ -z "$port" ] || reach "$protocol" "$address" "$port" &
  done <<PEERS
$peers
PEERS
  wait
fi
say end ok
