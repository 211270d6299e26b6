//! Encryption at rest: how the stored bytes of chosen resources are sealed and opened.
//!
//! An [`Encryption`] is upstream's `EncryptionConfiguration`: for each resource an ordered list of providers, of which the first seals and any may
//! open, so that a key is rotated by putting the new one first. Sealed bytes begin with `k8s:enc:<provider>:v1:<key>:`, as upstream writes them,
//! and AEADs bind them to their key in the store: a value cannot be moved to another object.
//!
//! `secretbox` is refused: its cipher is not in our one crypto library. [`kms`] talks to a KMS v2 plugin over its socket.
//!
//! Source: `apiserver/pkg/server/options/encryptionconfig`, `pkg/storage/value/encrypt`.

pub mod kms;

use std::path::Path;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{AES_128, AES_256, DecryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey, UnboundCipherKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

const NONCE: usize = 12;
const BLOCK: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("encryption configuration: {0}")]
    Config(String),
    #[error("no matching provider was found: the key that sealed this value is not configured")]
    NoProvider,
    #[error("the sealed value is damaged, or was moved from another object")]
    Damaged,
    #[error("the value could not be sealed")]
    Seal,
    #[error("KMS plugin {name}: {why}")]
    Kms { name: String, why: String },
    #[error("{path}")]
    File { path: std::path::PathBuf, source: std::io::Error },
}

/// Who seals what. Cheap to ask; the keys stay inside.
pub struct Encryption {
    rules: Vec<(Vec<String>, Vec<Provider>)>,
}

enum Provider {
    Identity,
    AesGcm(Key),
    AesCbc(Key),
    Kms(kms::Kms),
}

/// A named key; its length chooses the cipher.
struct Key {
    /// `k8s:enc:aesgcm:v1:key1:`.
    prefix: String,
    secret: Vec<u8>,
}

/// What was opened; `stale` asks for the value to be sealed again, by the first provider.
pub struct Opened {
    pub bytes: Vec<u8>,
    pub stale: bool,
}

impl Encryption {
    /// Reads an `EncryptionConfiguration` as a tree.
    pub fn parse(config: &Value) -> Result<Self, Error> {
        let wrong = |what: &str| Err(Error::Config(what.to_owned()));
        if config["kind"] != "EncryptionConfiguration" || config["apiVersion"] != "apiserver.config.k8s.io/v1" {
            return wrong("expected kind EncryptionConfiguration of apiserver.config.k8s.io/v1");
        }
        let mut rules = Vec::new();
        for rule in config["resources"].as_array().into_iter().flatten() {
            let resources: Vec<String> =
                rule["resources"].as_array().into_iter().flatten().filter_map(|name| Some(name.as_str()?.to_lowercase())).collect();
            if resources.is_empty() {
                return wrong("resources: at least one resource is needed");
            }
            let mut providers = Vec::new();
            for provider in rule["providers"].as_array().into_iter().flatten() {
                providers.extend(Provider::parse(provider)?);
            }
            if providers.is_empty() {
                return wrong("providers: at least one provider is needed");
            }
            rules.push((resources, providers));
        }
        if rules.is_empty() { wrong("resources: at least one entry is needed") } else { Ok(Self { rules }) }
    }

    /// The configuration of a new cluster: Secrets sealed with a key of its own, kept in `file` (made where it is absent, mode 600), which root may
    /// edit to rotate it.
    pub fn default_config(file: &Path) -> Result<String, Error> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let failed = |source| Error::File { path: file.to_owned(), source };
        match std::fs::read_to_string(file) {
            Ok(text) => return Ok(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let mut secret = [0_u8; 32];
        getrandom::fill(&mut secret).map_err(|_| Error::Seal)?;
        let keys = json!([{"name": "key1", "secret": STANDARD.encode(secret)}]);
        let config = json!({
            "kind": "EncryptionConfiguration",
            "apiVersion": "apiserver.config.k8s.io/v1",
            "resources": [{"resources": ["secrets"], "providers": [{"aesgcm": {"keys": keys}}, {"identity": {}}]}],
        });
        let text = serde_json::to_string_pretty(&config).unwrap_or_default() + "\n";
        // Written beside and renamed: a torn key would lose what it seals.
        let beside = file.with_extension("new");
        let mut out = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside).map_err(failed)?;
        out.write_all(text.as_bytes()).and_then(|()| out.sync_all()).map_err(failed)?;
        std::fs::rename(&beside, file).map_err(failed)?;
        Ok(text)
    }

