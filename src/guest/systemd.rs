//! systemd as the init system, and journald as its log.

use serde_json::Value;

use super::{Launch, Service, Since, Unit};
use crate::k3s::Said;

/// See the module.
pub struct Systemd;

impl Service for Systemd {
    fn name(&self) -> &'static str {
        "systemd"
    }

    fn facts(&self) -> &'static str {
        // One block a unit, in the order asked for, an empty line between.
        r#"if [ -d /run/systemd/system ]; then
  say init systemd
  unit=k3s
  systemctl show -p LoadState,ActiveState,NRestarts,InvocationID k3s.service k3s-agent.service |
    while IFS='=' read -r key value; do
      if [ -n "$key" ]; then say unit "$unit $key $value"; else unit=k3s-agent; fi
    done
  for unit in k3s k3s-agent; do
    file=/etc/systemd/system/$unit.service.env
    [ -f "$file" ] && [ -s "$file" ] && names "$file" =
    for file in /etc/systemd/system/$unit.service.d/*.conf /run/systemd/system/$unit.service.d/*.conf \
      /usr/lib/systemd/system/$unit.service.d/*.conf /etc/systemd/system.control/$unit.service.d/*.conf; do
      [ -f "$file" ] && say elsewhere ", $file"
    done
  done
  if [ -e /usr/lib/systemd/system/nm-cloud-setup.service ]; then
    for unit in nm-cloud-setup.service nm-cloud-setup.timer; do
      systemctl is-enabled --quiet "$unit" 2>/dev/null && say untuned cloud-setup
    done
  fi
fi
"#
    }

    fn found(&self) -> &'static str {
        r#"if [ -d /run/systemd/system ]; then
  for unit in k3s k3s-agent; do
    files=$(systemctl show -p FragmentPath $unit.service | cut -d= -f2-)
    [ -n "$files" ] || continue
    for file in /run/systemd/system/$unit.service.d/*.conf /usr/lib/systemd/system/$unit.service.d/*.conf \
      /etc/systemd/system/$unit.service.d/*.conf /etc/systemd/system.control/$unit.service.d/*.conf; do
      [ ! -f "$file" ] || files="$files
$file"
    done
    printf '%s\n' "$files" | while IFS= read -r file; do
      say unit "$unit $file"
      show "$file"
      sed -n 's/^[[:blank:]]*EnvironmentFile=-\{0,1\}//p' "$file" | sed "s/%N/$unit/g; s/%n/$unit.service/g" |
        while IFS= read -r file; do show "$file"; done
    done
  done
fi
"#
    }

    fn launch<'t>(
        &self,
        unit: &str,
        files: &[(&str, &'t str)],
        read: &dyn Fn(&str) -> Option<&'t str>,
    ) -> Launch {
        let mut launch = Launch::default();
        let mut line = String::new();
        // What files say is above what the unit says (systemd.exec(5)).
        let mut of_files = Vec::new();
        for (path, text) in files {
            let joined = text.replace("\\\n", " ");
            let lines = joined.lines().map(str::trim).filter(|l| !l.starts_with(['#', ';']));
            for (key, value) in lines.filter_map(|l| l.split_once('=')) {
                let value = value.trim().replace("%N", unit).replace("%n", &format!("{unit}.service"));
                match key.trim() {
                    "ExecStart" => {
                        line = value.trim_start_matches(['-', '@', ':', '+', '!']).replace("%%", "%");
                        (*path).clone_into(&mut launch.place);
                    }
                    "Environment" if value.is_empty() => launch.env.clear(),
                    "EnvironmentFile" if value.is_empty() => of_files.clear(),
                    "Environment" => {
                        let words = words(&value.replace("%%", "%"));
                        let pairs = words.iter().filter_map(|word| word.split_once('='));
                        launch
                            .env
                            .extend(pairs.map(|(k, v)| (k.to_owned(), v.to_owned(), (*path).to_owned())));
                    }
                    "EnvironmentFile" => {
                        let file = value.trim_start_matches('-');
                        let lines = read(file).unwrap_or_default().lines().map(str::trim);
                        let pairs =
                            lines.filter(|l| !l.starts_with(['#', ';'])).filter_map(|l| l.split_once('='));
                        let text = |value: &str| words(value).join(" ");
                        of_files.extend(pairs.map(|(k, v)| (k.trim().to_owned(), text(v), file.to_owned())));
                    }
                    _ => {}
                }
            }
        }
        launch.env.extend(of_files);
        let of = |name: &str| {
            launch
                .env
                .iter()
                .rev()
                .find(|(known, ..)| known == name)
                .map_or("", |(_, value, _)| value.as_str())
        };
        for word in words(&line) {
            let whole = word.strip_prefix('$').filter(|name| !name.is_empty() && name.chars().all(is_name));
            match whole {
                Some(name) => launch.argv.extend(of(name).split_whitespace().map(str::to_owned)),
                None => launch.argv.push(filled(&word, &of)),
            }
        }
        launch
    }

    fn settings(&self, unit: &str) -> String {
        // The unit of k3s' installer reads `/etc/default/%N` and `/etc/sysconfig/%N`.
        format!(
            "for f in /etc/default/{unit} /etc/sysconfig/{unit} /etc/systemd/system/{unit}.service.d/*.conf; do [ -f \"$f\" ] &&\n\
             sed -n 's/^\\(Environment=\\)\\{{0,1\\}}[\"'\\'']\\{{0,1\\}}\\([A-Za-z_][A-Za-z0-9_]*\\)=.*/\\2/p' \"$f\" | \
             while read -r k; do echo \"$k $f\"; done\n\
             done\ntrue\n"
        )
    }

    fn environment(&self, unit: &str) -> String {
        format!("/etc/default/{unit}")
    }

    fn functions(&self) -> &'static str {
        r#"service_state() { systemctl is-active "$1"; }
