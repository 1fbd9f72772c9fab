//! The environment p1 was started in, and where it keeps things on this host.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::spec::LibvirtUri;

/// What p1 takes from its environment; tests make their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Env {
    /// The root of the file system whose facts count; `/`.
    pub root: PathBuf,
    /// PATH.
    pub path: OsString,
    /// The user's home directory.
    pub home: PathBuf,
    /// The effective user id.
    pub uid: u32,
    /// XDG_DATA_HOME, if it is set and absolute.
    pub data_home: Option<PathBuf>,
    /// XDG_CACHE_HOME, if it is set and absolute.
    pub cache_home: Option<PathBuf>,
}

impl Env {
    /// The environment of this process.
    pub fn of_process() -> Self {
        let uid = nix::unistd::geteuid();
        let account = || nix::unistd::User::from_uid(uid).ok().flatten().map(|u| u.dir);
        // Relative paths in these variables are to be ignored (XDG Base Directory Specification).
        let absolute = |key: &str| env::var_os(key).map(PathBuf::from).filter(|p| p.is_absolute());
        Self {
            root: "/".into(),
            path: env::var_os("PATH").unwrap_or_default(),
            home: absolute("HOME").or_else(account).unwrap_or_else(|| "/".into()),
            uid: uid.as_raw(),
            data_home: absolute("XDG_DATA_HOME"),
            cache_home: absolute("XDG_CACHE_HOME"),
        }
    }

    /// Where a program lies: on PATH, or where administrators' programs are, which is not on the
    /// PATH of Debian's ordinary users.
    pub fn find(&self, program: &str) -> Option<PathBuf> {
        // Files that are needed count as programs of their full name.
        if program.starts_with('/') {
            return Some(self.under(program)).filter(|p| p.exists());
        }
        let mut path = self.path.clone();
        path.push(":/usr/local/sbin:/usr/sbin:/sbin");
        which::which_in(program, Some(path), "/").ok()
    }

    /// An absolute path as seen under [`Env::root`].
    pub fn under(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Where p1 keeps things.
    pub fn dirs(&self) -> Dirs {
        let cache = self.cache_home.clone().unwrap_or_else(|| self.home.join(".cache"));
        Dirs { data: self.data().join("p1"), cache: cache.join("p1") }
    }

    fn data(&self) -> PathBuf {
        self.data_home.clone().unwrap_or_else(|| self.home.join(".local/share"))
    }

    /// Where the disks of machines of this user's own libvirt lie, unless it has a pool elsewhere.
    pub fn session_images(&self) -> PathBuf {
        self.data().join("libvirt/images")
    }
}

/// Where p1 keeps what belongs to no single cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    /// What must not be lost: `$XDG_DATA_HOME/p1`, usually `~/.local/share/p1`.
    pub data: PathBuf,
    /// What can be had again: `$XDG_CACHE_HOME/p1`, usually `~/.cache/p1`.
    pub cache: PathBuf,
}

impl Dirs {
    /// VAGRANT_HOME for every Vagrant that p1 starts: its own, since a Vagrant that is killed while
    /// it writes its machine index breaks all Vagrant commands that use the same home.
    pub fn vagrant_home(&self) -> PathBuf {
        self.data.join("vagrant")
    }

    /// The lock for who changes a kubeconfig of the user's: nothing of p1's lies beside it but what it kept.
    pub fn kubeconfig_lock(&self) -> PathBuf {
        self.data.join("kubeconfig.lock")
    }

    /// This user's kept clusters of one libvirt: another one's machines are made again from none of them.
    pub fn kept(&self, of: LibvirtUri) -> PathBuf {
        self.data.join(match of {
            LibvirtUri::System => "kept",
            LibvirtUri::Session => "kept-session",
        })
    }

    /// Notes of this user's clusters.
    pub fn clusters(&self) -> PathBuf {
        self.data.join("clusters")
    }

    /// Where this user's boxes are baked, in a cluster of p1's own.
    pub fn baking(&self) -> PathBuf {
        self.data.join("baking")
    }

    /// The folders of this user's forks.
    pub fn forks(&self) -> PathBuf {
        self.data.join("forks")
    }

    /// The images that this user's clusters pulled.
    pub fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    /// The lock for what all clusters of this host share: boxes, networks, base images.
    pub fn host_lock(&self) -> PathBuf {
        self.data.join("host.lock")
    }

    /// The lock of a cluster, whichever folder it is worked on from.
    pub fn cluster_lock(&self, name: &str) -> PathBuf {
        self.data.join("locks").join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xdg_variables_come_before_the_home_directory() {
        let mut env = Env {
            root: "/".into(),
            path: OsString::new(),
            home: "/home/ada".into(),
            uid: 1000,
            data_home: None,
            cache_home: Some("/fast".into()),
        };
        assert_eq!(env.dirs().vagrant_home(), Path::new("/home/ada/.local/share/p1/vagrant"));
        assert_eq!(env.dirs().cache, Path::new("/fast/p1"));
        assert_eq!(env.under("/etc/x"), Path::new("/etc/x"));
        env.root = "/tmp/r".into();
        assert_eq!(env.under("/etc/x"), Path::new("/tmp/r/etc/x"));
    }
}
