//! Vagrant's `--machine-readable` lines: `<unix seconds>,<target>,<type>,<data>...`.
//!
//! Source: `lib/vagrant/ui.rb`, class MachineReadable. In data a comma is `%!(VAGRANT_COMMA)`, a line
//! feed is `\n`, a carriage return `\r`; backslash and percent are not escaped, so what is read back
//! is for display only.

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The machine's name; empty for what concerns no single one.
    pub target: String,
    /// `action`, `ui`, `state`, `error-exit`, ...
    pub kind: String,
    /// What belongs to it.
    pub data: Vec<String>,
}

impl Line {
    /// True for `kind` with exactly this data in front.
    pub fn is(&self, kind: &str, data: &[&str]) -> bool {
        self.kind == kind && self.data.len() >= data.len() && self.data.iter().zip(data).all(|(a, b)| a == b)
    }
}

/// Reads a line; `None` for anything else on standard output (plugins print plain warnings there).
pub fn parse(line: &str) -> Option<Line> {
    let mut parts = line.splitn(4, ',');
    let stamp = parts.next()?;
    if stamp.is_empty() || !stamp.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let (target, kind) = (parts.next()?, parts.next()?);
    let data = parts.next().map(|rest| rest.split(',').map(unescape).collect()).unwrap_or_default();
    Some(Line { target: target.to_owned(), kind: kind.to_owned(), data })
}

fn unescape(text: &str) -> String {
    text.replace("%!(VAGRANT_COMMA)", ",").replace("\\n", "\n").replace("\\r", "\r")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_events_and_passes_over_the_rest() {
        let line =
            parse("1795000000,worker-1,ui,error,An error occurred%!(VAGRANT_COMMA) sorry.\\n\\nIt broke.");
        let line = line.unwrap();
        assert_eq!((line.target.as_str(), line.kind.as_str()), ("worker-1", "ui"));
        assert_eq!(line.data, ["error", "An error occurred, sorry.\n\nIt broke."]);
        assert!(parse("1795000000,server,action,up,end").unwrap().is("action", &["up", "end"]));
        for other in
            ["[fog][WARNING] Unrecognized arguments: libvirt_ip_command", "", "12", "12,x", "Host server"]
        {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*") {
            let _ = parse(&text);
        }
    }
}
