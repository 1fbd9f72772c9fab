//! OpenRC as the init system, with k3s below its `supervise-daemon`, and the file that k3s' installer has it write as the log.
//!
//! A service counts as started as soon as there is a process, so that k3s' own words say when it is up.

use super::{Service, Since, Unit};
use crate::k3s::Said;

/// See the module.
pub struct OpenRc;

/// What a log's lines count from, as [`Since::invocation`] has it: bytes.
const FROM: &str = "byte ";

macro_rules! state {
    () => {
        r#"rc_state() {
  child= count= state=inactive values=/run/openrc/options/$1
  [ -e "/etc/init.d/$1" ] && echo LoadState=loaded || echo LoadState=not-found
  [ -r "$values/child_pid" ] && read -r child <"$values/child_pid"
  [ -r "$values/start_count" ] && read -r count <"$values/start_count"
  if [ -e "/run/openrc/started/$1" ] || [ -e "/run/openrc/starting/$1" ]; then
    state=activating
    if [ -n "$child" ] && [ -d "/proc/$child" ]; then
      said=$(tail -n 5000 "/var/log/$1.log" 2>/dev/null | sed -n '/Starting k3s/s/.*/no/p; /is up and running/s/.*/yes/p' | tail -n 1)
      [ "$said" = no ] || state=active
    fi
  elif [ -e "/run/openrc/failed/$1" ]; then
    state=failed
  fi
  echo "ActiveState=$state"
  echo "NRestarts=${count:-0}"
  echo "InvocationID=${child:+$child.${count:-0}}"
}
"#
    };
}

/// `rc_state UNIT`: its state in the words of [`Unit::set`]. A start of which the log says nothing is one of long ago: its
/// beginning is no longer among the last lines.
const STATE: &str = state!();

/// `rc_begin UNIT WAY`: what it says from here on is of the next start. A service whose supervisor died is put right by a restart.
const BEGIN: &str = r#"rc_begin() {
  echo 'level=info msg="p1: Starting k3s"' >>"/var/log/$1.log"
  rc-service "$1" "$2" </dev/null >/dev/null 2>&1
}
"#;

impl Service for OpenRc {
    fn name(&self) -> &'static str {
        "openrc"
    }

    fn facts(&self) -> &'static str {
        concat!(
            r#"if [ -d /run/openrc ] && [ ! -d /run/systemd/system ]; then
  say init openrc
"#,
            state!(),
            r#"  for unit in k3s k3s-agent; do
    rc_state $unit | while IFS='=' read -r key value; do say unit "$unit $key $value"; done
    file=/etc/rancher/k3s/$unit.env
    [ -f "$file" ] && [ -s "$file" ] && names "$file" =
    file=/etc/conf.d/$unit
    [ -f "$file" ] && [ -s "$file" ] || continue
    case $(first "$file") in '# Written by p1'*) own="${own:-} $file" ;; *) names "$file" = ;; esac
  done
  [ -x /etc/init.d/cgroups ] && [ ! -e /run/openrc/started/cgroups ] && say untuned cgroups
fi
"#
        )
    }

    fn settings(&self, unit: &str) -> String {
        format!(
            "for f in /etc/conf.d/{unit} /etc/rancher/k3s/{unit}.env; do [ -f \"$f\" ] &&\n\
             sed -n 's/^\\(export \\)\\{{0,1\\}}\\([A-Za-z_][A-Za-z0-9_]*\\)=.*/\\2/p' \"$f\" | \
             while read -r k; do echo \"$k $f\"; done\n\
             done\ntrue\n"
        )
    }

    fn environment(&self, unit: &str) -> String {
        format!("/etc/conf.d/{unit}")
    }

    /// openrc-run sources the file, and hands on what is exported.
    fn variables(&self, text: String) -> String {
        let line = |line: &str| match line.starts_with('#') {
            true => format!("{line}\n"),
            false => format!("export {line}\n"),
        };
        text.lines().map(line).collect()
    }

    fn functions(&self) -> &'static str {
        r#"service_state() { [ -e "/run/openrc/started/$1" ] && echo active || { echo inactive; false; }; }
