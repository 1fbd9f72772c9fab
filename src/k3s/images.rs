//! Images on a node: archives that are imported before k3s does it itself, and what its containerd has.

use std::collections::BTreeSet;

use crate::os::process::quote;

/// Where an image archive is imported from at start (docs.k3s.io/installation/airgap).
pub const IMAGES_DIR: &str = "/var/lib/rancher/k3s/agent/images";

/// The archive of the images that this host keeps, among the others until the node is Ready.
pub const KEPT_ARCHIVE: &str = "p1-kept.tar";

/// Where containerd has the blobs of all images, as files by their SHA-256 (`plugins/content/local`).
const BLOBS: &str = "/var/lib/rancher/k3s/agent/containerd/io.containerd.content.v1.content/blobs/sha256";

/// What k3s does with the archives of [`IMAGES_DIR`] when its agent has a server (`pkg/agent/containerd`, `preloadFile`),
/// by the containerd and the ctr that it brings: into its own content store, without unpacking, each image by its digest as
/// well. What was imported is noted in k3s' own cache of it (`watcher.go`, `.cache.json`, as k3s v1.32 and later read it), so
/// that its first start only marks the images; an older k3s imports them once more, which finds them there. A k3s that
/// brings no containerd is left alone. The cache says seconds, and k3s compares it with a file's nanoseconds.
const IMPORT: &str = r#"bin=/var/lib/rancher/k3s/data/current/bin agent=/var/lib/rancher/k3s/agent
[ ! -e "$agent/containerd" ] || { echo "there are images already"; exit 0; }
"$binary" ctr --version >/dev/null 2>&1 || :
[ -x "$bin/containerd" ] && [ -x "$bin/ctr" ] || { echo "it brings no containerd"; exit 0; }
umask 077
work=/run/p1/import pid= whole=
rm -rf "$work"
mkdir -p "$work"
end() {
  [ -z "$pid" ] || { kill "$pid" 2>/dev/null; wait "$pid" 2>/dev/null; }
  rm -rf "$work"
  # Half of it is none of it: k3s begins as if nothing had been tried.
  [ -n "$whole" ] || rm -rf "$agent/containerd" "$images/.cache.json"
}
trap end EXIT
trap 'exit 90' HUP INT TERM PIPE
cat >"$work/config.toml" <<'EOF'
version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
EOF
"$bin/containerd" --config "$work/config.toml" --root "$agent/containerd" --state "$work/state" \
  --address "$work/sock" >"$work/log" 2>&1 &
pid=$!
tries=0
until [ -S "$work/sock" ]; do
  tries=$((tries + 1))
  { [ "$tries" -le 300 ] && kill -0 "$pid" 2>/dev/null; } || { tail -n 3 "$work/log"; exit 1; }
  sleep 0.2
done
ctr() { "$bin/ctr" --address "$work/sock" --namespace k8s.io "$@"; }
comma= all=
: >"$work/cache"
for file in "$images"/*.tar "$images"/*.tar.gz "$images"/*.tgz "$images"/*.tar.zst "$images"/*.tzst; do
  [ -f "$file" ] || continue
  # What a node pulled is whole for its own platform only.
  platforms=--all-platforms
  [ "${file##*/}" != "$kept" ] || platforms=
  ctr images import $platforms --no-unpack "$file" >"$work/said" 2>&1 || { tail -n 3 "$work/said"; exit 1; }
  names=
  ctr images ls >"$work/list" || exit 1
  while read -r name _ digest _; do
    case $name in REF | *@sha256:*) continue ;; esac
    case " $all " in *" $name "*) continue ;; esac
    all="$all $name"
    names="$names${names:+,}\"$name\""
    last=${name##*/}
    ctr images tag --force "$name" "${name%"$last"}${last%%:*}@$digest" >/dev/null 2>&1 || exit 1
  done <"$work/list"
  printf '%s"%s":{"size":%s,"modTime":"%s","images":[%s]}' "$comma" "$file" "$(stat -c %s "$file")" \
    "$(date -u -d "@$(($(stat -c %Y "$file") + 1))" +%Y-%m-%dT%H:%M:%SZ)" "$names" >>"$work/cache"
  comma=,
done
kill "$pid" && wait "$pid" 2>/dev/null
pid=
printf '{%s}' "$(cat "$work/cache")" >"$work/json" && mv "$work/json" "$images/.cache.json" || exit 1
whole=yes
set -- $all
echo "imported $# images"
"#;

/// A script that imports the archives. What it prints at last is what it did; where it fails nothing of it is left.
pub fn import_script() -> String {
    format!("binary={}/k3s images={IMAGES_DIR} kept={KEPT_ARCHIVE}\n{IMPORT}", super::BIN_DIR)
}

/// A script that takes the archive of kept images away, when k3s has imported it.
pub fn remove_kept_script() -> String {
    format!("rm -f {IMAGES_DIR}/{KEPT_ARCHIVE}\n")
}

/// An image that a node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    pub digest: String,
    /// k3s imported it from an archive of others (`pkg/agent/containerd`, `labelImages`).
    pub from_archive: bool,
}

