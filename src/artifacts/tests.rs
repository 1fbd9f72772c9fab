//! Against a real HTTP server on loopback.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::testserver::{Reply, Server, gate};
use super::*;
use crate::explain::Explain;
use crate::k3s::Origins;
use crate::os::Cancel;
use crate::os::cancel::Level;
use crate::spec::{Artifacts, Release, Retry, Source};

const SCRIPT: &[u8] = b"#!/bin/sh\nexit 0\n";

struct Lab {
    server: Server,
    dir: TempDir,
    net: Net,
    bounds: Bounds,
    cancel: Cancel,
}

fn sum(bytes: &[u8]) -> String {
    crate::os::hash::sha256(bytes)
}

/// Some bytes that do not repeat soon.
fn body(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * i / 7 + i) as u8).collect()
}

impl Lab {
    fn new() -> Self {
        let server = Server::start();
        let origins = Origins {
            channels: server.url("/channels"),
            releases: server.url("/releases"),
            source: server.url("/source"),
        };
        let retry =
            Retry { attempts: 3, backoff: Duration::from_millis(5), max_backoff: Duration::from_millis(10) };
        let bounds = Bounds { silence: Duration::from_secs(10), total: Duration::from_secs(20), retry };
        let net = Net { origins, ..Net::default() };
        Self { server, dir: tempfile::tempdir().unwrap(), net, bounds, cancel: Cancel::new() }
    }

    fn cache(&self) -> Cache {
        Cache { dir: self.dir.path().join("cache") }
    }

    /// A release with this binary, and `stable` pointing to it.
    fn release(&self, binary: &[u8]) {
        let answer = r#"{"data":[{"name":"stable","latest":"v1.34.1+k3s1"}]}"#;
        self.server.on("/channels", [Reply::Whole(answer.into())]);
        let list = format!("{}  k3s\n", sum(binary));
        self.server.on("/releases/v1.34.1%2Bk3s1/sha256sum-amd64.txt", [Reply::Whole(list.into())]);
        self.server.on("/releases/v1.34.1%2Bk3s1/k3s", [Reply::Whole(binary.into())]);
        self.server.on("/source/v1.34.1%2Bk3s1/install.sh", [Reply::Whole(SCRIPT.into())]);
    }

    fn resolve(&self, release: &Release, artifacts: &Artifacts) -> Result<Resolved, Error> {
        resolve(release, artifacts, Arch::Amd64, &self.cache(), &self.net, &self.bounds, &self.cancel)
    }

    fn fetch(&self, resolved: &Resolved) -> Result<Files, Error> {
        fetch(resolved, &self.cache(), &self.net, &self.bounds, &mut |_| {}, &self.cancel)
    }

    fn stable(&self) -> Result<Files, Error> {
        self.fetch(&self.resolve(&Release::Channel("stable".into()), &Artifacts::default())?)
    }

    /// One file by address, with everything else local.
    fn one(&self, path: &str, promised: &[u8]) -> Result<File, Error> {
        let script = self.dir.path().join("install.sh");
        fs::write(&script, SCRIPT).unwrap();
        let artifacts = Artifacts {
            binary: Some(Source::Url { url: self.server.url(path), sha256: sum(promised) }),
            installer: Some(Source::Path(script)),
            images: Vec::new(),
            dir: None,
        };
        let resolved = self.resolve(&Release::Version("v1.34.1+k3s1".into()), &artifacts)?;
        self.fetch(&resolved).map(|files| files.binary)
    }
}

