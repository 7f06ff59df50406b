//! Quotas: rate limits per user and per client address.

use std::{
    hash::Hash,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use axum::http::{HeaderMap, HeaderName};
use clap::Args;
use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use ipnet::IpNet;
use shared::settings::args::integer;
use thiserror::Error;
use tokio::{sync::Notify, task::spawn_blocking};
use tokio_util::task::AbortOnDropHandle;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Number of checks between two sweeps. A sweep removes the buckets that are full again.
const SWEEP_AFTER_CHECKS: usize = 200_000;

/// Over this number, all buckets are removed: requests with made-up users must not exhaust memory.
const MAX_BUCKETS: usize = 1_000_000;

/// Length of the IPv6 prefix that a provider assigns to one customer.
const IPV6_CLIENT_BITS: u32 = 64;

/// Settings of quotas and limits.
#[derive(Args, Debug)]
#[expect(clippy::struct_field_names, reason = "fields are named as their settings are")]
pub(crate) struct QuotaArgs {
    /// Maximum number of requests in flight; excess requests get 503
    #[arg(long, env = "INGEST_MAX_REQUESTS", default_value = "10000", value_name = "COUNT",
          value_parser = integer(1..=1_000_000_u32))]
    pub(crate) ingest_max_requests: u32,

    /// Maximum rate of likes per user, such as 20/s or 600/m; excess likes get 429 [default: unlimited]
    ///
    /// The number is also the burst.
    #[arg(long, env = "INGEST_USER_RATE", value_name = "RATE")]
    ingest_user_rate: Option<Rate>,

    /// Maximum rate of requests per client address, such as 100/s; excess requests get 429 [default: unlimited]
    ///
    /// The number is also the burst. IPv6 addresses are counted by /64 prefix.
    #[arg(long, env = "INGEST_ADDRESS_RATE", value_name = "RATE")]
    ingest_address_rate: Option<Rate>,

    /// Maximum number of connections per peer address; excess connections are closed [default: unlimited]
    ///
    /// Behind a proxy, all connections have the address of the proxy.
    #[arg(long, env = "INGEST_ADDRESS_CONNECTIONS", value_name = "COUNT", value_parser = integer(1..=1_000_000_u32))]
    pub(crate) ingest_address_connections: Option<u32>,

    /// Addresses or networks of proxies whose X-Forwarded-For is trusted, such as 10.0.0.0/8 [default: none]
    #[arg(long, env = "INGEST_TRUSTED_PROXIES", value_name = "NETWORKS", value_delimiter = ',', value_parser = network)]
    ingest_trusted_proxies: Vec<IpNet>,
}

#[derive(Debug, Error)]
#[error("expected an IP address or a network such as 10.0.0.0/8 or fd00::/8")]
struct NotANetwork;

fn network(text: &str) -> Result<IpNet, NotANetwork> {
    let text = text.trim();
    text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| NotANetwork)
}

/// A number of likes or requests per period, which is also the burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rate {
    count: NonZeroU32,
    period: Duration,
}

#[derive(Debug, Error)]
#[error("expected a number from 1 to 1000000 per second, minute or hour, such as 20/s, 600/m or 5000/h")]
struct NotARate;

impl FromStr for Rate {
    type Err = NotARate;

    fn from_str(text: &str) -> Result<Self, NotARate> {
        let (count, unit) = text.split_once('/').ok_or(NotARate)?;
        let digits = Some(count).filter(|count| count.bytes().all(|b| b.is_ascii_digit()));
        let count = digits.and_then(|count| count.parse().ok());
        let count = count.filter(|count: &NonZeroU32| count.get() <= 1_000_000);
        let period = match unit {
            "s" => Duration::from_secs(1),
            "m" => Duration::from_mins(1),
            "h" => Duration::from_hours(1),
            _ => return Err(NotARate),
        };
        Ok(Self { count: count.ok_or(NotARate)?, period })
    }
}

/// Error of a client that exceeds a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QuotaExceeded {
    pub(crate) quota: QuotaKind,
    /// Time until the next like or request is allowed.
    pub(crate) wait: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QuotaKind {
    User,
    Address,
}

