//! Manifests: which files the spec's entries stand for, and which objects are in them.
//!
//! The text of a document goes to the cluster as it was written: YAML 1.1 and 1.2 read some values
//! differently (`0644`), and only the cluster's own reading counts. Here it is read for its names.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::Serialize;
use serde_yaml::Value;

use super::plain;
use crate::os::hash;

/// The largest file, and the most files of one entry.
const MOST_BYTES: u64 = 4 << 20;
const MOST_FILES: usize = 1000;
/// What kustomize calls its file (kubernetes-sigs/kustomize, api/konfig, `RecognizedKustomizationFileNames`).
const KUSTOMIZATION: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];

/// A namespace that p1 makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Namespace {
    /// A DNS label.
    pub name: String,
    /// `key=value`.
    pub labels: Vec<String>,
}

/// When an entry of `manifests` is applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// When all nodes are Ready.
    #[default]
    Ready,
    /// As soon as the API answers.
    Api,
}

impl When {
    fn is_usual(&self) -> bool {
        *self == Self::Ready
    }
}

/// An entry of `manifests`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Manifest {
    /// As the spec names it, for people.
    pub shown: String,
    /// A file or a directory on this host, absolute; found again where the spec lies.
    #[serde(skip)]
    pub path: PathBuf,
    /// Where objects go that do not say it themselves.
    pub namespace: Option<String>,
    /// When it is applied.
    #[serde(skip_serializing_if = "When::is_usual")]
    pub when: When,
    /// What comes after it waits until it runs.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub wait: bool,
    /// The directory is built by kustomize.
    pub kustomize: bool,
    /// Names below `root` of all files that belong to it, in order.
    pub files: Vec<PathBuf>,
    /// Where `files` start; for a kustomization with a base elsewhere that is above `path`.
    #[serde(skip)]
    pub root: PathBuf,
    /// Of names and contents when the spec was read.
    pub digest: String,
}

/// An object by its names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Object {
    /// E.g. `apps/v1`.
    pub api_version: String,
    /// E.g. `Deployment`.
    pub kind: String,
    /// If it says one.
    pub namespace: Option<String>,
    pub name: String,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// One YAML document.
#[derive(Clone, PartialEq, Eq)]
pub struct Document {
    /// As it was written.
    pub text: String,
    /// Where it starts in its file, from 1.
    pub line: usize,
    /// What is in it: one object, or those of a list.
    pub objects: Vec<Object>,
    /// What must be shown to nobody: the values of Secrets, plain and as they are written.
    pub secrets: Vec<String>,
    /// It removes itself when it is done.
    pub fleeting: bool,
}

/// Never the text: it may be a secret.
impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Document").field("line", &self.line).field("objects", &self.objects).finish()
    }
}

/// What is wrong with an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// In which file, if it is about one; relative to the entry.
    pub file: Option<PathBuf>,
    /// In which line, from 1.
    pub line: Option<usize>,
    pub message: String,
    /// The message says what the file is or cannot: its name goes before it as it is.
    pub of_the_file: bool,
    pub help: String,
}

impl Flaw {
    fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { file: None, line: None, message: message.into(), of_the_file: false, help: help.into() }
    }

    /// Of a file as a whole: `is not there`.
    fn file(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { of_the_file: true, ..Self::new(message, help) }
    }

    fn of(mut self, file: &Path) -> Self {
        self.file.get_or_insert_with(|| file.to_owned());
        self
    }

    fn at(self, line: usize) -> Self {
        Self { line: Some(line), ..self }
    }
}