#[test]
fn a_channel_is_fetched_once_and_then_nothing_is_asked_or_hashed() {
    let lab = Lab::new();
    let binary = body(300_000);
    lab.release(&binary);
    let files = lab.stable().unwrap();
    assert_eq!(files.version.as_deref(), Some("v1.34.1+k3s1"));
    assert_eq!((files.binary.sha256.as_str(), files.binary.len), (sum(&binary).as_str(), 300_000));
    assert_eq!(fs::read(&files.binary.path).unwrap(), binary);
    assert_eq!(fs::metadata(&files.binary.path).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::read(&files.installer.path).unwrap(), SCRIPT);
    assert_eq!(lab.server.log().len(), 4);

    // Hashing would be reported.
    let resolved = lab.resolve(&Release::Channel("stable".into()), &Artifacts::default()).unwrap();
    assert_eq!(resolved.installer.sha256, Some(sum(SCRIPT)));
    let mut seen = 0;
    let again =
        fetch(&resolved, &lab.cache(), &lab.net, &lab.bounds, &mut |_| seen += 1, &lab.cancel).unwrap();
    assert_eq!((again, seen, lab.server.log().len()), (files, 0, 4));
}

#[test]
fn offline_uses_what_is_there_and_names_what_is_not() {
    let mut lab = Lab::new();
    lab.release(b"k3s");
    lab.stable().unwrap();
    lab.net.offline = true;
    lab.stable().unwrap();

    // Two hours later: the channel's answer is old, which is worth a word.
    let channels = fs::read_dir(lab.cache().dir).unwrap().flatten().map(|e| e.path());
    let kept = channels.into_iter().find(|p| p.to_string_lossy().contains("channels-")).unwrap();
    let text = fs::read_to_string(&kept).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["at"] = (jiff::Timestamp::now() - jiff::Span::new().hours(2)).to_string().into();
    fs::write(&kept, value.to_string()).unwrap();
    let resolved = lab.resolve(&Release::Channel("stable".into()), &Artifacts::default()).unwrap();
    assert_eq!(resolved.warnings.len(), 1);
    assert!(resolved.warnings[0].contains("by an answer of 2h00m ago"), "{:?}", resolved.warnings);

    let error = lab.resolve(&Release::Version("v1.35.0+k3s1".into()), &Artifacts::default()).unwrap_err();
    assert!(error.to_string().starts_with("the checksums of k3s v1.35.0+k3s1"), "{error}");
    fs::remove_dir_all(lab.cache().dir).unwrap();
    assert!(matches!(lab.stable(), Err(Error::Offline { .. })));
}

