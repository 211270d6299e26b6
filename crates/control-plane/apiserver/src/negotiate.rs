//! Which form a client wants its answer in, and in which form it sent its body.
//!
//! Source: apiserver `pkg/endpoints/handlers/negotiation`.

use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use meta::Status;

use crate::request::Query;

pub const JSON: &str = "application/json";
pub const YAML: &str = "application/yaml";
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
pub const CBOR: &str = schema::cbor::MEDIA_TYPE;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    Json,
    Yaml,
    Protobuf,
    Cbor,
}

impl Media {
    pub fn content_type(self) -> &'static str {
        match self {
            Media::Json => JSON,
            Media::Yaml => YAML,
            Media::Protobuf => PROTOBUF,
            Media::Cbor => CBOR,
        }
    }
}

/// What is made of the object (`as=`), with the version of `meta.k8s.io` it is asked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Object,
    Table(&'static str),
    PartialMetadata(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    pub media: Media,
    pub view: View,
    pub pretty: bool,
}

impl Format {
    pub const JSON: Format = Format { media: Media::Json, view: View::Object, pretty: false };
}

/// What an endpoint can answer with.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    pub yaml: bool,
    pub protobuf: bool,
    /// Table and PartialObjectMetadata.
    pub views: bool,
}

/// Reads `Accept`: the first acceptable clause in order of quality. 406 where none is.
pub fn accept(headers: &HeaderMap, query: &Query, offer: Offer) -> Result<Format, Status> {
    let pretty = wants_pretty(headers, query);
    let mut given = headers.get_all(ACCEPT).iter();
    // What most programs say needs no list of clauses.
    if let (Some(only), None) = (given.next(), given.next())
        && only == JSON
    {
        return Ok(Format { pretty, ..Format::JSON });
    }
    let header: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let header = header.join(",");
    if header.trim().is_empty() {
        return Ok(Format { pretty, ..Format::JSON });
    }
    let mut clauses: Vec<Clause> = header.split(',').filter_map(Clause::parse).collect();
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    let found = clauses.iter().find_map(|clause| clause.format(offer));
    found.map(|format| Format { pretty, ..format }).ok_or_else(|| {
        let mut accepted = vec![JSON];
        if offer.yaml {
            accepted.push(YAML);
        }
        if offer.protobuf {
            accepted.push(PROTOBUF);
        }
        Status::not_acceptable(&accepted)
    })
}

struct Clause<'a> {
    media: &'a str,
    quality: f32,
    convert: Option<&'a str>,
    group: Option<&'a str>,
    version: Option<&'a str>,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().filter(|media| !media.is_empty())?;
        let mut clause = Clause { media, quality: 1.0, convert: None, group: None, version: None };
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let value = value.trim_matches('"');
            match key {
                "q" => clause.quality = value.parse().unwrap_or(1.0),
                "as" => clause.convert = Some(value),
                "g" => clause.group = Some(value),
                "v" => clause.version = Some(value),
                _ => {}
            }
        }
        (clause.quality > 0.0).then_some(clause)
    }

    fn wants_metadata(&self) -> bool {
        matches!(self.convert, Some("PartialObjectMetadata" | "PartialObjectMetadataList"))
    }

    fn format(&self, offer: Offer) -> Option<Format> {
        let media = match self.media.to_ascii_lowercase().as_str() {
            "*/*" | "application/*" | JSON => Media::Json,
            YAML | "text/yaml" | "application/x-yaml" if offer.yaml => Media::Yaml,
            CBOR => Media::Cbor,
            // A Table has no protobuf form: the next clause is taken.
            // Metadata alone has a protobuf form for every kind.
            PROTOBUF if self.convert != Some("Table") && (offer.protobuf || self.wants_metadata()) => Media::Protobuf,
            _ => return None,
        };
        let version = match self.version {
            Some("v1") => "v1",
            Some("v1beta1") => "v1beta1",
            _ => "",
        };
        let view = match self.convert {
            None | Some("") => View::Object,
            Some(_) if !offer.views || version.is_empty() || self.group != Some("meta.k8s.io") => return None,
            Some("Table") => View::Table(version),
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") => View::PartialMetadata(version),
            Some(_) => return None,
        };
        Some(Format { media, view, pretty: false })
    }
}

/// As upstream: people's clients get indented JSON unless they say otherwise.
fn wants_pretty(headers: &HeaderMap, query: &Query) -> bool {
    if query.get("pretty").is_some() {
        return query.flag("pretty");
    }
    let agent = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    ["curl", "Wget", "Mozilla/5.0"].iter().any(|prefix| agent.starts_with(prefix))
}

/// The media type of a body without its parameters, lower case; JSON where the client says nothing.
pub fn content_type(headers: &HeaderMap) -> String {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media = given.split(';').next().unwrap_or_default().trim();
    if media.is_empty() { JSON.to_owned() } else { media.to_ascii_lowercase() }
}

/// The media type of an object in a body. 415 for what is not served. CBOR is taken without being advertised: upstream's default sentence
/// does not name it.
pub fn body_media(headers: &HeaderMap, protobuf: bool) -> Result<Media, Status> {
    match content_type(headers).as_str() {
        JSON => Ok(Media::Json),
        YAML | "text/yaml" | "application/x-yaml" => Ok(Media::Yaml),
        PROTOBUF if protobuf => Ok(Media::Protobuf),
        CBOR => Ok(Media::Cbor),
        other => {
            let mut accepted = vec![JSON, YAML];
            if protobuf {
                accepted.push(PROTOBUF);
            }
            Err(Status::unsupported_media_type(other, &accepted))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offer = Offer { yaml: true, protobuf: true, views: true };

    fn ask(header: &str, offer: Offer) -> Option<(Media, View)> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, header.parse().unwrap());
        accept(&headers, &Query::default(), offer).ok().map(|format| (format.media, format.view))
    }

    #[test]
    fn the_first_acceptable_clause_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let pb = "application/vnd.kubernetes.protobuf,application/json";
        let none = Offer { yaml: false, protobuf: false, views: false };
        let cases = [
            (table, ALL, Some((Media::Json, View::Table("v1")))),
            (table, none, Some((Media::Json, View::Object))),
            (pb, ALL, Some((Media::Protobuf, View::Object))),
            (pb, none, Some((Media::Json, View::Object))),
            ("application/json;q=0.5, application/yaml", ALL, Some((Media::Yaml, View::Object))),
            ("*/*", none, Some((Media::Json, View::Object))),
            ("text/html", ALL, None),
            ("application/vnd.kubernetes.protobuf", none, None),
            ("application/cbor,application/json", none, Some((Media::Cbor, View::Object))),
            ("application/vnd.kubernetes.protobuf;stream=watch", ALL, Some((Media::Protobuf, View::Object))),
            ("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", ALL, None),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
                ALL,
                Some((Media::Protobuf, View::PartialMetadata("v1"))),
            ),
            ("application/json;as=Table;v=v9;g=meta.k8s.io", ALL, None),
        ];
        for (header, offer, wanted) in cases {
            assert_eq!(ask(header, offer), wanted, "{header}");
        }
    }
}
