//! The texts are true as far as a program can tell: rooms, keys of the spec, links, examples.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Files below a folder, those that version control does not have left out.
fn files(dir: &Path, ending: &str, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() && !name.to_string_lossy().starts_with('.') && name != "target" {
            files(&path, ending, out);
        } else if path.extension().is_some_and(|e| e == ending) {
            out.push(path);
        }
    }
}

/// The second column of a table's rows whose first is a word in backquotes.
fn rows(text: &str) -> Vec<(String, String)> {
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split('|');
        let name = cells.next()?.split('`').next()?.to_owned();
        Some((name, cells.next()?.trim().to_owned()))
    };
    text.lines().filter_map(row).collect()
}

/// The rooms that a room's code names as `crate::ROOM` or within `crate::{..}`.
fn known(room: &str) -> BTreeSet<String> {
    let mut sources = Vec::new();
    let path = root().join("src").join(room);
    if path.is_dir() {
        files(&path, "rs", &mut sources);
    } else {
        sources.push(path.with_extension("rs"));
    }
    let mut all = BTreeSet::new();
    for source in sources {
        let text = read(source);
        for after in text.split("crate::").skip(1) {
            let list = match after.strip_prefix('{') {
                Some(inner) => inner.split('}').next().unwrap_or_default(),
                None => after,
            };
            let parts: Vec<&str> =
                if after.starts_with('{') { list.split(',').collect() } else { vec![list] };
            let word = |p: &str| -> String {
                p.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
            };
            all.extend(parts.into_iter().map(word).filter(|w| !w.is_empty() && w != room));
        }
    }
    all
}

#[test]
fn every_room_knows_what_the_table_says() {
    let text = read("ARCHITECTURE.md");
    let table = text.split("## The house").nth(1).unwrap().split("\n## ").next().unwrap();
    let rooms: Vec<(String, String)> = rows(table)
        .into_iter()
        .map(|(name, knows)| (name.trim_end_matches('/').trim_end_matches(".rs").to_owned(), knows))
        .collect();
    let mut above: BTreeSet<String> = BTreeSet::new();
    for (room, knows) in &rooms {
        let mut may: BTreeSet<String> = match knows.as_str() {
            // What asks and prints may ask whatever there is; every other room says whom it knows.
            "all" if room == "cli" => above.clone(),
            list => list.split(',').map(|w| w.trim().to_owned()).filter(|w| !w.is_empty()).collect(),
        };
        assert!(may.is_subset(&above), "{room} is to know rooms below it: {may:?}");
        may.extend(["os".to_owned(), "explain".to_owned()]);
        let does = known(room);
        let more: Vec<_> = does.difference(&may).collect();
        assert!(more.is_empty(), "{room} knows {more:?}, which ARCHITECTURE.md does not say");
        if room != "cli" {
            let less: Vec<_> = may.iter().filter(|m| !does.contains(*m)).collect();
            let unused: Vec<_> = less.into_iter().filter(|m| *m != "os" && *m != "explain").collect();
            assert!(unused.is_empty(), "ARCHITECTURE.md says that {room} knows {unused:?}");
        }
        above.insert(room.clone());
    }
    let lib = read("src/lib.rs");
    let declared = lib.lines().filter_map(|l| l.strip_prefix("mod ")?.strip_suffix(';'));
    let declared: BTreeSet<String> = declared.map(str::to_owned).collect();
    assert_eq!(declared, above);
}

/// The files of `steps/` that a file there names, as `super::FILE` or `super::{FILE, ..}`; those of its tests left out.
fn beside(code: &str, all: &BTreeSet<String>) -> BTreeSet<String> {
    let code = code.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code: Vec<&str> = code.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let list = |after: &str| match after.strip_prefix('{') {
        Some(inner) => inner.split('}').next().unwrap_or_default().to_owned(),
        None => after
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .next()
            .unwrap_or_default()
            .to_owned(),
    };
    let named = code.split("super::").skip(1).map(list);
    let words = |list: String| {
        let words = list.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').map(str::to_owned);
        words.filter(|w| all.contains(w)).collect::<Vec<_>>()
    };
    named.flat_map(words).collect()
}

