//! Security contexts of pods and containers: users, seccomp, AppArmor, sysctls, SELinux, Windows.

use std::collections::BTreeSet;

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use super::containers;
use crate::checks::{Errors, formed, sentences, supported};
use crate::value::{at, flag, has, int, list, text};

const MISMATCH: &str = "type in annotation and field must match";

/// `spec.securityContext` and what it has to do with the rest of the spec.
pub fn of_pod(spec: &Value, path: &Path) -> Errors {
    let (context, here) = (at(spec, "securityContext"), path.child("securityContext"));
    if context.is_null() {
        return Errors::new();
    }
    let mut errors = ids(context, &["fsGroup", "runAsUser", "runAsGroup"], &here);
    for (index, group) in list(context, "supplementalGroups").iter().enumerate() {
        let group = group.as_i64().unwrap_or(-1);
        errors.extend(sentences(&here.child("supplementalGroups").index(index), group, id_range(group)));
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        let sentence = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(Error::invalid(&here.child("shareProcessNamespace"), true, sentence));
    }
    errors.extend(sysctls(spec, &here.child("sysctls")));
    errors.extend(supported(context, &here, "fsGroupChangePolicy", &["Always", "OnRootMismatch"]));
    errors.extend(seccomp(at(context, "seccompProfile"), &here.child("seccompProfile")));
    errors.extend(windows_options(at(context, "windowsOptions"), &here.child("windowsOptions")));
    errors.extend(app_armor(at(context, "appArmorProfile"), &here.child("appArmorProfile")));
    errors.extend(supported(context, &here, "supplementalGroupsPolicy", &["Merge", "Strict"]));
    errors.extend(supported(context, &here, "seLinuxChangePolicy", &["MountOption", "Recursive"]));
    errors
}

/// `hostUsers: false` does not go with the host's other namespaces.
pub fn host_users(spec: &Value, path: &Path) -> Errors {
    if at(spec, "hostUsers").as_bool() != Some(false) {
        return Errors::new();
    }
    let sentence = "when `hostUsers` is false";
    let fields = [("hostNetwork", "hostNetwork"), ("hostPID", "hostPID"), ("hostIPC", "hostIPC")];
    fields.into_iter().filter(|(field, _)| flag(spec, field)).map(|(_, shown)| Error::forbidden(&path.child(shown), sentence)).collect()
}

