//! Building images from a Dockerfile and a folder, with nothing but the node's own store and runtime.
//!
//! [`Builder::build`] is the way in. A Dockerfile is parsed ([`dockerfile`]) into stages; only those that the wanted one needs are built, in their
//! order. Each instruction changes the stage's configuration ([`stage`](Stage)) or adds a layer: `COPY`, `ADD` and `WORKDIR` write its tar stream from
//! the files that they mean ([`copy`]), `RUN` starts a container ([`run`]) and packs what it has changed ([`layer`]). A layer is found again, instead
//! of made, when the layers below, the configuration and its own input are the same (the cache, a file of digests: what is no longer in the store is
//! made anew).
//!
//! The same input gives the same image, byte for byte, but for what commands do: nothing in it tells the time. Tasks: none; packing runs on
//! blocking threads.

pub mod copy;
pub mod dockerfile;
pub mod ignore;
pub mod layer;
mod root;
pub mod run;
mod stage;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use images::{Image, Kept, Layer, Pull, Store};
use serde_json::json;
use sha2::{Digest, Sha256};

pub use run::Runner;
pub use words::Variables;

use dockerfile::{Command, Copy, Dockerfile, Instruction, Step};
use root::Root;
use stage::Stage;

/// Layers that the cache knows; beyond that it begins anew.
const CACHE_MAX: usize = 4_000;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("Dockerfile: {0}")]
    Dockerfile(String),
    #[error("Dockerfile line {line}: {text}: {reason}")]
    Step { line: usize, text: String, reason: String },
    #[error("run: {0}")]
    Run(String),
    #[error(transparent)]
    Images(#[from] images::Error),
}

pub type Result<T> = std::result::Result<T, Error>;

/// What is to be built.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub dockerfile: String,
    /// The folder that `COPY` takes from.
    pub context: PathBuf,
    /// The stage; the last one without it.
    pub target: Option<String>,
    /// `--build-arg`.
    pub arguments: Variables,
    pub labels: Variables,
    pub names: Vec<String>,
    pub no_cache: bool,
    /// Ask registries for bases that are here.
    pub pull: bool,
}

/// Is told each step and the output of commands.
pub type Say = Arc<dyn Fn(&str) + Send + Sync>;

pub struct Builder {
    pub store: Arc<Store>,
    pub runner: Runner,
    /// The file of the cache.
    pub cache: PathBuf,
    /// A folder of this build's own, gone after it.
    pub scratch: PathBuf,
    pub say: Say,
}

/// One build under way.
struct Build<'a> {
    builder: &'a Builder,
    request: &'a Request,
    file: &'a Dockerfile,
    cache: BTreeMap<String, Layer>,
    done: BTreeMap<usize, Stage>,
    kept: Vec<Kept>,
    /// Times of files are cut to this (`SOURCE_DATE_EPOCH`).
    latest: Option<u64>,
}

impl Builder {
    pub async fn build(&self, request: &Request) -> Result<Image> {
        let file = dockerfile::parse(&request.dockerfile).map_err(Error::Dockerfile)?;
        let cache = match std::fs::read(&self.cache) {
            Ok(bytes) if !request.no_cache => serde_json::from_slice(&bytes).unwrap_or_default(),
            _ => BTreeMap::new(),
        };
        let latest = request.arguments.get("SOURCE_DATE_EPOCH").map(|text| text.parse());
        let latest = latest.transpose().map_err(|_| Error::Dockerfile("SOURCE_DATE_EPOCH is no number of seconds".into()))?;
        let mut build = Build { builder: self, request, file: &file, cache, done: BTreeMap::new(), kept: Vec::new(), latest };
        let result = build.all().await;
        build.save_cache();
        result
    }
}

