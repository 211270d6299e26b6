//! Which resources the server has: for those controllers that work on all of them.

use std::time::Duration;

use client::{ApiResource, Client, Error};
use http::Method;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroupList, APIResource, APIResourceList};
use serde::Deserialize;
use stdx::Backoff;

use crate::context::Context;

/// A resource and what can be done with it.
#[derive(Clone, Debug)]
pub(crate) struct Discovered {
    pub resource: ApiResource,
    verbs: Vec<String>,
    /// Of its group's preferred version: asking for these only, each object is met once.
    pub preferred: bool,
}

impl Discovered {
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }
}

/// All resources, and the group versions that could not be asked (an aggregated API that is down).
pub(crate) struct Discovery {
    pub resources: Vec<Discovered>,
    pub failed: Vec<(String, Error)>,
}

#[derive(Deserialize)]
struct Versions {
    #[serde(default)]
    versions: Vec<String>,
}

/// Whether the server has this resource, of `v1` or `group/version`; asks until it answers. False where we are to end before.
pub(crate) async fn is_served(context: &Context, group_version: &str, plural: &str) -> bool {
    let path = if group_version.contains('/') { format!("/apis/{group_version}") } else { format!("/api/{group_version}") };
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(10));
    loop {
        match context.reader.request_json::<APIResourceList>(Method::GET, &path, None).await {
            Ok(list) => return list.resources.iter().any(|resource| resource.name == plural),
            Err(error) if error.is_not_found() => return false,
            Err(error) => tracing::debug!(%group_version, %error, "cannot ask what is served"),
        }
        if context.drain.run(tokio::time::sleep(backoff.next_wait())).await.is_none() {
            return false;
        }
    }
}

/// Asks the server. An error means that not even the groups are known.
pub(crate) async fn discover(client: &Client) -> Result<Discovery, Error> {
    let core: Versions = client.request_json(Method::GET, "/api", None).await?;
    let groups: APIGroupList = client.request_json(Method::GET, "/apis", None).await?;
    let mut asked: Vec<(String, bool)> = core.versions.iter().map(|version| (version.clone(), true)).collect();
    for group in &groups.groups {
        let preferred = group.preferred_version.as_ref().map(|version| &version.group_version);
        let is_preferred = |version: &String| preferred.is_none_or(|preferred| preferred == version);
        asked.extend(group.versions.iter().map(|version| (version.group_version.clone(), is_preferred(&version.group_version))));
    }
    let mut discovery = Discovery { resources: Vec::new(), failed: Vec::new() };
    for (group_version, preferred) in asked {
        let prefix = if group_version.contains('/') { "/apis" } else { "/api" };
        match client.request_json::<APIResourceList>(Method::GET, &format!("{prefix}/{group_version}"), None).await {
            Ok(list) => discovery.resources.extend(list.resources.into_iter().filter_map(|found| read(&group_version, found, preferred))),
            Err(error) => discovery.failed.push((group_version, error)),
        }
    }
    Ok(discovery)
}

/// `None` for subresources.
fn read(group_version: &str, found: APIResource, preferred: bool) -> Option<Discovered> {
    let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
    let resource = ApiResource {
        group: group.to_owned().into(),
        version: version.to_owned().into(),
        plural: found.name.into(),
        kind: found.kind.into(),
        namespaced: found.namespaced,
    };
    (!resource.plural.contains('/')).then_some(Discovered { resource, verbs: found.verbs, preferred })
}
