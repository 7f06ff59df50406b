//! Backlog of all partitions, as reported by Redis.

use std::{error::Error, time::Duration};

use shared::{
    redis::{Connections, Redis},
    wire::partition::{KeyPrefix, Partition, PartitionCount},
};

/// Time limit of a command while its server is unavailable.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// Redis keys of a likestream with default settings.
pub struct Keys {
    prefix: KeyPrefix,
    partitions: PartitionCount,
}

impl Default for Keys {
    fn default() -> Self {
        #[expect(clippy::expect_used, reason = "a constant")]
        let prefix = "likes".parse().expect("a valid prefix");
        Self { prefix, partitions: PartitionCount::DEFAULT }
    }
}

impl Keys {
    pub fn partitions(&self) -> impl Iterator<Item = Partition> {
        self.partitions.partitions()
    }

    pub fn stream(&self, partition: Partition) -> String {
        self.prefix.stream(partition)
    }

    pub fn streams(&self) -> impl Iterator<Item = String> {
        self.partitions().map(|partition| self.stream(partition))
    }

    pub fn dead_letters(&self, partition: Partition) -> String {
        self.prefix.dead_letters(partition)
    }
}

/// Opens connections to Redis that survive restarts of its servers.
pub async fn connect(redis_url: &str) -> Result<Connections, Box<dyn Error>> {
    Ok(Redis::at(redis_url, COMMAND_TIMEOUT)?.connect().await?)
}

/// Counts undelivered and pending entries over all streams.
pub async fn entries(
    redis: &Connections,
    streams: impl IntoIterator<Item = String>,
) -> Result<u64, fred::error::Error> {
    let mut entries = 0;
    for stream in streams {
        entries += shared::backlog::of_stream(redis, &stream).await?;
    }
    Ok(entries)
}
