//! A Linux distribution: Debian, Ubuntu, Fedora, SUSE, Alpine and their like, which differ in their init system, and in what
//! manages the network; `templates/system.sh.tera` looks for the latter itself.

use std::net::Ipv6Addr;
use std::time::Duration;

use serde::Serialize;

use super::{Guest, NodeFacts, Obstacle, Piece, Prepare, Service, Strike, fault, firewall, tune};
use crate::os::process::quote;
use crate::render;
use crate::spec::Role;

/// See the module.
pub struct Linux(pub &'static dyn Service);

/// What p1 changed on a machine: `templates/system.sh.tera` writes a line here before each change.
const CHANGED: &str = "/var/lib/p1/changed";

/// p1's part of /etc/hosts, between two lines of its own (`templates/facts.sh` looks for them).
const BEGIN: &str = "# p1: begin (the nodes, and `hosts` of the spec; p1 keeps this part as they are)";
const END: &str = "# p1: end";

/// Prints the file without that part; where its end was taken away, nothing that stands behind counts as p1's.
const OTHERS: &str = r#"others() {
  if grep -qx '# p1: end' "$file"; then
    sed -e '/^# p1: begin/,/^# p1: end$/d' "$file"
  else
    sed -e '/^# p1: begin/d' "$file"
  fi
}
file=$(readlink -f /etc/hosts) new=$file.p1
"#;

/// Puts it into place, whole or not at all where the file can be replaced; its rights and its label stay.
const PUT: &str = r#"cmp -s "$new" "$file" || mv -f "$new" "$file" 2>/dev/null || cat "$new" >"$file"
rm -f "$new"
"#;

/// Takes the changes back. Of a kind that was noted twice the first note is of what was there before p1. An address
/// stays: a machine that p1 made is reached by it.
const UNDO: &str = r#"if [ -f "$changed" ]; then
  host= file=
  while IFS= read -r line; do
    value=${line#* }
    case $line in
      'hostname-file '*) [ -n "$host" ] || file=$value ;;
      'hostname '*) [ -n "$host" ] || host=$value ;;
      'runlevel '*) rc-update delete "$value" default >/dev/null 2>&1 ;;
      'enabled '*) systemctl enable --now "$value" >/dev/null 2>&1 ;;
      'hosts '*)
        grep -vxF -e "$value" /etc/hosts >"$changed.hosts" || :
        cat "$changed.hosts" >/etc/hosts
        rm -f "$changed.hosts" ;;
    esac
  done <"$changed"
  if [ -n "$host" ]; then
    printf '%s' "$host" >/proc/sys/kernel/hostname
    if [ -n "$file" ]; then printf '%s\n' "$file" >/etc/hostname; else rm -f /etc/hostname; fi
  fi
  rm -f "$changed"
fi
for file in /etc/default/k3s /etc/default/k3s-agent /etc/conf.d/k3s /etc/conf.d/k3s-agent; do
  line=
  [ ! -f "$file" ] || IFS= read -r line <"$file" || :
  case $line in '# Written by p1'*) rm -f "$file" ;; esac
done
if grep -q '^# p1: begin' /etc/hosts; then
@others@
  cp -a "$file" "$new"
  others >"$new"
@put@fi
"#;

/// The disk shows within a second of being attached; by its link where there is udev. Read in whole MiB: GNU dd and
/// busybox' know no other unit alike, and what is too much at the end goes.
const COPY: &str = r#"export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
find_disk() {
  [ ! -e "/dev/disk/by-id/virtio-$serial" ] || { echo "/dev/disk/by-id/virtio-$serial"; return; }
  for found in /sys/block/*; do
    if [ "$(cat "$found/serial" 2>/dev/null)" = "$serial" ] && [ -b "/dev/${found##*/}" ]; then
      echo "/dev/${found##*/}"
      return
    fi
  done
}
tries=0 disk=$(find_disk)
while [ -z "$disk" ]; do
  tries=$((tries + 1))
  [ "$tries" -le 50 ] || { echo "no disk $serial has appeared"; exit 94; }
  sleep 0.2
  disk=$(find_disk)
