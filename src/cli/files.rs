//! Verbs about files: `init`, `validate`, `schema`, `render`, `man`.

use std::path::Path;

use super::args::{self, Init, Render};
use super::context::Context;
use super::error::{CliError, code};
use super::{complete, from, help, here, out, print};
use crate::access::World;
use crate::guest::NodeFacts;
use crate::k3s;
use crate::machines::{self, Kind};
use crate::observed::{Observed, View};
use crate::os::files;
use crate::spec::{self, ProviderChoice};
use crate::state::StateDir;
use crate::ui::{Format, count};
use serde_json::json;

/// `p1 init`.
pub fn init(context: &Context, args: &Init) -> Result<(), CliError> {
    let path = &context.global.file;
    if path.symlink_metadata().is_ok() && !args.force {
        return Err(CliError::new(
            code::USAGE,
            format!("{} exists already", path.display()),
            "Add `--force` to overwrite it, or name another file with `-f`.",
        ));
    }
    let folder = std::path::absolute(path)
        .ok()
        .and_then(|p| Some(p.parent()?.file_name()?.to_string_lossy().into_owned()));
    let name = args.name.clone().unwrap_or_else(|| spec::name_for(&folder.unwrap_or_default()));
    if !args.from.is_empty() {
        let written = from::from(context, &name, &args.from, args.sudo_password.as_deref(), path)?;
        from::keep(&written.secrets, path)?;
        files::write_users(path, written.text.as_bytes(), 0o644)?;
        match context.ui.format {
            Format::Json => out::path(context, "spec", path),
            _ => eprintln!(
                "wrote {}; nothing was changed on {}. `{} plan` shows what taking the cluster over adds",
                path.display(),
                written.names.join(", "),
                context.called()
            ),
        }
        return Ok(());
    }
    let provider = ProviderChoice::parse(&args.provider).ok_or_else(|| {
        let what = format!("there is no provider `{}`", args.provider);
        CliError::new(code::USAGE, what, format!("Possible: {}.", args::providers()))
    })?;
    let options =
        spec::Init { name, servers: args.servers, workers: args.workers, provider, cidr: args.cidr.clone() };
    let text = spec::init(&options);
    // What is written has to be a spec: wrong options are told in the words of the spec's errors.
    if let Err(invalid) = spec::parse(&text, path) {
        let errors = invalid.problems.iter().filter(|p| p.severity == spec::Severity::Error);
        let said: Vec<&str> = errors.map(|p| p.message.as_str()).collect();
        return Err(CliError::new(code::USAGE, said.join("; "), "These options do not make a cluster."));
    }
    files::write_users(path, text.as_bytes(), 0o644)?;
    match context.ui.format {
        Format::Json => out::path(context, "spec", path),
        _ => eprintln!("wrote {}; `{} up` makes the cluster", path.display(), context.called()),
    }
    Ok(())
}

/// `p1 validate`.
pub fn validate(context: &Context) -> Result<(), CliError> {
    if context.ui.format == Format::Json {
        return here::json(context);
    }
    let cluster = context.warned(here::told(context)?)?;
    let network = match cluster.network.is_none() {
        true => "machines that exist already".to_owned(),
        false => format!("network {}", cluster.network.cidr),
    };
    let others = cluster.nodes.len() - cluster.members().count();
    let others =
        if others == 0 { String::new() } else { format!(", {} without k3s", count(others, "machine")) };
    eprintln!(
        "{}: cluster `{}`, {}, {}{others}, {network}",
        context.global.file.display(),
        cluster.name,
        count(cluster.servers().count(), "server"),
        count(cluster.workers().count(), "worker"),
    );
    Ok(())
}

/// `p1 schema`.
pub fn schema(context: &Context) -> Result<(), CliError> {
    match context.ui.format {
        Format::Json => out::object(&spec::schema()),
        _ => print(format!("{:#}\n", spec::schema())),
    }
    Ok(())
}

/// `p1 completions`.
pub fn completions(context: &Context, shell: clap_complete::Shell) -> Result<(), CliError> {
    let Some(text) = complete::script(&shell.to_string()) else {
        let what = format!("{shell} cannot ask p1");
        return Err(CliError::new(code::USAGE, what, "Possible: bash, elvish, fish, powershell, zsh."));
    };
    match context.ui.format {
        Format::Json => {
            let text = String::from_utf8_lossy(&text);
            out::object(&json!({"v": 1, "shell": shell.to_string(), "completions": text}));
        }
        _ => print(text),
    }
    Ok(())
}

