//! Faults that are done inside a machine, as scripts for root's `sh`. Each of them first has the machine heal itself when its
//! time is over, by a unit of its own, and only then does its work: whoever brought it may be gone by then, and what it cuts
//! off may be the way in.
//!
//! What is needed for that lies below /run, which is empty after a boot, as is what most faults do.

use std::net::Ipv4Addr;

use super::Service;
use crate::fault::{Active, Fault};

/// A fault for a machine.
#[derive(Clone, Copy, Debug)]
pub struct Strike<'a> {
    pub active: &'a Active,
    /// The address that its nodes know it by.
    pub ip: Ipv4Addr,
    /// The unit of its k3s.
    pub k3s: &'a str,
}

/// The fault cannot be done there: something is missing.
pub const LACKS: i32 = 95;
/// The machine could not see to it that it heals by itself, so nothing was done.
pub const UNHEALED: i32 = 96;

/// What fills a disk. It outlives a boot.
const FILLER: &str = "/var/lib/p1/fault-disk-full";

/// Makes a file of all that is free but for `$leave` KiB, what is reserved for root included. Where a piece is too large, a
/// smaller one may fit.
const FILL: &str = r#"mkdir -p "${filler%/*}"
rm -f "$filler"
set -- $(stat -f -c '%f %S' "${filler%/*}")
want=$(($1 * ($2 / 512) / 2 - leave)) at=0
n=$want
while [ "$n" -ge 16 ] && [ "$at" -lt "$want" ]; do
  if fallocate -o "${at}KiB" -l "${n}KiB" "$filler" 2>/dev/null; then
    at=$((at + n)) n=$((want - at))
  else
    n=$((n / 2))
  fi