/// Quotas of all users and client addresses.
pub(crate) struct Quotas {
    users: Option<TokenBuckets<i64>>,
    addresses: Option<TokenBuckets<IpAddr>>,
    trusted_proxies: Vec<IpNet>,
}

impl Quotas {
    pub(crate) fn new(args: &QuotaArgs) -> Self {
        Self {
            users: args.ingest_user_rate.map(TokenBuckets::new),
            addresses: args.ingest_address_rate.map(TokenBuckets::new),
            trusted_proxies: args.ingest_trusted_proxies.clone(),
        }
    }

    /// Charges one like to a user's quota.
    pub(crate) fn charge_like(&self, user_id: i64) -> Result<(), QuotaExceeded> {
        let Some(users) = &self.users else { return Ok(()) };
        users.take(&user_id).map_err(|wait| QuotaExceeded { quota: QuotaKind::User, wait })
    }

    /// Charges one request to the quota of the client's address.
    pub(crate) fn charge_request(&self, peer: IpAddr, headers: &HeaderMap) -> Result<(), QuotaExceeded> {
        let Some(addresses) = &self.addresses else { return Ok(()) };
        let client = client_key(client_address(peer, headers, &self.trusted_proxies));
        addresses.take(&client).map_err(|wait| QuotaExceeded { quota: QuotaKind::Address, wait })
    }
}

/// Returns the address of the client: the peer, or, if the peer is a trusted proxy, the last untrusted address that
/// `X-Forwarded-For` lists. A proxy appends its own peer to the list; entries before the last untrusted one may be forged.
fn client_address(peer: IpAddr, headers: &HeaderMap, trusted_proxies: &[IpNet]) -> IpAddr {
    let is_proxy = |address: &IpAddr| trusted_proxies.iter().any(|network| network.contains(address));
    let mut client = peer.to_canonical();
    // An unreadable entry ends the search: entries before it are not trusted.
    let lists = headers.get_all(X_FORWARDED_FOR).iter().rev().map(|value| value.to_str().unwrap_or_default());
    for hop in lists.flat_map(|list| list.rsplit(',')) {
        if !is_proxy(&client) {
            break;
        }
        let Some(hop) = address(hop.trim()) else { break };
        client = hop.to_canonical();
    }
    client
}

/// Parses an address in the forms that proxies write, with or without a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

/// Returns the address that quotas count a client by: all IPv6 addresses of one customer share one.
pub(crate) fn client_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let mask = u128::MAX << (u128::BITS - IPV6_CLIENT_BITS);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
        IpAddr::V4(v4) => v4.into(),
    }
}