    /// The place in the configuration of who is responsible for a resource (`secrets`, `deployments.apps`); `None` where nobody is.
    pub fn rule(&self, group: &str, plural: &str) -> Option<usize> {
        let full = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
        let matches = |name: &str| name == full || name == "*.*" || name.strip_prefix("*.").is_some_and(|rest| rest == group);
        self.rules.iter().position(|(resources, _)| resources.iter().any(|name| matches(name)))
    }

    /// Seals with the first provider of the rule. `place` is the value's key in the store.
    pub async fn seal(&self, rule: usize, place: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
        match self.rules.get(rule).and_then(|(_, providers)| providers.first()) {
            None | Some(Provider::Identity) => Ok(plain.to_vec()),
            Some(Provider::AesGcm(key)) => key.seal_gcm(place, plain),
            Some(Provider::AesCbc(key)) => key.seal_cbc(plain),
            Some(Provider::Kms(kms)) => kms.seal(place, plain).await,
        }
    }

    /// Opens with whichever provider of the rule sealed it.
    pub async fn open(&self, rule: usize, place: &[u8], sealed: &[u8]) -> Result<Opened, Error> {
        let providers = self.rules.get(rule).map_or(&[][..], |(_, providers)| providers);
        for (at, provider) in providers.iter().enumerate() {
            let stale = at > 0;
            match provider {
                Provider::Identity if !sealed.starts_with(b"k8s:enc:") => return Ok(Opened { bytes: sealed.to_vec(), stale }),
                Provider::AesGcm(key) if sealed.starts_with(key.prefix.as_bytes()) => {
                    return Ok(Opened { bytes: key.open_gcm(place, sealed)?, stale });
                }
                Provider::AesCbc(key) if sealed.starts_with(key.prefix.as_bytes()) => {
                    return Ok(Opened { bytes: key.open_cbc(sealed)?, stale });
                }
                Provider::Kms(kms) if sealed.starts_with(kms.prefix().as_bytes()) => {
                    let (bytes, old_key) = kms.open(place, sealed).await?;
                    return Ok(Opened { bytes, stale: stale || old_key });
                }
                _ => {}
            }
        }
        // What was written before encryption was configured stays readable.
        match sealed.starts_with(b"k8s:enc:") {
            false => Ok(Opened { bytes: sealed.to_vec(), stale: true }),
            true => Err(Error::NoProvider),
        }
    }
}

impl Provider {
    fn parse(given: &Value) -> Result<Vec<Self>, Error> {
        let members = given.as_object().filter(|members| members.len() == 1);
        let Some((name, settings)) = members.and_then(|members| members.iter().next()) else {
            return Err(Error::Config("each provider must have exactly one of identity, aesgcm, aescbc, kms".into()));
        };
        let keys = |kind: &'static str| -> Result<Vec<Key>, Error> {
            let keys = settings["keys"].as_array().map_or(&[][..], Vec::as_slice);
            if keys.is_empty() {
                return Err(Error::Config(format!("{kind}.keys: at least one key is needed")));
            }
            keys.iter().map(|key| Key::parse(kind, key)).collect()
        };
        Ok(match name.as_str() {
            "identity" => vec![Provider::Identity],
            "aesgcm" => keys("aesgcm")?.into_iter().map(Provider::AesGcm).collect(),
            "aescbc" => keys("aescbc")?.into_iter().map(Provider::AesCbc).collect(),
            "kms" => vec![Provider::Kms(kms::Kms::parse(settings)?)],
            "secretbox" => return Err(Error::Config("secretbox is not supported: use aesgcm or kms".into())),
            other => return Err(Error::Config(format!("unknown provider {other:?}"))),
        })
    }
}

