//! Provisioners: which there are, what each takes, and for which nodes they are.
//!
//! Keys and settings have Vagrant's own names (developer.hashicorp.com/vagrant/docs/provisioning), so that
//! what is rendered is what a reader of Vagrantfiles knows.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use super::file::{File, ProvisionFile};
use super::report::{Report, Span, listed, nearest};
use super::resolve::Draft;
use super::secret;
use super::shape::{At, Field};
use super::value::{AnyPath, FilePath, Text, is_variable};
use super::{Role, Yaml};

/// One provisioner, for some of the nodes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Provisioner {
    /// A DNS label, unique in the spec.
    pub name: String,
    /// Which of Vagrant's.
    #[serde(rename = "type")]
    pub kind: ProvisionType,
    /// When it runs.
    pub when: Slot,
    /// In every run, not only when something of it has changed.
    #[serde(skip_serializing_if = "is_false")]
    pub always: bool,
    /// The machine is restarted after it.
    #[serde(skip_serializing_if = "is_false")]
    pub reboot: bool,
    /// For these nodes, in the order of the cluster's.
    pub nodes: Vec<String>,
    /// Its settings by Vagrant's names. Paths of this host are absolute.
    pub settings: Map<String, Json>,
    /// Vagrant runs it; otherwise p1 does over its own SSH.
    pub by_vagrant: bool,
    /// Files and directories whose contents belong to it: when they change, it is due again.
    pub inputs: Vec<PathBuf>,
}

impl Provisioner {
    /// A setting that is text.
    pub fn text(&self, setting: &str) -> Option<&str> {
        self.settings.get(setting)?.as_str()
    }

    /// The variables of a shell provisioner's environment, as text.
    pub fn env(&self) -> Vec<(String, String)> {
        let map = self.settings.get("env").and_then(Json::as_object);
        map.into_iter().flatten().map(|(k, v)| (k.clone(), scalar(v))).collect()
    }

    /// Its settings with paths as the spec gives them, so that two checkouts agree.
    pub fn portable(&self, base: &Path) -> Json {
        let mut settings = Json::Object(self.settings.clone());
        relative(&mut settings, base);
        let inputs: Vec<&Path> = self.inputs.iter().map(|p| p.strip_prefix(base).unwrap_or(p)).collect();
        json!([self.kind, settings, inputs])
    }
}

/// A value as text: numbers and truth values as they are written.
pub fn scalar(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn relative(value: &mut Json, base: &Path) {
    match value {
        Json::String(text) => {
            if let Some(inside) = Path::new(text.as_str()).strip_prefix(base).ok().and_then(Path::to_str) {
                *value = Json::from(inside);
            }
        }
        Json::Array(items) => items.iter_mut().for_each(|item| relative(item, base)),
        Json::Object(map) => map.values_mut().for_each(|item| relative(item, base)),
        _ => {}
    }
}

/// When a provisioner runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slot {
    /// When the node's system is ready, before k3s is installed.
    BeforeK3s,
    /// When the node is Ready.
    AfterK3s,
    /// When all nodes are Ready, once.
    AfterCluster,
    /// On this host, before anything of an `up`.
    BeforeUp,
    /// On this host, after an `up` that succeeded.
    AfterUp,
    /// On this host, before the cluster is destroyed.
    BeforeDestroy,
    /// On this host, after it.
    AfterDestroy,
}

/// As the spec has them.
pub(super) const SLOTS: [(&str, Slot); 7] = [
    ("before-k3s", Slot::BeforeK3s),
    ("after-k3s", Slot::AfterK3s),
    ("after-cluster", Slot::AfterCluster),
    ("before-up", Slot::BeforeUp),
    ("after-up", Slot::AfterUp),
    ("before-destroy", Slot::BeforeDestroy),
    ("after-destroy", Slot::AfterDestroy),
];

impl Slot {
    fn name(self) -> &'static str {
        SLOTS.iter().find(|(_, slot)| *slot == self).map_or("", |(name, _)| name)
    }

    /// On this host, around every run of a verb: nothing of the cluster is made by it.
    pub fn is_trigger(self) -> bool {
        matches!(self, Self::BeforeUp | Self::AfterUp | Self::BeforeDestroy | Self::AfterDestroy)
    }
}

