//! What a box is made of, as written in `boxes/*.yaml`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::Error;
use crate::os::files::{self, At};
use crate::os::hash::{self, Sum};

/// Raise it when [`super::build()`] makes something else of the same definition.
const RECIPE: u32 = 1;
/// The same of one with an `image`.
const IMAGE_RECIPE: u32 = 1;

macro_rules! embedded {
    ($($name:literal)*) => { &[$(($name, include_str!(concat!("../../boxes/", $name, ".yaml")))),*] };
}

const EMBEDDED: &[(&str, &str)] = embedded![
    "almalinux-10" "almalinux-9" "debian-12" "debian-12-cloud" "debian-13" "debian-13-cloud" "rocky-9"
    "ubuntu-22.04" "ubuntu-24.04"
];

/// A box to be: made of Debian's packages, or prepared from an image. `boxes/debian-12.yaml` and
/// `boxes/debian-12-cloud.yaml` explain every key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// Name of the box.
    pub name: String,
    /// For people.
    pub version: String,
    /// What it is prepared from, if it is not made of packages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// Debian's release, by code name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub suite: String,
    /// Parts of the archive.
    #[serde(default = "main")]
    pub components: Vec<String>,
    /// Where packages come from; without it the host's own apt sources of this suite.
    #[serde(default)]
    pub mirror: Option<String>,
    /// What the guests' CPU must be able to do.
    #[serde(default)]
    pub cpu: Cpu,
    /// Packages beside the essential ones and the kernel, or beside those that the image has.
    #[serde(default)]
    pub packages: Vec<String>,
    /// The virtual disk.
    #[serde(default)]
    pub disk: Disk,
    /// The kernel and what it is told.
    #[serde(default, skip_serializing_if = "Kernel::is_unset")]
    pub kernel: Kernel,
    /// The account Vagrant uses.
    #[serde(default = "vagrant")]
    pub user: String,
    /// Options of the SSH server.
    #[serde(default)]
    pub sshd: BTreeMap<String, String>,
    /// What is started when.
    #[serde(default)]
    pub systemd: Systemd,
    /// Files put in place before the packages are installed.
    #[serde(default)]
    pub files: Vec<FileEntry>,
    /// The folder that a relative path of it starts at.
    #[serde(skip)]
    pub base: PathBuf,
}

/// A vendor's disk image with cloud-init in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Where it is downloaded from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Where it lies on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Its SHA-256 or SHA-512, or the address of a list of them.
    pub checksums: String,
}

impl Image {
    /// What it is called in a list of checksums.
    pub fn file_name(&self) -> String {
        let path = match (&self.url, &self.path) {
            (Some(url), _) => url.split(['?', '#']).next().unwrap_or_default().to_owned(),
            (None, path) => path.as_deref().unwrap_or(Path::new("")).to_string_lossy().into_owned(),
        };
        path.rsplit('/').next().unwrap_or_default().to_owned()
    }
}

fn main() -> Vec<String> {
    vec!["main".to_owned()]
}

fn vagrant() -> String {
    "vagrant".to_owned()
}

/// Levels of the x86-64 psABI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cpu {
    /// Any.
    #[default]
    #[serde(rename = "x86-64")]
    V1,
    /// SSE4.2 and what came with it.
    #[serde(rename = "x86-64-v2")]
    V2,
    /// AVX2 and what came with it.
    #[serde(rename = "x86-64-v3")]
    V3,
}

/// The virtual disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// What the guest sees, in GiB (Vagrant's `virtual_size` is a whole number of them).
    pub size_gib: u32,
}

impl Default for Disk {
    fn default() -> Self {
        Self { size_gib: 10 }
    }
}

/// Which kernel is booted, and with what on its command line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Debian package.
    pub package: String,
    /// Command line after `root=... rw`.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// Modules the initial ram disk loads, in this order.
    #[serde(default)]
    pub initramfs_modules: Vec<String>,
    /// Modules never loaded because a device is there.
    #[serde(default)]
    pub blacklist: Vec<String>,
}

impl Kernel {
    fn is_unset(&self) -> bool {
        *self == Self::default()
    }
}

