//! A machine's pid 1: starts the units that are enabled, keeps them running as systemd would, and
//! answers `systemctl`. Orders come on standard input; its end is the machine's end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::journal;
use crate::unit::{self, Spec, full};

pub const SOCKET: &str = "/run/systemd/sim";
/// Exit codes that tell the lab how the machine ended.
pub const OFF: i32 = 0;
pub const REBOOT: i32 = 133;

const WANTS: &str = "/etc/systemd/system/multi-user.target.wants";
/// What a unit gets to end after TERM; systemd gives it 90 s, and a test has no such time.
const STOP: Duration = Duration::from_secs(10);

/// Options of `systemctl` that change nothing here.
const SWITCHES: [&str; 12] = [
    // Units are read when they are asked for.
    "--no-reload",
    // Of `poweroff`: a machine here has nothing to write down at its end.
    "--force",
    "--no-pager",
    "--no-legend",
    "--plain",
    "--failed",
    "--full",
    "-l",
    "--all",
    "-a",
    "--system",
    "--no-ask-password",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum UnitState {
    Inactive,
    Starting,
    Active,
    Stopping,
    Restarting,
    Failed,
}

impl UnitState {
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Inactive => ("inactive", "dead"),
            Self::Starting => ("activating", "start"),
            Self::Active => ("active", "running"),
            Self::Stopping => ("deactivating", "stop-sigterm"),
            Self::Restarting => ("activating", "auto-restart"),
            Self::Failed => ("failed", "failed"),
        }
    }

    fn up(self) -> bool {
        !matches!(self, Self::Inactive | Self::Failed)
    }
}

struct Unit {
    spec: Spec,
    state: UnitState,
    main: Option<Pid>,
    restarts: u32,
    /// Starts that failed, for whoever waits for one.
    failures: u32,
    invocation: String,
    result: &'static str,
    status: i32,
    since: u64,
    /// It was told to stop.
    unwanted: bool,
    /// It is forgotten when it ends.
    transient: bool,
}

#[derive(Default)]
struct Inner {
    units: BTreeMap<String, Unit>,
    /// Children that somebody waits for, and how they ended.
    awaited: BTreeSet<Pid>,
    ended: BTreeMap<Pid, WaitStatus>,
}

#[derive(Default)]
struct Init {
    inner: Mutex<Inner>,
    news: Condvar,
}

type Init_ = Arc<Init>;

/// Never returns.
pub fn main() -> ! {
    let init = Init_::default();
    let _ = fs::create_dir_all("/run/systemd/system");
    let _ = fs::remove_file(SOCKET);
    let listener = UnixListener::bind(SOCKET).expect("the socket of init");
    let _ = fs::set_permissions(SOCKET, fs::Permissions::from_mode(0o777));
    let serving = Arc::clone(&init);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let init = Arc::clone(&serving);
            thread::spawn(move || serve(&init, &stream));
        }
    });
    let ordered = Arc::clone(&init);
    thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            match line.as_str() {
                "poweroff" => ordered.power_off(OFF),
                "reboot" => ordered.power_off(REBOOT),
                _ => {}
            }
        }
        // The lab is gone, or pulled the plug.
        std::process::exit(137);
    });
    let enabled: Vec<String> = fs::read_dir(WANTS)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    for name in enabled {
        let init = Arc::clone(&init);
        thread::spawn(move || init.start(&name, false));
    }
    loop {
        init.reap();
    }
}

fn serve(init: &Init_, stream: &UnixStream) {
    let mut line = String::new();
    if BufReader::new(stream).read_line(&mut line).is_err() {
        return;
    }
    let request: Value = serde_json::from_str(&line).unwrap_or_default();
    let words = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|w| Some(w.as_str()?.to_owned())).collect()
    };
    let answer = match request.get("systemctl") {
        Some(args) => init.systemctl(&words(args)),
        None => init.run(
            request["run"].as_str().unwrap_or_default(),
            &words(&request["properties"]),
            &words(&request["command"]),
        ),
    };
    let answer = json!({"code": answer.code, "out": answer.out, "err": answer.err});
    let mut stream = stream;
    let _ = writeln!(stream, "{answer}");
}

