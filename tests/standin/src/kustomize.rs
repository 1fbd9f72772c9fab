//! Enough of `kubectl kustomize`: resources, a namespace, a prefix, labels and images. Anything else in
//! a kustomization is an error that says so.

use std::path::{Path, PathBuf};

use serde::de::Deserialize as _;
use serde_json::{Value, json};

const KNOWN: &[&str] =
    &["apiVersion", "kind", "resources", "bases", "namespace", "namePrefix", "commonLabels", "images"];

pub fn main(dir: &str) -> Result<(), String> {
    for object in build(Path::new(dir))? {
        print!("---\n{}", serde_yaml::to_string(&object).map_err(|e| format!("error: {e}"))?);
    }
    Ok(())
}

fn build(dir: &Path) -> Result<Vec<Value>, String> {
    let names = ["kustomization.yaml", "kustomization.yml", "Kustomization"];
    let file = names.iter().map(|n| dir.join(n)).find(|p| p.is_file()).ok_or_else(|| {
        format!("error: unable to find one of 'kustomization.yaml', 'kustomization.yml' or 'Kustomization' in directory '{}'", dir.display())
    })?;
    let value = documents(&file)?.pop().unwrap_or(json!({}));
    for key in value.as_object().into_iter().flat_map(|m| m.keys()) {
        if !KNOWN.contains(&key.as_str()) {
            return Err(format!("error: the k3s stand-in's kustomize does not know `{key}`"));
        }
    }
    let mut all = Vec::new();
    for key in ["resources", "bases"] {
        for item in value[key].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let path: PathBuf = dir.join(item);
            match path.is_dir() {
                true => all.extend(build(&path)?),
                false => all.extend(documents(&path)?),
            }
        }
    }
    for object in &mut all {
        if let Some(namespace) = value["namespace"].as_str().filter(|_| object["kind"] != "Namespace") {
            object["metadata"]["namespace"] = json!(namespace);
        }
        if let (Some(prefix), Some(name)) =
            (value["namePrefix"].as_str(), object["metadata"]["name"].as_str())
        {
            object["metadata"]["name"] = json!(format!("{prefix}{name}"));
        }
        for (key, label) in value["commonLabels"].as_object().into_iter().flatten() {
            object["metadata"]["labels"][key] = label.clone();
            if object["spec"]["template"].is_object() {
                object["spec"]["template"]["metadata"]["labels"][key] = label.clone();
                object["spec"]["selector"]["matchLabels"][key] = label.clone();
            }
        }
        for image in value["images"].as_array().into_iter().flatten() {
            let containers = object["spec"]["template"]["spec"]["containers"].as_array_mut();
            for container in containers.into_iter().flatten() {
                let name = container["image"].as_str().unwrap_or_default();
                let bare = name
                    .rsplit_once(':')
                    .filter(|(_, t)| !t.contains('/'))
                    .map_or(name, |(b, _)| b)
                    .to_owned();
                if image["name"] == bare {
                    let to = image["newName"].as_str().unwrap_or(&bare);
                    let tag = image["newTag"].as_str().map_or(String::new(), |t| format!(":{t}"));
                    container["image"] = json!(format!("{to}{tag}"));
                }
            }
        }
    }
    Ok(all)
}

fn documents(path: &Path) -> Result<Vec<Value>, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| format!("error: accumulating resources: {}: {e}", path.display()))?;
    serde_yaml::Deserializer::from_str(&text)
        .map(|d| Value::deserialize(d).map_err(|e| format!("error: {}: {e}", path.display())))
        .filter(|d| !matches!(d, Ok(Value::Null)))
        .collect()
}
