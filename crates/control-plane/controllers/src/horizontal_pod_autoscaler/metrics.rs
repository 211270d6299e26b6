//! What the metrics APIs say, and what each metric of an autoscaler asks for because of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::Error;
use client::client::with_query;
use http::Method;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, CrossVersionObjectReference, ExternalMetricStatus, HorizontalPodAutoscaler, MetricIdentifier,
    MetricSpec, MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Deserialize;

use super::replicas::{self, Answer, Sample, Target, Tolerance};
use super::{Controller, Failure, Proposal, plan};
use crate::selector;

/// A deviation of a tenth is no reason to act (upstream: `--horizontal-pod-autoscaler-tolerance`).
const TOLERANCE: f64 = 0.1;

#[derive(Deserialize)]
struct List<T> {
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

/// `metrics.k8s.io` PodMetrics.
#[derive(Deserialize)]
struct PodMetrics {
    metadata: Named,
    timestamp: Option<Timestamp>,
    #[serde(default)]
    window: String,
    #[serde(default)]
    containers: Vec<ContainerMetrics>,
}

#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct ContainerMetrics {
    name: String,
    usage: BTreeMap<String, String>,
}

/// `custom.metrics.k8s.io` and `external.metrics.k8s.io`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetricValue {
    described_object: Option<Named>,
    timestamp: Option<Timestamp>,
    window_seconds: Option<i64>,
    value: String,
}

fn milli(text: &str) -> Option<i64> {
    meta::Quantity::parse(text).ok().map(|quantity| quantity.milli_value())
}

fn milli_of(quantity: Option<&Quantity>) -> Option<i64> {
    milli(&quantity?.0)
}

fn quantity(milli: i64) -> Quantity {
    Quantity(meta::Quantity::from_milli(milli, meta::quantity::Format::DecimalSi).to_string())
}

/// The pods of the target and what is needed to judge them.
struct Subject<'a> {
    namespace: &'a str,
    selector: String,
    pods: Vec<Arc<Pod>>,
    /// The size that the spec asks for, and the one that is.
    spec_replicas: i32,
    tolerance: Tolerance,
    now: Timestamp,
}

impl Subject<'_> {
    fn pods(&self) -> Vec<&Pod> {
        self.pods.iter().map(Arc::as_ref).collect()
    }
}

impl Controller {
    pub(super) async fn proposals(
        &self,
        autoscaler: &HorizontalPodAutoscaler,
        scale: &Scale,
        now: Timestamp,
    ) -> Vec<Result<Proposal, Failure>> {
        let text = scale.status.as_ref().and_then(|status| status.selector.clone()).unwrap_or_default();
        let selected = meta::LabelSelector::parse(&text).ok().filter(|selector| !selector.is_everything());
        let Some(wanted) = selected else {
            return vec![Err(Failure { reason: "InvalidSelector", message: "the HPA target's scale is missing a selector".into() })];
        };
        let namespace = autoscaler.metadata.namespace.as_deref().unwrap_or_default();
        let all = self.pods.by_namespace(namespace).into_iter();
        let subject = Subject {
            namespace,
            pods: all.filter(|pod| selector::selects(&wanted, pod.metadata.labels.as_ref())).collect(),
            selector: text,
            spec_replicas: plan::current(scale),
            tolerance: tolerance(autoscaler),
            now,
        };
        let mut proposals = Vec::new();
        for metric in metrics(autoscaler) {
            proposals.push(self.proposal(&metric, &subject).await);
        }
        proposals
    }

