//! Firewalls that run on a machine: what they let in, and having them let in what k3s needs. Which there are is found on the
//! machine; each is spoken to by its own program, so that its files stay its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::NodeFacts;
use super::preflight::Protocol;
use crate::os::process::quote;

/// What p1 had them let in, a rule a line, noted before each is made.
pub const OPENED: &str = "/var/lib/p1/opened";
const UFW: &str = "ufw";
const FIREWALLD: &str = "firewalld";
/// firewalld has what holds now and what holds from its next start on.
const SIDES: [&str; 2] = ["permanent", "runtime"];

/// Those that are on. A rule is a line: `ufw PROTOCOL PORTS FROM`, as ufw writes it down, or `firewalld SIDE ZONE KIND VALUE`,
/// of the kinds that `firewall-cmd` has options for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Firewalls {
    /// By name; `ufw-ipv6` beside `ufw` where that one is for IPv6 as well.
    pub on: BTreeSet<String>,
    /// firewalld's zones, by card or network; of what is in none under `default`.
    pub zones: BTreeMap<String, String>,
    /// What they let in.
    pub rules: BTreeSet<String>,
    /// What p1 has noted that it had them let in.
    pub noted: BTreeSet<String>,
}

/// What is to be let in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Opening {
    /// From whom; none for everybody.
    pub from: Option<IpNet>,
    /// To which ports; none for all that there is.
    pub to: Option<(Protocol, Vec<u16>)>,
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.to, &self.from) {
            (Some((protocol, ports)), from) => {
                let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                write!(f, "{}/{protocol}", ports.join(","))?;
                from.map_or(Ok(()), |from| write!(f, " from {}", plain(from)))
            }
            (None, Some(from)) => write!(f, "{from}"),
            (None, None) => f.write_str("everything"),
        }
    }
}

/// What keeps k3s' traffic out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// By firewall: what it does not let in.
    pub closed: BTreeMap<&'static str, Vec<Opening>>,
    /// The rules that are missing.
    missing: Vec<String>,
    /// Rules of p1's that nothing needs any more.
    stale: Vec<String>,
}

impl Gap {
    /// Whether something is kept out of this port.
    pub fn closes(&self, protocol: Protocol, port: u16) -> bool {
        let to = |opening: &Opening| {
            opening.to.as_ref().is_some_and(|(of, ports)| *of == protocol && ports.contains(&port))
        };
        self.closed.values().flatten().any(to)
    }

    /// In words, a fragment; none where nothing is to be done.
    pub fn why(&self) -> Option<String> {
        let first = self.closed.iter().next().map(|(name, closed)| {
            let named: Vec<String> = closed.iter().take(3).map(ToString::to_string).collect();
            let more = closed.len() - named.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("its firewall {name} does not let in {}{more}", named.join(", "))
        });
        let stale = || "its firewall lets in what left the cluster".to_owned();
        first.or_else(|| (!self.stale.is_empty()).then(stale))
    }
}

