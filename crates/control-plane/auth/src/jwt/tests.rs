use serde_json::{Value, json};

use super::configuration::Configuration;
use jsonwebtoken::Algorithm;

use super::*;

/// An issuer with an EC key.
struct Issuer {
    key: jsonwebtoken::EncodingKey,
    keys: Keys,
}

fn issuer() -> Issuer {
    let pair = rcgen::KeyPair::generate().unwrap();
    let key = jsonwebtoken::EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
    let ours = crate::tokens::Issuer::new(&pair.serialize_pem(), "https://other").unwrap();
    let mut set = ours.key_set();
    set["keys"][0]["kid"] = "one".into();
    Issuer { key, keys: Keys::parse(&set).unwrap() }
}

impl Issuer {
    fn sign(&self, claims: &Value) -> String {
        let mut header = jsonwebtoken::Header::new(Algorithm::ES256);
        header.kid = Some("one".into());
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }
}

fn user(provider: &Provider, token: &str, keys: &Keys, now: i64) -> Result<crate::UserInfo, Error> {
    provider.user(&provider.claims(token, keys, now)?)
}

fn file(jwt: Value) -> Value {
    json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": [jwt]})
}

fn with(mappings: Value, claim_rules: Value, user_rules: Value) -> Value {
    file(json!({
        "issuer": {"url": "https://issuer.example", "audiences": ["us"]},
        "claimMappings": mappings, "claimValidationRules": claim_rules, "userValidationRules": user_rules,
    }))
}

#[test]
fn a_token_becomes_the_user_that_the_mappings_make_of_it() {
    let issuer = issuer();
    let by_claim = || json!({"username": {"claim": "sub", "prefix": "ex:"}, "groups": {"claim": "roles", "prefix": "ex:"}});
    let by_expression = || {
        json!({
            "username": {"expression": "claims.sub + '@' + claims.tenant"},
            "groups": {"expression": "claims.roles.filter(r, r.startsWith('a'))"},
            "uid": {"expression": "string(claims.number)"},
            "extra": [{"key": "example.com/tenant", "valueExpression": "claims.tenant"}, {"key": "example.com/no", "valueExpression": "''"}],
        })
    };
    let base = json!({"iss": "https://issuer.example", "aud": ["us", "them"], "exp": 2_000, "sub": "ann", "tenant": "t", "roles": ["admin", "dev"],
        "number": 7, "email": "ann@example.com"});
    let plus = |more: Value| {
        let mut claims = base.clone();
        more.as_object().unwrap().iter().for_each(|(key, value)| claims[key] = value.clone());
        claims
    };
    let none = || json!([]);
    // configuration, claims, the user's name and groups or the failure
    let cases = [
        (with(by_claim(), none(), none()), base.clone(), Ok(("ex:ann", "ex:admin,ex:dev"))),
        (with(by_claim(), none(), none()), plus(json!({"roles": "ops"})), Ok(("ex:ann", "ex:ops"))),
        (with(by_expression(), none(), none()), base.clone(), Ok(("ann@t", "admin"))),
        (with(by_claim(), none(), none()), plus(json!({"exp": 999})), Err("oidc: token is expired")),
        (with(by_claim(), none(), none()), plus(json!({"nbf": 1_301})), Err("before the nbf (not before) time")),
        (with(by_claim(), none(), none()), plus(json!({"aud": "them"})), Err("expected audience in [\"us\"] got [\"them\"]")),
        (with(by_claim(), none(), none()), plus(json!({"iss": "https://else"})), Err("issued by a different provider")),
        (with(by_claim(), none(), none()), plus(json!({"sub": 7})), Err("oidc: parse username claims \"sub\": it is no string")),
        (with(by_claim(), none(), none()), plus(json!({"roles": [1]})), Err("oidc: parse groups claim \"roles\"")),
        (
            with(json!({"username": {"claim": "email", "prefix": ""}}), none(), none()),
            plus(json!({"email_verified": false})),
            Err("oidc: email not verified"),
        ),
        (with(json!({"username": {"claim": "email", "prefix": ""}}), none(), none()), base.clone(), Ok(("ann@example.com", ""))),
        (
            with(by_claim(), json!([{"claim": "tenant", "requiredValue": "x"}]), none()),
            base.clone(),
            Err("oidc: required claim tenant value does not match. Got = t, want = x"),
        ),
        (
            with(by_claim(), json!([{"claim": "absent", "requiredValue": "x"}]), none()),
            base.clone(),
            Err("oidc: required claim absent not present in ID token"),
        ),
        (
            with(by_claim(), json!([{"expression": "claims.number > 8", "message": "too small"}]), none()),
            base.clone(),
            Err("oidc: error evaluating claim validation expression: validation expression 'claims.number > 8' failed: too small"),
        ),
        (
            with(by_claim(), none(), json!([{"expression": "!user.username.startsWith('ex:')", "message": "no prefix"}])),
            base.clone(),
            Err(
                "oidc: error evaluating user info validation rule: validation expression '!user.username.startsWith('ex:')' failed: no prefix",
            ),
        ),
        (
            with(json!({"username": {"expression": "claims.absent"}}), none(), none()),
            base.clone(),
            Err("oidc: error evaluating username claim expression: no such key: absent"),
        ),
        (
            with(json!({"username": {"expression": "''"}}), none(), none()),
            base.clone(),
            Err("oidc: empty username via CEL expression is not allowed"),
        ),
    ];
    for (file, claims, expected) in cases {
        let provider = Configuration::parse(&file, &[]).unwrap().providers.remove(0);
        let user = user(&provider, &issuer.sign(&claims), &issuer.keys, 1_000).map_err(|error| error.to_string());
        match expected {
            Ok((name, groups)) => {
                let user = user.unwrap();
                let groups: Vec<&str> = groups.split(',').filter(|group| !group.is_empty()).chain(["system:authenticated"]).collect();
                assert_eq!(
                    (user.username.as_str(), user.groups.iter().map(String::as_str).collect::<Vec<_>>()),
                    (name, groups),
                    "{claims}"
                );
            }
            Err(words) => assert!(user.as_ref().is_err_and(|why| why.contains(words)), "{user:?}, not {words}"),
        }
    }
    let provider = Configuration::parse(&with(by_expression(), none(), none()), &[]).unwrap().providers.remove(0);
    let user = user(&provider, &issuer.sign(&plus(json!({"jti": "j"}))), &issuer.keys, 1_000).unwrap();
    assert_eq!(user.uid, "7");
    assert_eq!(json!(user.extra), json!({"example.com/tenant": ["t"], "authentication.kubernetes.io/credential-id": ["JTI=j"]}));
}

