//! Names of images as containerd has them (github.com/distribution/reference, `ParseDockerRef`). They come from nodes, archives and
//! people.

use super::Digest;

/// The most that a name may have before its tag.
const MOST: usize = 255;

/// A name in full, `busybox` as `docker.io/library/busybox:latest`; none if it is no name. A tag beside a digest is left out.
pub fn full(text: &str) -> Option<String> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
        None => (text, None),
    };
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (rest, tag) = match rest[slash..].split_once(':') {
        Some((last, tag)) => (&rest[..slash + last.len()], Some(tag)),
        None => (rest, None),
    };
    let (host, path) = match rest.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path.to_owned()),
        Some(_) => ("docker.io", rest.to_owned()),
        None => ("docker.io", format!("library/{rest}")),
    };
    let path = match host {
        "docker.io" if !path.contains('/') => format!("library/{path}"),
        _ => path,
    };
    let word = |w: &str, more: &str| {
        !w.is_empty() && w.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    let lower = |part: &str| {
        word(part, "._-")
            && part == part.to_ascii_lowercase()
            && part.starts_with(|c: char| c.is_ascii_alphanumeric())
    };
    let is_tag = |tag: &str| word(tag, "._-") && tag.len() <= 128 && !tag.starts_with(['.', '-']);
    let good = word(host, ".:-[]")
        && host.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
        && path.split('/').all(lower)
        && host.len() + path.len() < MOST
        && tag.is_none_or(is_tag);
    good.then(|| match digest {
        Some(digest) => format!("{host}/{path}@{digest}"),
        None => format!("{host}/{path}:{}", tag.unwrap_or("latest")),
    })
}

/// The digest that a name ends with.
pub fn by_digest(name: &str) -> Option<Digest> {
    Digest::parse(name.split_once('@')?.1)
}

/// A name in full without its tag or digest.
pub fn repository(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or_default();
    let slash = name.rfind('/').map_or(0, |at| at + 1);
    name[slash..].find(':').map_or(name, |at| &name[..slash + at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_containerd() {
        let sum = "a".repeat(64);
        for (short, long) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("rancher/mirrored-pause:3.6", "docker.io/rancher/mirrored-pause:3.6"),
            ("docker.io/nginx:1", "docker.io/library/nginx:1"),
            ("localhost/x", "localhost/x:latest"),
            ("10.0.0.1:5000/a/b:v1.2_3", "10.0.0.1:5000/a/b:v1.2_3"),
            ("registry:5000/a", "registry:5000/a:latest"),
        ] {
            assert_eq!(full(short).as_deref(), Some(long));
            assert_eq!(full(long).as_deref(), Some(long));
        }
        let named = format!("ghcr.io/a/b@sha256:{sum}");
        assert_eq!(full(&format!("ghcr.io/a/b:1@sha256:{sum}")), Some(named.clone()));
        assert_eq!((repository(&named), by_digest(&named).unwrap().hex()), ("ghcr.io/a/b", &*sum));
        assert_eq!(repository("10.0.0.1:5000/a:1"), "10.0.0.1:5000/a");
        let long = "a".repeat(300);
        for bad in [
            "",
            "a b",
            "../x",
            "a/../b",
            "x:",
            "x:-1",
            "Upper",
            "x@sha256:12",
            "a//b",
            "a\n",
            "$(x)",
            "/a",
            &long,
        ] {
            assert_eq!(full(bad), None, "{bad}");
        }
    }
}
