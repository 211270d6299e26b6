//! Remote commands: exec and attach over either wire form, joined to the runtime's [`Streams`].
//!
//! The end, in upstream's order: output is copied until the process closes it, then the result goes on the error channel, then our
//! halves are closed, then the connection.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cri::streams::{Reader, Streams, TerminalSize, Writer};
use http::Request;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::handshake::{Reply, Wire, negotiate};
use crate::spdy::session::{Io, Role, Session};
use crate::spdy::{Stream, StreamWriter};
use crate::websocket::{ChannelWriter, Channels, Framing};

const SPDY_PROTOCOLS: &[&str] = &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
const WEBSOCKET_PROTOCOLS: &[&str] =
    &["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io"];
/// How long a SPDY client may take to open its streams (upstream: stream-creation-timeout).
const STREAM_CREATION_TIMEOUT: Duration = Duration::from_secs(30);

/// Which standard streams the client wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Wanted {
    /// From a query's pairs, in the kubelet's words (`input`, `output`, `error`, `tty` = `1`) or the API's (`stdin`, … = `true`).
    /// `Err` is upstream's sentence when nothing is wanted. A terminal has no separate standard error.
    pub fn from_query<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, &'static str> {
        let mut wanted = Self::default();
        for (key, value) in pairs {
            let on = matches!(value, "1" | "true");
            match key {
                "input" | "stdin" => wanted.stdin |= on,
                "output" | "stdout" => wanted.stdout |= on,
                "error" | "stderr" => wanted.stderr |= on,
                "tty" => wanted.tty |= on,
                _ => {}
            }
        }
        wanted.stderr &= !wanted.tty;
        if wanted.stdin || wanted.stdout || wanted.stderr {
            Ok(wanted)
        } else {
            Err("you must specify at least 1 of stdin, stdout, stderr")
        }
    }
}

/// What is run; it decides what the end of the streams says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Exec(Vec<String>),
    /// An attach always ends with success, whatever the container's exit code, as upstream.
    Attach,
}

/// Answers an upgrade request; the task calls `start` once the client's streams are there, and serves them to the end.
pub fn remote_command<B, F>(request: &mut Request<B>, wanted: Wanted, command: Command, start: impl FnOnce() -> F + Send + 'static) -> Reply
where
    F: Future<Output = cri::Result<Streams>> + Send + 'static,
{
    let (wire, response) = match negotiate(request, SPDY_PROTOCOLS, WEBSOCKET_PROTOCOLS) {
        Ok(agreed) => agreed,
        Err(refusal) => return (refusal, None),
    };
    let upgrade = hyper::upgrade::on(request);
    let task = async move {
        let io = match upgrade.await {
            Ok(upgraded) => hyper_util::rt::TokioIo::new(upgraded),
            Err(error) => return tracing::debug!(%error, "remote command: connection was not upgraded"),
        };
        if let Err(error) = serve(io, wire, wanted, command, start).await {
            tracing::debug!(%error, "remote command ended");
        }
    };
    (response, Some(Box::pin(task)))
}

async fn serve<F>(io: impl Io, wire: Wire, wanted: Wanted, command: Command, start: impl FnOnce() -> F) -> io::Result<()>
where
    F: Future<Output = cri::Result<Streams>>,
{
    match wire {
        Wire::Spdy(protocol) => serve_spdy(io, &protocol, wanted, command, start).await,
        Wire::WebSocket(protocol) => serve_websocket(io, &protocol, wanted, command, start).await,
    }
}

/// The client's ends, whatever the wire form.
struct Ends {
    stdin: Option<mpsc::Receiver<Bytes>>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    error: Output,
    resize: Option<mpsc::Receiver<Bytes>>,
    /// The result is a JSON Status (v4 on) or, for failures only, plain text.
    status_json: bool,
}

enum Output {
    Spdy(StreamWriter),
    WebSocket(ChannelWriter),
}

impl Output {
    async fn write(&self, bytes: Bytes) -> io::Result<()> {
        match self {
            Self::Spdy(writer) => writer.write(bytes).await,
            Self::WebSocket(writer) => writer.write(bytes).await,
        }
    }
    async fn finish(&self) -> io::Result<()> {
        match self {
            Self::Spdy(writer) => writer.finish().await,
            // The connection's end is the channel's end.
            Self::WebSocket(_) => Ok(()),
        }
    }
}

/// Serves exec or attach over an upgraded SPDY connection.
pub async fn serve_spdy<F>(io: impl Io, protocol: &str, wanted: Wanted, command: Command, start: impl FnOnce() -> F) -> io::Result<()>
where
    F: Future<Output = cri::Result<Streams>>,
{
    let status_json = protocol == "v4.channel.k8s.io";
    let resizes = wanted.tty && matches!(protocol, "v4.channel.k8s.io" | "v3.channel.k8s.io");
    let mut session = Session::start(io, Role::Server);
    let mut streams = tokio::time::timeout(STREAM_CREATION_TIMEOUT, accept_streams(&mut session, wanted, resizes))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "timed out waiting for client to create streams"))??;
    let missing = || io::Error::new(io::ErrorKind::InvalidData, "client did not create the error stream");
    let stdin = streams.remove("stdin");
    // Our half of stdin is never written; closing it at the end keeps the client's copier from waiting.
    let stdin_back = stdin.as_ref().map(|stream| stream.writer.clone());
    let ends = Ends {
        stdin: stdin.map(|stream| stream.reader),
        stdout: streams.remove("stdout").map(|stream| Output::Spdy(stream.writer)),
        stderr: streams.remove("stderr").map(|stream| Output::Spdy(stream.writer)),
        error: Output::Spdy(streams.remove("error").ok_or_else(missing)?.writer),
        resize: streams.remove("resize").map(|stream| stream.reader),
        status_json,
    };
    let closed = session.closed();
    let result = run(ends, command, start, closed).await;
    if let Some(writer) = stdin_back {
        let _ = writer.finish().await;
    }
    session.finish().await;
    result
}

