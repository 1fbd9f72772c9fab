//! What a machine's system is, and how it is spoken to: what was seen of it, and scripts as text with the readers of
//! their answers. Pure: the scripts are run by others.
//!
//! Whatever depends on the init system, its log, the firewall, SELinux or the way to a hostname is asked of the one
//! [`Guest`] that [`of`] chooses; nothing else names `systemctl` or `journalctl`, but for a detached job
//! (`ssh/detached.rs`), which does without either.

mod facts;
mod fault;
pub mod firewall;
pub mod found;
mod linux;
mod openrc;
pub mod preflight;
mod systemd;
mod tune;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

pub use facts::{Activity, NodeFacts, Unit, parse, script};
pub use fault::{LACKS, Strike, UNHEALED};
pub use found::Launch;
pub use preflight::{Ground, Peer, Protocol, Reached};

use crate::k3s::Said;
use crate::render;
use crate::spec::Role;

/// The systems there are, the usual one first. A node that is asked about itself is asked for the init system of each.
const GUESTS: [&dyn Guest; 2] = [&linux::Linux(&systemd::Systemd), &linux::Linux(&openrc::OpenRc)];

/// The system of a machine, of which these facts are known, if any are; the usual one, whose obstacles tell of it, where it
/// is none that p1 knows.
pub fn of(facts: Option<&NodeFacts>) -> &'static dyn Guest {
    let known = facts.and_then(|facts| GUESTS.into_iter().find(|guest| guest.is(facts)));
    known.unwrap_or(GUESTS[0])
}

/// What k3s cannot run with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// A lower-case fragment.
    pub cause: String,
    /// Full sentences: what to do about it.
    pub hint: &'static str,
}

/// What a machine is to be.
#[derive(Clone, Copy, Debug)]
pub struct Prepare<'a> {
    /// Its hostname, fully qualified or not.
    pub name: &'a str,
    /// What the nodes call it by, and the length of its network's prefix.
    pub ip: Ipv4Addr,
    pub prefix: u8,
    /// The card that has the address; where there is none of it, any card that has none.
    pub mac: &'a str,
    /// Seconds since 1970; 0 leaves the clock alone.
    pub now: u64,
}

/// A file on a disk that the machine was given.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// The disk's serial number.
    pub serial: &'a str,
    /// Where it begins, MiB.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    pub sha256: &'a str,
    /// The path that it is to have, and its mode.
    pub dest: &'a str,
    pub mode: u32,
}

/// From where on a unit's log counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Since {
    /// By the node's clock, seconds since 1970, as text; empty where it is not known.
    pub at: String,
    /// The unit's invocation before: its last lines may be of the same second.
    pub invocation: String,
}

/// A kind of system. Scripts are for root's `sh`.
pub trait Guest: Sync {
    /// Its init system.
    fn service(&self) -> &'static dyn Service;

    /// Whether a machine of these facts has it.
    fn is(&self, facts: &NodeFacts) -> bool {
        facts.init.as_deref() == Some(self.service().name())
    }

    /// What k3s cannot run with.
    fn obstacles(&self, facts: &NodeFacts) -> Vec<Obstacle>;

    /// What k3s runs with, but not well, in full sentences.
    fn warnings(&self, facts: &NodeFacts, role: Role) -> Vec<String>;

