//! Faults on purpose: what is done to a node, for how long, as text and as what is written down of one. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::explain::{parse_seconds, seconds};

/// How long a fault lasts where nothing else is said.
pub const USUAL: Duration = Duration::from_secs(60);
/// At most: what lasts longer is no fault on purpose, but how the cluster is.
pub const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// What is done to a node. The names are those of the command line and of `faults.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "kebab-case")]
pub enum Fault {
    /// It hears nothing from other nodes, and they nothing from it.
    Partition {
        /// Only these; empty for all that are not on its side.
        peers: Vec<String>,
    },
    /// What it sends to other nodes is late.
    Latency {
        /// Only to these; empty for all.
        peers: Vec<String>,
        delay: Millis,
        /// By which the delay varies to either side.
        jitter: Millis,
    },
    /// A part of what it sends to other nodes is lost.
    Loss {
        /// Only to these; empty for all.
        peers: Vec<String>,
        percent: u8,
    },
    /// Its network cable is pulled.
    LinkDown,
    /// Its machine's plug is pulled.
    PowerCut,
    /// Its machine stands still.
    Pause,
    /// There is no room on its disk.
    DiskFull {
        /// MiB that are left free.
        leave: u64,
    },
    /// Its disk is slow.
    SlowDisk {
        /// Reads and writes a second, together.
        iops: u32,
        /// KiB a second.
        rate: u64,
    },
    /// Its clock is wrong.
    Clock {
        /// Seconds that it is ahead; less than none for behind.
        by: i64,
    },
    /// Its k3s is killed as often as it comes back.
    KillK3s,
}

/// A time as `faults.json` has it.
pub type Millis = u64;

impl Fault {
    /// All of them, with the usual settings.
    pub fn all() -> [Self; 10] {
        let peers = Vec::new;
        [
            Self::Partition { peers: peers() },
            Self::Latency { peers: peers(), delay: 200, jitter: 0 },
            Self::Loss { peers: peers(), percent: 10 },
            Self::LinkDown,
            Self::PowerCut,
            Self::Pause,
            Self::DiskFull { leave: 0 },
            Self::SlowDisk { iops: 50, rate: 1024 },
            Self::Clock { by: 3600 },
            Self::KillK3s,
        ]
    }

    /// As the command line has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Partition { .. } => "partition",
            Self::Latency { .. } => "latency",
            Self::Loss { .. } => "loss",
            Self::LinkDown => "link-down",
            Self::PowerCut => "power-cut",
            Self::Pause => "pause",
            Self::DiskFull { .. } => "disk-full",
            Self::SlowDisk { .. } => "slow-disk",
            Self::Clock { .. } => "clock",
            Self::KillK3s => "kill-k3s",
        }
    }

    /// Whether it is done inside the machine; the others are done to it from outside.
    pub fn is_inside(&self) -> bool {
        match self {
            Self::LinkDown | Self::PowerCut | Self::Pause | Self::SlowDisk { .. } => false,
            Self::Partition { .. }
            | Self::Latency { .. }
            | Self::Loss { .. }
            | Self::DiskFull { .. }
            | Self::Clock { .. }
            | Self::KillK3s => true,
        }
    }

    /// Whether nothing inside the machine can be reached meanwhile.
    pub fn hides_the_machine(&self) -> bool {
        matches!(self, Self::LinkDown | Self::PowerCut | Self::Pause)
    }

    /// Why both cannot be on one node; none if they can.
    pub fn bars(&self, other: &Self) -> Option<&'static str> {
        let queues = |fault: &Self| matches!(fault, Self::Latency { .. } | Self::Loss { .. });
        match other {
            _ if self.name() == other.name() => Some("it is there already"),
            _ if matches!(self, Self::PowerCut | Self::Pause) => Some("its machine does not run"),
            _ if self.hides_the_machine() && other.is_inside() => Some("its machine cannot be reached"),
            _ if queues(self) && queues(other) => Some("both need the card's queue"),
            _ => None,
        }
    }

    /// The same, to be changed.
    pub fn peers_mut(&mut self) -> Option<&mut Vec<String>> {
        match self {
            Self::Partition { peers } | Self::Latency { peers, .. } | Self::Loss { peers, .. } => Some(peers),
            _ => None,
        }
    }

    /// The nodes that it is between, if only some are named.
    pub fn peers(&self) -> Option<&[String]> {
        match self {
            Self::Partition { peers } | Self::Latency { peers, .. } | Self::Loss { peers, .. } => Some(peers),
            _ => None,
        }
    }

    /// Whether the machine's next start ends it by itself.
    pub fn ends_with_the_machine(&self) -> bool {
        !matches!(self, Self::DiskFull { .. } | Self::PowerCut)
    }
}

