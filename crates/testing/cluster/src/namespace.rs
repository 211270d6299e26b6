//! A namespace per test, with the questions that tests ask of what is in it.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::cluster::Cluster;
use crate::run::{Ran, Running, ensure, run, wait_for};

/// How long a pod may take to get where a test wants it, on a slow machine with many tests at once.
pub const POD_SECONDS_MAX: u64 = 90;

/// A namespace of the shared cluster. Deleted when dropped; before that, after a failure, its pods and events are printed.
pub struct Namespace {
    pub cluster: &'static Cluster,
    pub name: String,
}

impl Namespace {
    /// A new namespace whose service account exists, as pods need it.
    #[track_caller]
    pub fn new(topic: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let cluster = Cluster::shared();
        let name = format!("{topic}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        cluster.kubectl(&["create", "namespace", &name]).ok();
        let namespace = Self { cluster, name };
        wait_for("the default service account", 30, || {
            let ran = namespace.kubectl(&["get", "serviceaccount", "default"]);
            ensure(ran.succeeded(), ran)
        });
        namespace
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut all = vec!["--namespace", &self.name];
        all.extend(args);
        self.cluster.kubectl_command(&all)
    }

    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> Ran {
        run(&mut self.command(args), "")
    }

    /// kubectl with this text as standard input.
    #[track_caller]
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> Ran {
        run(&mut self.command(args), input)
    }

    /// kubectl that goes on while the test looks.
    #[track_caller]
    pub fn start(&self, args: &[&str]) -> Running {
        Running::start(&mut self.command(args))
    }

    /// kubectl on a terminal of its own, of 97 columns and 41 rows.
    #[track_caller]
    pub fn start_on_terminal(&self, args: &[&str]) -> Running {
        let kubectl = self.command(args);
        let quoted = |word: &std::ffi::OsStr| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"));
        let line: Vec<String> = std::iter::once(kubectl.get_program()).chain(kubectl.get_args()).map(quoted).collect();
        let mut script = Command::new("script");
        script
            .args(["-qec", &format!("stty cols 97 rows 41; exec {}", line.join(" ")), "/dev/null"])
            .env("TERM", "xterm")
            .env("HOME", self.cluster.dir().join("home"));
        Running::start(&mut script)
    }

    /// `kubectl apply -f -` of this manifest.
    #[track_caller]
    pub fn apply(&self, manifest: &str) {
        self.kubectl_with(&["apply", "-f", "-"], manifest).ok();
    }

    /// One value of an object, by JSONPath such as `{.status.phase}`.
    #[track_caller]
    pub fn value(&self, object: &str, path: &str) -> String {
        self.kubectl(&["get", object, "-o", &format!("jsonpath={path}")]).ok()
    }

    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let mut all = vec!["get", "-o", "json"];
        all.extend(args);
        let text = self.kubectl(&all).ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?} is not JSON: {error}: {text}"))
    }

    /// Waits until the value at the path is this text.
    #[track_caller]
    pub fn wait_for_value(&self, object: &str, path: &str, wanted: &str) {
        wait_for(&format!("{object} {path} is {wanted:?}"), POD_SECONDS_MAX, || {
            let ran = self.kubectl(&["get", object, "-o", &format!("jsonpath={path}")]);
            ensure(ran.succeeded() && ran.stdout == wanted, ran)
        });
    }

    /// `kubectl wait` for a condition such as `condition=Ready`.
    #[track_caller]
    pub fn wait(&self, condition: &str, objects: &[&str]) {
        let limit = format!("--timeout={POD_SECONDS_MAX}s");
        let condition = format!("--for={condition}");
        let mut args = vec!["wait", condition.as_str(), limit.as_str()];
        args.extend(objects);
        self.kubectl(&args).ok();
    }

    /// The output of a command in a pod's container.
    #[track_caller]
    pub fn exec(&self, pod: &str, command: &[&str]) -> Ran {
        let mut args = vec!["exec", pod, "--"];
        args.extend(command);
        self.kubectl(&args)
    }

    /// Waits until so many addresses are ready behind a Service.
    #[track_caller]
    pub fn wait_for_endpoints(&self, service: &str, count: usize) {
        wait_for(&format!("{count} endpoints of {service}"), POD_SECONDS_MAX, || {
            let path = r#"jsonpath={range .items[*].endpoints[?(@.conditions.ready==true)]}{.addresses[0]}{"\n"}{end}"#;
            let ran = self.kubectl(&["get", "endpointslices", "-l", &format!("kubernetes.io/service-name={service}"), "-o", path]);
            ensure(ran.succeeded() && ran.stdout.lines().count() == count, ran)
        });
    }

    /// Waits for an event about the object whose reason and message contain these texts.
    #[track_caller]
    pub fn wait_for_event(&self, object: &str, reason: &str, message: &str) {
        wait_for(&format!("an event {reason} {message:?} about {object}"), POD_SECONDS_MAX, || {
            let path = r#"jsonpath={range .items[*]}{.involvedObject.name}{"|"}{.reason}{"|"}{.message}{"\n"}{end}"#;
            let ran = self.kubectl(&["get", "events", "-o", path]);
            let found =
                ran.stdout.lines().any(|line| line.starts_with(object) && line.contains(&format!("|{reason}|")) && line.contains(message));
            ensure(found, ran)
        });
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for args in [&["get", "all,endpointslices", "-o", "wide"][..], &["get", "events"], &["describe", "pods"]] {
                let ran = self.kubectl(args);
                eprintln!("{}", ran.to_string().chars().take(8_000).collect::<String>());
            }
        }
        self.kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}