/// A P-521 key: its JWK, and what signs with it.
fn p521() -> (Value, impl Fn(&Value) -> String) {
    use aws_lc_rs::encoding::{AsBigEndian, EcPublicKeyUncompressedBin};
    use aws_lc_rs::signature::{ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
    use base64::Engine;
    let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let pair = EcdsaKeyPair::generate(&ECDSA_P521_SHA512_FIXED_SIGNING).unwrap();
    let point: EcPublicKeyUncompressedBin<'_> = pair.public_key().as_be_bytes().unwrap();
    let (x, y) = point.as_ref()[1..].split_at(66);
    // As some issuers have it: without leading zeros.
    let x = &x[x.iter().position(|byte| *byte != 0).unwrap()..];
    let jwk = json!({"kty": "EC", "crv": "P-521", "kid": "wide", "alg": "ES512", "use": "sig", "x": encode(x), "y": encode(y)});
    let sign = move |claims: &Value| {
        let signed = format!("{}.{}", encode(br#"{"alg":"ES512","kid":"wide"}"#), encode(claims.to_string().as_bytes()));
        let signature = pair.sign(&aws_lc_rs::rand::SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", encode(signature.as_ref()))
    };
    (jwk, sign)
}

#[test]
fn es512_is_an_algorithm_as_good_as_others() {
    let ((jwk, sign), (_, other)) = (p521(), p521());
    let keys = Keys::parse(&json!({"keys": [jwk]})).unwrap();
    let claims = json!({"iss": "https://issuer.example", "sub": "ann"});
    assert_eq!(json!(keys.verify(&sign(&claims), &ALGORITHMS).unwrap()), claims);
    assert!(matches!(keys.verify(&other(&claims), &ALGORITHMS), Err(Error::UnknownKey)));
    assert!(matches!(keys.verify(&sign(&claims), &["ES256"]), Err(Error::Algorithm { .. })));
    // Another's claims under this signature.
    let (token, changed) = (sign(&claims), sign(&json!({"sub": "joe"})));
    let parts: Vec<&str> = token.split('.').collect();
    let forged = format!("{}.{}.{}", parts[0], changed.split('.').nth(1).unwrap(), parts[2]);
    assert!(matches!(keys.verify(&forged, &ALGORITHMS), Err(Error::UnknownKey)));
}

#[test]
fn a_signature_of_another_key_or_of_none_is_no_signature() {
    let (ours, theirs) = (issuer(), issuer());
    let token = theirs.sign(&json!({"iss": "https://issuer.example"}));
    assert!(matches!(ours.keys.verify(&token, &ALGORITHMS), Err(Error::UnknownKey)));
    assert!(matches!(theirs.keys.verify(&token, &["RS256"]), Err(Error::Algorithm { .. })));
    assert!(matches!(ours.keys.verify("a.b.c", &ALGORITHMS), Err(Error::Malformed(_))));
    // {"alg":"none"}
    let unsigned = format!("eyJhbGciOiJub25lIn0.{}.", token.split('.').nth(1).unwrap());
    assert!(matches!(theirs.keys.verify(&unsigned, &ALGORITHMS), Err(Error::Malformed(_))));
    assert_eq!(unverified_issuer(&token).as_deref(), Some("https://issuer.example"));
}

#[test]
fn what_is_wrong_in_the_file_is_named() {
    let good = || json!({"username": {"claim": "sub", "prefix": ""}});
    let issuer = |issuer: Value| file(json!({"issuer": issuer, "claimMappings": good()}));
    let cases = [
        (
            issuer(json!({"url": "http://a", "audiences": ["x"]})),
            "jwt[0].issuer.url: Invalid value: \"http://a\": URL scheme must be https",
        ),
        (issuer(json!({"url": "https://a?b=c", "audiences": ["x"]})), "URL must not contain a query"),
        (issuer(json!({"url": "https://a#b", "audiences": ["x"]})), "URL must not contain a fragment"),
        (issuer(json!({"url": "https://u@a", "audiences": ["x"]})), "URL must not contain a username or password"),
        (issuer(json!({"url": "https://own", "audiences": ["x"]})), "URL must not overlap with disallowed issuers: [https://own]"),
        (issuer(json!({"audiences": ["x"]})), "jwt[0].issuer.url: Required value"),
        (issuer(json!({"url": "https://a"})), "jwt[0].issuer.audiences: Required value: at least one jwt[0].issuer.audiences is required"),
        (issuer(json!({"url": "https://a", "audiences": ["x", "y"]})), "audienceMatchPolicy must be MatchAny for multiple audiences"),
        (
            issuer(json!({"url": "https://a", "audiences": ["x"], "discoveryURL": "https://a/"})),
            "jwt[0].issuer.discoveryURL: Invalid value: \"https://a/\": discoveryURL must be different from URL",
        ),
        (
            issuer(json!({"url": "https://a", "audiences": ["x"], "certificateAuthority": "nonsense"})),
            "jwt[0].issuer.certificateAuthority: Invalid value: \"<omitted>\"",
        ),
        (with(json!({}), json!([]), json!([])), "jwt[0].claimMappings.username: Required value: claim or expression is required"),
        (with(json!({"username": {"claim": "sub"}}), json!([]), json!([])), "prefix is required when claim is set"),
        (
            with(json!({"username": {"expression": "claims.email"}}), json!([]), json!([])),
            "claims.email_verified must be used in claimMappings.username.expression",
        ),
        (
            with(json!({"username": {"expression": "claims.+"}}), json!([]), json!([])),
            "jwt[0].claimMappings.username.expression: Invalid value: \"claims.+\": compilation failed: ERROR:",
        ),
        (with(good(), json!([{"expression": "claims.sub"}]), json!([])), "must evaluate to bool"),
        (with(good(), json!([{}]), json!([])), "jwt[0].claimValidationRules[0]: Required value: claim or expression is required"),
        (with(good(), json!([]), json!([{"expression": "user.nobody == ''"}])), "undefined field 'nobody'"),
        (
            with(
                json!({"username": {"claim": "sub", "prefix": ""}, "extra": [{"key": "a.k8s.io/b", "valueExpression": "''"}]}),
                json!([]),
                json!([]),
            ),
            "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use",
        ),
        (json!({"apiVersion": "v1", "kind": "Pod"}), "expected kind AuthenticationConfiguration"),
        (json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwts": []}), "unknown field `jwts`"),
        (
            json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
                "anonymous": {"enabled": false, "conditions": [{"path": "/livez"}]}}),
            "enabled should be set to true when conditions are defined",
        ),
    ];
    for (file, words) in cases {
        let why = Configuration::parse(&file, &["https://own"]).unwrap_err();
        assert!(why.contains(words), "{why}");
    }
}

#[test]
fn strangers_are_let_in_where_the_file_says() {
    let allows = |anonymous: Value, path: &str| {
        let file = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "anonymous": anonymous});
        Configuration::parse(&file, &[]).unwrap().anonymous.unwrap().allows(path)
    };
    let livez = || json!({"enabled": true, "conditions": [{"path": "/livez"}]});
    assert_eq!([allows(livez(), "/livez"), allows(livez(), "/livez/ping"), allows(livez(), "/version")], [true, false, false]);
    assert_eq!([allows(json!({"enabled": true}), "/x"), allows(json!({"enabled": false}), "/livez")], [true, false]);
}
