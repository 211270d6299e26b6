//! From claims to a user: by naming a claim, or by an expression over all of them; then the rules that both must fulfil.

use std::collections::BTreeMap;
use std::sync::Arc;

use cel::{Activation, Budget, Env, Field, ObjectType, Program, Type};
use serde_json::{Map, Value, json};

use crate::UserInfo;

/// Where an attribute comes from.
#[derive(Debug)]
pub enum Source {
    Claim { name: String, prefix: String },
    Expression(Program),
}

/// A rule with what it says when it is broken.
#[derive(Debug)]
pub struct Rule {
    pub program: Program,
    pub message: String,
}

/// What is made of claims.
#[derive(Debug)]
pub struct Mapping {
    pub username: Source,
    pub groups: Option<Source>,
    pub uid: Option<Source>,
    pub extra: Vec<(String, Program)>,
    pub claim_rules: Vec<Rule>,
    pub user_rules: Vec<Rule>,
}

/// What expressions over claims may refer to.
pub fn claims_env() -> Env {
    Env::new().with("claims", Type::map(Type::String, Type::Dyn))
}

/// What expressions over the finished user may refer to.
pub fn user_env() -> Env {
    Env::new().with("user", user_type())
}

fn user_type() -> Type {
    Type::Object(Arc::new(User))
}

#[derive(Debug)]
struct User;

impl ObjectType for User {
    fn name(&self) -> &str {
        "kubernetes.UserInfo"
    }
    fn field(&self, name: &str) -> Option<Field> {
        let ty = match name {
            "username" | "uid" => Type::String,
            "groups" => Type::list(Type::String),
            "extra" => Type::map(Type::String, Type::list(Type::String)),
            _ => return None,
        };
        Some(Field { json: name.to_owned(), ty })
    }
    fn json_names(&self) -> Vec<String> {
        ["username", "uid", "groups", "extra"].map(str::to_owned).into()
    }
}

type Claims = Map<String, Value>;

impl Mapping {
    /// The user of these claims; the failures are upstream's sentences after `oidc: `.
    pub fn user(&self, claims: &Claims, required: &BTreeMap<String, String>) -> Result<UserInfo, String> {
        // Expressions look at one value that holds all claims.
        let all = Value::Object(claims.clone());
        let username = self.username(claims, &all)?;
        let groups = self.groups(claims, &all)?;
        let mut user = UserInfo { username, groups, uid: self.uid(claims, &all)?, extra: self.extra(claims, &all)? };
        required.iter().try_for_each(|(name, wanted)| require(claims, name, wanted))?;
        hold(&self.claim_rules, "claims", &all, &Type::Dyn)
            .map_err(|why| format!("error evaluating claim validation expression: {why}"))?;
        let seen = json!({"username": user.username, "uid": user.uid, "groups": user.groups, "extra": user.extra});
        hold(&self.user_rules, "user", &seen, &user_type()).map_err(|why| format!("error evaluating user info validation rule: {why}"))?;
        let everybody = "system:authenticated";
        if !user.groups.iter().any(|group| group == everybody) {
            user.groups.push(everybody.into());
        }
        Ok(user)
    }

    fn username(&self, claims: &Claims, all: &Value) -> Result<String, String> {
        let (name, prefix) = match &self.username {
            Source::Claim { name, prefix } => (name, prefix),
            Source::Expression(program) => {
                let failed = |why: String| format!("error evaluating username claim expression: {why}");
                let username = one_string(program, all)
                    .map_err(failed)?
                    .ok_or_else(|| failed("username claim expression must return a string".into()))?;
                return if username.is_empty() { Err("empty username via CEL expression is not allowed".into()) } else { Ok(username) };
            }
        };
        let username = text(claims, name).map_err(|why| format!("parse username claims {name:?}: {why}"))?;
        if name == "email"
            && let Some(verified) = claims.get("email_verified")
        {
            match verified.as_bool() {
                None => return Err("parse 'email_verified' claim: it is no boolean".into()),
                Some(false) => return Err("email not verified".into()),
                Some(true) => {}
            }
        }
        Ok(format!("{prefix}{username}"))
    }

