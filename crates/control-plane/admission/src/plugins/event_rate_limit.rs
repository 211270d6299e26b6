//! EventRateLimit: bounds how many Events are written, by server, namespace, user, or source and object.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use meta::status::Status;
use rules::value::{int, list, text};
use serde_json::Value;

use crate::{Attributes, ConfigError, Lookup, Options, Plugin, Verdict, accept};

const NAME: &str = "EventRateLimit";
const CACHE_DEFAULT: usize = 4_096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Server,
    Namespace,
    User,
    SourceAndObject,
}

/// Buckets of tokens by key; the least used make room.
struct Limit {
    by: By,
    per_second: f64,
    burst: f64,
    keys_max: usize,
    buckets: Mutex<HashMap<String, (f64, Instant)>>,
}

#[derive(Default)]
pub struct EventRateLimit(Vec<Limit>);

impl EventRateLimit {
    pub fn new(options: &Options) -> Result<Self, ConfigError> {
        let Some(configuration) = options.configurations.get(NAME) else { return Ok(Self::default()) };
        list(configuration, "limits").iter().map(Limit::read).collect::<Result<_, _>>().map(Self)
    }
}

impl Limit {
    fn read(limit: &Value) -> Result<Self, ConfigError> {
        let fail = |why: String| ConfigError::Plugin { name: NAME, why };
        let by = match text(limit, "type") {
            "Server" => By::Server,
            "Namespace" => By::Namespace,
            "User" => By::User,
            "SourceAndObject" => By::SourceAndObject,
            other => return Err(fail(format!("limits.type: Unsupported value: {other:?}"))),
        };
        let positive =
            |field: &str| int(limit, field).filter(|value| *value > 0).ok_or_else(|| fail(format!("limits.{field}: must be positive")));
        let keys_max = int(limit, "cacheSize").and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
        let (per_second, burst) = (positive("qps")? as f64, positive("burst")? as f64);
        Ok(Self { by, per_second, burst, keys_max: keys_max.unwrap_or(CACHE_DEFAULT), buckets: Mutex::default() })
    }

    fn key(&self, attributes: &Attributes) -> String {
        match self.by {
            By::Server => String::new(),
            By::Namespace => attributes.namespace.clone(),
            By::User => attributes.user.username.clone(),
            By::SourceAndObject => {
                let event = attributes.object.as_ref().unwrap_or(&Value::Null);
                let fields = ["source.component", "source.host", "involvedObject.kind", "involvedObject.namespace", "involvedObject.name"];
                let more = ["involvedObject.uid", "involvedObject.apiVersion"];
                fields.iter().chain(&more).map(|field| text(event, field)).collect()
            }
        }
    }

    fn take(&self, key: &str, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= self.keys_max && !buckets.contains_key(key) {
            let oldest = buckets.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
            oldest.map(|key| buckets.remove(&key));
        }
        let (tokens, used) = buckets.entry(key.to_owned()).or_insert((self.burst, now));
        *tokens = (*tokens + now.duration_since(*used).as_secs_f64() * self.per_second).min(self.burst);
        *used = now;
        let enough = *tokens >= 1.0;
        if enough {
            *tokens -= 1.0;
        }
        enough
    }
}

impl Plugin for EventRateLimit {
    fn name(&self) -> &'static str {
        NAME
    }
    fn on_by_default(&self) -> bool {
        false
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, _: &'a dyn Lookup) -> Verdict<'a> {
        let is_event = attributes.gvr.resource == "events" && matches!(attributes.gvr.group.as_str(), "" | "events.k8s.io");
        if !is_event || attributes.dry_run {
            return accept();
        }
        let now = Instant::now();
        // Every limit is charged, also when another refuses.
        let mut refused = None;
        for limit in &self.0 {
            let key = limit.key(attributes);
            if !limit.take(&key, now) {
                refused = Some(Status::too_many_requests(&format!("limit reached on type {:?} for key {key}", limit.by), 0));
            }
        }
        Box::pin(std::future::ready(refused.map_or(Ok(()), Err)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Operation;
    use crate::fixture::{Objects, write};

    #[tokio::test]
    async fn a_noisy_namespace_is_stopped_and_others_are_not() {
        let limits = json!({"limits": [{"type": "Namespace", "qps": 1, "burst": 2}]});
        let options = Options { configurations: [(NAME.to_owned(), limits)].into(), ..Options::default() };
        let plugin = EventRateLimit::new(&options).expect("plugin");
        let objects = Objects::default();
        let event =
            |namespace: &str| write(Operation::Create, "events", "Event", json!({"metadata": {"name": "e", "namespace": namespace}}));
        let mut outcomes = Vec::new();
        for namespace in ["a", "a", "a", "b"] {
            outcomes.push(plugin.validate(&event(namespace), &objects).await.map_err(|status| (status.code, status.message)));
        }
        assert_eq!(outcomes, [Ok(()), Ok(()), Err((429, "limit reached on type Namespace for key a".to_owned())), Ok(())]);
    }
}
