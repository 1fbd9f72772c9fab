//! The journal: a file per unit under `/var/log/journal`, a line `SECONDS.MICROS INVOCATION WHO TEXT` each,
//! and `journalctl` to read it. The invocation is that of the unit's start in which the line was said, `-`
//! where there is none.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::init::SOCKET;
use crate::unit::full;

const DIR: &str = "/var/log/journal";
/// systemd, as it signs its own lines.
const MANAGER: &str = "systemd[1]";

/// The present invocation of each unit, for what systemd itself says of it.
static INVOCATIONS: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

fn file(unit: &str) -> PathBuf {
    PathBuf::from(DIR).join(unit)
}

/// A unit begins anew: what systemd says of it belongs to this invocation from now on.
pub fn begins(unit: &str, invocation: &str) {
    let mut all = INVOCATIONS.lock().unwrap_or_else(PoisonError::into_inner);
    all.insert(unit.to_owned(), invocation.to_owned());
}

/// What systemd says of a unit.
pub fn says(unit: &str, text: &str) {
    let all = INVOCATIONS.lock().unwrap_or_else(PoisonError::into_inner);
    let invocation = all.get(unit).cloned();
    drop(all);
    write(unit, invocation.as_deref().unwrap_or_default(), MANAGER, text);
}

/// Appends a line; one write, so that lines of several writers never mix.
pub fn write(unit: &str, invocation: &str, who: &str, text: &str) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let invocation = if invocation.is_empty() { "-" } else { invocation };
    let line = format!("{}.{:06} {invocation} {who} {text}\n", now.as_secs(), now.subsec_micros());
    let _ = fs::create_dir_all(DIR);
    let file = OpenOptions::new().append(true).create(true).open(file(unit));
    // A full disk loses lines here as there.
    let _ = file.and_then(|mut f| f.write_all(line.as_bytes()));
}

struct Line {
    at: f64,
    invocation: String,
    who: String,
    text: String,
}

fn parse(line: &str) -> Option<Line> {
    let mut parts = line.splitn(4, ' ');
    let (at, invocation, who) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
    let text = parts.next().unwrap_or_default().trim_end_matches('\n').to_owned();
    Some(Line { at, invocation: invocation.trim_matches('-').to_owned(), who: who.to_owned(), text })
}

impl Line {
    /// The fields by which it can be asked for (systemd.journal-fields(7)).
    fn fields(&self) -> Map<String, Value> {
        let manager = self.who == MANAGER;
        let invocation = if manager { "INVOCATION_ID" } else { "_SYSTEMD_INVOCATION_ID" };
        let pid = self.who.split(['[', ']']).nth(1).unwrap_or_default();
        let mut all = Map::new();
        all.insert("MESSAGE".into(), json!(self.text));
        all.insert("SYSLOG_IDENTIFIER".into(), json!(self.who.split('[').next()));
        all.insert("_PID".into(), json!(pid));
        if !self.invocation.is_empty() {
            all.insert(invocation.into(), json!(self.invocation));
        }
        all
    }

    /// One line of `-o json`: what always is in it, and the fields that were asked for.
    fn json(&self, only: Option<&Vec<String>>) -> Value {
        let mut all = self.fields();
        all.retain(|key, _| only.is_none_or(|only| only.contains(key)));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let micros = (self.at * 1e6) as u64;
        all.insert("__REALTIME_TIMESTAMP".into(), json!(micros.to_string()));
        Value::Object(all)
    }
}

/// Options without a value that change nothing here.
const IGNORED: [&str; 8] = ["--no-pager", "-a", "--all", "-q", "--quiet", "--no-hostname", "-l", "--full"];
const VALUED: [&str; 13] = [
    "-u",
    "--unit",
    "-n",
    "--lines",
    "-o",
    "--output",
    "-S",
    "--since",
    "-U",
    "--until",
    "-p",
    "--priority",
    "--output-fields",
];

