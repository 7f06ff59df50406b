//! Batches writes of commands that are sent at the same time.
//!
//! fred 10 flushes the socket after each custom command (`CommandKind::should_flush`), even where more commands are queued:
//! each costs a system call and wakes Redis. For commands with a typed function it first checks the queue. So the frequent
//! commands are sent by those functions.

use fred::{
    bytes_utils::Str,
    interfaces::StreamsInterface,
    prelude::{Client, ClientLike, Error, Key, Value},
    types::{ClusterHash, CustomCommand},
};

/// Sends a command, by its typed function if it is a frequent one.
pub(super) async fn send(client: &Client, name: &'static str, args: Vec<Value>) -> Result<Value, Error> {
    match (name, args.as_slice()) {
        ("XADD", [stream, id, fields @ ..]) => {
            let (pairs, rest) = fields.as_chunks();
            let pairs = pairs.iter().map(|[name, value]| Some((Key::from(text(name)?), value.clone())));
            let fields: Option<Vec<_>> = pairs.collect();
            if let (Some(stream), Some(id), Some(fields), []) = (text(stream), text(id), fields, rest) {
                return client.xadd(stream, false, None::<()>, id, fields).await;
            }
        }
        ("XREADGROUP", [_, group, consumer, with_count, count, _, stream, id])
            if with_count.as_str().as_deref() == Some("COUNT") =>
        {
            if let (Some(group), Some(consumer), Some(count), Some(stream), Some(id)) =
                (text(group), text(consumer), count.as_u64(), text(stream), text(id))
            {
                return client.xreadgroup(group, consumer, Some(count), None, false, stream, id).await;
            }
        }
        _ => {}
    }
    client.custom(CustomCommand::new_static(name, ClusterHash::FirstKey, false), args).await
}

/// Sends commands without those of other tasks between them. Returns the reply to each.
///
/// # Errors
/// When not all commands have a reply.
pub(super) async fn send_together(
    client: &Client,
    commands: Vec<(&'static str, Vec<Value>)>,
) -> Result<Vec<Result<Value, Error>>, Error> {
    let pipeline = client.pipeline();
    let all = commands.len();
    for (name, args) in commands {
        let command = CustomCommand::new_static(name, ClusterHash::FirstKey, false);
        // Only queued here.
        pipeline.custom::<Value, _>(command, args).await?;
    }
    let mut answers = pipeline.try_all::<Value>().await;
    // Where the commands could not be sent, or a reply is missing, fred returns one error for all.
    match answers.pop() {
        Some(Err(error)) if answers.is_empty() && all > 1 => Err(error),
        last => {
            answers.extend(last);
            Ok(answers)
        }
    }
}

fn text(value: &Value) -> Option<Str> {
    value.as_bytes_str()
}