impl Key {
    fn parse(kind: &str, key: &Value) -> Result<Self, Error> {
        let name = key["name"].as_str().unwrap_or_default();
        if name.is_empty() || name.contains(':') {
            return Err(Error::Config(format!("{kind}.keys: a key needs a name without a colon")));
        }
        let secret = STANDARD.decode(key["secret"].as_str().unwrap_or_default());
        let secret = secret.map_err(|_| Error::Config(format!("{kind}.keys: secret of {name:?} is not base64")))?;
        // aws-lc has no AES-192-CBC and only a slow GCM of that size.
        if !matches!(secret.len(), 16 | 32) {
            return Err(Error::Config(format!("{kind}.keys: secret of {name:?} has {} bytes, expected 16 or 32", secret.len())));
        }
        Ok(Self { prefix: format!("k8s:enc:{kind}:v1:{name}:"), secret })
    }

    fn seal_gcm(&self, place: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
        let mut out = self.prefix.clone().into_bytes();
        out.extend(seal_gcm(&self.secret, place, plain)?);
        Ok(out)
    }

    fn open_gcm(&self, place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Error> {
        open_gcm(&self.secret, place, sealed.get(self.prefix.len()..).unwrap_or_default())
    }

    fn seal_cbc(&self, plain: &[u8]) -> Result<Vec<u8>, Error> {
        let cipher = if self.secret.len() == 16 { &AES_128 } else { &AES_256 };
        let key = UnboundCipherKey::new(cipher, &self.secret).map_err(|_| Error::Seal)?;
        let mut body = plain.to_vec();
        let context = PaddedBlockEncryptingKey::cbc_pkcs7(key).and_then(|key| key.encrypt(&mut body)).map_err(|_| Error::Seal)?;
        let DecryptionContext::Iv128(iv) = context else { return Err(Error::Seal) };
        let mut out = self.prefix.clone().into_bytes();
        out.extend_from_slice(iv.as_ref());
        out.extend(body);
        Ok(out)
    }

    fn open_cbc(&self, sealed: &[u8]) -> Result<Vec<u8>, Error> {
        let body = sealed.get(self.prefix.len()..).unwrap_or_default();
        let (iv, body) = body.split_at_checked(BLOCK).ok_or(Error::Damaged)?;
        let iv: [u8; BLOCK] = iv.try_into().map_err(|_| Error::Damaged)?;
        let cipher = if self.secret.len() == 16 { &AES_128 } else { &AES_256 };
        let key = UnboundCipherKey::new(cipher, &self.secret).map_err(|_| Error::Damaged)?;
        let mut body = body.to_vec();
        let key = PaddedBlockDecryptingKey::cbc_pkcs7(key).map_err(|_| Error::Damaged)?;
        let plain = key.decrypt(&mut body, DecryptionContext::Iv128(iv.into())).map_err(|_| Error::Damaged)?;
        Ok(plain.to_vec())
    }
}

fn gcm(secret: &[u8]) -> Option<LessSafeKey> {
    let algorithm = if secret.len() == 16 { &AES_128_GCM } else { &AES_256_GCM };
    UnboundKey::new(algorithm, secret).ok().map(LessSafeKey::new)
}

/// A random nonce, then the sealed bytes with their tag.
fn seal_gcm(secret: &[u8], place: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
    let mut nonce = [0_u8; NONCE];
    getrandom::fill(&mut nonce).map_err(|_| Error::Seal)?;
    let key = gcm(secret).ok_or(Error::Seal)?;
    let mut body = plain.to_vec();
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(place), &mut body).map_err(|_| Error::Seal)?;
    Ok([&nonce[..], &body].concat())
}