done
[ -s "$filler" ] || { echo "there is nothing left to fill"; exit 95; }
echo "$(df -Pk "${filler%/*}" | { read -r _; read -r _ _ _ free _; echo "$free"; }) KiB are left"
"#;

/// In iptables' table `raw`, which comes before all that k3s and others put into the others; in a table of its own where
/// there is nft alone.
const CUT: &str = r#"if command -v iptables >/dev/null; then
  t() { iptables -w 10 -t raw "$@"; }
  t -N P1-FAULT 2>/dev/null || t -F P1-FAULT || exit 95
  for peer in $peers; do
    t -A P1-FAULT -s "$peer" -j DROP && t -A P1-FAULT -d "$peer" -j DROP || exit 95
  done
  for hook in PREROUTING OUTPUT; do
    t -C "$hook" -j P1-FAULT 2>/dev/null || t -I "$hook" -j P1-FAULT || exit 95
  done
elif command -v nft >/dev/null; then
  nft delete table ip p1_fault 2>/dev/null
  list=$(echo $peers | tr ' ' ,)
  nft -f - <<NFT || exit 95
table ip p1_fault {
  chain in { type filter hook prerouting priority -300; ip saddr { $list } drop; }
  chain out { type filter hook output priority -300; ip daddr { $list } drop; }
}
NFT
else
  echo "there is neither iptables nor nft"
  exit 95
fi
"#;

const MEND_CUT: &str = r#"if command -v iptables >/dev/null; then
  for hook in PREROUTING OUTPUT; do
    while iptables -w 10 -t raw -D "$hook" -j P1-FAULT 2>/dev/null; do :; done
  done
  iptables -w 10 -t raw -F P1-FAULT 2>/dev/null
  iptables -w 10 -t raw -X P1-FAULT 2>/dev/null
fi
! command -v nft >/dev/null || nft delete table ip p1_fault 2>/dev/null
"#;

/// The card with the node's address.
const CARD: &str = r#"card=$(ip -o -4 addr show to "$own/32" | { read -r _ name _; echo "${name%@*}"; })
"#;

/// Only what goes to other nodes has to pass the queue that is disturbed: this host still gets in.
const QUEUE: &str = r#"[ -n "$card" ] || { echo "no card has the address $own"; exit 95; }
modprobe -q sch_netem 2>/dev/null
modprobe -q cls_u32 2>/dev/null
has=$(tc qdisc show dev "$card" root) || exit 95
case $has in *' 0: '* | *'prio 1: '* | '') ;; *) echo "$card has a queue of somebody else's: $has"; exit 95 ;; esac
tc qdisc del dev "$card" root 2>/dev/null
undo() { tc qdisc del dev "$card" root 2>/dev/null; exit 95; }
tc qdisc add dev "$card" root handle 1: prio bands 4 || exit 95
tc qdisc add dev "$card" parent 1:4 handle 40: netem $netem || undo
for peer in $peers; do
  tc filter add dev "$card" parent 1: protocol ip prio 1 u32 match ip dst "$peer/32" flowid 1:4 || undo
done
"#;

/// What keeps a clock right would set it at once.
const SET_CLOCK: &str = r#": >"$mark"
keeper=$(timedatectl show -p NTP --value 2>/dev/null)
[ "$keeper" != yes ] || { timedatectl set-ntp false 2>/dev/null && echo "$keeper" >"$mark"; }
date -s "@$(($(date +%s) + by))" >/dev/null || { rm -f "$mark"; exit 95; }
"#;

const MEND_CLOCK: &str = r#"if [ -e "$mark" ]; then
  date -s "@$(($(date +%s) - by))" >/dev/null
  [ "$(cat "$mark")" != yes ] || timedatectl set-ntp true 2>/dev/null
  rm -f "$mark"
fi
"#;

/// What of a fault is a script's.
struct Parts {
    /// For both others.
    values: String,
    /// Ends with [`LACKS`] where it cannot be done.
    check: String,
    /// Does it.
    begin: String,
    /// Takes it back; fine if there is nothing to be taken back.
    mend: String,
}

fn parts(strike: &Strike<'_>, service: &dyn Service) -> Parts {
    let Strike { active, ip, k3s } = *strike;
    let peers: Vec<String> = active.between.values().map(ToString::to_string).collect();
    let peers = peers.join(" ");
    let none = String::new;
    let queue = |netem: String| Parts {
        check: none(),
        values: format!("own={ip} peers='{peers}' netem='{netem}'\n{CARD}"),
        begin: QUEUE.to_owned(),
        mend: "[ -z \"$card\" ] || tc qdisc del dev \"$card\" root 2>/dev/null\n".to_owned(),
    };
    match &active.fault {
        Fault::Partition { .. } => Parts {
            check: none(),
            values: format!("peers='{peers}'\n"),
            begin: CUT.to_owned(),
            mend: MEND_CUT.to_owned(),
        },
        Fault::Latency { delay, jitter: 0, .. } => queue(format!("delay {delay}ms limit 100000")),
        Fault::Latency { delay, jitter, .. } => queue(format!("delay {delay}ms {jitter}ms limit 100000")),
        Fault::Loss { percent, .. } => queue(format!("loss {percent}% limit 100000")),
        Fault::DiskFull { leave } => Parts {
            check: none(),
            values: format!("filler={FILLER} leave={}\n", leave * 1024),
            begin: FILL.to_owned(),
            mend: "rm -f \"$filler\"\n".to_owned(),
        },
        Fault::Clock { by } => Parts {
            check: none(),
            values: format!("by={by} mark={DIR}/clock.mark\n"),
            begin: SET_CLOCK.to_owned(),
            mend: MEND_CLOCK.to_owned(),
        },
        Fault::KillK3s => Parts {
            values: none(),
            // Between two kills it need not be active.
            check: format!(
                "{} >/dev/null 2>&1 || {} >/dev/null 2>&1 || {{ echo 'k3s does not run'; exit {LACKS}; }}\n",
                service.is_active(&unit(active.fault.name())),
                service.is_active(k3s)
            ),
            begin: none(),
            mend: format!("{}\n", service.start_again(k3s)),
        },
        Fault::LinkDown | Fault::PowerCut | Fault::Pause | Fault::SlowDisk { .. } => {
            unreachable!("it is done to the machine from outside")
        }
    }
}

/// Where what a fault needs lies.
const DIR: &str = "/run/p1-fault";

/// What the machine does while the fault lasts, before it heals it. By the time since its boot: the clock may be wrong.
fn meanwhile(fault: &Fault, secs: u64, k3s: &str, service: &dyn Service) -> String {
    match fault {
        Fault::KillK3s => format!(
            "up() {{ cut -d. -f1 /proc/uptime; }}\nend=$(($(up) + {secs}))\n\
             while [ \"$(up)\" -lt \"$end\" ]; do\n  {} 2>/dev/null\n  sleep 0.5\ndone\n",
            service.kill(k3s)
        ),
        _ => format!("sleep {secs}\n"),
    }
}

/// Does it for so many seconds. What it prints is worth telling. Exit statuses: [`LACKS`], [`UNHEALED`]. A second one takes the
/// place of the first.
pub fn strike(strike: &Strike<'_>, secs: u64, service: &dyn Service) -> String {
    let name = strike.active.fault.name();
    let Parts { values, check, begin, mend } = parts(strike, service);
    let meanwhile = meanwhile(&strike.active.fault, secs, strike.k3s, service);
    let (unit, file) = (unit(name), format!("{DIR}/{name}.sh"));
    let (stop, apart) = (service.stop(&unit), service.apart(&unit, &file));
    // A k3s that an earlier one keeps down is not started in between.
    let before = if begin.is_empty() { "" } else { &mend };
    format!(
        "umask 077\nmkdir -p {DIR} || exit {UNHEALED}\n{values}{check}{stop} 2>/dev/null\n{before}\
         cat >{file} <<'P1' || exit {UNHEALED}\n\
         export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         {values}{meanwhile}{mend}rm -f {file}\nP1\n\
         {apart} || exit {UNHEALED}\n\
         begin() (\n{begin}:\n)\n\
         said=$(begin 2>&1)\ncode=$?\n[ -z \"$said\" ] || echo \"$said\"\n[ \"$code\" = 0 ] || {{\n\
         {stop} 2>/dev/null\n{mend}rm -f {file}\nexit \"$code\"\n}}\n"
    )
}

/// Takes it back, whether its time is over or not. Fine if there is nothing to be taken back.
pub fn heal(strike: &Strike<'_>, service: &dyn Service) -> String {
    let name = strike.active.fault.name();
    let Parts { values, mend, .. } = parts(strike, service);
    let stop = service.stop(&unit(name));
    format!("{stop} 2>/dev/null\n{values}{mend}rm -f {DIR}/{name}.sh\n:\n")
}

fn unit(name: &str) -> String {
    format!("p1-fault-{name}")
}