/// Where a node notes what p1's archive gave it, which k3s marks as what came from others.
const GIVEN: &str = "/var/lib/p1/given-images";

/// A script that notes the names of the images that the node is given.
pub fn note_given_script<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.map(quote).collect();
    format!(
        "mkdir -p {}\nprintf '%s\\n' {} >{GIVEN}\n",
        &GIVEN[..GIVEN.rfind('/').unwrap_or(0)],
        names.join(" ")
    )
}

/// A script that lists the images of a node whose k3s runs; for [`listed`].
pub fn list_script() -> String {
    format!(
        "[ -S /run/k3s/containerd/containerd.sock ] || {{ echo none; exit 0; }}\n{}/k3s ctr images ls\n\
         [ ! -e {GIVEN} ] || sed 's/^/given /' {GIVEN}\n",
        super::BIN_DIR
    )
}

/// What [`list_script`] printed; none where no containerd of k3s' runs. Names and digests are the node's word.
pub fn listed(text: &str) -> Option<Vec<Listed>> {
    if text.trim() == "none" {
        return None;
    }
    let given: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("given ")).collect();
    let of = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, _, digest) = (words.next()?, words.next()?, words.next()?);
        let label = |l: &str| l == "io.cattle.k3s.pinned=pinned";
        let pinned = words.next_back().is_some_and(|labels| labels.split(',').any(label));
        let from_archive = pinned && !given.contains(name);
        Some(Listed { name: name.to_owned(), digest: digest.to_owned(), from_archive })
    };
    Some(text.lines().filter_map(of).filter(|i| i.digest.starts_with("sha256:")).collect())
}

/// A script that sends blobs, by the digits of their SHA-256: for each a line with them and its length, and its bytes; or `-` where
/// it is not there.
pub fn send_script<'a>(blobs: impl Iterator<Item = &'a str>) -> String {
    let blobs: Vec<&str> = blobs.collect();
    format!(
        "exec 2>/dev/null\nfor blob in {}; do\n  file={BLOBS}/$blob\n  if len=$(stat -c %s \"$file\"); then\n    \
         echo \"$blob $len\"\n    cat \"$file\" || exit 1\n  else\n    echo \"$blob -\"\n  fi\ndone\n",
        blobs.join(" ")
    )
}

/// A script that gives an archive to the containerd of a k3s that runs, and removes it.
pub fn import_running_script(archive: &str) -> String {
    format!("trap 'rm -f {archive}' EXIT\n{}/k3s ctr images import --no-unpack {archive}\n", super::BIN_DIR)
}

