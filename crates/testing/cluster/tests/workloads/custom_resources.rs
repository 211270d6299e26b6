//! CustomResourceDefinitions as kubectl's users meet them.

use cluster::Namespace;

/// Group and plural are the namespace's own: definitions are for the whole cluster.
fn definition(group: &str) -> String {
    format!(
        r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: gears.{group}}}
spec:
  group: {group}
  scope: Namespaced
  names: {{plural: gears, kind: Gear, shortNames: [gr]}}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {{status: {{}}}}
    additionalPrinterColumns: [{{name: Teeth, type: integer, jsonPath: .spec.teeth}}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            description: What the gear is like.
            required: [teeth]
            x-kubernetes-validations: [{{rule: "self.teeth % 2 == 0", message: teeth come in pairs}}]
            properties:
              teeth: {{type: integer, minimum: 2, description: How many teeth there are.}}
              material: {{type: string, default: steel}}
"#
    )
}

struct Definition<'n> {
    ns: &'n Namespace,
    name: String,
}

impl Drop for Definition<'_> {
    fn drop(&mut self) {
        self.ns.kubectl(&["delete", "crd", &self.name, "--ignore-not-found", "--timeout=30s"]);
    }
}

#[test]
fn a_definition_is_usable_as_soon_as_it_is_established() {
    let ns = Namespace::new("crd");
    let group = format!("{}.example.com", ns.name);
    let defined = Definition { ns: &ns, name: format!("gears.{group}") };
    ns.apply(&definition(&group));
    ns.kubectl(&["wait", "--for=condition=Established", &format!("crd/{}", defined.name), "--timeout=20s"]).ok();
    let gear = |teeth: &str| format!("apiVersion: {group}/v1\nkind: Gear\nmetadata: {{name: big}}\nspec: {{teeth: {teeth}}}\n");

    let explained = ns.kubectl(&["explain", &format!("gears.{group}.spec.teeth"), &format!("--api-version={group}/v1")]);
    let explained = if explained.succeeded() { explained } else { ns.kubectl(&["explain", "gears.spec.teeth"]) }.ok();
    assert!(explained.contains("How many teeth there are."), "{explained}");

    ns.apply(&gear("12"));
    let table = ns.kubectl(&["get", "gr"]).ok();
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows, [["NAME", "TEETH"], ["big", "12"]], "{table}");
    assert_eq!(ns.value("gear/big", "{.spec.material}"), "steel");

    let applied = ns.kubectl_with(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &gear("14")).ok();
    assert!(applied.contains("serverside-applied"), "{applied}");
    let odd = ns.kubectl_with(&["apply", "-f", "-"], &gear("13")).fails();
    assert!(odd.contains("The Gear \"big\" is invalid: spec: Invalid value: teeth come in pairs"), "{odd}");
    let wrong = ns.kubectl_with(&["apply", "--validate=false", "-f", "-"], &gear("many")).fails();
    assert!(wrong.contains("spec.teeth in body must be of type integer: \"string\""), "{wrong}");

    let mut edit = ns.command(&["edit", "gear", "big"]);
    // The whole words: a bare 14 may stand in the uid, too, which an edit must not change.
    edit.env("KUBE_EDITOR", "sed -i 's/teeth: 14/teeth: 16/'");
    cluster::run(&mut edit, "").ok();
    assert_eq!(ns.value("gear/big", "{.spec.teeth}"), "16");

    ns.kubectl(&["delete", "crd", &defined.name, "--timeout=30s"]).ok();
    ns.kubectl(&["get", "gears"]).fails();
    let left = ns.kubectl(&["api-resources", "--api-group", &group, "--no-headers"]).ok();
    assert_eq!(left.trim(), "");
}