/// Finds the files of an entry and reads them. The documents of a kustomization are known only when
/// it is built.
pub fn look(
    shown: &str,
    path: &Path,
    namespace: Option<&str>,
) -> Result<(Manifest, Vec<Document>), Vec<Flaw>> {
    let one = |flaw| vec![flaw];
    let meta = fs::metadata(path).map_err(|e| one(unreadable(path, &e)))?;
    let mut found = Manifest {
        shown: shown.to_owned(),
        path: path.to_owned(),
        namespace: namespace.map(str::to_owned),
        when: When::default(),
        wait: false,
        kustomize: false,
        files: Vec::new(),
        root: path.to_owned(),
        digest: String::new(),
    };
    if meta.is_file() {
        found.root = path.parent().unwrap_or(path).to_owned();
        found.files.push(path.file_name().unwrap_or_default().into());
    } else if meta.is_dir() {
        if kustomization(path).is_some() {
            found.kustomize = true;
            (found.root, found.files) = closure(path).map_err(one)?;
        } else {
            below(path, Path::new(""), &mut |name| is_manifest(name), &mut found.files).map_err(one)?;
            if let Some(inner) = found.files.iter().find(|f| is_kustomization(f)) {
                let help =
                    format!("Name {} as an entry of its own.", inner.parent().unwrap_or(inner).display());
                return Err(one(
                    Flaw::new("a kustomization lies within a directory of manifests", help).of(inner)
                ));
            }
            if found.files.is_empty() {
                let help = "A directory of manifests has files that end in .yaml, .yml or .json.";
                return Err(one(Flaw::new("no manifests are in it", help)));
            }
        }
        found.files.sort();
    } else {
        return Err(one(Flaw::file(
            "is neither a file nor a directory",
            "Name a manifest, or a directory of them.",
        )));
    }
    let texts = found.texts().map_err(one)?;
    found.digest = digest(&texts);
    if found.kustomize {
        return Ok((found, Vec::new()));
    }
    let (mut all, mut flaws) = (Vec::new(), Vec::new());
    for (file, text) in &texts {
        let (documents, wrong) = documents(text);
        flaws.extend(wrong.into_iter().map(|f| f.of(file)));
        all.extend(documents);
    }
    let inner = all.iter().flat_map(|d| &d.objects);
    if let (Some(wanted), Some(other)) =
        (namespace, inner.clone().find(|o| o.namespace.as_deref().is_some_and(|n| Some(n) != namespace)))
    {
        let help = format!("The entry says `{wanted}`; leave one of the two out.");
        flaws.push(Flaw::new(format!("{other} says another namespace than its entry"), help));
    }
    if flaws.is_empty() { Ok((found, all)) } else { Err(flaws) }
}

impl Manifest {
    /// Its files as they are now: name and text.
    pub fn texts(&self) -> Result<Vec<(PathBuf, String)>, Flaw> {
        let read = |name: &PathBuf| {
            let text = read(&self.root.join(name)).map_err(|flaw| flaw.of(name))?;
            Ok((name.clone(), text))
        };
        self.files.iter().map(read).collect()
    }

    /// Its documents as they are now; for what is no kustomization.
    pub fn documents(&self) -> Result<Vec<Document>, Flaw> {
        let mut all = Vec::new();
        for (file, text) in self.texts()? {
            let (documents, flaws) = documents(&text);
            if let Some(flaw) = flaws.into_iter().next() {
                return Err(flaw.of(&file));
            }
            all.extend(documents);
        }
        Ok(all)
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Flaw {
    let help = format!("p1 looked for {}: relative paths start at the spec's folder.", path.display());
    match error.kind() {
        std::io::ErrorKind::NotFound => Flaw::file("is not there", help),
        _ => Flaw::file("cannot be read", format!("{}: {error}.", path.display())),
    }
}

/// A regular file's text; nothing that could block or be endless is read.
fn read(path: &Path) -> Result<String, Flaw> {
    let meta = fs::metadata(path).map_err(|e| unreadable(path, &e))?;
    if !meta.is_file() {
        return Err(Flaw::file("is not a regular file", "Only regular files are read."));
    }
    if meta.len() > MOST_BYTES {
        return Err(Flaw::file(
            "is larger than 4 MiB",
            "An object of a cluster has at most 1.5 MiB; cut the file.",
        ));
    }
    let bytes = fs::read(path).map_err(|e| unreadable(path, &e))?;
    // Editors of Windows begin a file with a mark that YAML's readers pass over at the start of a stream;
    // here it would land in the middle of one.
    let text = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    match std::str::from_utf8(text) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") => {
            Err(Flaw::file("is UTF-16, not UTF-8", "Save the file as UTF-8."))
        }
        Err(_) => Err(Flaw::file("is not UTF-8", "Save the file as UTF-8.")),
    }
}

fn is_manifest(name: &Path) -> bool {
    name.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") || is_kustomization(name)
}