/// What steps have in common is in `steps/shared/`: a step's file names no other step's, and nothing there names a step.
#[test]
fn a_step_names_no_other_step() {
    let mut sources = Vec::new();
    files(&root().join("src/steps"), "rs", &mut sources);
    let name = |p: &Path| p.file_stem().unwrap().to_string_lossy().into_owned();
    let is_step = |p: &&PathBuf| p.parent().unwrap().ends_with("steps") && name(p) != "mod";
    let steps: BTreeSet<String> = sources.iter().filter(is_step).map(|p| name(p)).collect();
    assert!(steps.len() > 30, "{steps:?}");
    let mut wrong = Vec::new();
    for path in sources.iter().filter(|p| name(p) != "mod") {
        let code = read(path).replace("crate::steps::", "super::").replace("super::super::", "super::");
        // A name of `shared/` stands behind `super::shared::`, or beside it in the same folder.
        let code = match is_step(&path) {
            true => code.replace("super::shared::", "shared::"),
            false => {
                let own = |name: &String| path.with_file_name(format!("{name}.rs")).exists();
                let shared: Vec<&String> = steps.iter().filter(|name| own(name)).collect();
                shared.iter().fold(code, |code, name| code.replace(&format!("super::{name}"), ""))
            }
        };
        wrong.extend(beside(&code, &steps).into_iter().filter(|n| *n != name(path)).map(|n| (name(path), n)));
    }
    assert!(wrong.is_empty(), "a step's file names another step's: {wrong:?}");
}

/// What a pure room says depends on what it is given alone. Its tests may look at a clock.
#[test]
fn pure_rooms_read_no_file_ask_nobody_and_look_at_no_clock() {
    let text = read("ARCHITECTURE.md");
    let table = text.split("## The house").nth(1).unwrap().split("\n## ").next().unwrap();
    let pure = table.lines().filter(|l| l.ends_with("Pure. |"));
    let pure: Vec<&str> = pure.filter_map(|l| l.strip_prefix("| `")?.split('`').next()).collect();
    assert!(pure.len() >= 7, "{pure:?}");
    let outside = [
        "std::fs",
        "fs::",
        "std::process",
        "process::Command",
        "std::net::Tcp",
        "TcpStream",
        "UdpSocket",
        "Instant::now",
        "SystemTime::now",
        "Timestamp::now",
        "Zoned::now",
        "env::var",
    ];
    for room in pure {
        let (path, mut sources) = (root().join("src").join(room), Vec::new());
        match path.is_dir() {
            true => files(&path, "rs", &mut sources),
            false => sources.push(path),
        }
        let test = |p: &Path| p.file_name().is_some_and(|n| n.to_string_lossy().ends_with("tests.rs"));
        for source in sources.into_iter().filter(|p| !test(p)) {
            let code = read(&source);
            let code = code.split("mod tests {").next().unwrap_or_default();
            let lines = code.lines().filter(|l| !l.trim_start().starts_with("//"));
            for line in lines {
                let named = outside.iter().find(|word| line.contains(*word));
                assert!(named.is_none(), "{} is pure, and names {named:?}: {line}", source.display());
            }
        }
    }
}

/// Conditions are given what was observed, and actions ask `World` for the time; how long a wait lasts is another matter.
#[test]
fn steps_look_at_no_calendar() {
    let mut sources = Vec::new();
    files(&root().join("src/steps"), "rs", &mut sources);
    for source in sources {
        let code = read(&source);
        let code = code.split("mod tests {").next().unwrap_or_default();
        let clock = ["SystemTime", "Timestamp::now", "Zoned::now"].iter().find(|word| code.contains(*word));
        assert!(clock.is_none(), "{} names {clock:?}", source.display());
    }
}

/// What depends on a machine's init system is asked of its guest. A detached job does without one; `host/` is about this
/// host, `boxes/` about what it builds, and `k3s/` reads what an init system said.
#[test]
fn only_guests_name_the_init_system() {
    let mut sources = Vec::new();
    files(&root().join("src"), "rs", &mut sources);
    let mut named = 0;
    for path in sources {
        let name = path.strip_prefix(root().join("src")).unwrap().display().to_string();
        let text = read(&path);
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let code = code.lines().filter(|l| !l.trim_start().starts_with("//"));
        let says = code.filter(|l| ["systemctl", "journalctl", "systemd-run"].iter().any(|w| l.contains(w)));
        let free =
            ["guest/", "host/", "boxes/", "k3s/", "ssh/detached.rs"].iter().any(|f| name.starts_with(f));
        let says: Vec<&str> = says.collect();
        assert!(free || says.is_empty() || name.contains("test"), "src/{name}: {says:?}");
        named += says.len();
    }
    assert!(named > 10, "{named}");
}

