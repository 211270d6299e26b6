//! Outlives the test that started it: once the pipe to it breaks, it removes the test's cluster from the machine. Its standard output is the
//! locked file that keeps other tests waiting until then.

use std::io::Read;

fn main() {
    let dir = std::env::args_os().nth(1).expect("the cluster's folder");
    // A Ctrl-C at the terminal ends the test, not its cleaning up.
    let _ = rustix::process::setsid();
    let mut nothing = Vec::new();
    let _ = std::io::stdin().read_to_end(&mut nothing);
    cluster::cluster::clean_up(std::path::Path::new(&dir));
}
