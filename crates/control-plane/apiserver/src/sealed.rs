//! The store with encryption at rest: values of the configured resources are sealed on their way in and opened on their way out, so that
//! everything above sees plain objects and everything below (log, snapshots, backups) sealed bytes.

use std::sync::Arc;

use arc_swap::ArcSwap;
use auth::encryption::Encryption;
use bytes::Bytes;
use futures_util::FutureExt;
use store::{Call, Entry, Error, Event, Expect, Range, RangeResult, Store, Watch};
use tokio::sync::mpsc;

use crate::registry::catalog;

/// Opened events on their way to a watcher; the store's own queue is behind it.
const QUEUE: usize = 1_024;

pub struct Sealed {
    inner: Arc<dyn Store>,
    /// The configuration of the moment.
    doors: Arc<ArcSwap<Doors>>,
}

/// Which values are sealed, and how.
struct Doors {
    encryption: Encryption,
    /// Key prefixes and the rule that is responsible for them.
    prefixes: Vec<(Vec<u8>, usize)>,
}

impl Doors {
    fn new(encryption: Encryption) -> Self {
        let prefix = |kind: &Arc<catalog::Kind>| {
            let rule = encryption.rule(kind.facts.group, kind.facts.plural)?;
            Some((kind.storage.prefix.clone().into_bytes(), rule))
        };
        let mut prefixes: Vec<(Vec<u8>, usize)> = catalog::all().iter().filter(|kind| !kind.converts()).filter_map(prefix).collect();
        prefixes.sort();
        prefixes.dedup();
        Self { encryption, prefixes }
    }

    fn rule(&self, key: &[u8]) -> Option<usize> {
        let built_in = self.prefixes.iter().find(|(prefix, _)| key.starts_with(prefix)).map(|(_, rule)| *rule);
        built_in.or_else(|| {
            // Custom resources: `/registry/<group>/<plural>/…`.
            let mut parts = std::str::from_utf8(key).ok()?.strip_prefix("/registry/")?.split('/');
            let (group, plural) = (parts.next().filter(|group| group.contains('.'))?, parts.next()?);
            self.encryption.rule(group, plural)
        })
    }

    async fn open(&self, mut entry: Entry) -> Result<Entry, Error> {
        if let Some(rule) = self.rule(&entry.key) {
            let opened = self.encryption.open(rule, &entry.key, &entry.value).await.map_err(|error| failed(&entry.key, &error))?;
            entry.value = opened.bytes.into();
        }
        Ok(entry)
    }

    async fn seal(&self, rule: usize, key: &[u8], plain: &[u8]) -> Result<Bytes, Error> {
        self.encryption.seal(rule, key, plain).await.map(Bytes::from).map_err(|error| failed(key, &error))
    }

    /// One value that cannot be opened must not hide all others: it stays sealed here, where nobody takes it for an object.
    async fn try_open(&self, entry: Entry) -> Entry {
        match self.open(entry.clone()).await {
            Ok(opened) => opened,
            Err(error) => {
                tracing::error!(%error, "encryption at rest");
                entry
            }
        }
    }

    async fn open_event(&self, event: Event) -> Event {
        if self.rule(event.key()).is_none() {
            return event;
        }
        match event {
            Event::Put { entry, previous } => {
                let previous = match previous {
                    Some(previous) => Some(self.try_open(previous).await),
                    None => None,
                };
                Event::Put { entry: self.try_open(entry).await, previous }
            }
            Event::Delete { key, revision, previous } => Event::Delete { key, revision, previous: self.try_open(previous).await },
        }
    }
}

impl Sealed {
    pub fn new(inner: Arc<dyn Store>, encryption: Encryption) -> Self {
        Self { inner, doors: Arc::new(ArcSwap::from_pointee(Doors::new(encryption))) }
    }

    /// Seals by another configuration (YAML) from now on; what lies there already is for [`Sealed::seal_again`].
    pub fn configure(&self, text: &str) -> Result<(), String> {
        let tree: serde_json::Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        let encryption = Encryption::parse(&tree).map_err(|error| error.to_string())?;
        self.doors.store(Arc::new(Doors::new(encryption)));
        Ok(())
    }