done
part=$dest.p1-disk
mkdir -p "${dest%/*}" || exit 90
umask 077
rm -f "$dest".p1-*
trap 'rm -f "$part"' EXIT
trap 'exit 90' HUP INT TERM PIPE
free=$(df -Pk "${dest%/*}" | { read -r _; read -r _ _ _ free _; echo "$free"; })
case $free in ''|*[!0-9]*) ;; *) [ "$free" -ge "$((size / 1024))" ] || { echo "$free KiB are free"; exit 91; } ;; esac
dd if="$disk" of="$part" bs=1048576 skip="$start" count="$((size / 1048576 + 1))" 2>"$part-said" || {
  cat "$part-said"
  rm -f "$part-said"
  exit 90
}
rm -f "$part-said"
truncate -s "$size" "$part" || exit 90
real=$(sha256sum <"$part") && real=${real%% *} || exit 90
[ "$real" = "$sum" ] || { echo "the copy has the SHA-256 $real"; exit 93; }
chmod "$mode" "$part" && chown 0:0 "$part" && mv -f "$part" "$dest" || exit 90
"#;

/// Keys of the host that are older than this boot came with the box, as its other machines have them, and a system that
/// makes none itself would not be reached without. The log is told to keep to memory before its files go, and the end is
/// one without services, which would write down again what is gone (random-seed, utmp, the log).
const WIPE: &str = r#"export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 022
now=$(date +%s) up=0
read -r up _ </proc/uptime
boot=$((now - ${up%%.*} - 5))
rm -rf /etc/rancher /var/lib/rancher/k3s/server /var/lib/kubelet /run/k3s /var/log/pods /var/log/containers
find /var/lib/rancher/k3s/agent -maxdepth 1 \( -name '*.crt' -o -name '*.key' -o -name '*.kubeconfig' -o -name etc \) \
  -exec rm -rf {} + 2>/dev/null
[ ! -d /var/lib/p1 ] ||
  find /var/lib/p1 -mindepth 1 -maxdepth 1 ! -name files ! -name install.sh ! -name baked -exec rm -rf {} +
if command -v cloud-init >/dev/null 2>&1; then cloud-init clean --logs >/dev/null 2>&1; fi
for key in /etc/ssh/ssh_host_*; do
  [ ! -f "$key" ] || [ "$(stat -c %Y "$key")" -lt "$boot" ] || rm -f "$key"
