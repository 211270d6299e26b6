//! `sternpost rotate`: exchanges keys of the running cluster, through its daemon.

use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt, Empty};

use crate::certificates::Rotation;
use crate::config::Config;
use crate::control;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Exchange the cluster's authority: first the next one is trusted, then it signs, then the former one is trusted no longer. Time does the
    /// second and the third step, unless you do.
    Ca {
        /// Sign with the next authority now: every node and every client has its certificate by now.
        #[arg(long, conflicts_with = "retire")]
        promote: bool,
        /// Trust the former authority no longer: nobody shows a certificate of it any more.
        #[arg(long)]
        retire: bool,
    },
    /// Sign service account tokens with another key; tokens of the former one are still believed.
    ServiceAccountKey,
}

/// The words by which the control socket knows them.
const WORDS: [(&str, Rotation); 4] = [
    ("prepare", Rotation::Prepare),
    ("promote", Rotation::Promote),
    ("retire", Rotation::Retire),
    ("service-account-key", Rotation::ServiceAccountKey),
];

pub fn named(word: &str) -> Option<Rotation> {
    WORDS.iter().find(|(known, _)| *known == word).map(|(_, rotation)| *rotation)
}

pub fn run(config: &Config, command: &Command) -> anyhow::Result<i32> {
    let step = match command {
        Command::Ca { promote: true, .. } => Rotation::Promote,
        Command::Ca { retire: true, .. } => Rotation::Retire,
        Command::Ca { .. } => Rotation::Prepare,
        Command::ServiceAccountKey => Rotation::ServiceAccountKey,
    };
    let word = WORDS.iter().find(|(_, rotation)| *rotation == step).map_or("", |(word, _)| word);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let empty = Empty::<Bytes>::new().map_err(|never| match never {}).boxed();
    let said = runtime.block_on(control::call(config, Method::POST, &format!("/rotate/{word}"), empty))?;
    println!("{}", said.as_str().unwrap_or_default());
    Ok(0)
}
