//! Everything that runs among simulated machines (tests/sim, tests/support/sim.rs), as one program: whole
//! verbs, several servers, applications, faults, evidence, and p1 struck after each event of its journal.

#[path = "../support/fake.rs"]
mod fake;
#[path = "../support/run.rs"]
mod run;
#[path = "../support/sim.rs"]
mod sim;
#[path = "../support/sshd.rs"]
mod sshd;

mod action;
mod apps;
mod bake;
mod change;
mod crash;
mod daily;
mod disturb;
mod evidence;
mod existing;
mod faults;
mod forks;
mod guests;
mod images;
mod kept;
mod servers;
mod trust;
mod verbs;