/// `journalctl`, as far as it is used on nodes. An option that it does not know is an error: a question that
/// is passed over would seem to be answered.
pub fn main(args: &[String]) -> ExitCode {
    let refuse = |text: String| {
        eprintln!("{text}");
        ExitCode::FAILURE
    };
    let mut units: Vec<String> = Vec::new();
    let (mut count, mut since, mut until, mut follow) = (usize::MAX, 0.0, f64::MAX, false);
    let (mut form, mut quiet, mut fields) = ("short".to_owned(), false, None);
    // Any of these, of which each is all of its own.
    let mut wanted: Vec<Vec<(String, String)>> = vec![Vec::new()];
    let mut words = args.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let (key, mut value) = match word.split_once('=') {
            Some((key, value)) if word.starts_with("--") => (key, Some(value)),
            _ if word.len() > 2 && word.starts_with('-') && !word.starts_with("--") => {
                (&word[..2], Some(&word[2..]))
            }
            _ => (word, None),
        };
        if VALUED.contains(&key) && value.is_none() {
            value = words.next();
            if value.is_none() {
                return refuse(format!("journalctl: option '{key}' requires an argument"));
            }
        }
        let value = value.unwrap_or_default();
        match key {
            "--sync" | "--flush" | "--rotate" => return ExitCode::SUCCESS,
            "-u" | "--unit" => units.push(full(value)),
            "-n" | "--lines" => match value.parse() {
                Ok(n) => count = n,
                Err(_) => return refuse(format!("Failed to parse lines '{value}'")),
            },
            "-o" | "--output" => match value {
                "cat" | "json" | "short" | "short-iso" => value.clone_into(&mut form),
                _ => return refuse(format!("Unknown output format '{value}'.")),
            },
            "--output-fields" => fields = Some(value.split(',').map(str::to_owned).collect::<Vec<_>>()),
            "-S" | "--since" | "-U" | "--until" => {
                let Some(at) = value.strip_prefix('@').and_then(|v| v.parse().ok()) else {
                    return refuse(format!("Failed to parse timestamp: {value}"));
                };
                if key.to_lowercase().starts_with("-s") || key == "--since" {
                    since = at;
                } else {
                    until = at;
                }
            }
            // No line here has a priority.
            "-p" | "--priority" => {}
            "-b" | "--boot" if value.is_empty() => {
                let boot = fs::metadata(SOCKET).and_then(|m| m.modified()).ok();
                let boot = boot.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
                since = boot.map_or(since, |at| at.as_secs_f64().max(since));
            }
            "-f" | "--follow" => follow = true,
            key if IGNORED.contains(&key) => quiet |= key == "-q" || key == "--quiet",
            "+" => wanted.push(Vec::new()),
            key if key.starts_with('-') => {
                return refuse(match key.strip_prefix("--") {
                    Some(_) => format!("journalctl: unrecognized option '{key}'"),
                    None => format!("journalctl: invalid option -- '{}'", key.trim_start_matches('-')),
                });
            }
            word => match word.split_once('=') {
                Some((field, value)) if !field.is_empty() => {
                    wanted.last_mut().expect("never empty").push((field.to_owned(), value.to_owned()));
                }
                _ => return refuse(format!("Failed to add match '{word}': Invalid argument")),
            },
        }
    }
    if follow && count == usize::MAX {
        count = 10;
    }
    let matches = |line: &Line| {
        let has = line.fields();
        wanted.iter().any(|all| all.iter().all(|(key, value)| has.get(key) == Some(&json!(value))))
    };
    let files = if units.is_empty() {
        let entries = fs::read_dir(DIR).into_iter().flatten().flatten();
        entries.map(|e| e.path()).collect()
    } else {
        units.iter().map(|u| file(u)).collect::<Vec<_>>()
    };
    let mut readers = Vec::new();
    let mut lines: Vec<Line> = Vec::new();
    for path in &files {
        let Ok(file) = File::open(path) else { continue };
        let mut reader = BufReader::new(file);
        lines.extend(read(&mut reader));
        readers.push(reader);
    }
    lines.retain(|l| l.at >= since && l.at <= until && matches(l));
    lines.sort_by(|a, b| a.at.total_cmp(&b.at));
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let mut out = std::io::stdout().lock();
    let mut print = |line: &Line| {
        let said = match form.as_str() {
            "cat" => writeln!(out, "{}", line.text),
            "json" => writeln!(out, "{}", line.json(fields.as_ref())),
            _ => writeln!(out, "{:.6} {} {}: {}", line.at, host.trim(), line.who, line.text),
        };
        said.and_then(|()| out.flush()).is_ok()
    };
    if lines.is_empty() && !follow && !quiet {
        println!("-- No entries --");
        return ExitCode::SUCCESS;
    }
    for line in &lines[lines.len().saturating_sub(count)..] {
        if !print(line) {
            return ExitCode::SUCCESS;
        }
    }
    if !follow {
        return ExitCode::SUCCESS;
    }
    loop {
        thread::sleep(Duration::from_millis(100));
        if readers.is_empty() {
            readers.extend(files.iter().filter_map(|p| File::open(p).ok()).map(BufReader::new));
        }
        for line in readers.iter_mut().flat_map(read).filter(|l| matches(l)) {
            if !print(&line) {
                return ExitCode::SUCCESS;
            }
        }
    }
}

/// The whole lines that are there; half a line waits for its end.
fn read(reader: &mut BufReader<File>) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut text = Vec::new();
    while reader.read_until(b'\n', &mut text).is_ok_and(|n| n > 0) {
        if text.last() != Some(&b'\n') {
            let back = i64::try_from(text.len()).unwrap_or(0);
            let _ = reader.seek(SeekFrom::Current(-back));
            break;
        }
        lines.extend(parse(&String::from_utf8_lossy(&text)));
        text.clear();
    }
    lines
}