async fn accept_streams(session: &mut Session, wanted: Wanted, resizes: bool) -> io::Result<HashMap<String, Stream>> {
    let expected = 1 + [wanted.stdin, wanted.stdout, wanted.stderr, resizes].into_iter().filter(|on| *on).count();
    let mut streams = HashMap::new();
    while streams.len() < expected {
        let Some(stream) = session.accept().await else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        let kind = stream.header("streamtype").unwrap_or_default().to_owned();
        let known = match kind.as_str() {
            "error" => true,
            "stdin" => wanted.stdin,
            "stdout" => wanted.stdout,
            "stderr" => wanted.stderr,
            "resize" => resizes,
            _ => false,
        };
        if !known || streams.contains_key(&kind) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("unexpected stream type: {kind:?}")));
        }
        streams.insert(kind, stream);
    }
    Ok(streams)
}

/// Serves exec or attach over an upgraded WebSocket connection.
pub async fn serve_websocket<F>(io: impl Io, protocol: &str, wanted: Wanted, command: Command, start: impl FnOnce() -> F) -> io::Result<()>
where
    F: Future<Output = cri::Result<Streams>>,
{
    let framing = if protocol.contains("base64") { Framing::Base64 } else { Framing::Binary };
    let versioned = protocol.starts_with("v4.") || protocol.starts_with("v5.");
    let mut readable = Vec::new();
    readable.extend(wanted.stdin.then_some(0));
    readable.extend((wanted.tty && versioned).then_some(4));
    let (channels, mut receivers) = Channels::start(io, framing, &readable).await;
    let ends = Ends {
        stdin: receivers.remove(&0),
        stdout: wanted.stdout.then(|| Output::WebSocket(channels.writer(1))),
        stderr: wanted.stderr.then(|| Output::WebSocket(channels.writer(2))),
        error: Output::WebSocket(channels.writer(3)),
        resize: receivers.remove(&4),
        status_json: versioned,
    };
    // Upstream greets on the lowest writable channel, so that a client knows that the connection stands.
    ends.stdout.as_ref().or(ends.stderr.as_ref()).unwrap_or(&ends.error).write(Bytes::new()).await?;
    let closed = channels.closed();
    let result = run(ends, command, start, closed).await;
    channels.finish().await;
    result
}

