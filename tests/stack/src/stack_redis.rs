//! Redis deployment of a stack: one server or a cluster.

use std::{slice, thread, time::Duration};

use devstack::{
    StackError,
    process::Lifetime,
    redis_cluster::RedisCluster,
    redis_server::{RedisOptions, RedisServer},
};

/// Deployment of Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Deployment {
    /// One server
    #[default]
    One,
    /// Three primaries with one replica each
    Cluster,
}

pub(crate) enum StackRedis {
    One(RedisServer),
    Cluster(RedisCluster),
}

impl StackRedis {
    /// Starts the servers. A cluster always ends with this process.
    pub(crate) fn start(
        deployment: Deployment,
        options: RedisOptions,
        lifetime: Lifetime,
    ) -> Result<Self, StackError> {
        match deployment {
            Deployment::One => RedisServer::start(options, lifetime).map(Self::One),
            Deployment::Cluster => {
                let arguments: Vec<&str> = options.arguments.iter().map(String::as_str).collect();
                // Without a primary, only its own slots are unavailable.
                let arguments = [&["--cluster-require-full-coverage", "no"], &arguments[..]].concat();
                RedisCluster::start(&arguments).map(Self::Cluster)
            }
        }
    }

    /// Connection URL.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::One(server) => server.url(),
            Self::Cluster(cluster) => cluster.url(),
        }
    }

    pub(crate) fn servers(&self) -> &[RedisServer] {
        match self {
            Self::One(server) => slice::from_ref(server),
            Self::Cluster(cluster) => cluster.servers(),
        }
    }

    /// Current primary of a key.
    pub(crate) fn server_of(&mut self, key: &str) -> Result<&mut RedisServer, StackError> {
        match self {
            Self::One(server) => Ok(server),
            Self::Cluster(cluster) => {
                let master = cluster.master_of(key)?;
                Ok(&mut cluster.servers_mut()[master])
            }
        }
    }

    pub(crate) fn server_at(&mut self, port: u16) -> Result<&mut RedisServer, StackError> {
        let servers = match self {
            Self::One(server) => slice::from_mut(server),
            Self::Cluster(cluster) => cluster.servers_mut(),
        };
        servers.iter_mut().find(|server| server.port() == port).ok_or(StackError::Missing("the Redis server"))
    }

    /// Migrates the slot of a key to another primary, and pauses twice while the slot is divided between the two.
    pub(crate) fn move_slot(&self, key: &str, pause: Duration) -> Result<(), StackError> {
        let Self::Cluster(cluster) = self else { return Ok(()) };
        let to = cluster.other_master(cluster.master_of(key)?)?;
        cluster.move_slot(cluster.slot_of(key)?, to, || thread::sleep(pause))?;
        cluster.wait_healthy()
    }

    /// Waits until the deployment tolerates the loss of another server.
    pub(crate) fn wait_healthy(&self) -> Result<(), StackError> {
        match self {
            Self::One(_) => Ok(()),
            Self::Cluster(cluster) => cluster.wait_healthy(),
        }
    }

    /// Leaves a single server running when this value is dropped.
    pub(crate) fn detach(self) {
        match self {
            Self::One(server) => server.detach(),
            // Its servers are attached to this process.
            Self::Cluster(_) => {}
        }
    }
}
