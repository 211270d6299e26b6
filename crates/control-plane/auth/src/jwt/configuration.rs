//! Upstream's `AuthenticationConfiguration`: read, checked in upstream's words, compiled.
//!
//! Source: `apiserver/pkg/apis/apiserver/v1/types.go` and `…/validation/validation.go`.

use std::collections::{BTreeMap, HashSet};

use cel::{Env, Program, Type};
use meta::field::{Error, Path};
use meta::names;
use serde::Deserialize;
use serde_json::Value;

use super::claims::{Mapping, Rule, Source, claims_env, user_env};
use super::{ALGORITHMS, Provider};

const GROUP: &str = "apiserver.config.k8s.io";
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];
const ISSUERS_MAX: usize = 64;

/// What the file says, ready to be used.
#[derive(Debug, Default)]
pub struct Configuration {
    pub providers: Vec<Provider>,
    /// Absent: anonymous requests are let in as upstream's default does.
    pub anonymous: Option<Anonymous>,
}

/// Who may come without credentials.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Anonymous {
    #[serde(default)]
    enabled: bool,
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    path: String,
}

impl Anonymous {
    /// Without conditions everywhere, else on exactly these paths.
    pub fn allows(&self, path: &str) -> bool {
        self.enabled && (self.conditions.is_empty() || self.conditions.iter().any(|condition| condition.path == path))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    jwt: Vec<Jwt>,
    anonymous: Option<Anonymous>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Jwt {
    issuer: Issuer,
    #[serde(default)]
    claim_validation_rules: Vec<ClaimRule>,
    claim_mappings: Mappings,
    #[serde(default)]
    user_validation_rules: Vec<UserRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Issuer {
    #[serde(default)]
    url: String,
    #[serde(default, rename = "discoveryURL")]
    discovery_url: String,
    #[serde(default)]
    certificate_authority: String,
    #[serde(default)]
    audiences: Vec<String>,
    #[serde(default)]
    audience_match_policy: String,
    #[serde(default)]
    egress_selector_type: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ClaimRule {
    #[serde(default)]
    claim: String,
    #[serde(default)]
    required_value: String,
    #[serde(default)]
    expression: String,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UserRule {
    #[serde(default)]
    expression: String,
    #[serde(default)]
    message: String,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Mappings {
    username: Prefixed,
    groups: Prefixed,
    uid: Plain,
    extra: Vec<Extra>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Prefixed {
    claim: String,
    prefix: Option<String>,
    expression: String,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Plain {
    claim: String,
    expression: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Extra {
    #[serde(default)]
    key: String,
    #[serde(default)]
    value_expression: String,
}

impl Configuration {
    /// `disallowed` are issuers whose tokens have another way in: the cluster's own.
    pub fn parse(file: &Value, disallowed: &[&str]) -> Result<Self, String> {
        Self::parse_with(file, disallowed, &ALGORITHMS)
    }

    /// With the algorithms that tokens may be signed with.
    pub fn parse_with(file: &Value, disallowed: &[&str], algorithms: &[&'static str]) -> Result<Self, String> {
        let file: File = serde_json::from_value(file.clone()).map_err(|error| error.to_string())?;
        let known = file.api_version.strip_prefix(GROUP).and_then(|rest| rest.strip_prefix('/')).is_some_and(|v| VERSIONS.contains(&v));
        if !known || file.kind != "AuthenticationConfiguration" {
            return Err(format!("expected kind AuthenticationConfiguration of {GROUP}/v1, found {} of {}", file.kind, file.api_version));
        }
        let root = Path::new("jwt");
        let mut check = Check::default();
        if file.jwt.len() > ISSUERS_MAX {
            check.errors.push(Error::too_many(&root, file.jwt.len(), ISSUERS_MAX));
            return check.outcome(Self::default());
        }
        let (mut providers, mut urls, mut discovery_urls) = (Vec::new(), HashSet::new(), HashSet::new());
        for (at, jwt) in file.jwt.into_iter().enumerate() {
            let path = root.index(at);
            let (url, discovery_url) = (jwt.issuer.url.clone(), jwt.issuer.discovery_url.clone());
            providers.extend(check.provider(&path, jwt, disallowed, algorithms));
            if !urls.insert(url.clone()) {
                check.errors.push(Error::duplicate(&path.dotted("issuer.url"), url));
            }
            if !discovery_url.is_empty() && !discovery_urls.insert(discovery_url.clone()) {
                check.errors.push(Error::duplicate(&path.dotted("issuer.discoveryURL"), discovery_url));
            }
        }
        if file.anonymous.as_ref().is_some_and(|anonymous| !anonymous.enabled && !anonymous.conditions.is_empty()) {
            let detail = "enabled should be set to true when conditions are defined";
            check.errors.push(Error::invalid_unprinted(&Path::new("anonymous").child("conditions"), detail));
        }
        check.outcome(Self { providers, anonymous: file.anonymous })
    }
}

/// What is wrong so far.
#[derive(Default)]
struct Check {
    errors: Vec<Error>,
}

impl Check {
    fn outcome<T>(self, good: T) -> Result<T, String> {
        let sentences: Vec<String> = self.errors.iter().map(ToString::to_string).collect();
        match sentences.as_slice() {
            [] => Ok(good),
            [one] => Err(one.clone()),
            many => Err(format!("[{}]", many.join(", "))),
        }
    }

    /// `None` where something is wrong with it.
    fn provider(&mut self, path: &Path, jwt: Jwt, disallowed: &[&str], algorithms: &[&'static str]) -> Option<Provider> {
        self.issuer(&path.child("issuer"), &jwt.issuer, disallowed);
        let (required, claim_rules) = self.claim_rules(&path.child("claimValidationRules"), jwt.claim_validation_rules);
        let at = path.child("claimMappings");
        let username = self.prefixed(&at.child("username"), &jwt.claim_mappings.username, true);
        let groups = self.prefixed(&at.child("groups"), &jwt.claim_mappings.groups, false);
        let uid = self.plain(&at.child("uid"), jwt.claim_mappings.uid);
        let extra = self.extra(&at.child("extra"), jwt.claim_mappings.extra);
        let expressions = claim_rules.iter().map(|rule: &Rule| &rule.program).chain(extra.iter().map(|(_, program)| program));
        self.verified(&at, username.as_ref(), expressions);
        let user_rules = self.user_rules(&path.child("userValidationRules"), jwt.user_validation_rules);
        Some(Provider {
            issuer: jwt.issuer.url,
            discovery_url: Some(jwt.issuer.discovery_url).filter(|url| !url.is_empty()),
            authority: jwt.issuer.certificate_authority,
            audiences: jwt.issuer.audiences,
            algorithms: algorithms.to_vec(),
            required,
            mapping: Mapping { username: username?, groups, uid, extra, claim_rules, user_rules },
        })
    }

    fn issuer(&mut self, path: &Path, issuer: &Issuer, disallowed: &[&str]) {
        let at = path.child("url");
        match issuer.url.as_str() {
            "" => self.errors.push(Error::required(&at, "")),
            url => {
                if disallowed.contains(&url) {
                    let detail = format!("URL must not overlap with disallowed issuers: [{}]", disallowed.join(" "));
                    self.errors.push(Error::invalid(&at, url, detail));
                }
                self.url(&at, url);
            }
        }
        let (at, discovery) = (path.child("discoveryURL"), issuer.discovery_url.as_str());
        if !discovery.is_empty() {
            if discovery.trim_end_matches('/') == issuer.url.trim_end_matches('/') {
                self.errors.push(Error::invalid(&at, discovery, "discoveryURL must be different from URL"));
            }
            self.url(&at, discovery);
        }
        self.audiences(path, issuer);
        if !issuer.certificate_authority.is_empty()
            && crate::tls::roots(&issuer.certificate_authority).map_or(true, |roots| roots.is_empty())
        {
            let detail = "data does not contain any valid RSA or ECDSA certificates";
            self.errors.push(Error::invalid(&path.child("certificateAuthority"), "<omitted>", detail));
        }
        if !issuer.egress_selector_type.is_empty() {
            let detail = "egress selector is not supported: the server has one way out";
            self.errors.push(Error::invalid(&path.child("egressSelectorType"), issuer.egress_selector_type.as_str(), detail));
        }
    }

    fn url(&mut self, path: &Path, url: &str) {
        let mut wrong = |detail: &str| self.errors.push(Error::invalid(path, url, detail));
        let (address, fragment) = url.split_once('#').map_or((url, ""), |(address, fragment)| (address, fragment));
        match address.parse::<http::Uri>() {
            Err(error) => wrong(&error.to_string()),
            Ok(uri) => {
                if uri.scheme_str() != Some("https") {
                    wrong("URL scheme must be https");
                }
                if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
                    wrong("URL must not contain a username or password");
                }
                if uri.query().is_some_and(|query| !query.is_empty()) {
                    wrong("URL must not contain a query");
                }
                if !fragment.is_empty() {
                    wrong("URL must not contain a fragment");
                }
            }
        }
    }

    fn audiences(&mut self, path: &Path, issuer: &Issuer) {
        let at = path.child("audiences");
        if issuer.audiences.is_empty() {
            return self.errors.push(Error::required(&at, format!("at least one {at} is required")));
        }
        let mut seen = HashSet::new();
        for (index, audience) in issuer.audiences.iter().enumerate() {
            if audience.is_empty() {
                self.errors.push(Error::required(&at.index(index), ""));
            }
            if !seen.insert(audience) {
                self.errors.push(Error::duplicate(&at.index(index), audience.as_str()));
            }
        }
        let detail = match (issuer.audiences.len(), issuer.audience_match_policy.as_str()) {
            (_, "MatchAny") | (1, "") => return,
            (1, _) => "audienceMatchPolicy must be empty or MatchAny for single audience",
            _ => "audienceMatchPolicy must be MatchAny for multiple audiences",
        };
        self.errors.push(Error::invalid(&path.child("audienceMatchPolicy"), issuer.audience_match_policy.as_str(), detail));
    }

    fn claim_rules(&mut self, path: &Path, rules: Vec<ClaimRule>) -> (BTreeMap<String, String>, Vec<Rule>) {
        let (mut required, mut programs, mut seen) = (BTreeMap::new(), Vec::new(), HashSet::new());
        for (index, rule) in rules.into_iter().enumerate() {
            let at = path.index(index);
            match (rule.claim.is_empty(), rule.expression.is_empty()) {
                (false, false) => self.errors.push(Error::invalid(&at, rule.claim, "claim and expression can't both be set")),
                (true, true) => self.errors.push(Error::required(&at, "claim or expression is required")),
                (false, true) => {
                    if !rule.message.is_empty() {
                        let detail = "may not be specified when claim is set";
                        self.errors.push(Error::invalid(&at.child("message"), rule.message, detail));
                    }
                    if required.insert(rule.claim.clone(), rule.required_value).is_some() {
                        self.errors.push(Error::duplicate(&at.child("claim"), rule.claim));
                    }
                }
                (true, false) => {
                    if !rule.required_value.is_empty() {
                        let detail = "may not be specified when expression is set";
                        self.errors.push(Error::invalid(&at.child("requiredValue"), rule.required_value, detail));
                    }
                    let at = at.child("expression");
                    if !seen.insert(rule.expression.clone()) {
                        self.errors.push(Error::duplicate(&at, rule.expression));
                        continue;
                    }
                    let program = self.condition(&at, &claims_env(), &rule.expression);
                    programs.extend(program.map(|program| Rule { program, message: rule.message }));
                }
            }
        }
        (required, programs)
    }

    fn user_rules(&mut self, path: &Path, rules: Vec<UserRule>) -> Vec<Rule> {
        let (mut programs, mut seen) = (Vec::new(), HashSet::new());
        for (index, rule) in rules.into_iter().enumerate() {
            let at = path.index(index).child("expression");
            if rule.expression.is_empty() {
                self.errors.push(Error::required(&at, ""));
            } else if !seen.insert(rule.expression.clone()) {
                self.errors.push(Error::duplicate(&at, rule.expression));
            } else {
                let program = self.condition(&at, &user_env(), &rule.expression);
                programs.extend(program.map(|program| Rule { program, message: rule.message }));
            }
        }
        programs
    }

    fn prefixed(&mut self, path: &Path, mapping: &Prefixed, needed: bool) -> Option<Source> {
        match (mapping.claim.as_str(), mapping.expression.as_str()) {
            ("", "") => {
                if needed {
                    self.errors.push(Error::required(path, "claim or expression is required"));
                }
                None
            }
            ("", expression) => {
                if let Some(prefix) = &mapping.prefix {
                    let detail = "may not be specified when expression is set";
                    self.errors.push(Error::invalid(&path.child("prefix"), prefix.as_str(), detail));
                }
                self.expression(&path.child("expression"), expression).map(Source::Expression)
            }
            (claim, "") => {
                let Some(prefix) = &mapping.prefix else {
                    let detail = "prefix is required when claim is set. It can be set to an empty string to disable prefixing";
                    self.errors.push(Error::required(&path.child("prefix"), detail));
                    return None;
                };
                Some(Source::Claim { name: claim.to_owned(), prefix: prefix.clone() })
            }
            _ => {
                self.errors.push(Error::invalid(path, "", "claim and expression can't both be set"));
                None
            }
        }
    }

    fn plain(&mut self, path: &Path, mapping: Plain) -> Option<Source> {
        match (mapping.claim.as_str(), mapping.expression.as_str()) {
            ("", "") => None,
            ("", expression) => self.expression(&path.child("expression"), expression).map(Source::Expression),
            (_, "") => Some(Source::Claim { name: mapping.claim, prefix: String::new() }),
            _ => {
                self.errors.push(Error::invalid(path, "", "claim and expression can't both be set"));
                None
            }
        }
    }

    fn extra(&mut self, path: &Path, mappings: Vec<Extra>) -> Vec<(String, Program)> {
        let (mut programs, mut seen) = (Vec::new(), HashSet::new());
        for (index, mapping) in mappings.into_iter().enumerate() {
            let at = path.index(index);
            let key = at.child("key");
            if mapping.key.is_empty() {
                self.errors.push(Error::required(&key, ""));
            } else {
                let wrong = names::domain_prefixed_path(&mapping.key);
                self.errors.extend(wrong.into_iter().map(|detail| Error::invalid(&key, mapping.key.as_str(), detail)));
            }
            if mapping.key.chars().any(char::is_uppercase) {
                self.errors.push(Error::invalid(&key, mapping.key.as_str(), "must be lowercase"));
            }
            let domain = mapping.key.split_once('/').map_or("", |(domain, _)| domain);
            let reserved = ["kubernetes.io", "k8s.io"];
            if reserved.iter().any(|own| domain.strip_suffix(own).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))) {
                let detail = "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use";
                self.errors.push(Error::invalid(&key, mapping.key.as_str(), detail));
            }
            if !seen.insert(mapping.key.clone()) {
                self.errors.push(Error::duplicate(&key, mapping.key));
                continue;
            }
            let at = at.child("valueExpression");
            if mapping.value_expression.is_empty() {
                self.errors.push(Error::required(&at, ""));
                continue;
            }
            programs.extend(self.expression(&at, &mapping.value_expression).map(|program| (mapping.key, program)));
        }
        programs
    }

    /// Whoever takes a name from `claims.email` must look at whether the address was verified.
    fn verified<'a>(&mut self, path: &Path, username: Option<&Source>, mut others: impl Iterator<Item = &'a Program>) {
        let Some(Source::Expression(program)) = username else { return };
        let uses = |program: &Program, claim: &str| program.fields_of("claims").iter().any(|field| field == claim);
        if uses(program, "email") && !uses(program, "email_verified") && !others.any(|other| uses(other, "email_verified")) {
            let detail = "claims.email_verified must be used in claimMappings.username.expression or \
                claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in \
                claimMappings.username.expression";
            self.errors.push(Error::invalid(&path.dotted("username.expression"), program.source(), detail));
        }
    }

    fn expression(&mut self, path: &Path, source: &str) -> Option<Program> {
        self.compile(path, &claims_env(), source)
    }

    fn condition(&mut self, path: &Path, env: &Env, source: &str) -> Option<Program> {
        let program = self.compile(path, env, source)?;
        if !matches!(program.result_type(), Type::Bool) {
            self.errors.push(Error::invalid(path, source, "must evaluate to bool"));
            return None;
        }
        Some(program)
    }

    fn compile(&mut self, path: &Path, env: &Env, source: &str) -> Option<Program> {
        let compiled = env.compile(source);
        compiled.map_err(|error| self.errors.push(Error::invalid(path, source, format!("compilation failed: {error}")))).ok()
    }
}
