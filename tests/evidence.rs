//! What p1 shows when something is wrong, and what it never shows; who may work on a cluster, and how long
//! anything is waited for. With a scripted vagrant and virsh, and peers that never answer. It takes root.

#[path = "support/fake.rs"]
mod fake;
#[path = "support/run.rs"]
mod run;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use fake::Fake;
use nix::sys::signal::Signal;
use run::{Done, until};

// ---------------------------------------------------------------------------------------------
// Evidence and secrets

/// The texts of a bundle by their path in it; its own mode and those within are looked at.
fn bundle(fake: &Fake, args: &[&str], name: &str) -> (Done, BTreeMap<String, String>) {
    use std::os::unix::fs::PermissionsExt;
    let mut line = vec!["logs", "--bundle", name];
    line.extend(args);
    let done = fake.run(&line).exits(0);
    let file = fake.at(name);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let dir = fake.at(&format!("{name}.dir"));
    fs::create_dir(&dir).unwrap();
    let tar = Command::new("tar").arg("-xzpf").arg(&file).arg("-C").arg(&dir).status().unwrap();
    assert!(tar.success());
    let mut texts = BTreeMap::new();
    let mut folders = vec![dir.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let (path, mode) = (entry.path(), entry.metadata().unwrap().permissions().mode() & 0o77);
            assert_eq!(mode, 0, "{}", path.display());
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let part: PathBuf = path.strip_prefix(&dir).unwrap().components().skip(1).collect();
            texts.insert(part.display().to_string(), fs::read_to_string(&path).unwrap());
        }
    }
    fs::remove_dir_all(dir).unwrap();
    let left: Vec<_> = fs::read_dir(fake.dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(!left.iter().any(|n| n.to_string_lossy().starts_with(".p1-bundle")), "{left:?}");
    (done, texts)
}

#[test]
fn evidence_of_a_cluster_that_was_never_made() {
    let fake = Fake::new("");
    let (done, texts) = bundle(&fake, &[], "b.tar.gz");
    assert_eq!(done.stdout(), "b.tar.gz\n");
    done.says(&["the cluster has not been made"]);
    for part in
        ["SUMMARY.txt", "spec/cluster.yaml", "rendered/Vagrantfile", "host/doctor.txt", "host/ip-addr.txt"]
    {
        assert!(texts.get(part).is_some_and(|t| t.len() > 20), "{part}: {:?}", texts.keys());
    }
    assert!(texts["SUMMARY.txt"].contains("nothing has been run yet"));
    assert!(!fake.at(".p1").exists(), "looking makes nothing");
    fake.run(&["logs", "--bundle", "b.tar.gz"]).exits(2).says(&["exists already"]);
    // Its own name has the time.
    let name = fake.run(&["logs", "--bundle"]).exits(0).stdout();
    assert!(name.starts_with("p1-fake-20") && name.ends_with("Z.tar.gz\n"), "{name}");
    let json = fake.run(&["-o", "json", "logs", "--bundle", "c.tar.gz"]).exits(0);
    let line: serde_json::Value = serde_json::from_str(json.stdout().trim()).unwrap();
    assert!(line["v"] == 1 && line["bundle"] == "c.tar.gz" && line["bytes"].as_u64() > Some(500), "{line}");
    assert_eq!(line["lacks"][0]["part"], "nodes");
    assert_eq!(json.stderr(), "");
}