    async fn proposal(&self, metric: &MetricSpec, subject: &Subject<'_>) -> Result<Proposal, Failure> {
        let fail = |reason: &'static str, what: String| {
            move |message: String| Failure { reason, message: format!("failed to get {what}: {message}") }
        };
        match (metric.type_.as_str(), metric) {
            ("Resource", MetricSpec { resource: Some(source), .. }) => {
                let what = format!("{} utilization", source.name);
                self.resource(&source.name, None, &source.target, subject).await.map_err(fail("FailedGetResourceMetric", what))
            }
            ("ContainerResource", MetricSpec { container_resource: Some(source), .. }) => {
                let what = format!("{} utilization of container {}", source.name, source.container);
                let found = self.resource(&source.name, Some(&source.container), &source.target, subject).await;
                found.map_err(fail("FailedGetContainerResourceMetric", what))
            }
            ("Pods", MetricSpec { pods: Some(source), .. }) => {
                let found = self.pods_metric(&source.metric, &source.target, subject).await;
                found.map_err(fail("FailedGetPodsMetric", "pods metric value".into()))
            }
            ("Object", MetricSpec { object: Some(source), .. }) => {
                let found = self.object_metric(&source.described_object, &source.metric, &source.target, subject).await;
                found.map_err(fail("FailedGetObjectMetric", "object metric value".into()))
            }
            ("External", MetricSpec { external: Some(source), .. }) => {
                let found = self.external_metric(&source.metric, &source.target, subject).await;
                found.map_err(fail("FailedGetExternalMetric", format!("{} external metric value", source.metric.name)))
            }
            (kind, _) => Err(Failure { reason: "InvalidMetricSourceType", message: format!("unknown metric source type {kind:?}") }),
        }
    }

    async fn resource(
        &self,
        name: &str,
        container: Option<&str>,
        target: &MetricTarget,
        subject: &Subject<'_>,
    ) -> Result<Proposal, String> {
        let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods", subject.namespace);
        let listed: List<PodMetrics> = self.ask(&with_query(&path, &[("labelSelector", &subject.selector)])).await.map_err(|error| {
            format!("unable to get metrics for resource {name}: unable to fetch metrics from resource metrics API: {error}")
        })?;
        let samples: BTreeMap<String, Sample> = listed.items.iter().filter_map(|pod| sample(pod, name, container)).collect();
        if samples.is_empty() {
            return Err(format!("unable to get metrics for resource {name}: no metrics returned from resource metrics API"));
        }
        let (answer, value, kind) = match milli_of(target.average_value.as_ref()) {
            Some(average) => {
                let answer = of_pods(subject, &samples, &Target::Average(average), name == "cpu")?;
                (answer, MetricValueStatus { average_value: Some(quantity(answer.average)), ..Default::default() }, "")
            }
            None => {
                let percent = i64::from(target.average_utilization.ok_or("neither a utilization target nor a value target was set")?);
                let requests = requests(&subject.pods(), name, container)?;
                let answer = of_pods(subject, &samples, &Target::Utilization { percent, requests: &requests }, name == "cpu")?;
                let utilization = i32::try_from(answer.utilization).ok();
                let value = MetricValueStatus {
                    average_utilization: utilization,
                    average_value: Some(quantity(answer.average)),
                    ..Default::default()
                };
                (answer, value, " utilization (percentage of request)")
            }
        };
        let (full_name, status) = match container {
            None => {
                let resource = Some(ResourceMetricStatus { name: name.into(), current: value });
                (format!("{name} resource{kind}"), MetricStatus { type_: "Resource".into(), resource, ..Default::default() })
            }
            Some(container) => {
                let status = ContainerResourceMetricStatus { name: name.into(), container: container.into(), current: value };
                let status = MetricStatus { type_: "ContainerResource".into(), container_resource: Some(status), ..Default::default() };
                (format!("{name} container resource{kind}"), status)
            }
        };
        Ok(Proposal { replicas: answer.replicas, name: full_name, status })
    }

    async fn pods_metric(&self, metric: &MetricIdentifier, target: &MetricTarget, subject: &Subject<'_>) -> Result<Proposal, String> {
        let values =
            self.custom(&format!("namespaces/{}/pods/*/{}", subject.namespace, metric.name), metric, Some(&subject.selector)).await?;
        let sample = |value: &MetricValue| {
            let window = SignedDuration::from_secs(value.window_seconds.unwrap_or(60));
            let sample = Sample { value: milli(&value.value)?, at: value.timestamp.unwrap_or(subject.now), window };
            Some((value.described_object.as_ref()?.name.clone(), sample))
        };
        let samples = values.iter().filter_map(sample).collect();
        let average = milli_of(target.average_value.as_ref()).ok_or("no average value target was set")?;
        let answer = of_pods(subject, &samples, &Target::Average(average), false)?;
        let current = MetricValueStatus { average_value: Some(quantity(answer.average)), ..Default::default() };
        let status = PodsMetricStatus { metric: metric.clone(), current };
        let status = MetricStatus { type_: "Pods".into(), pods: Some(status), ..Default::default() };
        Ok(Proposal { replicas: answer.replicas, name: format!("pods metric {}", metric.name), status })
    }

    async fn object_metric(
        &self,
        object: &CrossVersionObjectReference,
        metric: &MetricIdentifier,
        target: &MetricTarget,
        subject: &Subject<'_>,
    ) -> Result<Proposal, String> {
        let path = match object.kind.as_str() {
            "Namespace" => format!("namespaces/{}/metrics/{}", object.name, metric.name),
            _ => format!("namespaces/{}/{}/{}/{}", subject.namespace, self.plural_of(object).await?, object.name, metric.name),
        };
        let values = self.custom(&path, metric, None).await?;
        let value = values.first().and_then(|value| milli(&value.value)).ok_or("no metric value returned")?;
        let (replicas, current) = whole(value, target, subject)?;
        let status = ObjectMetricStatus { metric: metric.clone(), described_object: object.clone(), current };
        let status = MetricStatus { type_: "Object".into(), object: Some(status), ..Default::default() };
        Ok(Proposal { replicas, name: format!("{} metric {}", object.kind, metric.name), status })
    }

    async fn external_metric(&self, metric: &MetricIdentifier, target: &MetricTarget, subject: &Subject<'_>) -> Result<Proposal, String> {
        let path = format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{}/{}", subject.namespace, metric.name);
        let wanted = selector_text(metric);
        let listed: List<MetricValue> =
            self.ask(&with_query(&path, &[("labelSelector", &wanted)])).await.map_err(|error| error.to_string())?;
        if listed.items.is_empty() {
            return Err("no metrics returned from external metrics API".into());
        }
        let value = listed.items.iter().filter_map(|value| milli(&value.value)).sum();
        let (replicas, current) = whole(value, target, subject)?;
        let status = ExternalMetricStatus { metric: metric.clone(), current };
        let status = MetricStatus { type_: "External".into(), external: Some(status), ..Default::default() };
        Ok(Proposal { replicas, name: format!("external metric {}", metric.name), status })
    }

    /// Custom metrics by the newer of the two versions that the server has.
    async fn custom(&self, path: &str, metric: &MetricIdentifier, pods: Option<&str>) -> Result<Vec<MetricValue>, String> {
        let wanted = selector_text(metric);
        let mut query = vec![("metricLabelSelector", wanted.as_str())];
        query.extend(pods.map(|pods| ("labelSelector", pods)));
        query.retain(|(_, value)| !value.is_empty());
        let mut last = String::new();
        for version in ["v1beta2", "v1beta1"] {
            match self.ask::<List<MetricValue>>(&with_query(&format!("/apis/custom.metrics.k8s.io/{version}/{path}"), &query)).await {
                Ok(listed) if listed.items.is_empty() => return Err("no metrics returned from custom metrics API".into()),
                Ok(listed) => return Ok(listed.items),
                Err(error) if error.is_not_found() => last = error.to_string(),
                Err(error) => return Err(format!("unable to fetch metrics from custom metrics API: {error}")),
            }
        }
        Err(format!("unable to fetch metrics from custom metrics API: {last}"))
    }

    async fn plural_of(&self, object: &CrossVersionObjectReference) -> Result<String, String> {
        let version = object.api_version.as_deref().unwrap_or("v1");
        let resource = self.kinds.find(version, &object.kind).await.map_err(|error| error.to_string())?;
        Ok(if resource.group.is_empty() { resource.plural.to_string() } else { format!("{}.{}", resource.plural, resource.group) })
    }

    async fn ask<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.client.request_json(Method::GET, path, None).await
    }
}

