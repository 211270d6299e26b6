//! Registries that drop connections, lie, redirect and loop; needs root to unpack.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use images::{Progress, Pull, Store};
use sha2::{Digest, Sha256};

/// What a path is answered with.
#[derive(Clone, Default)]
struct Reply {
    status: &'static str,
    headers: String,
    body: Vec<u8>,
    /// The connection ends after so many bytes of the body, each time.
    cut: Option<usize>,
    /// As if there were no `Range`.
    ignores_ranges: bool,
}

/// A registry that says what it is told to say, and remembers what it was asked.
struct Fake {
    address: String,
    replies: Arc<Mutex<HashMap<String, Reply>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

impl Fake {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (replies, asked): (Arc<Mutex<HashMap<String, Reply>>>, Arc<Mutex<Vec<String>>>) = Default::default();
        let (known, log) = (replies.clone(), asked.clone());
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (known, log) = (known.clone(), log.clone());
                std::thread::spawn(move || answer(&stream, &known, &log));
            }
        });
        Self { address, replies, asked }
    }

    fn say(&self, path: &str, reply: Reply) {
        let status = if reply.status.is_empty() { "200 OK" } else { reply.status };
        self.replies.lock().unwrap().insert(path.to_owned(), Reply { status, ..reply });
    }

    fn blob(&self, body: &[u8]) -> String {
        let digest = digest(body);
        self.say(&format!("/v2/app/blobs/{digest}"), Reply { body: body.to_vec(), ..Reply::default() });
        digest
    }

    /// An image of one uncompressed layer; the layer's digest.
    fn image(&self, layer: &[u8], claims: impl FnOnce(&mut serde_json::Value)) -> String {
        let (layer_digest, architecture) = (self.blob(layer), images::architecture());
        let config = serde_json::json!({ "architecture": architecture, "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": [layer_digest] } });
        let config = config.to_string().into_bytes();
        let config_digest = self.blob(&config);
        let mut manifest = serde_json::json!({ "schemaVersion": 2,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config.len() },
            "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer_digest, "size": layer.len() }] });
        claims(&mut manifest);
        self.manifest("v1", manifest.to_string().as_bytes());
        layer_digest
    }

    fn manifest(&self, reference: &str, bytes: &[u8]) {
        self.say(&format!("/v2/app/manifests/{reference}"), Reply { body: bytes.to_vec(), ..Reply::default() });
    }

    fn name(&self) -> String {
        format!("{}/app:v1", self.address)
    }

    fn asked_for(&self, what: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|line| line.contains(what)).count()
    }
}

fn answer(stream: &TcpStream, known: &Mutex<HashMap<String, Reply>>, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream);
    let (mut first, mut range) = (String::new(), 0_usize);
    while reader.read_line(&mut first).is_ok_and(|length| length > 0) {
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|length| length > 2) {
            if let Some(from) = line.to_lowercase().strip_prefix("range: bytes=") {
                range = from.trim().trim_end_matches('-').parse().unwrap_or(0);
            }
            line.clear();
        }
        let path = first.split_whitespace().nth(1).unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
        log.lock().unwrap().push(format!("{path} from {range}"));
        let reply = known.lock().unwrap().get(&path).cloned();
        let reply = reply.unwrap_or_else(|| Reply { status: "404 Not Found", ..Reply::default() });
        let from = if reply.ignores_ranges { 0 } else { range.min(reply.body.len()) };
        let (body, length) = (&reply.body[from..], reply.body.len() - from);
        let status = if from > 0 { "206 Partial Content" } else { reply.status };
        let partial =
            if from > 0 { format!("Content-Range: bytes {from}-{}/{}\r\n", reply.body.len() - 1, reply.body.len()) } else { String::new() };
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{partial}{}\r\n", reply.headers);
        let mut to = stream;
        let _ = to.write_all(head.as_bytes());
        let _ = to.write_all(&body[..reply.cut.unwrap_or(length).min(length)]);
        if reply.cut.is_some_and(|cut| cut < length) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
        (first, range) = (String::new(), 0);
    }
}

