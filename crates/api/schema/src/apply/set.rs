//! A set of field paths as a sorted trie: every operation is one merge-walk over two sorted lists.

use super::element::Element;

/// A set of paths.
///
/// Invariants: entries are strictly ascending by element; an entry is a member or has children.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set<'a> {
    entries: Vec<Entry<'a>>,
}

/// A path element below a prefix: whether the path that ends here is in the set, and the paths that go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    pub element: Element<'a>,
    pub member: bool,
    pub children: Set<'a>,
}

impl Entry<'_> {
    fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }
}

impl<'a> Set<'a> {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn entries(&self) -> &[Entry<'a>] {
        &self.entries
    }

    /// Adds what stands at `element`; cheap when elements come in order.
    pub fn push(&mut self, element: Element<'a>, member: bool, children: Set<'a>) {
        if !member && children.is_empty() {
            return;
        }
        let entry = Entry { element, member, children };
        if self.entries.last().is_none_or(|last| last.element < entry.element) {
            self.entries.push(entry);
            return;
        }
        match self.find(&entry.element) {
            Ok(at) => {
                let found = &mut self.entries[at];
                found.member |= member;
                found.children = std::mem::take(&mut found.children).union(entry.children);
            }
            Err(at) => self.entries.insert(at, entry),
        }
    }

    /// Adds one path. The empty path names the whole object, which nobody can own.
    pub fn insert(&mut self, path: &[Element<'a>]) {
        if let Some((first, rest)) = path.split_first() {
            let mut children = Set::new();
            children.insert(rest);
            self.push(first.clone(), rest.is_empty(), children);
        }
    }

    /// The set of these paths of plain fields, such as `metadata.name`.
    pub fn of_fields(paths: &[&'a str]) -> Self {
        let mut set = Set::new();
        for path in paths {
            let path: Vec<Element<'a>> = path.split('.').filter(|name| !name.is_empty()).map(Element::field).collect();
            set.insert(&path);
        }
        set
    }

    fn find(&self, element: &Element<'_>) -> Result<usize, usize> {
        self.entries.binary_search_by(|entry| entry.element.cmp(element))
    }

    pub fn get(&self, element: &Element<'_>) -> Option<&Entry<'a>> {
        self.find(element).ok().and_then(|at| self.entries.get(at))
    }

    pub fn has(&self, path: &[Element<'_>]) -> bool {
        let Some((first, rest)) = path.split_first() else { return false };
        self.get(first).is_some_and(|entry| if rest.is_empty() { entry.member } else { entry.children.has(rest) })
    }

    /// Calls `visit` with every entry, so that it can change it; drops entries that become empty.
    pub(super) fn retain(&mut self, mut visit: impl FnMut(&mut Entry<'a>)) {
        self.entries.retain_mut(|entry| {
            visit(entry);
            !entry.is_empty()
        });
    }

    pub fn union(self, other: Set<'a>) -> Set<'a> {
        if self.is_empty() {
            return other;
        }
        if other.is_empty() {
            return self;
        }
        let mut entries = Vec::with_capacity(self.entries.len().max(other.entries.len()));
        let mut right = other.entries.into_iter().peekable();
        for mut left in self.entries {
            while let Some(entry) = right.next_if(|entry| entry.element < left.element) {
                entries.push(entry);
            }
            if let Some(same) = right.next_if(|entry| entry.element == left.element) {
                left.member |= same.member;
                left.children = left.children.union(same.children);
            }
            entries.push(left);
        }
        entries.extend(right);
        Set { entries }
    }

    /// Walks beside `other`; `change` is called with every entry that both have.
    fn beside(self, other: &Set<'_>, change: impl Fn(&mut Entry<'a>, &Entry<'_>)) -> Set<'a> {
        let mut theirs = other.entries.iter().peekable();
        let entries = self.entries.into_iter().filter_map(|mut entry| {
            while theirs.next_if(|their| their.element < entry.element).is_some() {}
            if let Some(their) = theirs.next_if(|their| their.element == entry.element) {
                change(&mut entry, their);
            }
            (!entry.is_empty()).then_some(entry)
        });
        Set { entries: entries.collect() }
    }

    /// The paths that are in `self` and not in `other`. A path in `other` takes away itself only, not what is below.
    pub fn difference(self, other: &Set<'_>) -> Set<'a> {
        if self.is_empty() || other.is_empty() {
            return self;
        }
        let both = |entry: &mut Entry<'a>, their: &Entry<'_>| {
            entry.member &= !their.member;
            entry.children = std::mem::take(&mut entry.children).difference(&their.children);
        };
        self.beside(other, both)
    }

    /// Is every path of `self` in `other`?
    pub fn is_subset(&self, other: &Set<'_>) -> bool {
        let mut theirs = other.entries.iter();
        self.entries.iter().all(|entry| {
            let their = theirs.find(|their| their.element >= entry.element).filter(|their| their.element == entry.element);
            their.is_some_and(|their| their.member >= entry.member && entry.children.is_subset(&their.children))
        })
    }

    /// As [`Set::difference`], but a path in `other` takes away everything below it too.
    pub fn recursive_difference(self, other: &Set<'_>) -> Set<'a> {
        if self.is_empty() || other.is_empty() {
            return self;
        }
        let both = |entry: &mut Entry<'a>, their: &Entry<'_>| {
            let children = std::mem::take(&mut entry.children);
            if their.member {
                entry.member = false;
            } else {
                entry.children = children.recursive_difference(&their.children);
            }
        };
        self.beside(other, both)
    }

    pub fn intersection(&self, other: &Set<'_>) -> Set<'a> {
        let mut common = Set::new();
        let mut theirs = other.entries.iter().peekable();
        for entry in &self.entries {
            while theirs.next_if(|their| their.element < entry.element).is_some() {}
            if let Some(their) = theirs.next_if(|their| their.element == entry.element) {
                let children = entry.children.intersection(&their.children);
                common.push(entry.element.clone(), entry.member && their.member, children);
            }
        }
        common
    }

    /// Calls `visit` with every path: at each level its own members first, then what is below.
    pub fn for_each_path(&self, visit: &mut dyn FnMut(&[Element<'a>])) {
        self.walk(&mut Vec::new(), visit);
    }

    fn walk(&self, prefix: &mut Vec<Element<'a>>, visit: &mut dyn FnMut(&[Element<'a>])) {
        for entry in self.entries.iter().filter(|entry| entry.member) {
            prefix.push(entry.element.clone());
            visit(prefix);
            prefix.pop();
        }
        for entry in self.entries.iter().filter(|entry| !entry.children.is_empty()) {
            prefix.push(entry.element.clone());
            entry.children.walk(prefix, visit);
            prefix.pop();
        }
    }
}

/// A path as upstream prints it: `.spec.containers[name="a"].image`.
pub fn path_text(path: &[Element<'_>]) -> String {
    path.iter().map(ToString::to_string).collect()
}
