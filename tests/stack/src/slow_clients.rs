//! Clients that hold a connection and never complete a request (slow loris).

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::RngExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

/// Time between two bytes of a client.
const BYTE_EVERY_MS: std::ops::Range<u64> = 500..2_000;

/// Delay before a client connects or reconnects.
const CONNECT_WITHIN_MS: std::ops::Range<u64> = 0..1_000;

/// Largest frame that every server must accept.
const CONTINUATION_BYTES: u32 = 16_384;

/// Behaviour of a slow client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slowness {
    /// Sends nothing.
    Silent,
    /// Sends a header byte by byte.
    Head,
    /// Sends a body byte by byte.
    Body,
    /// Sends only the HTTP/2 preface.
    Http2Silent,
    /// Sends an HTTP/2 header block byte by byte.
    Http2Head,
}

impl Slowness {
    /// All modes of HTTP/1.1.
    pub const HTTP1: [Self; 3] = [Self::Silent, Self::Head, Self::Body];

    pub const ALL: [Self; 5] = [Self::Silent, Self::Head, Self::Body, Self::Http2Silent, Self::Http2Head];

    /// Bytes that are sent at once.
    fn opening(self) -> Vec<u8> {
        match self {
            Self::Silent => Vec::new(),
            Self::Head => b"POST /likes HTTP/1.1\r\nhost: slow\r\nx-slow: ".to_vec(),
            Self::Body => {
                b"POST /likes HTTP/1.1\r\nhost: slow\r\ncontent-type: application/json\r\ncontent-length: 10000\r\n\r\n"
                    .to_vec()
            }
            Self::Http2Silent => http2_preface(),
            Self::Http2Head => {
                let mut opening = http2_preface();
                // HEADERS without END_HEADERS on stream 1, with only ":method: GET", followed by the start of a CONTINUATION.
                opening.extend(http2_frame(1, 0x1, 1));
                opening.push(0x82);
                opening.extend(http2_frame(CONTINUATION_BYTES, 0x9, 1));
                opening
            }
        }
    }

    /// Byte that is repeated afterwards.
    fn byte(self) -> Option<u8> {
        match self {
            Self::Silent | Self::Http2Silent => None,
            Self::Head | Self::Http2Head => Some(b'a'),
            Self::Body => Some(b' '),
        }
    }
}

/// Client preface and an empty SETTINGS frame.
///
/// Source: RFC 9113, sections 3.4 and 4.1.
fn http2_preface() -> Vec<u8> {
    let mut preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    preface.extend(http2_frame(0, 0x4, 0));
    preface
}

/// Header of a frame without flags.
fn http2_frame(bytes: u32, kind: u8, stream: u32) -> [u8; 9] {
    let [_, high, middle, low] = bytes.to_be_bytes();
    let [a, b, c, d] = stream.to_be_bytes();
    [high, middle, low, kind, 0, a, b, c, d]
}

/// Running slow clients. Dropped, they close their connections.
pub struct SlowClients {
    counters: Arc<Counters>,
    clients: JoinSet<()>,
}

/// State that all clients share.
#[derive(Default)]
struct Counters {
    open: AtomicU64,
    closed: AtomicU64,
    no_more_connects: AtomicBool,
}

impl SlowClients {
    /// Starts clients of these modes in turn. A client whose connection is closed reconnects.
    pub fn start(address: SocketAddr, clients: u32, modes: &'static [Slowness]) -> Self {
        let counters = Arc::new(Counters::default());
        let modes = modes.iter().copied().cycle().take(clients as usize);
        let clients = modes.map(|mode| run_client(address, mode, Arc::clone(&counters))).collect();
        Self { counters, clients }
    }

    /// Number of open connections.
    pub fn open(&self) -> u64 {
        self.counters.open.load(Ordering::Relaxed)
    }

    /// Number of connections that the server has closed so far.
    pub fn closed(&self) -> u64 {
        self.counters.closed.load(Ordering::Relaxed)
    }

    /// Stops reconnecting and waits until the server has closed every connection.
    pub async fn all_closed(&mut self) {
        self.counters.no_more_connects.store(true, Ordering::Relaxed);
        while self.clients.join_next().await.is_some() {}
    }

    /// Closes all connections.
    pub async fn stop(mut self) {
        self.clients.shutdown().await;
    }
}

async fn run_client(address: SocketAddr, mode: Slowness, counters: Arc<Counters>) {
    loop {
        let pause = rand::rng().random_range(CONNECT_WITHIN_MS);
        sleep(Duration::from_millis(pause)).await;
        if counters.no_more_connects.load(Ordering::Relaxed) {
            return;
        }
        // A connection that the server accepts and closes immediately counts as closed.
        if let Ok(connection) = TcpStream::connect(address).await {
            let open = OpenGuard::new(&counters);
            hold(connection, mode).await;
            drop(open);
            counters.closed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// RAII guard that counts an open connection.
struct OpenGuard<'a>(&'a Counters);

impl<'a> OpenGuard<'a> {
    fn new(counters: &'a Counters) -> Self {
        counters.open.fetch_add(1, Ordering::Relaxed);
        Self(counters)
    }
}

impl Drop for OpenGuard<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sends slowly until the server closes the connection.
async fn hold(mut connection: TcpStream, mode: Slowness) {
    if connection.write_all(&mode.opening()).await.is_err() {
        return;
    }
    let (mut from_server, mut to_server) = connection.split();
    let until_closed = async {
        let mut answer = [0; 64];
        while from_server.read(&mut answer).await.is_ok_and(|bytes| bytes > 0) {}
    };
    let dribble = async {
        let Some(byte) = mode.byte() else { return std::future::pending().await };
        loop {
            let pause = rand::rng().random_range(BYTE_EVERY_MS);
            sleep_until(Instant::now() + Duration::from_millis(pause)).await;
            // A server that has stopped reading may still send a response.
            if to_server.write_all(&[byte]).await.is_err() {
                return std::future::pending().await;
            }
        }
    };
    tokio::select! {
        () = until_closed => {}
        () = dribble => {}
    }
}

#[cfg(test)]
mod tests {
    use tokio::{net::TcpListener, time::timeout};

    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn clients_hold_their_connection_and_reconnect_when_it_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut slow = SlowClients::start(listener.local_addr().unwrap(), 5, &Slowness::ALL);
        let mut reads = JoinSet::new();
        for _ in 0..5 {
            let (mut connection, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
            reads.spawn(async move {
                let mut opening = [0; 24];
                connection.read_exact(&mut opening).await.unwrap();
                (connection, opening)
            });
        }
        let mut held = Vec::new();
        let mut openings = Vec::new();
        for _ in 0..4 {
            let (connection, opening) = timeout(SOON, reads.join_next()).await.unwrap().unwrap().unwrap();
            held.push(connection);
            openings.push(String::from_utf8_lossy(&opening).into_owned());
        }
        openings.sort();
        assert!(
            openings[..2].iter().all(|opening| opening.starts_with("POST /likes HTTP/1.1")),
            "{openings:?}"
        );
        assert!(openings[2..].iter().all(|opening| opening.starts_with("PRI * HTTP/2.0")), "{openings:?}");
        let all_open = async {
            while slow.open() < 5 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, all_open).await.unwrap();
        assert_eq!((reads.len(), slow.open(), slow.closed()), (1, 5, 0));
        drop((held, reads));
        let (again, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
        drop((again, listener));
        timeout(SOON, slow.all_closed()).await.unwrap();
        assert_eq!(slow.open(), 0);
        assert!(slow.closed() >= 6, "{}", slow.closed());
    }
}