/// Who has a machine is known by `machines/` alone, and which kinds there are by `host/`, which chooses one, and where a
/// command line becomes a world. All others ask for what a machine can do.
#[test]
fn only_machines_name_vagrant_and_their_kinds() {
    let mut sources = Vec::new();
    files(&root().join("src"), "rs", &mut sources);
    let (mut kinds, mut vagrants) = (0, 0);
    for path in sources {
        let name = path.strip_prefix(root().join("src")).unwrap().display().to_string();
        let text = read(&path);
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let says = |words: &[&str]| {
            let code = code.lines().filter(|l| !l.trim_start().starts_with("//"));
            code.filter(|l| words.iter().any(|w| l.contains(w))).map(str::to_owned).collect::<Vec<_>>()
        };
        let free = |rooms: &[&str]| name.contains("test") || rooms.iter().any(|room| name.starts_with(room));
        let kind = says(&["Kind::Libvirt", "Kind::Virtualbox"]);
        assert!(free(&["machines/", "host/", "cli/context.rs"]) || kind.is_empty(), "src/{name}: {kind:?}");
        let vagrant =
            says(&["machines::vagrant", "vagrant::USER", ".vagrant/", "\".vagrant\"", "machines::local"]);
        assert!(free(&["machines/"]) || vagrant.is_empty(), "src/{name}: {vagrant:?}");
        (kinds, vagrants) = (kinds + kind.len(), vagrants + vagrant.len());
    }
    assert!(kinds > 10 && vagrants > 5, "{kinds}, {vagrants}");
}

/// What each public function and type is for stands with it. Constants, fields and variants are told where their name
/// does not say all.
#[test]
fn everything_public_is_told() {
    const ITEMS: &[&str] = &["fn ", "const fn ", "struct ", "enum ", "trait ", "type "];
    let mut sources = Vec::new();
    files(&root().join("src"), "rs", &mut sources);
    let mut untold = Vec::new();
    let mut told = 0;
    for path in sources.iter().filter(|p| !p.display().to_string().contains("test")) {
        let text = read(path);
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let lines: Vec<&str> = code.lines().map(str::trim).collect();
        for (i, line) in lines.iter().enumerate() {
            let Some(item) = line.strip_prefix("pub ").filter(|l| ITEMS.iter().any(|i| l.starts_with(i)))
            else {
                continue;
            };
            // Attributes stand between, some of several lines.
            let mut within = false;
            let mut above = lines[..i].iter().rev().skip_while(|l| {
                let attribute = within || l.starts_with("#[") || **l == ")]";
                within = attribute && !l.starts_with("#[");
                attribute
            });
            match above.next().is_some_and(|l| l.starts_with("///") || l.starts_with("$(#[")) {
                true => told += 1,
                false => untold.push(format!("{}: {item}", path.display())),
            }
        }
    }
    assert!(untold.is_empty(), "without a word: {untold:#?}");
    assert!(told > 700, "{told}");
}

/// The keys that have a value, with their default if the schema has one.
fn keys(schema: &Json, path: &str, out: &mut BTreeMap<String, Option<String>>) {
    if let Some(items) = schema.get("items") {
        return keys(items, &format!("{path}[]"), out);
    }
    for (key, part) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let properties = |part: &Json| part["properties"].as_object().filter(|p| !p.is_empty()).cloned();
        // A file is told as a whole, wherever one may stand.
        let file = properties(part).or(properties(&part["items"])).is_some_and(|p| p.contains_key("sha256"));
        if file || properties(part).is_none() {
            let default = part.get("default").map(|d| d.as_str().map_or(d.to_string(), str::to_owned));
            out.insert(path.clone(), default);
        }
        if !file {
            keys(part, &path, out);
        }
    }
}