/// A single address without its prefix.
fn plain(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

impl Firewalls {
    pub(super) fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Takes one line of a node's answer.
    pub(super) fn read(&mut self, key: &str, value: &str) {
        match (key, value.split_once(' ')) {
            ("firewall", None) => _ = self.on.insert(value.into()),
            ("firewall_zone", Some((of, zone))) => _ = self.zones.insert(of.into(), zone.into()),
            ("firewall_rule", Some(_)) => _ = self.rules.insert(value.into()),
            ("firewall_noted", Some(_)) => _ = self.noted.insert(value.into()),
            _ => {}
        }
    }

    /// Of firewalld: the zone of what comes from there by that card. A network's goes before the card's.
    fn zone(&self, from: Option<IpNet>, card: Option<&str>) -> &str {
        let network = |of: &str| of.parse::<IpNet>().or_else(|_| of.parse::<IpAddr>().map(IpNet::from)).ok();
        let holds = |of: &str| network(of).filter(|net| from.is_some_and(|from| net.contains(&from)));
        let by_network = self.zones.iter().filter_map(|(of, zone)| Some((holds(of)?.prefix_len(), zone)));
        let found = by_network.max().map(|(_, zone)| zone);
        let by_card = || self.zones.get(card.unwrap_or_default());
        found.or_else(by_card).or_else(|| self.zones.get("default")).map_or("public", String::as_str)
    }

    /// The rules by which that is let in.
    fn rules(&self, opening: &Opening, card: Option<&str>, senders: &[IpNet]) -> Vec<(&'static str, String)> {
        let mut all = Vec::new();
        let v6 = matches!(opening.from, Some(IpNet::V6(_)));
        if self.on.contains(UFW) && (!v6 || self.on.contains("ufw-ipv6")) {
            let from = opening.from.map_or_else(|| "0.0.0.0/0".to_owned(), plain);
            let to = match &opening.to {
                None => "any any".to_owned(),
                Some((protocol, ports)) => {
                    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                    format!("{protocol} {}", ports.join(","))
                }
            };
            all.push((UFW, format!("{UFW} {to} {from}")));
        }
        if self.on.contains(FIREWALLD) {
            let rules: Vec<String> = match (&opening.to, opening.from) {
                (None, from) => from.map(|from| format!("trusted source {from}")).into_iter().collect(),
                // Who is in a zone of its own passes by the card's.
                (Some((protocol, ports)), None) => {
                    let zones = senders.iter().map(|from| self.zone(Some(*from), card));
                    let zones: BTreeSet<&str> = zones.chain([self.zone(None, card)]).collect();
                    let rule = |zone: &str| {
                        let ports = ports.iter().map(move |port| format!("port {port}/{protocol}"));
                        ports.map(|port| format!("{zone} {port}")).collect::<Vec<_>>()
                    };
                    zones.into_iter().filter(|zone| *zone != "trusted").flat_map(rule).collect()
                }
                (Some((protocol, ports)), Some(from)) => {
                    let (zone, family) = (self.zone(Some(from), card), if v6 { "ipv6" } else { "ipv4" });
                    let rule = |port: &u16| {
                        format!(
                            "{zone} rich-rule rule family=\"{family}\" source address=\"{}\" port port=\"{port}\" \
                             protocol=\"{protocol}\" accept",
                            plain(from)
                        )
                    };
                    if zone == "trusted" { vec![] } else { ports.iter().map(rule).collect() }
                }
            };
            let sides = |rule: String| SIDES.map(|side| (FIREWALLD, format!("{FIREWALLD} {side} {rule}")));
            all.extend(rules.into_iter().flat_map(sides));
        }
        all
    }
}

/// What a machine's firewalls have to be told so that they let that in; `ip` is the address that it comes to.
pub fn gap(facts: &NodeFacts, ip: Ipv4Addr, wanted: &[Opening]) -> Gap {
    let (has, mut gap, mut needed) = (&facts.firewalls, Gap::default(), BTreeSet::new());
    let card = facts.interface_of(ip);
    let senders: Vec<IpNet> = wanted.iter().filter(|o| o.to.is_some()).filter_map(|o| o.from).collect();
    for opening in wanted {
        for (name, rule) in has.rules(opening, card, &senders) {
            if !has.rules.contains(&rule) && !gap.missing.contains(&rule) {
                let closed = gap.closed.entry(name).or_default();
                if closed.last() != Some(opening) {
                    closed.push(opening.clone());
                }
                gap.missing.push(rule.clone());
            }
            needed.insert(rule);
        }
    }
    let on = |rule: &&String| rule.split(' ').next().is_some_and(|name| has.on.contains(name));
    gap.stale = has.noted.iter().filter(on).filter(|rule| !needed.contains(*rule)).cloned().collect();
    gap
}

/// Mends it, and notes before what it changes.
pub fn mend(gap: &Gap) -> String {
    format!(
        "set -eu\numask 077\nopened={OPENED}\nmkdir -p \"${{opened%/*}}\"\n{FUNCTIONS}{}{}{MEND}",
        lines("\"$opened.remove\"", &gap.stale),
        lines("\"$opened.add\"", &gap.missing)
    )
}

/// Takes back all that was noted: a part of a longer script.
pub fn undo() -> String {
    format!(
        "opened={OPENED}\n{FUNCTIONS}if [ -f \"$opened\" ]; then\n  firewalls remove \"$opened\" || exit 1\n  \
         rm -f \"$opened\"\nfi\n"
    )
}

/// Puts lines into a file, which is named as a shell has it.
fn lines(file: &str, all: &[String]) -> String {
    match all.is_empty() {
        true => format!(": >{file}\n"),
        false => {
            let all: Vec<String> = all.iter().map(|line| quote(line)).collect();
            format!("printf '%s\\n' {} >{file}\n", all.join(" "))
        }
    }
}

/// `firewalls add FILE`, `firewalls remove FILE`: the rules of a file. What is there already, or no longer, is fine. A firewalld that
/// does not run has its files alone; a program that is gone took its rules with it.
const FUNCTIONS: &str = r#"firewalls() {
  way=$1 list=$2 failed=
  if command -v ufw >/dev/null 2>&1; then
    while read -r name proto ports from; do
      [ "$name" = ufw ] || continue
      case $from in *:*) all=::/0 ;; *) all=0.0.0.0/0 ;; esac
      set -- from "$from" to "$all"
      [ "$ports" = any ] || set -- proto "$proto" "$@" port "$ports"
      if [ "$way" = add ]; then set -- allow "$@" comment p1; else set -- delete allow "$@"; fi
      ufw "$@" </dev/null >/dev/null || failed=yes
    done <"$list"
  fi
  if command -v firewall-cmd >/dev/null 2>&1; then
    running=
    ! firewall-cmd --state >/dev/null 2>&1 || running=yes
    sed -n 's/^firewalld \([^ ]* [^ ]* [^ ]*\) .*/\1/p' "$list" | sort -u >"$list.kinds"
    while read -r side zone kind; do
      case $side:$running in
        permanent:yes) program='firewall-cmd --permanent' ;;
        permanent:) program=firewall-offline-cmd ;;
        *:yes) program=firewall-cmd ;;
        *) continue ;;
      esac
      set --
      while IFS= read -r line; do
        case $line in
          "firewalld $side $zone $kind "*) set -- "$@" "--$way-$kind=${line#"firewalld $side $zone $kind "}" ;;
        esac
      done <"$list"
      code=0
      $program --zone="$zone" "$@" </dev/null >/dev/null || code=$?
      # A source that is in no zone is none that could be removed (UNKNOWN_SOURCE).
      case $way:$code in *:0 | remove:30) ;; *) failed=yes ;; esac
    done <"$list.kinds"
    rm -f "$list.kinds"
  fi
  [ -z "$failed" ]
}
"#;

