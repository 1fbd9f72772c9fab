use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use super::*;

fn now() -> Timestamp {
    "2026-11-29T00:00:00Z".parse().unwrap()
}

fn store(dir: &Path) -> Images {
    Images::new(dir.join("images"))
}

fn put(images: &Images, bytes: &[u8]) -> Digest {
    let mut incoming = images.receive(None, 1 << 20).unwrap();
    incoming.push(bytes).unwrap();
    incoming.finish().unwrap().0
}

fn text(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// An image of two platforms, of which a node has only its own: its blobs, the index first.
fn image(seed: &str) -> Vec<Vec<u8>> {
    let part = |bytes: &[u8]| json!({"mediaType": "x", "digest": format!("sha256:{}", hash::sha256(bytes)), "size": bytes.len()});
    let (layer, config) =
        (format!("layer {seed}").into_bytes(), text(&json!({"architecture": "amd64", "seed": seed})));
    let manifest = text(&json!({"schemaVersion": 2, "config": part(&config), "layers": [part(&layer)]}));
    let mut ours = part(&manifest);
    ours["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let mut other = part(b"never here");
    other["platform"] = json!({"os": "linux", "architecture": "arm64"});
    let index = text(&json!({"schemaVersion": 2, "manifests": [other, ours]}));
    vec![index, manifest, config, layer]
}

fn sum(bytes: &[u8]) -> Digest {
    Digest::parse(&format!("sha256:{}", hash::sha256(bytes))).unwrap()
}

/// What a node answers that has these blobs.
fn answer(asked: &BTreeMap<Digest, u64>, blobs: &[Vec<u8>]) -> Vec<u8> {
    let mut said = Vec::new();
    for digest in asked.keys() {
        match blobs.iter().find(|b| sum(b) == *digest) {
            Some(blob) => {
                said.extend(format!("{} {}\n", digest.hex(), blob.len()).into_bytes());
                said.extend(blob);
            }
            None => said.extend(format!("{} -\n", digest.hex()).into_bytes()),
        }
    }
    said
}

/// All of an image from a node, a few bytes at a time.
fn fetch(images: &Images, root: &Digest, blobs: &[Vec<u8>]) -> Tree {
    let mut absent = BTreeSet::new();
    loop {
        let tree = images.tree(root, "amd64", &absent).unwrap();
        if tree.lacks.is_empty() {
            return tree;
        }
        let mut arriving = Arriving::new(images, tree.lacks.clone());
        answer(&tree.lacks, blobs).chunks(3).for_each(|bytes| arriving.push(bytes).unwrap());
        absent.extend(arriving.finish().unwrap().0);
    }
}

fn keep(images: &Images, name: &str, root: &Digest, at: Timestamp) -> Vec<String> {
    let came = [(name.to_owned(), root.clone(), "amd64".to_owned())];
    let names = |index: &mut Index| {
        index.clusters.entry("iot".into()).or_default().names.insert(name.into());
    };
    images.keep(&came, false, at, names, &Cancel::new()).unwrap()
}

#[test]
fn an_image_comes_blob_by_blob_and_is_given_on_as_an_archive() {
    let dir = tempfile::tempdir().unwrap();
    let images = store(dir.path());
    let blobs = image("a");
    let root = sum(&blobs[0]);
    let tree = fetch(&images, &root, &blobs);
    assert!(
        tree.whole
            && tree.blobs.len() == 4
            && tree.bytes() == blobs.iter().map(|b| b.len() as u64).sum::<u64>()
    );
    assert!(!images.tree(&root, "arm64", &BTreeSet::new()).unwrap().whole);
    let named = format!("reg.lab:5000/a@{root}");
    assert_eq!(keep(&images, "reg.lab:5000/a:1", &root, now()), [""; 0]);
    assert_eq!(keep(&images, &named, &root, now()), [""; 0]);
    assert_eq!(keep(&images, "reg.lab:5000/b:1", &sum(b"nothing"), now()), ["reg.lab:5000/b:1"]);
    let private = |path: &str| fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
    let blob = format!("images/blobs/{}", root.hex());
    assert_eq!(
        ["images", "images/blobs", "images/index.json", &blob].map(private),
        [0o700, 0o700, 0o600, 0o600]
    );

    let index = images.index().unwrap();
    assert!(
        index.knows("other", &root)
            && !index.knows("iot", &sum(b"x"))
            && index.given("other", "amd64").is_empty()
    );
    let given: Vec<Image> = index.given("iot", "amd64").into_iter().cloned().collect();
    assert_eq!(given.len(), 2);
    let to = images.scratch("run", "amd64").unwrap();
    let packed = images.pack(&given, &to, &Cancel::new()).unwrap();
    let bytes = fs::read(&to).unwrap();
    assert_eq!((packed.len, packed.sha256), (bytes.len() as u64, hash::sha256(&bytes)));
    // By another user of it, with nothing but the archive. A name by digest has a tag there, which k3s wants.
    let other = store(&dir.path().join("other"));
    let came = other.unpack(&to, &Cancel::new(), &mut |_| {}).unwrap();
    let made = format!("reg.lab:5000/a:p1-{}", &root.hex()[..12]);
    assert_eq!(came, [("reg.lab:5000/a:1".to_owned(), root.clone()), (made, root.clone())]);
    assert!(other.tree(&root, "amd64", &BTreeSet::new()).unwrap().whole);

    // One blob is damaged: what it belongs to is left out.
    let more = image("b");
    fetch(&images, &sum(&more[0]), &more);
    keep(&images, "reg.lab:5000/b:1", &sum(&more[0]), now());
    let given: Vec<Image> = images.index().unwrap().given("iot", "amd64").into_iter().cloned().collect();
    fs::write(images.blob(&sum(&blobs[3])), "layer z").unwrap();
    let packed = images.pack(&given, &to, &Cancel::new()).unwrap();
    assert_eq!(packed.images.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["reg.lab:5000/b:1"]);
    assert_eq!(images.len(&sum(&blobs[3])), None);
}

#[test]
fn a_node_that_lies_gets_nothing_in() {
    let dir = tempfile::tempdir().unwrap();
    let images = store(dir.path());
    let (good, asked) = (b"good".to_vec(), |most| Arriving::new(&images, [(sum(b"good"), most)]));
    let hex = sum(&good).hex().to_owned();
    let say = |text: &str, most| {
        let mut arriving = asked(most);
        arriving.push(text.as_bytes()).and_then(|()| arriving.finish())
    };
    // Other bytes than their name says.
    assert_eq!(say(&format!("{hex} 4\nevil"), 100).unwrap().0, [sum(&good)].into());
    // More than it may be, than was asked for, or less; another blob; no answer at all.
    assert!(matches!(say(&format!("{hex} 101\n"), 100), Err(Error::TooLarge { most: 100 })));
    assert!(say(&format!("{hex} 4\ngo"), 100).is_err() && say("", 100).is_err());
    assert!(say(&format!("{} 4\nevil", "0".repeat(64)), 100).is_err());
    assert!(say(&"x".repeat(1 << 20), 100).is_err() && say(&format!("{hex} -1\n"), 100).is_err());
    assert_eq!(images.len(&sum(&good)), None);
    assert_eq!(fs::read_dir(dir.path().join("images/blobs")).unwrap().count(), 0, "nothing of it stays");
    assert_eq!(say(&format!("{hex} 4\ngood"), 100).unwrap().1, 4);
    assert!(say(&format!("{hex} 4\ngood{hex} 4\ngood"), 100).is_err());

    // Documents that lead nowhere, in a circle or to everything.
    for bad in [
        "{",
        "[]",
        r#"{"config":{"digest":"sha256:../../etc","size":1}}"#,
        r#"{"manifests":[],"layers":[]}"#,
        "null",
    ] {
        let root = put(&images, bad.as_bytes());
        let tree = images.tree(&root, "amd64", &BTreeSet::new()).unwrap();
        assert!(!tree.whole && tree.lacks.is_empty(), "{bad}");
    }
    let huge = json!({"config": {"digest": sum(b"c"), "size": 1}, "layers": [{"digest": sum(b"l"), "size": u64::MAX}]});
    let tree = images.tree(&put(&images, &text(&huge)), "amd64", &BTreeSet::new()).unwrap();
    assert_eq!(tree.lacks, [(sum(b"c"), 1)].into());
    let mut inner = put(&images, &text(&huge));
    for _ in 0..10 {
        inner = put(&images, &text(&json!({"manifests": [{"digest": inner, "size": 1}]})));
    }
    assert!(!images.tree(&inner, "amd64", &BTreeSet::new()).unwrap().whole);
}

#[test]
fn what_was_not_used_for_longest_goes_and_blobs_go_with_their_last_image() {
    let dir = tempfile::tempdir().unwrap();
    let images = store(dir.path());
    let day = |n: i64| now() - SignedDuration::from_hours(24 * n);
    let mut roots = Vec::new();
    for (name, days) in [("a", 91), ("b", 5), ("c", 1)] {
        let blobs = image(name);
        fetch(&images, &sum(&blobs[0]), &blobs);
        assert_eq!(keep(&images, &format!("docker.io/x/{name}:1"), &sum(&blobs[0]), day(days)), [""; 0]);
        roots.push(blobs);
    }
    let names = || images.index().unwrap().images.into_iter().map(|i| i.name).collect::<Vec<_>>();
    // What came an hour ago at most may belong to somebody who is not done.
    let age = |hours: u64| {
        for entry in fs::read_dir(dir.path().join("images/blobs")).unwrap().flatten() {
            let file = fs::File::options().write(true).open(entry.path()).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(3600 * hours)).unwrap();
        }
    };
    let given: Vec<Image> = images.index().unwrap().images;
    images.use_now(&given[..1], day(91), &Cancel::new()).unwrap();
    let (gone, bytes) = images.prune(false, now(), &Cancel::new()).unwrap();
    assert_eq!((gone.len(), bytes, names().len()), (1, 0, 2));
    assert_eq!(images.index().unwrap().clusters["iot"].names.len(), 2);
    age(2);
    let (_, bytes) = images.prune(false, now(), &Cancel::new()).unwrap();
    assert_eq!(bytes, roots[0].iter().map(|b| b.len() as u64).sum::<u64>());
    assert!(images.len(&sum(&roots[0][3])).is_none() && images.len(&sum(&roots[1][3])).is_some());
    // One that lost a blob is none.
    fs::remove_file(images.blob(&sum(&roots[1][1]))).unwrap();
    images.prune(false, now(), &Cancel::new()).unwrap();
    assert_eq!(names(), ["docker.io/x/c:1"]);
    // The way out of a damaged index.
    fs::write(dir.path().join("images/index.json"), "{").unwrap();
    assert!(matches!(images.index(), Err(Error::Damaged { .. })));
    assert!(images.prune(false, now(), &Cancel::new()).is_err());
    images.prune(true, now(), &Cancel::new()).unwrap();
    assert_eq!((names().len(), fs::read_dir(dir.path().join("images/blobs")).unwrap().count()), (0, 0));
}

/// An archive as docker wrote it before it knew OCI layouts, a layer of it a link to another's.
fn docker(path: &Path, arch: &str) {
    let config = text(&json!({"architecture": arch, "os": "linux", "rootfs": {"type": "layers"}}));
    let list = json!([{"Config": "c.json", "RepoTags": ["busybox:1.35", "x.io/b:2"], "Layers": ["1/layer.tar", "2/layer.tar"]}]);
    let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, bytes) in
        [("1/layer.tar", b"layer".to_vec()), ("c.json", config), ("manifest.json", text(&list))]
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    for (name, to) in [("2/layer.tar", "../1/layer.tar"), ("out", "../../../etc/passwd")] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, name, to).unwrap();
    }
    tar.finish().unwrap();
}

#[test]
fn dockers_archives_are_taken_in_and_others_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let images = store(dir.path());
    let file = dir.path().join("a.tar");
    docker(&file, "amd64");
    let take = || images.unpack(&file, &Cancel::new(), &mut |_| {});
    let came = take().unwrap();
    let names: Vec<&str> = came.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["docker.io/library/busybox:1.35", "x.io/b:2"]);
    let root = &came[0].1;
    assert!(images.tree(root, "amd64", &BTreeSet::new()).unwrap().whole);
    assert!(!images.tree(root, "arm64", &BTreeSet::new()).unwrap().whole);
    assert_eq!(take().unwrap(), came, "the same archive is the same image");
    docker(&file, "arm64");
    assert_ne!(take().unwrap()[0].1, *root);
    for (bytes, what) in [
        (&b"no archive at all, but more than a block of one is long"[..], "is no"),
        (&[0; 1024], "is no archive of images"),
    ] {
        fs::write(&file, bytes.repeat(20)).unwrap();
        let error = take().unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}