fn is_kustomization(name: &Path) -> bool {
    name.file_name().is_some_and(|n| KUSTOMIZATION.iter().any(|k| n == *k))
}

fn kustomization(dir: &Path) -> Option<PathBuf> {
    KUSTOMIZATION.iter().map(|name| dir.join(name)).find(|path| path.is_file())
}

/// The regular files below `root`, by their names there; hidden ones are left out.
fn below(
    root: &Path,
    inner: &Path,
    wanted: &mut dyn FnMut(&Path) -> bool,
    out: &mut Vec<PathBuf>,
) -> Result<(), Flaw> {
    let dir = root.join(inner);
    let entries = fs::read_dir(&dir).map_err(|e| unreadable(&dir, &e))?;
    for entry in entries.flatten() {
        let name = inner.join(entry.file_name());
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            below(root, &name, wanted, out)?;
        } else if root.join(&name).is_file() && wanted(&name) {
            // A link to a file counts, one to a directory does not: it may lead back.
            out.push(name);
        }
        if out.len() > MOST_FILES {
            let help = "Name the directories below it one by one, or take a kustomization.";
            return Err(Flaw::new(format!("more than {MOST_FILES} files are in it"), help));
        }
    }
    Ok(())
}

/// The directories that a kustomization is made of: itself and those that it, or one of them, names.
/// Answers the folder above all of them, and the files below that.
fn closure(start: &Path) -> Result<(PathBuf, Vec<PathBuf>), Flaw> {
    let mut dirs: BTreeSet<PathBuf> = BTreeSet::new();
    let mut open = vec![tidy(start)];
    while let Some(dir) = open.pop() {
        if !dirs.insert(dir.clone()) {
            continue;
        }
        let Some(file) = kustomization(&dir) else { continue };
        let text = read(&file)?;
        let value = plain(&text).map_err(|e| syntax(&e, &text, 0).of(&file))?;
        for key in ["resources", "bases", "components"] {
            for item in value.get(key).and_then(Value::as_sequence).into_iter().flatten() {
                let Some(item) = item.as_str() else { continue };
                let next = tidy(&dir.join(item));
                if next.is_dir() {
                    open.push(next);
                } else if !item.contains("://") && !item.contains("github.com") && !next.is_file() {
                    let help = format!("{} names it under `{key}`.", file.display());
                    return Err(Flaw::new(format!("`{item}` is not there"), help).of(&file));
                }
            }
        }
    }
    let mut root = tidy(start);
    while !dirs.iter().all(|d| d.starts_with(&root)) {
        root.pop();
    }
    let mut files = Vec::new();
    for dir in &dirs {
        // What lies in a directory above another one is there already.
        if !dirs.iter().any(|d| d != dir && dir.starts_with(d)) {
            let inner = dir.strip_prefix(&root).unwrap_or(dir);
            below(&root, inner, &mut |_| true, &mut files)?;
        }
    }
    Ok((root, files))
}

/// Without `.` and `..`, by words alone.
fn tidy(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => _ = out.pop(),
            part => out.push(part),
        }
    }
    out
}

fn digest(texts: &[(PathBuf, String)]) -> String {
    let parts = texts.iter().flat_map(|(name, text)| [name.to_string_lossy(), text.into()]);
    hash::hex(&hash::parts(parts.map(|part| part.into_owned())))
}

/// Of `given`, which has so many lines `before` it. The reader calls the end of a text a line of its own.
fn syntax(error: &serde_yaml::Error, given: &str, before: usize) -> Flaw {
    let text = error.to_string();
    let last = given.lines().count().max(1);
    let line = error.location().map(|l| l.line().clamp(1, last) + before);
    // The place is said apart.
    let message = text.split(" at line ").next().unwrap_or_default();
    let help = "This is not valid YAML; look at the indentation, brackets and quotes just before.";
    Flaw { line, ..Flaw::new(format!("YAML: {message}"), help) }
}

const TEMPLATE: &str = "A template is not a manifest yet; render it first, e.g. by `helm template`.";

