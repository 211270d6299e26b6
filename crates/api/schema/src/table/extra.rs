//! The few kinds that every group serves and the OpenAPI document does not list.

#![allow(non_upper_case_globals)]

use super::make::*;
use super::types::meta_v1::{DeleteOptions, ListMeta, ObjectMeta, WatchEvent};

static PartialObjectMetadataFields: [Field; 3] = [
    f("apiVersion", Schema::String, 0, 4, "string"),
    f("kind", Schema::String, 0, 4, "string"),
    f("metadata", Schema::Object(Ref::Static(&ObjectMeta)), 1, 0, "v1.ObjectMeta"),
];
/// An object's metadata alone (`as=PartialObjectMetadata`).
pub static PartialObjectMetadata: Type =
    t("io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata", &PartialObjectMetadataFields, false);

static Items: List = List { items: Schema::Object(Ref::Static(&PartialObjectMetadata)), topology: Topology::Atomic };
static PartialObjectMetadataListFields: [Field; 4] = [
    f("apiVersion", Schema::String, 0, 4, "string"),
    f("items", Schema::List(Ref::Static(&Items)), 2, 0, "[]v1.PartialObjectMetadata"),
    f("kind", Schema::String, 0, 4, "string"),
    f("metadata", Schema::Object(Ref::Static(&ListMeta)), 1, 0, "v1.ListMeta"),
];
/// A list of them.
pub static PartialObjectMetadataList: Type =
    t("io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadataList", &PartialObjectMetadataListFields, false);

static AnyItems: List = List { items: Schema::Any, topology: Topology::Atomic };
static ListFields: [Field; 4] = [
    f("apiVersion", Schema::String, 0, 4, "string"),
    f("items", Schema::List(Ref::Static(&AnyItems)), 2, 0, "[]runtime.RawExtension"),
    f("kind", Schema::String, 0, 4, "string"),
    f("metadata", Schema::Object(Ref::Static(&ListMeta)), 1, 0, "v1.ListMeta"),
];
/// `v1.List`: objects of any kinds.
pub static AnyList: Type = t("io.k8s.api.core.v1.List", &ListFields, false);

pub static TYPES: &[&Type] = &[&PartialObjectMetadata, &PartialObjectMetadataList, &AnyList];

/// Kinds found whatever the group is.
pub fn of_kind(group: &str, version: &str, kind: &str) -> Option<&'static Type> {
    match (group, version, kind) {
        ("meta.k8s.io", "v1" | "v1beta1", "PartialObjectMetadata") => Some(&PartialObjectMetadata),
        ("meta.k8s.io", "v1" | "v1beta1", "PartialObjectMetadataList") => Some(&PartialObjectMetadataList),
        ("", "v1", "List") => Some(&AnyList),
        (_, _, "DeleteOptions") => Some(&DeleteOptions),
        (_, _, "WatchEvent") => Some(&WatchEvent),
        _ => None,
    }
}
