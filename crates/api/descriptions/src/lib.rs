//! What `kubectl explain` says: the descriptions of the built-in types and fields.
//!
//! The texts are upstream's, come with k8s-openapi, and are put into the binary at build time, compressed; they are not in this
//! repository. [`Descriptions::load`] inflates them (about a megabyte) for as long as a document is made; nothing is kept.

use std::io::Read;
use std::ops::Range;

static COMPRESSED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.zz"));

/// The inflated texts.
pub struct Descriptions {
    text: String,
    /// Definition, field, description; in order of the first two.
    records: Vec<[Range<usize>; 3]>,
}

impl Descriptions {
    pub fn load() -> Self {
        let mut text = String::new();
        // The build wrote the bytes; were they damaged, there would be no descriptions.
        let _ = flate2::read::ZlibDecoder::new(COMPRESSED).read_to_string(&mut text);
        let records = records(&text);
        Self { text, records }
    }

    /// The description of a definition's field, or of the definition itself where `field` is empty.
    pub fn get(&self, definition: &str, field: &str) -> Option<String> {
        let part = |range: &Range<usize>| self.text.get(range.clone()).unwrap_or_default();
        let at = self.records.binary_search_by(|[left, right, _]| (part(left), part(right)).cmp(&(definition, field)));
        match at.ok().and_then(|at| self.records.get(at)) {
            Some([_, _, text]) => Some(part(text).to_owned()),
            None => of_list(definition, field),
        }
    }
}

fn records(text: &str) -> Vec<[Range<usize>; 3]> {
    let mut start = 0;
    let mut all = Vec::new();
    for record in text.split_terminator('\u{1e}') {
        let end = start + record.len();
        let mut cuts = record.match_indices('\u{1f}').map(|(at, _)| start + at);
        if let (Some(first), Some(second)) = (cuts.next(), cuts.next()) {
            all.push([start..first, first + 1..second, second + 1..end]);
        }
        start = end + 1;
    }
    all
}

/// Lists are one generic type in k8s-openapi; all of them say the same.
fn of_list(definition: &str, field: &str) -> Option<String> {
    let kind = definition.rsplit('.').next()?.strip_suffix("List").filter(|kind| !kind.is_empty())?;
    let text = match field {
        "" => format!("{kind}List is a list of objects of kind {kind}."),
        "items" => format!("The objects of kind {kind}."),
        "metadata" => "The list's metadata.".into(),
        "apiVersion" => "The group and version in which the list is written.".into(),
        "kind" => "The kind of the list.".into(),
        _ => return None,
    };
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_fields_and_references_are_described() {
        let descriptions = Descriptions::load();
        let get = |definition: &str, field: &str| descriptions.get(definition, field).unwrap_or_else(|| panic!("{definition} {field}"));
        assert!(get("io.k8s.api.core.v1.ContainerPort", "").starts_with("ContainerPort represents"));
        assert!(get("io.k8s.api.core.v1.ContainerPort", "hostIP").contains("host IP"));
        assert!(get("io.k8s.api.apps.v1.Deployment", "spec").starts_with("Specification of"));
        assert!(get("io.k8s.api.core.v1.PodList", "items").contains("Pod"));
        assert!(get("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionVersion", "name").contains("name"));
        assert_eq!(descriptions.get("io.k8s.api.core.v1.Nothing", ""), None);
    }

    #[test]
    fn nearly_every_field_of_the_table_is_described() {
        let descriptions = Descriptions::load();
        let (mut all, mut missing) = (0, Vec::new());
        for found in schema::table::all().filter(|found| !found.name.contains("alpha") && !found.name.contains("beta")) {
            for field in found.fields.iter() {
                all += 1;
                if descriptions.get(&found.name, &field.json).is_none() {
                    missing.push(format!("{}.{}", found.name, field.json));
                }
            }
        }
        // Upstream says nothing of some: the fields of JSONSchemaProps, for one.
        assert!(missing.len() * 100 < all * 3, "{} of {all}: {missing:#?}", missing.len());
    }
}
