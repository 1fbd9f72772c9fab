//! What this host has for a cluster: k3s' files, the box, what provisioners are made from, how its machines are kept and
//! connected.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::access::{World, wanted};
use crate::artifacts;
use crate::engine::StepError;
use crate::machines::{Cap, Machine, MachineState};
use crate::observed::{Baked, MadeFrom};
use crate::os::files::{self, At};
use crate::os::hash;
use crate::spec::{Node, Provisioner, Release, Source, hide};

/// What is known without a connection: a cluster that is as it should be needs none.
pub fn look_at_files(world: &World) {
    let arch = artifacts::arch(std::env::consts::ARCH).ok();
    world.note(|seen| seen.here.arch = arch);
    let found = world.release().map_err(Some).and_then(|release| {
        let files =
            world.archs().into_iter().map(|arch| Ok((arch, world.without_connection(&release, arch)?)));
        files.collect::<Result<Vec<_>, _>>()
    });
    match found {
        Ok(all) => world.note(|seen| {
            for (arch, files) in all {
                seen.here.version.clone_from(&files.version);
                seen.here.wanted.insert(arch, wanted(&files));
            }
        }),
        Err(why) => {
            // What is merely not here yet is no fault.
            world.note(|seen| seen.here.unfit = why.map(|error| error.failure));
            if let (Ok(Release::Version(version)), None) =
                (world.release(), &world.cluster.k3s.artifacts.binary)
            {
                world.note(|seen| seen.here.version = Some(version));
            }
        }
    }
}

/// What tells the files of this host that the spec gives from others of the same name: a user who mends a
/// cause by replacing one means it to be used.
pub fn look_at_given(world: &World) {
    let wanted = &world.cluster.k3s.artifacts;
    let sources = wanted.binary.iter().chain(&wanted.installer).chain(&wanted.images);
    let mut paths: Vec<PathBuf> = sources
        .filter_map(|source| match source {
            Source::Path(path) => Some(path.clone()),
            Source::Url { .. } => None,
        })
        .collect();
    // The manifest has the checksums of all that is in there.
    paths.extend(wanted.dir.iter().map(|dir| dir.join(artifacts::folder::MANIFEST)));
    let mut given = String::new();
    for path in paths {
        let meta = std::fs::metadata(&path).ok();
        let time = meta.as_ref().and_then(|m| m.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok());
        let _ = writeln!(
            given,
            "{} {} {}",
            path.display(),
            meta.map_or(0, |m| m.len()),
            time.map_or(0, |t| t.as_nanos())
        );
    }
    world.note(|seen| seen.here.given = given);
}

/// How many images are kept for the cluster's new nodes. A damaged index is as good as none: the next one that is written has what
/// nodes have.
pub fn look_at_images(world: &World) -> usize {
    let index = world.images.index().unwrap_or_default();
    let count = |arch: &crate::k3s::Arch| index.given(&world.cluster.name, arch.name()).len();
    world.archs().iter().map(count).max().unwrap_or_default()
}

/// Looks at what the provisioners are made from.
pub fn look_at_provisioners(world: &World) {
    let all = world.cluster.provision.iter();
    let made = all.map(|p| (p.name.clone(), made_from(world, p).map_err(|t| t.failure.cause))).collect();
    world.note(|seen| seen.here.provision = made);
}

/// Digests of what one is made from: its settings, and all that its files hold.
pub fn made_from(world: &World, one: &Provisioner) -> Result<MadeFrom, StepError> {
    let mut files = Sha256::new();
    for path in &one.inputs {
        contents(path, Path::new(""), &mut files)?;
    }
    let files = files.finalize();
    let digest = |one: &Provisioner, secret: &str| {
        let settings = one.portable(&world.cluster.base).to_string();
        hash::hex(&hash::parts([settings.as_bytes(), &files, secret.as_bytes()])[..8])
    };
    let mut bare = one.clone();
    hide(&mut bare, &world.cluster.secrets);
    let secret = match &world.seen().here.tokens {
        Some(tokens) if bare != *one => tokens.server.reveal().to_owned(),
        _ => String::new(),
    };
    Ok(MadeFrom { told: digest(&bare, ""), noted: digest(one, &secret) })
}

/// Feeds a file, or all files of a directory by name, with their paths in it and whether they are programs.
fn contents(path: &Path, name: &Path, hash: &mut Sha256) -> Result<(), files::Error> {
    use std::os::unix::fs::PermissionsExt;
    let link = fs::symlink_metadata(path).at("read", path)?.is_symlink();
    hash.update(format!("\0{}\0", name.display()));
    // What was named is followed; what lies in it is taken as it is, or a link could lead in a circle.
    if link && !name.as_os_str().is_empty() {
        hash.update(fs::read_link(path).at("read", path)?.as_os_str().as_encoded_bytes());
        return Ok(());
    }
    let meta = fs::metadata(path).at("read", path)?;
    if meta.is_dir() {
        let mut names: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(path).at("read", path)? {
            names.push(entry.at("read", path)?.file_name().into());
        }
        names.sort();
        for one in names {
            contents(&path.join(&one), &name.join(&one), hash)?;
        }
    } else if meta.is_file() {
        hash.update([u8::from(meta.permissions().mode() & 0o111 != 0)]);
        let (mut file, mut buffer) = (files::open(path)?, vec![0; 1 << 16]);
        let mut inner = Sha256::new();
        loop {
            match file.read(&mut buffer).at("read", path)? {
                0 => break,
                n => inner.update(&buffer[..n]),
            }
        }
        hash.update(inner.finalize());
    }
    Ok(())
}

