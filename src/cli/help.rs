//! The help of the command line: the verbs in groups, examples, and what the words of other tools are here.

use clap::{Command, CommandFactory};

use super::args::Cli;
use crate::ui::text;

/// The verbs in the order in which they are needed.
const GROUPS: [(&str, &[&str]); 9] = [
    ("Make a cluster", &["init", "validate", "plan", "up", "retry", "doctor"]),
    ("See how it is", &["status", "verify", "list", "logs", "history"]),
    ("Work on it", &["ssh", "exec", "cp", "forward", "kubectl", "kubeconfig", "image"]),
    ("Change it", &["upgrade", "replace", "fault"]),
    ("Keep moments of it", &["snapshot", "reset", "kept", "fork", "backup", "restore"]),
    ("Switch it off and on", &["stop", "start", "suspend", "resume"]),
    ("Take it down, from mildest to most destructive", &["killall", "uninstall", "destroy"]),
    ("Boxes and files", &["box", "artifacts", "render", "schema"]),
    ("About p1", &["completions", "man", "help"]),
];

/// Command lines to begin with, of p1 itself and of verbs.
const EXAMPLES: [(&str, &[(&str, &str)]); 15] = [
    (
        "",
        &[
            ("p1 init --workers 2", "write cluster.yaml"),
            ("p1 up --setup", "install what this host lacks, and make the cluster"),
            ("p1 status", "see how it is"),
            ("p1 kubectl get pods -A", "use it"),
            ("p1 destroy", "remove it"),
        ],
    ),
    (
        "up",
        &[
            ("p1 up", "do what is missing, on all nodes"),
            ("p1 up worker-1", "on this node alone"),
            ("p1 up --dry-run", "only say what would be done"),
            ("p1 up --replace worker-1", "recreate its machine"),
            ("p1 up --only machines", "no k3s: that is for a later `up`, or for you"),
        ],
    ),
    ("plan", &[("p1 plan", "what `up` would do"), ("p1 plan -v", "with the steps that are done")]),
    ("status", &[("p1 status", ""), ("p1 status --watch", "again and again, until Ctrl-C")]),
    (
        "init",
        &[
            ("p1 init --servers 3 --workers 2", "a cluster that survives the loss of a server"),
            (
                "p1 init --from pi@192.168.1.21 pi@192.168.1.22",
                "one that runs already: its spec, for `up` to take it over",
            ),
        ],
    ),
    (
        "exec",
        &[
            ("p1 exec -- uptime", "on all nodes"),
            ("p1 exec worker-1 --root -- 'dmesg | tail'", "a line for the shell of one node"),
        ],
    ),
    ("ssh", &[("p1 ssh worker-1", "a shell"), ("p1 ssh worker-1 -- uptime", "one command")]),
    (
        "cp",
        &[
            ("p1 cp page.html worker-1:/tmp/", "to a node, into a folder that is there"),
            ("p1 cp worker-1:/etc/hosts .", "from a node"),
            ("p1 cp --root certs server:/etc/ssl/mine", "a whole folder, as root"),
        ],
    ),
    (
        "forward",
        &[
            ("p1 forward web 8080:80", "http://127.0.0.1:8080 is the Service web"),
            ("p1 forward -n kube-system service/traefik :80", "a free port of this host"),
            ("p1 forward worker-1 9100", "what listens on a node itself"),
        ],
    ),
    (
        "logs",
        &[
            ("p1 logs", "what the last run's failed steps wrote"),
            ("p1 logs server --follow", "k3s' log on a node"),
            ("p1 logs --run 20261129T0859", "what those of an earlier run wrote"),
            ("p1 logs --bundle", "all that shows a cause, in one file without secrets"),
        ],
    ),
    (
        "completions",
        &[
            ("source <(p1 completions bash)", "in ~/.bashrc"),
            ("source <(p1 completions zsh)", "in ~/.zshrc, after compinit"),
            ("p1 completions fish | source", "in ~/.config/fish/config.fish"),
        ],
    ),
    ("kubeconfig", &[("export KUBECONFIG=$(p1 kubeconfig)", ""), ("p1 kubeconfig --merge --switch", "")]),
    (
        "snapshot",
        &[("p1 snapshot save before", ""), ("p1 snapshot restore before", "what happened since is lost")],
    ),
    ("fault", &[("p1 fault partition worker-1 --for 2m", "it is healed by itself")]),
    ("destroy", &[("p1 destroy", "the whole cluster"), ("p1 destroy worker-1", "one node of it")]),
];