/// What is started when.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Systemd {
    /// Units to enable.
    #[serde(default)]
    pub enabled: Vec<String>,
    /// Services that wait until sshd is up.
    #[serde(default)]
    pub after_ssh: Vec<String>,
    /// Units that must never start.
    #[serde(default)]
    pub masked: Vec<String>,
    /// Generators that must never run.
    #[serde(default)]
    pub masked_generators: Vec<String>,
}

/// One file of the box.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Absolute path in the guest.
    pub path: String,
    /// Octal, as text; 0644 if absent.
    #[serde(default)]
    pub mode: Option<String>,
    /// What is in it.
    pub content: String,
}

impl FileEntry {
    /// The mode as a number; [`parse()`] has checked it.
    pub(super) fn mode(&self) -> u32 {
        self.mode.as_deref().and_then(|m| u32::from_str_radix(m, 8).ok()).unwrap_or(0o644)
    }
}

/// Definitions that came with the program: name and YAML text.
pub fn embedded() -> &'static [(&'static str, &'static str)] {
    EMBEDDED
}

/// The definition `name`: `<extra_dir>/<name>.yaml` if there is one, else the embedded one.
pub fn load(name: &str, extra_dir: Option<&Path>) -> Result<Definition, Error> {
    // Also keeps the name from leaving the folder.
    check_name(name).map_err(|_| Error::Name { name: name.to_owned() })?;
    if let Some(dir) = extra_dir {
        let path = dir.join(format!("{name}.yaml"));
        if let Some(text) = files::read_if_there(&path)? {
            let definition =
                Definition { base: dir.to_owned(), ..parse(&text, &path.display().to_string())? };
            if definition.name != name {
                return Err(Error::Value {
                    origin: path.display().to_string(),
                    key: "name",
                    message: format!("\"{}\" must be the name of the file, \"{name}\"", definition.name),
                });
            }
            return Ok(definition);
        }
    }
    match EMBEDDED.iter().find(|(known, _)| *known == name) {
        Some((_, text)) => parse(text, &format!("embedded {name}.yaml")),
        None => Err(Error::Unknown {
            name: name.to_owned(),
            known: known(extra_dir)?,
            dir: extra_dir.map(Path::to_owned),
        }),
    }
}

fn known(extra_dir: Option<&Path>) -> Result<Vec<String>, Error> {
    let mut names: Vec<String> = EMBEDDED.iter().map(|(n, _)| (*n).to_owned()).collect();
    if let Some(dir) = extra_dir.filter(|d| d.is_dir()) {
        for entry in fs::read_dir(dir).at("read", dir)? {
            let path = entry.at("read", dir)?.path();
            if path.extension().is_some_and(|e| e == "yaml")
                && let Some(stem) = path.file_stem().and_then(|s| s.to_str())
            {
                names.push(stem.to_owned());
            }
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Reads a definition; `origin` is what errors call the text.
pub fn parse(text: &str, origin: &str) -> Result<Definition, Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let options = serde_saphyr::options! { strict_booleans: true };
    let definition: Definition = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let (line, column) = error.location().map_or((1, 1), |l| (l.line(), l.column()));
        let formatter = serde_saphyr::UserMessageFormatter;
        let snippet = error.render_with_formatter(&formatter);
        let plain = error.without_snippet().render_with_formatter(&formatter);
        // The position is said by our own error already, and its words do not begin with it.
        let message = plain.rsplit_once(" at line ").map_or(plain.as_str(), |(m, _)| m);
        let message = match message.lines().next().unwrap_or_default() {
            // The names of Rust's types mean nothing to people.
            "invalid u32" | "invalid u64" => "expected a whole number".to_owned(),
            message => message.to_owned(),
        };
        Error::Definition { origin: origin.to_owned(), line, column, message, snippet }
    })?;
    check(&definition, origin)?;
    Ok(definition)
}