service_start() { systemctl start --no-block "$1"; }
service_stop() { systemctl stop "$1"; }
service_pid() { systemctl show -p MainPID "$1" | cut -d= -f2; }
service_remove() {
  if [ -e "/etc/systemd/system/$1.service" ]; then
    systemctl disable --now "$1" 2>/dev/null
    rm -f "/etc/systemd/system/$1.service" "/etc/systemd/system/$1.service.env"
    systemctl daemon-reload
  fi
  rm -f "/etc/systemd/system/$1.service.env"
}
"#
    }

    fn enable(&self, unit: &str) -> String {
        // With its generators, reading all units again takes an emulated machine a second.
        format!("systemctl --no-reload enable {unit}")
    }

    fn start(&self, unit: &str) -> String {
        // `restart` starts what is stopped; `reset-failed` lets a unit that gave up try again at once. A unit that has never
        // run is read when it is first asked for, has no lines before and nothing to forget: each of these costs an emulated
        // machine up to a second.
        format!(
            r#"is=$(systemctl show -p LoadState,ActiveState,InvocationID,NeedDaemonReload {unit})
case $is in *LoadState=loaded*) read=no ;; *) read=yes ;; esac
case $is in *NeedDaemonReload=no*) ;; *) read=yes ;; esac
[ $read = no ] || systemctl daemon-reload
case $is in *ActiveState=inactive*) ;; *) systemctl reset-failed {unit} 2>/dev/null ;; esac
case $is in *InvocationID=?*) journalctl --sync 2>/dev/null ;; esac
date +%s; echo "$is"
systemctl restart --no-block {unit}
"#
        )
    }

    fn started(&self, answer: &str) -> Since {
        let at = answer.lines().map(str::trim).find(|l| l.parse::<i64>().is_ok()).unwrap_or_default();
        let invocation =
            answer.lines().find_map(|l| l.trim().strip_prefix("InvocationID=")).unwrap_or_default();
        Since { at: at.to_owned(), invocation: invocation.to_owned() }
    }

    fn stop(&self, unit: &str) -> String {
        format!("systemctl stop {unit}")
    }

    fn end_at_once(&self) -> &'static str {
        "systemctl poweroff --force"
    }

    fn power_off(&self) -> &'static str {
        "systemctl poweroff --no-block"
    }

    fn reboot(&self) -> &'static str {
        "systemctl reboot --no-block"
    }

    fn kill(&self, unit: &str) -> String {
        format!("systemctl kill --kill-who=main --signal=KILL {unit}")
    }

    fn start_again(&self, unit: &str) -> String {
        format!("systemctl reset-failed {unit} 2>/dev/null\nsystemctl start --no-block {unit} 2>/dev/null")
    }

    fn apart(&self, unit: &str, file: &str) -> String {
        format!("systemd-run --quiet --collect --unit={unit} /bin/sh {file}")
    }

    fn restart(&self, unit: &str) -> String {
        format!("systemctl restart {unit}")
    }

    fn is_active(&self, unit: &str) -> String {
        format!("systemctl is-active {unit}")
    }

    fn state(&self, unit: &str) -> String {
        format!("systemctl show -p LoadState,ActiveState,NRestarts,InvocationID {unit}")
    }

    fn read(&self, answer: &str) -> Unit {
        let mut unit = Unit::default();
        answer.lines().filter_map(|l| l.trim().split_once('=')).for_each(|(key, value)| unit.set(key, value));
        unit
    }

    fn log(&self, unit: &str, most: u32, follow: bool) -> String {
        let follow = if follow { " -f" } else { "" };
        format!("journalctl --no-pager -u {unit} -n {most}{follow}")
    }

    fn said(&self, unit: &str, since: &Since, most: u32) -> String {
        let from = if since.at.is_empty() { String::new() } else { format!(" --since @{}", since.at) };
        // Each line of journald's has its invocation (systemd 232; `--output-fields`: 236).
        format!(
            "journalctl -u {unit} -n {most} --no-pager --quiet --all -o json \
             --output-fields=MESSAGE,INVOCATION_ID,_SYSTEMD_INVOCATION_ID{from}"
        )
    }

    fn lines(&self, answer: &str) -> Vec<Said> {
        answer.lines().filter_map(said).collect()
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// A word of a command line with `${NAME}` in it (systemd.service(5), COMMAND LINES).
fn filled<'v>(word: &str, of: &dyn Fn(&str) -> &'v str) -> String {
    let (mut out, mut rest) = (String::new(), word);
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        rest = match (
            after.strip_prefix('$'),
            after.strip_prefix('{').and_then(|inner| inner.split_once('}')),
        ) {
            (Some(behind), _) => {
                out.push('$');
                behind
            }
            (None, Some((name, behind))) => {
                out.push_str(of(name));
                behind
            }
            (None, None) => {
                out.push('$');
                after
            }
        };
    }
    out + rest
}

