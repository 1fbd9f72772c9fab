# What configures a k3s that somebody installed: its files as they are, each line behind a `|`. Their values are secrets among
# others; nobody but p1 reads the answer.
umask 077
LC_ALL=C
export LC_ALL
say() { printf '%s=%s\n' "$1" "$2"; }
show() {
  [ -f "$1" ] && [ -r "$1" ] || return 0
  say file "$1"
  sed 's/^/|/' "$1"
  echo
}
show /etc/rancher/k3s/config.yaml
for file in /etc/rancher/k3s/config.yaml.d/*.[yY][mM][lL] /etc/rancher/k3s/config.yaml.d/*.[yY][aA][mM][lL]; do
  show "$file"
done
show /etc/rancher/k3s/registries.yaml
# @services@: what each init system that p1 knows adds.
if [ -x /usr/local/bin/k3s ]; then
  /usr/local/bin/k3s --version 2>/dev/null | while read -r name _ version _; do
    [ "$name" = k3s ] && say version "$version"
  done
  # Who else is in the cluster: a server knows.
  if [ -d /var/lib/rancher/k3s/server/tls ]; then
    timeout 20 /usr/local/bin/k3s kubectl get nodes --no-headers -o wide 2>/dev/null |
      while read -r name _ _ _ _ ip _; do say node "$name $ip"; done
  fi
fi
say end ok
