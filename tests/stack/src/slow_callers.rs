//! Callers that hold a connection and never come to the end of a request (slow loris).

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

/// Between two bytes of a caller.
const BYTE_EVERY_MS: std::ops::Range<u64> = 500..2_000;

/// Within which all of them come, and those that were closed come again.
const COME_WITHIN_MS: std::ops::Range<u64> = 0..1_000;

/// The longest header block that one frame may announce unasked.
const CONTINUATION_BYTES: u32 = 16_384;

/// How a caller is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slowness {
    /// It sends nothing.
    Silent,
    /// It sends a byte of a header now and then.
    Head,
    /// It sends a byte of a body now and then.
    Body,
    /// It says that it speaks HTTP/2, and nothing more.
    Http2Silent,
    /// It sends a byte of an HTTP/2 header block now and then.
    Http2Head,
}

impl Slowness {
    /// Those of HTTP/1.1.
    pub const HTTP1: [Self; 3] = [Self::Silent, Self::Head, Self::Body];

    /// All there are.
    pub const ALL: [Self; 5] = [Self::Silent, Self::Head, Self::Body, Self::Http2Silent, Self::Http2Head];

    /// What it sends at once.
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
                // HEADERS without END_HEADERS on stream 1, of ":method: GET" alone; then a CONTINUATION begins.
                opening.extend(http2_frame(1, 0x1, 1));
                opening.push(0x82);
                opening.extend(http2_frame(CONTINUATION_BYTES, 0x9, 1));
                opening
            }
        }
    }

    /// What it goes on with.
    fn byte(self) -> Option<u8> {
        match self {
            Self::Silent | Self::Http2Silent => None,
            Self::Head | Self::Http2Head => Some(b'a'),
            Self::Body => Some(b' '),
        }
    }
}

/// The client's preface and an empty SETTINGS.
///
/// Source: RFC 9113, sections 3.4 and 4.1.
fn http2_preface() -> Vec<u8> {
    let mut preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    preface.extend(http2_frame(0, 0x4, 0));
    preface
}

/// The head of a frame without flags.
fn http2_frame(bytes: u32, kind: u8, stream: u32) -> [u8; 9] {
    let [_, high, middle, low] = bytes.to_be_bytes();
    let [a, b, c, d] = stream.to_be_bytes();
    [high, middle, low, kind, 0, a, b, c, d]
}

/// Slow callers at work. Dropped, they close their connections.
pub struct SlowCallers {
    seen: Arc<Seen>,
    callers: JoinSet<()>,
}

/// What they have seen.
#[derive(Default)]
struct Seen {
    open: AtomicU64,
    closed: AtomicU64,
    come_no_more: AtomicBool,
}

impl SlowCallers {
    /// Starts so many of them, as many of each kind. A caller whose connection is closed comes again.
    pub fn start(address: SocketAddr, callers: u32, kinds: &'static [Slowness]) -> Self {
        let seen = Arc::new(Seen::default());
        let kinds = kinds.iter().copied().cycle().take(callers as usize);
        let callers = kinds.map(|kind| be_slow(address, kind, Arc::clone(&seen))).collect();
        Self { seen, callers }
    }

    /// Connections that are open now.
    pub fn open(&self) -> u64 {
        self.seen.open.load(Ordering::Relaxed)
    }

    /// Connections that the server has closed so far.
    pub fn closed(&self) -> u64 {
        self.seen.closed.load(Ordering::Relaxed)
    }

    /// Waits until the server has closed every connection. From now on nobody comes again.
    pub async fn all_closed(&mut self) {
        self.seen.come_no_more.store(true, Ordering::Relaxed);
        while self.callers.join_next().await.is_some() {}
    }

    /// Closes all connections.
    pub async fn stop(mut self) {
        self.callers.shutdown().await;
    }
}

async fn be_slow(address: SocketAddr, kind: Slowness, seen: Arc<Seen>) {
    loop {
        let pause = rand::rng().random_range(COME_WITHIN_MS);
        sleep(Duration::from_millis(pause)).await;
        if seen.come_no_more.load(Ordering::Relaxed) {
            return;
        }
        // Nobody there is as good as closed at once.
        if let Ok(connection) = TcpStream::connect(address).await {
            let open = Open::new(&seen);
            hold(connection, kind).await;
            drop(open);
            seen.closed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Counts a connection for as long as it is there.
struct Open<'a>(&'a Seen);

impl<'a> Open<'a> {
    fn new(seen: &'a Seen) -> Self {
        seen.open.fetch_add(1, Ordering::Relaxed);
        Self(seen)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns when the server has closed the connection.
async fn hold(mut connection: TcpStream, kind: Slowness) {
    if connection.write_all(&kind.opening()).await.is_err() {
        return;
    }
    let (mut from_server, mut to_server) = connection.split();
    let until_closed = async {
        let mut answer = [0; 64];
        while from_server.read(&mut answer).await.is_ok_and(|bytes| bytes > 0) {}
    };
    let dribble = async {
        let Some(byte) = kind.byte() else { return std::future::pending().await };
        loop {
            let pause = rand::rng().random_range(BYTE_EVERY_MS);
            sleep_until(Instant::now() + Duration::from_millis(pause)).await;
            // A server that reads no more may have something to say yet.
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

    /// Each holds its connection until the server closes it, and then comes again unless it is told not to.
    #[tokio::test]
    async fn they_hold_and_come_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut slow = SlowCallers::start(listener.local_addr().unwrap(), 5, &Slowness::ALL);
        let mut reads = JoinSet::new();
        for _ in 0..5 {
            let (mut connection, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
            reads.spawn(async move {
                let mut opening = [0; 24];
                connection.read_exact(&mut opening).await.unwrap();
                (connection, opening)
            });
        }
        let (mut held, mut openings) = (Vec::new(), Vec::new());
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
