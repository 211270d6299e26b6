//! What the runtime remembers on disk: one record per sandbox and per container, in protobuf, replaced atomically.
//!
//! `<run>/sandboxes/<sandbox>/` holds `record`, `shim.sock`, `resolv.conf`, `hostname`, `root/` and per container `<container>/record`
//! and `<container>/exit`. A sandbox directory without a record was never finished, or is being removed.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use cri::v1;
use prost::Message;

use crate::protocol::Exit;

#[derive(Clone, PartialEq, Message)]
pub struct SandboxRecord {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(message, optional, tag = "2")]
    pub config: Option<v1::PodSandboxConfig>,
    #[prost(int64, tag = "3")]
    pub created_at: i64,
    #[prost(string, repeated, tag = "4")]
    pub addresses: Vec<String>,
    /// Stopped for good.
    #[prost(bool, tag = "5")]
    pub stopped: bool,
    #[prost(string, tag = "6")]
    pub runtime_handler: String,
    /// Below the control group root.
    #[prost(string, tag = "7")]
    pub cgroup: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerRecord {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub sandbox: String,
    #[prost(message, optional, tag = "3")]
    pub config: Option<v1::ContainerConfig>,
    #[prost(int64, tag = "4")]
    pub created_at: i64,
    #[prost(string, tag = "5")]
    pub image_id: String,
    #[prost(string, tag = "6")]
    pub image_ref: String,
    /// Absolute; empty for no log.
    #[prost(string, tag = "7")]
    pub log_path: String,
    /// Below the control group root.
    #[prost(string, tag = "8")]
    pub cgroup: String,
    /// The signal that asks it to stop.
    #[prost(int32, tag = "9")]
    pub stop_signal: i32,
    /// Known once started.
    #[prost(message, optional, tag = "10")]
    pub user: Option<v1::LinuxContainerUser>,
    /// JSON of the process description, for exec.
    #[prost(string, tag = "11")]
    pub process: String,
}

/// Writes a record whole or not at all. Only root reads it: environment variables may come from Secrets.
pub fn save(path: &Path, record: &impl Message) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&record.encode_to_vec())?;
    std::fs::rename(new, path)
}

pub fn load<T: Message + Default>(path: &Path) -> std::io::Result<T> {
    T::decode(std::fs::read(path)?.as_slice()).map_err(std::io::Error::other)
}

/// A container's exit, if it has one.
pub fn load_exit(directory: &Path) -> Option<Exit> {
    serde_json::from_slice(&std::fs::read(directory.join("exit")).ok()?).ok()
}

pub fn save_exit(directory: &Path, exit: &Exit) -> std::io::Result<()> {
    std::fs::write(directory.join("exit.new"), serde_json::to_vec(exit)?)?;
    std::fs::rename(directory.join("exit.new"), directory.join("exit"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_root_reads_a_record() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record");
        let record = ContainerRecord { id: "c".into(), ..ContainerRecord::default() };
        for _ in 0..2 {
            save(&path, &record).unwrap();
        }
        assert_eq!(load::<ContainerRecord>(&path).unwrap(), record);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
