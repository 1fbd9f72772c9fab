//! The command line: one file per verb, arguments first, then a call downwards. anyhow and printing
//! live here only.

/// As the standard library's, but a terminal that has gone away is none of our business: those panic.
macro_rules! eprint {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = write!(std::io::stderr(), $($arg)*);
    }};
}

/// See `eprint`.
macro_rules! eprintln {
    ($($arg:tt)*) => { eprint!("{}\n", format_args!($($arg)*)) };
}

mod args;
mod artifacts;
mod backup;
mod boxes;
mod bundle;
mod change;
mod context;
mod destroy;
mod doctor;
mod exec;
mod fail;
mod files;
mod kubeconfig;
mod kubectl;
mod logs;
mod plan;
mod power;
mod replace;
mod retry;
mod run;
mod signals;
mod snapshot;
mod ssh;
mod status;
mod up;
mod upgrade;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::os::Cancel;
use crate::ui::{Tone, wording};
use args::{Cli, Verb};
use context::Context;
use fail::Fail;

/// Runs p1 with the arguments of this process.
pub fn main() -> ExitCode {
    let Cli { global, verb } = Cli::parse();
    let context = Context::new(global, Cancel::new());
    let of_cluster = verb.of_cluster();
    match dispatch(&context, verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fail) => {
            eprint!("{}", fail.show(context.paint()));
            if of_cluster && fail.wants_evidence(context.has_state()) {
                let command = format!("{} {}", context.called(), wording::BUNDLE);
                let label = context.paint().tone(Tone::Hint, &format!("{}:", wording::label::ALL));
                eprintln!("{label} {command}  ({})", wording::BUNDLE_IS);
            }
            ExitCode::from(fail.code)
        }
    }
}

fn dispatch(context: &Context, verb: Verb) -> Result<(), Fail> {
    match verb {
        Verb::Init(args) => files::init(context, &args),
        Verb::Validate => files::validate(context),
        Verb::Schema => files::schema(),
        Verb::Render(args) => files::render(context, &args),
        Verb::Plan(args) => plan::plan(context, &args),
        Verb::Up(args) => up::up(context, &args),
        Verb::Upgrade(args) => upgrade::upgrade(context, &args),
        Verb::Retry => retry::retry(context),
        Verb::Status(args) => status::status(context, &args),
        Verb::Verify(args) => verify::verify(context, &args),
        Verb::Ssh(args) => ssh::ssh(context, &args),
        Verb::Exec(args) => exec::exec(context, &args),
        Verb::Logs(args) => logs::logs(context, &args),
        Verb::Kubeconfig(args) => kubeconfig::kubeconfig(context, &args),
        Verb::Kubectl(args) => kubectl::kubectl(context, &args.args),
        Verb::Stop(args) => power::run(context, "stop", &args.nodes),
        Verb::Start(args) => power::run(context, "start", &args.nodes),
        Verb::Snapshot(verb) => snapshot::run(context, verb),
        Verb::Backup { archive } => backup::save(context, archive.as_deref()),
        Verb::Restore { archive } => backup::restore(context, &archive),
        Verb::Killall(args) => power::run(context, "killall", &args.nodes),
        Verb::Uninstall(args) => power::run(context, "uninstall", &args.nodes),
        Verb::Replace { nodes } => replace::replace(context, &nodes),
        Verb::Destroy(args) => destroy::destroy(context, &args.nodes),
        Verb::Artifacts(verb) => artifacts::run(context, verb),
        Verb::Box(verb) => boxes::run(context, verb),
        Verb::Doctor(args) => doctor::doctor(context, args.fix),
        Verb::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "p1", &mut std::io::stdout());
            Ok(())
        }
        Verb::Man { dir } => files::man(dir.as_deref()),
    }
}

/// Prints data; a reader that goes away is none of our business.
fn print(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
