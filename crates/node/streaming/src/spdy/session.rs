//! Many streams over one connection, either role. The wire's order is the order in which the writer's lock is taken.
//!
//! Flow control is one-sided in practice: `moby/spdystream` neither sends WINDOW_UPDATE nor respects one. So received bytes are
//! acknowledged, but our own sending is held back only after the peer showed, by WINDOW_UPDATE or SETTINGS, that it counts.
//!
//! As client we acknowledge nothing: the server (a runtime) closes the connection when it is done, and what we had sent by then and it had not
//! read would make the kernel reset the connection and throw away the end of its output.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use super::frame::{Decoder, Encoder, Frame, Headers};

/// More streams at once than this are refused; a port-forward uses two per connection.
const STREAMS_MAX: usize = 2048;
/// Pieces of at most 64 KiB that wait for a stream's reader; then the connection is not read.
const PIECES_WAITING_MAX: usize = 16;
/// Accepted streams that wait for the session's owner.
const STREAMS_WAITING_MAX: usize = 16;
const DATA_BYTES_MAX: usize = 16 * 1024;
const WINDOW_BYTES: i64 = 64 * 1024;
/// Replies that wait to be sent, at most: a peer that provokes more is not one of ours.
const REPLIES_MAX: usize = 2 * STREAMS_MAX;
const STATUS_INVALID_STREAM: u32 = 2;
const STATUS_REFUSED_STREAM: u32 = 3;

/// A connection that SPDY runs on.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Which side opened the connection: it decides who uses odd stream ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

/// One connection; dropping it stops its reader.
pub struct Session {
    shared: Arc<Shared>,
    incoming: mpsc::Receiver<Stream>,
    reader: JoinHandle<()>,
}

/// One stream, both directions open.
pub struct Stream {
    pub id: u32,
    pub headers: Headers,
    /// Ends when the peer half-closes or resets the stream, or the connection ends.
    pub reader: mpsc::Receiver<Bytes>,
    pub writer: StreamWriter,
}

impl Stream {
    /// A header by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// The sending half of a stream.
#[derive(Clone)]
pub struct StreamWriter {
    id: u32,
    shared: Arc<Shared>,
}

struct Shared {
    wire: tokio::sync::Mutex<Wire>,
    table: Mutex<Table>,
    /// Woken when `Table::replies` gained something to send.
    replies: Notify,
    /// Woken when a window grows or a stream or the session ends.
    changed: Notify,
    closed: watch::Sender<bool>,
}

struct Wire {
    /// Absent once the session is closed: streams that outlive it must not hold the connection open.
    out: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    encoder: Encoder,
    buffer: BytesMut,
}

/// 0 <= streams.len() <= STREAMS_MAX; `last_id` is the highest id the peer used.
struct Table {
    /// What the reader wants said. It never writes itself: two peers that both write from their readers would wait for each other.
    replies: Vec<Frame>,
    streams: HashMap<u32, Entry>,
    last_id: u32,
    next_id: u32,
    /// Received bytes are acknowledged.
    acknowledges: bool,
    counted: bool,
    initial_window: i64,
    session_window: i64,
}

struct Entry {
    /// Absent after the peer's FIN.
    incoming: Option<mpsc::Sender<Bytes>>,
    /// We have not sent FIN yet.
    open: bool,
    window: i64,
}

impl Session {
    /// Starts reading `io`.
    pub fn start(io: impl Io, role: Role) -> Self {
        let (read, write) = tokio::io::split(io);
        let (accepted, incoming) = mpsc::channel(STREAMS_WAITING_MAX);
        let wire = Wire { out: Some(Box::pin(write)), encoder: Encoder::default(), buffer: BytesMut::new() };
        let table = Table {
            replies: Vec::new(),
            streams: HashMap::new(),
            last_id: 0,
            next_id: if role == Role::Client { 1 } else { 2 },
            acknowledges: role == Role::Server,
            counted: false,
            initial_window: WINDOW_BYTES,
            session_window: WINDOW_BYTES,
        };
        let shared = Arc::new(Shared {
            wire: tokio::sync::Mutex::new(wire),
            table: Mutex::new(table),
            replies: Notify::new(),
            changed: Notify::new(),
            closed: watch::channel(false).0,
        });
        let reader = tokio::spawn({
            let shared = shared.clone();
            async move {
                // A peer that takes no more replies may have ended well: what it sent before that is still to be read.
                tokio::select! {
                    () = read_frames(read, &shared, accepted) => {}
                    () = async { drop(shared.serve_replies().await); std::future::pending().await } => {}
                }
                shared.close();
            }
        });
        Self { shared, incoming, reader }
    }

    /// The next stream that the peer opened, already answered with SYN_REPLY; `None` once the connection ended.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }

    /// Resolves when the connection ended.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut closed = self.shared.closed.subscribe();
        async move {
            // An error means that the session is gone, which is closed as well.
            let _ = closed.wait_for(|closed| *closed).await;
        }
    }

    /// Opens a stream of our own.
    pub async fn open(&self, headers: Headers) -> io::Result<Stream> {
        let mut wire = self.shared.wire.lock().await;
        // Ids must appear on the wire in rising order: taken under the wire's lock.
        let (id, reader) = {
            let mut table = self.shared.table();
            let id = table.next_id;
            table.next_id = id.wrapping_add(2) & 0x7fff_ffff;
            let (sender, reader) = mpsc::channel(PIECES_WAITING_MAX);
            let window = table.initial_window;
            table.streams.insert(id, Entry { incoming: Some(sender), open: true, window });
            (id, reader)
        };
        wire.send(&Frame::SynStream { id, fin: false, headers: headers.clone() }).await?;
        Ok(Stream { id, headers, reader, writer: StreamWriter { id, shared: self.shared.clone() } })
    }

    /// Says GOAWAY, ends our side of the connection and waits a little for the peer to end its own: closing a socket with unread
    /// bytes would reset it and could take from the peer what it has not read yet.
    pub async fn finish(mut self) {
        let last_id = self.shared.table().last_id;
        {
            let mut wire = self.shared.wire.lock().await;
            let _ = wire.send(&Frame::GoAway { last_id }).await;
            if let Some(out) = &mut wire.out {
                let _ = out.shutdown().await;
            }
        }
        self.incoming.close();
        let closed = self.closed();
        let _ = tokio::time::timeout(std::time::Duration::from_secs(5), closed).await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.reader.abort();
        self.shared.close();
    }
}

impl StreamWriter {
    /// Sends `bytes`, in frames of at most 16 KiB. Not to be cancelled in the middle of a frame other than by ending the session.
    pub async fn write(&self, mut bytes: Bytes) -> io::Result<()> {
        while !bytes.is_empty() {
            let length = self.window(bytes.len().min(DATA_BYTES_MAX)).await?;
            let piece = bytes.split_to(length);
            self.shared.send(&Frame::Data { id: self.id, fin: false, bytes: piece }).await?;
        }
        Ok(())
    }

    /// Half-closes our side; doing it again changes nothing.
    pub async fn finish(&self) -> io::Result<()> {
        {
            let mut table = self.shared.table();
            let Some(entry) = table.streams.get_mut(&self.id) else { return Ok(()) };
            if !entry.open {
                return Ok(());
            }
            entry.open = false;
            if entry.incoming.is_none() {
                table.streams.remove(&self.id);
            }
        }
        self.shared.send(&Frame::Data { id: self.id, fin: true, bytes: Bytes::new() }).await
    }

    /// Tears down both directions.
    pub async fn reset(&self, status: u32) -> io::Result<()> {
        if self.shared.table().streams.remove(&self.id).is_none() {
            return Ok(());
        }
        self.shared.changed.notify_waiters();
        self.shared.send(&Frame::RstStream { id: self.id, status }).await
    }

    /// Waits until at least one byte may be sent and takes up to `wanted` from the windows.
    async fn window(&self, wanted: usize) -> io::Result<usize> {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let reserved = self.shared.table().reserve(self.id, wanted);
            match reserved {
                None => return Err(io::ErrorKind::BrokenPipe.into()),
                Some(0) => changed.await,
                Some(length) => return Ok(length),
            }
        }
    }
}

impl Shared {
    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Sends what the reader wants said, then `frame`: a SYN_REPLY must come before the first data.
    async fn send(&self, frame: &Frame) -> io::Result<()> {
        let mut wire = self.wire.lock().await;
        self.send_replies(&mut wire).await?;
        wire.send(frame).await
    }
    async fn send_replies(&self, wire: &mut Wire) -> io::Result<()> {
        let replies = std::mem::take(&mut self.table().replies);
        for reply in &replies {
            wire.send(reply).await?;
        }
        Ok(())
    }
    fn reply(&self, frame: Frame) -> io::Result<()> {
        self.table().reply(frame)?;
        self.replies.notify_one();
        Ok(())
    }
    /// Until the connection fails.
    async fn serve_replies(&self) -> io::Result<()> {
        loop {
            self.replies.notified().await;
            let mut wire = self.wire.lock().await;
            self.send_replies(&mut wire).await?;
        }
    }
    fn close(&self) {
        self.table().streams.clear();
        // A writer that holds the lock fails with the connection, and lets go of it then.
        if let Ok(mut wire) = self.wire.try_lock() {
            wire.out = None;
        }
        self.closed.send_replace(true);
        self.changed.notify_waiters();
    }
}