done
: >/etc/machine-id
[ -L /var/lib/dbus/machine-id ] || rm -f /var/lib/dbus/machine-id
rm -f /var/lib/systemd/random-seed /var/lib/systemd/credential.secret /var/lib/urandom/random-seed \
  /boot/loader/random-seed /boot/efi/loader/random-seed /etc/udev/rules.d/70-persistent-net.rules \
  /var/lib/dhcp/*lease* /var/lib/dhclient/*lease* /var/lib/dhcpcd/*lease* /var/lib/NetworkManager/*lease* \
  /var/lib/NetworkManager/secret_key /var/lib/NetworkManager/seen-bssids /var/lib/NetworkManager/timestamps
rm -rf /var/lib/systemd/network /var/lib/systemd/coredump /var/crash
for home in /root /home/*; do
  keys=$home/.ssh/authorized_keys
  if [ -e "$keys$ending" ]; then
    mv -f "$keys$ending" "$keys" || exit 1
  elif grep -qsF -e "$public" "$keys"; then
    rm -f "$keys"
    rmdir "$home/.ssh" 2>/dev/null
  fi
  rm -rf "$home"/.*_history "$home/.lesshst" "$home/.viminfo" "$home/.wget-hsts" "$home/.kube" "$home"/.ssh/known_hosts*
done
find /tmp /var/tmp -xdev -mindepth 1 -delete 2>/dev/null
journalctl --relinquish-var >/dev/null 2>&1
rm -rf /var/log/journal/* /run/log/journal/*
find /var/log -xdev -type f -exec truncate -s 0 {} + 2>/dev/null
left=$(grep -rsIlF -e "$public" /etc /home /root /var/lib/p1 | head -n 3)
[ -z "$left" ] || { echo "the key of the machine that the box is made of is still in $left"; exit 1; }
sync
"#;

/// A lease that nobody renews ends within the hour, and with it the address.
const LACKS_FOR_FORK: &str = r#"export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ip -6 -o addr show scope link | grep -qF " $address/" || echo "it does not have the address $address"
if ip -4 -o addr show scope global | grep -q ' dynamic '; then
  systemctl is-active --quiet systemd-networkd 2>/dev/null ||
    echo "its address is given by DHCP, and not managed by systemd-networkd"
fi
"#;

/// Before the file that asked for the lease, by its name.
const STAND_ALONE: &str = r#"export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
cards=$(ip -4 -o addr show scope global | while read -r _ card rest; do
  case " $rest " in *' dynamic '*) echo "$card" ;; esac
done)
[ -n "$cards" ] || exit 0
for card in $cards; do
  file=/etc/systemd/network/00-p1-fork-$card.network
  {
    printf '[Match]\nName=%s\n\n[Network]\nLinkLocalAddressing=ipv6\nIPv6LinkLocalAddressGenerationMode=eui64\n' "$card"
    printf 'IPv6DuplicateAddressDetection=0\nIPv6AcceptRA=no\n'
    ip -4 -o addr show dev "$card" scope global | while read -r _ _ _ address _; do printf 'Address=%s\n' "$address"; done
    ip -4 route show default dev "$card" | while read -r _ via gateway _; do
      [ "$via" != via ] || printf 'Gateway=%s\n' "$gateway"
    done
  } >"$file.part"
  mv -f "$file.part" "$file"
done
networkctl reload
# It takes the lease's addresses away and puts the file's in their place.
for card in $cards; do
  wanted=$(sed -n 's/^Address=//p' "/etc/systemd/network/00-p1-fork-$card.network" | head -n 1)
  tries=0
  until ip -4 -o addr show dev "$card" | grep -F " $wanted " | grep -qv dynamic; do
    tries=$((tries + 1))
    [ "$tries" -le 100 ] || { echo "$card does not keep $wanted" >&2; exit 1; }
    sleep 0.1
  done
  echo "$card keeps $wanted"
done
"#;

#[derive(Serialize)]
struct Values<'a> {
    name: &'a str,
    /// What stands behind its own address in /etc/hosts, and how that is found there.
    own: String,
    pattern: String,
    ip: std::net::Ipv4Addr,
    prefix: u8,
    mac: &'a str,
    now: u64,
    changed: &'static str,
}

impl Guest for Linux {
    fn service(&self) -> &'static dyn Service {
        self.0
    }

    fn obstacles(&self, facts: &NodeFacts) -> Vec<Obstacle> {
        let mut all = Vec::new();
        let mut add = |cause: String, hint: &'static str| all.push(Obstacle { cause, hint });
        if !self.is(facts) {
            add(
                "the node does not run systemd, nor OpenRC".into(),
                "Use a box, or a machine, whose system runs one of them.",
            );
        }
        if facts.default_routes.is_empty() {
            // docs.k3s.io/installation/airgap: k3s finds its primary interface by the default route.
            add(
                "the node has no default route, and k3s does not start without one".into(),
                "Give it one, even a useless one: `ip route add default via GATEWAY`.",
            );
        }
        if !facts.cgroup_memory {
            add(
                "the node's kernel has the memory cgroup switched off".into(),
                "Add `cgroup_memory=1 cgroup_enable=memory` to its kernel's command line (on Raspberry Pi OS the one line of \
                 /boot/firmware/cmdline.txt) and restart it.",
            );
        }
        if facts.disk_free_mib < 256 {
            add(
                format!("the node has only {} MiB free below /var/lib", facts.disk_free_mib),
                "Make room there, or use a box with a larger disk.",
            );
        }
        all
    }

    fn warnings(&self, facts: &NodeFacts, role: Role) -> Vec<String> {
        let mut all = Vec::new();
        if facts.apparmor && !facts.apparmor_parser {
            all.push(
                "The kernel has AppArmor on but there is no apparmor_parser: pods will fail with \
                 CreateContainerError. Install the package `apparmor` in the box."
                    .into(),
            );
        }
        if facts.disk_free_mib < 2048 {
            all.push(format!("Only {} MiB are free below /var/lib; images need more.", facts.disk_free_mib));
        }
        // docs.k3s.io/installation/requirements; what the machine has is a little less than it was given.
        let least = if role == Role::Server { 2048 } else { 512 };
        if facts.memory_mib * 10 < least * 9 {
            all.push(format!(
                "{} MiB of memory is less than the {least} MiB that k3s asks for on a {role}.",
                facts.memory_mib
            ));
        }
        all
    }

    fn tune(&self, facts: &NodeFacts) -> String {
        tune::script(&facts.untuned, CHANGED)
    }

    fn prepare(&self, want: &Prepare<'_>) -> Result<String, render::Error> {
        let Prepare { name, ip, prefix, mac, now } = *want;
        let own = match name.split_once('.') {
            Some((first, _)) => format!("{name} {first}"),
            None => name.to_owned(),
        };
        let pattern = name.replace('.', "\\.");
        render::render("system.sh", &Values { name, own, pattern, ip, prefix, mac, now, changed: CHANGED })
    }

    fn fill(&self) -> &'static str {
        include_str!("../../templates/grow.sh")
    }

    fn hosts(&self, lines: &[String]) -> String {
        let lines: Vec<String> = lines.iter().map(|line| quote(line)).collect();
        format!(
            "set -eu\numask 022\n[ -e /etc/hosts ] || : >/etc/hosts\n{OTHERS}cp -a \"$file\" \"$new\"\nothers >\"$new\"\n\
             [ ! -s \"$new\" ] || [ -z \"$(tail -c 1 \"$new\")\" ] || echo >>\"$new\"\n\
             printf '%s\\n' {} {} {} >>\"$new\"\n{PUT}",
            quote(BEGIN),
            lines.join(" "),
            quote(END)
        )
    }

    fn undo(&self) -> String {
        let undo = UNDO.replace("@others@", OTHERS).replace("@put@", PUT);
        format!("changed={CHANGED}\n{undo}{}{}", tune::UNDO, firewall::undo())
    }

    fn copy(&self, piece: &Piece<'_>) -> String {
        let Piece { serial, start, len, sha256, dest, mode } = piece;
        let (serial, sum, dest) = (quote(serial), quote(sha256), quote(dest));
        format!("serial={serial} start={start} size={len} sum={sum} mode={mode:o} dest={dest}\n{COPY}")
    }

    fn set_clock(&self, now: Duration) -> String {
        // Under emulation the way there takes half a second.
        format!(
            "off=$(( $(date +%s) - {secs} ))\n\
             if [ \"$off\" -gt 1 ] || [ \"$off\" -lt -1 ]; then\n\
             date -s @{secs}.{millis:03} >/dev/null && echo \"it was ${{off}}s off\"\nfi\n",
            secs = now.as_secs(),
            millis = now.subsec_millis()
        )
    }

    fn renew(&self, random: &str) -> String {
        // The pool takes it in at once where perl is there to say so (RNDRESEEDCRNG, random(4)), else within a minute.
        format!(
            "printf %s '{random}' >/dev/urandom 2>/dev/null || :\n\
             perl -e 'open(my $r, \">\", \"/dev/urandom\") && ioctl($r, 0x5207, 0)' 2>/dev/null || :\n\
             ip neigh flush all 2>/dev/null || :\n"
        )
    }

    fn lacks_for_fork(&self, address: Ipv6Addr) -> String {
        format!("address={address}\n{LACKS_FOR_FORK}")
    }

    fn stand_alone(&self) -> &'static str {
        STAND_ALONE
    }

    fn strike(&self, strike: &Strike<'_>, secs: u64) -> String {
        fault::strike(strike, secs, self.service())
    }

    fn heal(&self, strike: &Strike<'_>) -> String {
        fault::heal(strike, self.service())
    }

    fn wipe(&self, public: &str, ending: &str) -> String {
        // Its comment may be anybody's.
        let key = public.split_whitespace().nth(1).unwrap_or(public);
        format!("public={} ending={}\n{WIPE}", quote(key), quote(ending))
    }

    fn end_wiped(&self) -> String {
        // A logger may have written down that it was asked to.
        let logs = "find /var/log -xdev -type f -exec truncate -s 0 {} + 2>/dev/null";
        format!("{logs}\nsync\n{}\n", self.service().end_at_once())
    }

    fn evidence(&self) -> &'static str {
        include_str!("../../templates/evidence.sh")
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::super::systemd::Systemd;
    use super::*;

    const LINUX: Linux = Linux(&Systemd);
    use crate::os::{Cancel, process};

    /// The script, on the files of a folder instead of the system's.
    fn run(script: &str, root: &Path) -> String {
        let at = |path: &str| format!("{}{path}", root.display());
        let script = script
            .replace("/etc/host", &at("/etc/host"))
            .replace("/proc/sys/kernel/hostname", &at("/kernel-hostname"))
            .replace("/var/lib/p1", &at("/var/lib/p1"));
        let cmd = process::Cmd::new("sh").stdin(script);
        process::run(&cmd, Duration::from_secs(20), &Cancel::new()).unwrap().ok().unwrap().stdout
    }

    #[test]
    fn what_preparing_changed_is_taken_back_exactly() {
        for file in [Some("debian.lan\n"), None] {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path();
            std::fs::create_dir_all(root.join("etc")).unwrap();
            let hosts = "127.0.0.1 localhost\n# of somebody else\n";
            let read = |name: &str| std::fs::read_to_string(root.join(name)).ok();
            std::fs::write(root.join("etc/hosts"), hosts).unwrap();
            std::fs::write(root.join("kernel-hostname"), "debian\n").unwrap();
            if let Some(text) = file {
                std::fs::write(root.join("etc/hostname"), text).unwrap();
            }
            // The address is there, and a render's clock is left alone.
            let prepare = |name| {
                let want = Prepare { name, ip: [127, 0, 0, 1].into(), prefix: 8, mac: "", now: 0 };
                run(&LINUX.prepare(&want).unwrap(), root)
            };
            assert_eq!(prepare("worker-1"), "set the hostname to worker-1\n");
            assert_eq!(read("etc/hostname").as_deref(), Some("worker-1\n"));
            // A second time there is nothing to do, and another name does not hide what was there at first.
            assert_eq!(prepare("worker-1"), "");
            prepare("worker-2");
            prepare("dB.lab.test");
            let own = read("etc/hosts").unwrap();
            assert!(own.contains("127.0.1.1 dB.lab.test dB\n") && !own.contains("worker"), "{own}");
            let lines = ["10.0.0.2 it's", "10.0.0.3 b"].map(str::to_owned);
            let name = |lines: &[String]| {
                run(&LINUX.hosts(lines), root);
                read("etc/hosts").unwrap()
            };
            let named = format!("{own}{BEGIN}\n10.0.0.2 it's\n10.0.0.3 b\n{END}\n");
            assert_eq!(name(&lines[1..]), named.replace("10.0.0.2 it's\n", ""));
            assert_eq!(name(&lines), named);
            // A part without its end ends where the file says nothing of p1: what stands behind it is somebody's.
            std::fs::write(root.join("etc/hosts"), format!("{own}{BEGIN}\n10.0.0.9 theirs")).unwrap();
            assert_eq!(name(&lines), format!("{own}10.0.0.9 theirs\n{}", &named[own.len()..]));
            std::fs::write(root.join("etc/hosts"), named).unwrap();
            std::fs::write(root.join("etc/hosts"), read("etc/hosts").unwrap() + "10.0.0.1 later\n").unwrap();
            run(&LINUX.undo(), root);
            assert_eq!(read("etc/hosts"), Some(format!("{hosts}10.0.0.1 later\n")));
            assert_eq!(read("etc/hostname").as_deref(), file);
            assert_eq!(read("kernel-hostname").unwrap().trim(), "debian");
            // Nothing is left to be taken back.
            run(&LINUX.undo(), root);
            assert_eq!(read("kernel-hostname").unwrap().trim(), "debian");
        }
    }

    #[test]
    fn warnings_name_what_is_unwise() {
        let mut facts = NodeFacts { disk_free_mib: 8000, memory_mib: 2000, ..NodeFacts::default() };
        assert!(LINUX.warnings(&facts, Role::Server).is_empty());
        facts.apparmor = true;
        facts.memory_mib = 1000;
        assert_eq!(LINUX.warnings(&facts, Role::Server).len(), 2);
    }
}