#[test]
fn the_reference_has_every_key_with_its_default() {
    let mut wanted = BTreeMap::new();
    keys(&p1::internals::spec::schema(), "", &mut wanted);
    assert!(wanted.len() > 25, "{wanted:?}");
    let text = read("docs/spec.md");
    let table: BTreeMap<String, String> =
        rows(text.split("\n## ").next().unwrap_or_default()).into_iter().collect();
    for (key, default) in &wanted {
        let said = table.get(key).unwrap_or_else(|| panic!("docs/spec.md lacks `{key}`"));
        if let Some(default) = default {
            assert_eq!(*said, format!("`{default}`"), "the default of `{key}`");
        }
    }
    let more: Vec<_> = table.keys().filter(|k| !wanted.contains_key(*k)).collect();
    assert!(more.is_empty(), "docs/spec.md has keys that there are not: {more:?}");
}

/// The words of each key that is one of a few.
fn words(schema: &Json, path: &str, out: &mut Vec<(String, Vec<String>)>) {
    if let Some(items) = schema.get("items") {
        return words(items, &format!("{path}[]"), out);
    }
    // Beside a variable in its place.
    let schema = schema["anyOf"]
        .as_array()
        .and_then(|of| of.iter().find(|one| one["enum"].is_array()))
        .unwrap_or(schema);
    if let Some(all) = schema["enum"].as_array() {
        out.push((path.to_owned(), all.iter().filter_map(|w| w.as_str().map(str::to_owned)).collect()));
    }
    for (key, part) in schema["properties"].as_object().into_iter().flatten() {
        words(part, &if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, out);
    }
}

#[test]
fn the_reference_names_each_value_of_a_key_that_has_a_few() {
    let mut all = Vec::new();
    words(&p1::internals::spec::schema(), "", &mut all);
    assert!(all.iter().any(|(key, words)| key == "engine" && words.len() > 2), "{all:?}");
    let text = read("docs/spec.md");
    for (key, words) in all {
        let row = text.lines().find(|l| l.starts_with(&format!("| `{key}` |"))).unwrap_or_default();
        let lacks: Vec<_> = words.iter().filter(|word| !row.contains(&format!("`{word}`"))).collect();
        assert!(lacks.is_empty(), "docs/spec.md does not say what `{key}` means by {lacks:?}");
    }
}

/// What waits: for a time, for another process, for another thread, for the network.
const WAITS: &[&str] = &[
    ".sleep(",
    "thread::sleep(",
    ".recv(",
    ".recv_timeout(",
    ".wait_timeout(",
    "sync::wait(",
    ".join()",
    "poll(&mut",
    "connect_timeout(",
    "process::run(",
    "process::watch(",
    "hand_over(",
    "Lock::take",
    "to_socket_addrs(",
    ".wait_for(",
];

#[test]
fn every_file_that_waits_is_in_the_table_of_waits() {
    let table = read("docs/waits.md");
    let mut sources = Vec::new();
    files(&root().join("src"), "rs", &mut sources);
    let mut waiting = 0;
    for path in sources {
        let name = path.strip_prefix(root().join("src")).unwrap().display().to_string();
        if name.contains("tests") || name.contains("testserver") {
            continue;
        }
        let text = read(&path);
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let code: String =
            code.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        if !WAITS.iter().any(|w| code.contains(w)) {
            continue;
        }
        waiting += 1;
        let room = name.split('/').next().unwrap_or_default();
        let named = table.contains(&format!("`{name}`")) || table.contains(&format!("`{room}/`"));
        assert!(named, "docs/waits.md does not say what src/{name} waits for, and how long at most");
    }
    assert!(waiting > 25, "{waiting}");
    // And what is named is there.
    for name in table.split('`').filter(|w| w.ends_with(".rs") && !w.starts_with("tests/")) {
        assert!(root().join("src").join(name).is_file(), "docs/waits.md names {name}");
    }
    // Of what a user sets, a row names the test that sees it run out.
    let places = FAULTS.iter().map(|(place, file, _)| (*place, *file)).chain([
        ("evidence", "tests/simulated/evidence.rs"),
        ("disturb", "tests/simulated/disturb.rs"),
        ("sim_apps", "tests/simulated/apps.rs"),
        ("engine", "src/engine/tests.rs"),
        ("orphan", "src/os/orphan.rs"),
        ("virtualbox", "src/machines/virtualbox_tests.rs"),
        ("wait", "src/steps/shared/wait.rs"),
        ("access_api", "src/access/api.rs"),
    ]);
    let places: BTreeMap<&str, &str> = places.collect();
    let named: Vec<_> = table.split('`').filter_map(|w| w.split_once("::")).collect();
    assert!(named.len() > 14, "{named:?}");
    for (place, test) in named {
        let file = places.get(place).unwrap_or_else(|| panic!("{place}::{test}"));
        assert!(tests_of(&read(file)).contains(test), "{file} lacks {test}");
    }
    // Every row says how long, and which test sees it run out: by name, or as a kind that names one.
    let (_, kinds) = table.split_once("## Kinds of waits").unwrap();
    let (kinds, rest) = kinds.split_once("## Set in the spec").unwrap();
    let (rest, within) = rest.split_once("## Within these").unwrap();
    let kinds: BTreeSet<&str> = table_rows(kinds).iter().map(|cells| cells[0]).collect();
    assert!(kinds.len() > 5, "{kinds:?}");
    let known = table_rows(rest);
    for cells in &known {
        assert!(cells.len() >= 5 && cells.iter().all(|cell| !cell.is_empty() && *cell != "?"), "{cells:?}");
        let seen = cells.last().unwrap();
        assert!(seen.contains("::") || seen.split(", ").all(|kind| kinds.contains(kind)), "{cells:?}");
    }
    assert!(known.len() > 50 && table_rows(within).len() > 8, "{}", known.len());
}

