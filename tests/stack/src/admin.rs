//! Client of a program's admin port.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Sends a GET request and returns status and body.
pub fn get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut connection = TcpStream::connect_timeout(&address, TIMEOUT)?;
    connection.set_read_timeout(Some(TIMEOUT))?;
    connection.set_write_timeout(Some(TIMEOUT))?;
    write!(connection, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut response = String::new();
    connection.read_to_string(&mut response)?;
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "not an HTTP response");
    let (head, body) = response.split_once("\r\n\r\n").ok_or_else(broken)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(broken)?;
    Ok((status, body.to_owned()))
}

/// Metrics of one program at one time.
#[derive(Clone, Debug)]
pub struct Metrics(String);

impl Metrics {
    /// Reads `/metrics`.
    pub fn read(address: SocketAddr) -> io::Result<Self> {
        get(address, "/metrics").map(|(_, text)| Self(text))
    }

    /// Returns whether a metric has any series.
    pub fn has(&self, name: &str) -> bool {
        let is_series = |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        self.0.lines().any(is_series)
    }

    /// Sums a metric over all of its series; 0 without any.
    pub fn sum(&self, name: &str) -> f64 {
        self.sum_where(name, "")
    }

    /// Sums a metric over the series whose labels contain a text, like `code="backlog-full"`.
    pub fn sum_where(&self, name: &str, labels: &str) -> f64 {
        let series = self.0.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, found_labels) = series.split_once('{').unwrap_or((series, ""));
            (found == name && found_labels.contains(labels)).then(|| value.parse::<f64>().ok()).flatten()
        });
        series.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_by_name_and_labels() {
        let metrics = Metrics("# TYPE a counter\na{x=\"1\"} 2\na{x=\"2\"} 3\nab 7\n".to_owned());
        assert!((metrics.sum("a") - 5.0).abs() < f64::EPSILON);
        assert!((metrics.sum_where("a", "x=\"2\"") - 3.0).abs() < f64::EPSILON);
        assert!(metrics.sum("none").abs() < f64::EPSILON);
        assert!(metrics.has("a") && metrics.has("ab") && !metrics.has("b"));
    }
}
