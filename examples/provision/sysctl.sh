# Sets each argument, a `key=value`, now and for every boot.
set -eu
: > /etc/sysctl.d/90-example.conf.new
for setting; do
  echo "$setting" >> /etc/sysctl.d/90-example.conf.new
done
mv /etc/sysctl.d/90-example.conf.new /etc/sysctl.d/90-example.conf
sysctl -p /etc/sysctl.d/90-example.conf