fn tarball(name: &str, size: usize) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(size as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, std::io::repeat(b'x').take(size as u64)).unwrap();
    builder.into_inner().unwrap()
}

fn store() -> (tempfile::TempDir, Arc<Store>) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    (directory, store)
}

async fn refused(fake: &Fake) -> String {
    let (directory, store) = store();
    let error = store.clone().pull(&fake.name(), None).await.unwrap_err().to_string();
    assert!(store.list().is_empty(), "{error}");
    assert!(std::fs::read_dir(directory.path().join("layers")).unwrap().next().is_none(), "{error}");
    error
}

#[tokio::test]
async fn a_download_goes_on_where_connections_broke() {
    let fake = Fake::start();
    let layer = tarball("file", 1 << 20);
    let digest = fake.image(&layer, |_| {});
    let path = format!("/v2/app/blobs/{digest}");
    fake.say(&path, Reply { body: layer.clone(), cut: Some(300_000), ..Reply::default() });
    let (_directory, store) = store();
    let moved = Arc::new(Mutex::new(0));
    let seen = moved.clone();
    let progress: images::Reporter = Arc::new(move |step| {
        if let Progress::Moved { bytes, .. } = step {
            *seen.lock().unwrap() = bytes;
        }
    });
    let how = Pull { progress: Some(progress), ..Pull::default() };
    let image = store.clone().pull_with(&fake.name(), how).await.unwrap();
    let layers = store.lease(&image.id).unwrap().layers();
    assert_eq!(std::fs::metadata(layers[0].join("file")).unwrap().len(), 1 << 20);
    assert_eq!(fake.asked_for(&digest), 4, "each connection brought a part, none twice");
    assert_eq!(*moved.lock().unwrap(), layer.len() as u64);
}

#[tokio::test]
async fn a_server_without_ranges_gives_everything_again() {
    let fake = Fake::start();
    let layer = tarball("file", 100_000);
    let digest = fake.image(&layer, |_| {});
    let path = format!("/v2/app/blobs/{digest}");
    fake.say(&path, Reply { body: layer.clone(), cut: Some(50_000), ignores_ranges: true, ..Reply::default() });
    let (_directory, store) = store();
    let (replies, whole) = (fake.replies.clone(), path.clone());
    std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(150));
        replies.lock().unwrap().get_mut(&whole).unwrap().cut = None;
    });
    store.pull(&fake.name(), None).await.unwrap();
}

#[tokio::test]
async fn content_that_is_not_what_was_promised_is_refused() {
    let layer = tarball("file", 5_000);
    let digest = digest(&layer);
    let path = format!("/v2/app/blobs/{digest}");
    type Change = fn(&Fake, &str, &[u8]);
    let cases: [(&str, Change, &str); 6] = [
        (
            "another content of the same length",
            |fake, path, layer| {
                let mut other = layer.to_vec();
                other[600] ^= 1;
                fake.say(path, Reply { body: other, ..Reply::default() });
            },
            "the content has digest",
        ),
        (
            "more than promised",
            |fake, path, layer| fake.say(path, Reply { body: [layer, b"more"].concat(), ..Reply::default() }),
            "more than the",
        ),
        (
            "less than promised",
            |fake, path, layer| fake.say(path, Reply { body: layer[..1_000].to_vec(), ..Reply::default() }),
            "failed to fetch layer",
        ),
        (
            "a redirection to a file",
            |fake, path, _| {
                fake.say(
                    path,
                    Reply { status: "307 Temporary Redirect", headers: "Location: file:///etc/passwd\r\n".into(), ..Reply::default() },
                )
            },
            "refused to follow",
        ),
        (
            "a redirection to itself",
            |fake, path, _| {
                fake.say(path, Reply { status: "307 Temporary Redirect", headers: format!("Location: {path}\r\n"), ..Reply::default() })
            },
            "stopped after 5 redirects",
        ),
        ("nothing", |fake, path, _| fake.say(path, Reply { status: "404 Not Found", ..Reply::default() }), "not found"),
    ];
    for (what, change, reason) in cases {
        let fake = Fake::start();
        fake.image(&layer, |_| {});
        change(&fake, &path, &layer);
        let error = refused(&fake).await;
        assert!(error.contains(reason), "{what}: {error}");
    }
}