/// What is put into files, command lines and unit names must be what it is taken for.
fn check(d: &Definition, origin: &str) -> Result<(), Error> {
    let bad = |key, message: String| Err(Error::Value { origin: origin.to_owned(), key, message });
    if let Err(message) = check_name(&d.name) {
        return bad("name", message);
    }
    match &d.image {
        Some(image) => check_image(d, image).or_else(|(key, message)| bad(key, message))?,
        None if d.suite.is_empty() || d.kernel.is_unset() => {
            let lacks = if d.suite.is_empty() { "suite" } else { "kernel" };
            return bad(lacks, "it is missing, and there is no `image` either".to_owned());
        }
        None => {}
    }
    if d.image.is_none() && !plain(&d.suite, "-") {
        return bad("suite", format!("\"{}\" is not a code name such as bookworm", d.suite));
    }
    if let Some(c) = d.components.iter().find(|c| !plain(c, "-/")) {
        return bad("components", format!("\"{c}\" is not a part of the archive such as main"));
    }
    if let Some(mirror) = &d.mirror
        && !(mirror.starts_with("http://") || mirror.starts_with("https://") || mirror.starts_with("file:/"))
    {
        return bad("mirror", format!("\"{mirror}\" does not begin with http://, https:// or file:/"));
    }
    if let Some(m) = d.mirror.as_ref().filter(|m| m.contains(char::is_whitespace)) {
        return bad("mirror", format!("\"{m}\" has white space in it"));
    }
    let kernel = Some(&d.kernel.package).filter(|_| d.image.is_none());
    if let Some(p) = d.packages.iter().chain(kernel).find(|p| !plain(p, "-+._")) {
        return bad("packages", format!("\"{p}\" is not the name of a package"));
    }
    if !(2..=2048).contains(&d.disk.size_gib) {
        return bad("disk.size_gib", format!("{} is not between 2 and 2048", d.disk.size_gib));
    }
    if let Some(a) =
        d.kernel.arguments.iter().find(|a| a.is_empty() || a.contains([' ', '\n', '"', '\'', '$', ';']))
    {
        return bad("kernel.arguments", format!("\"{a}\" is not one plain word"));
    }
    let modules = d.kernel.initramfs_modules.iter().chain(&d.kernel.blacklist);
    if let Some(m) = modules.into_iter().find(|m| !plain(m, "_-")) {
        return bad("kernel", format!("\"{m}\" is not the name of a module"));
    }
    if !d.user.starts_with(|c: char| c.is_ascii_lowercase()) || !plain(&d.user, "_-") || d.user == "root" {
        return bad("user", format!("\"{}\" is not a name for an ordinary account", d.user));
    }
    if let Some((k, v)) =
        d.sshd.iter().find(|(k, v)| !k.chars().all(|c| c.is_ascii_alphanumeric()) || v.contains('\n'))
    {
        return bad("sshd", format!("\"{k} {v}\" is not an option of sshd on one line"));
    }
    let s = &d.systemd;
    let units = s.enabled.iter().chain(&s.after_ssh).chain(&s.masked).chain(&s.masked_generators);
    if let Some(u) = units.into_iter().find(|u| !plain(u, "@-_.:\\")) {
        return bad("systemd", format!("\"{u}\" is not the name of a unit"));
    }
    for f in &d.files {
        let parts: Vec<&str> = f.path.split('/').collect();
        if parts.len() < 2 || !parts[0].is_empty() || parts[1..].iter().any(|p| matches!(*p, "" | "." | ".."))
        {
            return bad("files", format!("\"{}\" is not an absolute path", f.path));
        }
        if let Some(m) = f.mode.as_deref().filter(|m| u32::from_str_radix(m, 8).map_or(true, |n| n > 0o7777))
        {
            return bad("files", format!("mode \"{m}\" is not octal, such as \"0755\""));
        }
    }
    Ok(())
}