/// A script that takes the note of it away when k3s has read it: from then on its start imports what is there, as ever.
pub fn forget_import_script() -> String {
    format!("rm -f {IMAGES_DIR}/.cache.json\n")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::os::{Cancel, process};

    fn program(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("#!/bin/sh\n{text}")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The script, on the files of a folder, with a containerd that only has a socket and a ctr that notes what it is told.
    fn import(root: &Path, ctr: &str) -> (i32, String) {
        let at = |path: &str| format!("{}{path}", root.display());
        program(&root.join("usr/local/bin/k3s"), "exit 0\n");
        let bin = root.join("var/lib/rancher/k3s/data/current/bin");
        // Its arguments are --config FILE --root FOLDER --state FOLDER --address SOCKET.
        let serve = "mkdir -p \"$4\"\nexec python3 -c 'import socket, sys, time\ns = socket.socket(socket.AF_UNIX)\n\
                     s.bind(sys.argv[1])\ntime.sleep(60)' \"$8\"\n";
        program(&bin.join("containerd"), serve);
        program(&bin.join("ctr"), ctr);
        let script = import_script()
            .replace("/usr/local/bin", &at("/usr/local/bin"))
            .replace("/var/lib/rancher", &at("/var/lib/rancher"))
            .replace("/run/p1", &at("/run"));
        let done =
            process::run(&process::Cmd::new("sh").stdin(script), Duration::from_secs(30), &Cancel::new());
        let done = done.unwrap();
        (done.status.code().unwrap_or(-1), done.stdout)
    }

    const CTR: &str = "shift 4\ncase $2 in\nimport) echo \"${5##*/}\" >>\"${0%/*}/had\" ;;\nls) echo 'REF TYPE DIGEST SIZE'\n\
        while read -r file; do echo \"docker.io/some/${file%.tar}:1.0 application/x sha256:aa 1 MiB\"; done <\"${0%/*}/had\" ;;\n\
        tag) echo \"$5\" >>\"${0%/*}/tags\" ;;\nesac\n";

    #[test]
    fn what_is_imported_early_is_noted_as_k3s_notes_it() {
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path().join("var/lib/rancher/k3s/agent/images");
        fs::create_dir_all(&images).unwrap();
        fs::write(images.join("a.tar"), "1234").unwrap();
        fs::write(images.join("b.tar"), "12").unwrap();
        let (code, said) = import(dir.path(), CTR);
        assert_eq!((code, said.trim()), (0, "imported 2 images"), "{said}");
        let cache: serde_json::Value =
            serde_json::from_slice(&fs::read(images.join(".cache.json")).unwrap()).unwrap();
        let of = |name: &str| &cache[images.join(name).to_str().unwrap()];
        assert_eq!(of("a.tar")["images"], serde_json::json!(["docker.io/some/a:1.0"]));
        assert_eq!(
            (&of("b.tar")["images"][0], &of("b.tar")["size"]),
            (&"docker.io/some/b:1.0".into(), &2.into())
        );
        // Not before the file's own time, whatever fraction of a second that has.
        let noted: jiff::Timestamp = of("a.tar")["modTime"].as_str().unwrap().parse().unwrap();
        let own = jiff::Timestamp::try_from(fs::metadata(images.join("a.tar")).unwrap().modified().unwrap())
            .unwrap();
        assert!(noted >= own && noted.as_second() <= own.as_second() + 1, "{noted} {own}");
        let tags = fs::read_to_string(dir.path().join("var/lib/rancher/k3s/data/current/bin/tags")).unwrap();
        assert_eq!(tags, "docker.io/some/a@sha256:aa\ndocker.io/some/b@sha256:aa\n");
        assert!(!dir.path().join("run/import").exists());
        // A second time there are images already.
        assert_eq!(import(dir.path(), CTR), (0, "there are images already\n".to_owned()));
    }

    #[test]
    fn images_of_archives_are_told_from_those_that_were_pulled_or_given() {
        assert_eq!(listed("none\n"), None);
        let text = "REF TYPE DIGEST SIZE PLATFORMS LABELS\n\
                    a:1 oci sha256:aa 1.0 MiB linux/amd64 io.cattle.k3s.pinned=pinned,io.cri-containerd.pinned=pinned\n\
                    b:1 oci sha256:bb 1.0 MiB linux/amd64 io.cri-containerd.pinned=pinned\n\
                    c:1 oci sha256:cc 1.0 MiB linux/amd64,linux/arm64 io.cattle.k3s.pinned=pinned\n\
                    d:1 oci sha256:dd 1.0 MiB - -\ngiven c:1\nk3s: a warning\n";
        let all = listed(text).unwrap().into_iter().map(|i| (i.name, i.from_archive));
        let name = |name: &str, archive| (name.to_owned(), archive);
        assert_eq!(
            all.collect::<Vec<_>>(),
            [name("a:1", true), name("b:1", false), name("c:1", false), name("d:1", false)]
        );
    }

    #[test]
    fn an_import_that_fails_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let agent = dir.path().join("var/lib/rancher/k3s/agent");
        fs::create_dir_all(agent.join("images")).unwrap();
        fs::write(agent.join("images/a.tar"), "1234").unwrap();
        let (code, said) = import(dir.path(), "echo no space left >&2\nexit 1\n");
        assert_eq!((code, said.trim()), (1, "no space left"));
        assert!(!agent.join("containerd").exists() && !agent.join("images/.cache.json").exists());
        assert!(!dir.path().join("run/import").exists());
    }
}