    /// Seals with the current key what another one sealed, and says so.
    pub async fn seal_again(&self) {
        match self.renew().await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "encryption at rest: sealed again with the current key"),
            Err(error) => tracing::error!(%error, "encryption at rest"),
        }
    }

    fn doors(&self) -> Arc<Doors> {
        self.doors.load_full()
    }

    fn rule(&self, key: &[u8]) -> Option<usize> {
        self.doors.load().rule(key)
    }

    /// Seals again what an old key sealed, or nothing did. Returns how many values it wrote.
    pub async fn renew(&self) -> Result<usize, Error> {
        let (doors, mut written) = (self.doors(), 0);
        for (prefix, rule) in &doors.prefixes {
            let page = self.inner.range(Range { prefix: prefix.clone().into(), ..Range::default() }).await?;
            for entry in page.entries {
                let opened = doors.encryption.open(*rule, &entry.key, &entry.value).await;
                let opened = opened.map_err(|error| failed(&entry.key, &error))?;
                if !opened.stale {
                    continue;
                }
                let sealed = doors.seal(*rule, &entry.key, &opened.bytes).await?;
                match self.inner.put(&entry.key, sealed, Expect::Revision(entry.mod_revision)).await {
                    Ok(_) => written += 1,
                    // Somebody else wrote it, and sealed it by that.
                    Err(Error::Conflict { .. } | Error::NotFound) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(written)
    }
}

fn failed(key: &[u8], error: &auth::encryption::Error) -> Error {
    Error::Broken(format!("{}: {error}", String::from_utf8_lossy(key)))
}

impl Store for Sealed {
    fn revision(&self) -> u64 {
        self.inner.revision()
    }

    fn get<'a>(&'a self, key: &'a [u8]) -> Call<'a, Option<Entry>> {
        if self.rule(key).is_none() {
            return self.inner.get(key);
        }
        Box::pin(async move {
            match self.inner.get(key).await? {
                Some(entry) => self.doors().open(entry).await.map(Some),
                None => Ok(None),
            }
        })
    }

    fn range(&self, request: Range) -> Call<'_, RangeResult> {
        Box::pin(async move {
            let mut result = self.inner.range(request).await?;
            let doors = self.doors();
            for entry in &mut result.entries {
                if doors.rule(&entry.key).is_some() {
                    *entry = doors.try_open(entry.clone()).await;
                }
            }
            Ok(result)
        })
    }

    fn put<'a>(&'a self, key: &'a [u8], value: Bytes, expect: Expect) -> Call<'a, u64> {
        let doors = self.doors();
        let Some(rule) = doors.rule(key) else {
            return self.inner.put(key, value, expect);
        };
        Box::pin(async move {
            let sealed = doors.seal(rule, key, &value).await?;
            match self.inner.put(key, sealed, expect).await {
                Err(Error::Conflict { current: Some(current) }) => {
                    Err(Error::Conflict { current: Some(self.doors().open(current).await?) })
                }
                other => other,
            }
        })
    }

    fn delete<'a>(&'a self, key: &'a [u8], expect: Expect) -> Call<'a, (u64, Entry)> {
        if self.rule(key).is_none() {
            return self.inner.delete(key, expect);
        }
        Box::pin(async move {
            match self.inner.delete(key, expect).await {
                Ok((revision, entry)) => Ok((revision, self.doors().open(entry).await?)),
                Err(Error::Conflict { current: Some(current) }) => {
                    Err(Error::Conflict { current: Some(self.doors().open(current).await?) })
                }
                Err(error) => Err(error),
            }
        })
    }

    /// A task per watch opens the events; the API server has one watch.
    fn watch(&self, prefix: &[u8], after: u64) -> Result<Watch, Error> {
        let mut inner = self.inner.watch(prefix, after)?;
        let (sender, events) = mpsc::channel(QUEUE);
        let doors = self.doors.clone();
        tokio::spawn(async move {
            while let Some(event) = inner.events.recv().await {
                let event = match event {
                    Ok(event) => Ok(doors.load_full().open_event(event).await),
                    Err(error) => Err(error),
                };
                if sender.send(event).await.is_err() {
                    return;
                }
            }
        });
        Ok(Watch { events })
    }

    fn history(&self, prefix: &[u8], after: u64) -> Result<Vec<Event>, Error> {
        let events = self.inner.history(prefix, after)?;
        // Keys are at hand but for a KMS plugin's that was not asked yet: then the past counts as forgotten, and clients list.
        let doors = self.doors();
        let opened = events.into_iter().map(|event| doors.open_event(event).now_or_never());
        opened.collect::<Option<Vec<Event>>>().ok_or(Error::Compacted { oldest: self.inner.revision() })
    }

    fn compact(&self, revision: u64) -> Call<'_, ()> {
        self.inner.compact(revision)
    }

    fn close(&self) -> Call<'_, ()> {
        self.inner.close()
    }
}