/// What an image cannot have, and what it must.
fn check_image(d: &Definition, image: &Image) -> Result<(), (&'static str, String)> {
    let made = [
        ("suite", d.suite.is_empty()),
        ("mirror", d.mirror.is_none()),
        ("kernel", d.kernel.is_unset()),
        ("systemd", d.systemd == Systemd::default()),
        ("sshd", d.sshd.is_empty()),
    ];
    if let Some((key, _)) = made.into_iter().find(|(_, unset)| !unset) {
        return Err((
            key,
            "it is for boxes that are made of packages, and this one has an `image`".to_owned(),
        ));
    }
    let web = |url: &str| url.starts_with("http://") || url.starts_with("https://");
    let blank = |url: &str| url.contains(char::is_whitespace);
    match (&image.url, &image.path) {
        (Some(url), None) if !web(url) || blank(url) => {
            return Err(("image.url", format!("\"{url}\" does not begin with http:// or https://")));
        }
        (Some(_), None) | (None, Some(_)) => {}
        _ => return Err(("image", "it needs either `url` or `path`".to_owned())),
    }
    let sums = &image.checksums;
    let list = (web(sums) || sums.starts_with("file:///")) && !blank(sums);
    if !list && Sum::read(sums).is_none() {
        let what = format!(
            "\"{sums}\" is neither 64 or 128 hexadecimal digits nor the address of a list of checksums"
        );
        return Err(("image.checksums", what));
    }
    if image.file_name().is_empty() {
        return Err(("image", "it names no file".to_owned()));
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), String> {
    let label = |l: &str| !l.is_empty() && !l.starts_with('-') && !l.ends_with('-') && l.len() <= 63;
    let chars = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.');
    if chars && name.split('.').all(label) {
        Ok(())
    } else {
        Err(format!("\"{name}\" is not made of lower-case letters, digits, `-` and `.`"))
    }
}

fn plain(word: &str, more: &str) -> bool {
    !word.is_empty()
        && !word.starts_with('-')
        && word.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
}

/// A checksum of all that decides what is built: other digest, other box. 64 hex digits.
pub fn digest(definition: &Definition) -> String {
    let json = serde_json::to_string(definition).expect("a definition is plain data");
    let recipe = if definition.image.is_some() { IMAGE_RECIPE } else { RECIPE };
    hash::sha256(format!("p1 box recipe {recipe}\n{json}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::Explain;
    use rstest::rstest;

    const SMALL: &str = "name: small\nversion: \"1\"\nsuite: bookworm\npackages: [systemd-sysv]\nkernel: {package: linux-image-cloud-amd64}\n";

    #[test]
    fn the_embedded_definitions_are_valid_and_carry_their_names() {
        for (name, _) in embedded() {
            assert_eq!(load(name, None).unwrap().name, *name);
        }
    }

    #[test]
    fn defaults_are_filled_in() {
        let d = parse(SMALL, "small.yaml").unwrap();
        assert_eq!((d.user.as_str(), d.disk.size_gib, d.cpu), ("vagrant", 10, Cpu::V1));
        assert_eq!(d.components, ["main"]);
    }

    #[test]
    fn an_unknown_key_is_shown_at_its_place() {
        let error = parse(&format!("{SMALL}disk:\n  size_gb: 4\n"), "small.yaml").unwrap_err();
        insta::assert_snapshot!(error, @"small.yaml:7:3: unknown field `size_gb`, expected one of size_gib");
        let shown = error.evidence().join("\n");
        assert!(shown.contains("7 |   size_gb: 4\n  |   ^ unknown field `size_gb`"), "{shown}");
    }

    #[test]
    fn a_duplicate_key_and_a_wrong_type_have_positions() {
        let twice = parse(&format!("{SMALL}name: other\n"), "small.yaml").unwrap_err();
        insta::assert_snapshot!(twice, @"small.yaml:6:1: duplicate mapping key `name` is not allowed here");
        let text = parse(&format!("{SMALL}disk: {{size_gib: big}}\n"), "small.yaml").unwrap_err();
        insta::assert_snapshot!(text, @"small.yaml:6:18: expected a whole number");
    }

    #[rstest]
    #[case(
        "name: small",
        "name: Small",
        "small.yaml: `name`: \"Small\" is not made of lower-case letters, digits, `-` and `.`"
    )]
    #[case(
        "[systemd-sysv]",
        "[\"a; reboot\"]",
        "small.yaml: `packages`: \"a; reboot\" is not the name of a package"
    )]
    #[case("suite: bookworm", "suite: -x", "small.yaml: `suite`: \"-x\" is not a code name such as bookworm")]
    #[case(
        "version: \"1\"",
        "version: \"1\"\ndisk: {size_gib: 1}",
        "small.yaml: `disk.size_gib`: 1 is not between 2 and 2048"
    )]
    #[case(
        "version: \"1\"",
        "version: \"1\"\nuser: root",
        "small.yaml: `user`: \"root\" is not a name for an ordinary account"
    )]
    #[case(
        "version: \"1\"",
        "version: \"1\"\nfiles: [{path: /etc/../x, content: \"\"}]",
        "small.yaml: `files`: \"/etc/../x\" is not an absolute path"
    )]
    #[case(
        "version: \"1\"",
        "version: \"1\"\nfiles: [{path: /x, mode: \"9\", content: \"\"}]",
        "small.yaml: `files`: mode \"9\" is not octal, such as \"0755\""
    )]
    #[case(
        "version: \"1\"",
        "version: \"1\"\nmirror: debian.org",
        "small.yaml: `mirror`: \"debian.org\" does not begin with http://, https:// or file:/"
    )]
    fn values_that_make_no_sense_are_refused(#[case] from: &str, #[case] to: &str, #[case] message: &str) {
        assert!(SMALL.contains(from));
        assert_eq!(parse(&SMALL.replace(from, to), "small.yaml").unwrap_err().to_string(), message);
    }

    #[rstest]
    #[case("", "`suite`: it is missing, and there is no `image` either")]
    #[case("suite: trixie", "`kernel`: it is missing, and there is no `image` either")]
    #[case("image: {checksums: SUM}", "`image`: it needs either `url` or `path`")]
    #[case("image: {path: a, url: http://x/a, checksums: SUM}", "`image`: it needs either `url` or `path`")]
    #[case(
        "image: {url: ftp://x/a, checksums: SUM}",
        "`image.url`: \"ftp://x/a\" does not begin with http:// or https://"
    )]
    #[case("image: {url: http://x/, checksums: SUM}", "`image`: it names no file")]
    #[case(
        "image: {path: a, checksums: 12ab}",
        "`image.checksums`: \"12ab\" is neither 64 or 128 hexadecimal digits nor the address of a list of checksums"
    )]
    #[case(
        "sshd: {UseDNS: \"no\"}\nimage: {path: a, checksums: SUM}",
        "`sshd`: it is for boxes that are made of packages, and this one has an `image`"
    )]
    fn an_image_is_named_once_with_its_sum_and_without_what_packages_need(
        #[case] with: &str,
        #[case] message: &str,
    ) {
        let text = format!("name: small\nversion: \"1\"\n{with}\n").replace("SUM", &"ab".repeat(32));
        assert_eq!(parse(&text, "x").unwrap_err().to_string(), format!("x: {message}"));
    }

    #[test]
    fn an_image_is_found_in_a_list_by_the_last_part_of_its_name() {
        let name = |image: &str| {
            let text = format!("name: small\nversion: \"1\"\nimage: {{{image}, checksums: http://x/SUMS}}\n");
            let d = parse(&text, "x").unwrap();
            (d.image.as_ref().unwrap().file_name(), digest(&d))
        };
        let (a, b) = (name("url: https://x/y/a.qcow2?token=1#z"), name("path: ../b.raw"));
        assert_eq!((a.0.as_str(), b.0.as_str()), ("a.qcow2", "b.raw"));
        assert_ne!(a.1, b.1);
    }

    #[test]
    fn a_definition_beside_the_spec_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let text = SMALL.replace("name: small", "name: debian-12");
        fs::write(dir.path().join("debian-12.yaml"), &text).unwrap();
        assert_eq!(load("debian-12", Some(dir.path())).unwrap().packages, ["systemd-sysv"]);
        fs::write(dir.path().join("mine.yaml"), &text).unwrap();
        let error = load("mine", Some(dir.path())).unwrap_err();
        assert!(
            error.to_string().ends_with("`name`: \"debian-12\" must be the name of the file, \"mine\""),
            "{error}"
        );
        let error = load("debian-1", Some(dir.path())).unwrap_err();
        assert_eq!(error.to_string(), "there is no box definition \"debian-1\"");
        let hint = error.hint().unwrap();
        assert!(hint.starts_with("Known are almalinux-10, ") && hint.contains(", mine, rocky-9"), "{hint}");
        assert!(matches!(load("../etc/x", Some(dir.path())), Err(Error::Name { .. })));
    }

    #[test]
    fn the_digest_follows_the_content_and_not_the_comments() {
        let a = parse(SMALL, "a").unwrap();
        let b = parse(&format!("# a comment\n{SMALL}user: vagrant\n"), "b").unwrap();
        assert_eq!(digest(&a), digest(&b));
        let c = parse(&SMALL.replace("bookworm", "trixie"), "c").unwrap();
        assert_ne!(digest(&a), digest(&c));
        // A change here rebuilds everybody's boxes: it must be on purpose.
        insta::assert_snapshot!(digest(&a), @"a7955fdaa5e3b80b81d63a3e8a1542e19bb9042e5636a030fb8f73464e4e5cfd");
    }
}
