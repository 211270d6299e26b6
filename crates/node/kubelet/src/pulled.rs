//! Whose credentials brought each image: a pod that has not shown any that open an image does not get it from the node's shelf (KEP-2535).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::credentials::{Found, Owner, full_name};

/// `imagePullCredentialsVerificationPolicy`, and what goes with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    NeverVerify,
    /// Images that no pull brought are everybody's.
    #[default]
    NeverVerifyPreloaded,
    /// Only these are: names, or beginnings of names that end with `/*`.
    NeverVerifyAllowlisted(Vec<String>),
    AlwaysVerify,
}

impl Policy {
    pub fn parse(name: &str, allowlist: Vec<String>) -> Option<Self> {
        Some(match name {
            "NeverVerify" => Self::NeverVerify,
            "" | "NeverVerifyPreloadedImages" => Self::NeverVerifyPreloaded,
            "NeverVerifyAllowlistedImages" => Self::NeverVerifyAllowlisted(allowlist),
            "AlwaysVerify" => Self::AlwaysVerify,
            _ => return None,
        })
    }

    /// Whether an image that no pull brought is everybody's.
    fn trusts_preloaded(&self, image: &str) -> bool {
        match self {
            Self::NeverVerify | Self::NeverVerifyPreloaded => true,
            Self::AlwaysVerify => false,
            Self::NeverVerifyAllowlisted(allowed) => allowed.iter().any(|pattern| match pattern.strip_suffix("/*") {
                Some(beginning) => full_name(image).strip_prefix(beginning).is_some_and(|rest| rest.starts_with('/')),
                None => *pattern == full_name(image),
            }),
        }
    }
}

/// Who opened one image, by the name that it was pulled by (without tag and digest).
type Owners = BTreeMap<String, Vec<Owner>>;

#[derive(Default, Serialize, Deserialize)]
struct Kept {
    images: BTreeMap<String, Owners>,
}

/// The records, in a file that survives restarts.
pub struct Records {
    file: PathBuf,
    policy: Policy,
    kept: Mutex<Kept>,
}

impl Records {
    pub fn open(directory: &Path, policy: Policy) -> Self {
        let file = directory.join("pulled-images.json");
        let kept = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { file, policy, kept: Mutex::new(kept) }
    }

    /// A pull with these credentials brought an image.
    pub fn add(&self, id: &str, image: &str, owner: &Owner) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let owners = kept.images.entry(id.to_owned()).or_default().entry(full_name(image)).or_default();
        if owners.contains(owner) {
            return;
        }
        // Of one secret only what it says now counts.
        if let Owner::Secret { uid, .. } = owner {
            owners.retain(|known| !matches!(known, Owner::Secret { uid: other, .. } if other == uid));
        }
        owners.push(owner.clone());
        self.save(&kept);
    }

    /// Whether a pod with these credentials may use an image that is on the node without asking its registry.
    pub fn allows(&self, id: &str, image: &str, shown: &[Found]) -> bool {
        if self.policy == Policy::NeverVerify {
            return true;
        }
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(owners) = kept.images.get(id) else { return self.policy.trusts_preloaded(image) };
        let Some(owners) = owners.get(&full_name(image)) else { return false };
        let same = |known: &Owner, own: &Owner| match (known, own) {
            (Owner::Node, _) => true,
            (Owner::Secret { hash, .. }, Owner::Secret { hash: own, .. }) => hash == own,
            (known, own) => known == own,
        };
        owners.iter().any(|known| *known == Owner::Node || shown.iter().any(|found| same(known, &found.owner)))
    }

    /// Forgets images that are gone.
    pub fn retain(&self, ids: &BTreeSet<&str>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let before = kept.images.len();
        kept.images.retain(|id, _| ids.contains(id.as_str()));
        if kept.images.len() < before {
            self.save(&kept);
        }
    }

    fn save(&self, kept: &Kept) {
        let temporary = self.file.with_extension("new");
        let written = serde_json::to_vec(kept).map_err(std::io::Error::other).and_then(|bytes| std::fs::write(&temporary, bytes));
        if let Err(error) = written.and_then(|()| std::fs::rename(&temporary, &self.file)) {
            tracing::warn!(%error, "keep whose credentials brought which image");
        }
    }
}

/// A hash of what a secret says for a registry, which tells nothing of it.
pub fn hash(auth: &cri::v1::AuthConfig) -> String {
    let fields = [&auth.username, &auth.password, &auth.auth, &auth.identity_token, &auth.registry_token, &auth.server_address];
    let mut hash = Sha256::new();
    for field in fields {
        hash.update(format!("{}:{field}", field.len()));
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(uid: &str, hash: &str) -> Owner {
        Owner::Secret { uid: uid.into(), namespace: "ns".into(), name: "s".into(), hash: hash.into() }
    }

    fn shown(owner: Owner) -> Vec<Found> {
        vec![Found { auth: cri::v1::AuthConfig::default(), owner }]
    }

    #[test]
    fn who_shows_what_opened_an_image_gets_it_and_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path(), Policy::default());
        records.add("private", "r.example/a:1", &secret("1", "x"));
        records.add("public", "r.example/b:1", &Owner::Node);
        let records = Records::open(folder.path(), Policy::default());
        for (id, image, credentials, allowed) in [
            ("private", "r.example/a:2", shown(secret("1", "x")), true),
            ("private", "r.example/a:1", shown(secret("2", "x")), true),
            ("private", "r.example/a:1", shown(secret("1", "changed")), false),
            ("private", "r.example/a:1", shown(Owner::Node), false),
            ("private", "r.example/a:1", Vec::new(), false),
            ("private", "other.example/a:1", shown(secret("1", "x")), false),
            ("public", "r.example/b:1", Vec::new(), true),
            ("loaded", "r.example/c:1", Vec::new(), true),
        ] {
            assert_eq!(records.allows(id, image, &credentials), allowed, "{id} {image} {credentials:?}");
        }
        records.retain(&BTreeSet::from(["public"]));
        assert!(records.allows("private", "r.example/a:1", &[]), "an image that came back by another way is as if loaded");
    }

    #[test]
    fn policies_differ_in_what_no_pull_brought() {
        let folder = tempfile::tempdir().unwrap();
        let allowed = vec!["docker.io/library/nginx".to_owned(), "r.example/team/*".to_owned()];
        let listed = Policy::parse("NeverVerifyAllowlistedImages", allowed).unwrap();
        for (policy, image, expected) in [
            (Policy::AlwaysVerify, "nginx", false),
            (Policy::NeverVerify, "nginx", true),
            (listed.clone(), "nginx:1", true),
            (listed.clone(), "r.example/team/x", true),
            (listed, "r.example/teams/x", false),
        ] {
            assert_eq!(Records::open(folder.path(), policy.clone()).allows("id", image, &[]), expected, "{policy:?} {image}");
        }
        assert_eq!(Policy::parse("Sometimes", Vec::new()), None);
    }
}