service_start() { rc-service "$1" start </dev/null >/dev/null 2>&1; }
service_stop() { rc-service "$1" stop </dev/null >/dev/null 2>&1; }
service_pid() { cat "/run/openrc/options/$1/child_pid" 2>/dev/null || echo 0; }
service_remove() {
  if [ -e "/etc/init.d/$1" ]; then
    rc-service "$1" stop </dev/null >/dev/null 2>&1
    rc-update delete "$1" default >/dev/null 2>&1
    rm -f "/etc/init.d/$1"
  fi
  rm -f "/etc/rancher/k3s/$1.env" "/etc/logrotate.d/$1" "/var/log/$1.log"
}
"#
    }

    fn enable(&self, unit: &str) -> String {
        // Of one piece: what is before it may have failed.
        format!("{{ [ -e /etc/runlevels/default/{unit} ] || rc-update add {unit} default >/dev/null; }}")
    }

    fn start(&self, unit: &str) -> String {
        format!(
            "{BEGIN}date +%s\necho \"{FROM}$(wc -c </var/log/{unit}.log 2>/dev/null || echo 0)\"\nrc_begin {unit} restart\n:\n"
        )
    }

    fn started(&self, answer: &str) -> Since {
        let at = answer.lines().map(str::trim).find(|l| l.parse::<i64>().is_ok()).unwrap_or_default();
        let from = answer.lines().map(str::trim).find(|l| l.starts_with(FROM)).unwrap_or_default();
        Since { at: at.to_owned(), invocation: from.to_owned() }
    }

    fn stop(&self, unit: &str) -> String {
        // What was set apart is no service.
        format!(
            "if [ -e /run/{unit}.pid ]; then kill -- \"-$(cat /run/{unit}.pid)\" 2>/dev/null; rm -f /run/{unit}.pid; \
             else rc-service {unit} stop </dev/null >/dev/null; fi"
        )
    }

    fn end_at_once(&self) -> &'static str {
        "poweroff -f"
    }

    fn power_off(&self) -> &'static str {
        "poweroff"
    }

    fn reboot(&self) -> &'static str {
        "reboot"
    }

    fn kill(&self, unit: &str) -> String {
        format!("kill -9 \"$(cat /run/openrc/options/{unit}/child_pid)\"")
    }

    fn start_again(&self, unit: &str) -> String {
        format!("[ -e /run/openrc/started/{unit} ] || rc-service {unit} start </dev/null >/dev/null 2>&1")
    }

    fn apart(&self, unit: &str, file: &str) -> String {
        format!("{{ setsid /bin/sh {file} </dev/null >/dev/null 2>&1 & echo $! >/run/{unit}.pid; }}")
    }

    fn restart(&self, unit: &str) -> String {
        format!("rc-service {unit} restart")
    }

    fn is_active(&self, unit: &str) -> String {
        format!(
            "kill -0 \"$(cat /run/openrc/options/{unit}/child_pid /run/{unit}.pid 2>/dev/null | head -n 1)\" 2>/dev/null"
        )
    }

    fn state(&self, unit: &str) -> String {
        format!("{STATE}rc_state {unit}\n")
    }

    fn read(&self, answer: &str) -> Unit {
        let mut unit = Unit::default();
        answer.lines().filter_map(|l| l.trim().split_once('=')).for_each(|(key, value)| unit.set(key, value));
        unit
    }

    fn log(&self, unit: &str, most: u32, follow: bool) -> String {
        let follow = if follow { " -f" } else { "" };
        format!("tail -n {most}{follow} /var/log/{unit}.log")
    }

    fn said(&self, unit: &str, since: &Since, most: u32) -> String {
        let from = since.invocation.strip_prefix(FROM).and_then(|n| n.trim().parse::<u64>().ok());
        // A log that is shorter by now was turned over.
        format!(
            "log=/var/log/{unit}.log from={}\n[ -r \"$log\" ] || exit 0\n[ \"$(wc -c <\"$log\")\" -ge \"$from\" ] || from=0\n\
             tail -c +$((from + 1)) \"$log\" | tail -n {most}\n",
            from.unwrap_or(0)
        )
    }

    fn lines(&self, answer: &str) -> Vec<Said> {
        // Of which start each is, the file does not say.
        let said = |line: &str| Said { invocation: String::new(), text: line.to_owned() };
        answer.lines().map(said).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Activity;
    use super::*;

    /// OpenRC calls a service started as soon as there is a process.
    #[test]
    fn a_service_is_active_when_its_process_has_said_that_it_is_up() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for path in
            ["etc/init.d", "run/openrc/started", "run/openrc/failed", "run/openrc/options/k3s", "var/log"]
        {
            std::fs::create_dir_all(at(path)).unwrap();
        }
        let write = |path: &str, text: &str| std::fs::write(at(path), text).unwrap();
        let state = || {
            let root = dir.path().display();
            let mut script = OpenRc.state("k3s");
            for path in ["/etc/init.d", "/run/openrc", "/var/log"] {
                script = script.replace(path, &format!("{root}{path}"));
            }
            let cmd = crate::os::process::Cmd::new("sh").stdin(script);
            let bound = std::time::Duration::from_secs(20);
            let done = crate::os::process::run(&cmd, bound, &crate::os::Cancel::new()).unwrap();
            OpenRc.read(&done.stdout)
        };
        assert!(!state().loaded && state().active == Activity::Inactive);
        write("etc/init.d/k3s", "");
        write("run/openrc/started/k3s", "");
        write("run/openrc/options/k3s/child_pid", &std::process::id().to_string());
        write("run/openrc/options/k3s/start_count", "2\n");
        let up = "msg=\"Starting k3s v1\"\nmsg=\"k3s is up and running\"\n";
        write("var/log/k3s.log", up);
        let unit = state();
        assert!(unit.loaded && unit.active == Activity::Active && unit.restarts == 2, "{unit:?}");
        // The next start has said nothing yet.
        write("var/log/k3s.log", &format!("{up}msg=\"p1: Starting k3s\"\n"));
        assert_eq!(state().active, Activity::Activating);
        // Its process is gone.
        write("var/log/k3s.log", up);
        write("run/openrc/options/k3s/child_pid", "4194305");
        assert_eq!(state().active, Activity::Activating);
        std::fs::remove_file(at("run/openrc/started/k3s")).unwrap();
        write("run/openrc/failed/k3s", "");
        assert_eq!(state().active, Activity::Failed);
    }

    #[test]
    fn the_log_counts_from_where_the_start_was_asked_for() {
        let since = OpenRc.started("1795600000\nbyte 120\n");
        assert_eq!((since.at.as_str(), since.invocation.as_str()), ("1795600000", "byte 120"));
        assert!(OpenRc.said("k3s", &since, 9).contains("from=120\n"));
        assert!(OpenRc.said("k3s", &Since::default(), 9).contains("from=0\n"));
        assert!(OpenRc.enable("k3s").starts_with('{'), "`false && ...` must fail");
        let text = "# Written by p1\nHTTPS_PROXY=\"http://p\"\n".to_owned();
        assert_eq!(OpenRc.variables(text), "# Written by p1\nexport HTTPS_PROXY=\"http://p\"\n");
    }
}