/// A container's security context.
pub fn of_container(context: &Value, host_users: bool, path: &Path) -> Errors {
    if context.is_null() {
        return Errors::new();
    }
    let mut errors = ids(context, &["runAsUser", "runAsGroup"], path);
    if let Some(mount) = at(context, "procMount").as_str() {
        errors.extend(supported(context, path, "procMount", &["Default", "Unmasked"]));
        if host_users && mount == "Unmasked" {
            errors.push(Error::invalid(&path.child("procMount"), mount, "`hostUsers` must be false to use `Unmasked`"));
        }
    }
    errors.extend(seccomp(at(context, "seccompProfile"), &path.child("seccompProfile")));
    if at(context, "allowPrivilegeEscalation").as_bool() == Some(false) {
        let admin = list(context, "capabilities.add").iter().filter(|capability| *capability == "CAP_SYS_ADMIN");
        let privileged = flag(context, "privileged").then_some("cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        let sentence = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
        let all = privileged.into_iter().chain(admin.map(|_| sentence));
        errors.extend(all.map(|sentence| Error::invalid(path, context.clone(), sentence)));
    }
    errors.extend(windows_options(at(context, "windowsOptions"), &path.child("windowsOptions")));
    errors.extend(app_armor(at(context, "appArmorProfile"), &path.child("appArmorProfile")));
    errors
}

fn id_range(id: i64) -> Vec<String> {
    names::in_range(id, 0, i32::MAX.into())
}

fn ids(context: &Value, fields: &[&str], path: &Path) -> Errors {
    let given = fields.iter().filter_map(|field| int(context, field).map(|id| (field, id)));
    given.flat_map(|(field, id)| sentences(&path.child(field), id, id_range(id))).collect()
}

fn sysctls(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut seen = BTreeSet::new();
    for (index, sysctl) in list(spec, "securityContext.sysctls").iter().enumerate() {
        let here = path.index(index).child("name");
        let name = text(sysctl, "name");
        if name.is_empty() {
            errors.push(Error::required(&here, ""));
        } else if !is_sysctl(name) {
            let format = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            errors.push(Error::invalid(&here, name, format!("must have at most 253 characters and match regex {format}")));
        } else if !seen.insert(name) {
            errors.push(Error::duplicate(&here, name));
        }
        let dotted = name.replace('/', ".");
        if flag(spec, "hostNetwork") && dotted.starts_with("net.") {
            errors.push(Error::invalid(&here, name, "may not be specified when 'hostNetwork' is true"));
        } else if flag(spec, "hostIPC")
            && (dotted.starts_with("kernel.shm")
                || dotted.starts_with("kernel.msg")
                || dotted == "kernel.sem"
                || dotted.starts_with("fs.mqueue."))
        {
            errors.push(Error::invalid(&here, name, "may not be specified when 'hostIPC' is true"));
        }
    }
    errors
}

fn is_sysctl(name: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let segment = |segment: &str| {
        segment.starts_with(alphanumeric) && segment.ends_with(alphanumeric) && segment.chars().all(|c| alphanumeric(c) || "-_".contains(c))
    };
    name.len() <= 253 && name.split(['.', '/']).all(segment)
}

fn seccomp(profile: &Value, path: &Path) -> Errors {
    if profile.is_null() {
        return Errors::new();
    }
    let mut errors = Errors::new();
    let kinds = ["Localhost", "RuntimeDefault", "Unconfined"];
    match text(profile, "type") {
        "" => errors.push(Error::required(&path.child("type"), "type is required when seccompProfile is set")),
        kind if kinds.contains(&kind) => {}
        other => errors.push(Error::not_supported(&path.child("type"), other, &kinds)),
    }
    let here = path.child("localhostProfile");
    match (text(profile, "type") == "Localhost", at(profile, "localhostProfile").as_str()) {
        (true, None) => errors.push(Error::required(&here, "must be set when seccomp type is Localhost")),
        (true, Some(file)) => errors.extend(super::volumes::descending(file, &here)),
        (false, Some(_)) => errors.push(Error::invalid(&here, profile.clone(), "can only be set when seccomp type is Localhost")),
        (false, None) => {}
    }
    errors
}

fn app_armor(profile: &Value, path: &Path) -> Errors {
    if profile.is_null() {
        return Errors::new();
    }
    let here = path.child("localhostProfile");
    let local = at(profile, "localhostProfile").as_str();
    let missing = "must be set when AppArmor type is Localhost";
    let kinds = ["Localhost", "RuntimeDefault", "Unconfined"];
    match (text(profile, "type"), local) {
        ("Localhost", None) => vec![Error::required(&here, missing)],
        ("Localhost", Some(name)) if name.trim() != name => {
            vec![Error::invalid(&here, name, "must not be padded with whitespace")]
        }
        ("Localhost", Some("")) => vec![Error::required(&here, missing)],
        ("Localhost", Some(name)) if name.len() > 4095 => vec![Error::too_long(&here, 4095)],
        ("Localhost", Some(_)) => Errors::new(),
        ("RuntimeDefault" | "Unconfined", Some(name)) => {
            vec![Error::invalid(&here, name, "can only be set when AppArmor type is Localhost")]
        }
        ("RuntimeDefault" | "Unconfined", None) => Errors::new(),
        ("", _) => vec![Error::required(&path.child("type"), "type is required when appArmorProfile is set")],
        (other, _) => vec![Error::not_supported(&path.child("type"), other, &kinds)],
    }
}

fn windows_options(options: &Value, path: &Path) -> Errors {
    let mut errors = formed(options, path, "gmsaCredentialSpecName", names::dns1123_subdomain);
    if let Some(spec) = at(options, "gmsaCredentialSpec").as_str() {
        let here = path.child("gmsaCredentialSpec");
        match spec.len() {
            0 => errors.push(Error::invalid(&here, spec, "gmsaCredentialSpec cannot be an empty string")),
            length if length > 64 * 1024 => errors.push(Error::invalid(&here, spec, "gmsaCredentialSpec size must be under 64 KiB")),
            _ => {}
        }
    }
    if let Some(name) = at(options, "runAsUserName").as_str() {
        let complaints = windows_user(name).into_iter().map(str::to_owned).collect();
        errors.extend(sentences(&path.child("runAsUserName"), name, complaints));
    }
    errors
}

fn windows_user(name: &str) -> Vec<&'static str> {
    if name.is_empty() {
        return vec!["runAsUserName cannot be an empty string"];
    }
    if name.chars().any(|c| c.is_ascii_control()) {
        return vec!["runAsUserName cannot contain control characters"];
    }
    let parts: Vec<&str> = name.split('\\').collect();
    let (domain, user) = match parts.as_slice() {
        [user] => (None, *user),
        [domain, user] => (Some(*domain), *user),
        _ => return vec!["runAsUserName cannot contain more than one backslash"],
    };
    let mut complaints = Vec::new();
    if let Some(domain) = domain {
        if domain.len() >= 256 {
            complaints.push("runAsUserName's Domain length must be under 256 characters");
        }
        let dns = domain.split('.').all(|label| {
            let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
            label.len() <= 63
                && edge(label.chars().next())
                && edge(label.chars().last())
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        });
        let bios = (1..=15).contains(&domain.chars().count())
            && !domain.starts_with('.')
            && !domain.contains(['/', ':', '*', '?', '"', '<', '>', '|']);
        if !dns && !bios {
            complaints.push("runAsUserName's Domain doesn't match the NetBios nor the DNS format");
        }
    }
    if user.is_empty() {
        complaints.push("runAsUserName's User cannot be empty");
    } else if user.len() > 104 {
        complaints.push("runAsUserName's User length must not be longer than 104 characters");
    }
    if !user.is_empty() && user.chars().all(|c| matches!(c, '.' | ' ')) {
        complaints.push("runAsUserName's User cannot contain only periods or spaces");
    }
    if user.contains(['"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']']) {
        complaints.push("runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]");
    }
    complaints
}

