//! The administrator's kubeconfig, and the invoking user's own, into which ours is merged as one context.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::config::Config;

/// Who ran the command: through sudo, the user behind it.
pub struct Invoker {
    pub home: PathBuf,
    pub uid: u32,
    pub gid: u32,
}

impl Invoker {
    /// SUDO_USER's home as the password file says, else HOME.
    pub fn current() -> Self {
        let own = || Self {
            home: std::env::var_os("HOME").map_or_else(|| "/root".into(), PathBuf::from),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        };
        let Ok(user) = std::env::var("SUDO_USER") else { return own() };
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields.first() == Some(&user.as_str()));
        match entry.as_deref() {
            Some([_, _, uid, gid, _, home, ..]) => match (uid.parse(), gid.parse()) {
                (Ok(uid), Ok(gid)) => Self { home: home.into(), uid, gid },
                _ => own(),
            },
            _ => own(),
        }
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.home.join(".kube/config")
    }
}

/// The three named entries of our cluster.
fn entries(config: &Config, pki: &auth::pki::Pki) -> [(&'static str, Value); 3] {
    let name = &config.context;
    let cluster =
        json!({ "server": format!("https://127.0.0.1:{}", config.api_port), "certificate-authority-data": STANDARD.encode(&pki.ca) });
    let user = json!({
        "client-certificate-data": STANDARD.encode(&pki.admin.certificate),
        "client-key-data": STANDARD.encode(&pki.admin.key),
    });
    [
        ("clusters", json!({ "name": name, "cluster": cluster })),
        ("users", json!({ "name": name, "user": user })),
        ("contexts", json!({ "name": name, "context": { "cluster": name, "user": name } })),
    ]
}

/// Writes the administrator's kubeconfig into the data folder.
pub fn write_admin(config: &Config, pki: &auth::pki::Pki) -> anyhow::Result<()> {
    let mut document = json!({ "apiVersion": "v1", "kind": "Config", "preferences": {}, "current-context": config.context });
    for (list, entry) in entries(config, pki) {
        document[list] = json!([entry]);
    }
    let path = config.kubeconfig();
    // Most starts change nothing, and then need no room on a full disk.
    if read(&path).is_ok_and(|known| known.as_ref() == Some(&document)) {
        return Ok(());
    }
    replace(&path, &document, None)
}

/// Puts our context into the invoking user's kubeconfig and makes it current. Other entries stay as they are.
pub fn merge(config: &Config, pki: &auth::pki::Pki, invoker: &Invoker) -> anyhow::Result<PathBuf> {
    let path = invoker.kubeconfig();
    let mut document = read(&path)?.unwrap_or_else(|| json!({ "apiVersion": "v1", "kind": "Config", "preferences": {} }));
    let before = document.clone();
    for (list, entry) in entries(config, pki) {
        remove_named(&mut document[list], &config.context);
        push(&mut document[list], entry);
    }
    document["current-context"] = json!(config.context);
    if document != before {
        replace(&path, &document, Some(invoker))?;
    }
    Ok(path)
}

/// Brings our context up to date, where the user has it: with the key that is ours, for another cluster may have the name. What is current stays
/// current.
pub fn refresh(config: &Config, pki: &auth::pki::Pki, invoker: &Invoker) -> anyhow::Result<()> {
    let path = invoker.kubeconfig();
    let Some(mut document) = read(&path)? else { return Ok(()) };
    let before = document.clone();
    let own_key = json!(STANDARD.encode(&pki.admin.key));
    let is_ours = |entry: &Value| entry["name"] == json!(config.context) && entry["user"]["client-key-data"] == own_key;
    if !document["users"].as_array().is_some_and(|users| users.iter().any(is_ours)) {
        return Ok(());
    }
    for (list, entry) in entries(config, pki) {
        remove_named(&mut document[list], &config.context);
        push(&mut document[list], entry);
    }
    if document == before { Ok(()) } else { replace(&path, &document, Some(invoker)) }
}

/// Takes our context out again; true if there was one.
pub fn unmerge(config: &Config, invoker: &Invoker) -> anyhow::Result<bool> {
    let path = invoker.kubeconfig();
    let Some(mut document) = read(&path)? else { return Ok(false) };
    let before = document.clone();
    for list in ["clusters", "users", "contexts"] {
        remove_named(&mut document[list], &config.context);
    }
    if document["current-context"] == json!(config.context) {
        document["current-context"] = json!("");
    }
    if document == before {
        return Ok(false);
    }
    replace(&path, &document, Some(invoker))?;
    Ok(true)
}

fn read(path: &Path) -> anyhow::Result<Option<Value>> {
    match fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => {
            let document: Value = serde_saphyr::from_str(&text).with_context(|| format!("{} is not YAML", path.display()))?;
            anyhow::ensure!(document.is_object(), "{} is not a kubeconfig", path.display());
            Ok(Some(document))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

fn remove_named(list: &mut Value, name: &str) {
    if let Some(entries) = list.as_array_mut() {
        entries.retain(|entry| entry["name"] != json!(name));
    }
}

fn push(list: &mut Value, entry: Value) {
    match list.as_array_mut() {
        Some(entries) => entries.push(entry),
        None => *list = json!([entry]),
    }
}

/// Replaces the file atomically; readable by its owner alone. A symbolic link is followed, so that linked dot files stay links.
fn replace(path: &Path, document: &Value, owner: Option<&Invoker>) -> anyhow::Result<()> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let dir = path.parent().context("a kubeconfig has a folder")?;
    if !dir.exists() {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        if let Some(owner) = owner {
            std::os::unix::fs::chown(dir, Some(owner.uid), Some(owner.gid))?;
        }
    }
    let temporary = path.with_extension(format!("sternpost-{}", std::process::id()));
    let text = serde_saphyr::to_string(document).context("write YAML")?;
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    if let Some(owner) = owner {
        let kept = fs::metadata(&path).map_or((owner.uid, owner.gid), |existing| (existing.uid(), existing.gid()));
        std::os::unix::fs::fchown(&file, Some(kept.0), Some(kept.1))?;
    }
    fs::rename(&temporary, &path).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn setup() -> (tempfile::TempDir, Config, auth::pki::Pki, Invoker) {
        let dir = tempfile::tempdir().unwrap();
        let names = auth::pki::Names {
            api_hosts: vec![],
            api_addresses: vec![],
            cluster_domain: "cluster.local".into(),
            node_name: "n".into(),
            node_addresses: vec![],
        };
        let pki = auth::pki::Pki::open(&dir.path().join("pki"), &names).unwrap();
        let config = Config { data_dir: dir.path().into(), ..Config::default() };
        let metadata = fs::metadata(dir.path()).unwrap();
        let invoker = Invoker { home: dir.path().join("home"), uid: metadata.uid(), gid: metadata.gid() };
        (dir, config, pki, invoker)
    }

    #[test]
    fn merging_keeps_the_users_other_clusters_and_unmerging_leaves_them_as_they_were() {
        let (_dir, config, pki, invoker) = setup();
        fs::create_dir_all(invoker.home.join(".kube")).unwrap();
        let mine = "apiVersion: v1\nkind: Config\ncurrent-context: prod\nclusters:\n- name: prod\n  cluster: {server: https://192.0.2.1}\nusers: []\ncontexts:\n- name: prod\n  context: {cluster: prod, user: me}\n";
        fs::write(invoker.kubeconfig(), mine).unwrap();
        merge(&config, &pki, &invoker).unwrap();
        merge(&config, &pki, &invoker).unwrap();
        let merged = read(&invoker.kubeconfig()).unwrap().unwrap();
        assert_eq!(merged["current-context"], "sternpost");
        let names: Vec<&str> = merged["clusters"].as_array().unwrap().iter().filter_map(|entry| entry["name"].as_str()).collect();
        assert_eq!(names, ["prod", "sternpost"]);
        assert!(unmerge(&config, &invoker).unwrap());
        let left = read(&invoker.kubeconfig()).unwrap().unwrap();
        assert_eq!((left["clusters"].as_array().unwrap().len(), &left["contexts"][0]["name"]), (1, &json!("prod")));
        assert!(!unmerge(&config, &invoker).unwrap());
    }

    #[test]
    fn a_renewed_certificate_reaches_the_users_context_but_never_anothers_cluster_of_the_same_name() {
        let (_dir, config, mut pki, invoker) = setup();
        refresh(&config, &pki, &invoker).unwrap();
        assert!(!invoker.kubeconfig().exists());
        merge(&config, &pki, &invoker).unwrap();
        let shown = || read(&invoker.kubeconfig()).unwrap().unwrap()["users"][0]["user"]["client-certificate-data"].clone();
        pki.admin.certificate = "renewed".into();
        refresh(&config, &pki, &invoker).unwrap();
        assert_eq!(shown(), json!(STANDARD.encode("renewed")));
        pki.admin = auth::pki::Pair { certificate: "another".into(), key: "another".into() };
        refresh(&config, &pki, &invoker).unwrap();
        assert_eq!(shown(), json!(STANDARD.encode("renewed")));
    }

    #[test]
    fn only_the_owner_can_read_it() {
        let (_dir, config, pki, invoker) = setup();
        let path = merge(&config, &pki, &invoker).unwrap();
        write_admin(&config, &pki).unwrap();
        for path in [path, config.kubeconfig()] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_file_that_is_no_kubeconfig_is_left_alone() {
        let (_dir, config, pki, invoker) = setup();
        fs::create_dir_all(invoker.home.join(".kube")).unwrap();
        fs::write(invoker.kubeconfig(), "just words").unwrap();
        assert!(merge(&config, &pki, &invoker).is_err());
        assert_eq!(fs::read_to_string(invoker.kubeconfig()).unwrap(), "just words");
    }
}
