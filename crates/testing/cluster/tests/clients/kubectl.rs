//! One tour of kubectl's commands that need no pod, for any version of kubectl.
//!
//! The commands are text, one a line, as a person would type them; `=>` says what the output has to contain, `!` that the command has to
//! fail. `NS` stands for the tour's namespace, which also makes the names of things without a namespace its own.

use std::path::Path;
use std::process::Command;

use cluster::run::run;
use cluster::{Cluster, Namespace};

/// Making things by hand, reading them in every form, changing them.
const DAILY: &str = r#"
version -o json => "major": "1"
cluster-info => is running at
api-resources --verbs=list -o name => deployments.apps
api-resources --sort-by=kind --categories=all => daemonsets
api-versions => apps/v1
options => --namespace
completion bash => kubectl
config view --raw => current-context
config get-contexts -o name =>
!plugin list => unable to find any kubectl plugins
auth whoami => system:masters
auth can-i create deployments => yes
auth can-i --list => *.*
!auth can-i create pods --as=nobody => no
explain pods => KIND:       Pod
explain deployment.spec.strategy.rollingUpdate --api-version=apps/v1 => maxSurge
explain cronjob --recursive => concurrencyPolicy
get --raw /readyz => ok
get --raw /version => gitVersion
get --raw /openapi/v3 => apis/apps/v1
create configmap plain --from-literal=a=1 --from-literal=b=2 => configmap/plain created
!create configmap plain => already exists
create secret generic hidden --from-literal=key=value => secret/hidden created
create secret docker-registry pull --docker-server=r.example.com --docker-username=u --docker-password=p => secret/pull created
create serviceaccount robot => serviceaccount/robot created
create token robot --duration=1h => ey
create role reader --verb=get,list --resource=pods,deployments.apps => role.rbac.authorization.k8s.io/reader created
create rolebinding robot --role=reader --serviceaccount=NS:robot => rolebinding.rbac.authorization.k8s.io/robot created
create clusterrole NS --verb=get --resource=nodes => created
create clusterrolebinding NS --clusterrole=NS --group=g => created
create deployment web --image=sternpost.io/toolbox --replicas=0 --port=8080 => deployment.apps/web created
create service clusterip inner --tcp=80:8080 => service/inner created
create service nodeport outer --tcp=80:8080 => service/outer created
create service externalname far --external-name=example.com => service/far created
create service loadbalancer edge --tcp=80 => service/edge created
create ingress front --rule=a.example.com/*=inner:80 --class=none => ingress.networking.k8s.io/front created
create job once --image=sternpost.io/toolbox --dry-run=client -o yaml => kind: Job
create cronjob nightly --image=sternpost.io/toolbox --schedule=0_0_1_1_* => cronjob.batch/nightly created
create poddisruptionbudget guard --selector=app=web --min-available=1 => poddisruptionbudget.policy/guard created
create quota few --hard=configmaps=50,secrets=50 => resourcequota/few created
create priorityclass NS --value=7 --description=x => created
create namespace NS-more => namespace/NS-more created
run alone --image=sternpost.io/toolbox --dry-run=server -o name => pod/alone
expose deployment web --name=exposed --port=80 --target-port=8080 => service/exposed exposed
autoscale deployment web --min=1 --max=3 --cpu-percent=50 => horizontalpodautoscaler.autoscaling/web autoscaled
get all => deployment.apps/web
get deployments,services -o wide => SELECTOR
get deployment web -o yaml => replicas: 0
get deployment web -o json --show-managed-fields => "manager": "kubectl-create"
get deployment web -o jsonpath={.spec.template.spec.containers[0].image} => sternpost.io/toolbox
get deployment web -o go-template={{.metadata.name}} => web
get configmaps -o custom-columns=N:.metadata.name,A:.data.a => plain
get services --sort-by=.metadata.name --no-headers => edge
get configmaps -A --field-selector=metadata.name=plain => NS
get deployment web --subresource=scale => web
get deployment web --subresource=status -o name => deployment.apps/web
get secret hidden -o jsonpath={.data.key} => dmFsdWU=
!get configmap none => configmaps "none" not found
get configmap none --ignore-not-found =>
describe deployment web => 0 desired
describe service inner => 8080/TCP
describe configmap plain => BinaryData
describe secret hidden => 5 bytes
describe role reader => deployments.apps
describe rolebinding robot => robot
describe ingress front => a.example.com
describe cronjob nightly => 0 0 1 1 *
describe poddisruptionbudget guard => Min available
describe quota few => configmaps
describe hpa web => Min replicas
describe serviceaccount robot => robot
describe namespace NS => few
describe priorityclass NS => 7
describe clusterrole NS => nodes
describe node => Capacity
label configmap plain tier=one => labeled
!label configmap plain tier=two => already has a value (one)
label configmap plain tier=two --overwrite => labeled
get configmaps -l tier=two -L tier => two
label configmap plain tier- => unlabeled
annotate configmap plain note=x => annotated
annotate configmap plain note- => annotated
patch configmap plain -p {"data":{"a":"2"}} => patched
patch configmap plain --type=json -p [{"op":"remove","path":"/data/b"}] => patched
patch configmap plain --type=merge -p {"data":{"c":"3"}} => patched
patch configmap plain --type=merge -p {"data":{"c":"3"}} => no change
get configmap plain -o jsonpath={.data} => {"a":"2","c":"3"}
patch deployment web --subresource=scale --type=merge -p {"spec":{"replicas":0}} => web
patch deployment web --subresource=status --type=merge -p {"status":{"observedGeneration":1}} => web
set image deployment/web toolbox=sternpost.io/toolbox:2 => image updated
set env deployment/web A=1 => env updated
set env deployment/web --list => A=1
set resources deployment/web --limits=cpu=1,memory=64Mi => resource requirements updated
set serviceaccount deployment/web robot => serviceaccount updated
set selector service/inner app=web => selector updated
set subject rolebinding/robot --user=jane => subjects updated
rollout history deployment/web => REVISION
rollout pause deployment/web => paused
rollout resume deployment/web => resumed
rollout restart deployment/web => restarted
rollout undo deployment/web => web
rollout status deployment/web --timeout=60s => successfully rolled out
scale deployment/web --replicas=0 --current-replicas=0 => scaled
!scale deployment/web --replicas=1 --current-replicas=4 => Expected replicas to be 4, was 0
wait deployment/web --for=condition=Available --timeout=30s => condition met
wait deployment/web --for=jsonpath={.spec.replicas}=0 --timeout=5s => condition met
create job by-hand --from=cronjob/nightly --dry-run=server -o name => job.batch/by-hand
events => LAST SEEN
events --types=Warning => No events found
cluster-info dump --namespaces=NS -o yaml => kind: DeploymentList
!top nodes => Metrics API not available
get events -o wide --sort-by=.lastTimestamp => LAST SEEN
delete service outer far edge --now => deleted
delete configmap plain --cascade=orphan => deleted
delete cronjob,job --all => deleted
delete secrets --field-selector=metadata.name=hidden => deleted
delete namespace NS-more --timeout=60s => deleted
delete clusterrole,clusterrolebinding,priorityclass NS => deleted
"#;

/// Cordoning, tainting and draining a node that nobody runs.
const NODES: &str = r#"
cordon NS => cordoned
taint node NS key=value:NoSchedule => tainted
taint node NS key- => untainted
label node NS disk=fast => labeled
uncordon NS => uncordoned
drain NS --ignore-daemonsets --timeout=20s => drained
get node NS => SchedulingDisabled
describe node NS => Unschedulable:      true
delete node NS => deleted
"#;

/// The user's own configuration: nothing that a server sees, on a copy.
const SETTINGS: &str = r#"
config set-cluster other --server=https://192.0.2.1 => Cluster "other" set
config set-credentials me --token=x => User "me" set
config set-context mine --cluster=other --user=me => Context "mine" created
config get-clusters => other
config get-users => me
config use-context mine => Switched to context "mine"
config current-context => mine
config rename-context mine yours => Context "mine" renamed to "yours"
config set contexts.yours.namespace m => Property "contexts.yours.namespace" set
config unset contexts.yours.namespace => Property "contexts.yours.namespace" unset
config delete-context yours => deleted context yours
config delete-user me => deleted user me
config delete-cluster other => deleted cluster other
"#;

struct Kubectl<'n> {
    program: &'n Path,
    ns: &'n Namespace,
}

impl Kubectl<'_> {
    fn command<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(self.program);
        command.args(["--namespace", &self.ns.name]).arg("--kubeconfig").arg(self.ns.cluster.kubeconfig());
        command.env("HOME", self.ns.cluster.dir().join("home")).env_remove("KUBECONFIG").current_dir(self.ns.cluster.dir());
        command.args(args);
        command
    }

    /// One line of a tour.
    #[track_caller]
    fn line(&self, line: &str) {
        let line = line.replace("NS", &self.ns.name);
        let (words, wanted) = line.split_once("=>").unwrap_or_else(|| panic!("{line}: no `=>`"));
        let (words, fails) = words.strip_prefix('!').map_or((words, false), |rest| (rest, true));
        // A schedule's spaces are written `_`.
        let words: Vec<String> = words
            .split_whitespace()
            .map(|word| if word.starts_with("--schedule=") { word.replace('_', " ") } else { word.into() })
            .collect();
        let ran = run(&mut self.command(&words), "");
        assert_eq!(ran.succeeded(), !fails, "{ran}");
        assert!(format!("{}{}", ran.stdout, ran.stderr).contains(wanted.trim()), "{:?} is missing: {ran}", wanted.trim());
    }

    #[track_caller]
    fn with(&self, args: &[&str], input: &str) -> String {
        run(&mut self.command(args), input).ok()
    }
}

/// The whole tour with one kubectl of this version.
pub fn tour(program: &Path, version: &str, topic: &str) {
    let ns = Namespace::new(topic);
    let kubectl = Kubectl { program, ns: &ns };
    let said = kubectl.with(&["version", "--client"], "");
    assert!(said.contains(&format!("v{version}.")), "{said}");
    DAILY.lines().filter(|line| !line.is_empty()).for_each(|line| kubectl.line(line));
    settings(&kubectl);
    manifests(&kubectl);
    signing_requests(&kubectl);
    proxy(&kubectl);
    kubectl.with(&["create", "-f", "-"], &format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {}}}\n", ns.name));
    NODES.lines().filter(|line| !line.is_empty()).for_each(|line| kubectl.line(line));
}

fn settings(kubectl: &Kubectl<'_>) {
    let copy = kubectl.ns.cluster.dir().join(format!("{}.kubeconfig", kubectl.ns.name));
    std::fs::copy(kubectl.ns.cluster.kubeconfig(), &copy).expect("a copy");
    for line in SETTINGS.lines().filter(|line| !line.is_empty()) {
        let (words, wanted) = line.split_once(" =>").unwrap_or((line, ""));
        kubectl.line(&format!("{words} --kubeconfig={} =>{wanted}", copy.display()));
    }
}

const MANIFEST: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: one, labels: {set: yes-please}}
data: {a: '1'}
---
apiVersion: v1
kind: Service
metadata: {name: two, labels: {set: yes-please}}
spec: {ports: [{name: http, port: 80}, {name: more, port: 81}]}
";

/// apply in all its forms, diff, replace, edit, kustomize, reconcile.
fn manifests(kubectl: &Kubectl<'_>) {
    let apply = |args: &[&str], text: &str| kubectl.with(&[&["apply", "-f", "-"], args].concat(), text);
    assert_eq!(apply(&[], MANIFEST), "configmap/one created\nservice/two created\n");
    assert_eq!(apply(&[], MANIFEST), "configmap/one unchanged\nservice/two unchanged\n");
    let changed = MANIFEST.replace("a: '1'", "b: '2'").replace("port: 81", "port: 82");
    let diff = run(&mut kubectl.command(&["diff", "-f", "-"]), &changed);
    assert!(diff.code == Some(1) && diff.stdout.contains("-  a: \"1\"") && diff.stdout.contains("+    port: 82"), "{diff}");
    let diff = run(&mut kubectl.command(&["diff", "--server-side", "--force-conflicts", "-f", "-"]), &MANIFEST.replace("a: '1'", "a: '9'"));
    assert!(diff.code == Some(1) && diff.stdout.contains("+  a: \"9\""), "{diff}");
    assert_eq!(apply(&["--dry-run=server"], &changed).matches("configured (server dry run)").count(), 2);
    assert_eq!(apply(&[], &changed), "configmap/one configured\nservice/two configured\n");
    kubectl.line("apply view-last-applied configmap one => b: \"2\"");
    kubectl.line("get service two -o jsonpath={.spec.ports[*].port} => 80 82");
    kubectl.line("get configmap one -o jsonpath={.data} => {\"b\":\"2\"}");
    // A port that was changed by the older way of applying cannot be taken back: ports merge by their numbers.
    apply(&["--server-side", "--force-conflicts"], &changed);
    let pruned = apply(&["--prune", "-l", "set=yes-please", "--prune-allowlist=core/v1/Service"], MANIFEST.split("---").next().unwrap());
    assert!(pruned.contains("service/two pruned"), "{pruned}");
    let mut edit = kubectl.command(&["edit", "configmap", "one"]);
    edit.env("KUBE_EDITOR", "sed -i s/yes-please/thanks/");
    assert_eq!(run(&mut edit, "").ok(), "configmap/one edited\n");
    kubectl.line("get configmap -l set=thanks -o name => configmap/one");
    let now = kubectl.with(&["get", "configmap", "one", "-o", "yaml"], "");
    assert_eq!(kubectl.with(&["replace", "-f", "-"], &now), "configmap/one replaced\n");
    assert_eq!(
        kubectl.with(&["replace", "--force", "-f", "-"], &now),
        "configmap \"one\" deleted\nconfigmap/one replaced\n".replace("\"one\" deleted", &deleted(kubectl, "one"))
    );
    let role = format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {{name: kept, namespace: {}}}\n\
         rules: [{{apiGroups: [''], resources: [pods], verbs: [get]}}]\n",
        kubectl.ns.name
    );
    assert!(kubectl.with(&["auth", "reconcile", "-f", "-"], &role).contains("kept reconciled"));
    let folder = kubectl.ns.cluster.dir().join(&kubectl.ns.name);
    std::fs::create_dir_all(&folder).expect("a folder");
    let kustomization = "namePrefix: k-\nconfigMapGenerator: [{name: made, literals: [x=y]}]\n";
    std::fs::write(folder.join("kustomization.yaml"), kustomization).expect("written");
    let folder = folder.to_string_lossy().into_owned();
    assert!(kubectl.with(&["kustomize", &folder], "").contains("name: k-made-"));
    assert!(kubectl.with(&["apply", "-k", &folder], "").contains("configmap/k-made-"));
    assert!(kubectl.with(&["delete", "-k", &folder], "").contains("k-made-"));
    last_applied(kubectl);
    let bad = run(&mut kubectl.command(&["apply", "-f", "-"]), &MANIFEST.replace("\ndata:", "\ndada:")).fails();
    assert!(bad.contains("unknown field \"dada\""), "{bad}");
    apply_set(kubectl);
}

/// What was applied last, said afterwards and edited.
fn last_applied(kubectl: &Kubectl<'_>) {
    kubectl.line("create configmap said --from-literal=a=1 => created");
    let object = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: said, namespace: {}}}\ndata: {{a: '1'}}\n", kubectl.ns.name);
    assert!(kubectl.with(&["apply", "set-last-applied", "--create-annotation", "-f", "-"], &object).contains("configmap/said configured"));
    let mut edit = kubectl.command(&["apply", "edit-last-applied", "configmap", "said"]);
    edit.env("KUBE_EDITOR", "sed -i 's/a: \"1\"/a: \"2\"/'");
    assert!(run(&mut edit, "").ok().contains("configmap/said edited"));
    kubectl.line("apply view-last-applied configmap said => a: \"2\"");
}

/// How this version of kubectl ends the sentence about a deletion: newer ones name the namespace.
fn deleted(kubectl: &Kubectl<'_>, name: &str) -> String {
    let said = kubectl.with(&["delete", "configmap", "kube-root-ca.crt", "--dry-run=client"], "");
    let named = said.contains(&format!("from {}", kubectl.ns.name));
    if named { format!("\"{name}\" deleted from {} namespace", kubectl.ns.name) } else { format!("\"{name}\" deleted") }
}

/// Pruning by an applyset: what is no longer in the set is deleted.
fn apply_set(kubectl: &Kubectl<'_>) {
    let apply = |text: &str| {
        let mut command = kubectl.command(&["apply", "--server-side", "--prune", "--applyset=configmaps/set", "-f", "-"]);
        run(command.env("KUBECTL_APPLYSET", "true"), text).ok()
    };
    let object = |name: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n---\n");
    apply(&(object("first") + &object("second")));
    let said = apply(&object("first"));
    assert!(said.contains("configmap/second pruned"), "{said}");
    kubectl.line("get configmap first -o name => configmap/first");
    kubectl.line("!get configmap second => not found");
}

/// A certificate signing request, denied by hand and approved by hand.
fn signing_requests(kubectl: &Kubectl<'_>) {
    let request = include_str!("request.pem").trim();
    let encoded = run(Command::new("base64").arg("-w0"), &format!("{request}\n")).ok();
    for (verb, shown) in [("deny", "Denied"), ("approve", "Approved")] {
        let name = format!("{}-{verb}", kubectl.ns.name);
        let object = format!(
            "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: {name}}}\n\
             spec: {{request: {encoded}, signerName: example.com/mine, usages: [client auth]}}\n"
        );
        kubectl.with(&["create", "-f", "-"], &object);
        kubectl.line(&format!("get csr {name} => Pending"));
        kubectl.line(&format!("certificate {verb} {name} => {}", if verb == "deny" { "denied" } else { "approved" }));
        kubectl.line(&format!("get csr {name} => {shown}"));
        kubectl.line(&format!("describe csr {name} => {shown}"));
        kubectl.line(&format!("delete csr {name} => deleted"));
    }
}

/// kubectl's own proxy, for whoever speaks plain HTTP.
fn proxy(kubectl: &Kubectl<'_>) {
    let mut proxy = cluster::run::Running::start(&mut kubectl.command(&["proxy", "--port=0"]));
    let said = proxy.wait_for_output("Starting to serve on", 20);
    let address =
        said.split("Starting to serve on ").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("an address").to_owned();
    let answer = cluster::http::get(&address, "/api/v1/namespaces/default").expect("an answer");
    assert!(answer.contains("\"kind\":\"Namespace\"") || answer.contains("\"kind\": \"Namespace\""), "{answer}");
}

#[test]
fn every_line_of_the_tour_says_what_it_expects() {
    for line in DAILY.lines().chain(NODES.lines()).chain(SETTINGS.lines()).filter(|line| !line.is_empty()) {
        assert!(line.contains("=>"), "{line}");
    }
    let _ = Cluster::shared;
}