impl Wire {
    async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        self.buffer.clear();
        self.encoder.encode(frame, &mut self.buffer).map_err(io::Error::other)?;
        let out = self.out.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        out.write_all(&self.buffer).await?;
        out.flush().await
    }
}

impl Table {
    /// `None` when the stream can no longer be written to, else how many bytes may go now.
    fn reserve(&mut self, id: u32, wanted: usize) -> Option<usize> {
        let counted = self.counted;
        let session_window = self.session_window;
        let entry = self.streams.get_mut(&id).filter(|entry| entry.open)?;
        let length = if counted { wanted.min(entry.window.min(session_window).max(0) as usize) } else { wanted };
        entry.window -= length as i64;
        self.session_window -= length as i64;
        Some(length)
    }

    fn reply(&mut self, frame: Frame) -> io::Result<()> {
        if let Frame::WindowUpdate { id, delta } = frame {
            for waiting in &mut self.replies {
                if let Frame::WindowUpdate { id: same, delta: sum } = waiting
                    && *same == id
                {
                    *sum = sum.saturating_add(delta).min(0x7fff_ffff);
                    return Ok(());
                }
            }
        }
        if self.replies.len() >= REPLIES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.replies.push(frame);
        Ok(())
    }

    fn set_initial_window(&mut self, window: u32) {
        let delta = i64::from(window) - self.initial_window;
        self.initial_window += delta;
        self.counted = true;
        self.streams.values_mut().for_each(|entry| entry.window += delta);
    }

    fn grow_window(&mut self, id: u32, delta: u32) {
        self.counted = true;
        if id == 0 {
            self.session_window += i64::from(delta);
        } else if let Some(entry) = self.streams.get_mut(&id) {
            entry.window += i64::from(delta);
        }
    }

    /// The peer will send no more on `id`.
    fn end_incoming(&mut self, id: u32) {
        if let Some(entry) = self.streams.get_mut(&id) {
            entry.incoming = None;
            if !entry.open {
                self.streams.remove(&id);
            }
        }
    }
}

async fn read_frames<R: AsyncRead + Send + Unpin>(mut read: ReadHalf<R>, shared: &Arc<Shared>, accepted: mpsc::Sender<Stream>) {
    let (mut decoder, mut buffer) = (Decoder::default(), BytesMut::with_capacity(16 * 1024));
    'connection: while let Ok(1..) = read.read_buf(&mut buffer).await {
        loop {
            match decoder.decode(&mut buffer) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    if on_frame(frame, shared, &accepted).await.is_err() {
                        break 'connection;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "SPDY connection ended");
                    break 'connection;
                }
            }
        }
        buffer.reserve(16 * 1024);
    }
}

async fn on_frame(frame: Frame, shared: &Arc<Shared>, accepted: &mpsc::Sender<Stream>) -> io::Result<()> {
    match frame {
        Frame::SynStream { id, fin, headers } => on_open(id, fin, headers, shared, accepted).await?,
        Frame::Data { id, fin, bytes } => on_data(id, fin, bytes, shared).await?,
        Frame::SynReply { id, fin: true, .. } | Frame::Headers { id, fin: true, .. } => shared.table().end_incoming(id),
        Frame::RstStream { id, .. } => {
            shared.table().streams.remove(&id);
            shared.changed.notify_waiters();
        }
        Frame::Settings { initial_window } => {
            if let Some(window) = initial_window {
                shared.table().set_initial_window(window);
                shared.changed.notify_waiters();
            }
        }
        Frame::WindowUpdate { id, delta } => {
            shared.table().grow_window(id, delta);
            shared.changed.notify_waiters();
        }
        // A ping of the peer's parity is answered by sending it back; an answer to ours is of no interest.
        Frame::Ping { id } if (id & 1) != (shared.table().next_id & 1) => shared.reply(Frame::Ping { id })?,
        Frame::Ping { .. } | Frame::SynReply { .. } | Frame::Headers { .. } | Frame::GoAway { .. } | Frame::Ignored => {}
    }
    Ok(())
}

async fn on_open(id: u32, fin: bool, headers: Headers, shared: &Arc<Shared>, accepted: &mpsc::Sender<Stream>) -> io::Result<()> {
    let reader = {
        let mut table = shared.table();
        if id <= table.last_id || (id & 1) == (table.next_id & 1) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        table.last_id = id;
        if table.streams.len() < STREAMS_MAX {
            let (sender, reader) = mpsc::channel(PIECES_WAITING_MAX);
            let window = table.initial_window;
            table.streams.insert(id, Entry { incoming: (!fin).then_some(sender), open: true, window });
            Some(reader)
        } else {
            None
        }
    };
    let Some(reader) = reader else {
        return shared.reply(Frame::RstStream { id, status: STATUS_REFUSED_STREAM });
    };
    shared.reply(Frame::SynReply { id, fin: false, headers: Vec::new() })?;
    // A session that is finishing takes no more streams; the entry goes with the session.
    let _ = accepted.send(Stream { id, headers, reader, writer: StreamWriter { id, shared: shared.clone() } }).await;
    Ok(())
}

