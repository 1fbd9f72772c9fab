//! Builds a real box: needs root, the programs of `boxes::requirements()` and a Debian mirror, and
//! takes a minute. Run it with `cargo test --test box_build -- --ignored --nocapture`;
//! `P1_TEST_BOX_DIR` keeps the result.

use std::path::PathBuf;
use std::process::Command;

use p1::boxes;
use p1::explain::Explain;
use p1::os::Cancel;
use p1::os::cancel::Level;

#[test]
#[ignore = "needs root, a Debian mirror and a minute"]
fn the_embedded_definition_becomes_a_box() {
    let temporary = tempfile::tempdir().unwrap();
    let out = std::env::var_os("P1_TEST_BOX_DIR").map_or(temporary.path().to_owned(), PathBuf::from);
    let definition = boxes::load("debian-12", None).unwrap();
    let mut said = Vec::new();
    let built = boxes::build(
        &definition,
        &out,
        &mut |news| {
            eprintln!("{news}");
            said.push(news.to_owned());
        },
        &Cancel::new(),
    )
    .unwrap();

    assert_eq!(built.path, out.join("debian-12.box"));
    assert_eq!(boxes::library::sha256(&built.path).unwrap(), built.sha256);
    assert!(built.packages.is_sorted() && built.packages.len() > 100);
    for wanted in &definition.packages {
        assert!(built.packages.iter().any(|p| p.split('=').next() == Some(wanted)), "{wanted}");
    }
    assert!(said.iter().any(|s| s == "compressing the disk"));

    // Readable by the tar that Vagrant uses, with the three files of the format.
    let list = Command::new("tar").arg("-tf").arg(&built.path).output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let mut names: Vec<&str> = list.lines().collect();
    names.sort_unstable();
    assert_eq!(names, ["Vagrantfile", "box.img", "metadata.json", "packages.txt"]);
    // Nothing of the work is left.
    let left: Vec<_> = std::fs::read_dir(&out)
        .unwrap()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with(".p1-box-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
#[ignore = "needs root, a Debian mirror and half a minute"]
fn an_interrupted_build_leaves_nothing() {
    let out = tempfile::tempdir().unwrap();
    let definition = boxes::load("debian-12", None).unwrap();
    let cancel = Cancel::new();
    let error = boxes::build(
        &definition,
        out.path(),
        &mut |news| {
            if news.starts_with("installing essential") {
                cancel.raise(Level::Abort);
            }
        },
        &cancel,
    )
    .unwrap_err();
    assert!(error.cancelled(), "{error}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(&out.path().display().to_string()), "{mounts}");
}