fn io_step(step: &Step, error: &std::io::Error) -> Error {
    Error::Step { line: step.line, text: first_line(&step.text), reason: oci::errno_text(error) }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

impl Build<'_> {
    async fn all(&mut self) -> Result<Image> {
        let last = self.file.stages.len().saturating_sub(1);
        let target = match &self.request.target {
            None => last,
            Some(name) => self.stage_named(name, self.file.stages.len()).ok_or_else(|| Error::Dockerfile(format!("no stage {name:?}")))?,
        };
        let needed = self.needed(target)?;
        for (at, number) in needed.iter().enumerate() {
            let stage = self.stage(*number, at + 1, needed.len()).await?;
            self.done.insert(*number, stage);
        }
        let mut stage = self.done.remove(&target).ok_or_else(|| Error::Dockerfile("nothing was built".into()))?;
        for (key, value) in &self.request.labels {
            stage.config["config"]["Labels"][key] = json!(value);
        }
        let (store, names) = (self.builder.store.clone(), self.request.names.clone());
        let image = blocking(move || store.add_built_image(stage.config, &stage.layers, &names)).await?;
        Ok(image)
    }

    fn stage_named(&self, name: &str, before: usize) -> Option<usize> {
        let by_name = self.file.stages.iter().take(before).rposition(|stage| stage.name.as_deref() == Some(&name.to_lowercase()));
        by_name.or_else(|| name.parse().ok().filter(|number| *number < before))
    }

    /// The stage and those that it builds upon or copies from, in their order.
    fn needed(&self, target: usize) -> Result<BTreeSet<usize>> {
        let (mut needed, mut pending) = (BTreeSet::new(), vec![target]);
        while let Some(number) = pending.pop() {
            let Some(stage) = self.file.stages.get(number).filter(|_| needed.insert(number)) else { continue };
            let from = self.global(&stage.from)?;
            pending.extend(self.stage_named(&from, number).filter(|_| from.parse::<usize>().is_err()));
            for step in &stage.steps {
                if let Instruction::Copy(Copy { from: Some(from), .. }) = &step.instruction {
                    pending.extend(self.stage_named(from, number));
                }
            }
        }
        Ok(needed)
    }

    /// Expands what stands before or in a `FROM`.
    fn global(&self, text: &str) -> Result<String> {
        let mut known = self.platform();
        for (name, default) in &self.file.arguments {
            let default = default.as_deref().map(|default| self.expand(default, &known)).transpose()?;
            if let Some(value) = self.request.arguments.get(name).cloned().or(default) {
                known.insert(name.clone(), value.trim_matches(['"', '\'']).to_owned());
            }
        }
        self.expand(text, &known)
    }

    fn expand(&self, text: &str, variables: &Variables) -> Result<String> {
        words::expand(text, variables, self.file.escape).map_err(Error::Dockerfile)
    }

    fn platform(&self) -> Variables {
        let architecture = images::architecture();
        let of = |kind: &str| {
            let platform = format!("linux/{architecture}");
            [("PLATFORM", platform), ("OS", "linux".into()), ("ARCH", architecture.to_owned())]
                .map(|(name, value)| (format!("{kind}{name}"), value))
        };
        ["TARGET", "BUILD"].into_iter().flat_map(of).collect()
    }

    /// What an `ARG` without a default gets: from the command line, from before the first `FROM`, or from the platform.
    fn given(&self) -> Result<Variables> {
        let mut given = self.platform();
        for (name, default) in &self.file.arguments {
            if let Some(default) = default {
                given.insert(name.clone(), self.global(default)?);
            }
        }
        given.extend(self.request.arguments.clone());
        Ok(given)
    }

    async fn stage(&mut self, number: usize, at: usize, of: usize) -> Result<Stage> {
        let Some(plan) = self.file.stages.get(number) else { return Err(Error::Dockerfile("no such stage".into())) };
        let from = self.global(&plan.from)?;
        let mut stage = self.base(&from, number).await?;
        // Defaults from before the first FROM count only where the stage declares the name without its own.
        let given = self.given()?;
        let count = plan.steps.len();
        (self.builder.say)(&format!("[stage {at}/{of}] FROM {from}"));
        for (index, step) in plan.steps.iter().enumerate() {
            (self.builder.say)(&format!("[stage {at}/{of}] step {}/{count}: {}", index + 1, first_line(&step.text)));
            self.step(&mut stage, step, &given).await?;
        }
        Ok(stage)
    }

    async fn base(&mut self, from: &str, number: usize) -> Result<Stage> {
        if from == "scratch" {
            return Ok(Stage::scratch());
        }
        if let Some(done) = self.stage_named(from, number).and_then(|number| self.done.get(&number)) {
            let mut stage = Stage::new(done.config.clone(), done.layers.clone());
            stage.arguments.clear();
            return Ok(stage);
        }
        let base = self.image(from).await?;
        Ok(Stage::new(base.config, base.layers))
    }

    async fn image(&mut self, name: &str) -> Result<images::Base> {
        let store = self.builder.store.clone();
        let image = match store.resolve(name).filter(|_| !self.request.pull) {
            Some(image) => image,
            None => store.clone().pull_with(name, Pull { any_known: !self.request.pull, ..Pull::default() }).await?,
        };
        let base = blocking(move || store.base(&image)).await?;
        self.keep(&base.layers);
        Ok(base)
    }

    fn keep(&mut self, layers: &[Layer]) {
        let names = layers.iter().flat_map(|layer| [layer.diff_id.clone(), layer.packed.digest.clone()]).collect();
        self.kept.push(self.builder.store.keep(names));
    }

    async fn step(&mut self, stage: &mut Stage, step: &Step, given: &Variables) -> Result<()> {
        let refuse = |reason: String| Error::Step { line: step.line, text: first_line(&step.text), reason };
        if step.instruction == Instruction::Healthcheck {
            (self.builder.say)("warning: HEALTHCHECK is left out: pods have probes");
        }
        if let Instruction::Arg(name, None) = &step.instruction
            && !given.contains_key(name)
        {
            (self.builder.say)(&format!("warning: ARG {name} has no value"));
        }
        if stage.configure(&step.instruction, given, self.file.escape).map_err(refuse)? {
            stage.history(&step.text, false);
            return Ok(());
        }
        let layer = match &step.instruction {
            Instruction::Run(command) => Some(self.run(stage, step, command).await?),
            Instruction::Copy(copy) => Some(self.copy(stage, step, copy).await?),
            Instruction::Workdir(path) => self.workdir(stage, step, path).await?,
            _ => None,
        };
        stage.history(&step.text, layer.is_some());
        stage.layers.extend(layer);
        Ok(())
    }

    /// A layer by what it is made from.
    fn key(stage: &Stage, parts: &[&str]) -> String {
        let mut hash = Sha256::new();
        for part in stage.layers.iter().map(|layer| layer.diff_id.as_str()).chain(parts.iter().copied()) {
            hash.update(format!("{}:{part}", part.len()));
        }
        format!("{:x}", hash.finalize())
    }

    fn cached(&mut self, key: &str) -> Option<Layer> {
        let layer = self.cache.get(key).filter(|layer| self.builder.store.has_layer(layer)).cloned()?;
        self.keep(std::slice::from_ref(&layer));
        // It may have gone in between.
        if !self.builder.store.has_layer(&layer) {
            return None;
        }
        (self.builder.say)(" ---> Using cache");
        Some(layer)
    }

    fn remember(&mut self, key: String, layer: &Layer) {
        self.keep(std::slice::from_ref(layer));
        self.cache.insert(key, layer.clone());
    }

    async fn run(&mut self, stage: &Stage, step: &Step, command: &Command) -> Result<Layer> {
        let refuse = |reason: String| Error::Step { line: step.line, text: first_line(&step.text), reason };
        let words = stage.command(command);
        let arguments = stage.arguments_for_command();
        let key = Self::key(stage, &["RUN", &json!(words).to_string(), &json!(arguments).to_string(), &stage.config["config"].to_string()]);
        if let Some(layer) = self.cached(&key) {
            return Ok(layer);
        }
        // The command sees what has been built so far: an image without a name, only for it.
        let (store, config, layers) = (self.builder.store.clone(), stage.config.clone(), stage.layers.clone());
        if layers.is_empty() {
            return Err(refuse("the image is empty: there is nothing to run".into()));
        }
        let mut config = config;
        config["config"]["Entrypoint"] = json!(null);
        config["comment"] = json!(format!("for {key}"));
        let image = blocking(move || store.add_built_image(config, &layers, &[])).await?;
        let say = self.builder.say.clone();
        let ran = self.builder.runner.run(&image.id, words, arguments, &move |line| say(&format!("  {line}"))).await;
        let outcome = match ran {
            Ok(ran) if ran.exit_code == 0 => {
                let (store, upper, latest) = (self.builder.store.clone(), ran.upper.clone(), self.latest);
                let packed = blocking(move || store.add_built_layer(|to| layer::write_changes(&upper, to, latest))).await;
                ran.remove().await;
                packed
            }
            Ok(ran) => {
                let code = ran.exit_code;
                ran.remove().await;
                Err(refuse(format!("the command returned a non-zero code: {code}")))
            }
            Err(error) => Err(refuse(error.to_string())),
        };
        if let Err(error) = self.builder.store.remove(&image.id) {
            tracing::warn!(%error, "remove a build's image");
        }
        let layer = outcome?;
        self.remember(key, &layer);
        Ok(layer)
    }

    fn root(&self, layers: &[Layer], step: &Step) -> Result<Root> {
        let nothing = self.builder.scratch.join("nothing");
        std::fs::create_dir_all(&nothing).map_err(|error| io_step(step, &error))?;
        Root::of(&self.builder.store.layer_directories(layers), &nothing).map_err(|error| io_step(step, &error))
    }

    async fn copy(&mut self, stage: &Stage, step: &Step, copy: &Copy) -> Result<Layer> {
        let refuse = |reason: String| Error::Step { line: step.line, text: first_line(&step.text), reason };
        let variables = stage.variables();
        let expand = |text: &str| words::expand(text, &variables, self.file.escape).map_err(refuse);
        let sources = copy.sources.iter().map(|source| expand(source)).collect::<Result<Vec<_>>>()?;
        let to = stage.absolute(&expand(&copy.to)?);
        let inline = copy.inline.clone();
        let into = self.root(&stage.layers, step)?;
        let owner =
            copy.owner.as_deref().map(|text| copy::owner(&expand(text)?, &into).map_err(|error| io_step(step, &error))).transpose()?;
        let mode = copy
            .mode
            .as_deref()
            .map(|text| u32::from_str_radix(&expand(text)?, 8).map_err(|_| refuse(format!("--chmod={text}: not octal"))))
            .transpose()?;
        let (from, owner) = match &copy.from {
            // Whoever sent the context is nobody in the image.
            None => (Root::folder(&self.request.context).map_err(|error| io_step(step, &error))?, owner.or(Some((0, 0)))),
            Some(name) => (self.other(&expand(name)?, step).await?, owner),
        };
        let unpacks = copy.unpacks.then(|| self.builder.scratch.join(format!("add-{}", step.line)));
        let from = Arc::new(from);
        let gathered = blocking_io(move || {
            let wanted = copy::Wanted { sources: &sources, inline: &inline, to: &to, owner, mode, unpacks };
            let items = copy::gather(&wanted, &from, &into)?;
            let digest = layer::digest(&items)?;
            Ok((items, digest))
        });
        let (items, digest) = gathered.await.map_err(|error| io_step(step, &error))?;
        self.layer_of(stage, items, &digest).await
    }

    async fn layer_of(&mut self, stage: &Stage, items: layer::Items, digest: &str) -> Result<Layer> {
        let key = Self::key(stage, &["COPY", digest, &format!("{:?}", self.latest)]);
        if let Some(layer) = self.cached(&key) {
            return Ok(layer);
        }
        let (store, latest) = (self.builder.store.clone(), self.latest);
        let layer = blocking(move || store.add_built_layer(|to| layer::write(&items, to, latest))).await?;
        self.remember(key, &layer);
        Ok(layer)
    }

    /// The files of another stage, or of an image.
    async fn other(&mut self, name: &str, step: &Step) -> Result<Root> {
        let stage = self.stage_named(name, self.file.stages.len()).and_then(|number| self.done.get(&number));
        let layers = match stage {
            Some(stage) => stage.layers.clone(),
            None => self.image(name).await?.layers,
        };
        self.root(&layers, step)
    }

    /// Sets the working folder, and makes it where it is not there.
    async fn workdir(&mut self, stage: &mut Stage, step: &Step, path: &str) -> Result<Option<Layer>> {
        let refuse = |reason: String| Error::Step { line: step.line, text: first_line(&step.text), reason };
        let path = words::expand(path, &stage.variables(), self.file.escape).map_err(refuse)?;
        let path = clean(&stage.absolute(&path));
        stage.config["config"]["WorkingDir"] = json!(path);
        let into = self.root(&stage.layers, step)?;
        if path == "/" || into.is_directory(&path).map_err(|error| io_step(step, &error))? {
            return Ok(None);
        }
        let mut items = layer::Items::new();
        let real = into.real(&path).map_err(|error| io_step(step, &error))?;
        let mut walked = String::new();
        for part in real.split('/') {
            walked = if walked.is_empty() { part.to_owned() } else { format!("{walked}/{part}") };
            if !into.is_directory(&walked).map_err(|error| io_step(step, &error))? {
                let content = layer::Content::Directory;
                items.insert(walked.clone(), layer::Item { mode: 0o755, owner: (0, 0), modified: 0, content });
            }
        }
        let digest = layer::digest(&items).map_err(|error| io_step(step, &error))?;
        self.layer_of(stage, items, &digest).await.map(Some)
    }

    fn save_cache(&mut self) {
        if self.cache.len() > CACHE_MAX {
            self.cache.retain(|_, layer| self.builder.store.has_layer(layer));
        }
        // Another build may have written meanwhile.
        let known =
            std::fs::read(&self.builder.cache).ok().and_then(|bytes| serde_json::from_slice::<BTreeMap<String, Layer>>(&bytes).ok());
        let mut all = known.unwrap_or_default();
        all.append(&mut self.cache);
        if all.len() > CACHE_MAX {
            all.clear();
        }
        let temporary = self.builder.cache.with_extension("new");
        let written = serde_json::to_vec(&all).map_err(std::io::Error::other).and_then(|bytes| std::fs::write(&temporary, bytes));
        if let Err(error) = written.and_then(|()| std::fs::rename(&temporary, &self.builder.cache)) {
            tracing::warn!(%error, "keep the build cache");
        }
    }
}

/// Without `.`, `..` and doubled slashes.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    format!("/{}", parts.join("/"))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> images::Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| Error::Run(error.to_string()))??)
}

async fn blocking_io<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}