async fn on_data(id: u32, fin: bool, bytes: Bytes, shared: &Arc<Shared>) -> io::Result<()> {
    let (sender, known) = {
        let table = shared.table();
        let entry = table.streams.get(&id);
        (entry.and_then(|entry| entry.incoming.clone()), entry.is_some() || id <= table.last_id || id < table.next_id)
    };
    if !known {
        return shared.reply(Frame::RstStream { id, status: STATUS_INVALID_STREAM });
    }
    if !bytes.is_empty() {
        let delta = bytes.len() as u32;
        if let Some(sender) = sender {
            // The reader may have lost interest: its bytes are then dropped, as a closed pipe would.
            let _ = sender.send(bytes).await;
        }
        if shared.table().acknowledges {
            shared.reply(Frame::WindowUpdate { id: 0, delta })?;
            if !fin {
                shared.reply(Frame::WindowUpdate { id, delta })?;
            }
        }
    }
    if fin {
        shared.table().end_incoming(id);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Session, Session) {
        let (client, server) = tokio::io::duplex(4096);
        (Session::start(client, Role::Client), Session::start(server, Role::Server))
    }

    async fn read_all(reader: &mut mpsc::Receiver<Bytes>) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(bytes) = reader.recv().await {
            all.extend_from_slice(&bytes);
        }
        all
    }

    #[tokio::test]
    async fn streams_carry_bytes_both_ways_and_half_close_alone() {
        let (client, mut server) = pair();
        let mut ours = client.open(vec![("streamtype".into(), "data".into())]).await.unwrap();
        let mut theirs = server.accept().await.unwrap();
        assert_eq!(theirs.header("streamType"), Some("data"));
        ours.writer.write(Bytes::from_static(b"question")).await.unwrap();
        ours.writer.finish().await.unwrap();
        assert_eq!(read_all(&mut theirs.reader).await, b"question");
        theirs.writer.write(Bytes::from_static(b"answer")).await.unwrap();
        theirs.writer.finish().await.unwrap();
        assert_eq!(read_all(&mut ours.reader).await, b"answer");
    }

    #[tokio::test]
    async fn megabytes_pass_a_peer_that_counts_windows() {
        let (client, mut server) = pair();
        let ours = client.open(Vec::new()).await.unwrap();
        let mut theirs = server.accept().await.unwrap();
        let sending = tokio::spawn(async move {
            for _ in 0..64 {
                ours.writer.write(Bytes::from(vec![7u8; 50_000])).await.unwrap();
            }
            ours.writer.finish().await.unwrap();
        });
        assert_eq!(read_all(&mut theirs.reader).await.len(), 64 * 50_000);
        sending.await.unwrap();
    }

    #[tokio::test]
    async fn a_client_reads_everything_of_a_server_that_closes_when_it_is_done() {
        const PIECES: usize = 64;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await.unwrap();
            let (mut opening, mut encoder, mut bytes) = ([0; 1024], Encoder::default(), BytesMut::new());
            assert!(connection.read(&mut opening).await.unwrap() > 0);
            for piece in 0..PIECES {
                let data = Frame::Data { id: 1, fin: piece + 1 == PIECES, bytes: Bytes::from(vec![7; 16_384]) };
                encoder.encode(&data, &mut bytes).unwrap();
            }
            connection.write_all(&bytes).await.unwrap();
            // It does not look at what we may have said meanwhile.
        });
        let session = Session::start(tokio::net::TcpStream::connect(address).await.unwrap(), Role::Client);
        let mut stream = session.open(Vec::new()).await.unwrap();
        let mut read = 0;
        while let Some(bytes) = stream.reader.recv().await {
            read += bytes.len();
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        assert_eq!(read, PIECES * 16_384);
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn reset_ends_both_directions_and_lost_connections_end_everything() {
        let (client, mut server) = pair();
        let mut ours = client.open(Vec::new()).await.unwrap();
        let theirs = server.accept().await.unwrap();
        theirs.writer.reset(5).await.unwrap();
        assert!(ours.reader.recv().await.is_none());
        assert!(ours.writer.write(Bytes::from_static(b"x")).await.is_err());
        let closed = client.closed();
        drop(server);
        closed.await;
    }
}
