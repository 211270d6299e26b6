//! Where a walk stands, as a list on the stack: it costs nothing until an error needs words.

use std::fmt::Write;

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    /// A struct's field, or a map's key (Go's field names leave keys out).
    Field(&'a str),
    Key(&'a str),
    Index(usize),
}

#[derive(Clone, Copy)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

impl<'a> Path<'a> {
    pub const ROOT: Path<'static> = Path { parent: None, step: Step::Root };

    pub fn field(&'a self, name: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Field(name) }
    }
    pub fn key(&'a self, name: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Key(name) }
    }
    pub fn index(&'a self, at: usize) -> Path<'a> {
        Path { parent: Some(self), step: Step::Index(at) }
    }

    fn steps(&self) -> Vec<Step<'a>> {
        let mut steps = Vec::new();
        let mut place = Some(self);
        while let Some(path) = place {
            steps.push(path.step);
            place = path.parent;
        }
        steps.reverse();
        steps
    }

    /// `spec.containers[0].env`, as strict decoding reports it.
    pub fn full(&self) -> String {
        let mut text = String::new();
        for step in self.steps() {
            match step {
                Step::Root => {}
                Step::Field(name) | Step::Key(name) => {
                    let joint = if text.is_empty() { "" } else { "." };
                    let _ = write!(text, "{joint}{name}");
                }
                Step::Index(at) => {
                    let _ = write!(text, "[{at}]");
                }
            }
        }
        text
    }

    /// `spec.containers.env`, as Go's type errors name fields.
    pub fn go(&self) -> String {
        let names = self.steps().into_iter().filter_map(|step| match step {
            Step::Field(name) => Some(name),
            _ => None,
        });
        names.collect::<Vec<_>>().join(".")
    }
}
