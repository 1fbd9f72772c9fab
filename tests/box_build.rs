//! A box build that is interrupted: needs root, the programs of `boxes::requirements()`, a Debian mirror and
//! half a minute. tests/vm.rs looks at a box that was built to its end.

use p1::internals::boxes;
use p1::internals::explain::Explain;
use p1::internals::os::Cancel;
use p1::internals::os::cancel::Level;

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
