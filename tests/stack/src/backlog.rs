//! What is still to be done, as Redis knows it.

use std::{error::Error, time::Duration};

use shared::{
    redis::{Connections, Redis},
    wire::partition::{KeyPrefix, Partition, PartitionCount},
};

/// How long a server that comes back is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// The keys of a likestream with default settings.
pub(crate) struct Keys {
    prefix: KeyPrefix,
    partitions: PartitionCount,
}

impl Default for Keys {
    fn default() -> Self {
        #[expect(clippy::expect_used, reason = "a constant")]
        let prefix = "likes".parse().expect("a prefix");
        Self { prefix, partitions: PartitionCount::DEFAULT }
    }
}

impl Keys {
    pub(crate) fn partitions(&self) -> impl Iterator<Item = Partition> {
        self.partitions.partitions()
    }

    pub(crate) fn stream(&self, partition: Partition) -> String {
        self.prefix.stream(partition)
    }

    pub(crate) fn dead_letters(&self, partition: Partition) -> String {
        self.prefix.dead_letters(partition)
    }
}

/// Connections to Redis that come back when their servers do.
pub(crate) async fn connect(redis_url: &str) -> Result<Connections, Box<dyn Error>> {
    Ok(Redis::at(redis_url, PATIENCE)?.connect().await?)
}

/// Undelivered and pending entries over all partitions.
pub(crate) async fn entries(redis: &Connections, keys: &Keys) -> Result<u64, fred::error::Error> {
    let mut entries = 0;
    for partition in keys.partitions() {
        entries += shared::backlog::of_stream(redis, &keys.stream(partition)).await?;
    }
    Ok(entries)
}
