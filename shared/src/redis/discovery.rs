//! Discovers the servers: the one of the URL, the primary behind Sentinel, or the nodes of a cluster.

use std::{sync::Arc, time::Duration};

use fred::{
    prelude::{Config, Error, ErrorKind, Value},
    types::config::Server,
};
use futures_util::{StreamExt, TryFutureExt, future::try_join, stream::FuturesUnordered};
use tokio::time::{Instant, timeout_at};

use super::{Connection, Redis, connection::address, target::Deployment, topology::Topology};

/// Time limit for the other nodes of a cluster after the first reply.
const OTHER_ANSWERS: Duration = Duration::from_millis(100);

impl Redis {
    /// Returns which server owns which slots. Asks the servers in `connected` first; if none replies, those in `known` and in
    /// the URL.
    pub(super) async fn discover(
        &self,
        connected: &[Arc<Connection>],
        known: &[Server],
    ) -> Result<Topology, Error> {
        let target = self.target().await?;
        match &target.deployment {
            Deployment::One(server) => Ok(Topology::of_one(server.clone())),
            Deployment::Sentinels { sentinels, login, master } => {
                self.ask_sentinels(sentinels, (login, target.has_tls), master).await.map(Topology::of_one)
            }
            Deployment::Cluster { seeds } => {
                if let Ok(topology) = newest(connected.iter().map(|connection| ask_node(connection))).await {
                    return Ok(topology);
                }
                let mut servers: Vec<&Server> = seeds.iter().chain(known).collect();
                servers.sort_unstable();
                servers.dedup();
                let asked = servers
                    .into_iter()
                    .map(|server| self.open(server).and_then(async |connection| ask_node(&connection).await));
                newest(asked).await
            }
        }
    }

    /// Source: "Guidelines for Redis clients with support for Redis Sentinel".
    async fn ask_sentinels(
        &self,
        sentinels: &[Server],
        (login, has_tls): (&Config, bool),
        master: &str,
    ) -> Result<Server, Error> {
        let mut failed = Error::new(ErrorKind::Sentinel, "REDIS_URL names no sentinels");
        for sentinel in sentinels {
            let asked = async {
                let connection = self.open_with(login.clone(), has_tls, sentinel).await?;
                let args = ["GET-MASTER-ADDR-BY-NAME", master].map(Value::from).into();
                connection.send::<Option<(String, u16)>>("SENTINEL", args).await
            };
            match asked.await {
                Ok(Some((host, port))) => return Ok(Server::new(host, port)),
                Ok(None) => {
                    let why = format!(
                        "sentinel {} monitors no primary named '{master}' (sentinelServiceName)",
                        address(sentinel)
                    );
                    failed = Error::new(ErrorKind::Sentinel, why);
                }
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}

/// Returns a node's view of the cluster, with its epoch.
async fn ask_node(connection: &Connection) -> Result<(u64, Topology), Error> {
    let (info, slots) = try_join(
        connection.send::<String>("CLUSTER", vec!["INFO".into()]),
        connection.send::<Value>("CLUSTER", vec!["SLOTS".into()]),
    )
    .await?;
    let epoch =
        info.lines().find_map(|line| line.strip_prefix("cluster_current_epoch:")?.trim().parse().ok());
    Ok((epoch.unwrap_or(0), Topology::of_cluster(slots, &connection.server.host)?))
}

/// Returns the view with the newest epoch: a node that is cut off from the others has an outdated one. After the first reply
/// the other nodes have [`OTHER_ANSWERS`].
async fn newest(
    asked: impl Iterator<Item = impl Future<Output = Result<(u64, Topology), Error>>>,
) -> Result<Topology, Error> {
    let mut asked: FuturesUnordered<_> = asked.collect();
    let mut best: Option<(u64, Topology)> = None;
    let mut failed = Error::new(ErrorKind::Cluster, "no node of the cluster is known");
    let mut until = None;
    loop {
        let answer = match until {
            None => asked.next().await,
            Some(until) => timeout_at(until, asked.next()).await.unwrap_or_default(),
        };
        match answer {
            None => return best.map(|(_, topology)| topology).ok_or(failed),
            Some(Ok((epoch, topology))) => {
                until.get_or_insert_with(|| Instant::now() + OTHER_ANSWERS);
                let how_good = (epoch, topology.covered());
                if best.as_ref().is_none_or(|(newest, best)| how_good > (*newest, best.covered())) {
                    best = Some((epoch, topology));
                }
            }
            Some(Err(error)) => failed = error,
        }
    }
}
