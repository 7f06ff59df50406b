//! Checks of the binding between the group and its database, and of what Redis and Postgres have lost.

use consumer::{
    group::{
        binding::{Relation, copy_warning, mismatch, relation},
        losses::{self, Since},
    },
    store::watermarks,
};
use tokio_postgres::Client;

use super::findings::Findings;
use crate::{
    context::{Context, answer},
    database::{describe, identity, open_incidents},
    exit::CliError,
    output::many,
};

pub(super) async fn check(
    findings: &mut Findings,
    context: &Context,
    client: &mut Client,
    address: &str,
) -> Result<(), CliError> {
    // A schema that cannot be used is reported by another check.
    let Ok(found) = identity(client, address).await else { return Ok(()) };
    let group = context.streams.group();
    match context.streams.binding().await? {
        None => findings.ok("database", "the group is not bound yet; the first consumer binds it")?,
        Some(binding) => match relation(&found, &binding) {
            Relation::Same => {
                findings.ok("database", format!("the group writes to {}", describe(&binding)))?;
            }
            Relation::Copy => findings.warn(
                "database",
                copy_warning(&found, &binding),
                "if consumers are to use this copy, run likesctl group bind; else correct DATABASE_URL",
            )?,
            Relation::Other => {
                let advice = "this doctor and the consumers look at different databases";
                return findings.fail("database", mismatch(group, &found, &binding), advice);
            }
        },
    }
    streams(findings, context, client).await?;
    let open = open_incidents(context, client).await?;
    if open == 0 {
        return findings.ok("incidents", "none open");
    }
    findings.fail(
        "incidents",
        format!("{} not acknowledged", many(open, "incident is", "incidents are")),
        "likes are lost or may be; run likesctl incidents list, and see docs/runbook.md#incidents",
    )
}

/// Compares the streams with what consumers last saw of them. Consumers turn a difference into an incident.
async fn streams(findings: &mut Findings, context: &Context, client: &Client) -> Result<(), CliError> {
    let partitions: Vec<_> = context.partitions.partitions().collect();
    let keys: Vec<String> = partitions.iter().map(|partition| context.keys.stream(*partition)).collect();
    // Before the streams are inspected, so that no watermark is newer than the stream.
    let known = answer(watermarks::load(client, context.streams.group(), &keys)).await?;
    let mut lost = Vec::new();
    for partition in partitions {
        let info = context.streams.inspect(partition).await?;
        let known = known.get(&context.keys.stream(partition));
        let since = Since { info: &info, created: None, read: None, went_back: false };
        if let Some(loss) = known.and_then(|known| losses::loss(&known.watermark, since)) {
            lost.push((partition, loss));
        }
    }
    let Some((first, _)) = lost.first() else {
        return findings.ok("streams", "as the consumers saw them last, or further on");
    };
    let undelivered: u64 = lost.iter().map(|(_, loss)| loss.undelivered).sum();
    let seen = format!(
        "{} lost streams, groups or entries since consumers saw them last, first {first}: {} lost",
        many(lost.len() as u64, "partition has", "partitions have"),
        many(undelivered, "undelivered entry", "undelivered entries"),
    );
    findings.fail("streams", seen, "consumers record an incident; see docs/runbook.md#incidents")
}