/// The documents of a file, and what is wrong with others of it.
pub fn documents(text: &str) -> (Vec<Document>, Vec<Flaw>) {
    let (mut out, mut flaws) = (Vec::new(), Vec::new());
    for (line, text) in slices(text) {
        let value = match plain(text) {
            Ok(value) => value,
            Err(error) => {
                let flaw = syntax(&error, text, line - 1);
                let help = if text.contains("{{") { TEMPLATE.to_owned() } else { flaw.help };
                flaws.push(Flaw { help, ..flaw });
                continue;
            }
        };
        if value.is_null() {
            continue;
        }
        let mut document = Document {
            text: text.to_owned(),
            line,
            objects: Vec::new(),
            secrets: Vec::new(),
            fleeting: false,
        };
        let template = text.contains("{{") && !value.get("kind").is_some_and(Value::is_string);
        match take(&value, &mut document) {
            Err(flaw) if template => flaws.push(Flaw { help: TEMPLATE.to_owned(), ..flaw.at(line) }),
            Ok(()) => out.push(document),
            Err(flaw) => flaws.push(flaw.at(line)),
        }
    }
    (out, flaws)
}

/// The documents' texts with the line in which each starts. A `---` in the first column begins a
/// document whatever is around it (YAML 1.2, 9.1.2).
fn slices(text: &str) -> Vec<(usize, &str)> {
    let mut out = Vec::new();
    let (mut from, mut first, mut at, mut number) = (0, 1, 0, 0);
    for line in text.split_inclusive('\n') {
        number += 1;
        let rest =
            line.strip_prefix("---").filter(|r| r.is_empty() || r.starts_with([' ', '\t', '\r', '\n']));
        if let Some(rest) = rest {
            out.push((first, &text[from..at]));
            // What stands behind the dashes belongs to the document.
            from = at + line.len() - rest.len();
            first = number;
        }
        at += line.len();
    }
    out.push((first, &text[from..]));
    // Nothing, or only comments and `%YAML`, before the first dashes.
    out.retain(|(_, t)| t.lines().any(|l| !l.trim().is_empty() && !l.starts_with(['#', '%'])));
    out
}

