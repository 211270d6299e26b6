//! As much of tar as `kubectl cp` and `kubectl exec … tar` use.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

#[derive(Default)]
struct Call {
    create: bool,
    extract: bool,
    file: Option<String>,
    dir: Option<PathBuf>,
    paths: Vec<String>,
}

pub(super) fn run(args: &[String]) -> Result<i32, String> {
    let call = parse(args)?;
    let done = match (call.create, call.extract) {
        (true, false) => create(&call),
        (false, true) => extract(&call),
        _ => return Err("say -c or -x".into()),
    };
    done.map(|()| 0).map_err(|error| error.to_string())
}

fn parse(args: &[String]) -> Result<Call, String> {
    let mut call = Call::default();
    let mut rest = args.iter();
    let mut first = true;
    while let Some(arg) = rest.next() {
        let letters = match arg.strip_prefix('-') {
            Some("") => None,
            Some(letters) => Some(letters),
            None => first.then_some(arg.as_str()),
        };
        first = false;
        match letters {
            Some(long) if long.starts_with('-') => {}
            Some(letters) => options(&mut call, letters, &mut rest)?,
            None => call.paths.push(arg.clone()),
        }
    }
    Ok(call)
}

fn options<'a>(call: &mut Call, letters: &str, rest: &mut impl Iterator<Item = &'a String>) -> Result<(), String> {
    let mut value = |letter: char| rest.next().cloned().ok_or_else(|| format!("-{letter} wants a value"));
    for letter in letters.chars() {
        match letter {
            'c' => call.create = true,
            'x' => call.extract = true,
            'f' => call.file = Some(value('f')?),
            'C' => call.dir = Some(value('C')?.into()),
            'm' | 'p' | 'o' | 'v' => {}
            other => return Err(format!("option -{other} is not known")),
        }
    }
    Ok(())
}

fn create(call: &Call) -> std::io::Result<()> {
    let output: Box<dyn Write> = match call.file.as_deref() {
        None | Some("-") => Box::new(std::io::stdout()),
        Some(name) => Box::new(File::create(name)?),
    };
    let mut builder = tar::Builder::new(output);
    builder.follow_symlinks(false);
    for path in &call.paths {
        let from = call.dir.as_deref().unwrap_or(Path::new("")).join(path);
        let name = path.trim_start_matches('/');
        let name = if name.is_empty() { "." } else { name };
        if std::fs::symlink_metadata(&from)?.is_dir() {
            builder.append_dir_all(name, &from)?;
        } else {
            builder.append_path_with_name(&from, name)?;
        }
    }
    builder.into_inner()?.flush()
}

fn extract(call: &Call) -> std::io::Result<()> {
    let input: Box<dyn Read> = match call.file.as_deref() {
        None | Some("-") => Box::new(std::io::stdin()),
        Some(name) => Box::new(File::open(name)?),
    };
    let mut archive = tar::Archive::new(input);
    archive.set_preserve_mtime(false);
    archive.unpack(call.dir.as_deref().unwrap_or(Path::new(".")))
}