async fn run<F>(ends: Ends, command: Command, start: impl FnOnce() -> F, closed: impl Future<Output = ()>) -> io::Result<()>
where
    F: Future<Output = cri::Result<Streams>>,
{
    let Ends { stdin, stdout, stderr, error, resize, status_json } = ends;
    let joined = async {
        let outcome = match start().await {
            Ok(streams) => join(stdin, &stdout, &stderr, resize, streams, &command).await,
            Err(failure) => Err(failure.message),
        };
        if let Some(bytes) = result_bytes(&command, outcome, status_json) {
            error.write(bytes).await?;
        }
        for output in [stdout.as_ref(), stderr.as_ref(), Some(&error)].into_iter().flatten() {
            output.finish().await?;
        }
        Ok(())
    };
    // A client that goes away drops the streams, which detaches or ends the process's terminal.
    tokio::select! {
        result = joined => result,
        () = closed => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

/// Copies until output ended and the exit code is known; `Ok(None)` when only output was to be followed.
async fn join(
    stdin: Option<mpsc::Receiver<Bytes>>,
    stdout: &Option<Output>,
    stderr: &Option<Output>,
    resize: Option<mpsc::Receiver<Bytes>>,
    streams: Streams,
    command: &Command,
) -> Result<i32, String> {
    let outputs = async {
        futures_util::future::join(copy_out(streams.stdout, stdout), copy_out(streams.stderr, stderr)).await;
        streams.exit.await
    };
    let inputs = async {
        futures_util::future::join(copy_in(stdin, streams.stdin), copy_sizes(resize, streams.resize)).await;
        std::future::pending::<()>().await
    };
    let exit = tokio::select! {
        exit = outputs => exit,
        () = inputs => return Err("input ended the command".into()),
    };
    match (command, exit) {
        (Command::Attach, _) => Ok(0),
        (Command::Exec(_), Ok(code)) => Ok(code),
        (Command::Exec(_), Err(_)) => {
            let told = async { streams.failure?.await.ok() }.await;
            Err(told.unwrap_or_else(|| "the exit code of the command is unknown".into()))
        }
    }
}

async fn copy_out(from: Option<Reader>, to: &Option<Output>) {
    let (Some(mut from), Some(to)) = (from, to) else { return };
    let mut buffer = BytesMut::with_capacity(32 * 1024);
    while let Ok(1..) = from.read_buf(&mut buffer).await {
        if to.write(buffer.split().freeze()).await.is_err() {
            return;
        }
        buffer.reserve(32 * 1024);
    }
}

async fn copy_in(from: Option<mpsc::Receiver<Bytes>>, to: Option<Writer>) {
    let Some(mut to) = to else { return };
    if let Some(mut from) = from {
        while let Some(bytes) = from.recv().await {
            if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
                return;
            }
        }
    }
    let _ = to.shutdown().await;
}

/// `{"Width":80,"Height":24}`, one JSON value after the other.
async fn copy_sizes(from: Option<mpsc::Receiver<Bytes>>, to: Option<mpsc::Sender<TerminalSize>>) {
    let (Some(mut from), Some(to)) = (from, to) else { return };
    let mut pending = Vec::new();
    while let Some(bytes) = from.recv().await {
        pending.extend_from_slice(&bytes);
        for size in take_sizes(&mut pending) {
            if to.send(size).await.is_err() {
                return;
            }
        }
    }
}

#[derive(Deserialize)]
struct WireSize {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

/// The complete sizes at the front of `pending`; what cannot become one is thrown away.
fn take_sizes(pending: &mut Vec<u8>) -> Vec<TerminalSize> {
    let mut sizes = Vec::new();
    let mut values = serde_json::Deserializer::from_slice(pending).into_iter::<WireSize>();
    let mut taken = 0;
    loop {
        match values.next() {
            Some(Ok(size)) => {
                sizes.push(TerminalSize { width: size.width, height: size.height });
                taken = values.byte_offset();
            }
            Some(Err(error)) if !error.is_eof() => {
                taken = pending.len();
                break;
            }
            _ => break,
        }
    }
    pending.drain(..taken);
    if pending.len() > 1024 {
        pending.clear();
    }
    sizes
}

/// What the error channel says at the end.
fn result_bytes(command: &Command, outcome: Result<i32, String>, status_json: bool) -> Option<Bytes> {
    let (status, text) = match (outcome, command) {
        (Ok(0), _) | (Ok(_), Command::Attach) => (json!({"metadata": {}, "status": "Success"}), None),
        (Ok(code), Command::Exec(command)) => {
            let text =
                format!("command terminated with non-zero exit code: error executing command [{}], exit code {code}", command.join(" "));
            let details = json!({"causes": [{"reason": "ExitCode", "message": code.to_string()}]});
            (json!({"metadata": {}, "status": "Failure", "message": text, "reason": "NonZeroExitCode", "details": details}), Some(text))
        }
        (Err(error), command) => {
            let step = if *command == Command::Attach { "attaching to" } else { "executing command in" };
            let error = format!("error {step} container: {error}");
            let text = format!("Internal error occurred: {error}");
            let details = json!({"causes": [{"message": error}]});
            (
                json!({"metadata": {}, "status": "Failure", "message": text, "reason": "InternalError", "details": details, "code": 500}),
                Some(error),
            )
        }
    };
    if status_json { Some(status.to_string().into()) } else { text.map(Bytes::from) }
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt, StreamExt};
    use tokio::io::AsyncReadExt;
    use tokio::sync::oneshot;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::{Message, protocol};

    use super::*;

    const ALL: Wanted = Wanted { stdin: true, stdout: true, stderr: true, tty: false };

    fn exec() -> Command {
        Command::Exec(vec!["cat".into(), "-".into()])
    }

    /// A process that copies its input to its output, then exits.
    fn cat(code: i32) -> Streams {
        let (stdin, mut stdin_read) = tokio::io::duplex(64);
        let (mut stdout_write, stdout) = tokio::io::duplex(64);
        let (exit_sender, exit) = oneshot::channel();
        tokio::spawn(async move {
            let mut all = Vec::new();
            stdin_read.read_to_end(&mut all).await.unwrap();
            stdout_write.write_all(&all).await.unwrap();
            drop(stdout_write);
            let _ = exit_sender.send(code);
        });
        Streams {
            stdin: Some(Box::pin(stdin)),
            stdout: Some(Box::pin(stdout)),
            stderr: Some(Box::pin(tokio::io::empty())),
            resize: None,
            exit,
            failure: None,
        }
    }

    async fn read_all(reader: &mut mpsc::Receiver<Bytes>) -> String {
        let mut all = Vec::new();
        while let Some(bytes) = reader.recv().await {
            all.extend_from_slice(&bytes);
        }
        String::from_utf8(all).unwrap()
    }

    async fn spdy_exec(protocol: &'static str, code: i32) -> (String, String) {
        let (client, server) = tokio::io::duplex(1024);
        let serving = tokio::spawn(serve_spdy(server, protocol, ALL, exec(), move || async move { Ok(cat(code)) }));
        let session = Session::start(client, Role::Client);
        let mut streams = Vec::new();
        for kind in ["error", "stdin", "stdout", "stderr"] {
            streams.push(session.open(vec![("streamtype".into(), kind.into())]).await.unwrap());
        }
        let mut streams = streams.into_iter();
        let [mut error, stdin, mut stdout, _stderr] = std::array::from_fn(|_| streams.next().unwrap());
        stdin.writer.write(Bytes::from("ping ".repeat(5000))).await.unwrap();
        stdin.writer.finish().await.unwrap();
        let said = (read_all(&mut stdout.reader).await, read_all(&mut error.reader).await);
        drop(session);
        serving.await.unwrap().unwrap();
        said
    }

    #[tokio::test]
    async fn spdy_exec_copies_everything_and_then_tells_the_exit_code() {
        let (stdout, error) = spdy_exec("v4.channel.k8s.io", 3).await;
        assert_eq!(stdout, "ping ".repeat(5000));
        let status: serde_json::Value = serde_json::from_str(&error).unwrap();
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
        assert_eq!(status["message"], "command terminated with non-zero exit code: error executing command [cat -], exit code 3");
        assert_eq!(spdy_exec("v4.channel.k8s.io", 0).await.1, r#"{"metadata":{},"status":"Success"}"#);
    }

    #[tokio::test]
    async fn old_spdy_protocols_say_nothing_on_success_and_text_on_failure() {
        assert_eq!(spdy_exec("channel.k8s.io", 0).await.1, "");
        assert!(spdy_exec("v2.channel.k8s.io", 1).await.1.ends_with("exit code 1"));
    }

    #[tokio::test]
    async fn websocket_v5_exec_ends_stdin_by_the_close_signal_and_reports_on_channel_three() {
        let (client, server) = tokio::io::duplex(1024);
        let serving = tokio::spawn(serve_websocket(server, "v5.channel.k8s.io", ALL, exec(), || async { Ok(cat(0)) }));
        let mut client = WebSocketStream::from_raw_socket(client, protocol::Role::Client, None).await;
        for message in [&b"\0hello"[..], b"\xff\0"] {
            client.send(Message::Binary(Bytes::copy_from_slice(message))).await.unwrap();
        }
        let (mut stdout, mut status) = (Vec::new(), Vec::new());
        while let Some(Ok(message)) = client.next().await {
            let data = message.into_data();
            match data.first() {
                Some(1) => stdout.extend_from_slice(&data[1..]),
                Some(3) if data.len() > 2 => status.extend_from_slice(&data[1..]),
                _ => {}
            }
        }
        assert_eq!((stdout.as_slice(), status.as_slice()), (&b"hello"[..], &br#"{"metadata":{},"status":"Success"}"#[..]));
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn failure_to_start_is_an_internal_error_status() {
        let (client, server) = tokio::io::duplex(1024);
        let start = || async { Err(cri::Error::not_found("no such file")) };
        tokio::spawn(serve_websocket(server, "v5.channel.k8s.io", ALL, exec(), start));
        let mut client = WebSocketStream::from_raw_socket(client, protocol::Role::Client, None).await;
        client.next().await.unwrap().unwrap();
        let status = client.next().await.unwrap().unwrap().into_data();
        let status: serde_json::Value = serde_json::from_slice(&status[1..]).unwrap();
        assert_eq!(status["message"], "Internal error occurred: error executing command in container: no such file");
        assert_eq!(status["code"], 500);
    }

    #[tokio::test]
    async fn lost_client_drops_the_streams() {
        let (client, server) = tokio::io::duplex(1024);
        let (stdin, mut stdin_read) = tokio::io::duplex(64);
        let (keep, exit) = oneshot::channel();
        let streams = Streams { stdin: Some(Box::pin(stdin)), stdout: None, stderr: None, resize: None, exit, failure: None };
        let wanted = Wanted { stdin: true, ..Wanted::default() };
        let serving = tokio::spawn(serve_websocket(server, "v5.channel.k8s.io", wanted, Command::Attach, || async { Ok(streams) }));
        drop(client);
        assert!(serving.await.unwrap().is_err());
        assert_eq!(stdin_read.read(&mut [0; 8]).await.unwrap(), 0);
        drop(keep);
    }

    #[test]
    fn sizes_may_be_split_and_joined_anywhere() {
        let mut pending = br#"{"Width":80,"Height":24}{"Width":1"#.to_vec();
        assert_eq!(take_sizes(&mut pending), [TerminalSize { width: 80, height: 24 }]);
        pending.extend_from_slice(br#"00,"Height":50}"#);
        assert_eq!(take_sizes(&mut pending), [TerminalSize { width: 100, height: 50 }]);
        pending.extend_from_slice(b"garbage");
        assert_eq!(take_sizes(&mut pending), []);
        assert!(pending.is_empty());
    }

    #[test]
    fn queries_of_both_dialects_are_understood() {
        let parse = |pairs: &[(&'static str, &'static str)]| Wanted::from_query(pairs.iter().copied());
        assert_eq!(parse(&[("input", "1"), ("output", "1"), ("error", "1")]), Ok(ALL));
        let tty = parse(&[("stdin", "true"), ("stdout", "true"), ("stderr", "true"), ("tty", "true")]);
        assert_eq!(tty, Ok(Wanted { stdin: true, stdout: true, stderr: false, tty: true }));
        assert_eq!(parse(&[("command", "ls")]), Err("you must specify at least 1 of stdin, stdout, stderr"));
    }
}
