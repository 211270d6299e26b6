//! What every stage of a request shares: who asks, what for, and what is to be said beside the answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use auth::UserInfo;
use http::HeaderMap;
use meta::{Status, field};
use schema::decode::Mode;

use crate::audit::Notes;
use crate::request::{Query, RequestInfo};

/// One request on its way through the pipeline.
pub struct Context {
    pub info: RequestInfo,
    pub query: Query,
    pub headers: HeaderMap,
    pub user: Arc<UserInfo>,
    /// Why the request is allowed, as the authorizer says.
    pub reason: String,
    /// Where API Priority and Fairness put the request.
    pub flowed: Option<Arc<crate::flow::Flowed>>,
    /// For the audit trail.
    pub audit: Notes,
    warnings: Mutex<Vec<String>>,
    annotations: Mutex<BTreeMap<String, String>>,
}

/// Warnings beyond this many bytes are not sent (upstream cuts there too).
const WARNINGS_BYTES_MAX: usize = 4 << 10;

impl Context {
    pub fn new(info: RequestInfo, query: Query, headers: HeaderMap, user: impl Into<Arc<UserInfo>>) -> Self {
        Self {
            info,
            query,
            headers,
            user: user.into(),
            reason: String::new(),
            audit: Notes::default(),
            flowed: None,
            warnings: Mutex::default(),
            annotations: Mutex::default(),
        }
    }

    /// Says something in a `Warning:` header, once.
    pub fn warn(&self, sentence: impl Into<String>) {
        let sentence = sentence.into();
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        let size: usize = warnings.iter().map(String::len).sum();
        if !warnings.contains(&sentence) && size + sentence.len() < WARNINGS_BYTES_MAX {
            warnings.push(sentence);
        }
    }
    /// How many warnings there are.
    pub fn warnings(&self) -> usize {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds something to the request's audit events, such as `pod-security.kubernetes.io/enforce-policy`.
    pub fn annotate(&self, key: impl Into<String>, value: impl Into<String>) {
        self.annotations.lock().unwrap_or_else(PoisonError::into_inner).insert(key.into(), value.into());
    }
    pub fn annotations(&self) -> BTreeMap<String, String> {
        self.annotations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn write_options(&self) -> Result<WriteOptions, Status> {
        let kind = match self.info.verb.as_str() {
            "update" => "UpdateOptions",
            "patch" => "PatchOptions",
            _ => "CreateOptions",
        };
        let dry_run = dry_run(kind, self.query.all("dryRun"))?;
        let given = self.query.get("fieldValidation").unwrap_or_default();
        let Some(validation) = Mode::parse(given) else {
            let error = field::Error::not_supported(&field::Path::new("fieldValidation"), given, &["Ignore", "Strict", "Warn"]);
            return Err(Status::invalid("meta.k8s.io", kind, "", &[error]));
        };
        let manager = match self.query.text("fieldManager") {
            Some(manager) if manager.len() > 128 || manager.chars().any(char::is_control) => {
                let error = field::Error::too_long(&field::Path::new("fieldManager"), 128);
                return Err(Status::invalid("meta.k8s.io", kind, "", &[error]));
            }
            Some(manager) => manager.to_owned(),
            None => self.default_manager(),
        };
        Ok(WriteOptions { dry_run, manager, validation, force: self.query.flag("force") })
    }

    /// The part of the user agent before the first slash, as upstream.
    fn default_manager(&self) -> String {
        let agent = self.headers.get(http::header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
        let name = agent.split('/').next().unwrap_or_default();
        let name: String = name.chars().filter(|c| !c.is_control()).take(128).collect();
        if name.is_empty() { "unknown".into() } else { name }
    }
}

/// `All` is the only value there is. `kind` names the options in the failure.
pub fn dry_run<'a>(kind: &str, values: impl Iterator<Item = &'a str>) -> Result<bool, Status> {
    let mut dry = false;
    for value in values.filter(|value| !value.is_empty()) {
        if value != "All" {
            let error = field::Error::not_supported(&field::Path::new("dryRun"), value, &["All"]);
            return Err(Status::invalid("meta.k8s.io", kind, "", &[error]));
        }
        dry = true;
    }
    Ok(dry)
}

/// The options that every write understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub manager: String,
    pub validation: Mode,
    /// Server-side apply takes fields over from other managers.
    pub force: bool,
}

impl WriteOptions {
    /// For writes of the server's own.
    pub fn internal() -> Self {
        Self { dry_run: false, manager: "kube-apiserver".into(), validation: Mode::Ignore, force: false }
    }
}

impl Context {
    /// What authorization is asked about.
    pub fn attributes(&self) -> auth::authorize::Attributes<'_> {
        let info = &self.info;
        let selects = matches!(info.verb.as_str(), "list" | "watch" | "deletecollection");
        auth::authorize::Attributes {
            is_resource: info.is_resource,
            verb: &info.verb,
            group: &info.group,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
            path: &info.path,
            version: &info.version,
            field_selector: if selects { self.query.get("fieldSelector").unwrap_or_default() } else { "" },
            label_selector: if selects { self.query.get("labelSelector").unwrap_or_default() } else { "" },
        }
    }
}
