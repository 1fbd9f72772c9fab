//! What of a machine's system gets in k3s' way and is told not to: found on the machine, each by a name.

/// What is said of it, and how it is done; `$changed` names the file in which a change is noted before.
struct Way {
    name: &'static str,
    /// A fragment about the node.
    why: &'static str,
    script: &'static str,
}

/// What `templates/facts.sh` and init systems' parts of it may name.
const WAYS: [Way; 3] = [
    Way {
        name: "network-manager",
        why: "its NetworkManager takes k3s' network cards for its own",
        script: r#"mkdir -p /etc/NetworkManager/conf.d
printf '%s\n' '# Written by p1: these are k3s'"'"' and its containers'"'"'.' '[keyfile]' \
  'unmanaged-devices+=interface-name:cni0;interface-name:flannel*;interface-name:veth*' \
  >/etc/NetworkManager/conf.d/zz-p1.conf
nmcli general reload conf >/dev/null 2>&1 || :
echo "had NetworkManager leave k3s' network cards alone"
"#,
    },
    Way {
        name: "cloud-setup",
        why: "its nm-cloud-setup is on, which takes away routes that k3s makes",
        script: r#"for unit in nm-cloud-setup.timer nm-cloud-setup.service; do
  if systemctl is-enabled --quiet "$unit" 2>/dev/null; then
    printf '%s\n' "enabled $unit" >>"$changed"
    systemctl disable --now "$unit" >/dev/null 2>&1
  fi
done
echo 'switched nm-cloud-setup off'
"#,
    },
    Way {
        name: "cgroups",
        why: "its service cgroups does not run",
        script: r#"if ! rc-update show default | grep -qw cgroups; then
  printf '%s\n' 'runlevel cgroups' >>"$changed"
  rc-update add cgroups default >/dev/null
fi
rc-service cgroups start </dev/null >/dev/null
echo 'started the service cgroups'
"#,
    },
];

/// Of what a machine named: why it is due, a fragment.
pub fn why<'a>(named: impl IntoIterator<Item = &'a String>) -> Option<&'static str> {
    let first = named.into_iter().next()?;
    WAYS.iter().find(|way| way.name == first).map(|way| way.why)
}

/// Does all of it, and prints what it did, a line each. `changed` is where changes are noted.
pub fn script<'a>(named: impl IntoIterator<Item = &'a String>, changed: &str) -> String {
    let of = |name: &'a String| WAYS.iter().find(|way| way.name == name).map(|way| way.script);
    let parts: String = named.into_iter().filter_map(of).collect();
    format!("set -eu\numask 022\nchanged={changed}\nmkdir -p \"${{changed%/*}}\"\n{parts}")
}

/// Takes back what was p1's own file; what was noted is taken back by [`super::Guest::undo`].
pub const UNDO: &str = r#"if [ -e /etc/NetworkManager/conf.d/zz-p1.conf ]; then
  rm -f /etc/NetworkManager/conf.d/zz-p1.conf
  nmcli general reload conf >/dev/null 2>&1 || :
fi
"#;
