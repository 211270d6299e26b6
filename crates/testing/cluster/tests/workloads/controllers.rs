//! Kinds whose controllers only show what they do on a whole cluster.

use cluster::Namespace;

const TOOLBOX: &str = "sternpost.io/toolbox";

#[test]
fn a_replication_controller_keeps_its_pods_and_a_budget_counts_them() {
    let ns = Namespace::new("rc");
    ns.apply(&format!(
        r#"
apiVersion: v1
kind: ReplicationController
metadata: {{name: rc}}
spec:
  replicas: 2
  selector: {{app: rc}}
  template:
    metadata: {{labels: {{app: rc}}}}
    spec: {{terminationGracePeriodSeconds: 0, containers: [{{name: c, image: {TOOLBOX}}}]}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{name: rc}}
spec: {{minAvailable: 50%, selector: {{matchLabels: {{app: rc}}}}}}
"#
    ));
    ns.wait_for_value("rc/rc", "{.status.readyReplicas}", "2");
    ns.wait_for_value("pdb/rc", "{.status.disruptionsAllowed}", "1");
    ns.kubectl(&["delete", "pod", "-l", "app=rc", "--wait=false"]).ok();
    ns.wait_for_value("rc/rc", "{.status.readyReplicas}", "2");
    ns.kubectl(&["scale", "rc/rc", "--replicas=0"]).ok();
    ns.wait_for_value("rc/rc", "{.status.replicas}", "0");
}

#[test]
fn a_cron_job_starts_jobs_and_an_indexed_job_ends_as_its_policies_say() {
    let ns = Namespace::new("jobs");
    let job = |name: &str, command: &str, more: &str| {
        format!(
            r#"
apiVersion: batch/v1
kind: Job
metadata: {{name: {name}}}
spec:
  completionMode: Indexed
  completions: 4
  parallelism: 2
{more}
  template:
    spec: {{restartPolicy: Never, containers: [{{name: c, image: {TOOLBOX}, command: [/toolbox, "{command}"]}}]}}
"#
        )
    };
    ns.apply(&job("bad", "false", "  backoffLimitPerIndex: 0"));
    ns.apply(&job("good", "true", "  successPolicy: {rules: [{succeededIndexes: \"0-1\"}]}"));
    ns.apply(&format!(
        r#"
apiVersion: batch/v1
kind: CronJob
metadata: {{name: tick}}
spec:
  schedule: "@every 1s"
  timeZone: Europe/Berlin
  jobTemplate: {{spec: {{template: {{spec: {{restartPolicy: Never, containers: [{{name: c, image: {TOOLBOX}, command: [/toolbox, "true"]}}]}}}}}}}}
"#
    ));
    ns.wait_for_value("job/bad", "{.status.failedIndexes}", "0-3");
    ns.wait_for_value("job/bad", "{.status.conditions[?(@.type==\"Failed\")].reason}", "FailedIndexes");
    ns.wait_for_value("job/good", "{.status.conditions[?(@.type==\"Complete\")].reason}", "SuccessPolicy");
    ns.wait_for_event("tick", "SawCompletedJob", "condition: Complete");
}

#[test]
fn a_stateful_sets_claims_go_with_it_where_it_says_so_and_a_claim_binds_its_volume() {
    let ns = Namespace::new("claims");
    ns.apply(&format!(
        r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: db}}
spec:
  replicas: 2
  serviceName: db
  podManagementPolicy: Parallel
  persistentVolumeClaimRetentionPolicy: {{whenDeleted: Delete, whenScaled: Retain}}
  selector: {{matchLabels: {{app: db}}}}
  template:
    metadata: {{labels: {{app: db}}}}
    spec: {{terminationGracePeriodSeconds: 0, containers: [{{name: c, image: {TOOLBOX}}}]}}
  volumeClaimTemplates: [{{metadata: {{name: data}}, spec: {{accessModes: [ReadWriteOnce], storageClassName: none-{0}, resources: {{requests: {{storage: 1Gi}}}}}}}}]
---
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {0}}}
spec: {{capacity: {{storage: 1Gi}}, accessModes: [ReadWriteOnce], storageClassName: by-hand-{0}, hostPath: {{path: /tmp}}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: mine}}
spec: {{accessModes: [ReadWriteOnce], storageClassName: by-hand-{0}, resources: {{requests: {{storage: 1Gi}}}}}}
"#,
        ns.name
    ));
    ns.wait_for_value("pvc/mine", "{.status.phase}", "Bound");
    ns.wait_for_value("pvc/data-db-1", "{.metadata.ownerReferences[0].kind}", "StatefulSet");
    ns.kubectl(&["delete", "statefulset/db"]).ok();
    ns.kubectl(&["wait", "--for=delete", "pvc/data-db-0", "pvc/data-db-1", "--timeout=60s"]).ok();
    ns.kubectl(&["delete", "pvc/mine"]).ok();
    let volume = format!("pv/{}", ns.name);
    ns.wait_for_value(&volume, "{.status.phase}", "Released");
    ns.kubectl(&["delete", &volume]).ok();
}
