//! Images made by the tests: a root file system of Debian's `busybox-static`, as OCI layout and as docker archive.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The applets that are links to busybox.
const APPLETS: &[&str] = &[
    "sh", "ash", "cat", "ls", "echo", "sleep", "tar", "id", "env", "ps", "stat", "df", "mount", "touch", "mkdir", "rm", "cp", "mv", "dd",
    "grep", "sed", "head", "tail", "wc", "true", "false", "kill", "nc", "wget", "nslookup", "ip", "hostname", "date", "test", "trap",
    "sync", "chmod", "find", "stty", "tty", "od", "yes", "seq", "cut", "printf", "readlink", "sort", "uniq", "tr", "whoami", "pwd",
];

/// An image of one layer.
pub struct Image {
    pub layer: Blob,
    pub config: Blob,
    pub manifest: Blob,
    /// The digest of the layer before compression.
    diff_id: String,
}

/// Bytes known by their digest.
#[derive(Clone)]
pub struct Blob {
    pub bytes: Vec<u8>,
    pub media_type: &'static str,
}

impl Blob {
    /// Such as `sha256:…`.
    pub fn digest(&self) -> String {
        digest(&self.bytes)
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest(), "size": self.bytes.len() })
    }
}

fn digest(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A busybox whose `/version` holds this text, so that two images of it differ.
pub fn busybox(version: &str) -> Image {
    let layer = layer(version);
    let diff_id = digest(&layer);
    let layer = Blob { bytes: compress(&layer), media_type: "application/vnd.oci.image.layer.v1.tar+gzip" };
    let config = json!({
        "architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z",
        "config": { "Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["sh"], "WorkingDir": "/home" },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        "history": [{ "created": "2026-01-01T00:00:00Z", "created_by": "the tests" }],
    });
    let config = Blob { bytes: config.to_string().into_bytes(), media_type: "application/vnd.oci.image.config.v1+json" };
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config.descriptor(), "layers": [layer.descriptor()] });
    let manifest = Blob { bytes: manifest.to_string().into_bytes(), media_type };
    Image { layer, config, manifest, diff_id }
}

fn layer(version: &str) -> Vec<u8> {
    let binary = fs::read("/bin/busybox").expect("the tests need Debian's package busybox-static");
    let mut archive = tar::Builder::new(Vec::new());
    for dir in ["bin", "etc", "home", "proc", "sys", "dev", "root", "tmp", "var"] {
        entry(&mut archive, &format!("{dir}/"), tar::EntryType::Directory, if dir == "tmp" { 0o1777 } else { 0o755 }, &[]);
    }
    entry(&mut archive, "bin/busybox", tar::EntryType::Regular, 0o755, &binary);
    entry(&mut archive, "etc/passwd", tar::EntryType::Regular, 0o644, b"root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000::/home:/bin/sh\n");
    entry(&mut archive, "etc/group", tar::EntryType::Regular, 0o644, b"root:x:0:\nguest:x:1000:\n");
    entry(&mut archive, "version", tar::EntryType::Regular, 0o644, version.as_bytes());
    APPLETS.iter().for_each(|applet| symlink(&mut archive, &format!("bin/{applet}"), "busybox"));
    archive.into_inner().expect("write to memory")
}

/// A docker archive of an image that is one static program, with links of these names to it in `/bin`.
pub fn write_executable_archive(program: &Path, name: &str, links: &[&str], to: &Path, image: &str) {
    let bytes = fs::read(program).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let mut layer = tar::Builder::new(Vec::new());
    for dir in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
        entry(&mut layer, &format!("{dir}/"), tar::EntryType::Directory, if dir == "tmp" { 0o1777 } else { 0o755 }, &[]);
    }
    entry(&mut layer, name, tar::EntryType::Regular, 0o755, &bytes);
    links.iter().for_each(|link| symlink(&mut layer, &format!("bin/{link}"), &format!("/{name}")));
    let layer = layer.into_inner().expect("write to memory");
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Entrypoint": [format!("/{name}")], "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [image], "Layers": ["layer.tar"] }]);
    let files =
        [("manifest.json", manifest.to_string().into_bytes()), ("config.json", config.to_string().into_bytes()), ("layer.tar", layer)];
    write_archive(to, &files.map(|(name, bytes)| (name.to_owned(), bytes)));
}

fn symlink(archive: &mut tar::Builder<Vec<u8>>, path: &str, target: &str) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    header.set_mode(0o777);
    archive.append_link(&mut header, path, target).expect("write to memory");
}

fn entry(archive: &mut tar::Builder<Vec<u8>>, path: &str, kind: tar::EntryType, mode: u32, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    archive.append_data(&mut header, path, bytes).expect("write to memory");
}

fn compress(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).expect("write to memory");
    encoder.finish().expect("write to memory")
}

impl Image {
    /// An archive of an OCI image layout, as `skopeo copy … oci-archive:` makes it.
    pub fn write_oci_archive(&self, to: &Path, name: &str) {
        let mut descriptor = self.manifest.descriptor();
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": name, "io.containerd.image.name": name });
        let mut files = vec![
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), json!({ "schemaVersion": 2, "manifests": [descriptor] }).to_string().into_bytes()),
        ];
        for blob in [&self.layer, &self.config, &self.manifest] {
            files.push((format!("blobs/{}", blob.digest().replace(':', "/")), blob.bytes.clone()));
        }
        write_archive(to, &files);
    }

    /// An archive as `docker save` makes it.
    pub fn write_docker_archive(&self, to: &Path, name: &str) {
        let config = format!("{}.json", self.config.digest().trim_start_matches("sha256:"));
        let layer = format!("{}/layer.tar", self.diff_id.trim_start_matches("sha256:"));
        let manifest = json!([{ "Config": config, "RepoTags": [name], "Layers": [layer] }]);
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(self.layer.bytes.as_slice()), &mut plain).expect("what we compressed");
        let files = [("manifest.json".to_owned(), manifest.to_string().into_bytes()), (config, self.config.bytes.clone()), (layer, plain)];
        write_archive(to, &files);
    }
}

fn write_archive(to: &Path, files: &[(String, Vec<u8>)]) {
    let mut archive = tar::Builder::new(Vec::new());
    files.iter().for_each(|(name, bytes)| entry(&mut archive, name, tar::EntryType::Regular, 0o644, bytes));
    fs::write(to, archive.into_inner().expect("write to memory")).unwrap_or_else(|error| panic!("{}: {error}", to.display()));
    fs::set_permissions(to, fs::Permissions::from_mode(0o644)).expect("set its mode");
}
