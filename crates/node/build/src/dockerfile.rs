//! A Dockerfile, parsed: stages of instructions.
//!
//! What is not supported is an error with its line: `ADD` from the network, `RUN --mount`, `ONBUILD`. `HEALTHCHECK` is noted and
//! left out, as OCI images have none.

use crate::words;

/// More lines than any real one has.
const BYTES_MAX: usize = 4 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    /// `ARG`s before the first `FROM`.
    pub arguments: Vec<(String, Option<String>)>,
    pub stages: Vec<Stage>,
    /// The escape character: a backslash, unless a directive says otherwise.
    pub escape: char,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Unexpanded.
    pub from: String,
    pub name: Option<String>,
    pub line: usize,
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub line: usize,
    /// As it was written, for people and for the history.
    pub text: String,
    pub instruction: Instruction,
}

/// Words are unexpanded where variables may stand in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction {
    Run(Command),
    Copy(Copy),
    Env(Vec<(String, String)>),
    Arg(String, Option<String>),
    Label(Vec<(String, String)>),
    Workdir(String),
    User(String),
    Cmd(Command),
    Entrypoint(Command),
    Expose(String),
    Volume(Vec<String>),
    Shell(Vec<String>),
    StopSignal(String),
    Maintainer(String),
    /// Nothing comes of it; a warning says so.
    Healthcheck,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Shell(String),
    Exec(Vec<String>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    pub from: Option<String>,
    pub owner: Option<String>,
    pub mode: Option<String>,
    pub sources: Vec<String>,
    /// Files that stand in the Dockerfile itself: name, content.
    pub inline: Vec<(String, String)>,
    pub to: String,
    /// `ADD`: local archives are unpacked.
    pub unpacks: bool,
}

/// An instruction's lines as one, and the documents that follow it.
struct Logical {
    line: usize,
    text: String,
    documents: Vec<Document>,
}

struct Document {
    name: String,
    content: String,
}

pub fn parse(text: &str) -> Result<Dockerfile, String> {
    if text.len() > BYTES_MAX {
        return Err(format!("the Dockerfile has {} bytes", text.len()));
    }
    let escape = directive(text);
    let mut file = Dockerfile { arguments: Vec::new(), stages: Vec::new(), escape };
    for logical in lines(text, escape)? {
        let line = logical.line;
        take(&mut file, logical).map_err(|error| format!("line {line}: {error}"))?;
    }
    if file.stages.is_empty() { Err("no FROM in the Dockerfile".into()) } else { Ok(file) }
}

/// `# escape=` among the first lines.
fn directive(text: &str) -> char {
    let directives = text.lines().map_while(|line| line.trim().strip_prefix('#')?.split_once('='));
    let escape = directives.filter(|(key, _)| key.trim().eq_ignore_ascii_case("escape")).find_map(|(_, value)| value.trim().chars().next());
    escape.filter(|c| *c == '`').unwrap_or('\\')
}

/// Joins continued lines, drops comments, takes what belongs to `<<NAME`.
fn lines(text: &str, escape: char) -> Result<Vec<Logical>, String> {
    let all: Vec<&str> = text.lines().collect();
    let mut found: Vec<Logical> = Vec::new();
    let mut at = 0;
    while let Some(first) = all.get(at) {
        let line = at + 1;
        at += 1;
        if first.trim().is_empty() || first.trim_start().starts_with('#') {
            continue;
        }
        let (mut whole, mut part) = (String::new(), *first);
        while let Some(rest) = part.trim_end().strip_suffix(escape) {
            whole.push_str(rest);
            // Comments and empty lines may stand between.
            while all.get(at).is_some_and(|next| next.trim().is_empty() || next.trim_start().starts_with('#')) {
                at += 1;
            }
            part = all.get(at).copied().unwrap_or_default();
            at += 1;
        }
        whole.push_str(part);
        let mut logical = Logical { line, text: whole.trim().to_owned(), documents: Vec::new() };
        for (name, strips) in heredocs(&logical.text) {
            let mut content = String::new();
            loop {
                let next = all.get(at).ok_or_else(|| format!("line {line}: no line {name:?} ends the document"))?;
                at += 1;
                let next = if strips { next.trim_start_matches('\t') } else { next };
                if *next == *name {
                    break;
                }
                content.push_str(next);
                content.push('\n');
            }
            logical.documents.push(Document { name, content });
        }
        found.push(logical);
    }
    Ok(found)
}

