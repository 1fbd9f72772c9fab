//! What users of a machine run: `systemctl` and `systemd-run` ask init; `sudo` needs nobody.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use serde_json::{Value, json};

use crate::init::SOCKET;

/// Sends a request to init and plays its answer.
fn ask(request: &Value) -> ExitCode {
    let Ok(mut stream) = UnixStream::connect(SOCKET) else {
        eprintln!("System has not been booted with systemd as init system (PID 1). Can't operate.");
        return ExitCode::FAILURE;
    };
    let mut answer = String::new();
    let asked = writeln!(stream, "{request}").and_then(|()| BufReader::new(stream).read_line(&mut answer));
    let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
    if asked.is_err() || answer.is_null() {
        eprintln!("Failed to get a reply: Connection reset by peer");
        return ExitCode::FAILURE;
    }
    let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
    // Whoever closed its end does not want it.
    let _ = std::io::stdout().write_all(text("out").as_bytes());
    let _ = std::io::stderr().write_all(text("err").as_bytes());
    ExitCode::from(answer["code"].as_u64().and_then(|c| u8::try_from(c).ok()).unwrap_or(1))
}

pub fn systemctl(args: &[String]) -> ExitCode {
    ask(&json!({"systemctl": args}))
}

/// `systemd-run [--quiet] [--collect] [--unit=NAME] [--setenv=K=V] [-p K=V] COMMAND...`
pub fn systemd_run(args: &[String]) -> ExitCode {
    let (mut unit, mut properties) = (String::new(), Vec::new());
    let mut rest = args.iter();
    let mut command = Vec::new();
    while let Some(word) = rest.next() {
        let (key, value) = match word.split_once('=') {
            Some((key, value)) if word.starts_with("--") => (key, Some(value.to_owned())),
            _ => (word.as_str(), None),
        };
        let mut value = || value.clone().or_else(|| rest.next().cloned()).unwrap_or_default();
        match key {
            "--unit" | "-u" => unit = value(),
            "--setenv" | "-E" => properties.push(format!("Environment='{}'", value())),
            "--property" | "-p" => properties.push(value()),
            "--description" => drop(value()),
            "--" => command.extend(rest.by_ref().cloned()),
            "--quiet" | "-q" | "--collect" | "-G" | "--no-block" => {}
            flag if flag.starts_with('-') => {
                eprintln!("systemd-run: unrecognized option '{flag}'");
                return ExitCode::FAILURE;
            }
            _ => {
                command.push(word.clone());
                command.extend(rest.by_ref().cloned());
            }
        }
    }
    ask(&json!({"run": unit, "properties": properties, "command": command}))
}

/// A line of standard input, byte by byte: what follows is for the command.
fn line() -> Option<String> {
    let (mut bytes, mut one) = (Vec::new(), [0]);
    loop {
        match nix::unistd::read(std::io::stdin(), &mut one) {
            Ok(1) if one[0] == b'\n' => return String::from_utf8(bytes).ok(),
            Ok(1) => bytes.push(one[0]),
            _ => return None,
        }
    }
}

/// Whether the password is the one that is wanted: three times it is asked for.
fn knows(password: &str) -> bool {
    eprintln!("We trust you have received the usual lecture.");
    for tried in 0..3 {
        match line() {
            Some(said) if said == password => return true,
            Some(_) => eprintln!("Sorry, try again."),
            None if tried == 0 => {
                eprintln!("sudo: no password was provided");
                return false;
            }
            None => {
                eprintln!("sudo: no password was provided\nsudo: {tried} incorrect password attempt");
                return false;
            }
        }
    }
    eprintln!("sudo: 3 incorrect password attempts");
    false
}

/// Runs a command as root for everybody, unless `/etc/sim/no-sudo` says otherwise, or `/etc/sim/sudo-password` which
/// password it takes.
pub fn sudo(args: &[String]) -> ExitCode {
    if let Ok(password) = std::fs::read_to_string("/etc/sim/sudo-password") {
        let asks = args.iter().any(|a| a == "-S");
        if !asks {
            eprintln!("sudo: a password is required");
        }
        if !asks || !knows(password.trim_end()) {
            return ExitCode::FAILURE;
        }
    }
    if Path::new("/etc/sim/no-sudo").exists() {
        eprintln!("sudo: a password is required");
        return ExitCode::FAILURE;
    }
    let mut words = args.iter();
    let mut command: Vec<&String> = Vec::new();
    let (mut env, mut keep, mut user) = (Vec::new(), false, "root".to_owned());
    while let Some(word) = words.next() {
        match (word.as_str(), word.split_once('=')) {
            ("-E", _) => keep = true,
            ("-u", _) => user = words.next().cloned().unwrap_or_default(),
            ("-p", _) => _ = words.next(),
            ("--", _) => {}
            ("-n" | "-v" | "-H" | "-k" | "-S", _) => {}
            (flag, _) if flag.starts_with('-') => {
                eprintln!("sudo: unrecognized option '{flag}'");
                return ExitCode::FAILURE;
            }
            (_, Some(pair)) => env.push(pair),
            _ => {
                command.push(word);
                command.extend(words.by_ref());
            }
        }
    }
    let became = || -> nix::Result<()> {
        nix::unistd::setgroups(&[])?;
        let (gid, uid) = match nix::unistd::User::from_name(&user)? {
            Some(user) => (user.gid, user.uid),
            None => return Err(nix::Error::ENOENT),
        };
        nix::unistd::setresgid(gid, gid, gid)?;
        nix::unistd::setresuid(uid, uid, uid)
    };
    let before = nix::unistd::getuid();
    if let Err(e) = became() {
        eprintln!("sudo: {e}");
        return ExitCode::FAILURE;
    }
    let Some((program, rest)) = command.split_first() else {
        return if args.iter().any(|a| a == "-v") { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    };
    let mut command = Command::new(program);
    if !keep {
        let kept: Vec<_> = ["TERM", "LANG"].iter().filter_map(|k| Some((*k, std::env::var_os(k)?))).collect();
        command.env_clear().envs(kept);
    }
    command.args(rest).envs(env).env("SUDO_USER", before.to_string());
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("HOME", "/root").env("USER", &user).env("LOGNAME", &user);
    let error = command.exec();
    eprintln!("sudo: {program}: {error}");
    ExitCode::FAILURE
}
