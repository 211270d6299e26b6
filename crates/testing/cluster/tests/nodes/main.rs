//! Several nodes on one machine, each in namespaces of its own, with links that are cut.

mod copies;
mod join;
mod lab;
mod links;
mod matrix;
mod policy;
mod restarts;
mod sleep;
