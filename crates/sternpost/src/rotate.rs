//! `sternpost rotate`: exchanges keys of the running cluster, through its daemon.

use auth::pki::authority::Authority;
use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt, Empty};

use crate::certificates::{Rotation, Step};
use crate::config::Config;
use crate::control;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Exchange the cluster's authority: first the next one is trusted, then it signs, then the former one is trusted no longer. Time does the
    /// second and the third step, unless you do.
    Ca(Steps),
    /// Exchange the authority by which aggregated API servers know this cluster's API server, in the same steps.
    FrontProxyCa(Steps),
    /// Sign service account tokens with another key; tokens of the former one are still believed.
    ServiceAccountKey,
}

#[derive(clap::Args)]
pub struct Steps {
    /// Sign with the next authority now: every node and every client has its certificate by now.
    #[arg(long, conflicts_with = "retire")]
    promote: bool,
    /// Trust the former authority no longer: nobody shows a certificate of it any more.
    #[arg(long)]
    retire: bool,
}

impl Steps {
    fn step(&self) -> Step {
        match (self.promote, self.retire) {
            (true, _) => Step::Promote,
            (_, true) => Step::Retire,
            _ => Step::Prepare,
        }
    }
}

/// The words by which the control socket knows them.
const WORDS: [(&str, Rotation); 7] = [
    ("prepare", Rotation::Authority(Authority::Cluster, Step::Prepare)),
    ("promote", Rotation::Authority(Authority::Cluster, Step::Promote)),
    ("retire", Rotation::Authority(Authority::Cluster, Step::Retire)),
    ("prepare-front-proxy", Rotation::Authority(Authority::FrontProxy, Step::Prepare)),
    ("promote-front-proxy", Rotation::Authority(Authority::FrontProxy, Step::Promote)),
    ("retire-front-proxy", Rotation::Authority(Authority::FrontProxy, Step::Retire)),
    ("service-account-key", Rotation::ServiceAccountKey),
];

pub fn named(word: &str) -> Option<Rotation> {
    WORDS.iter().find(|(known, _)| *known == word).map(|(_, rotation)| *rotation)
}

pub fn run(config: &Config, command: &Command) -> anyhow::Result<i32> {
    let wanted = match command {
        Command::Ca(steps) => Rotation::Authority(Authority::Cluster, steps.step()),
        Command::FrontProxyCa(steps) => Rotation::Authority(Authority::FrontProxy, steps.step()),
        Command::ServiceAccountKey => Rotation::ServiceAccountKey,
    };
    let word = WORDS.iter().find(|(_, rotation)| *rotation == wanted).map_or("", |(word, _)| word);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let empty = Empty::<Bytes>::new().map_err(|never| match never {}).boxed();
    let said = runtime.block_on(control::call(config, Method::POST, &format!("/rotate/{word}"), empty))?;
    println!("{}", said.as_str().unwrap_or_default());
    Ok(0)
}