/// One token bucket per key.
struct TokenBuckets<K: Hash + Eq + Clone> {
    limiter: Arc<ArcSwap<DefaultKeyedRateLimiter<K>>>,
    clock: DefaultClock,
    checks: AtomicUsize,
    sweep: Arc<Notify>,
    _sweeping: AbortOnDropHandle<()>,
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> TokenBuckets<K> {
    fn new(rate: Rate) -> Self {
        let per_token = (rate.period / rate.count.get()).max(Duration::from_nanos(1));
        let quota = Quota::with_period(per_token)
            .map_or(Quota::per_second(rate.count), |quota| quota.allow_burst(rate.count));
        let limiter = Arc::new(ArcSwap::from_pointee(RateLimiter::dashmap(quota)));
        let sweep = Arc::new(Notify::new());
        let sweeping = sweep_on_signal(Arc::clone(&limiter), quota, Arc::clone(&sweep));
        Self {
            limiter,
            clock: DefaultClock::default(),
            checks: AtomicUsize::new(0),
            sweep,
            _sweeping: AbortOnDropHandle::new(tokio::spawn(sweeping)),
        }
    }

    /// Takes a token, or returns the time until the next token is available.
    fn take(&self, key: &K) -> Result<(), Duration> {
        if self.checks.fetch_add(1, Ordering::Relaxed).is_multiple_of(SWEEP_AFTER_CHECKS) {
            self.sweep.notify_one();
        }
        let limiter = self.limiter.load();
        limiter.check_key(key).map_err(|not_until| not_until.wait_time_from(self.clock.now()))
    }
}

async fn sweep_on_signal<K: Hash + Eq + Clone + Send + Sync + 'static>(
    limiter: Arc<ArcSwap<DefaultKeyedRateLimiter<K>>>,
    quota: Quota,
    signal: Arc<Notify>,
) {
    loop {
        signal.notified().await;
        let swept = Arc::clone(&limiter);
        let sweep = spawn_blocking(move || {
            let buckets = swept.load();
            buckets.retain_recent();
            buckets.shrink_to_fit();
            if buckets.len() > MAX_BUCKETS {
                tracing::warn!(
                    buckets = buckets.len(),
                    "too many rate limit buckets, resetting the quotas of this kind"
                );
                swept.store(Arc::new(RateLimiter::dashmap(quota)));
            }
        });
        let _ = sweep.await;
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn rates_parse_as_a_number_per_period() {
        let rate =
            |text: &str| text.parse::<Rate>().ok().map(|rate| (rate.count.get(), rate.period.as_secs()));
        assert_eq!(rate("20/s"), Some((20, 1)));
        assert_eq!(rate("600/m"), Some((600, 60)));
        assert_eq!(rate("1000000/h"), Some((1_000_000, 3600)));
        for bad in ["", "20", "0/s", "-1/s", "+1/s", "20/d", "20/ s", "1000001/s", "1.5/s", "/s"] {
            assert_eq!(rate(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_last_untrusted_address_is_the_client() {
        let trusted = [network("10.0.0.0/8").unwrap(), network("fd00::1").unwrap()];
        let client = |peer: &str, lists: &[&str]| {
            let mut headers = HeaderMap::new();
            for list in lists {
                headers.append(X_FORWARDED_FOR, HeaderValue::from_bytes(list.as_bytes()).unwrap());
            }
            client_address(ip(peer), &headers, &trusted)
        };
        assert_eq!(client("192.0.2.1", &["198.51.100.7"]), ip("192.0.2.1"), "not a trusted proxy");
        assert_eq!(client("10.0.0.1", &[]), ip("10.0.0.1"));
        assert_eq!(client("10.0.0.1", &["198.51.100.7"]), ip("198.51.100.7"));
        assert_eq!(
            client("10.0.0.1", &["1.2.3.4, 198.51.100.7"]),
            ip("198.51.100.7"),
            "the rest may be forged"
        );
        assert_eq!(client("10.0.0.1", &["1.2.3.4", "198.51.100.7, 10.0.0.2"]), ip("198.51.100.7"));
        assert_eq!(client("::ffff:10.0.0.1", &["2001:db8::1"]), ip("2001:db8::1"));
        assert_eq!(client("fd00::1", &["nonsense"]), ip("fd00::1"));
        assert_eq!(
            client("10.0.0.1", &["6.6.6.6", "\u{e9}"]),
            ip("10.0.0.1"),
            "entries before it are not trusted"
        );
        for with_port in ["198.51.100.7:4711", "[2001:db8::1]:4711", "[2001:db8::1]"] {
            assert_ne!(client("10.0.0.1", &[with_port]), ip("10.0.0.1"), "{with_port}");
        }
    }

    #[test]
    fn ipv6_addresses_of_one_64_bit_prefix_share_a_key() {
        assert_eq!(client_key(ip("2001:db8::1:2:3:4")), client_key(ip("2001:db8::")));
        assert_ne!(client_key(ip("2001:db8:0:1::1")), client_key(ip("2001:db8::1")));
        assert_ne!(client_key(ip("192.0.2.1")), client_key(ip("192.0.2.2")));
        assert_eq!(client_key(ip("::ffff:192.0.2.1")), ip("192.0.2.1"));
    }

    #[tokio::test]
    async fn every_key_has_its_own_bucket() {
        let buckets = TokenBuckets::new("3/h".parse().unwrap());
        for _ in 0..3 {
            assert_eq!(buckets.take(&1), Ok(()));
        }
        let wait = buckets.take(&1).unwrap_err();
        assert!(wait > Duration::from_mins(19) && wait <= Duration::from_mins(20), "{wait:?}");
        assert_eq!(buckets.take(&2), Ok(()));
    }
}