#[derive(Default)]
struct Answer {
    code: u8,
    out: String,
    err: String,
}

impl Answer {
    fn fail(&mut self, code: u8, text: &str) {
        self.code = code;
        self.err += text;
        self.err.push('\n');
    }
}

impl Init {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wait<'a>(&self, inner: MutexGuard<'a, Inner>, patience: Duration) -> MutexGuard<'a, Inner> {
        self.news.wait_timeout(inner, patience).unwrap_or_else(|poisoned| poisoned.into_inner()).0
    }

    /// Takes in one child that ended. It is looked at first and collected under the lock that
    /// starts are made under, so that nobody is taken for another's child.
    fn reap(&self) {
        let Ok(status) = waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) else {
            thread::sleep(Duration::from_millis(5));
            return;
        };
        let Some(pid) = status.pid() else { return };
        let mut inner = self.lock();
        if waitpid(pid, Some(WaitPidFlag::WNOHANG)).is_ok() && inner.awaited.remove(&pid) {
            inner.ended.insert(pid, status);
            self.news.notify_all();
        }
    }

    /// Starts a program whose end is awaited by [`Init::end_of`].
    fn spawn(&self, unit: &str, argv: &[String], env: &BTreeMap<String, String>) -> Result<Pid, String> {
        let program = argv.first().ok_or("there is no command")?;
        let missing = |e: &dyn std::fmt::Display| format!("Failed to locate executable {program}: {e}");
        fs::metadata(program).map_err(|_| missing(&"No such file or directory"))?;
        let (reader, writer) = std::io::pipe().map_err(|e| e.to_string())?;
        let mut command = Command::new(program);
        command.args(&argv[1..]).env_clear().envs(env).process_group(0).current_dir("/");
        command.stdin(Stdio::null()).stdout(writer.try_clone().map_err(|e| e.to_string())?).stderr(writer);
        let mut inner = self.lock();
        let child = command.spawn().map_err(|e| format!("Failed at step EXEC spawning {program}: {e}"))?;
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid fits"));
        inner.awaited.insert(pid);
        drop((inner, command));
        let (unit, who) = (unit.to_owned(), program.rsplit('/').next().unwrap_or_default().to_owned());
        let invocation = env.get("INVOCATION_ID").cloned().unwrap_or_default();
        thread::spawn(move || {
            let mut reader = BufReader::new(reader);
            let mut bytes = Vec::new();
            while reader.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&bytes);
                journal::write(&unit, &invocation, &format!("{who}[{pid}]"), text.trim_end());
                bytes.clear();
            }
        });
        Ok(pid)
    }

    fn end_of(&self, pid: Pid, bound: Option<Duration>) -> Option<WaitStatus> {
        let begun = Instant::now();
        let mut inner = self.lock();
        loop {
            if let Some(status) = inner.ended.remove(&pid) {
                return Some(status);
            }
            if bound.is_some_and(|b| begun.elapsed() > b) {
                return None;
            }
            inner = self.wait(inner, Duration::from_millis(200));
        }
    }

    fn says(unit: &str, text: &str) {
        journal::says(unit, text);
    }

    // -----------------------------------------------------------------------------------------
    // Starting and stopping

    /// Starts a unit; waits until it is up or failed, unless told not to.
    fn start(self: &Arc<Self>, name: &str, block: bool) -> Result<(), (u8, String)> {
        if unit::masked(name) {
            return Err((1, format!("Failed to start {name}: Unit {name} is masked.")));
        }
        let loaded = Spec::load(name);
        let mut inner = self.lock();
        while inner.units.get(name).is_some_and(|u| u.state == UnitState::Stopping) {
            inner = self.wait(inner, Duration::from_millis(100));
        }
        let running = inner.units.get(name).is_some_and(|u| u.state.up());
        if !running {
            let spec = match loaded {
                Some(spec) => spec,
                None => return Err((5, format!("Failed to start {name}: Unit {name} not found."))),
            };
            self.launch(&mut inner, name, spec, false);
        }
        if !block {
            return Ok(());
        }
        let failures = inner.units[name].failures;
        loop {
            match inner.units.get(name) {
                None => return Ok(()),
                Some(u) if u.failures > failures || u.state == UnitState::Failed => {
                    return Err((
                        1,
                        format!(
                            "Job for {name} failed because the control process exited with error code.\n\
                             See \"systemctl status {name}\" and \"journalctl -xeu {name}\" for details."
                        ),
                    ));
                }
                Some(u) if !matches!(u.state, UnitState::Starting | UnitState::Restarting) => return Ok(()),
                Some(_) => inner = self.wait(inner, Duration::from_millis(200)),
            }
        }
    }

    fn launch(self: &Arc<Self>, inner: &mut Inner, name: &str, spec: Spec, transient: bool) {
        // It keeps the name of its last start until it has begun the next one.
        let invocation = inner.units.get(name).map_or_else(String::new, |u| u.invocation.clone());
        let unit = Unit {
            spec,
            state: UnitState::Starting,
            main: None,
            restarts: 0,
            failures: 0,
            invocation,
            result: "success",
            status: 0,
            since: 0,
            unwanted: false,
            transient,
        };
        inner.units.insert(name.to_owned(), unit);
        let (init, name) = (Arc::clone(self), name.to_owned());
        thread::spawn(move || init.supervise(&name));
    }

    /// A unit's life, from its start to its end, with all restarts in between.
    fn supervise(self: &Arc<Self>, name: &str) {
        let spec = self.lock().units[name].spec.clone();
        let title = spec.get("Description").unwrap_or(name).to_owned();
        loop {
            let ended = self.once(name, &spec, &title);
            let (how, result, status) = match &ended {
                Ok(WaitStatus::Exited(_, 0)) => (None, "success", 0),
                Ok(WaitStatus::Exited(_, code)) => {
                    (Some(format!("code=exited, status={code}/{}", failure(*code))), "exit-code", *code)
                }
                Ok(WaitStatus::Signaled(_, signal, _)) => {
                    let word = signal.as_str().trim_start_matches("SIG");
                    (Some(format!("code=killed, status={}/{word}", *signal as i32)), "signal", *signal as i32)
                }
                Ok(_) => (None, "success", 0),
                Err(why) => {
                    Self::says(name, &format!("{name}: {why}"));
                    (Some("code=exited, status=203/EXEC".to_owned()), "exit-code", 203)
                }
            };
            let mut inner = self.lock();
            let Some(unit) = inner.units.get_mut(name) else { return };
            let early = unit.state == UnitState::Starting;
            (unit.main, unit.result, unit.status) = (None, result, status);
            if unit.unwanted {
                unit.state = UnitState::Inactive;
                unit.result = "success";
                Self::says(name, &format!("Stopped {name} - {title}."));
                break self.over(inner, name);
            }
            if let Some(how) = &how {
                Self::says(name, &format!("{name}: Main process exited, {how}"));
                Self::says(name, &format!("{name}: Failed with result '{result}'."));
            } else {
                Self::says(name, &format!("{name}: Deactivated successfully."));
            }
            if early && how.is_some() {
                unit.failures += 1;
                Self::says(name, &format!("Failed to start {name} - {title}."));
            }
            let again = match spec.get("Restart") {
                Some("always") => true,
                Some("on-failure") => how.is_some(),
                _ => false,
            };
            if !again {
                unit.state = if how.is_some() { UnitState::Failed } else { UnitState::Inactive };
                break self.over(inner, name);
            }
            unit.state = UnitState::Restarting;
            self.news.notify_all();
            let begun = Instant::now();
            let pause = restart_pause(&spec);
            while begun.elapsed() < pause && inner.units.get(name).is_some_and(|u| !u.unwanted) {
                inner =
                    self.wait(inner, pause.saturating_sub(begun.elapsed()).min(Duration::from_millis(100)));
            }
            let Some(unit) = inner.units.get_mut(name) else { return };
            if unit.unwanted {
                unit.state = UnitState::Inactive;
                break self.over(inner, name);
            }
            unit.restarts += 1;
            unit.state = UnitState::Starting;
            Self::says(
                name,
                &format!("{name}: Scheduled restart job, restart counter is at {}.", unit.restarts),
            );
        }
    }

    fn over(&self, mut inner: MutexGuard<'_, Inner>, name: &str) {
        if inner.units.get(name).is_some_and(|u| u.transient) {
            inner.units.remove(name);
        }
        self.news.notify_all();
    }

    /// One run of the unit's main process, to its end.
    fn once(self: &Arc<Self>, name: &str, spec: &Spec, title: &str) -> Result<WaitStatus, String> {
        let invocation: String =
            fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default().trim().replace('-', "");
        if let Some(unit) = self.lock().units.get_mut(name) {
            unit.invocation.clone_from(&invocation);
        }
        journal::begins(name, &invocation);
        Self::says(name, &format!("Starting {name} - {title}..."));
        let mut env: BTreeMap<String, String> = [
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"),
            ("LANG", "C.UTF-8"),
            ("INVOCATION_ID", invocation.as_str()),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
        if spec.get("User").is_some() {
            let root = [("HOME", "/root"), ("USER", "root"), ("LOGNAME", "root"), ("SHELL", "/bin/sh")];
            env.extend(root.map(|(k, v)| (k.to_owned(), v.to_owned())));
        }
        env.extend(spec.environment()?);
        if let Some(dir) = spec.get("RuntimeDirectory") {
            let _ = fs::create_dir_all(Path::new("/run").join(dir));
        }
        for line in spec.all("ExecStartPre") {
            let ignored = line.starts_with('-');
            let argv = unit::command(line.trim_start_matches('-'), &env);
            let ended = self.spawn(name, &argv, &env).map(|pid| self.end_of(pid, None));
            if !ignored && !matches!(ended, Ok(Some(WaitStatus::Exited(_, 0)))) {
                return ended.map(|e| e.unwrap_or(WaitStatus::StillAlive));
            }
        }
        let _notify = (spec.kind() == "notify").then(|| self.listen(name, &mut env));
        let argv = unit::command(spec.get("ExecStart").unwrap_or_default(), &env);
        let pid = self.spawn(name, &argv, &env)?;
        {
            let mut inner = self.lock();
            if let Some(unit) = inner.units.get_mut(name) {
                unit.main = Some(pid);
                if unit.unwanted {
                    let _ = kill(pid, Signal::SIGTERM);
                } else if matches!(spec.kind(), "simple" | "exec") {
                    self.active(unit, name, title);
                }
            }
        }
        let status = self.end_of(pid, None).expect("without a bound");
        if spec.kind() == "oneshot" && matches!(status, WaitStatus::Exited(_, 0)) {
            let mut inner = self.lock();
            if let Some(unit) = inner.units.get_mut(name) {
                self.active(unit, name, title);
            }
            while spec.get("RemainAfterExit") == Some("yes")
                && inner.units.get(name).is_some_and(|u| !u.unwanted)
            {
                inner = self.wait(inner, Duration::from_secs(1));
            }
        }
        Ok(status)
    }

    fn active(&self, unit: &mut Unit, name: &str, title: &str) {
        unit.state = UnitState::Active;
        unit.since = std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs());
        Self::says(name, &format!("Started {name} - {title}."));
        self.news.notify_all();
    }

    /// Hears `READY=1` of a unit. The socket goes with the value that is answered.
    fn listen(self: &Arc<Self>, name: &str, env: &mut BTreeMap<String, String>) -> Notify {
        let path = format!("/run/systemd/notify.{name}");
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).expect("a socket below /run");
        env.insert("NOTIFY_SOCKET".into(), path.clone());
        let (init, name) = (Arc::clone(self), name.to_owned());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n) = socket.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
                if text.lines().any(|l| l == "SIM=over") {
                    return;
                }
                let mut inner = init.lock();
                if text.lines().any(|l| l == "READY=1")
                    && let Some(unit) = inner.units.get_mut(&name)
                    && unit.state == UnitState::Starting
                {
                    let title = unit.spec.get("Description").unwrap_or(&name).to_owned();
                    init.active(unit, &name, &title);
                }
            }
        });
        Notify(path)
    }

    fn stop(&self, name: &str) {
        let mut inner = self.lock();
        let Some(unit) = inner.units.get_mut(name).filter(|u| u.state.up()) else { return };
        unit.unwanted = true;
        if unit.state != UnitState::Restarting {
            unit.state = UnitState::Stopping;
        }
        let title = unit.spec.get("Description").unwrap_or(name).to_owned();
        Self::says(name, &format!("Stopping {name} - {title}..."));
        let alone = unit.spec.get("KillMode") == Some("process");
        let main = unit.main;
        let signal = |signal: Signal| match main {
            Some(pid) if alone => drop(kill(pid, signal)),
            Some(pid) => drop(killpg(pid, signal)),
            None => {}
        };
        signal(Signal::SIGTERM);
        self.news.notify_all();
        let (begun, bound) = (Instant::now(), unit.spec.time("TimeoutStopSec").unwrap_or(STOP));
        let mut killed = false;
        while inner.units.get(name).is_some_and(|u| u.state.up()) {
            if begun.elapsed() > bound && !killed {
                Self::says(name, &format!("{name}: State 'stop-sigterm' timed out. Killing."));
                signal(Signal::SIGKILL);
                killed = true;
            }
            inner = self.wait(inner, Duration::from_millis(50));
        }
    }

    /// Stops what runs, in no order, and ends the machine.
    fn power_off(&self, code: i32) {
        let units: Vec<String> = self.lock().units.keys().filter(|n| *n != "ssh.service").cloned().collect();
        thread::scope(|scope| {
            for name in &units {
                scope.spawn(|| self.stop(name));
            }
        });
        std::process::exit(code);
    }

    /// A transient unit, as `systemd-run` makes it.
    fn run(self: &Arc<Self>, name: &str, properties: &[String], command: &[String]) -> Answer {
        let mut answer = Answer::default();
        let name = match name {
            "" => format!("run-r{}.service", self.lock().units.len()),
            name => full(name),
        };
        let quoted = |w: &String| format!("\"{}\"", w.replace('\\', "\\\\").replace('"', "\\\""));
        let line: Vec<String> = command.iter().map(quoted).collect();
        let program = command.first().cloned().unwrap_or_default();
        let path = match program.contains('/') {
            true => program.clone(),
            false => ["/usr/local/bin", "/usr/bin", "/usr/sbin"]
                .iter()
                .map(|d| format!("{d}/{program}"))
                .find(|p| Path::new(p).exists())
                .unwrap_or_else(|| program.clone()),
        };
        let text = format!(
            "[Unit]\nDescription={}\n[Service]\n{}\nExecStart=\"{path}\" {}\n",
            command.join(" "),
            properties.join("\n"),
            line.get(1..).unwrap_or_default().join(" "),
        );
        let file = Path::new("/run/systemd/transient").join(&name);
        let mut inner = self.lock();
        if inner.units.get(&name).is_some_and(|u| u.state.up())
            || unit::path(&name).is_some_and(|p| p != file)
        {
            answer.fail(
                1,
                &format!(
                    "Failed to start transient service unit: Unit {name} was already loaded or has a fragment file."
                ),
            );
            return answer;
        }
        let written = fs::create_dir_all("/run/systemd/transient").and_then(|()| fs::write(&file, text));
        let spec = Spec::load(&name);
        let _ = fs::remove_file(&file);
        match (written, spec) {
            (Ok(()), Some(spec)) => {
                self.launch(&mut inner, &name, spec, true);
                // It answers when the unit was started.
                while inner.units.get(&name).is_some_and(|u| u.state == UnitState::Starting) {
                    inner = self.wait(inner, Duration::from_millis(100));
                }
            }
            (written, _) => {
                answer.fail(1, &format!("Failed to start transient service unit: {written:?}"));
            }
        }
        answer
    }

    // -----------------------------------------------------------------------------------------
    // systemctl

    fn systemctl(self: &Arc<Self>, args: &[String]) -> Answer {
        let mut answer = Answer::default();
        let (mut block, mut now, mut quiet, mut value) = (true, false, false, false);
        let mut properties: Vec<String> = Vec::new();
        let mut signal = "SIGTERM".to_owned();
        let mut words: Vec<String> = Vec::new();
        let mut rest = args.iter();
        while let Some(word) = rest.next() {
            match word.as_str() {
                "--no-block" => block = false,
                "--now" => now = true,
                "--quiet" | "-q" => quiet = true,
                "--value" => value = true,
                "-p" | "--property" => {
                    properties.extend(rest.next().iter().flat_map(|p| p.split(',')).map(str::to_owned));
                }
                "-s" | "--signal" => signal = rest.next().cloned().unwrap_or_default(),
                "-n" | "-o" | "-t" | "--type" | "--state" => drop(rest.next()),
                // There is no process of a unit here but the main one that it would be sent to.
                "--kill-who=main" => {}
                word if word.starts_with("--signal=") => signal = word["--signal=".len()..].to_owned(),
                flag if SWITCHES.contains(&flag) => {}
                word => match (word.strip_prefix("--property=").or_else(|| word.strip_prefix("-p")), word) {
                    (Some(list), _) => properties.extend(list.split(',').map(str::to_owned)),
                    (None, flag) if flag.starts_with('-') => {
                        // What is passed over would seem to be done.
                        answer.fail(1, &format!("systemctl: unrecognized option '{flag}'"));
                        return answer;
                    }
                    (None, word) => words.push(word.to_owned()),
                },
            }
        }
        let verb = if words.is_empty() { "list-units".to_owned() } else { words.remove(0) };
        // `enable` takes paths as well.
        let names: Vec<String> =
            words.iter().map(|w| full(w.rsplit('/').next().unwrap_or_default())).collect();
        match verb.as_str() {
            "daemon-reload" | "daemon-reexec" | "set-default" | "preset" => {}
            "poweroff" | "halt" | "reboot" => {
                let (init, code) = (Arc::clone(self), if verb == "reboot" { REBOOT } else { OFF });
                thread::spawn(move || init.power_off(code));
            }
            "is-system-running" => answer.out = "running\n".into(),
            "start" | "restart" | "stop" | "try-restart" | "reload-or-restart" => {
                for name in &names {
                    let known = unit::path(name).is_some() || self.lock().units.contains_key(name);
                    if verb != "start" && !known {
                        let text = format!("Failed to {verb} {name}: Unit {name} not loaded.");
                        answer.fail(5, &if verb == "stop" { text } else { text.replace("loaded", "found") });
                        continue;
                    }
                    if verb == "try-restart" && !self.lock().units.get(name).is_some_and(|u| u.state.up()) {
                        continue;
                    }
                    if block {
                        if let Err((code, text)) = self.act(&verb, name, true) {
                            answer.fail(code, &text);
                        }
                    } else {
                        // What is to begin counts as begun when the answer is here.
                        if verb != "stop" && !self.lock().units.get(name).is_some_and(|u| u.state.up()) {
                            if let Err((code, text)) = self.act("start", name, false) {
                                answer.fail(code, &text);
                            }
                            continue;
                        }
                        let (init, verb, name) = (Arc::clone(self), verb.clone(), name.clone());
                        thread::spawn(move || init.act(&verb, &name, false));
                    }
                }
            }
            "reload" | "kill" => {
                for name in &names {
                    let main = self.lock().units.get(name).and_then(|u| u.main);
                    let signal = if verb == "reload" { "SIGHUP" } else { &signal };
                    let signal = signal.parse().or_else(|_| format!("SIG{signal}").parse());
                    match (main, signal) {
                        (Some(pid), Ok::<Signal, _>(signal)) => drop(kill(pid, signal)),
                        _ => {
                            answer.fail(1, &format!("Failed to {verb} unit {name}: Unit {name} not loaded."))
                        }
                    }
                }
            }
            "enable" | "disable" | "mask" | "unmask" => {
                for name in &names {
                    if let Err((code, text)) = enable(&verb, name, &mut answer.err) {
                        answer.fail(code, &text);
                    } else if now {
                        let verb = if verb == "enable" { "start" } else { "stop" };
                        if let Err((code, text)) = self.act(verb, name, block) {
                            answer.fail(code, &text);
                        }
                    }
                }
            }
            "reset-failed" => {
                let mut inner = self.lock();
                for name in &names {
                    match inner.units.get_mut(name) {
                        Some(unit) => {
                            unit.restarts = 0;
                            if unit.state == UnitState::Failed {
                                unit.state = UnitState::Inactive;
                            }
                        }
                        None if unit::path(name).is_some() => {}
                        None => answer.fail(
                            1,
                            &format!("Failed to reset failed state of unit {name}: Unit {name} not loaded."),
                        ),
                    }
                }
            }
            "is-active" | "is-failed" => {
                for name in &names {
                    let state =
                        self.lock().units.get(name).map_or(UnitState::Inactive, |u| u.state).words().0;
                    answer.code = if (state == "active") == (verb == "is-active") { answer.code } else { 3 };
                    if !quiet {
                        answer.out += &format!("{state}\n");
                    }
                }
            }
            "is-enabled" => {
                for name in &names {
                    let state = enabled(name);
                    answer.code = u8::from(state != "enabled");
                    if !quiet {
                        answer.out += &format!("{}\n", if state.is_empty() { "not-found" } else { state });
                    }
                }
            }
            "cat" => {
                for name in &names {
                    match unit::path(name).and_then(|p| Some((fs::read_to_string(&p).ok()?, p))) {
                        Some((text, path)) => answer.out += &format!("# {}\n{text}", path.display()),
                        None => answer.fail(1, &format!("No files found for {name}.")),
                    }
                }
            }
            "show" => {
                let blocks: Vec<String> = names.iter().map(|n| self.show(n, &properties, value)).collect();
                answer.out = blocks.join("\n");
            }
            "status" => {
                for name in &names {
                    let text = self.show(name, &[], false);
                    let of = |key: &str| {
                        text.lines()
                            .find_map(|l| l.strip_prefix(key)?.strip_prefix('='))
                            .unwrap_or("")
                            .to_owned()
                    };
                    if of("LoadState") == "not-found" {
                        answer.fail(4, &format!("Unit {name} could not be found."));
                        continue;
                    }
                    answer.out += &format!(
                        "{name}\n     Loaded: {} ({}; {})\n     Active: {} ({})\n   Main PID: {}\n",
                        of("LoadState"),
                        of("FragmentPath"),
                        of("UnitFileState"),
                        of("ActiveState"),
                        of("SubState"),
                        of("MainPID"),
                    );
                    answer.code = if of("ActiveState") == "active" { 0 } else { 3 };
                }
            }
            "list-units" | "list-unit-files" => {
                for (name, unit) in &self.lock().units {
                    let (active, sub) = unit.state.words();
                    answer.out += &format!(
                        "{name} loaded {active} {sub} {}\n",
                        unit.spec.get("Description").unwrap_or("")
                    );
                }
            }
            other => answer.fail(1, &format!("Unknown command verb {other}.")),
        }
        answer
    }

    fn act(self: &Arc<Self>, verb: &str, name: &str, block: bool) -> Result<(), (u8, String)> {
        if verb != "start" {
            self.stop(name);
        }
        if verb == "stop" { Ok(()) } else { self.start(name, block) }
    }

    fn show(&self, name: &str, only: &[String], value: bool) -> String {
        let inner = self.lock();
        let unit = inner.units.get(name);
        let path = unit::path(name);
        let load = match &path {
            _ if unit::masked(name) => "masked",
            None if unit.is_none_or(|u| !u.transient) => "not-found",
            _ => "loaded",
        };
        let (active, sub) = unit.map_or(UnitState::Inactive, |u| u.state).words();
        let number = |n: Option<i64>| n.unwrap_or(0).to_string();
        let all = [
            ("Id", name.to_owned()),
            ("LoadState", load.to_owned()),
            ("ActiveState", active.to_owned()),
            ("SubState", sub.to_owned()),
            ("FragmentPath", path.map_or_else(String::new, |p| p.display().to_string())),
            ("UnitFileState", enabled(name).to_owned()),
            ("NeedDaemonReload", "no".to_owned()),
            ("NRestarts", number(unit.map(|u| u.restarts.into()))),
            ("InvocationID", unit.map_or_else(String::new, |u| u.invocation.clone())),
            ("MainPID", number(unit.and_then(|u| u.main).map(|p| p.as_raw().into()))),
            ("Result", unit.map_or("success", |u| u.result).to_owned()),
            ("ExecMainStatus", number(unit.map(|u| u.status.into()))),
            (
                "ActiveEnterTimestamp",
                unit.filter(|u| u.since > 0).map_or_else(String::new, |u| format!("@{}", u.since)),
            ),
        ];
        let mut text = String::new();
        for (key, is) in all.iter().filter(|(key, _)| only.is_empty() || only.iter().any(|o| o == key)) {
            text += &if value { format!("{is}\n") } else { format!("{key}={is}\n") };
        }
        text
    }
}