fn open_gcm(secret: &[u8], place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Error> {
    let (nonce, body) = sealed.split_at_checked(NONCE).ok_or(Error::Damaged)?;
    let nonce: [u8; NONCE] = nonce.try_into().map_err(|_| Error::Damaged)?;
    let key = gcm(secret).ok_or(Error::Damaged)?;
    let mut body = body.to_vec();
    let plain = key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(place), &mut body).map_err(|_| Error::Damaged)?;
    Ok(plain.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: &[u8] = b"/registry/secrets/default/s";

    fn key(name: &str, fill: u8) -> Value {
        json!({"name": name, "secret": STANDARD.encode([fill; 32])})
    }
    fn config(providers: Value) -> Result<Encryption, Error> {
        Encryption::parse(&json!({"kind": "EncryptionConfiguration", "apiVersion": "apiserver.config.k8s.io/v1",
            "resources": [{"resources": ["secrets", "*.example.com"], "providers": providers}]}))
    }

    #[tokio::test]
    async fn what_is_sealed_says_nothing_and_opens_at_its_own_place_only() {
        for kind in ["aesgcm", "aescbc"] {
            let encryption = config(json!([{kind: {"keys": [key("k1", 1)]}}])).unwrap();
            let sealed = encryption.seal(0, PLACE, b"the plain text").await.unwrap();
            assert!(sealed.starts_with(format!("k8s:enc:{kind}:v1:k1:").as_bytes()));
            assert!(!sealed.windows(5).any(|window| window == b"plain"));
            let opened = encryption.open(0, PLACE, &sealed).await.unwrap();
            assert_eq!((opened.bytes.as_slice(), opened.stale), (&b"the plain text"[..], false));
            let elsewhere = encryption.open(0, b"/registry/secrets/default/other", &sealed).await;
            assert_eq!(elsewhere.is_err(), kind == "aesgcm", "CBC authenticates nothing");
            assert!(encryption.open(0, PLACE, &sealed[..sealed.len() - 1]).await.is_err());
            assert_ne!(encryption.seal(0, PLACE, b"the plain text").await.unwrap(), sealed);
        }
    }

    #[tokio::test]
    async fn a_key_is_rotated_by_putting_the_new_one_first() {
        let old = config(json!([{"aesgcm": {"keys": [key("k1", 1)]}}])).unwrap();
        let sealed = old.seal(0, PLACE, b"x").await.unwrap();
        let both = config(json!([{"aesgcm": {"keys": [key("k2", 2), key("k1", 1)]}}, {"identity": {}}])).unwrap();
        let opened = both.open(0, PLACE, &sealed).await.unwrap();
        assert_eq!((opened.bytes.as_slice(), opened.stale), (&b"x"[..], true));
        assert!(both.open(0, PLACE, b"{\"plain\":1}").await.unwrap().stale);
        let new = config(json!([{"aesgcm": {"keys": [key("k2", 2)]}}])).unwrap();
        assert!(matches!(new.open(0, PLACE, &sealed).await, Err(Error::NoProvider)));
    }

    #[test]
    fn resources_find_their_rule() {
        let encryption = config(json!([{"identity": {}}])).unwrap();
        for (group, plural, found) in
            [("", "secrets", true), ("", "pods", false), ("example.com", "widgets", true), ("apps", "secrets", false)]
        {
            assert_eq!(encryption.rule(group, plural).is_some(), found, "{plural}.{group}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_configuration_is_named() {
        let short = json!({"name": "k", "secret": STANDARD.encode("short")});
        for (providers, words) in [
            (json!([]), "at least one provider"),
            (json!([{"aesgcm": {"keys": []}}]), "at least one key"),
            (json!([{"aesgcm": {"keys": [short]}}]), "has 5 bytes"),
            (json!([{"rot13": {}}]), "unknown provider \"rot13\""),
            (json!([{"secretbox": {"keys": [key("k", 1)]}}]), "not supported"),
        ] {
            let error = config(providers).err().unwrap().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
