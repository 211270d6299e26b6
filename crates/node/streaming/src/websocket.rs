//! WebSocket in two uses: numbered channels in messages (`v5.channel.k8s.io` and its ancestors), and a plain byte stream in messages
//! (the tunnel that carries SPDY for port-forward).

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::spdy::session::Io;

/// Larger messages end the connection; clients send at most 32 KiB.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
const MESSAGES_WAITING_MAX: usize = 16;
/// client-go starts to read before it has made its streams, and throws away what arrives for a stream that it has not made yet
/// (`Unknown stream id 1, discarding message`): nothing is written this soon after the upgrade. Commands run meanwhile.
const CLIENT_SETUP: Duration = Duration::from_millis(30);
/// `v5.channel.k8s.io`: a message on this channel names a channel that its sender closed.
pub const CHANNEL_CLOSE: u8 = 255;

/// How channel messages look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// First byte is the channel.
    Binary,
    /// First character is the channel's digit, the rest base64.
    Base64,
}

/// One connection of numbered channels; dropping it stops its reader.
pub struct Channels {
    sink: Arc<Mutex<Sink>>,
    framing: Framing,
    /// No message goes out before.
    ready: Instant,
    closed: watch::Receiver<bool>,
    reader: JoinHandle<()>,
}

type Sink = SplitSink<WebSocketStream<Box<dyn Io>>, Message>;

/// Sends on one channel.
#[derive(Clone)]
pub struct ChannelWriter {
    sink: Arc<Mutex<Sink>>,
    framing: Framing,
    channel: u8,
    ready: Instant,
}

async fn open(io: impl Io, role: Role) -> WebSocketStream<Box<dyn Io>> {
    let config = WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX));
    WebSocketStream::from_raw_socket(Box::new(io) as Box<dyn Io>, role, Some(config)).await
}

impl Channels {
    /// Starts reading `io`; what the client sends on a channel of `readable` comes out of its receiver, anything else is dropped.
    pub async fn start(io: impl Io, framing: Framing, readable: &[u8]) -> (Self, HashMap<u8, mpsc::Receiver<Bytes>>) {
        let (sink, stream) = open(io, Role::Server).await.split();
        let (mut senders, mut receivers) = (HashMap::new(), HashMap::new());
        for channel in readable {
            let (sender, receiver) = mpsc::channel(MESSAGES_WAITING_MAX);
            senders.insert(*channel, sender);
            receivers.insert(*channel, receiver);
        }
        let (closing, closed) = watch::channel(false);
        let reader = tokio::spawn(async move {
            read_messages(stream, framing, senders).await;
            closing.send_replace(true);
        });
        (Self { sink: Arc::new(Mutex::new(sink)), framing, ready: Instant::now() + CLIENT_SETUP, closed, reader }, receivers)
    }

    pub fn writer(&self, channel: u8) -> ChannelWriter {
        ChannelWriter { sink: self.sink.clone(), framing: self.framing, channel, ready: self.ready }
    }

    /// Resolves when the client went away.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut closed = self.closed.clone();
        async move {
            let _ = closed.wait_for(|closed| *closed).await;
        }
    }

    /// Sends a normal close frame and waits a little for the client's.
    pub async fn finish(self) {
        // client-go takes a close frame without a status for a failure.
        let _ = self.sink.lock().await.send(Message::Close(Some(normal_closure()))).await;
        let _ = tokio::time::timeout(Duration::from_secs(5), self.closed()).await;
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl ChannelWriter {
    /// One message; empty ones are sent too, as upstream greets with one.
    pub async fn write(&self, bytes: Bytes) -> io::Result<()> {
        tokio::time::sleep_until(self.ready).await;
        let message = match self.framing {
            Framing::Binary => {
                let mut message = BytesMut::with_capacity(bytes.len() + 1);
                message.put_u8(self.channel);
                message.put_slice(&bytes);
                Message::Binary(message.freeze())
            }
            Framing::Base64 => Message::text(format!("{}{}", self.channel, BASE64.encode(&bytes))),
        };
        self.sink.lock().await.send(message).await.map_err(io::Error::other)
    }
}

fn normal_closure() -> CloseFrame {
    CloseFrame { code: CloseCode::Normal, reason: "".into() }
}

async fn read_messages(
    mut stream: SplitStream<WebSocketStream<Box<dyn Io>>>,
    framing: Framing,
    mut senders: HashMap<u8, mpsc::Sender<Bytes>>,
) {
    while let Some(Ok(message)) = stream.next().await {
        let payload = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            Message::Close(_) => break,
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
        };
        let Some((channel, bytes)) = unpack(framing, payload) else { continue };
        if channel == CHANNEL_CLOSE && framing == Framing::Binary {
            if let Some(closed) = bytes.first() {
                senders.remove(closed);
            }
        } else if let Some(sender) = senders.get(&channel) {
            // A receiver that is gone has closed its end; later bytes are dropped.
            let _ = sender.send(bytes).await;
        }
    }
}

