//! What CSI's sidecars do beside a driver's controller, built in: provisioner, attacher, resizer, snapshotter.
//!
//! A driver asks for it by putting its controller's socket, `<anything>.sock`, into the folder that [`run`] looks at. Whose socket is
//! elsewhere has sidecars of its own, which are never disturbed: nothing here touches objects of a driver without a socket in the folder.
//!
//! Read in this order: [`driver`] (one driver and its queue), [`provision`], [`attach`], [`resize`], [`snapshot`], [`capacity`]. Tasks: one that
//! looks at the folder, two per driver.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::Client;
use reconcile::Caches;
use stdx::Drain;

mod attach;
mod capacity;
mod driver;
mod provision;
mod resize;
mod snapshot;

/// How often the folder is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// One driver's call that failed, or a write about it.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("rpc error: {0}")]
    Driver(#[from] cri::Error),
    #[error("{0}")]
    Api(#[from] client::Error),
    #[error("{0}")]
    Refused(String),
}

/// Serves the drivers whose sockets are in `folder` until `drain`. `client` may do what provisioners, attachers,
/// resizers and snapshotters do.
pub async fn run(folder: PathBuf, client: Client, caches: Caches, drain: Drain) {
    if let Err(error) = std::fs::create_dir_all(&folder) {
        tracing::error!(%error, folder = %folder.display(), "make the folder of CSI controllers' sockets");
        return;
    }
    // By path: which file it was, and how its driver is stopped.
    let mut known: BTreeMap<PathBuf, ((u64, i64), Drain)> = BTreeMap::new();
    loop {
        let found = sockets(&folder);
        known.retain(|path, (identity, stop)| {
            let stays = found.get(path) == Some(identity);
            if !stays {
                stop.stop();
            }
            stays
        });
        for (path, identity) in found {
            known.entry(path.clone()).or_insert_with(|| {
                let stop = drain.child();
                tokio::spawn(driver::serve(path, client.clone(), caches.clone(), stop.clone()));
                (identity, stop)
            });
        }
        if drain.run(tokio::time::sleep(LOOK_INTERVAL)).await.is_none() {
            return;
        }
    }
}

fn sockets(folder: &Path) -> BTreeMap<PathBuf, (u64, i64)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let socket = |entry: std::fs::DirEntry| {
        let metadata = entry.metadata().ok()?;
        let named = entry.path().extension().is_some_and(|extension| extension == "sock");
        (named && metadata.file_type().is_socket()).then(|| (entry.path(), (metadata.ino(), metadata.ctime_nsec() ^ metadata.ctime())))
    };
    entries.filter_map(socket).collect()
}
