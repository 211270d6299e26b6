//! The server's side of streaming URLs: `http://127.0.0.1:<port>/<kind>/<token>`, each for one use within a minute.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cri::{RuntimeService, v1};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use stdx::Drain;
use streaming::{Command, Wanted};
use tokio::net::TcpListener;

/// As containerd's.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
const TOKENS_MAX: usize = 1000;

/// What a token was given for.
pub enum Ticket {
    Exec(v1::ExecRequest),
    Attach(v1::AttachRequest),
    PortForward(String),
}

/// The tickets that are out, and where to come with them.
pub struct Desk {
    address: SocketAddr,
    tickets: Mutex<HashMap<String, (Instant, Ticket)>>,
}

impl Desk {
    /// Listens on loopback until `drain`.
    pub async fn open(runtime: Arc<dyn RuntimeService>, drain: Drain) -> std::io::Result<Arc<Self>> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let desk = Arc::new(Self { address: listener.local_addr()?, tickets: Mutex::default() });
        tokio::spawn(desk.clone().serve(listener, runtime, drain));
        Ok(desk)
    }

    /// The URL for one use of `ticket`.
    pub fn url(&self, kind: &str, ticket: Ticket) -> cri::Result<String> {
        let mut bytes = [0_u8; 16];
        getrandom::fill(&mut bytes).map_err(|error| cri::Error::internal(error.to_string()))?;
        let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        tickets.retain(|_, (made, _)| made.elapsed() < TOKEN_LIFE);
        if tickets.len() >= TOKENS_MAX {
            return Err(cri::Error::new(cri::Code::ResourceExhausted, "maximum number of in-flight requests exceeded"));
        }
        tickets.insert(token.clone(), (Instant::now(), ticket));
        Ok(format!("http://{}/{kind}/{token}", self.address))
    }

    async fn serve(self: Arc<Self>, listener: TcpListener, runtime: Arc<dyn RuntimeService>, drain: Drain) {
        while let Some(accepted) = drain.run(listener.accept()).await {
            let Ok((stream, _)) = accepted else { continue };
            let (desk, runtime) = (self.clone(), runtime.clone());
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request| {
                    let answer = desk.answer(request, runtime.clone());
                    async move { Ok::<_, Infallible>(answer) }
                });
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
            });
        }
    }

    fn answer(&self, mut request: Request<Incoming>, runtime: Arc<dyn RuntimeService>) -> Response<Full<Bytes>> {
        let token = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let ticket = self.tickets.lock().unwrap_or_else(PoisonError::into_inner).remove(&token);
        let Some((_, ticket)) = ticket.filter(|(made, _)| made.elapsed() < TOKEN_LIFE) else {
            let mut response = Response::new(Full::from("404 page not found\n"));
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        };
        let (response, task) = match ticket {
            Ticket::Exec(call) => {
                let wanted = Wanted { stdin: call.stdin, stdout: call.stdout, stderr: call.stderr, tty: call.tty };
                let command = Command::Exec(call.cmd.clone());
                streaming::remote_command(&mut request, wanted, command, move || async move { runtime.exec(call).await })
            }
            Ticket::Attach(call) => {
                let wanted = Wanted { stdin: call.stdin, stdout: call.stdout, stderr: call.stderr, tty: call.tty };
                streaming::remote_command(&mut request, wanted, Command::Attach, move || async move { runtime.attach(call).await })
            }
            Ticket::PortForward(sandbox) => {
                let target = format!("sandbox {sandbox}");
                let connect = move |port| -> futures_util::future::BoxFuture<'static, cri::Result<cri::streams::Forward>> {
                    let (runtime, sandbox) = (runtime.clone(), sandbox.clone());
                    Box::pin(async move { runtime.port_forward(sandbox, port).await })
                };
                streaming::port_forward(&mut request, target, Arc::new(connect))
            }
        };
        if let Some(task) = task {
            tokio::spawn(task);
        }
        response
    }
}
