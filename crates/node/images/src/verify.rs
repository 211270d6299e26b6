//! Programs that judge an image before its layers are fetched, called as containerd calls its image verifiers: `-name`, `-digest`,
//! `-stdin-media-type`, a descriptor on standard input. Exit status 0 accepts; the first line of standard output is the reason.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::manifest::{Descriptor, Document};
use crate::reference::Reference;
use crate::{Error, Result, io_error};

/// As containerd's defaults.
const PATIENCE: Duration = Duration::from_secs(10);
const VERIFIERS_MAX: usize = 10;
const REASON_BYTES_MAX: u64 = 16 << 10;

/// Asks every program of the folder, which may be missing; all have to accept.
pub(crate) async fn verify(folder: &Path, name: &Reference, digest: &str, bytes: &[u8]) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    let mut programs: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    programs.sort();
    let media_type = Document::parse(bytes).map(|document| document.kind().to_owned()).unwrap_or_default();
    let descriptor = Descriptor { media_type, digest: digest.to_owned(), size: bytes.len() as u64, ..Descriptor::default() };
    let descriptor = serde_json::to_vec(&descriptor).unwrap_or_default();
    for program in programs.iter().take(VERIFIERS_MAX) {
        let shown = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let refuse = |reason: String| Error::Rejected { reference: name.to_string(), verifier: shown.clone(), reason };
        let asked = tokio::time::timeout(PATIENCE, ask(program, name, digest, &descriptor)).await;
        let (accepted, reason) = asked.map_err(|_| refuse(format!("no answer within {} s", PATIENCE.as_secs())))??;
        if !accepted {
            return Err(refuse(reason));
        }
    }
    Ok(())
}

async fn ask(program: &Path, name: &Reference, digest: &str, descriptor: &[u8]) -> Result<(bool, String)> {
    let step = || format!("run the image verifier {}", program.display());
    let mut command = tokio::process::Command::new(program);
    command.args(["-name", &name.to_string(), "-digest", digest, "-stdin-media-type", "application/vnd.oci.descriptor.v1+json"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().map_err(io_error(step()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A verifier need not read it.
        let _ = stdin.write_all(descriptor).await;
    }
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        let mut bytes = Vec::new();
        stdout.take(REASON_BYTES_MAX).read_to_end(&mut bytes).await.map_err(io_error(step()))?;
        said = String::from_utf8_lossy(&bytes).trim().to_owned();
    }
    let status = child.wait().await.map_err(io_error(step()))?;
    Ok((status.success(), said))
}
