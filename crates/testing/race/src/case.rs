//! What can be raced.

use std::path::Path;
use std::pin::Pin;

use crate::Options;
use crate::report::Outcome;

type Run = for<'a> fn(&'a Options, &'a Path) -> Pin<Box<dyn Future<Output = anyhow::Result<Outcome>> + 'a>>;

/// A race: its name on the command line and in the documents, what it asks, and how it is run in a scratch folder.
pub struct Case {
    pub name: &'static str,
    pub title: &'static str,
    pub run: Run,
}

pub fn all() -> &'static [Case] {
    &[
        Case { name: "store", title: "Store: durable puts", run: |options, dir| Box::pin(crate::store::race(options, dir)) },
        Case { name: "codec", title: "One Pod through every encoding", run: |options, dir| Box::pin(crate::codec::race(options, dir)) },
        Case {
            name: "auth",
            title: "Who asks, whether they may, and the trail",
            run: |options, dir| Box::pin(crate::auth::race(options, dir)),
        },
        Case { name: "cel", title: "CEL rules", run: |options, dir| Box::pin(crate::cel::race(options, dir)) },
        Case { name: "admission", title: "Admission and fairness", run: |options, dir| Box::pin(crate::admission::race(options, dir)) },
        Case {
            name: "boot",
            title: "Start, and what an idle cluster costs",
            run: |options, dir| Box::pin(crate::boot::race(options, dir)),
        },
        Case { name: "pods", title: "Pods on one node", run: |options, dir| Box::pin(crate::pods::race(options, dir)) },
        Case {
            name: "mission",
            title: "A thousand replicas on ten nodes, one of which dies",
            run: |options, dir| Box::pin(crate::mission::race(options, dir)),
        },
        Case { name: "node", title: "Runtime, beside containerd", run: |options, dir| Box::pin(crate::node::race(options, dir)) },
        Case { name: "images", title: "Images unpacked", run: |options, dir| Box::pin(crate::images::race(options, dir)) },
        Case {
            name: "controllers",
            title: "Controllers: pods, endpoints, garbage",
            run: |options, dir| Box::pin(crate::controllers::race(options, dir)),
        },
        Case { name: "api", title: "API requests over HTTPS", run: |options, dir| Box::pin(crate::api::race(options, dir)) },
        Case {
            name: "network",
            title: "Services, names, paths and policies",
            run: |options, dir| Box::pin(crate::network::race(options, dir)),
        },
        Case { name: "scheduler", title: "Scheduler", run: |options, dir| Box::pin(crate::scheduler::race(options, dir)) },
    ]
}

pub fn find(name: &str) -> anyhow::Result<&'static Case> {
    let known: Vec<&str> = all().iter().map(|case| case.name).collect();
    all().iter().find(|case| case.name == name).ok_or_else(|| anyhow::anyhow!("no case {name:?}; there are {}", known.join(", ")))
}