/// The cells of the tables' rows, without their heads.
fn table_rows(text: &str) -> Vec<Vec<&str>> {
    let rows = text
        .lines()
        .filter(|l| l.starts_with("| ") && !l.ends_with(" test |") && !l.contains("| bounded by"));
    rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// Which k3s an example makes is a channel's to say; only the stand-in's word is a number.
#[test]
fn examples_pin_no_version_that_ages() {
    let mut specs = Vec::new();
    files(&root().join("examples"), "yaml", &mut specs);
    let pinned = |path: &&PathBuf| read(path).lines().any(|l| l.trim_start().starts_with("version: v"));
    let pinned: Vec<_> = specs.iter().filter(pinned).map(|p| p.file_name().unwrap()).collect();
    assert_eq!(pinned, ["stand-in.yaml"]);
}

/// Each on one line, without what only a line's break brings: the marks of a comment, a string that goes on.
fn unbroken(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let line = line.trim_start();
        let line =
            line.strip_prefix("///").or_else(|| line.strip_prefix("//!")).or_else(|| line.strip_prefix("//"));
        line.unwrap_or_default()
    });
    let comments = lines.collect::<Vec<_>>().join(" ");
    let code = text.replace("\\\n", " ");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{}\n{}", words(&code), words(&comments))
}

/// What docs/style.md replaces is not written again: in messages, comments, documents and the help.
#[test]
fn words_that_are_replaced_stay_replaced() {
    let style = read("docs/style.md");
    let table = style.split("## Words that are not used").nth(1).unwrap();
    let rows = table_rows(table);
    let not: Vec<&str> = rows.iter().flat_map(|row| row[0].split(", ")).filter(|w| *w != "not").collect();
    assert!(not.len() > 20, "{not:?}");
    let mut all = Vec::new();
    files(&root().join("src"), "rs", &mut all);
    files(&root().join("docs"), "md", &mut all);
    all.extend(["README.md", "ARCHITECTURE.md", "tests/cmd/help.md"].map(|f| root().join(f)));
    let mut found = Vec::new();
    for file in all.iter().filter(|f| !f.ends_with("style.md")) {
        let text = unbroken(&read(file));
        found.extend(not.iter().filter(|w| text.contains(**w)).map(|w| format!("{}: {w}", file.display())));
    }
    assert!(found.is_empty(), "docs/style.md says what to write instead:\n{}", found.join("\n"));
}

#[test]
fn links_between_texts_lead_somewhere() {
    let mut texts = Vec::new();
    files(root(), "md", &mut texts);
    assert!(texts.len() >= 8, "{texts:?}");
    for path in texts {
        for part in read(&path).split("](").skip(1) {
            let link = part.split(')').next().unwrap_or_default().split('#').next().unwrap_or_default();
            let there = link.is_empty() || link.contains("://") || path.with_file_name(link).exists();
            assert!(there, "{}: {link}", path.display());
        }
    }
}