super::shape::choices! {
    /// How often a provisioner runs.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
    Repeat {
        /// When it was not run as it is now.
        #[default]
        Once = "once",
        /// In every run.
        Always = "always",
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

/// Vagrant's provisioners that p1 knows, and one of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProvisionType {
    Shell,
    File,
    Ansible,
    AnsibleLocal,
    Puppet,
    PuppetServer,
    ChefSolo,
    ChefZero,
    ChefClient,
    ChefApply,
    Salt,
    /// A command on this host.
    Local,
}

use ProvisionType as T;

/// Their names, as Vagrant has them.
pub(super) const TYPES: [(&str, ProvisionType); 12] = [
    ("shell", T::Shell),
    ("file", T::File),
    ("ansible", T::Ansible),
    ("ansible_local", T::AnsibleLocal),
    ("puppet", T::Puppet),
    ("puppet_server", T::PuppetServer),
    ("chef_solo", T::ChefSolo),
    ("chef_zero", T::ChefZero),
    ("chef_client", T::ChefClient),
    ("chef_apply", T::ChefApply),
    ("salt", T::Salt),
    ("local", T::Local),
];

impl ProvisionType {
    /// Vagrant's name of it.
    pub fn name(self) -> &'static str {
        TYPES.iter().find(|(_, t)| *t == self).map_or("", |(name, _)| name)
    }

    /// Vagrant shares folders with the machine for it, and that at every boot.
    pub fn shares(self) -> bool {
        matches!(self, T::Puppet | T::ChefSolo | T::ChefZero)
    }

    /// Ansible, from this host or on the node.
    pub fn is_ansible(self) -> bool {
        matches!(self, T::Ansible | T::AnsibleLocal)
    }

    /// Vagrant has to know the guest's system for it, to install what it needs there.
    pub fn asks_guest(self) -> bool {
        !matches!(self, T::Shell | T::File | T::Ansible | T::Local)
    }

    /// The keys of the spec that it takes.
    fn keys(self) -> &'static [&'static str] {
        match self {
            T::Shell => &["path", "inline", "args", "env", "privileged"],
            T::Local => &["path", "inline", "args", "env"],
            T::File => &["source", "destination"],
            T::Ansible => &["playbook", "inventory_path", "extra_vars", "limit", "groups", "become"],
            T::AnsibleLocal => &[
                "playbook",
                "provisioning_path",
                "inventory_path",
                "extra_vars",
                "limit",
                "groups",
                "become",
            ],
            T::Puppet => &["manifests_path", "manifest_file", "module_path", "facter"],
            T::PuppetServer => &["facter"],
            T::ChefSolo | T::ChefZero => &["cookbooks_path", "roles_path", "run_list", "recipes", "json"],
            T::ChefClient => &["run_list", "recipes", "json"],
            T::ChefApply => &["recipe"],
            T::Salt => &["minion_config", "run_highstate", "masterless"],
        }
    }

    /// Keys without which it is nothing, and what to say then.
    fn needs(self) -> &'static [(&'static [&'static str], &'static str)] {
        match self {
            T::Shell | T::Local => {
                &[(&["path", "inline"], "Name a script, `path: setup.sh`, or write it, `inline: ...`.")]
            }
            T::File => &[
                (&["source"], "Name a file or a directory of this host: `source: app.conf`."),
                (&["destination"], "Say where it goes on the node: `destination: /etc/app.conf`."),
            ],
            T::Ansible => &[(&["playbook"], "Name a playbook: `playbook: site.yml`.")],
            T::AnsibleLocal => &[
                (&["playbook"], "Name a playbook in `provisioning_path`: `playbook: site.yml`."),
                (
                    &["provisioning_path"],
                    "Say in which directory of the node the playbook is; a file provisioner before this one \
                     can bring it there. p1's machines have no /vagrant.",
                ),
            ],
            T::Puppet => &[(
                &["manifests_path", "options"],
                "Name the directory with the manifests, `manifests_path: manifests`, or `environment_path` and \
                 `environment` under `options`.",
            )],
            T::PuppetServer => &[(&["options"], "Name it: `options: {puppet_server: puppet.example.org}`.")],
            T::ChefSolo | T::ChefZero => &[(
                &["cookbooks_path"],
                "Name the directory with the cookbooks: `cookbooks_path: cookbooks`.",
            )],
            T::ChefClient => &[(
                &["options"],
                "Name the server and the key: `options: {chef_server_url: .., validation_key_path: ..}`.",
            )],
            T::ChefApply => &[(&["recipe"], "Write the recipe: `recipe: package 'curl'`.")],
            T::Salt => &[],
        }
    }
}

/// What is said of `options`' keys that are p1's.
const OWN: &[&str] = &["id", "type", "run", "before", "after", "preserve_order", "communicator_required"];