    /// What of the system gets in k3s' way and p1 has out of it: why, a fragment; none where nothing does.
    fn untuned(&self, facts: &NodeFacts) -> Option<&'static str> {
        tune::why(&facts.untuned)
    }

    /// Has it out of the way, and prints what it did, a line each. Noted as [`Guest::prepare`] notes.
    fn tune(&self, facts: &NodeFacts) -> String;

    /// Gives the machine name, address and clock, and prints what it did, a line each. What it changes it notes on the
    /// machine before, for [`Guest::undo`]. Exit status 20: no network card is left for the address.
    fn prepare(&self, want: &Prepare<'_>) -> Result<String, render::Error>;

    /// Has the machine know names of hosts by these lines (`ADDRESS NAME NAME`), in a part of its own of the file that has
    /// them; other lines are left alone.
    fn hosts(&self, lines: &[String]) -> String;

    /// Takes back what [`Guest::prepare`] noted, but for the address, and [`Guest::hosts`] whole.
    fn undo(&self) -> String;

    /// Has the root file system fill its disk, and prints what it did, a line each. Exit status 21: its partition cannot be
    /// enlarged with what the system has.
    fn fill(&self) -> &'static str;

    /// Copies a file from a disk to its place, whole or not at all. Exit statuses: 90 it could not, 91 there is no room
    /// for it, 93 it differs, 94 there is no such disk.
    fn copy(&self, piece: &Piece<'_>) -> String;

    /// Sets a clock that is more than a second off, and prints by how much it was. `now`: since 1970.
    fn set_clock(&self, now: Duration) -> String;

    /// Of a machine that goes on from a moment from which others may go on too: has the kernel take in these hex digits of this
    /// host's as randomness, and forget whom it knew in its network.
    fn renew(&self, random: &str) -> String;

    /// Whether a fork of the machine is reached by that address and keeps its addresses where nobody gives it any: prints
    /// what it lacks for that, a line each, and nothing where it lacks nothing.
    fn lacks_for_fork(&self, address: Ipv6Addr) -> String;

    /// Of a fork's machine, whose network has nobody who gives out addresses: those that it has are its own from here on.
    fn stand_alone(&self) -> &'static str;

    /// Does what a fault on purpose does inside the machine, for so many seconds, after which the machine heals itself.
    /// Exit statuses: [`LACKS`], [`UNHEALED`].
    fn strike(&self, strike: &Strike<'_>, secs: u64) -> String;

    /// Takes it back, be its time over or not. Fine if there is nothing to be taken back.
    fn heal(&self, strike: &Strike<'_>) -> String;

    /// Of a machine of which a box is made: takes away what makes it one of its own, and puts the keys back that let in
    /// whom the box lets in, which lie beside its `authorized_keys` with that ending; `public` is the key that p1 came in
    /// by.
    fn wipe(&self, public: &str, ending: &str) -> String;

    /// After that: ends the machine at once, so that nothing of it is written down any more.
    fn end_wiped(&self) -> String;

    /// Begins to shut the machine down, and does not wait for it.
    fn power_off(&self) -> &'static str {
        self.service().power_off()
    }

    /// Begins to restart the machine, and does not wait for it.
    fn reboot(&self) -> &'static str {
        self.service().reboot()
    }

    /// Shows everything of the machine, in parts that begin with a line `=p1= NAME`.
    fn evidence(&self) -> &'static str;
}

/// An init system and its log. Units are named without an ending.
pub trait Service: Sync {
    /// What it is called.
    fn name(&self) -> &'static str;

    /// Its part of the script that asks a node about itself (`templates/facts.sh`, whose `say` and `names` it may use):
    /// `init` with its name where it runs, and for `k3s` and `k3s-agent` each property of the service and the files that set
    /// something for it. Prints nothing where it does not run.
    fn facts(&self) -> &'static str;

    /// Its part of the script that reads a k3s of somebody's (`templates/found.sh`, whose `say` and `show` it may use): for each
    /// file of the units `k3s` and `k3s-agent`, in their order, `unit` with the unit and the file, and all files with what they
    /// hold. Where it prints nothing, no k3s is taken over.
    fn found(&self) -> &'static str {
        ""
    }

    /// What a unit is started with, by its files in their order; `read` has what others hold.
    fn launch<'t>(
        &self,
        _unit: &str,
        _files: &[(&str, &'t str)],
        _read: &dyn Fn(&str) -> Option<&'t str>,
    ) -> Launch {
        Launch::default()
    }

    /// Prints what files of the init system's and the distribution's set for a unit, a line `KEY FILE` each; never the
    /// values, which may be secrets.
    fn settings(&self, unit: &str) -> String;

    /// The file from which a unit of k3s' installer takes variables, and which the installer leaves alone.
    fn environment(&self, unit: &str) -> String;

    /// What that file has to hold for these variables, `NAME="VALUE"` a line.
    fn variables(&self, text: String) -> String {
        text
    }

    /// Functions for longer scripts, each with a unit: `service_state` prints its state and succeeds if it is `active`;
    /// `service_start` begins to start it; `service_stop` waits for its end; `service_pid` prints its main process, 0 for
    /// none; `service_remove` stops it for good and removes it.
    fn functions(&self) -> &'static str;

    /// Has a unit that was just written started with the machine. Succeeds if that is so.
    fn enable(&self, unit: &str) -> String;

    /// Restarts a unit, with what is written of it now, and does not wait for it; what it prints is for
    /// [`Service::started`].
    fn start(&self, unit: &str) -> String;

    /// From where on the log of that start counts.
    fn started(&self, answer: &str) -> Since;

    /// Stops a unit and waits for its end.
    fn stop(&self, unit: &str) -> String;

    /// Switches the machine off without stopping services first; file systems are unmounted.
    fn end_at_once(&self) -> &'static str;

    /// Begins to shut the machine down, and does not wait for it.
    fn power_off(&self) -> &'static str;

    /// Begins to restart the machine, and does not wait for it.
    fn reboot(&self) -> &'static str;

    /// Kills a unit's main process.
    fn kill(&self, unit: &str) -> String;

    /// Starts a unit that was killed too often to be started again by itself, and does not wait for it.
    fn start_again(&self, unit: &str) -> String;

    /// Has a script of the machine run by itself, as a unit of that name which is forgotten when it ends.
    fn apart(&self, unit: &str, file: &str) -> String;

    /// Restarts a unit and waits for it: a command for people.
    fn restart(&self, unit: &str) -> String;

    /// Succeeds if the unit is active.
    fn is_active(&self, unit: &str) -> String;

    /// Asks for a unit's state, for [`Service::read`].
    fn state(&self, unit: &str) -> String;

    /// A unit's state.
    fn read(&self, answer: &str) -> Unit;

    /// Prints the last lines of a unit's log for people, and with `follow` what comes.
    fn log(&self, unit: &str, most: u32, follow: bool) -> String;

    /// Prints the last lines of a unit's log from a start on, for [`Service::lines`].
    fn said(&self, unit: &str, since: &Since, most: u32) -> String;

    /// The lines, each with the start of the unit that it is of.
    fn lines(&self, answer: &str) -> Vec<Said>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_spoken_to_as_its_init_system_asks_and_as_usual_where_it_is_unknown() {
        let same = |a: &dyn Guest, b: &dyn Guest| a.service().name() == b.service().name();
        for guest in GUESTS {
            let name = guest.service().name();
            assert!(guest.service().facts().contains(&format!("say init {name}\n")), "{name}");
            let facts = parse(&format!("init={name}\nend=ok\n")).unwrap();
            assert!(guest.is(&facts) && same(of(Some(&facts)), guest), "{name}");
        }
        let other = parse("init=none of these\nend=ok\n").unwrap();
        assert!(same(of(Some(&other)), GUESTS[0]) && same(of(None), GUESTS[0]));
        assert!(of(Some(&other)).obstacles(&other).iter().any(|o| o.cause.contains("does not run")));
    }
}