/// `p1 render`: everything that is made from the spec alone. Secrets are named, not shown.
pub fn render(context: &Context, args: &Render) -> Result<(), CliError> {
    let mut cluster = context.spec()?;
    crate::spec::without_secrets(&mut cluster);
    let state = StateDir::of(cluster.home(), &cluster.name);
    let kind = context.kind(&cluster, &state).or_else(|fail| match cluster.provider {
        // A host without any provider can still look at what would be used with one.
        ProviderChoice::Auto => Ok(Kind::default()),
        _ => Err(fail),
    })?;
    let dir = args.dir.clone().unwrap_or_else(|| state.rendered());
    if args.dir.is_none() {
        state.create()?;
    }
    let world = context.world(cluster, kind);
    let files = rendered(&world)?;
    if args.dir.is_some() && !args.force {
        must_be_rendered(&dir, &files)?;
    }
    for (name, text) in files {
        let path = dir.join(name);
        files::dir(path.parent().unwrap_or(&dir))?;
        files::write_users(&path, text.as_bytes(), 0o644)?;
        out::path(context, "rendered", &path);
    }
    Ok(())
}

/// Files of these names are overwritten where the first one says that it was rendered; others are somebody's.
fn must_be_rendered(dir: &Path, files: &[(String, String)]) -> Result<(), CliError> {
    let first = files.first().map(|(name, _)| std::fs::read_to_string(dir.join(name)).unwrap_or_default());
    if first.is_some_and(|text| text.lines().take(3).any(|line| line.contains(RENDERED))) {
        return Ok(());
    }
    match files.iter().map(|(name, _)| dir.join(name)).find(|path| path.symlink_metadata().is_ok()) {
        None => Ok(()),
        Some(path) => Err(CliError::new(
            code::USAGE,
            format!("{} exists, and `p1 render` did not write it", path.display()),
            "Name another folder with `--dir`, or add `--force` to overwrite it.",
        )),
    }
}

/// What a Vagrantfile (templates/Vagrantfile.tera) and a machine's description say at the beginning that were rendered.
const RENDERED: &str = "Written by `p1 render`";

/// Everything that is made from the spec alone: names and texts, with a mask in place of each secret.
pub fn rendered(world: &World) -> Result<Vec<(String, String)>, CliError> {
    let redactor = world.redactor();
    let cluster = &spec::masked(&world.cluster);
    // Before the box is there its checksum is not known, which becomes a part of its name.
    let info = world.box_info().ok().flatten().unwrap_or_else(|| machines::BoxInfo {
        name: format!("p1/{}", crate::access::box_label(&cluster.image)),
        version: "1.0.0".to_owned(),
        image: Default::default(),
    });
    let mut all = Vec::new();
    for make in world.machines.makers() {
        all.extend(make.rendered(cluster, &info)?);
    }
    let tokens = k3s::Tokens::placeholder();
    let seen = Observed::default();
    let view = View::new(cluster, &seen);
    for node in &cluster.nodes {
        // Which one it is, is asked of the machine.
        let card = format!("the card that has {}", node.ip);
        let facts = NodeFacts { addresses: vec![(card, node.ip)], ..NodeFacts::default() };
        let files = match node.role.has_k3s() {
            true => crate::observed::files::files(&view, node, &facts, &tokens),
            false => Default::default(),
        };
        for (path, text) in files {
            if let Some(text) = text {
                let name =
                    path.rsplit('/').next().filter(|name| name.ends_with(".yaml")).unwrap_or("k3s.env");
                all.push((format!("{}/{name}", node.name), text));
            }
        }
        // A machine that exists already has its name, its address and its clock.
        if node.ssh.is_none() {
            let script = crate::steps::system::script(crate::guest::of(None), cluster, node, 0)?;
            all.push((format!("{}/system.sh", node.name), script));
        }
        let hosts = crate::steps::shared::hosts::lines(cluster).join("\n") + "\n";
        all.push((format!("{}/hosts", node.name), hosts));
        if !node.role.has_k3s() {
            continue;
        }
        let call = k3s::install(node.role, crate::observed::files::INSTALLER, true).line();
        all.push((
            format!("{}/install.sh", node.name),
            format!("#!/bin/sh\n# How k3s' own installer is called.\n{call}\n"),
        ));
    }
    Ok(all.into_iter().map(|(name, text)| (name, redactor.known_in(&text))).collect())
}

/// `p1 man`.
pub fn man(context: &Context, dir: Option<&Path>) -> Result<(), CliError> {
    let page = |command: clap::Command| {
        let mut text = Vec::new();
        clap_mangen::Man::new(command).render(&mut text).expect("memory takes everything");
        text
    };
    let Some(dir) = dir else {
        let page = page(help::command());
        match context.ui.format {
            Format::Json => out::object(&json!({"v": 1, "man": String::from_utf8_lossy(&page)})),
            _ => print(page),
        }
        return Ok(());
    };
    files::dir(dir)?;
    let mut root = help::command();
    root.build();
    let mut pages = vec![("p1".to_owned(), root.clone())];
    for verb in root.get_subcommands() {
        let name = format!("p1-{}", verb.get_name());
        pages.push((name.clone(), verb.clone().name(name.leak() as &'static str)));
    }
    for (name, command) in pages {
        let path = dir.join(format!("{name}.1"));
        files::write_users(&path, &page(command), 0o644)?;
        out::path(context, "man", &path);
    }
    Ok(())
}