/// How this host keeps the machines. Where it cannot be told, it is not known.
pub fn look_at_hosting(world: &World) {
    let nodes: BTreeSet<String> = world.machines.ids(&world.cluster).into_keys().collect();
    let hosting = match nodes.is_empty() {
        true => Ok(Default::default()),
        false => world.machines.hosting(&world.cluster, &nodes, &world.cancel),
    };
    let ours = nodes.into_iter().filter(|n| world.memory(n).is_some_and(|m| m.autostart)).collect();
    world.note(|seen| {
        seen.hosting = hosting.unwrap_or_default();
        seen.autostarts = ours;
    });
}

/// The nodes whose machines are made by p1 and run.
pub fn running(world: &World) -> BTreeSet<String> {
    let seen = world.seen();
    let runs = |m: &Machine| m.state == MachineState::Running && !m.foreign && m.can.has(Cap::Make);
    let known = world.machines.ids(&world.cluster).into_keys();
    known.filter(|node| seen.machines.get(node).is_some_and(runs)).collect()
}

/// Looks at the network of machines that run. What it lacks for machines that are to be made keeps nobody from
/// those that are there.
pub fn look_at_link(world: &World) {
    let runs = running(world);
    if runs.is_empty() {
        return;
    }
    let made_so = |n: &Node| world.memory(&n.name).and_then(|m| m.made).is_none_or(|made| made.ip == n.ip);
    let mut cluster = world.cluster.clone();
    cluster.nodes.retain(|n| runs.contains(&n.name) && made_so(n));
    // What cannot be mended is told when it is tried, with what to do about it.
    let lacks = world
        .machines
        .for_makers(&cluster, &mut |make, part| Ok(make.network(part, &world.cancel)?.into_iter().collect()));
    let lack = match lacks {
        Ok(lacks) => lacks.into_iter().next(),
        Err(error) => Some(error.to_string()),
    };
    world.note(|seen| seen.link = lack);
}

/// Looks whether those of them that did not answer are connected to it.
pub fn look_at_cards(world: &World) {
    let seen = world.seen();
    if seen.link.is_some() || seen.silent.is_empty() {
        return;
    }
    let mut machines = running(world);
    machines.retain(|node| seen.silent.contains_key(node));
    let loose = world
        .machines
        .for_makers(&world.cluster, &mut |make, part| make.unplugged(part, &machines, &world.cancel))
        .unwrap_or_default();
    if !loose.is_empty() {
        let are = if loose.len() == 1 { "is" } else { "are" };
        let lack = format!("{} {are} not connected to the network", loose.join(", "));
        world.note(|seen| seen.link = Some(lack));
    }
}

/// The box and what the provider has of it; only where machines have to be started, or made.
pub fn look_at_box(world: &World, makes: bool) {
    // What cannot be told now is told by the step that gets the box.
    let baked = world.look_for_baked(makes).unwrap_or_default();
    let name = if let Baked::Fits(name) = &baked { Some(name.clone()) } else { None };
    let known = world.state.facts().ok().and_then(|f| f.image).and_then(|image| image.baked);
    world.note(|seen| seen.here.baked = baked);
    let info = world.box_info().ok().flatten().filter(|_| known == name);
    let Some(info) = info else {
        world.note(|seen| seen.here.box_ready = false);
        return;
    };
    let prepared = match world.machines.prepared(&world.cluster, &info, &world.cancel) {
        Ok(None) => Ok(()),
        Ok(Some(lack)) => Err(lack),
        Err(error) => Err(error.to_string()),
    };
    world.note(|seen| {
        seen.here.box_ready = true;
        seen.here.prepared = Some(prepared);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_its_names_and_contents_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let sum = |path: &Path| {
            let mut hash = Sha256::new();
            contents(path, Path::new(""), &mut hash).unwrap();
            hash.finalize().to_vec()
        };
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        for folder in [&one, &other] {
            fs::create_dir_all(folder.join("roles/web")).unwrap();
            fs::write(folder.join("roles/web/main.yml"), "x").unwrap();
            std::os::unix::fs::symlink("..", folder.join("roles/circle")).unwrap();
        }
        assert_eq!(sum(&one), sum(&other));
        fs::rename(other.join("roles/web"), other.join("roles/db")).unwrap();
        assert_ne!(sum(&one), sum(&other));
        let before = sum(&one);
        fs::write(one.join("roles/web/main.yml"), "y").unwrap();
        assert_ne!(sum(&one), before);
    }
}
