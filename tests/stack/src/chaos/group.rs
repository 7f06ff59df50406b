//! The consumer group in Redis.

use std::collections::HashMap;

use devstack::backlog::Keys;
use fred::prelude::{Error, Value};
use shared::redis::{Connections, Retry};

const GROUP: &str = "likes-writers";

/// Id of the last entry of a stream that was delivered to the group.
pub(super) async fn last_delivered(redis: &Connections, stream: &str) -> Result<String, Error> {
    let groups = info(redis, "GROUPS", vec![stream.into()], stream).await?;
    let id = groups.first().and_then(|group| group.get("last-delivered-id")?.as_string());
    Ok(id.unwrap_or_else(|| "0-0".to_owned()))
}

/// Returns whether a consumer has read from any stream.
pub(super) async fn has_reader(redis: &Connections, name: &str) -> Result<bool, Error> {
    for stream in Keys::default().streams() {
        let of_group = vec![stream.as_str().into(), GROUP.into()];
        let consumers = info(redis, "CONSUMERS", of_group, &stream).await?;
        let is_reader = |consumer: &HashMap<String, Value>| {
            consumer.get("name").and_then(Value::as_string).is_some_and(|found| found.starts_with(name))
        };
        if consumers.iter().any(is_reader) {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn info(
    redis: &Connections,
    about: &str,
    of: Vec<Value>,
    stream: &str,
) -> Result<Vec<HashMap<String, Value>>, Error> {
    let arguments = [vec![about.into()], of].concat();
    redis.run(stream, Retry::Idempotent, "XINFO", arguments).await
}