/// Takes an object's names, or those of a list's items.
fn take(value: &Value, into: &mut Document) -> Result<(), Flaw> {
    const HELP: &str = "Every object has `apiVersion`, `kind` and `metadata: {name: ..}`.";
    let word = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    if !value.is_mapping() {
        return Err(Flaw::new("a document is no object of a cluster", HELP));
    }
    let lacks = |what: &str| Flaw::new(format!("an object has no `{what}`"), HELP);
    let kind = word(value, "kind").ok_or_else(|| lacks("kind"))?;
    let api_version = word(value, "apiVersion").ok_or_else(|| lacks("apiVersion"))?;
    if let (true, Some(items)) = (kind.ends_with("List"), value.get("items").and_then(Value::as_sequence)) {
        return items.iter().try_for_each(|item| take(item, into));
    }
    let meta = value.get("metadata").unwrap_or(&Value::Null);
    let Some(name) = word(meta, "name").filter(|n| !n.is_empty()) else {
        if meta.get("generateName").is_some() {
            let help = "What is applied again and again needs a name of its own: `metadata: {name: ..}`.";
            return Err(Flaw::new(format!("a {kind} has `generateName`"), help));
        }
        return Err(Flaw::new(format!("a {kind} has no `metadata.name`"), HELP));
    };
    if kind == "Secret" {
        for key in ["data", "stringData"] {
            for (_, secret) in value.get(key).and_then(Value::as_mapping).into_iter().flatten() {
                into.secrets.extend(secret.as_str().map(str::to_owned));
            }
        }
    }
    into.fleeting |= value.get("spec").and_then(|s| s.get("ttlSecondsAfterFinished")).is_some();
    into.objects.push(Object { api_version, kind, namespace: word(meta, "namespace"), name });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "# a comment\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  x: |\n    a\n     --- b\n\
                       --- # next\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: b, namespace: n}\n---\n";

    #[test]
    fn documents_keep_their_text_and_their_line() {
        let (found, flaws) = documents(TWO);
        assert_eq!(flaws, []);
        let names: Vec<_> = found.iter().flat_map(|d| &d.objects).map(ToString::to_string).collect();
        assert_eq!(names, ["ConfigMap a", "Deployment n/b"]);
        assert_eq!(found.iter().map(|d| d.line).collect::<Vec<_>>(), [2, 10]);
        assert!(found[0].text.contains(" --- b\n") && !found[0].text.contains("next"));
        assert!(documents("").0.is_empty() && documents("---\n# nothing\n").0.is_empty());
    }

    #[test]
    fn what_is_wrong_has_its_line() {
        let says = |text: &str| {
            let flaws = documents(text).1;
            flaws.iter().map(|f| format!("{:?} {}", f.line, f.message)).collect::<Vec<_>>().join(" / ")
        };
        assert_eq!(
            says("kind: X\n---\n- a\n"),
            "Some(1) an object has no `apiVersion` / Some(2) a document is no object of a cluster"
        );
        assert!(says("apiVersion: v1\nkind: Pod\nmetadata: {generateName: x-}\n").contains("generateName"));
        let broken = says("apiVersion: v1\nkind: A\nmetadata: {name: a}\n---\na: [\n  b: c\nd: e\n");
        assert!(broken.starts_with("Some(7) YAML: "), "{broken}");
        assert!(documents("a: {{ .Values.x }}\n").1[0].help.contains("helm template"));
    }

    #[test]
    fn lists_are_looked_into_and_secrets_are_known() {
        let text = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Secret, metadata: {name: s}, \
                    stringData: {p: hunter2}, data: {q: aHVudGVyMw==}}\n- {apiVersion: v1, kind: Service, metadata: {name: t}}\n";
        let (found, flaws) = documents(text);
        assert_eq!(flaws, []);
        assert_eq!(found[0].objects.len(), 2);
        assert_eq!(found[0].secrets, ["aHVudGVyMw==", "hunter2"]);
        assert!(!format!("{:?}", found[0]).contains("hunter2"));
    }

    #[test]
    fn directories_are_read_in_order_and_kustomizations_with_their_bases() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let object = |name: &str| format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n");
        put("apps/b.yaml", &object("b"));
        put("apps/a/z.yml", &object("z"));
        put("apps/README.md", "no manifest");
        put("apps/.hidden.yaml", "no: manifest");
        let (found, documents) = look("apps", &dir.path().join("apps"), None).unwrap();
        assert_eq!(found.files, [Path::new("a/z.yml"), Path::new("b.yaml")]);
        assert_eq!(documents.len(), 2);
        put("apps/b.yaml", &object("c"));
        let (again, _) = look("apps", &dir.path().join("apps"), None).unwrap();
        assert_ne!(found.digest, again.digest);

        put("base/kustomization.yaml", "resources: [x.yaml]\n");
        put("base/x.yaml", &object("x"));
        put(
            "over/lay/kustomization.yaml",
            "resources: [../../base, https://example.org/y.yaml]\npatches: [{path: p.yaml}]\n",
        );
        put("over/lay/p.yaml", "spec: {}\n");
        let (found, documents) = look("over/lay", &dir.path().join("over/lay"), None).unwrap();
        assert!(found.kustomize && documents.is_empty());
        let names: Vec<_> = found.files.iter().map(|f| f.display().to_string()).collect();
        let wanted =
            ["base/kustomization.yaml", "base/x.yaml", "over/lay/kustomization.yaml", "over/lay/p.yaml"];
        assert_eq!(names, wanted);
        put("base/kustomization.yaml", "resources: [gone.yaml]\n");
        assert!(
            look("over/lay", &dir.path().join("over/lay"), None).unwrap_err()[0]
                .message
                .contains("gone.yaml")
        );
        // What Windows' editors write first is no part of the manifest.
        put("windows.yaml", &format!("\u{feff}{}", object("w")));
        let (found, documents) = look("windows.yaml", &dir.path().join("windows.yaml"), None).unwrap();
        assert!(
            documents[0].text.starts_with("apiVersion")
                && found.texts().unwrap()[0].1.starts_with("apiVersion")
        );
        fs::write(dir.path().join("wide.yaml"), b"\xff\xfea\0").unwrap();
        let flaws = look("wide.yaml", &dir.path().join("wide.yaml"), None).unwrap_err();
        assert_eq!(flaws[0].message, "is UTF-16, not UTF-8");
        put("apps/k/kustomization.yaml", "resources: []\n");
        assert!(look("apps", &dir.path().join("apps"), None).is_err());
        assert_eq!(look("none", &dir.path().join("none"), None).unwrap_err()[0].message, "is not there");
    }
}
