//! Committed tables made from published data: one file per table, one list.

use std::path::Path;

mod cri;
mod schema;

/// A table: its name on the command line and the function that rewrites it.
type Table = (&'static str, fn(&Path) -> anyhow::Result<()>);

/// Every table, in the order in which they are written.
pub fn all() -> &'static [Table] {
    &[("cri", cri::write), ("schema", schema::write)]
}

/// Rewrites all tables, or the one named `only`, from the data in `spec`.
pub fn run(spec: &Path, only: Option<&str>) -> anyhow::Result<()> {
    for (name, write) in all() {
        if only.is_none_or(|wanted| wanted == *name) {
            write(spec)?;
            println!("wrote {name}");
        }
    }
    Ok(())
}
