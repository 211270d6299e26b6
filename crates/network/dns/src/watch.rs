//! Keeps the zone equal to the caches.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use reconcile::{Cached, ObjectKey};

use crate::Caches;
use crate::fast::Generation;
use crate::zone::{Zone, service_records};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// The same name and meaning as the service proxy's: the first to register it serves both.
const SLICES_BY_SERVICE: &str = "service";

/// Fills `zone` with what is there and follows every change from now on.
pub fn follow(zone: &Arc<RwLock<Zone>>, generation: &Arc<Generation>, caches: &Caches) {
    caches.slices.index(SLICES_BY_SERVICE, |slice| service_of(slice).map(|key| key.to_string()).into_iter().collect());
    let refresh = Arc::new(Refresh { zone: zone.clone(), generation: generation.clone(), caches: caches.clone(), turn: Mutex::new(()) });
    let (of_namespaces, changed) = (zone.clone(), generation.clone());
    caches.namespaces.on_change(move |old, new| {
        let mut zone = of_namespaces.write().unwrap_or_else(PoisonError::into_inner);
        match (old, new) {
            (_, Some(namespace)) => zone.add_namespace(namespace.name()),
            (Some(namespace), None) => zone.remove_namespace(namespace.name()),
            (None, None) => {}
        }
        changed.advance();
    });
    let of_services = refresh.clone();
    caches.services.on_change(move |old, new| {
        if let Some(service) = new.or(old) {
            of_services.service(&service.key());
        }
    });
    caches.slices.on_change(move |old, new| {
        let mut keys: Vec<ObjectKey> = [old, new].into_iter().flatten().filter_map(|slice| service_of(slice)).collect();
        keys.dedup();
        keys.iter().for_each(|key| refresh.service(key));
    });
}

struct Refresh {
    zone: Arc<RwLock<Zone>>,
    generation: Arc<Generation>,
    caches: Caches,
    /// Read the caches and write the zone as one step, so that of two changes to a Service the later one stands.
    turn: Mutex<()>,
}

impl Refresh {
    fn service(&self, key: &ObjectKey) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let records = self.caches.services.get_key(key).and_then(|service| {
            let slices = self.caches.slices.by_index(SLICES_BY_SERVICE, &key.to_string());
            service_records(&service, slices.iter().map(|slice| &**slice))
        });
        if self.zone.write().unwrap_or_else(PoisonError::into_inner).set_service(&key.namespace, &key.name, records) {
            // After the change, so that no answer from before it is kept as one from after.
            self.generation.advance();
        }
    }
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    Some(ObjectKey::new(slice.metadata.namespace.clone()?, name.clone()))
}