/// Names after `<<` of RUN, COPY and ADD, and whether tabs are stripped (`<<-`).
fn heredocs(text: &str) -> Vec<(String, bool)> {
    let word = text.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    if !matches!(word.as_str(), "RUN" | "COPY" | "ADD") {
        return Vec::new();
    }
    let marks = text.split_whitespace().filter_map(|word| word.strip_prefix("<<"));
    let marks = marks.map(|mark| mark.strip_prefix('-').map_or((mark, false), |rest| (rest, true)));
    let named = marks.map(|(name, strips)| (name.trim_matches(['"', '\'']).to_owned(), strips));
    named.filter(|(name, _)| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')).collect()
}

fn take(file: &mut Dockerfile, logical: Logical) -> Result<(), String> {
    let (word, rest) = logical.text.split_once(char::is_whitespace).unwrap_or((&logical.text, ""));
    let (word, rest) = (word.to_ascii_uppercase(), rest.trim());
    if word == "FROM" {
        file.stages.push(stage(rest, logical.line)?);
        return Ok(());
    }
    let Some(last) = file.stages.last_mut() else {
        if word != "ARG" {
            return Err(format!("{word} before the first FROM"));
        }
        file.arguments.extend(arguments(rest, file.escape)?);
        return Ok(());
    };
    let text = std::iter::once(logical.text.clone()).chain(logical.documents.iter().map(|d| format!("{}{}", d.content, d.name)));
    let text = text.collect::<Vec<_>>().join("\n");
    for instruction in instructions(&word, rest, &logical, file.escape)? {
        last.steps.push(Step { line: logical.line, text: text.clone(), instruction });
    }
    Ok(())
}

fn stage(rest: &str, line: usize) -> Result<Stage, String> {
    let mut words: Vec<&str> = rest.split_whitespace().collect();
    if let Some(flag) = words.first().filter(|word| word.starts_with("--")) {
        if !flag.starts_with("--platform=") {
            return Err(format!("FROM {flag}: no such flag"));
        }
        // One platform is built, this machine's; a base for another one fails with its reason when it is pulled.
        words.remove(0);
    }
    match words.as_slice() {
        [from] => Ok(Stage { from: (*from).to_owned(), name: None, line, steps: Vec::new() }),
        [from, by, name] if by.eq_ignore_ascii_case("as") => {
            Ok(Stage { from: (*from).to_owned(), name: Some(name.to_lowercase()), line, steps: Vec::new() })
        }
        _ => Err("FROM takes an image, or an image AS a name".into()),
    }
}

fn instructions(word: &str, rest: &str, logical: &Logical, escape: char) -> Result<Vec<Instruction>, String> {
    if rest.is_empty() {
        return Err(format!("{word} requires at least one argument"));
    }
    Ok(vec![match word {
        "RUN" => Instruction::Run(run(rest, &logical.documents)?),
        "COPY" | "ADD" => Instruction::Copy(copy(word == "ADD", rest, &logical.documents, escape)?),
        "ENV" => Instruction::Env(pairs(rest, escape, true)?),
        "LABEL" => Instruction::Label(pairs(rest, escape, true)?),
        "ARG" => return Ok(arguments(rest, escape)?.into_iter().map(|(name, value)| Instruction::Arg(name, value)).collect()),
        "WORKDIR" => Instruction::Workdir(unquoted(rest, escape)?),
        "USER" => Instruction::User(rest.to_owned()),
        "CMD" => Instruction::Cmd(command(rest)?),
        "ENTRYPOINT" => Instruction::Entrypoint(command(rest)?),
        "EXPOSE" => Instruction::Expose(rest.to_owned()),
        "VOLUME" => Instruction::Volume(match array(rest) {
            Some(all) => all,
            None => words::split(rest, escape)?,
        }),
        "SHELL" => Instruction::Shell(array(rest).filter(|all| !all.is_empty()).ok_or("SHELL takes a JSON array")?),
        "STOPSIGNAL" => Instruction::StopSignal(rest.to_owned()),
        "MAINTAINER" => Instruction::Maintainer(rest.to_owned()),
        "HEALTHCHECK" => Instruction::Healthcheck,
        "ONBUILD" => return Err("ONBUILD is not supported: OCI images have none".into()),
        other => return Err(format!("unknown instruction: {other}")),
    }])
}

fn unquoted(rest: &str, escape: char) -> Result<String, String> {
    // Variables are expanded later: what protects them stays.
    if rest.starts_with(['"', '\'']) { words::split(rest, escape).map(|all| all.join(" ")) } else { Ok(rest.to_owned()) }
}

fn array(text: &str) -> Option<Vec<String>> {
    text.starts_with('[').then(|| serde_json::from_str(text).ok()).flatten()
}

fn command(rest: &str) -> Result<Command, String> {
    Ok(array(rest).map_or_else(|| Command::Shell(rest.to_owned()), Command::Exec))
}

fn run(rest: &str, documents: &[Document]) -> Result<Command, String> {
    if let Some(flag) = rest.split_whitespace().next().filter(|word| word.starts_with("--")) {
        return Err(format!("RUN {flag}: not supported"));
    }
    match documents {
        [] => command(rest),
        // Nothing but the document: it is the script.
        [script] if rest.starts_with("<<") && rest.split_whitespace().count() == 1 => Ok(Command::Shell(script.content.clone())),
        all => {
            let parts = std::iter::once(rest.to_owned()).chain(all.iter().map(|document| format!("{}{}", document.content, document.name)));
            Ok(Command::Shell(parts.collect::<Vec<_>>().join("\n")))
        }
    }
}

fn copy(unpacks: bool, rest: &str, documents: &[Document], escape: char) -> Result<Copy, String> {
    let mut copy = Copy { unpacks, ..Copy::default() };
    let mut rest = rest;
    while let Some(flag) = rest.strip_prefix("--") {
        let (flag, after) = flag.split_once(char::is_whitespace).unwrap_or((flag, ""));
        match flag.split_once('=') {
            Some(("from", value)) if !unpacks => copy.from = Some(value.to_owned()),
            Some(("chown", value)) => copy.owner = Some(value.to_owned()),
            Some(("chmod", value)) => copy.mode = Some(value.to_owned()),
            // Layers are independent of each other anyway.
            _ if flag == "link" || flag == "link=true" || flag == "link=false" => {}
            _ => return Err(format!("--{flag}: not supported")),
        }
        rest = after.trim_start();
    }
    let mut all = match array(rest) {
        Some(all) => all,
        None => words::split(rest, escape)?,
    };
    copy.to = all.pop().ok_or("no destination")?;
    for source in all {
        let name = source.strip_prefix("<<").map(|mark| mark.trim_start_matches('-'));
        match name.and_then(|name| documents.iter().find(|document| document.name == name)) {
            Some(document) => copy.inline.push((document.name.clone(), document.content.clone())),
            None if unpacks && (source.contains("://") || source.starts_with("git@")) => {
                return Err(format!("ADD {source}: sources on the network are not supported; fetch it in a RUN"));
            }
            None => copy.sources.push(source),
        }
    }
    let count = copy.sources.len() + copy.inline.len();
    if count == 0 {
        return Err("a source and a destination are needed".into());
    }
    if count > 1 && !copy.to.ends_with('/') {
        return Err("with more than one source the destination must be a directory and end with a /".into());
    }
    Ok(copy)
}

/// `K=V K="V W"`, or `K the rest`. Quotes and variables stay until it is known what they stand for.
fn pairs(rest: &str, escape: char, old_form: bool) -> Result<Vec<(String, String)>, String> {
    let first = rest.split_whitespace().next().unwrap_or_default();
    if old_form && !first.contains('=') {
        let (key, value) = rest.split_once(char::is_whitespace).ok_or_else(|| format!("{rest}: no value"))?;
        return Ok(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    raw_words(rest, escape)
        .into_iter()
        .map(|word| {
            let (key, value) = word.split_once('=').ok_or_else(|| format!("{word}: not KEY=VALUE"))?;
            let key = words::split(key, escape)?.concat();
            if key.is_empty() { Err(format!("{word}: no name before the =")) } else { Ok((key, value.to_owned())) }
        })
        .collect()
}

/// Words with their quotes.
fn raw_words(text: &str, escape: char) -> Vec<String> {
    let (mut all, mut word, mut quote) = (Vec::new(), String::new(), None);
    let mut rest = text.chars();
    while let Some(next) = rest.next() {
        match (quote, next) {
            (Some(q), c) if c == q => quote = None,
            (None, '"' | '\'') => quote = Some(next),
            (None | Some('"'), c) if c == escape => {
                word.push(c);
                word.extend(rest.next());
                continue;
            }
            (None, c) if c.is_whitespace() => {
                if !word.is_empty() {
                    all.push(std::mem::take(&mut word));
                }
                continue;
            }
            _ => {}
        }
        word.push(next);
    }
    if !word.is_empty() {
        all.push(word);
    }
    all
}

fn arguments(rest: &str, escape: char) -> Result<Vec<(String, Option<String>)>, String> {
    let of = |word: String| match word.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (word, None),
    };
    let all: Vec<_> = raw_words(rest, escape).into_iter().map(of).collect();
    match all.iter().find(|(name, _)| name.is_empty()) {
        Some(_) => Err("ARG without a name".into()),
        None => Ok(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(text: &str) -> Vec<Instruction> {
        parse(text).unwrap().stages.into_iter().flat_map(|stage| stage.steps).map(|step| step.instruction).collect()
    }

    #[test]
    fn stages_lines_and_comments_are_told_apart() {
        let file = parse(
            "# syntax=x\nARG V=1\nFROM base:$V AS Build\nRUN a \\\n  # why\n\n  b\nFROM --platform=linux/amd64 scratch\nCOPY --from=build --chown=1:2 /x /y/\n",
        )
        .unwrap();
        assert_eq!(file.arguments, [("V".to_owned(), Some("1".to_owned()))]);
        assert_eq!(file.stages[0].name.as_deref(), Some("build"));
        assert_eq!(file.stages[0].steps[0].instruction, Instruction::Run(Command::Shell("a   b".into())));
        let copy =
            Copy { from: Some("build".into()), owner: Some("1:2".into()), sources: vec!["/x".into()], to: "/y/".into(), ..Copy::default() };
        assert_eq!(file.stages[1].steps[0].instruction, Instruction::Copy(copy));
        assert_eq!(file.stages[1].steps[0].line, 9);
    }

    #[test]
    fn commands_have_two_forms_and_pairs_two() {
        assert_eq!(
            steps("FROM x\nCMD [\"a\", \"b\"]\nENTRYPOINT a b\nENV A=1 B=\"x y\"\nENV C the rest\nSHELL [\"/bin/bash\",\"-c\"]"),
            [
                Instruction::Cmd(Command::Exec(vec!["a".into(), "b".into()])),
                Instruction::Entrypoint(Command::Shell("a b".into())),
                Instruction::Env(vec![("A".into(), "1".into()), ("B".into(), "\"x y\"".into())]),
                Instruction::Env(vec![("C".into(), "the rest".into())]),
                Instruction::Shell(vec!["/bin/bash".into(), "-c".into()]),
            ]
        );
    }

    #[test]
    fn documents_are_scripts_and_files() {
        let all = steps("FROM x\nRUN <<EOF\nset -e\necho hi\nEOF\nCOPY <<-'A' <<B /to/\n\tone\n\tA\ntwo\nB\nRUN cat <<X | sh\ny\nX\n");
        assert_eq!(all[0], Instruction::Run(Command::Shell("set -e\necho hi\n".into())));
        let Instruction::Copy(copy) = &all[1] else { panic!("{all:?}") };
        assert_eq!(copy.inline, [("A".to_owned(), "one\n".to_owned()), ("B".to_owned(), "two\n".to_owned())]);
        assert_eq!(all[2], Instruction::Run(Command::Shell("cat <<X | sh\ny\nX".into())));
    }

    #[test]
    fn what_cannot_be_built_is_named_with_its_line() {
        for (text, reason) in [
            ("", "no FROM"),
            ("RUN x", "line 1: RUN before the first FROM"),
            ("FROM x\n\nBOIL y", "line 3: unknown instruction: BOIL"),
            ("FROM x\nADD https://x.example/y /z", "on the network"),
            ("FROM x\nRUN --mount=type=cache,target=/x y", "--mount=type=cache,target=/x: not supported"),
            ("FROM x\nONBUILD RUN y", "ONBUILD"),
            ("FROM x\nCOPY a b c", "end with a /"),
            ("FROM x\nCOPY a", "a source and a destination"),
            ("FROM x\nRUN <<EOF\nnever", "ends the document"),
            ("FROM x\nENV A=1 B", "not KEY=VALUE"),
            ("FROM x\nSHELL sh", "JSON array"),
            ("FROM a b", "an image AS a name"),
            ("FROM x\nCMD", "at least one argument"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }
}