const EXIT_CODES: &str = "Exit codes: 0 done, 1 steps failed (`p1 retry` continues), 2 bad usage or spec, 3 host not ready \
                          (see `p1 doctor`), 4 locked by another p1 or had by another folder, 10 `plan` has changes, 130 interrupted";

/// The command line with its help.
pub fn command() -> Command {
    let mut command = Cli::command();
    let listed = listed(&command);
    command = command.help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{listed}\n{}\n{{options}}{{after-help}}",
        heading("Options")
    ));
    for (verb, lines) in EXAMPLES {
        let shown = examples(lines);
        command = match verb {
            "" => command.after_help(format!("{shown}\n\n{EXIT_CODES}")),
            verb => command.mut_subcommand(verb, |sub| sub.after_help(shown)),
        };
    }
    command
}

/// As clap's own.
fn heading(text: &str) -> String {
    let style = anstyle::Style::new().bold().underline();
    format!("{style}{text}:{style:#}")
}

fn examples(lines: &[(&str, &str)]) -> String {
    let width = lines.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
    let shown = lines.iter().map(|(line, what)| match *what {
        "" => format!("  {line}"),
        what => format!("  {line:width$}  # {what}"),
    });
    let shown: Vec<String> = shown.collect();
    format!("{}\n{}", heading("Examples"), shown.join("\n"))
}

/// The verbs in their groups. clap has one list of them.
fn listed(command: &Command) -> String {
    let columns = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok());
    let of_terminal = || console::Term::stdout().size_checked().map(|(_, columns)| usize::from(columns));
    let columns = columns.or_else(of_terminal).unwrap_or(100).clamp(40, 100);
    let style = anstyle::Style::new().bold();
    let names = GROUPS.iter().flat_map(|(_, verbs)| verbs.iter());
    let width = names.map(|name| name.len()).max().unwrap_or(0);
    let mut all = String::new();
    for (group, verbs) in GROUPS {
        all += &format!("{}\n", heading(group));
        for verb in verbs {
            let about = command.find_subcommand(verb).and_then(Command::get_about).map(ToString::to_string);
            let about = about.unwrap_or_else(|| "Print this help, or that of a verb".to_owned());
            for (i, line) in text::wrap(&about, columns - width - 4).into_iter().enumerate() {
                let verb = if i == 0 { verb } else { "" };
                all += &format!("  {style}{verb:width$}{style:#}  {line}\n");
            }
        }
        all += "\n";
    }
    all.truncate(all.len() - 1);
    all
}

