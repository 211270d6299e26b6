//! `sternpost.io/toolbox`: the image that is made of this binary itself, for first examples and tests.
//!
//! Started as `/toolbox <applet>` or through a link named after the applet (`/bin/cat`). Needs no libc, no shell, no files. Single
//! threaded, so that a thousand of them cost little.

mod files;
mod net;
mod serve;
mod tar;

/// An applet: its name, how to call it, what it does. Returns the exit code.
struct Applet {
    name: &'static str,
    usage: &'static str,
    run: fn(&[String]) -> Result<i32, String>,
}

/// Every applet; each is also a link in the image's `/bin`.
const APPLETS: &[Applet] = &[
    Applet { name: "serve", usage: "serve [--port 8080] [--echo-port 8081]   HTTP test server, TCP and UDP echo", run: serve::run },
    Applet { name: "fetch", usage: "fetch [-t SECONDS] [-n COUNT] URL        GET over HTTP and print the body", run: net::fetch },
    Applet {
        name: "resolve",
        usage: "resolve NAME                             look a name up as /etc/resolv.conf says",
        run: net::resolve,
    },
    Applet { name: "sleep", usage: "sleep SECONDS|infinity", run: files::sleep },
    Applet { name: "burn", usage: "burn [SECONDS] [MEBIBYTES]               use one CPU, hold memory", run: files::burn },
    Applet { name: "cat", usage: "cat [FILE...]", run: files::cat },
    Applet { name: "ls", usage: "ls [PATH...]", run: files::ls },
    Applet { name: "id", usage: "id", run: files::id },
    Applet { name: "env", usage: "env", run: files::env },
    Applet { name: "echo", usage: "echo [WORD...]", run: files::echo },
    Applet { name: "exit", usage: "exit CODE", run: files::exit },
    Applet { name: "true", usage: "true", run: |_| Ok(0) },
    Applet { name: "false", usage: "false", run: |_| Ok(1) },
    Applet { name: "hostname", usage: "hostname", run: files::hostname },
    Applet { name: "tar", usage: "tar -c|-x [-f FILE] [-C DIR] [PATH...]     what kubectl cp needs", run: tar::run },
];

/// The names that the image links to the binary.
pub fn links() -> impl Iterator<Item = &'static str> {
    APPLETS.iter().map(|applet| applet.name)
}

/// Runs the applet when the process was started as one: `/toolbox …` or a link with an applet's name inside the image.
/// Returns the exit code, or `None` for every other invocation.
pub fn dispatch() -> Option<i32> {
    let mut args = std::env::args();
    let program = args.next()?;
    let base = program.rsplit('/').next().unwrap_or("");
    let rest: Vec<String> = args.collect();
    match base {
        "toolbox" => Some(run(rest.first().map_or("serve", String::as_str), rest.get(1..).unwrap_or(&[]))),
        "sternpost" => None,
        linked if APPLETS.iter().any(|applet| applet.name == linked) => Some(run(linked, &rest)),
        _ => None,
    }
}

/// Runs one applet by name.
pub fn run(name: &str, args: &[String]) -> i32 {
    let Some(applet) = APPLETS.iter().find(|applet| applet.name == name) else {
        eprintln!("toolbox: no applet {name:?}; there are:");
        APPLETS.iter().for_each(|applet| eprintln!("  {}", applet.usage));
        return if matches!(name, "help" | "--help" | "-h") { 0 } else { 127 };
    };
    match (applet.run)(args) {
        Ok(code) => code,
        Err(message) => {
            eprintln!("{name}: {message}");
            1
        }
    }
}
