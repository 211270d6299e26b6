//! Debian's `docker-registry` on loopback, filled over its HTTP API.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use crate::http;
use crate::images::{Blob, Image};
use crate::run::wait_for;

/// `user:secret`; a registry that is open to everybody does not look at it.
const CREDENTIALS: &str = "Basic dXNlcjpzZWNyZXQ=";

/// A registry with its own empty storage. Ended when dropped.
pub struct Registry {
    process: Child,
    /// Such as `127.0.0.1:5000`.
    pub address: String,
    _storage: tempfile::TempDir,
}

impl Registry {
    pub fn start() -> Self {
        Self::configured(|_| String::new())
    }

    /// One that opens to `user` with the password `secret` alone.
    pub fn closed() -> Self {
        Self::configured(|folder| {
            let file = folder.join("htpasswd");
            fs::write(&file, "user:$2b$05$FIEMkQ64Q8SCCtZzdJqmxedh/22aJ0lTvGUn7uz3.unZ2lq1g.E0.\n").expect("write the passwords");
            format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display())
        })
    }

    fn configured(more: impl FnOnce(&std::path::Path) -> String) -> Self {
        let storage = tempfile::tempdir().expect("a temporary folder");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
        let address = format!("127.0.0.1:{port}");
        let data = storage.path().join("data");
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n{}",
            data.display(),
            more(storage.path())
        );
        let file = storage.path().join("config.yml");
        fs::write(&file, config).expect("write the configuration");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().expect("the tests need Debian's package docker-registry");
        let registry = Self { process, address, _storage: storage };
        wait_for("the registry answers", 30, || http::send("GET", &registry.address, "/v2/", &[], &[]).map(drop));
        registry
    }

    /// Uploads an image; returns the name to pull it by.
    pub fn push(&self, image: &Image, repository: &str, tag: &str) -> String {
        self.upload(repository, &image.layer);
        self.upload(repository, &image.config);
        let headers = [("Content-Type", image.manifest.media_type), ("Authorization", CREDENTIALS)];
        let path = format!("/v2/{repository}/manifests/{tag}");
        let answer = http::send("PUT", &self.address, &path, &headers, &image.manifest.bytes).expect("put the manifest");
        assert_eq!(answer.status, 201, "{}", answer.text());
        format!("{}/{repository}:{tag}", self.address)
    }

    fn upload(&self, repository: &str, blob: &Blob) {
        let begun = http::send("POST", &self.address, &format!("/v2/{repository}/blobs/uploads/"), &[("Authorization", CREDENTIALS)], &[])
            .expect("begin an upload");
        let location = begun.header("location").unwrap_or_else(|| panic!("no location: {}", begun.text())).to_owned();
        let path = location.strip_prefix(&format!("http://{}", self.address)).unwrap_or(&location);
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}digest={}", blob.digest());
        let headers = [("Content-Type", "application/octet-stream"), ("Authorization", CREDENTIALS)];
        let answer = http::send("PUT", &self.address, &path, &headers, &blob.bytes).expect("put the blob");
        assert_eq!(answer.status, 201, "{}", answer.text());
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
