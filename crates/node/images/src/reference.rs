//! Image references, normalised as Docker and containerd do: `busybox` is `docker.io/library/busybox:latest`.

use std::fmt;

use crate::{Error, Result};

/// A complete reference: registry, repository, and a tag or a digest or both.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    pub registry: String,
    pub repository: String,
    pub tag: Option<String>,
    /// `sha256:<hex>`.
    pub digest: Option<String>,
}

impl Reference {
    /// Parses and normalises. Neither tag nor digest means `latest`.
    pub fn parse(text: &str) -> Result<Self> {
        let fail = |reason: &str| Error::Reference { reference: text.to_owned(), reason: reason.to_owned() };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => return Err(fail("invalid digest")),
            None => (text, None),
        };
        let name_start = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest.get(name_start..).and_then(|last| last.find(':')) {
            Some(colon) => {
                let (name, tag) = rest.split_at(name_start + colon);
                (name, Some(tag.trim_start_matches(':').to_owned()))
            }
            None => (rest, None),
        };
        if tag.as_deref().is_some_and(|tag| !is_tag(tag)) {
            return Err(fail("invalid tag"));
        }
        let (registry, repository) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path.to_owned()),
            _ => ("docker.io", name.to_owned()),
        };
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        let repository = if registry == "docker.io" && !repository.contains('/') { format!("library/{repository}") } else { repository };
        if !repository.split('/').all(is_path_part) {
            return Err(fail(if repository.bytes().any(|b| b.is_ascii_uppercase()) {
                "repository name must be lowercase"
            } else {
                "invalid reference format"
            }));
        }
        let tag = tag.or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }

    /// The same repository's content by another tag or digest.
    pub(crate) fn with(&self, wanted: &str) -> Self {
        let (tag, digest) = if is_digest(wanted) { (None, Some(wanted.to_owned())) } else { (Some(wanted.to_owned()), None) };
        Self { registry: self.registry.clone(), repository: self.repository.clone(), tag, digest }
    }

    /// `registry/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The host is this machine, where plain HTTP is allowed.
    pub(crate) fn is_loopback_host(registry: &str) -> bool {
        let registry = registry.split('/').next().unwrap_or_default();
        let host = match registry.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => registry,
        };
        host == "localhost" || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

pub(crate) fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

pub(crate) fn is_tag(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 128
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

pub(crate) fn is_path_part(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    !text.is_empty()
        && text.bytes().all(|b| inner(b) || b"._-".contains(&b))
        && text.bytes().next().is_some_and(inner)
        && text.bytes().last().is_some_and(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_become_whole_ones() {
        let hex = "a".repeat(64);
        for (given, whole) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("me/app:v1", "docker.io/me/app:v1".to_owned()),
            ("index.docker.io/x", "docker.io/library/x:latest".to_owned()),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("127.0.0.1:5000/a/b:1", "127.0.0.1:5000/a/b:1".to_owned()),
            ("sternpost.io/toolbox", "sternpost.io/toolbox:latest".to_owned()),
            (&format!("x@sha256:{hex}"), format!("docker.io/library/x@sha256:{hex}")),
            (&format!("x:1@sha256:{hex}"), format!("docker.io/library/x:1@sha256:{hex}")),
        ] {
            assert_eq!(Reference::parse(given).unwrap().to_string(), whole, "{given}");
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        for given in ["", "Busy", "x:", "x@sha256:12", "a//b", "x:ta g", "-x", "a/../b", "x y"] {
            assert!(Reference::parse(given).is_err(), "{given}");
        }
    }
}