/// `spec.os`, and what the named system does not know. `HostProcess` containers of Windows.
pub fn operating_system(spec: &Value, path: &Path) -> Errors {
    let mut errors = host_process(spec, path);
    if !has(spec, "os") {
        return errors;
    }
    match text(spec, "os.name") {
        "" => errors.push(Error::required(&path.child("os").child("name"), "cannot be empty")),
        "linux" => errors.extend(not_of_linux(spec, path)),
        "windows" => errors.extend(not_of_windows(spec, path)),
        other => errors.push(Error::not_supported(&path.child("os"), other, &["linux", "windows"])),
    }
    errors
}

fn not_of_linux(spec: &Value, path: &Path) -> Errors {
    let contexts = std::iter::once((path.child("securityContext"), at(spec, "securityContext")))
        .chain(containers::all(spec, path).map(|(here, container)| (here.child("securityContext"), at(container, "securityContext"))));
    let sentence = "windows options cannot be set for a linux pod";
    contexts
        .filter(|(_, context)| has(context, "windowsOptions"))
        .map(|(here, _)| Error::forbidden(&here.child("windowsOptions"), sentence))
        .collect()
}

fn not_of_windows(spec: &Value, path: &Path) -> Errors {
    const SENTENCE: &str = "cannot be set for a windows pod";
    let of_spec = ["hostUsers", "hostPID", "hostIPC", "shareProcessNamespace"];
    let of_pod = [
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "fsGroup",
        "fsGroupChangePolicy",
        "sysctls",
        "runAsUser",
        "runAsGroup",
        "supplementalGroups",
        "supplementalGroupsPolicy",
        "seLinuxChangePolicy",
    ];
    let of_container = [
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "capabilities",
        "readOnlyRootFilesystem",
        "privileged",
        "allowPrivilegeEscalation",
        "procMount",
        "runAsUser",
        "runAsGroup",
    ];
    let set = |object: &Value, field: &str| !matches!(at(object, field), Value::Null | Value::Bool(false)) || flag(object, field);
    let mut errors: Errors =
        of_spec.iter().filter(|field| set(spec, field)).map(|field| Error::forbidden(&path.child(field), SENTENCE)).collect();
    let (context, here) = (at(spec, "securityContext"), path.child("securityContext"));
    errors.extend(of_pod.iter().filter(|field| has(context, field)).map(|field| Error::forbidden(&here.child(field), SENTENCE)));
    for (here, container) in containers::all(spec, path) {
        let (context, here) = (at(container, "securityContext"), here.child("securityContext"));
        errors.extend(of_container.iter().filter(|field| has(context, field)).map(|field| Error::forbidden(&here.child(field), SENTENCE)));
    }
    errors
}