#[test]
fn the_examples_are_specs_without_a_mistake_or_a_warning() {
    // The demo's files of k3s are built; empty ones do for reading the spec.
    let dir = tempfile::tempdir().unwrap();
    let put = |path: &str, text: &str| {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    };
    put("target/standin/k3s", "");
    put("target/standin/install.sh", "");
    put("examples/demo/k3s/manifest.json", "{}");
    let demo = read("examples/demo/stand-in.yaml");
    assert!(demo.lines().next().unwrap().contains("stand-in"), "its first line says who plays k3s");
    for name in ["demo/cluster.yaml", "demo/stand-in.yaml", "p1/cluster.yaml"] {
        let path = format!("examples/{name}");
        let parsed = p1::internals::spec::load(&put(&path, &read(&path)), &|_| None)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(parsed.warnings, [], "{name}");
    }
    // Those with applications are read where they are: their manifests are looked into.
    let all = [
        ("nginx", 2),
        ("ingress", 10),
        ("namespaces", 2),
        ("failover", 3),
        ("faults", 0),
        ("baked", 0),
        ("session", 0),
        ("mirror", 0),
        ("existing", 0),
        ("lessons", 6),
        ("registry", 0),
    ];
    for (name, objects) in all {
        let parsed =
            p1::internals::spec::load(&root().join("examples").join(name).join("cluster.yaml"), &|_| None)
                .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(parsed.warnings, [], "{name}");
        let plain = parsed.cluster.manifests.iter().filter(|m| !m.kustomize);
        let found: usize = plain.flat_map(|m| m.documents().unwrap()).map(|d| d.objects.len()).sum();
        assert_eq!(found, objects, "{name}");
        assert!(
            read(format!("examples/{name}/README.md")).contains(&format!("cd examples/{name}")),
            "{name}"
        );
    }
    let parsed =
        p1::internals::spec::load(&root().join("examples/provision/cluster.yaml"), &|_| None).unwrap();
    assert_eq!((parsed.warnings.len(), parsed.cluster.provision.len()), (0, 4));
}

/// What stands there beside another tool's file is a spec.
#[test]
fn what_other_tools_say_is_said_in_specs() {
    let text = read("docs/coming-from.md");
    let dir = tempfile::tempdir().unwrap();
    let mut found = 0;
    for part in text.split("\nbecomes\n").skip(1) {
        let lines =
            part.lines().skip_while(|l| l.is_empty()).take_while(|l| l.is_empty() || l.starts_with("    "));
        let spec: String = lines.map(|l| format!("{}\n", l.strip_prefix("    ").unwrap_or(l))).collect();
        let path = dir.path().join("cluster.yaml");
        fs::write(&path, &spec).unwrap();
        let parsed = p1::internals::spec::load(&path, &|_| None).unwrap_or_else(|e| panic!("{spec}\n{e}"));
        assert_eq!(parsed.warnings, [], "{spec}");
        found += 1;
    }
    assert_eq!(found, 4);
}

/// What the cookbook adds to a spec makes one, and its commands are p1's.
#[test]
fn the_cookbook_is_of_specs_and_commands_that_there_are() {
    let text = read("docs/cookbook.md");
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    };
    let object = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n";
    put("cni/x.yaml", object);
    put("dashboard.yaml", object);
    let (mut specs, mut commands) = (0, 0);
    for block in text.split("\n\n").filter(|block| block.starts_with("    ")) {
        let lines: Vec<&str> = block.lines().map(|l| l.strip_prefix("    ").unwrap_or(l)).collect();
        let first = lines[0].split(':').next().unwrap();
        if ["k3s", "hosts", "proxy", "namespaces"].contains(&first) {
            let spec = format!("name: x\nnodes: [{{name: server, role: server}}]\n{}\n", lines.join("\n"));
            let parsed = p1::internals::spec::load(&put("cluster.yaml", &spec), &|_| None)
                .unwrap_or_else(|e| panic!("{spec}\n{e}"));
            assert_eq!(parsed.warnings, [], "{spec}");
            specs += 1;
        }
        for line in lines.iter().filter(|l| l.starts_with("p1 ")) {
            let words = shlex::split(line.split(" #").next().unwrap()).unwrap();
            let cut = words.iter().position(|w| w == "--").unwrap_or(words.len());
            // Its options are read, and then its help is shown.
            let out = std::process::Command::new(env!("CARGO_BIN_EXE_p1"))
                .args(&words[1..cut])
                .arg("--help")
                .current_dir(dir.path())
                .output()
                .unwrap();
            let kubectl = words[1] == "kubectl";
            assert!(out.status.success() || kubectl, "{line}: {}", String::from_utf8_lossy(&out.stderr));
            commands += 1;
        }
    }
    assert!(specs >= 4 && commands >= 8, "{specs}, {commands}");
}