#[test]
fn a_damaged_file_of_the_cache_is_found_and_fetched_again() {
    let lab = Lab::new();
    let binary = body(1000);
    lab.release(&binary);
    let files = lab.stable().unwrap();
    for path in [&files.binary.path, &files.installer.path] {
        let before = lab.server.log().len();
        fs::write(path, "x").unwrap();
        assert_eq!(lab.stable().unwrap(), files);
        assert_eq!(lab.server.log().len(), before + 1);
    }
    // A touch is no damage: it is hashed and believed.
    fs::File::open(&files.binary.path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let before = lab.server.log().len();
    assert_eq!(lab.stable().unwrap(), files);
    assert_eq!(lab.server.log().len(), before);
}

#[test]
fn a_cut_is_gone_on_with_and_a_server_without_ranges_is_started_over() {
    let lab = Lab::new();
    let binary = body(300_000);
    lab.server.on("/cut", [Reply::Cut(binary.clone(), 100_000), Reply::Whole(binary.clone())]);
    assert_eq!(lab.one("/cut", &binary).unwrap().len, 300_000);
    assert_eq!(lab.server.log(), ["/cut", "/cut bytes=100000-"]);

    lab.server.on("/plain", [Reply::Cut(binary.clone(), 7), Reply::NoRange(binary.clone())]);
    fs::remove_dir_all(lab.cache().dir).unwrap();
    assert_eq!(lab.one("/plain", &binary).unwrap().sha256, sum(&binary));
}

#[test]
fn halves_of_two_files_do_not_become_one() {
    let lab = Lab::new();
    let (old, new) = (body(5000), vec![7; 5000]);
    lab.server.on("/f", [Reply::Cut(old.clone(), 2000)]);
    assert!(lab.one("/f", &new).unwrap_err().transient());
    lab.server.on("/f", [Reply::Whole(new.clone())]);
    assert_eq!(lab.one("/f", &new).unwrap().sha256, sum(&new));
    let log = lab.server.log();
    assert!(log[log.len() - 2].starts_with("/f bytes=") && log[log.len() - 1] == "/f", "{log:?}");
}

#[test]
fn a_file_with_a_longer_sum_is_gone_on_with_checked_and_kept() {
    let lab = Lab::new();
    let image = body(300_000);
    let digits = Sum::Sha512(String::new()).of(&image[..]).unwrap();
    let get = |net: &Net, digits: &str| {
        let (url, sum) = (lab.server.url("/a.qcow2"), Sum::read(digits).unwrap());
        fetch_sum(&url, &sum, &lab.cache(), net, &lab.bounds, &mut |_| {}, &lab.cancel)
    };
    let offline = Net { offline: true, ..lab.net.clone() };
    assert!(matches!(get(&offline, &digits), Err(Error::Offline { .. })));
    lab.server.on("/a.qcow2", [Reply::Cut(image.clone(), 100_000), Reply::Whole(image.clone())]);
    let file = get(&lab.net, &digits).unwrap();
    assert_eq!(fs::read(&file.path).unwrap(), image);
    assert_eq!(lab.server.log(), ["/a.qcow2", "/a.qcow2 bytes=100000-"]);
    assert_eq!(get(&offline, &digits).unwrap(), file);
    let other = "0".repeat(128);
    let error = get(&lab.net, &other).unwrap_err();
    assert!(matches!(&error, Error::Checksum { wanted, got, .. } if *wanted == other && *got == digits));
    assert_eq!(fs::read_dir(lab.cache().dir.join("sha512").join(&other)).unwrap().count(), 1, "the lock");
}

#[test]
fn a_part_that_is_already_whole_is_taken() {
    let lab = Lab::new();
    let binary = body(5000);
    let folder = lab.cache().dir.join("sha256").join(sum(&binary));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("f.part"), &binary).unwrap();
    lab.server.on("/f", [Reply::Whole(binary.clone())]);
    assert_eq!(lab.one("/f", &binary).unwrap().len, 5000);
    assert_eq!(lab.server.log(), ["/f bytes=5000-"]);
}

#[test]
fn passing_errors_are_tried_again_and_lasting_ones_are_not() {
    let lab = Lab::new();
    let busy = Reply::Status(429, "Retry-After: 0\r\n");
    lab.server.on("/f", [Reply::Status(503, ""), busy, Reply::Whole(b"ok".into())]);
    lab.one("/f", b"ok").unwrap();
    assert_eq!(lab.server.log().len(), 3);

    lab.server.on("/g", [Reply::Status(502, "")]);
    let error = lab.one("/g", b"1").unwrap_err();
    assert!(matches!(error, Error::Status { status: 502, .. }), "{error}");
    assert_eq!(lab.server.log().len(), 6);

    for (path, status) in [("/absent", 404), ("/denied", 403)] {
        if status == 403 {
            lab.server.on(path, [Reply::Status(403, "")]);
        }
        let before = lab.server.log().len();
        let error = lab.one(path, path.as_bytes()).unwrap_err();
        assert_eq!(lab.server.log().len(), before + 1);
        let text = error.to_string();
        assert!(text.contains(&format!("{path} answered {status}")) && error.hint().is_some(), "{text}");
    }
}

#[test]
fn a_wrong_checksum_and_a_login_page_are_refused() {
    let lab = Lab::new();
    lab.server.on("/f", [Reply::Whole(b"other".into())]);
    let error = lab.one("/f", b"promised").unwrap_err();
    assert!(matches!(&error, Error::Checksum { got, .. } if *got == sum(b"other")), "{error}");
    assert_eq!(lab.server.log().len(), 1);

    lab.release(b"k3s");
    lab.server.on("/source/v1.34.1%2Bk3s1/install.sh", [Reply::Whole(b"<html>".into())]);
    let error = lab.stable().unwrap_err();
    assert!(error.to_string().ends_with("it is not a shell script"), "{error}");
    lab.server.on("/channels", [Reply::Whole(b"<html>".into())]);
    fs::remove_dir_all(lab.cache().dir).unwrap();
    assert!(matches!(lab.stable(), Err(Error::Answer { .. })));
}