/// Works out every provisioner and reports what does not fit.
pub(super) fn all(file: &File, drafts: &[Draft<'_>], report: &mut Report<'_>) -> Vec<Provisioner> {
    let mut names: HashMap<&str, Span> = HashMap::new();
    let mut out = Vec::new();
    for At { at, value: one } in file.provision.value().into_iter().flatten().flatten() {
        if let Some(name) = one.name.get() {
            if let Some(first) = names.get(name.value.0.as_str()) {
                let message = format!("the name `{}` is taken", name.value.0);
                let help =
                    format!("Line {} has it too; every provisioner needs its own.", report.line(*first));
                report.error(name.at, message, help);
            }
            names.entry(&name.value.0).or_insert(name.at);
        }
        let nodes = nodes(one, drafts, report);
        let Some(kind) = one.r#type.value().copied() else { continue };
        let Some(name) = one.name.value() else { continue };
        let before = report.errors();
        keys(one, kind, *at, report);
        let when = slot(one, kind, report);
        let (settings, mut inputs) = settings(one, kind, report);
        for watched in one.watch.value().into_iter().flatten().flatten() {
            inputs.push(watched.value.0.clone());
        }
        if report.errors() > before {
            continue;
        }
        let nodes = match (kind, one.nodes.value()) {
            (T::Local, _) => Vec::new(),
            (_, None) if when == Slot::AfterCluster => nodes.into_iter().take(1).collect(),
            _ => nodes,
        };
        out.push(Provisioner {
            name: name.0.clone(),
            kind,
            when,
            always: one.run.value() == Some(&Repeat::Always),
            reboot: one.reboot.value().is_some_and(|flag| flag.0),
            nodes,
            // With settings that only Vagrant knows, only Vagrant can run it.
            by_vagrant: !matches!(kind, T::Shell | T::File | T::Local) || one.options.value().is_some(),
            settings,
            inputs,
        });
    }
    out
}

/// When it runs; and what is not for a command on this host.
fn slot(one: &ProvisionFile, kind: ProvisionType, report: &mut Report<'_>) -> Slot {
    let local = kind == T::Local;
    let given = one.when.get();
    let slot = given.map_or(if local { Slot::AfterUp } else { Slot::BeforeK3s }, |when| when.value);
    let fits = if local { !matches!(slot, Slot::BeforeK3s | Slot::AfterK3s) } else { !slot.is_trigger() };
    if let Some(when) = given.filter(|_| !fits) {
        let which = if local { "`type: local` alone" } else { "`type: local`" };
        let help = match local {
            true => "On this host a command runs `before-up`, `after-up`, `after-cluster`, `before-destroy` or `after-destroy`.".to_owned(),
            false => format!("It is for {which}; on nodes it is `before-k3s`, `after-k3s` or `after-cluster`."),
        };
        report.error(when.at, format!("`when: {}` is not for type `{}`", slot.name(), kind.name()), help);
    }
    if local {
        let all = [
            ("nodes", one.nodes.get().map(|n| n.at)),
            ("run", one.run.get().map(|n| n.at)),
            ("reboot", one.reboot.get().map(|n| n.at)),
        ];
        for (key, at) in all {
            let Some(at) = at else { continue };
            let help = match key {
                "run" => "`after-cluster` runs once, and the others every time.",
                _ => "It runs on this host.",
            };
            report.error(at, format!("`{key}` is not for type `local`"), help);
        }
    }
    slot
}

/// The nodes it is for: by their own names, by that of a group, or by role; without any, all.
fn nodes(one: &ProvisionFile, drafts: &[Draft<'_>], report: &mut Report<'_>) -> Vec<String> {
    let fits = |word: &str, draft: &Draft<'_>| {
        let role = match word {
            "server" => Some(Role::Server),
            "worker" | "agent" => Some(Role::Worker),
            "none" => Some(Role::None),
            _ => None,
        };
        let group = draft.file.name.value().map(|n| n.0.as_str());
        role.map_or(draft.name.as_deref() == Some(word) || group == Some(word), |r| draft.role == Some(r))
    };
    let words: Option<Vec<&At<_>>> = one.nodes.value().map(|list| list.iter().flatten().collect());
    for word in words.iter().flatten() {
        let name = word.value.0.as_str();
        if drafts.iter().any(|d| fits(name, d)) {
            continue;
        }
        let known = || drafts.iter().filter_map(|d| d.name.as_deref()).chain(["server", "worker", "none"]);
        let help = match nearest(name, known()) {
            Some(near) => format!("Did you mean `{near}`?"),
            None => "Name nodes of the spec, or a role: `server`, `worker`, `none`.".to_owned(),
        };
        report.error(word.at, format!("no node is `{name}`"), help);
    }
    let chosen = |d: &&Draft<'_>| words.as_ref().is_none_or(|w| w.iter().any(|w| fits(&w.value.0, d)));
    let mut chosen: Vec<&Draft<'_>> = drafts.iter().filter(chosen).collect();
    chosen.sort_by_key(|d| d.role);
    chosen.iter().filter_map(|d| d.name.clone()).collect()
}

/// Keys that are not for this type, and those that are missing.
fn keys(one: &ProvisionFile, kind: ProvisionType, at: Span, report: &mut Report<'_>) {
    let given = one.given();
    for (key, key_at) in &given {
        if !kind.keys().contains(key) && *key != "options" {
            let message = format!("`{key}` is not for type `{}`", kind.name());
            report.error(
                key_at.unwrap_or(at),
                message,
                format!("It takes {}.", listed(kind.keys().iter().copied())),
            );
        }
    }
    for (any, help) in kind.needs() {
        let mut there = given.iter().filter(|(key, _)| any.contains(key));
        match (there.next(), there.next()) {
            (None, _) => {
                let missing: Vec<&str> = any.iter().copied().filter(|k| *k != "options").collect();
                let what = if missing.is_empty() { "`options`".to_owned() } else { listed(missing) };
                report.error(at, format!("{} is missing", what.replace(", ", " or ")), *help);
            }
            (Some(_), Some((_, second))) if matches!(kind, T::Shell | T::Local) => {
                report.error(
                    second.unwrap_or(at),
                    "`path` and `inline` exclude each other",
                    "Keep one of the two.",
                );
            }
            _ => {}
        }
    }
    if let (T::File | T::Local, Some(options)) = (kind, one.options.get()) {
        let takes = format!("It takes {}.", listed(kind.keys().iter().copied()));
        report.error(options.at, format!("`options` is not for type `{}`", kind.name()), takes);
    }
    let Some(options) = one.options.get() else { return };
    for key in options.value.0.keys().filter_map(|k| k.as_str()) {
        let (message, help) = if OWN.contains(&key) {
            (
                format!("`{key}` cannot be set in the spec"),
                "When and in which order it runs, p1 decides by `when`.".into(),
            )
        } else if kind.keys().contains(&key) {
            (format!("`{key}` is a key of its own"), format!("Move `{key}` out of `options`."))
        } else if !is_variable(key) || key.starts_with(|c: char| c.is_ascii_uppercase()) {
            (
                format!("`{}` is not a setting", super::report::short(key)),
                "Settings are named as in a Vagrantfile.".into(),
            )
        } else {
            continue;
        };
        report.error(options.at, message, help);
    }
}

/// Vagrant's settings, and the files and directories that they name.
fn settings(
    one: &ProvisionFile,
    kind: ProvisionType,
    report: &mut Report<'_>,
) -> (Map<String, Json>, Vec<PathBuf>) {
    let (mut out, mut inputs) = (Map::new(), Vec::new());
    let mut put = |key: &str, value: Json| _ = out.insert(key.to_owned(), value);
    let file = |field: &Field<FilePath>| field.value().map(|p| p.0.clone());
    let any = |field: &Field<AnyPath>| field.value().map(|p| p.0.clone());
    for (key, path) in [
        ("path", file(&one.path)),
        ("source", any(&one.source)),
        ("inventory_path", any(&one.inventory_path)),
        ("manifests_path", any(&one.manifests_path)),
        ("module_path", any(&one.module_path)),
        ("cookbooks_path", any(&one.cookbooks_path)),
        ("roles_path", any(&one.roles_path)),
        ("minion_config", file(&one.minion_config)),
    ] {
        if let Some(path) = path {
            put(key, json!(path));
            inputs.push(path);
        }
    }
    for (key, field) in [
        ("inline", &one.inline),
        ("destination", &one.destination),
        ("provisioning_path", &one.provisioning_path),
        ("limit", &one.limit),
        ("manifest_file", &one.manifest_file),
        ("recipe", &one.recipe),
    ] {
        if let Some(text) = field.value() {
            put(key, json!(text.0));
        }
    }
    for (key, field) in [
        ("privileged", &one.privileged),
        ("become", &one.r#become),
        ("run_highstate", &one.run_highstate),
        ("masterless", &one.masterless),
    ] {
        if let Some(flag) = field.value() {
            put(key, json!(flag.0));
        }
    }
    let maps = [
        ("extra_vars", &one.extra_vars),
        ("groups", &one.groups),
        ("facter", &one.facter),
        ("json", &one.json),
    ];
    for (key, field) in maps {
        if let Some(map) = field.value() {
            put(key, plain(&map.0));
        }
    }
    if let Some(env) = one.env.get() {
        for (key, value) in &env.value.0 {
            let key = key.as_str().unwrap_or_default();
            if !is_variable(key) {
                let message = format!("`{}` is not a variable", super::report::short(key));
                report.error(env.at, message, "Names are letters, digits and `_`, with no digit in front.");
            } else if value.is_mapping() || value.is_sequence() || value.is_null() {
                let message = format!("the variable `{key}` is not text");
                report.error(env.at, message, "Write text, a number, `true` or `false`.");
            }
        }
        put("env", plain(&env.value.0));
    }
    let list = |field: &Field<Vec<Option<At<Text>>>>| -> Option<Vec<String>> {
        Some(field.value()?.iter().flatten().map(|item| item.value.0.clone()).collect())
    };
    if let Some(args) = one.args.value() {
        put("args", json!(args.iter().flatten().map(|arg| &arg.value.0).collect::<Vec<_>>()));
    }
    let recipes = list(&one.recipes).unwrap_or_default();
    let mut run_list = list(&one.run_list).unwrap_or_default();
    run_list.extend(recipes.iter().map(|r| format!("recipe[{r}]")));
    if !run_list.is_empty() {
        put("run_list", json!(run_list));
    }
    if let Some(playbook) = one.playbook.get() {
        // On the node for ansible_local, on this host for ansible.
        if kind == T::Ansible {
            put("playbook", json!(playbooks(playbook, report, &mut inputs)));
        } else {
            put("playbook", json!(playbook.value.0));
        }
    }
    for (key, value) in one.options.value().map(|o| &o.0).into_iter().flatten() {
        let key = key.as_str().unwrap_or_default();
        let mut value = serde_json::to_value(value).unwrap_or_default();
        if kind != T::AnsibleLocal {
            value = found(key, value, report.base, &mut inputs);
        }
        out.insert(key.to_owned(), value);
    }
    (out, inputs)
}

fn plain(map: &Yaml) -> Json {
    serde_json::to_value(map).unwrap_or_default()
}

/// Beside a playbook, Ansible takes these by itself.
const BESIDE: [&str; 8] =
    ["group_vars", "host_vars", "roles", "files", "templates", "vars", "tasks", "library"];

/// The playbook's path, which has to be there.
fn playbooks(playbook: &At<Text>, report: &mut Report<'_>, inputs: &mut Vec<PathBuf>) -> PathBuf {
    let path = report.base.join(&playbook.value.0);
    if !path.is_file() {
        let message = format!("the file `{}` is not there", super::report::short(&playbook.value.0));
        let help = format!("p1 looked for {}: relative paths start at the spec's folder.", path.display());
        report.error(playbook.at, message, help);
    }
    let beside = path.parent().map(Path::to_owned).unwrap_or_default();
    inputs.push(path.clone());
    inputs.extend(BESIDE.iter().map(|name| beside.join(name)).filter(|p| p.is_dir()));
    path
}

/// A setting that names a file of this host: Vagrant would look beside its own Vagrantfile, p1 means the
/// spec's folder.
fn found(key: &str, value: Json, base: &Path, inputs: &mut Vec<PathBuf>) -> Json {
    let named = key.ends_with("_path") || key.ends_with("_file") || key.ends_with("_config");
    let known = ["minion_key", "minion_pub", "master_key", "master_pub", "bootstrap_script"].contains(&key);
    let Some(text) = value.as_str().filter(|t| !t.is_empty() && (named || known)) else { return value };
    let path = base.join(text);
    if !path.exists() {
        return value;
    }
    inputs.push(path.clone());
    json!(path)
}

/// Of a cluster that is to be shown: with nothing secret in its provisioners.
pub fn without_secrets(cluster: &mut super::Cluster) {
    let secrets = &cluster.secrets;
    cluster.provision.iter_mut().for_each(|one| hide(one, secrets));
}

/// The values of its environment are secrets, and so is what variables brought in as such.
pub fn hide(one: &mut Provisioner, secrets: &[String]) {
    one.settings.values_mut().for_each(|value| secret::hide(value, secrets));
    if let Some(Json::Object(env)) = one.settings.get_mut("env") {
        env.values_mut().for_each(|value| *value = json!("(not shown)"));
    }
}