/// Without metrics of its own an autoscaler watches the CPU at 80 %.
fn metrics(autoscaler: &HorizontalPodAutoscaler) -> Vec<MetricSpec> {
    let listed = autoscaler.spec.metrics.clone().unwrap_or_default();
    if !listed.is_empty() {
        return listed;
    }
    let target = MetricTarget { type_: "Utilization".into(), average_utilization: Some(80), ..MetricTarget::default() };
    let resource = k8s_openapi::api::autoscaling::v2::ResourceMetricSource { name: "cpu".into(), target };
    vec![MetricSpec { type_: "Resource".into(), resource: Some(resource), ..MetricSpec::default() }]
}

fn tolerance(autoscaler: &HorizontalPodAutoscaler) -> Tolerance {
    let behavior = autoscaler.spec.behavior.as_ref();
    let part = |quantity: Option<&Quantity>| milli_of(quantity).map_or(TOLERANCE, |milli| milli as f64 / 1000.0);
    Tolerance {
        down: part(behavior.and_then(|behavior| behavior.scale_down.as_ref()?.tolerance.as_ref())),
        up: part(behavior.and_then(|behavior| behavior.scale_up.as_ref()?.tolerance.as_ref())),
    }
}

fn selector_text(metric: &MetricIdentifier) -> String {
    metric.selector.as_ref().map(|wanted| selector::parse(Some(wanted)).to_string()).unwrap_or_default()
}