/// Ends the thread that hears a unit.
struct Notify(String);

impl Drop for Notify {
    fn drop(&mut self) {
        let _ = UnixDatagram::unbound().and_then(|s| s.send_to(b"SIM=over", &self.0));
        let _ = fs::remove_file(&self.0);
    }
}

/// systemd.exec(5), "Process Exit Codes".
fn failure(code: i32) -> &'static str {
    match code {
        1 => "FAILURE",
        2 => "INVALIDARGUMENT",
        203 => "EXEC",
        _ => "n/a",
    }
}

/// A test may not have the five seconds that k3s' unit says.
fn restart_pause(spec: &Spec) -> Duration {
    let tuned = fs::read_to_string("/etc/sim/restart-sec").ok().and_then(|t| t.trim().parse().ok());
    let own = spec.time("RestartSec").unwrap_or(Duration::from_millis(100));
    tuned.map_or(own, |s| own.min(Duration::from_secs_f64(s)))
}

fn enabled(name: &str) -> &'static str {
    let linked = |e: fs::DirEntry| e.path().join(name).symlink_metadata().is_ok();
    let wanted = fs::read_dir("/etc/systemd/system").into_iter().flatten().flatten().any(linked);
    match unit::path(name) {
        _ if unit::masked(name) => "masked",
        Some(_) if wanted => "enabled",
        Some(path) if path.starts_with("/etc") => "disabled",
        Some(_) => "static",
        None => "",
    }
}