fn unpack(framing: Framing, mut payload: Bytes) -> Option<(u8, Bytes)> {
    let first = *payload.first()?;
    let body = payload.split_off(1);
    match framing {
        Framing::Binary => Some((first, body)),
        Framing::Base64 => Some((first.checked_sub(b'0')?, BASE64.decode(&body).ok()?.into())),
    }
}

/// Makes a byte stream of binary messages (both ways) until either side ends.
pub async fn tunnel(io: impl Io, role: Role) -> (DuplexStream, impl Future<Output = ()> + Send + 'static) {
    let (mut sink, mut stream) = open(io, role).await.split();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (mut far_read, mut far_write) = tokio::io::split(far);
    let inward = async move {
        while let Some(Ok(message)) = stream.next().await {
            let written = match message {
                Message::Binary(bytes) => far_write.write_all(&bytes).await,
                Message::Close(_) => break,
                _ => Ok(()),
            };
            if written.is_err() {
                break;
            }
        }
        let _ = far_write.shutdown().await;
    };
    let outward = async move {
        let mut buffer = BytesMut::with_capacity(32 * 1024);
        while let Ok(1..) = far_read.read_buf(&mut buffer).await {
            if sink.send(Message::Binary(buffer.split().freeze())).await.is_err() {
                return;
            }
            buffer.reserve(32 * 1024);
        }
        let _ = sink.send(Message::Close(Some(normal_closure()))).await;
    };
    (near, async move {
        futures_util::future::join(inward, outward).await;
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[tokio::test]
    async fn close_signal_ends_one_channel_and_leaves_the_others() {
        let (client, server) = tokio::io::duplex(4096);
        let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        let (channels, mut receivers) = Channels::start(server, Framing::Binary, &[0, 4]).await;
        let (mut stdin, mut resize) = (receivers.remove(&0).unwrap(), receivers.remove(&4).unwrap());
        for message in [&b"\0in"[..], b"\xff\0", b"\x04{}", b"", b"\x09lost"] {
            client.send(Message::Binary(Bytes::copy_from_slice(message))).await.unwrap();
        }
        assert_eq!(stdin.recv().await.unwrap(), "in");
        assert_eq!(stdin.recv().await, None);
        assert_eq!(resize.recv().await.unwrap(), "{}");
        channels.writer(1).write(Bytes::from_static(b"out")).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap().into_data(), &b"\x01out"[..]);
        let closed = channels.closed();
        drop(client);
        closed.await;
    }

    #[tokio::test]
    async fn nothing_is_written_before_a_client_can_have_made_its_streams() {
        let (client, server) = tokio::io::duplex(4096);
        let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        let start = Instant::now();
        let (channels, _receivers) = Channels::start(server, Framing::Binary, &[]).await;
        channels.writer(1).write(Bytes::from_static(b"out")).await.unwrap();
        client.next().await.unwrap().unwrap();
        assert!(start.elapsed() >= CLIENT_SETUP);
    }

    #[tokio::test]
    async fn base64_framing_is_text_with_a_digit_first() {
        let (client, server) = tokio::io::duplex(4096);
        let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        let (channels, mut receivers) = Channels::start(server, Framing::Base64, &[0]).await;
        client.send(Message::text("0aGk=")).await.unwrap();
        assert_eq!(receivers.get_mut(&0).unwrap().recv().await.unwrap(), "hi");
        channels.writer(1).write(Bytes::from_static(b"hi")).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::text("1aGk="));
    }

    proptest! {
        #[test]
        fn unpacking_garbage_never_panics(garbage in proptest::collection::vec(any::<u8>(), 0..100)) {
            unpack(Framing::Base64, Bytes::from(garbage.clone()));
            unpack(Framing::Binary, Bytes::from(garbage));
        }
    }
}
