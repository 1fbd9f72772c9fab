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

mod above;
mod args;
mod artifacts;
mod backup;
mod bake;
mod boxes;
mod bundle;
mod change;
mod changes;
mod closing;
mod complete;
mod context;
mod cp;
mod destroy;
mod doctor;
mod error;
mod exec;
mod fault;
mod files;
mod fork;
mod forward;
mod from;
mod front;
mod help;
mod here;
mod history;
mod image;
mod kept;
mod kubeconfig;
mod kubectl;
mod list;
mod logs;
mod out;
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
mod usage;
mod verb;
mod verify;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::os::Cancel;
use crate::ui::{Format, Paint, Tone, wording};
use args::Cli;
use context::Context;
use error::CliError;
use out::print;

/// Runs p1 with the arguments of this process.
pub fn main() -> ExitCode {
    complete::answer();
    let args: Vec<OsString> = std::env::args_os().collect();
    let (Cli { global, verb }, name) = match usage::parse(&args) {
        Ok(read) => read,
        Err(end) => return end,
    };
    let of_cluster = verb.of_cluster();
    let waiting = usage::waiting(&args);
    let there = enter(&global.folder);
    let mut global = global;
    if !global.named
        && !matches!(verb, verb::Verb::Init(_))
        && let Some(file) = std::env::current_dir().ok().and_then(|here| above::find(&here))
    {
        (global.file, global.found) = (file, true);
    }
    let context = Context::new(global, Cancel::new());
    let result = there.and_then(|()| verb.run(&context)).map_err(|fail| match fail.code {
        // Nobody waits for a cluster that another folder has.
        error::code::LOCKED if fail.next.is_empty() => fail.next([waiting]),
        _ => fail.map_texts(&|text| context.shown(&text)),
    });
    if let Err(fail) = &result {
        eprint!("{}", fail.show(context.paint(), &context.called()));
        if of_cluster && fail.wants_evidence(context.has_state()) {
            let command = format!("{} {}", context.called(), wording::BUNDLE);
            let label = context.paint().tone(Tone::Hint, &format!("{}:", wording::label::ALL));
            eprintln!("{label} {command}  ({})", wording::BUNDLE_IS);
        }
    }
    if context.ui.format == Format::Json {
        out::object(&error::end(&name, &context.called(), &result));
    }
    finish(result, &context.called(), context.paint())
}

/// Goes to where p1 is to work, one folder after the other.
fn enter(folders: &[PathBuf]) -> Result<(), CliError> {
    for folder in folders {
        std::env::set_current_dir(folder).map_err(|error| {
            let what = format!("cannot go to the folder {}: {error}", folder.display());
            CliError::new(error::code::USAGE, what, "`-C` names the folder in which p1 is to work.")
        })?;
    }
    Ok(())
}

/// The exit code. Output that could not be written is no success, whatever the verb did.
fn finish(result: Result<(), CliError>, p1: &str, paint: Paint) -> ExitCode {
    let code = result.map_or_else(|fail| fail.code, |()| 0);
    match out::lost() {
        Some(lost) => {
            eprint!("{}", lost.show(paint, p1));
            // What a verb found is not known to whoever could not read it; its failure is.
            ExitCode::from(if matches!(code, 0 | error::code::CHANGES) { lost.code } else { code })
        }
        None => ExitCode::from(code),
    }
}
