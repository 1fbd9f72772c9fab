# Run by root's sh on a node: everything that shows how it is, for `p1 logs --bundle`. Each part begins
# with a line `=p1= NAME` and ends in time, so that one that hangs costs nothing but itself. p1 takes the
# secrets out before it writes anything down.
part() {
  name=$1; shift
  echo "=p1= $name"
  timeout -k 2 20 "$@" 2>&1
  code=$?
  case $code in
    0) ;;
    124 | 137) echo "(it did not end within 20 s)" ;;
    *) echo "(exit code $code)" ;;
  esac
}
has() { command -v "$1" >/dev/null 2>&1; }

part system sh -c 'uname -a; cat /etc/os-release; uptime; date -u; cat /proc/sys/kernel/hostname; cat /proc/cmdline'
part ip-addr ip addr
part ip-route ip route show table all
part links ip -s link
has ss && part sockets ss -tulpn
part disk df -h
part inodes df -i
has free && part memory free -m
part processes ps -eo pid,ppid,stat,etimes,rss,comm
part units systemctl list-units --failed --no-pager
for unit in k3s k3s-agent; do
  [ -e "/etc/systemd/system/$unit.service" ] || continue
  part "$unit-status" systemctl status "$unit" --no-pager -l -n 20
  part "$unit-show" systemctl show "$unit" -p ActiveState,SubState,Result,NRestarts,ExecMainStatus,ActiveEnterTimestamp
  part "$unit-unit" cat "/etc/systemd/system/$unit.service"
  start=$(systemctl show -p InvocationID --value "$unit" 2>/dev/null)
  [ -n "$start" ] && part "$unit-this-start" journalctl -n 1000 --no-pager -o short-iso \
    "_SYSTEMD_INVOCATION_ID=$start" + "INVOCATION_ID=$start"
  part "$unit-journal" journalctl -u "$unit" -n 3000 --no-pager -o short-iso
done
part boot-journal journalctl -b -n 1000 --no-pager -o short-iso
part warnings journalctl -b -p warning -n 300 --no-pager -o short-iso
has dmesg && part kernel sh -c 'dmesg | tail -n 300'
part files sh -c 'ls -la /etc/rancher/k3s /etc/rancher/node /var/lib/rancher/k3s /var/lib/p1 /run/p1 /usr/local/bin'
for file in config.yaml registries.yaml; do
  [ -e "/etc/rancher/k3s/$file" ] && part "$file" cat "/etc/rancher/k3s/$file"
done
part firewall sh -c 'for p in nft iptables-save; do command -v $p >/dev/null && { [ $p = nft ] && nft list ruleset || iptables-save; break; }; done | head -n 500'
if has k3s || [ -x /usr/local/bin/k3s ]; then
  part k3s-version k3s --version
  part check-config k3s check-config
  part containers k3s crictl ps -a
  if [ -e /etc/rancher/k3s/k3s.yaml ]; then
    part kubectl-nodes k3s kubectl get nodes -o wide
    part kubectl-pods k3s kubectl get pods -A -o wide
    part kubectl-events k3s kubectl get events -A
  fi
fi
echo "=p1= end"