/// Its name and settings, as options of the command line.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Latency { delay, jitter, .. } => {
                write!(f, " --delay {delay}ms")?;
                if *jitter > 0 {
                    write!(f, " --jitter {jitter}ms")?;
                }
            }
            Self::Loss { percent, .. } => write!(f, " --percent {percent}")?,
            Self::DiskFull { leave } if *leave > 0 => write!(f, " --leave {leave}")?,
            Self::SlowDisk { iops, rate } => write!(f, " --iops {iops} --rate {rate}")?,
            Self::Clock { by } => {
                let sign = if *by < 0 { "-" } else { "" };
                write!(f, " --by={sign}{}s", by.unsigned_abs())?;
            }
            _ => {}
        }
        for peer in self.peers().unwrap_or_default() {
            write!(f, " --peer {peer}")?;
        }
        Ok(())
    }
}

/// A fault that somebody wants.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    pub fault: Fault,
    /// On which nodes.
    pub nodes: Vec<String>,
    /// For how long, if that is said.
    pub time: Option<Duration>,
}

impl Wish {
    /// What it is about beside its nodes, in the words of the command line; [`Wish::read`] reads it.
    pub fn subject(&self) -> String {
        let time = self.lasts();
        let time = match time.subsec_millis() {
            0 => format!("{}s", time.as_secs()),
            _ => format!("{}ms", time.as_millis()),
        };
        format!("{} --for {time}", self.fault)
    }

    /// How long it lasts.
    pub fn lasts(&self) -> Duration {
        self.time.unwrap_or(USUAL)
    }

    /// Reads what stands behind `p1 fault`: a fault, nodes, options.
    ///
    /// # Errors
    /// What is wrong, as a fragment.
    pub fn read(text: &str) -> Result<Self, String> {
        let words = shlex::split(text).ok_or_else(|| format!("`{text}` has a quote without its end"))?;
        let mut words = words.into_iter().flat_map(|word| match word.split_once('=') {
            Some((option, value)) if option.starts_with("--") => vec![option.to_owned(), value.to_owned()],
            _ => vec![word],
        });
        let name = words.next().ok_or("there is no fault")?;
        let fault = Fault::all().into_iter().find(|fault| fault.name() == name).ok_or_else(|| {
            let all = Fault::all().map(|fault| fault.name()).join(", ");
            format!("`{name}` is no fault; there are {all}")
        })?;
        let mut wish = Self { fault, nodes: Vec::new(), time: None };
        while let Some(word) = words.next() {
            if !word.starts_with('-') {
                wish.nodes.push(word);
                continue;
            }
            let value = words.next().ok_or_else(|| format!("`{word}` has no value"))?;
            wish.set(&word, &value)?;
        }
        Ok(wish)
    }

    fn set(&mut self, option: &str, value: &str) -> Result<(), String> {
        let time = || parse_seconds(value).ok_or_else(|| format!("`{value}` is no time such as 90s or 5m"));
        let millis = || time().map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let no = || format!("`{option} {value}`: that is no number");
        match (option, &mut self.fault) {
            ("--for", _) => self.time = Some(time()?),
            ("--delay", Fault::Latency { delay, .. }) => *delay = millis()?,
            ("--jitter", Fault::Latency { jitter, .. }) => *jitter = millis()?,
            ("--percent", Fault::Loss { percent, .. }) => *percent = value.parse().map_err(|_| no())?,
            ("--leave", Fault::DiskFull { leave }) => *leave = value.parse().map_err(|_| no())?,
            ("--iops", Fault::SlowDisk { iops, .. }) => *iops = value.parse().map_err(|_| no())?,
            ("--rate", Fault::SlowDisk { rate, .. }) => *rate = value.parse().map_err(|_| no())?,
            ("--by", Fault::Clock { by }) => *by = offset(value)?,
            ("--peer", fault) if fault.peers().is_some() => {
                fault.peers_mut().expect("just seen").push(value.to_owned());
            }
            _ => return Err(format!("`{}` has no option `{option}`", self.fault.name())),
        }
        Ok(())
    }

    /// What of its settings makes no sense, as a fragment.
    pub fn nonsense(&self) -> Option<String> {
        let shortest = Duration::from_secs(1);
        if self.lasts() < shortest || self.lasts() > LONGEST {
            let (from, to) = (seconds(shortest), seconds(LONGEST));
            return Some(format!("a fault lasts from {from} to {to}, not {}", seconds(self.lasts())));
        }
        if let Some(node) = self.fault.peers().into_iter().flatten().find(|peer| self.nodes.contains(peer)) {
            return Some(format!("`{node}` cannot be on both sides"));
        }
        let what = match self.fault {
            Fault::Latency { delay: 0, .. } => "a delay of nothing is none",
            Fault::Latency { delay, .. } if delay > 60_000 => "a delay is at most 60s",
            Fault::Latency { delay, jitter, .. } if jitter > delay => "the jitter is more than the delay",
            Fault::Loss { percent: 0, .. } => "a loss of nothing is none",
            Fault::Loss { percent: 101.., .. } => "no more than 100 percent can be lost",
            Fault::SlowDisk { iops: 0, .. } | Fault::SlowDisk { rate: 0, .. } => {
                "a disk that does nothing at all hangs: that is what `pause` does to a machine"
            }
            Fault::Clock { by: 0 } => "a clock that is off by nothing is right",
            Fault::Clock { by } if by.unsigned_abs() > 10 * 365 * 86_400 => {
                "a clock is off by ten years at most"
            }
            _ => return None,
        };
        Some(what.to_owned())
    }
}