fn enable(verb: &str, name: &str, said: &mut String) -> Result<(), (u8, String)> {
    let own = Path::new("/etc/systemd/system").join(name);
    match verb {
        "enable" => {
            let Some(spec) = Spec::load(name) else {
                return Err((1, format!("Failed to enable unit: Unit file {name} does not exist.")));
            };
            for target in spec.all("WantedBy").flat_map(str::split_whitespace) {
                let dir = Path::new("/etc/systemd/system").join(format!("{target}.wants"));
                let link = dir.join(name);
                if link.symlink_metadata().is_err() {
                    let made = fs::create_dir_all(&dir).and_then(|()| symlink(&spec.path, &link));
                    made.map_err(|e| (1, format!("Failed to enable unit: {e}")))?;
                    *said += &format!("Created symlink {} → {}.\n", link.display(), spec.path.display());
                }
            }
        }
        "disable" => {
            if unit::path(name).is_none() {
                return Err((1, format!("Failed to disable unit: Unit file {name} does not exist.")));
            }
            for dir in fs::read_dir("/etc/systemd/system").into_iter().flatten().flatten() {
                let link = dir.path().join(name);
                if link.symlink_metadata().is_ok() && fs::remove_file(&link).is_ok() {
                    *said += &format!("Removed {}.\n", link.display());
                }
            }
        }
        "mask" => {
            if own.symlink_metadata().is_ok() && !unit::masked(name) {
                return Err((1, format!("Failed to mask unit: File {} already exists.", own.display())));
            }
            let _ = symlink("/dev/null", &own);
        }
        _ => {
            if unit::masked(name) {
                let _ = fs::remove_file(&own);
            }
        }
    }
    Ok(())
}
