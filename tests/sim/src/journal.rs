//! The journal: a file per unit under `/var/log/journal`, a line `SECONDS.MICROS WHO TEXT` each, and
//! `journalctl` to read it.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::unit::full;

const DIR: &str = "/var/log/journal";

fn file(unit: &str) -> PathBuf {
    PathBuf::from(DIR).join(unit)
}

/// Appends a line; one write, so that lines of several writers never mix.
pub fn write(unit: &str, who: &str, text: &str) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let line = format!("{}.{:06} {who} {text}\n", now.as_secs(), now.subsec_micros());
    let _ = fs::create_dir_all(DIR);
    let file = OpenOptions::new().append(true).create(true).open(file(unit));
    // A full disk loses lines here as there.
    let _ = file.and_then(|mut f| f.write_all(line.as_bytes()));
}

struct Line {
    at: f64,
    who: String,
    text: String,
}

fn parse(line: &str) -> Option<Line> {
    let mut parts = line.splitn(3, ' ');
    let (at, who, text) = (parts.next()?.parse().ok()?, parts.next()?, parts.next().unwrap_or_default());
    Some(Line { at, who: who.to_owned(), text: text.trim_end_matches('\n').to_owned() })
}

/// `journalctl`, as far as it is used on nodes. Unknown options are passed over.
pub fn main(args: &[String]) -> ExitCode {
    let mut units: Vec<String> = Vec::new();
    let (mut count, mut since, mut cat, mut follow) = (usize::MAX, 0.0, false, false);
    let mut words = args.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let (key, mut value) = match word.split_once('=') {
            Some((key, value)) if word.starts_with("--") => (key, Some(value)),
            _ if word.len() > 2 && word.starts_with('-') && !word.starts_with("--") => {
                (&word[..2], Some(&word[2..]))
            }
            _ => (word, None),
        };
        let takes =
            ["-u", "--unit", "-n", "--lines", "-o", "--output", "-S", "--since", "-U", "--until", "-p", "-t"];
        if takes.contains(&key) && value.is_none() {
            value = words.next();
        }
        let value = value.unwrap_or_default();
        match key {
            "--sync" | "--flush" | "--rotate" => return ExitCode::SUCCESS,
            "-u" | "--unit" => units.push(full(value)),
            "-n" | "--lines" => count = value.parse().unwrap_or(usize::MAX),
            "-o" | "--output" => cat = value == "cat",
            "-S" | "--since" => since = value.trim_start_matches('@').parse().unwrap_or(0.0),
            "-f" | "--follow" => follow = true,
            _ => {}
        }
    }
    if follow && count == usize::MAX {
        count = 10;
    }
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
    lines.retain(|l| l.at >= since);
    lines.sort_by(|a, b| a.at.total_cmp(&b.at));
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let mut out = std::io::stdout().lock();
    let mut print = |line: &Line| {
        let at = format!("{:.6}", line.at);
        let said = match cat {
            true => writeln!(out, "{}", line.text),
            false => writeln!(out, "{at} {} {}: {}", host.trim(), line.who, line.text),
        };
        said.and_then(|()| out.flush()).is_ok()
    };
    if lines.is_empty() && !follow && !cat {
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
        for line in readers.iter_mut().flat_map(read) {
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