/// `1h`, `-90s`: by how much a clock is off, in seconds.
pub fn offset(text: &str) -> Result<i64, String> {
    let (sign, time) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let time = parse_seconds(time).ok_or_else(|| format!("`{text}` is no time such as 1h or -90s"))?;
    i64::try_from(time.as_secs()).map(|secs| sign * secs).map_err(|_| format!("`{text}` is too much"))
}

/// A fault that is on a node, or about to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Active {
    pub node: String,
    /// The id of the machine that has it: another one does not.
    pub machine: String,
    #[serde(flatten)]
    pub fault: Fault,
    /// The addresses of the nodes that it is between.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub between: BTreeMap<String, Ipv4Addr>,
    pub since: Timestamp,
    /// When it is healed.
    pub until: Timestamp,
    /// The run that brought it.
    pub run: String,
}

impl Active {
    /// Whether its time has passed.
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.until <= now
    }

    /// Whether it is this one's place: there is one of a kind on a node.
    pub fn is(&self, other: &Self) -> bool {
        self.node == other.node && self.fault.name() == other.fault.name()
    }

    /// Whether what it does can be seen of that node.
    pub fn concerns(&self, node: &str) -> bool {
        self.node == node || self.between.contains_key(node)
    }

    /// For people: what it is and when it ends.
    pub fn told(&self, now: Timestamp) -> String {
        let left = Duration::try_from(self.until.duration_since(now)).unwrap_or_default();
        let left = if left.is_zero() { "it is being healed".to_owned() } else { seconds(left) + " left" };
        format!("`{}` until {} UTC ({left})", self.fault, self.until.strftime("%H:%M:%S"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_read_back_from_its_own_words() {
        for fault in Fault::all() {
            let wish = Wish { fault, nodes: vec![], time: Some(Duration::from_secs(90)) };
            assert_eq!(Wish::read(&wish.subject()).as_ref(), Ok(&wish), "{}", wish.subject());
            assert_eq!(wish.nonsense(), None);
        }
        let wish = Wish::read("latency a b --delay 80ms --jitter 5ms --peer c --peer d --for 2m").unwrap();
        assert_eq!(wish.subject(), "latency --delay 80ms --jitter 5ms --peer c --peer d --for 120s");
        assert_eq!(Wish::read(&wish.subject()).unwrap(), Wish { nodes: vec![], ..wish });
        let clock = Wish::read("clock a --by=-1h").unwrap();
        assert_eq!((clock.time, clock.lasts()), (None, USUAL));
        assert_eq!(
            (&clock.fault, clock.subject().as_str()),
            (&Fault::Clock { by: -3600 }, "clock --by=-3600s --for 60s")
        );
    }

    #[test]
    fn what_is_no_fault_is_told() {
        for (text, why) in [
            ("", "no fault"),
            ("flood a", "`flood` is no fault; there are partition, "),
            ("pause a --delay 1s", "`pause` has no option `--delay`"),
            ("pause a --for", "`--for` has no value"),
            ("loss a --percent x", "no number"),
            ("loss a --percent 'x", "a quote"),
            ("clock a --by soon", "no time"),
        ] {
            let said = Wish::read(text).unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
        }
        for (text, why) in [
            ("pause a --for 100ms", "from 1s to"),
            ("partition a --peer a", "both sides"),
            ("loss a --percent 101", "100 percent"),
            ("latency a --delay 1s --jitter 2s", "more than the delay"),
            ("slow-disk a --iops 0", "hangs"),
            ("clock a --by 0s", "is right"),
        ] {
            let said = Wish::read(text).unwrap().nonsense().unwrap_or_default();
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    #[test]
    fn what_is_written_down_of_a_fault_reads_back_and_has_its_name() {
        for fault in Fault::all() {
            let name = fault.name();
            let at = Timestamp::UNIX_EPOCH;
            let between = [("b".to_owned(), Ipv4Addr::new(10, 0, 0, 2))].into();
            let (node, machine, run) = ("a".into(), "id".into(), "r".into());
            let active = Active { node, machine, fault, between, since: at, until: at, run };
            let text = serde_json::to_value(&active).unwrap();
            assert_eq!(text["fault"], name);
            assert_eq!(serde_json::from_value::<Active>(text).unwrap(), active);
            assert!(active.concerns("a") && active.concerns("b") && !active.concerns("c"));
        }
    }
}
