//! The command line read, and what is said of one that cannot be.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::FromArgMatches;
use clap::builder::Resettable;
use clap::error::{ContextKind, ErrorKind};
use clap::parser::ValueSource;

use super::args::Cli;
use super::context::variable;
use super::error::{self, CliError, code};
use super::{above, help, out};
use crate::os::process::{quote, quote_os};
use crate::spec;
use crate::ui::Paint;

/// Reads the arguments; beside them the name of the verb, as in `snapshot save`. What is no command line, or asks for help, ends p1.
pub fn parse(args: &[OsString]) -> Result<(Cli, String), ExitCode> {
    let mut command = help::command();
    if std::env::var_os("P1_FILE").is_some_and(|v| v.is_empty()) {
        // As everywhere: a variable that is empty is one that is not set.
        command = command.mut_arg("file", |arg| arg.env(Resettable::<clap::builder::OsStr>::Reset));
    }
    let read = command.try_get_matches_from_mut(args).and_then(|matches| {
        let verbs = std::iter::successors(matches.subcommand(), |(_, inner)| inner.subcommand());
        let verbs: Vec<_> = verbs.collect();
        let name = verbs.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ");
        let source = verbs.last().map_or(&matches, |(_, inner)| inner).value_source("file");
        let mut cli = Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut command))?;
        cli.global.named = source != Some(ValueSource::DefaultValue);
        Ok((cli, name))
    });
    read.map_err(|error| end(error, args))
}

fn end(mut error: clap::Error, args: &[OsString]) -> ExitCode {
    use std::io::IsTerminal;
    let colors = |terminal: bool| terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let words: Vec<String> = args.iter().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    let other = other_word(&error, &words);
    if other.is_some() {
        // What is alike by its letters is not what was meant.
        error.remove(ContextKind::SuggestedSubcommand);
    }
    let shown = |color: bool| {
        let text = match color {
            true => error.render().ansi().to_string(),
            false => error.render().to_string(),
        };
        // Where a suggestion was taken out.
        text.replace("\n\n\n", "\n\n")
    };
    let paint = Paint { color: colors(std::io::stderr().is_terminal()), unicode: false };
    if !error.use_stderr() {
        out::print(shown(colors(std::io::stdout().is_terminal())));
        return super::finish(Ok(()), "p1", paint);
    }
    eprint!("{}", shown(paint.color));
    let hint = meant(&words).map(|line| format!("The command to run goes after `--`: {line}"));
    let hint = hint.or_else(|| other.map(str::to_owned));
    if let Some(hint) = &hint {
        eprintln!("\n{} {hint}", paint.tone(crate::ui::Tone::Hint, "hint:"));
    }
    let text = error.render().to_string();
    let cause = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "no verb was given",
        _ => text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: "),
    };
    let cause = cause.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let hint = hint.or_else(|| {
        let context = |kind| error.get(kind).map(ToString::to_string);
        let instead = context(ContextKind::SuggestedSubcommand).or(context(ContextKind::SuggestedArg));
        Some(instead.map_or("`p1 --help` lists the verbs.".to_owned(), |i| format!("There is `{i}`.")))
    });
    let result = Err(CliError { hint, ..CliError::told(code::USAGE, cause) });
    if wants_json(args) {
        out::object(&error::end("", "p1", &result));
    }
    super::finish(result, "p1", paint)
}

/// What is said of a verb that only another tool has.
fn other_word(error: &clap::Error, args: &[String]) -> Option<&'static str> {
    let wrong = error.get(ContextKind::InvalidSubcommand)?.to_string();
    let mut path: Vec<&str> = Vec::new();
    for at in words(args) {
        path.push(&args[at]);
        if args[at] == wrong {
            break;
        }
    }
    help::instead(&path.join(" "))
}

/// Whether JSON is asked for, on a command line that cannot be read.
fn wants_json(args: &[OsString]) -> bool {
    let words: Vec<_> = args.iter().map(|a| a.to_string_lossy()).take_while(|a| a != "--").collect();
    let short = |word: &str| word.starts_with('-') && !word.starts_with("--");
    words.iter().any(|w| w == "--output=json" || short(w) && w.ends_with("ojson"))
        || words
            .windows(2)
            .any(|w| w[1] == "json" && (w[0] == "--output" || short(&w[0]) && w[0].ends_with('o')))
}

/// Options with a value, of every verb and of those that run something.
const VALUED: [&str; 10] =
    ["-C", "-f", "--file", "-o", "--output", "-j", "--jobs", "--wait", "--timeout", "--replace"];

/// The same command line, waiting for whoever works on the cluster.
pub fn waiting(args: &[OsString]) -> String {
    let own = |i: usize| {
        let word = args[i].to_string_lossy();
        word == "--wait" || word.starts_with("--wait=") || i > 1 && args[i - 1] == "--wait"
    };
    let rest = (1..args.len()).filter(|i| !own(*i)).map(|i| quote_os(&args[i]));
    ["p1".to_owned(), "--wait".to_owned(), "5m".to_owned()]
        .into_iter()
        .chain(rest)
        .collect::<Vec<_>>()
        .join(" ")
}

/// The words from the first on that are neither options nor their values.
fn words(args: &[String]) -> impl Iterator<Item = usize> {
    let valued = |i: usize| VALUED.contains(&args[i].as_str());
    (0..args.len()).filter(move |i| !args[*i].starts_with('-') && (*i == 0 || !valued(*i - 1)))
}