/// What does here what a word of another tool's command line does there; `path` is the words from the verb on.
pub fn instead(path: &str) -> Option<&'static str> {
    Some(match path {
        "delete" | "rm" | "remove" | "teardown" | "purge" => "`p1 destroy` removes the machines.",
        "down" => "`p1 stop` shuts the machines down, and `p1 destroy` removes them.",
        "halt" | "shutdown" | "poweroff" | "off" => "`p1 stop` shuts the machines down.",
        "apply" | "create" | "deploy" | "converge" | "provision" | "sync" | "install" | "make" => {
            "`p1 up` does what is missing."
        }
        "add" | "join" | "scale" => "Nodes are added in the spec; `p1 up` makes them.",
        "boot" | "on" | "unpause" => "`p1 start` starts machines that exist.",
        "pause" | "hibernate" | "sleep" => "`p1 suspend` writes their memory to disk.",
        "restart" | "reload" | "reboot" => "`p1 stop`, then `p1 start`.",
        "recreate" | "rebuild" => "`p1 replace worker-1` recreates a node.",
        "update" => "`p1 upgrade` brings k3s to another version, and `p1 up` does what the spec says.",
        "diff" | "preview" | "dry-run" | "drift" => "`p1 plan` says what `p1 up` would do.",
        "lint" => "`p1 validate` checks the spec.",
        "check" | "test" | "health" => {
            "`p1 validate` checks the spec, `p1 status` the machines, and `p1 verify` uses the cluster."
        }
        "ps" | "info" | "show" | "state" | "get" | "nodes" | "describe" => {
            "`p1 status` shows machines and nodes, and `p1 kubectl get nodes` what the cluster says of them."
        }
        "ls" | "clusters" | "global-status" => "`p1 list` lists this user's clusters.",
        "shell" | "login" | "connect" | "attach" => "`p1 ssh` opens a shell on a node.",
        "run" | "sh" | "cmd" => "`p1 exec -- uptime` runs a command on nodes.",
        "scp" | "copy" | "rsync" | "push" | "pull" | "upload" | "download" => {
            "`p1 cp page.html worker-1:/tmp/` copies to a node, and `p1 cp worker-1:/etc/hosts .` from it."
        }
        "port-forward" | "tunnel" | "port" | "proxy" | "expose" => {
            "`p1 forward web 8080:80` leads this host's port 8080 to the Service web."
        }
        "config" | "credentials" | "context" => "`p1 kubeconfig` prints where it is.",
        "log" | "journal" | "events" => "`p1 logs server` shows a node's k3s, and `p1 logs` what failed.",
        "save" => "`p1 snapshot save before` keeps all machines as they are.",
        "load" | "import" | "images" => "`p1 image load shop:dev` brings an image to the nodes.",
        "clone" | "copy-cluster" => "`p1 fork` makes copies of a cluster.",
        "chaos" => "`p1 fault --help` lists what can be done to nodes on purpose.",
        "setup" | "preflight" => "`p1 doctor --fix` mends what this host lacks.",
        "new" | "generate" => "`p1 init` writes a spec to start from.",
        "version" => "`p1 --version` prints it.",
        "snapshot create" | "snapshot take" | "snapshot push" => "`p1 snapshot save before` keeps a moment.",
        "snapshot rm" | "snapshot remove" => "`p1 snapshot delete before` removes one.",
        "snapshot load" | "snapshot revert" | "snapshot rollback" | "snapshot pop" => {
            "`p1 snapshot restore before` goes back to one."
        }
        "box rm" | "box delete" => "`p1 box remove debian-12` removes one.",
        "fault stop" | "fault end" | "fault clear" => "`p1 fault heal` ends faults.",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_verb_is_in_one_group() {
        let mut command = Cli::command();
        command.build();
        let verbs = command.get_subcommands().filter(|sub| !sub.is_hide_set()).map(Command::get_name);
        let grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, verbs)| verbs.iter().copied()).collect();
        assert_eq!(grouped.iter().copied().collect::<BTreeSet<_>>(), verbs.collect());
        assert_eq!(grouped.len(), grouped.iter().collect::<BTreeSet<_>>().len());
    }

    #[test]
    fn every_example_is_a_command_line() {
        for (verb, lines) in EXAMPLES {
            for (line, _) in lines {
                let inner = line.split_once("$(").or_else(|| line.split_once("<("));
                let line = inner.map_or(*line, |(_, inner)| inner.trim_end_matches(')'));
                let line = line.strip_suffix(" | source").unwrap_or(line);
                let words = shlex::split(line).unwrap();
                assert!(verb.is_empty() || words[1] == verb, "{line} is no example of {verb}");
                let read = Cli::command().try_get_matches_from(words);
                assert!(read.is_ok(), "{line}: {}", read.unwrap_err());
            }
        }
    }

    /// A word that p1 has needs no other.
    #[test]
    fn no_verb_is_told_to_be_another_one() {
        for verb in Cli::command().get_subcommands() {
            assert_eq!(instead(verb.get_name()), None);
            for sub in verb.get_subcommands() {
                assert_eq!(instead(&format!("{} {}", verb.get_name(), sub.get_name())), None);
            }
        }
    }
}
