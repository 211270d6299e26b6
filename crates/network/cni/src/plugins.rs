//! Somebody else's pod network: plugins by the CNI specification (1.1; older versions are spoken to in their own).
//!
//! The first network list (`*.conflist`, or a single plugin's `*.conf`, `*.json`) of a folder names programs in another. Each sandbox keeps the list that it was
//! attached with and what the plugins said, as files: it is detached by the same plugins whatever the folder holds by then.

use std::fs;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::links::Requests;
use crate::routed::in_namespace;
use crate::{Attachment, Error, PodNetwork};

/// A plugin that waits longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(2);
const VERSION_DEFAULT: &str = "0.2.0";
/// Of a file that is being written.
const UNFINISHED: &str = "new";

/// Where plugins and their lists are.
#[derive(Clone, Debug)]
pub struct Folders {
    /// Such as /etc/cni/net.d.
    pub configuration: PathBuf,
    /// Such as /opt/cni/bin; the first that has a plugin counts.
    pub programs: Vec<PathBuf>,
    /// What each sandbox was attached with.
    pub state: PathBuf,
}

/// Runs plugins. Knows nothing of addresses: those are the plugins'.
#[derive(Debug)]
pub struct Plugins {
    folders: Folders,
}

impl Plugins {
    /// To be called once, before anything is attached: what a killed daemon was writing is removed.
    pub fn open(folders: Folders) -> Result<Self, Error> {
        fs::create_dir_all(&folders.state).map_err(|source| Error::Node { step: "make the folder of CNI results", source })?;
        remove_unfinished(&folders.state).map_err(|source| Error::Node { step: "clean the folder of CNI results", source })?;
        Ok(Self { folders })
    }

    /// The list that new sandboxes get.
    fn list(&self) -> Result<Value, String> {
        let folder = &self.folders.configuration;
        let mut files: Vec<PathBuf> = fs::read_dir(folder)
            .map_err(|error| format!("{}: {error}", folder.display()))?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|end| end == "conflist" || end == "conf" || end == "json"))
            .collect();
        files.sort();
        let first = files.first().ok_or_else(|| format!("no networks found in {}", folder.display()))?;
        let text = fs::read_to_string(first).map_err(|error| format!("{}: {error}", first.display()))?;
        let list: Value = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", first.display()))?;
        let list = if list["plugins"].is_array() {
            list
        } else {
            json!({ "name": list["name"], "cniVersion": list["cniVersion"], "plugins": [list] })
        };
        let named = list["name"].as_str().is_some_and(|name| !name.is_empty());
        let typed = list["plugins"]
            .as_array()
            .is_some_and(|plugins| !plugins.is_empty() && plugins.iter().all(|plugin| plugin["type"].is_string()));
        if named && typed { Ok(list) } else { Err(format!("{}: a name and plugins with a type are needed", first.display())) }
    }

    /// Adds one plugin after the other, each with what the one before said.
    fn add(&self, list: &Value, sandbox_id: &str, netns: &str) -> Result<Value, Error> {
        let mut result = Value::Null;
        for plugin in list["plugins"].as_array().into_iter().flatten() {
            result = self.call("ADD", list, plugin, sandbox_id, netns, &result)?;
        }
        Ok(result)
    }

    /// In reverse; every plugin is asked, and the first failure told.
    fn delete(&self, list: &Value, sandbox_id: &str, netns: &str, result: &Value) -> Result<(), Error> {
        let mut failure = None;
        for plugin in list["plugins"].as_array().into_iter().flatten().rev() {
            if let Err(error) = self.call("DEL", list, plugin, sandbox_id, netns, result) {
                failure.get_or_insert(error);
            }
        }
        failure.map_or(Ok(()), Err)
    }

    fn call(&self, command: &str, list: &Value, plugin: &Value, sandbox_id: &str, netns: &str, before: &Value) -> Result<Value, Error> {
        let kind = plugin["type"].as_str().unwrap_or_default();
        let failed =
            |why: String| Error::Plugin { plugin: kind.to_owned(), command: command.to_owned(), sandbox_id: sandbox_id.to_owned(), why };
        let mut configuration = plugin.clone();
        configuration["name"] = list["name"].clone();
        configuration["cniVersion"] = list["cniVersion"].as_str().unwrap_or(VERSION_DEFAULT).into();
        if !before.is_null() {
            configuration["prevResult"] = before.clone();
        }
        let program = self.program(kind).ok_or_else(|| failed(format!("not found in {:?}", self.folders.programs)))?;
        let path = self.folders.programs.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(":");
        let mut process = Command::new(program);
        process.env("CNI_COMMAND", command).env("CNI_CONTAINERID", sandbox_id).env("CNI_NETNS", netns).env("CNI_IFNAME", "eth0");
        process.env("CNI_PATH", path).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (succeeded, answer, log) = run(process, configuration.to_string().as_bytes()).map_err(|error| failed(error.to_string()))?;
        let parsed: Value = serde_json::from_slice(&answer).unwrap_or(Value::Null);
        if succeeded {
            return Ok(parsed);
        }
        // A plugin's error is an object of code, msg and details on its standard output.
        let told = parsed["msg"].as_str().map(|message| format!("{message} {}", parsed["details"].as_str().unwrap_or_default()));
        Err(failed(told.unwrap_or_else(|| String::from_utf8_lossy(&[answer, log].concat()).trim().to_owned())))
    }

    /// Names are single words: a list cannot reach outside the folders.
    fn program(&self, kind: &str) -> Option<PathBuf> {
        let plain =
            !kind.is_empty() && kind.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) && !kind.starts_with('.');
        self.folders.programs.iter().map(|folder| folder.join(kind)).find(|path| plain && path.is_file())
    }

    fn file(&self, sandbox_id: &str) -> Result<PathBuf, Error> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if sandbox_id.is_empty() || !sandbox_id.bytes().all(plain) {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "a sandbox id is letters, digits, '-' and '_'");
            return Err(Error::State { sandbox_id: sandbox_id.to_owned(), source });
        }
        Ok(self.folders.state.join(format!("{sandbox_id}.cni")))
    }

    fn known(&self, sandbox_id: &str) -> Result<Option<Value>, Error> {
        match fs::read(self.file(sandbox_id)?) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::State { sandbox_id: sandbox_id.to_owned(), source }),
        }
    }

    fn save(&self, sandbox_id: &str, state: &Value) -> Result<(), Error> {
        let path = self.file(sandbox_id)?;
        let fresh = path.with_extension(UNFINISHED);
        let written = fs::write(&fresh, state.to_string()).and_then(|()| fs::rename(&fresh, &path));
        written.map_err(|source| Error::State { sandbox_id: sandbox_id.to_owned(), source })
    }
}

