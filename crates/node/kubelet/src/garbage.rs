//! Images that no container uses, removed when the disk fills (upstream: `pkg/kubelet/images/image_gc_manager.go`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cri::v1;
use reconcile::EventKind;

use crate::worker::Agent;

/// When images go.
#[derive(Clone, Debug)]
pub struct ImageGc {
    /// Percent of the image file system in use at which images are removed, and down to which.
    pub high_percent: u8,
    pub low_percent: u8,
    /// An image that was first seen or used within this time stays.
    pub age_min: Duration,
    /// One that nobody has used for so long goes, however much room there is.
    pub age_max: Option<Duration>,
    pub interval: Duration,
}

impl Default for ImageGc {
    /// Upstream's.
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80, age_min: Duration::from_secs(120), age_max: None, interval: Duration::from_secs(300) }
    }
}

/// When each image was seen first and used last.
#[derive(Debug, Default)]
pub struct Uses(BTreeMap<String, Use>);

#[derive(Clone, Copy, Debug)]
struct Use {
    found: Instant,
    used: Option<Instant>,
}

impl Agent {
    pub async fn keep_images(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(self.config.image_gc.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let excess = self.image_excess().await;
            self.collect_images(excess).await;
        }
    }

    /// How many bytes of images are to go by the thresholds.
    async fn image_excess(&self) -> u64 {
        let (path, gc) = (self.config.image_directory.clone(), self.config.image_gc.clone());
        let excess = move || {
            let Ok(disk) = rustix::fs::statvfs(&path) else { return 0 };
            excess(disk.f_blocks.saturating_mul(disk.f_frsize), disk.f_bavail.saturating_mul(disk.f_frsize), &gc)
        };
        tokio::task::spawn_blocking(excess).await.unwrap_or(0)
    }

    /// Removes unused images, those first that were used longest ago, until `bytes` are freed.
    pub async fn collect_images(&self, bytes: u64) {
        let (Ok(images), Ok(containers)) = (
            self.images.list_images(v1::ListImagesRequest::default()).await,
            self.runtime.list_containers(v1::ListContainersRequest::default()).await,
        ) else {
            return;
        };
        let used: BTreeSet<String> =
            containers.containers.into_iter().flat_map(|container| [container.image_id, container.image_ref]).collect();
        self.pulled.retain(&images.images.iter().map(|image| image.id.as_str()).collect());
        let (gc, now) = (&self.config.image_gc, Instant::now());
        let order = crate::worker::lock(&self.image_uses).victims(&images.images, &used, gc.age_min, now);
        let (mut freed, mut wanted) = (0_u64, bytes);
        for (id, size, unused_for) in order {
            if wanted == 0 && gc.age_max.is_none_or(|max| unused_for < max) {
                break;
            }
            let image = Some(v1::ImageSpec { image: id.clone(), ..Default::default() });
            match self.images.remove_image(v1::RemoveImageRequest { image }).await {
                Ok(_) => {
                    tracing::info!(image = id, bytes = size, "removed an unused image");
                    (freed, wanted) = (freed.saturating_add(size), wanted.saturating_sub(size));
                }
                Err(error) => tracing::warn!(image = id, %error, "remove an unused image"),
            }
        }
        if wanted > 0 && bytes != u64::MAX && bytes > 0 {
            let message = format!(
                "Failed to garbage collect required amount of images. Attempted to free {bytes} bytes, but only found {freed} bytes eligible to free."
            );
            self.event(&self.node_reference(), EventKind::Warning, "FreeDiskSpaceFailed", message);
        }
    }
}

fn excess(capacity: u64, available: u64, gc: &ImageGc) -> u64 {
    let used = capacity.saturating_sub(available);
    let share = |percent: u8| (u128::from(capacity) * u128::from(percent) / 100) as u64;
    if gc.high_percent >= 100 || used < share(gc.high_percent) { 0 } else { used.saturating_sub(share(gc.low_percent)) }
}

impl Uses {
    /// Images that may go with their sizes and for how long nobody has used them, the one first that was used longest ago.
    fn victims(&mut self, images: &[v1::Image], used: &BTreeSet<String>, age_min: Duration, now: Instant) -> Vec<(String, u64, Duration)> {
        self.0.retain(|id, _| images.iter().any(|image| image.id == *id));
        let mut victims = Vec::new();
        for image in images {
            let entry = self.0.entry(image.id.clone()).or_insert(Use { found: now, used: None });
            let names = std::iter::once(&image.id).chain(&image.repo_digests).chain(&image.repo_tags);
            if names.into_iter().any(|name| used.contains(name)) {
                entry.used = Some(now);
                continue;
            }
            let last = entry.used.unwrap_or(entry.found);
            if !image.pinned && now.duration_since(entry.found) >= age_min && now.duration_since(last) >= age_min {
                victims.push((last, image.id.clone(), image.size));
            }
        }
        victims.sort();
        victims.into_iter().map(|(last, id, size)| (id, size, now.duration_since(last))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_go_only_above_the_high_mark_and_down_to_the_low_one() {
        let gc = ImageGc::default();
        for (available, expected) in [(20, 0), (16, 0), (15, 5), (5, 15)] {
            assert_eq!(excess(100, available, &gc), expected, "{available} of 100 available");
        }
    }

    #[test]
    fn unused_images_go_oldest_first_and_pinned_or_young_ones_stay() {
        let image = |id: &str, pinned| v1::Image { id: id.into(), size: 1, pinned, ..Default::default() };
        let (mut uses, start, minute) = (Uses::default(), Instant::now(), Duration::from_secs(60));
        let old = [image("a", false), image("b", false), image("used", false), image("pinned", true)];
        let in_use = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert!(uses.victims(&old, &in_use(&["a", "used"]), minute, start).is_empty());
        let all: Vec<v1::Image> = old.iter().cloned().chain([image("young", false)]).collect();
        assert_eq!(uses.victims(&all, &in_use(&["a", "used"]), minute, start + minute), [("b".to_owned(), 1, minute)]);
        let later = uses.victims(&all, &in_use(&["used"]), minute, start + minute * 3);
        assert_eq!(later.iter().map(|(id, ..)| id.as_str()).collect::<Vec<_>>(), ["b", "a", "young"]);
    }
}