#[tokio::test]
async fn manifests_that_make_no_sense_are_refused() {
    let layer = tarball("file", 10);
    for (claims, reason) in [
        ((|m| m["layers"][0]["size"] = serde_json::json!(1_u64 << 40)) as fn(&mut serde_json::Value), "failed to fetch layer"),
        (|m| m["config"]["size"] = serde_json::json!(1_u64 << 40), "configuration has 1099511627776 bytes"),
        (|m| m["layers"][0]["digest"] = serde_json::json!("sha256:../../../etc/passwd"), "not a SHA-256 digest"),
        (|m| m["layers"] = serde_json::json!([]), "0 layers, but 1 diff ids"),
        (|m| m["config"] = serde_json::Value::Null, "no configuration"),
        (|m| m["schemaVersion"] = serde_json::json!(1), "schema 1"),
        (|m| m["annotations"] = serde_json::json!({ "x": "y".repeat(5 << 20) }), "an answer of more than 4194304 bytes"),
    ] {
        let fake = Fake::start();
        fake.image(&layer, claims);
        let error = refused(&fake).await;
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[tokio::test]
async fn indexes_that_never_end_are_refused() {
    let fake = Fake::start();
    let platform = serde_json::json!({ "os": "linux", "architecture": images::architecture() });
    let mut next = "{\"schemaVersion\":2,\"config\":null}".to_owned();
    for depth in 0..7 {
        let digest = digest(next.as_bytes());
        fake.manifest(&digest, next.as_bytes());
        let entry = serde_json::json!({ "digest": digest, "size": next.len(), "platform": platform });
        next = serde_json::json!({ "schemaVersion": 2, "manifests": [entry], "annotations": { "depth": depth.to_string() } }).to_string();
    }
    fake.manifest("v1", next.as_bytes());
    let error = refused(&fake).await;
    assert!(error.contains("more than 4 indexes"), "{error}");
    let foreign = serde_json::json!({ "schemaVersion": 2, "manifests": [{ "digest": digest(b"x"), "platform": { "os": "linux", "architecture": "s390x" } }] });
    fake.manifest("v1", foreign.to_string().as_bytes());
    let error = refused(&fake).await;
    assert!(error.contains("no match for platform in manifest"), "{error}");
}

#[tokio::test]
async fn layers_that_reach_outside_bring_nothing() {
    for (path, link) in [("../escaped", ""), ("a/../../escaped", ""), ("taken", "../../../../etc/passwd")] {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        if !link.is_empty() {
            header.set_entry_type(tar::EntryType::Link);
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        }
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, std::io::empty()).unwrap();
        let fake = Fake::start();
        fake.image(&builder.into_inner().unwrap(), |_| {});
        let error = refused(&fake).await;
        assert!(error.contains("failed to extract layer") && error.contains(path), "{error}");
    }
}

#[tokio::test]
async fn a_verifier_that_rejects_keeps_an_image_out() {
    use std::os::unix::fs::PermissionsExt;
    let fake = Fake::start();
    let digest = fake.image(&tarball("file", 10), |_| {});
    let (directory, store) = store();
    let folder = directory.path().join("verifiers");
    std::fs::create_dir(&folder).unwrap();
    let script = folder.join("policy");
    std::fs::write(&script, "#!/bin/sh\ncase \"$2\" in *app:v1) echo \"not signed: $(cat | grep -o sha256 | head -n 1)\"; exit 1;; esac\n")
        .unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    store.use_registries(images::Registries { verifiers: Some(folder.clone()), ..images::Registries::default() });
    let error = store.clone().pull(&fake.name(), None).await.unwrap_err().to_string();
    assert!(error.starts_with("SignatureValidationFailed") && error.contains("not signed: sha256"), "{error}");
    assert_eq!(fake.asked_for(&digest), 0, "no layer was fetched");
    std::fs::write(&script, "#!/bin/sh\nexit 0\n").unwrap();
    store.pull(&fake.name(), None).await.unwrap();
}