/// Words as systemd.syntax(7) has them: quotes of both kinds, escapes of C.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut begun) = (Vec::new(), String::new(), None, false);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', _) => {
                begun = true;
                match chars.next() {
                    Some('n') => word.push('\n'),
                    Some('t') => word.push('\t'),
                    Some('s') => word.push(' '),
                    Some('x') => {
                        let digits: String = chars.by_ref().take(2).collect();
                        word.extend(u8::from_str_radix(&digits, 16).ok().map(char::from));
                    }
                    other => word.extend(other),
                }
            }
            (c, Some(end)) if c == end => quote = None,
            ('"' | '\'', None) => (quote, begun) = (Some(c), true),
            (c, None) if c.is_whitespace() => {
                if std::mem::take(&mut begun) {
                    words.push(std::mem::take(&mut word));
                }
            }
            (c, _) => {
                word.push(c);
                begun = true;
            }
        }
    }
    words.extend(begun.then_some(word));
    words
}

/// A line of `journalctl -o json`: a field that is no UTF-8 is an array of its bytes, one that is there twice
/// an array of both (systemd.journal-fields(7), "Journal JSON Format").
fn said(line: &str) -> Option<Said> {
    let value: Value = serde_json::from_str(line).ok()?;
    let text = |key: &str| match &value[key] {
        Value::String(text) => text.clone(),
        Value::Array(all) => match all.first() {
            Some(Value::String(first)) => first.clone(),
            _ => {
                let bytes = all.iter().filter_map(|b| u8::try_from(b.as_u64()?).ok()).collect::<Vec<u8>>();
                String::from_utf8_lossy(&bytes).into_owned()
            }
        },
        _ => String::new(),
    };
    let own = text("_SYSTEMD_INVOCATION_ID");
    // systemd's lines are of its own invocation; that of the unit which they are about is another field.
    let about = text("INVOCATION_ID");
    Some(Said { invocation: if about.is_empty() { own } else { about }, text: text("MESSAGE") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Activity;

    #[test]
    fn a_journals_lines_are_read_whatever_bytes_they_hold() {
        let read = |line: &str| said(line).map(|s| (s.invocation, s.text));
        let of = |invocation: &str, text: &str| Some((invocation.to_owned(), text.to_owned()));
        assert_eq!(read(r#"{"MESSAGE":"a","_SYSTEMD_INVOCATION_ID":"x"}"#), of("x", "a"));
        let manager = r#"{"MESSAGE":"k3s.service: Main process exited","_SYSTEMD_INVOCATION_ID":"m","INVOCATION_ID":"x"}"#;
        assert_eq!(read(manager), of("x", "k3s.service: Main process exited"));
        assert_eq!(read(r#"{"MESSAGE":[104,255,105]}"#), of("", "h\u{fffd}i"));
        assert_eq!(read(r#"{"MESSAGE":["one","two"],"INVOCATION_ID":"x"}"#), of("x", "one"));
        assert_eq!(read("-- No entries --"), None);
    }

    #[test]
    fn a_units_state_and_the_moment_of_its_start_are_read() {
        let unit = Systemd.read("LoadState=loaded\nActiveState=activating\nNRestarts=3\nInvocationID=abc\n");
        assert_eq!((unit.loaded, unit.active.clone(), unit.restarts), (true, Activity::Activating, 3));
        assert_eq!(unit.invocation, "abc");
        let since = Systemd.started("warning: of something\n1795600000\nInvocationID=abc\n");
        assert_eq!((since.at.as_str(), since.invocation.as_str()), ("1795600000", "abc"));
        assert_eq!(Systemd.started("InvocationID=\n"), Since::default());
    }
}
