//! What is still to be done, as Redis knows it.

use fred::prelude::{Builder, Client, ClientLike, Config, Error, ReconnectPolicy};
use shared::partition::{KeyPrefix, Partition, PartitionCount};

/// The keys of a likestream with default settings.
pub(crate) struct Keys {
    prefix: KeyPrefix,
    partitions: PartitionCount,
}

impl Default for Keys {
    fn default() -> Self {
        #[expect(clippy::expect_used, reason = "constants")]
        let (prefix, partitions) = ("likes".parse().expect("a prefix"), "16".parse().expect("a count"));
        Self { prefix, partitions }
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

/// A client that comes back when its server does.
pub(crate) async fn connect(redis_url: &str) -> Result<Client, Error> {
    let mut builder = Builder::from_config(Config::from_url(redis_url)?);
    builder.set_policy(ReconnectPolicy::new_constant(0, 100));
    builder.with_performance_config(|performance| {
        performance.default_command_timeout = std::time::Duration::from_secs(5);
    });
    let client = builder.build()?;
    client.init().await?;
    Ok(client)
}

/// Undelivered and pending entries over all partitions.
pub(crate) async fn entries(client: &Client, keys: &Keys) -> Result<u64, Error> {
    let mut entries = 0;
    for partition in keys.partitions() {
        entries += shared::backlog::of_stream(client, &keys.stream(partition)).await?;
    }
    Ok(entries)
}