#[test]
fn silence_and_slowness_are_bounded() {
    let mut lab = Lab::new();
    lab.bounds.retry.attempts = 1;
    lab.bounds.silence = Duration::from_millis(100);
    lab.server.on("/stall", [Reply::Stall(body(100), 50)]);
    assert!(matches!(lab.one("/stall", b"x"), Err(Error::Silence { .. })));

    lab.bounds.silence = Duration::from_secs(10);
    lab.bounds.total = Duration::from_millis(200);
    lab.server.on("/drip", [Reply::Drip(body(10_000), Duration::from_millis(2))]);
    let start = Instant::now();
    assert!(matches!(lab.one("/drip", b"x"), Err(Error::TooSlow { .. })));
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn an_abort_ends_a_transfer_at_once() {
    let lab = Lab::new();
    lab.server.on("/stall", [Reply::Stall(body(100_000), 70_000)]);
    let script = lab.dir.path().join("i");
    fs::write(&script, SCRIPT).unwrap();
    let artifacts = Artifacts {
        binary: Some(Source::Url { url: lab.server.url("/stall"), sha256: sum(b"x") }),
        installer: Some(Source::Path(script)),
        images: Vec::new(),
        dir: None,
    };
    let resolved = lab.resolve(&Release::Channel("stable".into()), &artifacts).unwrap();
    assert_eq!(resolved.version, None);
    let start = Instant::now();
    let mut watch = |p: Progress| {
        if p.done == 70_000 {
            lab.cancel.raise(Level::Abort);
        }
    };
    let error = fetch(&resolved, &lab.cache(), &lab.net, &lab.bounds, &mut watch, &lab.cancel).unwrap_err();
    assert!(error.cancelled(), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn of_two_that_need_a_file_one_downloads_and_the_other_waits() {
    let lab = Lab::new();
    let binary = body(200_000);
    lab.release(&binary);
    let (reply, open) = gate(&binary);
    lab.server.on("/releases/v1.34.1%2Bk3s1/k3s", [reply]);
    let resolved = lab.resolve(&Release::Channel("stable".into()), &Artifacts::default()).unwrap();
    std::thread::scope(|scope| {
        let run = || {
            let mut watch = |p: Progress| {
                if p.doing == Doing::Waiting {
                    // The other one has the lock; only now may the server answer it.
                    let _ = open.send(());
                }
            };
            fetch(&resolved, &lab.cache(), &lab.net, &lab.bounds, &mut watch, &lab.cancel).unwrap()
        };
        let both = [scope.spawn(run), scope.spawn(run)].map(|thread| thread.join().unwrap());
        assert_eq!(both[0], both[1]);
    });
    let downloads = lab.server.log().iter().filter(|l| l.ends_with("/k3s")).count();
    assert_eq!(downloads, 1);
}

fn program(path: &Path, version: &str) {
    fs::write(path, format!("#!/bin/sh\necho x >>$0.ran\necho 'k3s version {version} (abc)'\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn given_files_need_no_network_and_a_given_binary_is_asked_once() {
    let mut lab = Lab::new();
    lab.net.offline = true;
    let (k3s, script) = (lab.dir.path().join("k3s"), lab.dir.path().join("install.sh"));
    program(&k3s, "v1.21.2+k3s1");
    fs::write(&script, SCRIPT).unwrap();
    let image = lab.dir.path().join("images.tar.zst");
    let artifacts = Artifacts {
        binary: Some(Source::Path(k3s.clone())),
        installer: Some(Source::Url { url: format!("file://{}", script.display()), sha256: sum(SCRIPT) }),
        images: vec![Source::Path(image.clone())],
        dir: None,
    };
    let stable = Release::Channel("stable".into());
    let error = lab.resolve(&stable, &artifacts).unwrap_err();
    assert!(error.to_string().contains("images.tar.zst: No such file"), "{error}");
    fs::write(image, "i").unwrap();
    for _ in 0..2 {
        let resolved = lab.resolve(&stable, &artifacts).unwrap();
        assert_eq!(resolved.version.as_deref(), Some("v1.21.2+k3s1"));
        assert!(resolved.binary.sha256.is_some());
        let files = lab.fetch(&resolved).unwrap();
        assert_eq!((files.binary.path, files.images[0].name.as_str()), (k3s.clone(), "images.tar.zst"));
    }
    assert_eq!(fs::read_to_string(lab.dir.path().join("k3s.ran")).unwrap(), "x\n");
    let error = lab.resolve(&Release::Version("v1.34.1+k3s1".into()), &artifacts).unwrap_err();
    assert!(matches!(error, Error::OtherVersion { .. }), "{error}");

    program(&k3s, "v1.22.0+k3s1");
    let resolved = lab.resolve(&stable, &artifacts).unwrap();
    assert_eq!(resolved.version.as_deref(), Some("v1.22.0+k3s1"));
    fs::write(&script, "changed").unwrap();
    assert!(matches!(lab.fetch(&resolved), Err(Error::Checksum { .. })));
}

#[test]
fn a_refused_connection_and_a_wrong_proxy_are_told() {
    let mut lab = Lab::new();
    lab.bounds.retry.attempts = 1;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    lab.net.http_proxy = Some(format!("http://{free}"));
    lab.server.on("/f", [Reply::Whole(b"ok".into())]);
    assert!(matches!(lab.one("/f", b"ok"), Err(Error::Connection { .. })));
    lab.net.no_proxy = Some("127.0.0.0/8".into());
    lab.one("/f", b"ok").unwrap();
    lab.net.ca_file = Some(lab.dir.path().join("install.sh"));
    assert!(matches!(lab.one("/g", b"no"), Err(Error::NoRoots(_))));
}

/// `p1 artifacts fetch` here, and a host without a connection there.
#[test]
fn a_folder_has_all_that_another_host_needs() {
    let lab = Lab::new();
    let (binary, arm, images) = (body(30_000), body(20_000), body(10_000));
    lab.release(&binary);
    let release = "/releases/v1.34.1%2Bk3s1";
    let on =
        |name: &str, body: &[u8]| lab.server.on(&format!("{release}/{name}"), [Reply::Whole(body.into())]);
    let list = format!("{}  k3s\n{}  k3s-airgap-images-amd64.tar.zst\n", sum(&binary), sum(&images));
    on("sha256sum-amd64.txt", list.as_bytes());
    let list = format!("{}  k3s-arm64\n{}  k3s-airgap-images-arm64.tar\n", sum(&arm), sum(&images));
    on("sha256sum-arm64.txt", list.as_bytes());
    on("k3s-arm64", &arm);
    on("k3s-airgap-images-amd64.tar.zst", &images);
    on("k3s-airgap-images-arm64.tar", &images);
    let dir = lab.dir.path().join("folder");
    let stable = Release::Channel("stable".into());
    let gather = |artifacts: &Artifacts, archs: &[Arch]| {
        let cache = lab.cache();
        let with = (&cache, &lab.net, &lab.bounds);
        folder::gather(&dir, &stable, artifacts, archs, with, &mut |_| {}, &mut |_| {}, &lab.cancel)
    };
    let manifest = gather(&Artifacts::default(), &[Arch::Amd64, Arch::Arm64]).unwrap();
    assert_eq!(manifest.k3s.as_deref(), Some("v1.34.1+k3s1"));
    assert_eq!(folder::Manifest::read(&dir).unwrap(), manifest);
    let asked = lab.server.log();
    gather(&Artifacts::default(), &[Arch::Amd64, Arch::Arm64]).unwrap();
    assert_eq!(lab.server.log(), asked, "what was fetched is not fetched again");

    // There: another cache, and whatever is asked for is told.
    let there = Cache { dir: lab.dir.path().join("other") };
    let given = Artifacts { dir: Some(dir.clone()), ..Artifacts::default() };
    let ask =
        |release: &Release, arch| resolve(release, &given, arch, &there, &lab.net, &lab.bounds, &lab.cancel);
    for (arch, k3s) in [(Arch::Amd64, &binary), (Arch::Arm64, &arm)] {
        let resolved = ask(&stable, arch).unwrap();
        assert!(missing(&resolved).is_empty());
        let files = fetch(&resolved, &there, &lab.net, &lab.bounds, &mut |_| {}, &lab.cancel).unwrap();
        assert_eq!(fs::read(&files.binary.path).unwrap(), *k3s);
        assert_eq!((files.images.len(), fs::read(&files.images[0].path).unwrap()), (1, images.clone()));
        assert_eq!(files.version.as_deref(), Some("v1.34.1+k3s1"));
    }
    assert_eq!(lab.server.log(), asked, "nothing was asked for");
    let error = |release: &Release, arch| ask(release, arch).unwrap_err().to_string();
    assert!(error(&stable, Arch::S390x).contains("has nothing for s390x, only for amd64 and arm64"));
    let other = Release::Version("v1.33.0+k3s1".into());
    assert!(error(&other, Arch::Amd64).contains("has k3s v1.34.1+k3s1, and v1.33.0+k3s1 is wanted"));

    // A file that was changed is neither used nor passed over.
    let path = dir.join("amd64/k3s");
    fs::write(&path, "other").unwrap();
    let resolved = ask(&stable, Arch::Amd64).unwrap();
    let wrong = fetch(&resolved, &there, &lab.net, &lab.bounds, &mut |_| {}, &lab.cancel).unwrap_err();
    assert!(matches!(wrong, Error::Checksum { .. }), "{wrong}");
    fs::remove_file(dir.join("arm64/install.sh")).unwrap();
    let bad = folder::verify(&dir, &mut |_| {}, &lab.cancel).unwrap().1;
    let bad: Vec<_> = bad.iter().map(|(path, why)| (path.to_str().unwrap(), why.as_str())).collect();
    assert_eq!(bad, [("amd64/k3s", "it has another checksum"), ("arm64/install.sh", "it is not there")]);
    gather(&Artifacts::default(), &[Arch::Amd64, Arch::Arm64]).unwrap();
    assert!(folder::verify(&dir, &mut |_| {}, &lab.cancel).unwrap().1.is_empty());

    // What a manifest says is held to what it may say: it becomes paths and words on nodes.
    let file = dir.join("manifest.json");
    let good = fs::read_to_string(&file).unwrap();
    for (from, to, says) in [
        ("\"k3s\": \"v1.34.1+k3s1\"", "\"k3s\": \"v1.34.1+k3s1; rm -rf /\"", "which is no version of k3s"),
        ("\"wanted\": \"stable\"", "\"wanted\": \"$(id)\"", "neither a version nor a channel"),
        ("\"name\": \"install.sh\"", "\"name\": \"../../etc/passwd\"", "which is no name of a file"),
        ("\"path\": \"amd64/k3s\"", "\"path\": \"/etc/passwd\"", "which is not in there"),
        (&*sum(&binary), "-", "without a SHA-256 sum"),
        ("\"amd64\": {", "\"amd64 \": {", "which k3s does not run on"),
    ] {
        assert!(good.contains(from), "{from}");
        fs::write(&file, good.replace(from, to)).unwrap();
        let error = folder::verify(&dir, &mut |_| {}, &lab.cancel).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    fs::write(&file, format!("\u{feff}{good}")).unwrap();
    folder::Manifest::read(&dir).unwrap();
    fs::write(&file, good).unwrap();

    let own = Artifacts { binary: Some(Source::Path(path)), ..Artifacts::default() };
    assert!(matches!(gather(&own, &[Arch::Amd64, Arch::Arm64]), Err(Error::OneArch)));
    for text in ["{}", "{\"v\": 9}", "<html>"] {
        fs::write(dir.join("manifest.json"), text).unwrap();
        assert!(matches!(ask(&stable, Arch::Amd64), Err(Error::Folder { .. })), "{text}");
    }
}
