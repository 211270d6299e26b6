//! What a request to the registry is about: its path and query, taken apart.

use std::collections::HashMap;

use crate::reference::{is_digest, is_path_part, is_tag};

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    Base,
    Catalog,
    Tags(&'a str),
    /// By tag or digest.
    Manifest(&'a str, &'a str),
    Blob(&'a str, &'a str),
    Uploads(&'a str),
    Upload(&'a str, &'a str),
    Referrers(&'a str, &'a str),
}

const NAME_BYTES_MAX: usize = 255;

fn is_name(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX && name.split('/').all(is_path_part)
}

/// `Err` names what is wrong with a path that has the right form.
pub(super) fn route(path: &str) -> Option<Result<Route<'_>, &'static str>> {
    let rest = path.strip_prefix("/v2")?;
    let rest = match rest {
        "" | "/" => return Some(Ok(Route::Base)),
        "/_catalog" => return Some(Ok(Route::Catalog)),
        other => other.strip_prefix('/')?,
    };
    let (before, last) = rest.rsplit_once('/')?;
    let found = if let (Some(name), "list") = (before.strip_suffix("/tags"), last) {
        Route::Tags(name)
    } else if let Some(name) = before.strip_suffix("/manifests") {
        Route::Manifest(name, last)
    } else if let Some(name) = before.strip_suffix("/referrers") {
        Route::Referrers(name, last)
    } else if let Some(name) = before.strip_suffix("/blobs/uploads") {
        if last.is_empty() { Route::Uploads(name) } else { Route::Upload(name, last) }
    } else if let Some(name) = before.strip_suffix("/blobs") {
        if last == "uploads" { Route::Uploads(name) } else { Route::Blob(name, last) }
    } else {
        return None;
    };
    Some(match &found {
        Route::Tags(name)
        | Route::Uploads(name)
        | Route::Upload(name, _)
        | Route::Manifest(name, _)
        | Route::Blob(name, _)
        | Route::Referrers(name, _)
            if !is_name(name) =>
        {
            Err("NAME_INVALID")
        }
        Route::Manifest(_, reference) if !is_digest(reference) && !is_tag(reference) => Err("MANIFEST_UNKNOWN"),
        Route::Blob(_, digest) | Route::Referrers(_, digest) if !is_digest(digest) => Err("DIGEST_INVALID"),
        _ => Ok(found),
    })
}

/// The query's fields, percent-decoded.
pub(super) fn query(text: &str) -> HashMap<String, String> {
    let fields = text.split('&').filter_map(|field| field.split_once('='));
    fields.map(|(key, value)| (key.to_owned(), decoded(value))).collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..2).filter(|_| *first == b'%');
        let byte = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { tail.get(2..).unwrap_or_default() } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_where_the_specification_says() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let (blob, referrers) = (format!("/v2/a/b/blobs/{digest}"), format!("/v2/a/referrers/{digest}"));
        for (path, expected) in [
            ("/v2/", Some(Ok(Route::Base))),
            ("/v2/_catalog", Some(Ok(Route::Catalog))),
            ("/v2/a/tags/list", Some(Ok(Route::Tags("a")))),
            ("/v2/a/b/c/manifests/v1", Some(Ok(Route::Manifest("a/b/c", "v1")))),
            ("/v2/manifests/manifests/x", Some(Ok(Route::Manifest("manifests", "x")))),
            (&blob, Some(Ok(Route::Blob("a/b", &digest)))),
            (&referrers, Some(Ok(Route::Referrers("a", &digest)))),
            ("/v2/a/blobs/uploads/", Some(Ok(Route::Uploads("a")))),
            ("/v2/a/blobs/uploads", Some(Ok(Route::Uploads("a")))),
            ("/v2/a/blobs/uploads/1f", Some(Ok(Route::Upload("a", "1f")))),
            ("/v2/A/tags/list", Some(Err("NAME_INVALID"))),
            ("/v2/../tags/list", Some(Err("NAME_INVALID"))),
            ("/v2/a/blobs/sha256:../../x", None),
            ("/v2/a/blobs/sha256:12", Some(Err("DIGEST_INVALID"))),
            ("/v2/a/manifests/-x", Some(Err("MANIFEST_UNKNOWN"))),
            ("/v1/a", None),
            ("/v2/a", None),
        ] {
            assert_eq!(route(path), expected, "{path}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let fields = query("digest=sha256%3Aab&from=a%2Fb&n=5&bad=%zz&open");
        let get = |key: &str| fields.get(key).map(String::as_str);
        assert_eq!((get("digest"), get("from"), get("n"), get("bad")), (Some("sha256:ab"), Some("a/b"), Some("5"), Some("%zz")));
    }
}
