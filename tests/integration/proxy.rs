//! TCP proxy that can hold requests or replies, so that a test can stop a program at a chosen point. It can also lead to
//! another server.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// Maximum number of bytes that are forwarded at once.
const CHUNK: usize = 16 << 10;

/// Proxy between a program and its server. Dropped, it closes all connections.
pub(crate) struct Proxy {
    address: SocketAddr,
    gates: Arc<Gates>,
    _connections: JoinSet<()>,
}

/// Whether and how bytes are forwarded.
struct Gates {
    server_port: watch::Sender<u16>,
    requests: watch::Sender<bool>,
    replies: watch::Sender<bool>,
}

impl Proxy {
    pub(crate) async fn start(server_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let gates = Arc::new(Gates {
            server_port: watch::Sender::new(server_port),
            requests: watch::Sender::new(true),
            replies: watch::Sender::new(true),
        });
        let mut connections = JoinSet::new();
        connections.spawn(accept(listener, Arc::clone(&gates)));
        Self { address, gates, _connections: connections }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn redis_url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Closes all connections and forwards later ones to another server.
    pub(crate) fn lead_to(&self, server_port: u16) {
        self.gates.server_port.send_replace(server_port);
    }

    /// Holds all further requests.
    pub(crate) fn hold_requests(&self) {
        self.gates.requests.send_replace(false);
    }

    /// Forwards held and further bytes.
    pub(crate) fn let_go(&self) {
        self.gates.requests.send_replace(true);
        self.gates.replies.send_replace(true);
    }

    /// Holds all further replies.
    pub(crate) fn hold_replies(&self) {
        self.gates.replies.send_replace(false);
    }
}

async fn accept(listener: TcpListener, gates: Arc<Gates>) {
    let mut connections = JoinSet::new();
    loop {
        let (program, _) = listener.accept().await.unwrap();
        connections.spawn(connect(program, Arc::clone(&gates)));
    }
}

/// Forwards the bytes of one connection until the proxy leads to another server.
async fn connect(program: TcpStream, gates: Arc<Gates>) {
    let mut server_port = gates.server_port.subscribe();
    let port = *server_port.borrow_and_update();
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let (from_program, to_program) = program.into_split();
    let (from_server, to_server) = server.into_split();
    let requests = pass(from_program, to_server, gates.requests.subscribe());
    let replies = pass(from_server, to_program, gates.replies.subscribe());
    tokio::select! {
        _ = async { tokio::join!(requests, replies) } => {}
        _ = server_port.changed() => {}
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut gate: watch::Receiver<bool>) {
    let mut bytes = vec![0; CHUNK];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        if gate.wait_for(|open| *open).await.is_err() || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
