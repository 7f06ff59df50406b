//! Link to a server on loopback, whose rate can be limited.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Mutex, watch},
    task::JoinSet,
    time::sleep,
};
use tokio_util::task::AbortOnDropHandle;

/// Bytes that are forwarded at once.
const CHUNK_BYTES: usize = 16 << 10;

/// TCP proxy. Dropped, it closes all connections.
pub struct Link {
    address: SocketAddr,
    rate: watch::Sender<Option<u32>>,
    _accepting: AbortOnDropHandle<()>,
}

/// One direction of the link. All connections share it.
struct Direction {
    rate: watch::Receiver<Option<u32>>,
    busy: Mutex<()>,
}

impl Link {
    /// Starts a link of unlimited rate.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(server_port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let rate = watch::Sender::new(None);
        let direction = || Arc::new(Direction { rate: rate.subscribe(), busy: Mutex::default() });
        let accepting = tokio::spawn(accept(listener, server_port, [direction(), direction()]));
        Ok(Self { address, rate, _accepting: AbortOnDropHandle::new(accepting) })
    }

    pub fn redis_url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Sets the maximum number of bytes per second in each direction.
    pub fn limit(&self, bytes_per_second: Option<u32>) {
        self.rate.send_replace(bytes_per_second);
    }
}

async fn accept(listener: TcpListener, server_port: u16, [up, down]: [Arc<Direction>; 2]) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let (up, down) = (Arc::clone(&up), Arc::clone(&down));
        connections.spawn(async move {
            let Ok(server) = TcpStream::connect(("127.0.0.1", server_port)).await else { return };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            // The end of either direction closes the connection.
            tokio::select! {
                () = pass(from_client, to_server, &up) => {}
                () = pass(from_server, to_client, &down) => {}
            }
        });
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, direction: &Direction) {
    let mut bytes = vec![0; CHUNK_BYTES];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        let rate = *direction.rate.borrow();
        if let Some(rate) = rate {
            let _busy = direction.busy.lock().await;
            sleep(Duration::from_secs_f64(read as f64 / f64::from(rate))).await;
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