fn of_pods(subject: &Subject, samples: &BTreeMap<String, Sample>, target: &Target, is_cpu: bool) -> Result<Answer, String> {
    replicas::of_pods(&subject.pods(), samples, target, subject.spec_replicas, subject.tolerance, is_cpu, subject.now)
}

/// A metric of one thing: against its value, or per replica.
fn whole(value: i64, target: &MetricTarget, subject: &Subject) -> Result<(i32, MetricValueStatus), String> {
    if let Some(average) = milli_of(target.average_value.as_ref()) {
        let replicas = replicas::of_average(value, average, subject.spec_replicas, subject.tolerance);
        let each = value / i64::from(subject.spec_replicas.max(1));
        return Ok((replicas, MetricValueStatus { average_value: Some(quantity(each)), ..Default::default() }));
    }
    let wanted = milli_of(target.value.as_ref()).ok_or("neither a value target nor an average value target was set")?;
    let replicas = replicas::of_value(value, wanted, &subject.pods(), subject.spec_replicas, subject.tolerance);
    Ok((replicas, MetricValueStatus { value: Some(quantity(value)), ..Default::default() }))
}

/// The usage of a pod, or of one of its containers; `None` where any part of it is missing.
fn sample(pod: &PodMetrics, resource: &str, container: Option<&str>) -> Option<(String, Sample)> {
    let counted: Vec<&ContainerMetrics> = pod.containers.iter().filter(|known| container.is_none_or(|name| name == known.name)).collect();
    let values: Option<Vec<i64>> = counted.iter().map(|container| milli(container.usage.get(resource)?)).collect();
    let value = values.filter(|values| !values.is_empty())?.iter().sum();
    let window = pod.window.parse::<SignedDuration>().unwrap_or(SignedDuration::from_secs(60));
    Some((pod.metadata.name.clone(), Sample { value, at: pod.timestamp.unwrap_or(Timestamp::UNIX_EPOCH), window }))
}

/// What each pod requests; every counted container must say.
fn requests(pods: &[&Pod], resource: &str, container: Option<&str>) -> Result<BTreeMap<String, i64>, String> {
    let request = |container: &Container| milli_of(container.resources.as_ref()?.requests.as_ref()?.get(resource));
    let mut all = BTreeMap::new();
    for pod in pods {
        let Some(spec) = &pod.spec else { continue };
        let name = pod.metadata.name.clone().unwrap_or_default();
        let of_pod = spec.resources.as_ref().and_then(|resources| milli_of(resources.requests.as_ref()?.get(resource)));
        if let Some(whole) = of_pod.filter(|_| container.is_none()) {
            all.insert(name, whole);
            continue;
        }
        let sidecars = spec.init_containers.iter().flatten().filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let counted = spec.containers.iter().chain(sidecars).filter(|known| container.is_none_or(|name| name == known.name));
        let mut sum = 0;
        for container in counted {
            let missing = || format!("missing request for {resource} in container {} of Pod {name}", container.name);
            sum += request(container).ok_or_else(missing)?;
        }
        all.insert(name, sum);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn usage_and_requests_are_summed_over_containers() {
        let containers = json!([{"name": "a", "usage": {"cpu": "150m", "memory": "1Ki"}}, {"name": "b", "usage": {"cpu": "0.25"}}]);
        let pod: PodMetrics = serde_json::from_value(
            json!({"metadata": {"name": "p"}, "timestamp": "2026-01-01T00:00:00Z", "window": "30s", "containers": containers}),
        )
        .unwrap();
        let value = |resource, container| sample(&pod, resource, container).map(|(_, sample)| sample.value);
        assert_eq!((value("cpu", None), value("cpu", Some("b")), value("memory", None)), (Some(400), Some(250), None));
        let spec = json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}, {"name": "b"}]});
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
        assert_eq!(requests(&[&pod], "cpu", Some("a")).unwrap()["p"], 1000);
        assert_eq!(requests(&[&pod], "cpu", None).unwrap_err(), "missing request for cpu in container b of Pod p");
    }
}
