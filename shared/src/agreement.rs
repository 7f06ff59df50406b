//! What all programs of one likestream must agree on is recorded in Redis by the first one that starts.

use fred::{
    prelude::{Client, ClientLike, HashesInterface, KeysInterface},
    types::InfoKind,
};
use thiserror::Error;

use crate::{config::StreamArgs, partition::PartitionCount};

const PARTITIONS: &str = "partitions";

/// The programs would not agree, or Redis could not tell.
#[derive(Debug, Error)]
pub enum AgreementError {
    /// Redis failed.
    #[error("the settings recorded in Redis can't be read")]
    Redis(#[from] fred::error::Error),
    /// Another number of partitions is on record.
    #[error(
        "LIKES_PARTITIONS: '{configured}' is not what Redis has on record in {key}: allowed is {recorded}"
    )]
    Partitions {
        /// By this program's settings.
        configured: PartitionCount,
        /// By the first program that started.
        recorded: String,
        /// The key of the record.
        key: String,
    },
    /// The key is someone else's.
    #[error(
        "LIKES_STREAM: the key {key} in Redis is a {kind}, not the hash of likestream's settings: choose another prefix, or remove it"
    )]
    ForeignKey {
        /// The key of the record.
        key: String,
        /// Its Redis type.
        kind: String,
    },
}

impl AgreementError {
    /// Whether a setting has to be corrected.
    pub fn is_over_a_setting(&self) -> bool {
        !matches!(self, Self::Redis(_))
    }
}

/// Records the number of partitions if nobody has, and otherwise compares.
pub async fn settle(client: &Client, streams: &StreamArgs) -> Result<(), AgreementError> {
    let key = streams.likes_stream.settings();
    let configured = streams.likes_partitions;
    let kind: String = client.r#type(&key).await?;
    if kind != "hash" && kind != "none" {
        return Err(AgreementError::ForeignKey { key, kind });
    }
    // A Redis that is out of memory refuses to write, even where there would be nothing to write.
    let mut recorded: Option<String> = client.hget(&key, PARTITIONS).await?;
    if recorded.is_none() {
        let _: bool = client.hsetnx(&key, PARTITIONS, configured.get()).await?;
        recorded = client.hget(&key, PARTITIONS).await?;
    }
    let recorded = recorded.unwrap_or_default();
    if recorded.parse().is_ok_and(|recorded: PartitionCount| recorded == configured) {
        Ok(())
    } else {
        Err(AgreementError::Partitions { configured, recorded, key })
    }
}

/// Says so, loudly, when Redis might drop streams to make room.
pub async fn warn_of_eviction(client: &Client) {
    let memory: String = match client.info(Some(InfoKind::Memory)).await {
        Ok(memory) => memory,
        Err(error) => {
            tracing::warn!(%error, "Redis does not tell its maxmemory-policy: see that it is noeviction");
            return;
        }
    };
    let field = |name: &str| memory.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let policy = field("maxmemory_policy").unwrap_or("unknown");
    if policy.starts_with("allkeys") {
        tracing::error!(
            maxmemory_policy = policy,
            "Redis drops likes when its memory is full: set maxmemory-policy to noeviction"
        );
    }
}
