//! Against a real registry (Debian's docker-registry) on loopback; needs root to unpack.

use std::io::Write;
use std::process::{Child, Command, Stdio};

use images::Store;
use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::secrets::RegistryAuth;
use sha2::{Digest, Sha256};

struct Registry {
    child: Child,
    address: String,
    directory: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    async fn start(passwords: Option<&str>) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let auth = passwords.map_or(String::new(), |file| {
            let path = directory.path().join("htpasswd");
            std::fs::write(&path, file).unwrap();
            format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", path.display())
        });
        let blobs = directory.path().join("blobs");
        let storage = format!("storage:\n  filesystem:\n    rootdirectory: {}\n", blobs.display());
        let config = format!("version: 0.1\nlog:\n  level: error\n{storage}http:\n  addr: {address}\n{auth}");
        let path = directory.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let child = serve(&path);
        let registry = Self { child, address, directory };
        registry.answers().await;
        registry
    }

    /// The same content over TLS from now on, for clients with a certificate of `clients`.
    async fn restart_with_tls(&mut self, own: &(String, String), clients: &str) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let path = |name: &str| self.directory.path().join(name);
        for (name, text) in [("own.crt", own.0.as_str()), ("own.key", &own.1), ("clients.crt", clients)] {
            std::fs::write(path(name), text).unwrap();
        }
        let tls = format!(
            "  tls:\n    certificate: {}\n    key: {}\n    clientcas: [{}]\n",
            path("own.crt").display(),
            path("own.key").display(),
            path("clients.crt").display()
        );
        let config = std::fs::read_to_string(path("config.yml")).unwrap();
        std::fs::write(path("tls.yml"), format!("{config}{tls}")).unwrap();
        self.child = serve(&path("tls.yml"));
        self.answers().await;
    }

    async fn answers(&self) {
        for _ in 0..400 {
            if tokio::net::TcpStream::connect(&self.address).await.is_ok() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
        panic!("the registry does not answer");
    }

    /// Pushes an image of two layers, the second one gzip-compressed.
    async fn push(&self, name: &str, auth: &RegistryAuth) -> String {
        let client = oci_client::Client::new(ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() });
        let reference: oci_client::Reference = format!("{}/{name}", self.address).parse().unwrap();
        let (one, two) = (tarball("one"), tarball("two"));
        let diff_ids: Vec<String> = [&one, &two].iter().map(|layer| format!("sha256:{:x}", Sha256::digest(layer))).collect();
        let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        let config = serde_json::json!({ "architecture": architecture, "os": "linux",
            "config": { "Env": ["A=b"], "User": "33" }, "rootfs": { "type": "layers", "diff_ids": diff_ids } });
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&two).unwrap();
        let layers = [ImageLayer::oci_v1(one, None), ImageLayer::oci_v1_gzip(gzip.finish().unwrap(), None)];
        client.push(&reference, &layers, Config::oci_v1(config.to_string().into_bytes(), None), auth, None).await.unwrap();
        format!("{}/{name}", self.address)
    }
}

fn serve(config: &std::path::Path) -> Child {
    let child = Command::new("docker-registry").arg("serve").arg(config).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    child.expect("docker-registry: apt-get install docker-registry")
}

type Authority = rcgen::CertifiedIssuer<'static, rcgen::KeyPair>;

fn authority() -> Authority {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap()
}

/// Certificate and key.
fn identity(of: &Authority, usage: rcgen::ExtendedKeyUsagePurpose) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.extended_key_usages = vec![usage];
    (params.signed_by(&key, of).unwrap().pem(), key.serialize_pem())
}

fn tarball(name: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(name.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, name.as_bytes()).unwrap();
    builder.into_inner().unwrap()
}