/// Where the tests of docs/faults.md are. Of those marked, every test is a fault's and has a row.
const FAULTS: &[(&str, &str, bool)] = &[
    ("fake", "tests/fake.rs", false),
    ("sshd", "tests/sshd.rs", false),
    ("cli", "tests/cli.rs", false),
    ("artifacts", "src/artifacts/tests.rs", false),
    ("kubectl", "src/access/kubectl.rs", false),
    ("system", "src/steps/system.rs", false),
    ("plans", "src/verbs/mod.rs", false),
    ("sim_apps", "tests/simulated/apps.rs", false),
    ("sim_change", "tests/simulated/change.rs", false),
    ("verbs", "tests/simulated/verbs.rs", false),
    ("servers", "tests/simulated/servers.rs", false),
    ("faults", "tests/faults.rs", true),
    ("sim_faults", "tests/simulated/faults.rs", true),
    ("vm", "tests/vm.rs", false),
    ("sim_servers", "tests/simulated/servers.rs", false),
    ("trust", "tests/simulated/trust.rs", true),
];

/// Faults at which p1 ends before a run: what mends them is not p1's, and then the same command is called again.
const BY_HAND: &[&str] =
    &["the_state_directory_is_read_only", "a_libvirt_network_of_that_name_or_subnet_is_there"];

/// The names of the tests in a source.
fn tests_of(source: &str) -> BTreeSet<&str> {
    source.split("#[test]").skip(1).filter_map(|after| after.split("fn ").nth(1)?.split('(').next()).collect()
}

#[test]
fn every_fault_has_its_test_and_every_faults_test_its_row() {
    let text = read("docs/faults.md");
    let mut told = BTreeMap::new();
    let (mut rows, mut advised) = (0, 0);
    let sources: BTreeMap<&str, String> =
        FAULTS.iter().map(|(place, file, _)| (*place, read(file))).collect();
    for line in text.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| fault")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 6, "{line}");
        assert!(cells.iter().all(|c| !c.is_empty()), "{line}");
        let (place, test) = cells[5].trim_matches('`').split_once("::").unwrap_or_else(|| panic!("{line}"));
        told.entry(place).or_insert_with(BTreeSet::new).insert(test);
        rows += 1;
        // What p1 advises is run by the test as p1 says it: it leads on. So where p1 fails with steps of a run, and the way
        // back is p1's.
        let of_p1 = cells[3].split(", ").any(|code| code == "1") && cells[4].contains("p1 ");
        if of_p1 && ["faults", "sim_faults"].contains(&place) && !BY_HAND.contains(&test) {
            let source = sources[place].split(&format!("fn {test}(")).nth(1).unwrap_or_default();
            let body = source.split("\n}\n").next().unwrap_or_default();
            let follows = ["fake.follow(", "sim.follow(", "recovers("].iter().any(|f| body.contains(f));
            assert!(follows, "{test} does not do what p1 says is next");
            advised += 1;
        }
    }
    assert!(rows > 25 && advised > 20, "{rows}, {advised}");
    for (place, file, every) in FAULTS {
        let tests = tests_of(&sources[place]);
        let named = told.remove(place).unwrap_or_default();
        let missing: Vec<_> = named.difference(&tests).collect();
        assert!(missing.is_empty(), "{file} lacks {missing:?}");
        let untold: Vec<_> = tests.difference(&named).collect();
        assert!(!every || untold.is_empty(), "docs/faults.md lacks {untold:?}");
    }
    assert!(told.is_empty(), "tests of unknown places: {told:?}");
}
