//! What k3s' installer makes for each role, set aside on a machine of which a box is baked, and put into its place on one
//! that starts from that box: until then nothing of it is where an init system or an uninstall script would find it.

use super::BIN_DIR;
use crate::os::process::quote;
use crate::spec::Role;

/// Where it lies, by the unit of the role.
pub const DIR: &str = "/var/lib/p1/baked";

/// What the installer made shows by a comparison of before and after, so that nothing of it has to be known here but that
/// it has k3s' name, or leads to it.
const ASIDE: &str = r#"set -eu
export LC_ALL=C
umask 022
to=$dir/$unit work=/run/p1/bake
rm -rf "$to" "$work"
mkdir -p "$to" "$work"
list() { find /etc /usr/local /opt \( -type f -o -type l \) -exec stat -c '%n|%i|%s|%Y|%Z' {} + | sort; }
list >"$work/before"
install_k3s
list >"$work/after"
comm -13 "$work/before" "$work/after" | cut -d'|' -f1 >"$work/new"
while IFS= read -r path; do
  [ "$path" != "$binary" ] || continue
  case $path in
    *k3s*) ;;
    *) case $(readlink "$path" || :) in *k3s*) ;; *) continue ;; esac ;;
  esac
  mkdir -p "$to${path%/*}"
  mv -f "$path" "$to$path"
done <"$work/new"
rm -rf "$work"
[ -e "$to/$uninstall" ] || { echo "[ERROR] the installer made no $uninstall"; exit 1; }
mkdir -p "$to/$stamps"
echo "$digest" >"$to/$stamps/install"
"#;

/// A script that runs the installer by this line for a role, and sets aside what it makes with the note of the digest that
/// it was made from.
pub fn aside_script(role: Role, line: &str, digest: &str, stamps: &str) -> String {
    format!(
        "dir={DIR} unit={} binary={BIN_DIR}/k3s uninstall={} digest={} stamps={stamps}\ninstall_k3s() {{\n{line}\n}}\n{ASIDE}",
        role.unit(),
        super::uninstall_script(role),
        quote(digest),
    )
}

/// The note goes last: without it the installer runs, as on any node.
const PLACE: &str = r#"if [ -d "$dir" ]; then
  if [ -d "$dir/$unit" ]; then
    cd "$dir/$unit"
    find . \( -type f -o -type l \) ! -path ".$stamps/*" | while IFS= read -r path; do
      path=${path#.}
      mkdir -p "${path%/*}" && mv -f ".$path" "$path" || exit 1
    done || exit 1
    mkdir -p "$stamps"
    [ ! -e ".$stamps/install" ] || mv -f ".$stamps/install" "$stamps/install"
    cd /
    echo "put what k3s' installer made for this role into its place"
  fi
  rm -rf "$dir"
fi
"#;

/// A script that puts what was set aside for a role into its place, and takes away what is for the other one.
pub fn place_script(role: Role, stamps: &str) -> String {
    format!("dir={DIR} unit={} stamps={stamps}\n{PLACE}", role.unit())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::os::{Cancel, process};

    const STAMPS: &str = "/var/lib/p1/stamps";

    fn run(script: &str, root: &Path) -> (i32, String) {
        let root = root.display();
        let script = script
            .replace("/var/lib/p1", &format!("{root}/var/lib/p1"))
            .replace("/usr/local", &format!("{root}/usr/local"))
            .replace(" /etc ", &format!(" {root}/etc "))
            .replace(" /opt ", &format!(" {root}/opt "))
            .replace("/run/p1", &format!("{root}/run/p1"));
        let cmd = process::Cmd::new("sh").stdin(script);
        let done = process::run(&cmd, Duration::from_secs(30), &Cancel::new()).unwrap();
        (done.status.code().unwrap_or(-1), done.stdout + &done.stderr)
    }

    fn tree(root: &Path) -> Vec<String> {
        let list = process::Cmd::new("find")
            .arg(root)
            .args(["(", "-type", "f", "-o", "-type", "l", ")", "-printf", "%P\n"]);
        let done = process::run(&list, Duration::from_secs(30), &Cancel::new()).unwrap();
        let mut all: Vec<String> = done.stdout.lines().map(str::to_owned).collect();
        all.sort();
        all
    }

    /// What is set aside for both roles is put into its place for one exactly as its installer had made it.
    #[test]
    fn what_the_installer_makes_is_set_aside_for_both_roles_and_put_back_for_one() {
        let made = |unit: &str, bin: &str| {
            let etc = "$(dirname \"$(dirname \"$(dirname \"$BIN\")\")\")/etc";
            format!(
                "BIN={bin}; echo x >$BIN/{unit}-uninstall.sh; echo k >$BIN/k3s-killall.sh; ln -sf k3s $BIN/kubectl\n\
                 mkdir -p {etc}/systemd/wants; echo u >{etc}/systemd/{unit}.service\n\
                 ln -sf ../{unit}.service {etc}/systemd/wants/{unit}.service; echo other >{etc}/hosts"
            )
        };
        for role in [Role::Server, Role::Worker] {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path();
            for folder in ["etc", "opt", "usr/local/bin"] {
                fs::create_dir_all(root.join(folder)).unwrap();
            }
            fs::write(root.join("usr/local/bin/k3s"), "").unwrap();
            fs::write(root.join("etc/hosts"), "before").unwrap();
            let before = tree(root);
            for role in [Role::Server, Role::Worker] {
                let line = made(role.unit(), "/usr/local/bin");
                let done = run(&aside_script(role, &line, "sum of it", STAMPS), root);
                assert_eq!(done, (0, String::new()));
            }
            let outside =
                |all: Vec<String>| all.into_iter().filter(|p| !p.contains("p1/baked")).collect::<Vec<_>>();
            assert_eq!(outside(tree(root)), before);
            let (code, said) = run(&place_script(role, STAMPS), root);
            assert_eq!((code, said.lines().count()), (0, 1), "{said}");
            let unit = role.unit();
            let mut wanted = before.clone();
            wanted.extend([
                format!("usr/local/bin/{unit}-uninstall.sh"),
                "usr/local/bin/k3s-killall.sh".into(),
                "usr/local/bin/kubectl".into(),
                format!("etc/systemd/{unit}.service"),
                format!("etc/systemd/wants/{unit}.service"),
                "var/lib/p1/stamps/install".into(),
            ]);
            wanted.sort();
            assert_eq!(tree(root), wanted);
            assert_eq!(fs::read_to_string(root.join("var/lib/p1/stamps/install")).unwrap(), "sum of it\n");
            // A second time there is nothing to do.
            assert_eq!(run(&place_script(role, STAMPS), root), (0, String::new()));
        }
    }

    #[test]
    fn an_installer_that_fails_or_makes_nothing_is_told() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["etc", "opt", "usr/local/bin"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let (code, said) = run(&aside_script(Role::Worker, "true", "x", STAMPS), dir.path());
        assert!(
            code == 1 && said.contains("made no") && said.contains("k3s-agent-uninstall.sh"),
            "{code} {said}"
        );
        assert_eq!(run(&aside_script(Role::Worker, "exit 7", "x", STAMPS), dir.path()).0, 7);
    }
}