/// The spec that a command line names, or that is found where it works.
pub fn spec_of(args: &[String]) -> Option<PathBuf> {
    let file = args.windows(2).find(|w| w[0] == "-f" || w[0] == "--file").map(|w| w[1].clone());
    let file = file.or_else(|| std::env::var("P1_FILE").ok().filter(|f| !f.is_empty()));
    let folders = args.windows(2).filter(|w| w[0] == "-C").map(|w| w[1].as_str());
    let folder = std::path::absolute(folders.collect::<PathBuf>().join(".")).ok()?;
    let above = || above::find(&folder).unwrap_or_else(|| folder.join(above::SPEC));
    Some(file.map_or_else(above, |file| folder.join(file)))
}

/// `p1 ssh NODE uptime`, `p1 exec NODE uptime` and `p1 kubectl -o wide get pods` as they have to be written.
fn meant(args: &[String]) -> Option<String> {
    let verb = words(args).next()?;
    if args.iter().any(|a| a == "--") {
        return None;
    }
    let behind = &args[verb + 1..];
    let from = match args[verb].as_str() {
        "kubectl" => 0,
        "ssh" => words(behind).next()? + 1,
        "exec" => {
            let cluster = spec::load(&spec_of(args)?, &variable).ok()?.cluster;
            words(behind).find(|i| cluster.select(&behind[*i]).is_none())?
        }
        _ => return None,
    };
    let command = behind.get(from..).filter(|c| !c.is_empty())?;
    let line = |words: &[String]| words.iter().map(|w| quote(w)).collect::<Vec<_>>();
    let mut all = vec!["p1".to_owned()];
    all.extend(line(&args[..=verb]));
    all.extend(line(&behind[..from]));
    all.push("--".to_owned());
    all.extend(line(command));
    Some(all.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::path::Path;

    #[test]
    fn what_was_meant_is_said_as_it_has_to_be_written() {
        let meant = |line: &str| meant(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(meant("ssh worker uptime"), Some("p1 ssh worker -- uptime".into()));
        assert_eq!(meant("-f a.yaml ssh worker ls -la"), Some("p1 -f a.yaml ssh worker -- ls -la".into()));
        assert_eq!(meant("ssh -y worker a;b"), Some("p1 ssh -y worker -- 'a;b'".into()));
        assert_eq!(meant("kubectl -o wide get pods"), Some("p1 kubectl -- -o wide get pods".into()));
        for line in ["ssh", "ssh worker", "ssh worker -- a --b", "status worker --x"] {
            assert_eq!(meant(line), None, "{line}");
        }
    }

    /// What messages advise can be pasted: it is a command line of this p1, without a word to be filled in.
    #[test]
    fn every_command_that_messages_advise_is_one() {
        let (mut dirs, mut told) = (vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")], 0);
        while let Some(dir) = dirs.pop() {
            for path in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                if path.is_dir() {
                    dirs.push(path);
                    continue;
                }
                // The help, whose words stand for others, has no backquotes around them either.
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
                let code =
                    text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
                let (code, mut lines) = (code.replace('\\', ""), Vec::new());
                for after in code.split("`p1 ").skip(1).filter(|_| !name.contains("test")) {
                    let command = after.split('`').next().unwrap_or_default();
                    lines.push(command.split_whitespace().collect::<Vec<_>>().join(" "));
                }
                for line in
                    lines.into_iter().filter(|l| l.starts_with(|c: char| c.is_ascii_lowercase() || c == '-'))
                {
                    let mut parts = line.split('{');
                    let mut filled = parts.next().unwrap_or_default().to_owned();
                    parts.for_each(|p| {
                        filled += &format!(" x{}", p.split_once('}').map_or(p, |(_, rest)| rest))
                    });
                    let words = shlex::split(&filled).unwrap_or_else(|| panic!("{name}: {line}"));
                    let to_fill = |w: &String| w.len() > 2 && w.chars().all(|c| c.is_ascii_uppercase());
                    assert!(!words.iter().any(to_fill), "{name}: `p1 {line}` has a word to be filled in");
                    let read =
                        Cli::command().try_get_matches_from(["p1".to_owned()].into_iter().chain(words));
                    let shown = [ErrorKind::DisplayHelp, ErrorKind::DisplayVersion];
                    let read = read.err().filter(|e| !shown.contains(&e.kind()));
                    assert!(read.is_none(), "{name}: `p1 {line}` is no command: {}", read.unwrap());
                    told += 1;
                }
            }
        }
        assert!(told > 100, "{told}");
    }

    #[test]
    fn a_command_line_that_waits_says_so_once() {
        let waiting = |line: &str| waiting(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(waiting("p1 -f a.yaml up x"), "p1 --wait 5m -f a.yaml up x");
        assert_eq!(waiting("p1 --wait 1s up"), "p1 --wait 5m up");
        assert_eq!(waiting("p1 up --wait=1s"), "p1 --wait 5m up");
    }

    #[test]
    fn a_wish_for_json_is_seen_on_any_command_line() {
        let json = |line: &str| wants_json(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for line in ["p1 -o json x", "p1 x -ojson", "p1 --output=json", "p1 --output json", "p1 -yo json"] {
            assert!(json(line), "{line}");
        }
        for line in ["p1 -o plain json", "p1 ssh a -- -o json", "p1 json"] {
            assert!(!json(line), "{line}");
        }
    }
}