fn host_process(spec: &Value, path: &Path) -> Errors {
    let of = |object: &Value| at(object, "securityContext.windowsOptions.hostProcess").as_bool();
    let pod = of(spec);
    let mut errors = Errors::new();
    let (mut total, mut on_host) = (0, 0);
    for (here, container) in containers::all(spec, path) {
        let own = of(container);
        total += 1;
        on_host += u32::from(own.or(pod).unwrap_or(false));
        if let (Some(pod), Some(own)) = (pod, own)
            && pod != own
        {
            let sentence = format!("pod hostProcess value must be identical if both are specified, was {pod}");
            errors.push(Error::invalid(&here.dotted("securityContext.windowsOptions.hostProcess"), own, sentence));
        }
    }
    if on_host == 0 {
        return errors;
    }
    if on_host != total {
        let sentence = "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        errors.push(Error::invalid(path, "", sentence));
    }
    if !flag(spec, "hostNetwork") {
        let sentence = "hostNetwork must be true if pod contains any hostProcess containers";
        errors.push(Error::invalid(&path.child("hostNetwork"), false, sentence));
    }
    errors
}

const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
pub const APP_ARMOR_CONTAINER: &str = "container.apparmor.security.beta.kubernetes.io/";

/// The annotations of old that say what fields say now: their form.
pub fn annotations(meta: &Value, spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (key, value) in crate::value::entries(meta, "annotations") {
        let value = value.as_str().unwrap_or("");
        if key == SECCOMP_POD || key.starts_with(SECCOMP_CONTAINER) {
            errors.extend(seccomp_word(value, &path.child(key)));
        }
        if let Some(name) = key.strip_prefix(APP_ARMOR_CONTAINER) {
            if !containers::all(spec, path).any(|(_, container)| text(container, "name") == name) {
                errors.push(Error::invalid(&path.key(key), name, "container not found"));
            }
            if !matches!(value, "" | "runtime/default" | "unconfined") && !value.starts_with("localhost/") {
                errors.push(Error::invalid(&path.key(key), value, format!("invalid AppArmor profile name: {value:?}")));
            }
        }
    }
    errors
}

fn seccomp_word(word: &str, path: &Path) -> Errors {
    match word {
        "runtime/default" | "docker/default" | "unconfined" => Errors::new(),
        _ => match word.strip_prefix("localhost/") {
            Some(file) => super::volumes::descending(file, path),
            None => vec![Error::invalid(path, word, "must be a valid seccomp profile")],
        },
    }
}

/// Where both an annotation of old and its field are given, they agree.
pub fn annotations_match_fields(meta: &Value, spec: &Value, path: &Path) -> Errors {
    let annotation = |key: &str| at(meta, "annotations").get(key).and_then(Value::as_str);
    let mut errors = Errors::new();
    let pod = at(spec, "securityContext");
    if let Some(word) = annotation(SECCOMP_POD) {
        errors.extend(agree(word, at(pod, "seccompProfile"), "seccomp", &path.dotted("securityContext.seccompProfile")));
    }
    for (here, container) in containers::all(spec, path) {
        let (context, here) = (at(container, "securityContext"), here.child("securityContext"));
        let name = text(container, "name");
        if let Some(word) = annotation(&format!("{SECCOMP_CONTAINER}{name}")) {
            errors.extend(agree(word, at(context, "seccompProfile"), "seccomp", &here.child("seccompProfile")));
        }
        let own = at(context, "appArmorProfile");
        let profile = if own.is_null() { at(pod, "appArmorProfile") } else { own };
        if text(spec, "os.name") != "windows"
            && let Some(word) = annotation(&format!("{APP_ARMOR_CONTAINER}{name}"))
        {
            errors.extend(agree(word, profile, "apparmor", &here.child("appArmorProfile")));
        }
    }
    errors
}

fn agree(word: &str, profile: &Value, what: &str, path: &Path) -> Option<Error> {
    let fine = match text(profile, "type") {
        "Unconfined" => word == "unconfined",
        "RuntimeDefault" => word == "runtime/default" || what == "seccomp" && word == "docker/default",
        "Localhost" => match word.strip_prefix("localhost/") {
            Some(file) if file != text(profile, "localhostProfile") => {
                let sentence = format!("{what} profile in annotation and field must match");
                return Some(Error::forbidden(&path.child("localhostProfile"), sentence));
            }
            found => found.is_some(),
        },
        _ => true,
    };
    (!fine).then(|| Error::forbidden(&path.child("type"), format!("{what} {MISMATCH}")))
}
