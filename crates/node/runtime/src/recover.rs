//! Every start is the recovery path: living shims are re-adopted, everything else that bears our name is cleaned.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::connection::Connection;
use crate::protocol::{Exit, Reply, Request, Running};
use crate::record::{self, ContainerRecord, SandboxRecord};
use crate::state::{Container, Inner, Life, Sandbox, lock};
use crate::{Result, io_error, shim};

/// A shim answers in microseconds; one that does not is stuck.
const HELLO_WAIT: Duration = Duration::from_secs(5);

impl Inner {
    pub async fn recover(self: Arc<Self>) -> Result<()> {
        let top = self.config.run_dir.join("sandboxes");
        let entries = std::fs::read_dir(&top).map_err(io_error(format!("read {}", top.display())))?;
        for entry in entries.flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            match record::load::<SandboxRecord>(&entry.path().join("record")) {
                Ok(record) => self.recover_sandbox(record, &entry.path()).await,
                Err(_) => self.clear_sandbox(&id, &entry.path()).await,
            }
        }
        self.images.collect_garbage();
        let inner = self.clone();
        self.blocking(move |_| inner.clean_leftovers()).await
    }

    async fn recover_sandbox(self: &Arc<Self>, record: SandboxRecord, directory: &Path) {
        let id = record.id.clone();
        let sandbox = Arc::new(Sandbox {
            id: id.clone(),
            directory: directory.to_owned(),
            record: Mutex::new(record),
            connection: Mutex::default(),
            users: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
        });
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if let Ok(record) = record::load::<ContainerRecord>(&entry.path().join("record")) {
                self.recover_container(&sandbox, record, &entry.path());
            }
        }
        self.sandboxes.insert(&id, sandbox.clone());
        match self.adopt(&sandbox).await {
            Some(running) => running.into_iter().for_each(|running| self.adopt_container(running)),
            None => {
                // Only records are left: what ran has ended, by its exit file or by its shim's death.
                let containers = self.containers_of(&id);
                containers.iter().filter(|c| was_started(c)).for_each(|c| c.life.send_modify(|life| life.pid = Some(0)));
                self.shim_gone(&sandbox).await;
            }
        }
    }

    fn recover_container(self: &Arc<Self>, sandbox: &Arc<Sandbox>, record: ContainerRecord, directory: &Path) {
        let lease = self.images.lease(&record.image_id);
        let mounted = record.config.iter().flat_map(|config| &config.mounts).filter_map(|mount| mount.image.as_ref());
        let found = mounted.filter_map(|image| self.images.resolve(&image.image)).filter_map(|image| self.images.lease(&image.id));
        let volume_leases = Mutex::new(found.collect());
        let container = Arc::new(Container {
            id: record.id.clone(),
            sandbox: sandbox.clone(),
            directory: directory.to_owned(),
            lease: Mutex::new(lease),
            volume_leases,
            life: tokio::sync::watch::channel(Life::default()).0,
            changing: tokio::sync::Mutex::default(),
            record: Mutex::new(record),
        });
        if let Some(exit) = record::load_exit(directory) {
            container.life.send_modify(|life| life.pid = (exit.started_at != 0).then_some(0));
            container.ended(&self.cgroups, exit);
        }
        self.containers.insert(&container.id.clone(), container);
    }

    /// Connects to a living shim; what runs there, or none where no shim answers.
    pub async fn adopt(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Option<Vec<Running>> {
        let connection = Connection::open(&sandbox.id, &sandbox.directory).ok()?;
        *lock(&sandbox.connection) = Some(connection.clone());
        self.listen(sandbox, connection.clone());
        match tokio::time::timeout(HELLO_WAIT, connection.call(Request::Hello, &[])).await {
            Ok(Ok((Reply::Hello { running, .. }, namespaces))) => {
                *lock(&sandbox.users) = namespaces.into_iter().nth(1).map(Arc::new);
                Some(running)
            }
            _ => {
                lock(&sandbox.connection).take();
                None
            }
        }
    }

    pub fn adopt_container(self: &Arc<Self>, running: Running) {
        let Ok(container) = self.container(&running.container) else { return };
        container.life.send_modify(|life| {
            life.pid = Some(running.pid);
            life.started_at = running.started_at;
        });
        let known = container.life.borrow().exit.is_some();
        if let Some(exit) = running.exit.filter(|_| !known) {
            self.exited(&container.id, exit);
        }
    }

    /// Control groups, writable layers and network attachments of pods that are no more.
    fn clean_leftovers(&self) -> Result<()> {
        let containers: BTreeSet<String> = self.containers.all().iter().map(|c| c.id.clone()).collect();
        let mut used: BTreeSet<String> = self.containers.all().iter().map(|c| lock(&c.record).cgroup.clone()).collect();
        used.extend(self.sandboxes.all().iter().map(|s| lock(&s.record).cgroup.clone()));
        used.insert(crate::SHIMS.to_owned());
        let used: BTreeSet<String> = used.iter().map(|path| path.trim_matches('/').to_owned()).collect();
        for path in self.cgroups.walk() {
            if !used.iter().any(|u| *u == path || u.starts_with(&format!("{path}/"))) {
                let group = self.cgroups.open(&path)?;
                group.kill()?;
                group.remove()?;
            }
        }
        crate::mountpoints::clean(&self.config.data_dir);
        let layers = self.config.data_dir.join("containers");
        for entry in std::fs::read_dir(&layers).into_iter().flatten().flatten() {
            if !containers.contains(&*entry.file_name().to_string_lossy()) {
                crate::sandbox::remove_directory(&entry.path())?;
            }
        }
        if let Some(network) = &self.network {
            let living: Vec<String> = self.sandboxes.all().iter().filter(|s| !lock(&s.record).stopped).map(|s| s.id.clone()).collect();
            network.retain(&living)?;
        }
        Ok(())
    }
}

/// A container whose process description was stored had at least been about to start.
fn was_started(container: &Container) -> bool {
    container.life.borrow().exit.is_none() && !lock(&container.record).process.is_empty()
}

impl Exit {
    /// How a container ended whose shim died before it could tell.
    pub fn unknown(started_at: i64) -> Self {
        let message = "the container's shim is gone".to_owned();
        Self { code: 255, started_at, finished_at: shim::now(), reason: "Unknown".into(), message }
    }
}