fn remove_unfinished(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == UNFINISHED) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

impl PodNetwork for Plugins {
    fn attach(&self, sandbox_id: &str, netns: BorrowedFd<'_>) -> Result<Attachment, Error> {
        if let Some(state) = self.known(sandbox_id)?.filter(|state| state["result"].is_object()) {
            return attachment(sandbox_id, &state["result"]);
        }
        let list = self.list().map_err(|why| Error::Plugin {
            plugin: "network list".into(),
            command: "ADD".into(),
            sandbox_id: sandbox_id.to_owned(),
            why,
        })?;
        let lo_up = in_namespace(netns, |socket| {
            let mut requests = Requests::new(socket, 1);
            requests.up(1);
            requests.send(&[])
        });
        lo_up.and_then(|sent| sent.map_err(|refused| refused.source)).map_err(|source| Error::Kernel {
            step: "set lo up",
            sandbox_id: sandbox_id.to_owned(),
            source,
        })?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd());
        // On disk before anything is made, so that a crash leaves a trace.
        self.save(sandbox_id, &json!({ "list": list }))?;
        let added = self.add(&list, sandbox_id, &path).and_then(|result| {
            self.save(sandbox_id, &json!({ "list": list, "result": result }))?;
            attachment(sandbox_id, &result)
        });
        if added.is_err() {
            if let Err(error) = self.delete(&list, sandbox_id, &path, &Value::Null) {
                tracing::warn!(sandbox_id, %error, "a half-made pod network stays until the next retain");
            } else {
                let _ = fs::remove_file(self.file(sandbox_id)?);
            }
        }
        added
    }

    fn detach(&self, sandbox_id: &str) -> Result<(), Error> {
        let Some(state) = self.known(sandbox_id)? else { return Ok(()) };
        // The namespace may be gone: plugins then give back only what is theirs.
        self.delete(&state["list"], sandbox_id, "", &state["result"])?;
        fs::remove_file(self.file(sandbox_id)?).map_err(|source| Error::State { sandbox_id: sandbox_id.to_owned(), source })
    }

    fn retain(&self, living: &[String]) -> Result<(), Error> {
        let entries = fs::read_dir(&self.folders.state).map_err(|source| Error::Node { step: "read the folder of CNI results", source })?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(sandbox_id) = Path::new(&name)
                .file_stem()
                .and_then(|stem| stem.to_str())
                .filter(|_| entry.path().extension().is_some_and(|end| end == "cni"))
            else {
                continue;
            };
            if !living.iter().any(|known| known == sandbox_id) {
                self.detach(sandbox_id)?;
            }
        }
        Ok(())
    }

    fn readiness(&self) -> Result<(), String> {
        self.list().map(drop).map_err(|why| format!("cni plugin not initialized: {why}"))
    }
}

/// The addresses of `eth0`, as all versions since 0.3 say them; 0.2 had `ip4` and `ip6`.
fn attachment(sandbox_id: &str, result: &Value) -> Result<Attachment, Error> {
    let texts = result["ips"].as_array().into_iter().flatten().map(|ip| &ip["address"]).chain([&result["ip4"]["ip"], &result["ip6"]["ip"]]);
    let addresses: Vec<IpAddr> = texts.filter_map(|text| text.as_str()?.split('/').next()?.parse().ok()).collect();
    if addresses.is_empty() {
        let why = format!("no address in {result}");
        return Err(Error::Plugin { plugin: "result".into(), command: "ADD".into(), sandbox_id: sandbox_id.to_owned(), why });
    }
    Ok(Attachment { sandbox_id: sandbox_id.to_owned(), addresses, host_link: String::new() })
}

/// Whether it succeeded, what it wrote, and what it complained of.
fn run(mut command: Command, input: &[u8]) -> io::Result<(bool, Vec<u8>, Vec<u8>)> {
    let mut child = command.spawn()?;
    let (stdin, mut stdout, mut stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        let answer = scope.spawn(move || read(stdout.as_mut()));
        let log = scope.spawn(move || read(stderr.as_mut()));
        if let Some(mut stdin) = stdin {
            // A plugin that does not read its configuration ends with an error of its own.
            let _ = stdin.write_all(input);
        }
        let succeeded = wait(&mut child)?;
        Ok((succeeded, answer.join().unwrap_or_default(), log.join().unwrap_or_default()))
    })
}

fn read(from: Option<&mut impl Read>) -> Vec<u8> {
    const BYTES_MAX: u64 = 1 << 20;
    let mut bytes = Vec::new();
    if let Some(from) = from {
        let _ = from.take(BYTES_MAX).read_to_end(&mut bytes);
    }
    bytes
}

fn wait(child: &mut Child) -> io::Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the plugin did not end"));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