const MEND: &str = r#"[ -e "$opened" ] || : >"$opened"
firewalls remove "$opened.remove"
{ grep -vxF -f "$opened.remove" "$opened" || :; cat "$opened.add"; } | sort -u >"$opened.new"
mv -f "$opened.new" "$opened"
firewalls add "$opened.add"
rm -f "$opened.add" "$opened.remove"
"#;

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(text: &str) -> NodeFacts {
        let address = "address=eth0 192.168.56.110/24\naddress=eth1 10.0.0.1/24\n";
        super::super::parse(&format!("{address}{text}end=ok\n")).unwrap()
    }

    fn wanted() -> Vec<Opening> {
        let from = |text: &str| Some(text.parse().unwrap());
        vec![
            Opening { from: None, to: Some((Protocol::Tcp, vec![6443])) },
            Opening { from: from("10.42.0.0/16"), to: None },
            Opening { from: from("192.168.56.111/32"), to: Some((Protocol::Tcp, vec![2379, 10250])) },
        ]
    }

    fn missing(text: &str) -> Vec<String> {
        gap(&facts(text), [192, 168, 56, 110].into(), &wanted()).missing
    }

    #[test]
    fn what_a_firewall_lets_in_already_is_left_alone_and_nothing_is_asked_of_one_that_is_off() {
        assert_eq!(missing(""), [""; 0]);
        let ufw = ["ufw tcp 6443 0.0.0.0/0", "ufw any any 10.42.0.0/16", "ufw tcp 2379,10250 192.168.56.111"];
        assert_eq!(missing("firewall=ufw\n"), ufw);
        let has = format!("firewall=ufw\nfirewall_rule={}\nfirewall_rule={}\n", ufw[0], ufw[2]);
        assert_eq!(missing(&has), ufw[1..2]);
        let gap = gap(&facts(&has), [192, 168, 56, 110].into(), &wanted());
        assert_eq!(gap.why().unwrap(), "its firewall ufw does not let in 10.42.0.0/16");
        assert!(!gap.closes(Protocol::Tcp, 6443));
    }

    #[test]
    fn firewalld_is_told_for_the_zones_that_packets_come_by_now_and_from_its_next_start_on() {
        let zones = "firewall=firewalld\nfirewall_zone=default public\nfirewall_zone=eth0 work\n";
        let rule = "rich-rule rule family=\"ipv4\" source address=\"192.168.56.111\" port port=\"2379\" protocol=\"tcp\" accept";
        let all = missing(zones);
        for side in SIDES {
            for line in ["work port 6443/tcp", "trusted source 10.42.0.0/16", &format!("work {rule}")] {
                assert!(all.contains(&format!("firewalld {side} {line}")), "{all:#?}");
            }
        }
        assert_eq!(all.len(), 8);
        // What holds until its next start only is told again for then.
        let now = format!("{zones}firewall_rule=firewalld runtime trusted source 10.42.0.0/16\n");
        assert_eq!(missing(&now).len(), 7);
        // The other node is in a zone of its own, the API is for both.
        let own = missing(&format!("{zones}firewall_zone=192.168.56.0/24 nodes\n"));
        for line in ["work port 6443/tcp", "nodes port 6443/tcp", &format!("nodes {rule}")] {
            assert!(own.contains(&format!("firewalld runtime {line}")), "{own:#?}");
        }
        // One that trusts it has nothing to be told.
        let trusted = missing(&format!("{zones}firewall_zone=192.168.0.0/16 trusted\n"));
        assert!(!trusted.iter().any(|line| line.contains("rich-rule")), "{trusted:#?}");
    }

    #[test]
    fn what_p1_opened_and_nothing_needs_is_closed_again_and_nobody_else_s() {
        let all =
            missing("firewall=ufw\n").iter().map(|r| format!("firewall_rule={r}\n")).collect::<String>();
        let of = |more: &str| gap(&facts(&format!("{all}{more}")), [192, 168, 56, 110].into(), &wanted());
        assert_eq!(of("firewall=ufw\nfirewall_rule=ufw tcp 22 0.0.0.0/0\n").why(), None);
        let left = "firewall_noted=ufw tcp 10250 192.168.56.119\n";
        assert_eq!(of(&format!("firewall=ufw\n{left}")).stale, ["ufw tcp 10250 192.168.56.119"]);
        assert!(of(&format!("firewall=ufw\n{left}")).why().unwrap().contains("left the cluster"));
        assert_eq!(of(left).why(), None, "it is off");
    }
}
