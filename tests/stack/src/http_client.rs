//! HTTP/1.1 client with one keep-alive connection, which is replaced after a failure.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Request, StatusCode,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{net::TcpStream, time::timeout};

const TIMEOUT: Duration = Duration::from_secs(30);

/// A request without a response.
#[derive(Debug, Error)]
pub enum HttpError {
    #[error("cannot connect")]
    Connect(#[from] std::io::Error),
    #[error("the connection failed")]
    Broken(#[from] hyper::Error),
    #[error("invalid request")]
    Request(#[from] hyper::http::Error),
    #[error("no response within {} s", TIMEOUT.as_secs())]
    Timeout,
}

/// Complete response.
#[derive(Debug)]
pub struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Client of one server that sends one request at a time.
pub struct HttpClient {
    address: SocketAddr,
    host: String,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl HttpClient {
    /// The first request opens the connection.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, host: address.to_string(), connection: None }
    }

    /// POSTs a like as JSON to `/likes`.
    pub async fn post_like(&mut self, user_id: u64, post_id: u64) -> Result<Response, HttpError> {
        let body = format!("{{\"user_id\":{user_id},\"post_id\":{post_id}}}");
        self.post("/likes", "application/json", body.into()).await
    }

    pub async fn post(&mut self, path: &str, content_type: &str, body: Bytes) -> Result<Response, HttpError> {
        let request = Request::post(path).header(header::CONTENT_TYPE, content_type).body(Full::new(body))?;
        self.send(request).await
    }

    /// Sends any request. After a failure, the next request opens a new connection.
    pub async fn send(&mut self, mut request: Request<Full<Bytes>>) -> Result<Response, HttpError> {
        let host = self.host.parse().map_err(hyper::http::Error::from)?;
        request.headers_mut().entry(header::HOST).or_insert(host);
        let mut connection = match self.connection.take() {
            Some(connection) if !connection.is_closed() => connection,
            _ => self.connect().await?,
        };
        let exchange = async {
            connection.ready().await?;
            let (head, body) = connection.send_request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok::<_, hyper::Error>(Response { status: head.status, headers: head.headers, body })
        };
        let response = timeout(TIMEOUT, exchange).await.map_err(|_| HttpError::Timeout)??;
        self.connection = Some(connection);
        Ok(response)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, HttpError> {
        let stream =
            timeout(TIMEOUT, TcpStream::connect(self.address)).await.map_err(|_| HttpError::Timeout)??;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Its error is reported by the next request.
        tokio::spawn(connection);
        Ok(sender)
    }
}