    fn groups(&self, claims: &Claims, all: &Value) -> Result<Vec<String>, String> {
        match &self.groups {
            None => Ok(Vec::new()),
            Some(Source::Expression(program)) => {
                strings(program, all).map_err(|why| format!("error evaluating group claim expression: {why}"))
            }
            Some(Source::Claim { name, prefix }) => {
                let groups = match claims.get(name) {
                    None => return Ok(Vec::new()),
                    Some(Value::String(one)) => vec![one.clone()],
                    Some(Value::Array(list)) => list
                        .iter()
                        .map(|group| group.as_str().map(str::to_owned))
                        .collect::<Option<_>>()
                        .ok_or_else(|| format!("parse groups claim {name:?}: not every group is a string"))?,
                    Some(_) => return Err(format!("parse groups claim {name:?}: neither a string nor a list of strings")),
                };
                Ok(groups.into_iter().map(|group| format!("{prefix}{group}")).collect())
            }
        }
    }

    fn uid(&self, claims: &Claims, all: &Value) -> Result<String, String> {
        match &self.uid {
            None => Ok(String::new()),
            Some(Source::Claim { name, .. }) => text(claims, name).map_err(|why| format!("parse uid claim {name:?}: {why}")),
            Some(Source::Expression(program)) => {
                let failed = |why: String| format!("error evaluating uid claim expression: {why}");
                one_string(program, all).map_err(failed)?.ok_or_else(|| failed("uid claim expression must return a string".into()))
            }
        }
    }

    fn extra(&self, claims: &Claims, all: &Value) -> Result<BTreeMap<String, Vec<String>>, String> {
        let mut extra = BTreeMap::new();
        if let Some(id) = claims.get("jti").and_then(Value::as_str).filter(|id| !id.is_empty()) {
            extra.insert("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("JTI={id}")]);
        }
        for (key, program) in &self.extra {
            let values =
                strings(program, all).map_err(|why| format!("error evaluating extra claim expression: {}: {why}", program.source()))?;
            if !values.is_empty() {
                extra.insert(key.clone(), values);
            }
        }
        Ok(extra)
    }
}

fn text(claims: &Claims, name: &str) -> Result<String, &'static str> {
    claims.get(name).ok_or("claim not present")?.as_str().map(str::to_owned).ok_or("it is no string")
}

fn require(claims: &Claims, name: &str, wanted: &str) -> Result<(), String> {
    let Some(value) = claims.get(name) else { return Err(format!("required claim {name} not present in ID token")) };
    match value.as_str() {
        None => Err(format!("parse claim {name}: it is no string")),
        Some(given) if given != wanted => Err(format!("required claim {name} value does not match. Got = {given}, want = {wanted}")),
        Some(_) => Ok(()),
    }
}

fn evaluate(program: &Program, variable: &str, value: &Value, ty: &Type) -> Result<Value, String> {
    let activation = Activation::new().with(variable, cel::Value::json(value, ty));
    let found = program.evaluate(&activation, &mut Budget::default()).map_err(|error| error.to_string())?;
    found.to_json().ok_or_else(|| "the value has no form outside of expressions".to_owned())
}

/// `None` where the value is no string.
fn one_string(program: &Program, claims: &Value) -> Result<Option<String>, String> {
    Ok(evaluate(program, "claims", claims, &Type::Dyn)?.as_str().map(str::to_owned))
}

/// A string or a list of strings; what is empty is left out.
fn strings(program: &Program, claims: &Value) -> Result<Vec<String>, String> {
    let wrong = || "expression must return a string or a list of strings".to_owned();
    let mut found = match evaluate(program, "claims", claims, &Type::Dyn)? {
        Value::Null => Vec::new(),
        Value::String(one) => vec![one],
        Value::Array(list) => list.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>().ok_or_else(wrong)?,
        _ => return Err(wrong()),
    };
    found.retain(|text| !text.is_empty());
    Ok(found)
}

fn hold(rules: &[Rule], variable: &str, value: &Value, ty: &Type) -> Result<(), String> {
    for rule in rules {
        match evaluate(&rule.program, variable, value, ty)? {
            Value::Bool(true) => {}
            Value::Bool(false) => return Err(format!("validation expression '{}' failed: {}", rule.program.source(), rule.message)),
            _ => return Err("validation expression must return a boolean".into()),
        }
    }
    Ok(())
}