#[tokio::test]
async fn an_image_is_pulled_by_tag_and_found_by_digest() {
    let registry = Registry::start(None).await;
    let name = registry.push("team/app:v1", &RegistryAuth::Anonymous).await;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let (image, again) = tokio::join!(store.clone().pull(&name, None), store.clone().pull(&name, None));
    let image = image.unwrap();
    assert_eq!(again.unwrap().id, image.id);
    assert_eq!((image.config.env.as_slice(), image.config.user.as_str()), (["A=b".to_owned()].as_slice(), "33"));
    let layers = store.lease(&image.id).unwrap().layers();
    assert_eq!(std::fs::read_to_string(layers[1].join("two")).unwrap(), "two");
    let by_digest = image.digests.first().unwrap().clone();
    assert_eq!(store.resolve(&by_digest).unwrap().id, image.id);
    store.remove(&name).unwrap();
    assert!(!layers[0].exists());
    assert_eq!(store.clone().pull(&by_digest, None).await.unwrap().id, image.id);
}

#[tokio::test]
async fn what_is_not_there_is_not_found_and_no_registry_is_another_error() {
    let registry = Registry::start(None).await;
    let name = format!("{}/no/such:v1", registry.address);
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let error = store.clone().pull(&name, None).await.unwrap_err();
    let expected = format!("failed to pull and unpack image {name:?}: failed to resolve reference {name:?}: {name}: not found");
    assert_eq!(error.to_string(), expected);
    let error = store.pull("127.0.0.1:1/app", None).await.unwrap_err().to_string();
    assert!(error.contains("refused") && !error.contains("not found"), "{error}");
}

#[tokio::test]
async fn a_closed_registry_wants_the_right_password() {
    let registry = Registry::start(Some("user:$2b$05$FIEMkQ64Q8SCCtZzdJqmxedh/22aJ0lTvGUn7uz3.unZ2lq1g.E0.\n")).await;
    let name = registry.push("app:1", &RegistryAuth::Basic("user".into(), "secret".into())).await;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let auth = |password: &str| cri::v1::AuthConfig { username: "user".into(), password: password.into(), ..Default::default() };
    for wrong in [None, Some(&auth("guess"))] {
        let error = store.clone().pull(&name, wrong).await.unwrap_err().to_string();
        assert!(error.contains("authorization failed"), "{error}");
    }
    store.pull(&name, Some(&auth("secret"))).await.unwrap();
}

#[tokio::test]
async fn a_registry_of_a_foreign_authority_is_believed_and_shown_a_certificate_where_its_settings_say_so() {
    let mut registry = Registry::start(None).await;
    let name = registry.push("app:1", &RegistryAuth::Anonymous).await;
    let (servers, clients) = (authority(), authority());
    registry.restart_with_tls(&identity(&servers, rcgen::ExtendedKeyUsagePurpose::ServerAuth), &clients.pem()).await;
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (certificate, key) = identity(&clients, rcgen::ExtendedKeyUsagePurpose::ClientAuth);
    for (name, text) in [("ca.crt", &servers.pem()), ("other.crt", &clients.pem()), ("own.crt", &certificate), ("own.key", &key)] {
        std::fs::write(path(name), text).unwrap();
    }
    let store = Store::open(&path("store")).unwrap();
    let file = path("registries.yaml");
    store.use_registries(images::Registries { file: Some(file.clone()), ..images::Registries::default() });
    let believe = |ca: &str| format!("ca_file: {}", path(ca).display());
    let show = format!("cert_file: {}, key_file: {}", path("own.crt").display(), path("own.key").display());
    for (settings, works) in [
        (believe("ca.crt"), false),
        (format!("{}, {show}", believe("other.crt")), false),
        (show.clone(), false),
        (format!("{}, {show}", believe("ca.crt")), true),
        (format!("insecure_skip_verify: true, {show}"), true),
    ] {
        std::fs::write(&file, format!("configs:\n  \"{}\": {{tls: {{{settings}}}}}\n", registry.address)).unwrap();
        let pulled = store.clone().pull(&name, None).await;
        assert_eq!(pulled.is_ok(), works, "{settings}: {:?}", pulled.err().map(|error| error.to_string()));
    }
}