/// Nodes that do not answer, a p1 that is at work, and secrets in everything that can have one.
#[test]
fn evidence_has_no_secret_and_waits_for_nobody() {
    let secrets = ["registry-pa55word", "s3-secret-k3y", "db-pa55", "url-pa55", "flag-pa55word"];
    let fake = Fake::new(
        "begin server; begin worker; cat \"$VAGRANT_CWD/token\"; cat \"$VAGRANT_CWD/id_ed25519\"; hang",
    );
    fake.spec(
        "  server_config:\n    etcd-s3-secret-key: s3-secret-k3y\n    datastore-endpoint: 'mysql://k3s:db-pa55@tcp(db)/k3s'\n    \
         kube-apiserver-arg: [oidc-client-secret=flag-pa55word]\n  \
         registries:\n    mirrors: {docker.io: {endpoint: ['https://u:url-pa55@mirror.test']}}\n    \
         configs: {mirror.test: {auth: {username: u, password: registry-pa55word}}}\n\
         timeouts: {ssh: 60s}\nretry: {attempts: 1}\n",
    );
    let running = fake.start(&["-v", "up"]);
    fake.hanging();
    let tokens = fs::read_to_string(fake.at(".p1/fake/token")).unwrap();
    let tokens = tokens.lines().map(|l| l.split_once('=').unwrap().1.to_owned());
    let key = fs::read_to_string(fake.at(".p1/fake/id_ed25519")).unwrap();
    let key = key.lines().filter(|l| !l.starts_with("-----")).map(str::to_owned);
    let secrets: Vec<String> = secrets.map(str::to_owned).into_iter().chain(tokens).chain(key).collect();
    assert!(secrets.len() > 9);
    let log = fake.at(".p1/fake/logs");
    until("vagrant said them", || files_below(&log).values().any(|t| t.contains("server=***")));

    let begun = Instant::now();
    let (done, texts) = bundle(&fake, &[], "b.tar.gz");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    // Neither node can be reached from here.
    done.says(&["nodes/server", "nodes/worker"]);
    assert!(texts["SUMMARY.txt"].contains("p1 up works on it (pid"), "{}", texts["SUMMARY.txt"]);
    for part in ["state/Vagrantfile", "state/lock", "rendered/server/config.yaml", "host/machines.txt"] {
        assert!(texts.contains_key(part), "{part}: {:?}", texts.keys());
    }
    assert!(texts.keys().any(|k| k.starts_with("runs/")) && texts.keys().any(|k| k.ends_with("vagrant.log")));
    assert!(texts["spec/cluster.yaml"].contains("username: u"));
    running.signal(Signal::SIGINT);
    running.until_said("press Ctrl-C again");
    running.signal(Signal::SIGINT);
    let said = running.end().exits(130);

    // What a failing run leaves and says.
    fake.spec(&format!("{}timeouts: {{ssh: 500ms}}\nretry: {{attempts: 1}}\n", "  config: {}\n"));
    fake.up("echo \"failed with $(cat \"$VAGRANT_CWD/token\") --token x-flag\" >&2; exit 1");
    let failed = fake.run(&["-o", "json", "up"]).exits(1);
    let closing = fake.run(&["up"]).exits(1).says(&["p1 retry", "p1 logs --bundle"]);
    fake.run(&["render"]).exits(0);
    let (_, after) = bundle(&fake, &["-o", "json"], "c.tar.gz");
    assert!(after["SUMMARY.txt"].contains("server/vm failed"), "{}", after["SUMMARY.txt"]);

    let mut all: BTreeMap<String, String> = files_below(&fake.at(".p1"));
    for kept in ["token", "id_ed25519"] {
        assert!(all.remove(&fake.at(".p1/fake").join(kept).display().to_string()).is_some());
    }
    assert!(all.len() > 12, "{:?}", all.keys());
    for (bundle, texts) in [("b", texts), ("c", after)] {
        all.extend(texts.into_iter().map(|(part, text)| (format!("{bundle}: {part}"), text)));
    }
    for (name, done) in [("up -v", said), ("up -o json", failed), ("up", closing)] {
        all.insert(name.to_owned(), done.stdout() + &done.stderr());
    }
    for (name, text) in &all {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{name} has {secret}:\n{text}");
        }
    }
}

fn files_below(dir: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type().unwrap() {
            t if t.is_dir() => all.extend(files_below(&entry.path())),
            t if t.is_file() => {
                let text = String::from_utf8_lossy(&fs::read(entry.path()).unwrap()).into_owned();
                all.insert(entry.path().display().to_string(), text);
            }
            _ => {}
        }
    }
    all
}
